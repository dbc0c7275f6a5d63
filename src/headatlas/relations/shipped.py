"""The relations that come with headatlas: one JSON file each under ``data/<category>/<name>.json``."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from headatlas.errors import HeadatlasError
from headatlas.relations.json_reader import read_json
from headatlas.relations.relation import CORE_CATEGORIES, Relation
from headatlas.relations.words import relation_problem

DATA = Path(__file__).parent / "data"


@cache
def core() -> tuple[Relation, ...]:
    """The relations of the paper, by category in the order of `CORE_CATEGORIES`, then by name.

    Raises:
        HeadatlasError: A shipped file is damaged: names the file and what is wrong.
    """
    return tuple(relation for relation, head in _shipped() if head.get("core") is True)


@cache
def library() -> tuple[Relation, ...]:
    """Every other shipped relation of which a sample was judged, in the order of `core`.

    Raises:
        HeadatlasError: A shipped file is damaged: names the file and what is wrong.
    """
    return tuple(relation for relation, head in _shipped() if head.get("judged") is True)


@cache
def _shipped() -> tuple[tuple[Relation, dict[str, Any]], ...]:
    """Each shipped file as a relation, with everything its head says."""
    found = [(_read(path), json.loads(path.read_text(encoding="utf-8"))) for path in DATA.glob("*/*.json")]
    return tuple(sorted(found, key=lambda item: (CORE_CATEGORIES.index(item[0].category), item[0].name)))


def _read(path: Path) -> Relation:
    """One shipped file, held to more than a user's: its place and its provenance must be right too."""
    relation = read_json(path.read_text(encoding="utf-8"), path, category="")
    problem = relation_problem(relation) or _place_problem(relation, path)
    if problem:
        raise HeadatlasError(f"{path}: {problem}; install headatlas again.")
    return relation


def _place_problem(relation: Relation, path: Path) -> str | None:
    if relation.name != path.stem or relation.category.lower() != path.parent.name:
        return "the name or the category is not that of the file and its folder"
    if relation.category not in CORE_CATEGORIES:
        return f"the category {relation.category!r} is not one of {', '.join(CORE_CATEGORIES)}"
    if not all(relation.provenance.get(key) for key in ("source", "licence")):
        return "the source or the licence is missing"
    return None
