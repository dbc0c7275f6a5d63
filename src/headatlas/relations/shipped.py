"""The relations that come with headatlas: one JSON file each under ``data/<category>/<name>.json``."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from headatlas.errors import HeadatlasError
from headatlas.relations.readers import read_relation
from headatlas.relations.relation import CORE_CATEGORIES, Relation

DATA = Path(__file__).parent / "data"


@cache
def core() -> tuple[Relation, ...]:
    """The relations of the paper, by category in the order of `CORE_CATEGORIES`, then by name.

    Raises:
        HeadatlasError: A shipped file is damaged: names the file and the fault.
    """
    return _shipped("core")


@cache
def library() -> tuple[Relation, ...]:
    """Every other shipped relation of which a sample was judged, in the order of `core`.

    Raises:
        HeadatlasError: A shipped file is damaged: names the file and what is wrong.
    """
    return _shipped("judged")


def _shipped(mark: str) -> tuple[Relation, ...]:
    """The relations whose file says that `mark` is true."""
    relations = [_read(path) for path, head in _files() if head.get(mark) is True]
    return tuple(
        sorted(relations, key=lambda relation: (CORE_CATEGORIES.index(relation.category), relation.name))
    )


@cache
def _files() -> tuple[tuple[Path, dict[str, Any]], ...]:
    """Every shipped file: its path and what it says."""
    found = []
    for path in sorted(DATA.glob("*/*.json")):
        text = path.read_text(encoding="utf-8")
        try:
            found.append((path, dict(json.loads(text))))
        except ValueError as error:
            raise HeadatlasError(
                f"{path}: not the JSON of a relation ({error}); install headatlas again."
            ) from None
    return tuple(found)


def _read(path: Path) -> Relation:
    """One shipped file, held to more than a user's: its place and its provenance must be right too."""
    try:
        relation = read_relation(path)
    except HeadatlasError as error:
        raise HeadatlasError(f"{str(error).rstrip('.')}; install headatlas again.") from error
    if problem := _place_problem(relation, path):
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
