"""The relations that come with headatlas: one JSON file each under ``data/<category>/<name>.json``.

What a file says before its pairs is read of all of them; the pairs only of relations that are asked for.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from headatlas.errors import HeadatlasError
from headatlas.relations.readers import read_relation
from headatlas.relations.relation import CORE_CATEGORIES, Relation

DATA = Path(__file__).parent / "data"
CORE, ALL = "core", "all"
_HEAD_CHARACTERS = 8192


def core() -> tuple[Relation, ...]:
    """The relations of the paper, by category in the order of `CORE_CATEGORIES`, then by name."""
    return tuple(map(shipped, groups()[CORE]))


def library() -> tuple[Relation, ...]:
    """Every other shipped relation, in the order of `core`."""
    others = groups()[ALL][len(groups()[CORE]) :]
    return tuple(map(shipped, others))


@cache
def groups() -> dict[str, tuple[str, ...]]:
    """Names of relations by the name of a group: ``"core"``, ``"all"``, each category, each subcategory.

    Those of core come first in each. A subcategory that two categories have holds the relations of both.
    """
    first, then = (
        sorted(
            (name for name, head in heads().items() if head.get(mark) is True),
            key=lambda name: (CORE_CATEGORIES.index(heads()[name]["category"]), name),
        )
        for mark in ("core", "judged")
    )
    found: dict[str, list[str]] = {CORE: first, ALL: [*first, *then]}
    for key in ("category", "subcategory"):
        for name in found[ALL]:
            found.setdefault(heads()[name][key], []).append(name)
    return {group: tuple(names) for group, names in found.items()}


@cache
def shipped(name: str) -> Relation:
    """The shipped relation of that name; its file is held to more than a user's."""
    path = DATA / heads()[name]["category"].lower() / f"{name}.json"
    try:
        return read_relation(path)
    except HeadatlasError as error:
        raise HeadatlasError(f"{str(error).rstrip('.')}; install headatlas again.") from error


def alternative_to(relation: Relation) -> Relation | None:
    """The shipped relation that stands in for this one where a tokenizer leaves it out, or None."""
    for name, head in heads().items():
        if head.get("alternative_to") == relation.name and shipped(relation.name).sha256 == relation.sha256:
            return shipped(name)
    return None


def questions() -> dict[str, str]:
    """Name → the text that asks for the target, with ``{}`` for the source, where a relation has one."""
    return {name: heads()[name]["question"] for name in groups()[ALL] if "question" in heads()[name]}


def contexts() -> dict[str, tuple[str, ...]]:
    """Name → texts in which its sources stand naturally, with ``{}`` for the source, where it has such."""
    return {name: tuple(heads()[name]["contexts"]) for name in groups()[ALL] if "contexts" in heads()[name]}


@cache
def heads() -> dict[str, dict[str, Any]]:
    """Name → what its file says before the pairs, by the path of the file; none may be damaged."""
    found = {}
    for path in sorted(DATA.glob("*/*.json")):
        with path.open(encoding="utf-8") as stream:
            text = stream.read(_HEAD_CHARACTERS)
            before, mark, _ = text.partition('"pairs":')
            whole = f"{before.rstrip().rstrip(',')}}}" if mark else text + stream.read()
        try:
            head = dict(json.loads(whole))
        except ValueError as error:
            raise HeadatlasError(
                f"{path}: not the JSON of a relation ({error}); install headatlas again."
            ) from None
        if problem := _head_problem(head, path):
            raise HeadatlasError(f"{path}: {problem}; install headatlas again.")
        found[path.stem] = head
    return found


def _head_problem(head: dict[str, Any], path: Path) -> str | None:
    category = head.get("category", "")
    if head.get("name") != path.stem or str(category).lower() != path.parent.name:
        return "the name or the category is not that of the file and its folder"
    if category not in CORE_CATEGORIES:
        return f"the category {category!r} is not one of {', '.join(CORE_CATEGORIES)}"
    if missing := [key for key in ("subcategory", "source", "licence") if not head.get(key)]:
        return f"the {' and the '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    return None
