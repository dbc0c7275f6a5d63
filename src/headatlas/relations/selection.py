"""From a person's words to relations: shipped names, files, folders, plain pairs, and several of these.

The relations that come with headatlas are one JSON file each under ``data/<category>/<name>.json``. What a
file says before its pairs is read of all of them; the pairs only of relations that are asked for.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

from headatlas.errors import HeadatlasError
from headatlas.options import MANY_RELATIONS, SAMPLE, Sources
from headatlas.relations.readers import looks_like_a_file, read_relation, relation_files
from headatlas.relations.relation import CORE_CATEGORIES, Relation, kind
from headatlas.relations.tokenising import MIN_SOURCES

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


Pairs = Iterable[tuple[str, str | Sequence[str]]]
OneRelationSpec = str | Path | Relation | tuple[str, Pairs]
RelationSpec = OneRelationSpec | Sequence[OneRelationSpec]
"""Everything that `resolve_relations` accepts."""

_ACCEPTED = (
    "'core', 'all', a category or subcategory, the name of a shipped relation, a file or folder, a Relation, "
    "(name, [(source, target), …]), or a list of these"
)
_Read = tuple[str, Callable[[], Sequence[Relation]]]


def resolve_relations(spec: RelationSpec) -> tuple[Relation, ...]:
    """The relations that `spec` means, in the order given. All types are checked before a file is read.

    Args:
        spec: ``"core"`` (the paper's relations); ``"all"`` that are shipped; a category or subcategory of
            these (``"Translation"``, ``"Inflection"``); the name of one, in any case, or a part that only one
            name has (of core, else of all); a path to a file or folder; a :class:`Relation`; ``(name,
            pairs)`` with pairs as for :meth:`Relation.from_pairs`; a list of these; or text with several of
            them, separated by commas. A shipped relation goes before a category of that name, and both
            before a file: write ``./name`` for the file. A shipped relation that is meant twice counts once.

    Raises:
        HeadatlasError: Something else, nothing at all, no such relation or file (with names that are near), a
            malformed file, or two relations of one name (with both origins).
    """
    return _gather(spec, None)


def try_relations(spec: RelationSpec) -> tuple[tuple[Relation, ...], tuple[HeadatlasError, ...]]:
    """As `resolve_relations`, but going on after an error: the relations that can be read, and all errors."""
    problems: list[HeadatlasError] = []
    return _gather(spec, problems), tuple(problems)


def check_sources(sources: Sources) -> None:
    """Refuse a sample of sources that is no whole number, or so small that every relation is left out."""
    if sources not in (None, "all") and (type(sources) is not int or sources < MIN_SOURCES):
        raise HeadatlasError(
            f"`sources` is {sources!r}: it must be a whole number of at least {MIN_SOURCES}, "
            "which a relation needs, or `sources=all`."
        )


def most_sources(relations: Sequence[Relation], sources: Sources) -> int | None:
    """The most usable sources that each of these relations is asked of; None for all.

    None given samples a library: of more than `MANY_RELATIONS` relations, `SAMPLE` sources of each.
    """
    check_sources(sources)
    if sources is None:
        return SAMPLE if len(relations) > MANY_RELATIONS else None
    return None if sources == "all" else sources


def match_relation(name: str, names: Sequence[str], *, where: str = "this atlas") -> str:
    """The one of `names` that a person means: itself, in any case, or by a part that no other name has.

    Spaces and hyphens count as ``_``. The refusal says which names are near, and that they are those of
    `where`.

    >>> match_relation("Capital", ["country_to_capital", "country_to_language"])
    'country_to_capital'
    """
    if not isinstance(name, str):
        raise HeadatlasError(f"a relation is asked for by its name, not by {kind(name)}.")
    meant = candidates(name, names)
    if len(meant) == 1:
        return meant[0]
    near = meant or near_names(name, names)
    others = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(names)}."
    raise HeadatlasError(f"{where} has no relation {name!r}; {others}")


def candidates(name: str, names: Sequence[str]) -> list[str]:
    """The name itself if it is there, else those like it but for case, else those that have it as a part."""
    if name in names:
        return [name]
    key = _key(name)
    same = [each for each in names if _key(each) == key]
    return same or [each for each in names if key and key in _key(each)]


def _key(name: str) -> str:
    return name.strip().casefold().replace(" ", "_").replace("-", "_")


def near_names(asked: str, names: Sequence[str], most: int = 3) -> list[str]:
    """Up to `most` names that are like the one asked for, or have a word like it, the most alike first."""
    key = _key(asked)

    def likeness(name: str) -> float:
        parts = [name, *name.split("_")]
        return max(difflib.SequenceMatcher(None, key, _key(part)).ratio() for part in parts)

    scored = sorted(((likeness(name), name) for name in names), key=lambda each: -each[0])
    return [name for score, name in scored[:most] if score >= 0.8]


def _gather(spec: RelationSpec, problems: list[HeadatlasError] | None) -> tuple[Relation, ...]:
    """The relations; errors go to `problems`, or stop everything where that is None."""
    found: dict[str, tuple[str, Relation]] = {}
    for place, item in list(_items(spec)):
        with _noted(problems):
            for origin, read in _reads(item, place):
                with _noted(problems):
                    for relation in read():
                        with _noted(problems):
                            _add(found, origin, relation)
    return tuple(relation for _, relation in found.values())


@contextmanager
def _noted(problems: list[HeadatlasError] | None) -> Iterator[None]:
    try:
        yield
    except HeadatlasError as error:
        if problems is None:
            raise
        problems.append(error)


def _add(found: dict[str, tuple[str, Relation]], origin: str, relation: Relation) -> None:
    there, known = found.setdefault(relation.name, (origin, relation))
    if known is not relation:  # the same is a shipped one, meant by its name and by a group
        raise HeadatlasError(
            f"{origin}: a relation with the name {relation.name!r} comes from {there} too; "
            "rename one or leave it out."
        )


def _items(spec: Any) -> Iterator[tuple[str, Any]]:
    """The single items of a specification, each with its place in it for messages."""
    listed = [("relations", spec)]
    if isinstance(spec, Sequence) and not isinstance(spec, str | bytes) and not _named_pairs(spec):
        listed = [(f"relations[{at}]", item) for at, item in enumerate(spec)]
    count = 0
    for place, item in listed:
        if isinstance(item, str):
            parts: list[Any] = [item] if _there(item) else [part.strip() for part in item.split(",")]
        elif isinstance(item, Path | Relation) or _named_pairs(item):
            parts = [item]
        else:
            raise HeadatlasError(f"{place} is {kind(item)}; give {_ACCEPTED}.")
        for part in parts:
            if part != "":
                count += 1
                yield place, part
    if not count:
        raise HeadatlasError(f"no relations were given; give {_ACCEPTED}.")


def _named_pairs(item: Any) -> bool:
    """Whether this is ``(name, pairs)``."""
    return (
        isinstance(item, tuple)
        and len(item) == 2
        and isinstance(item[0], str)
        and isinstance(item[1], Iterable)
        and not isinstance(item[1], str | bytes | Path | Relation)
    )


def _reads(item: OneRelationSpec, place: str) -> list[_Read]:
    """The readings that give the relations of one item, each with the origin that messages name."""
    if isinstance(item, Relation):
        return [(item.file or place, lambda: (item,))]
    if isinstance(item, tuple):
        return [(place, lambda: (Relation.from_pairs(*item),))]
    if isinstance(item, Path):
        return _files(item)
    if names := _group(item):
        return [(item, lambda: tuple(map(shipped, names)))]
    if _there(item) or looks_like_a_file(item) or "/" in item or os.sep in item:
        return _files(_path(item))
    parts = candidates(item, groups()[CORE]) or candidates(item, groups()[ALL])
    if len(parts) != 1:
        near = parts or near_names(item, groups()[CORE]) or near_names(item, [*groups(), *groups()[ALL]])
        others = f" did you mean {' or '.join(near)}?" if near else ""
        raise HeadatlasError(
            f"{kind(item)} is neither a file or folder nor the name of a shipped relation;{others} "
            "`headatlas relations list all` has the names."
        )
    return [(item, lambda: (shipped(parts[0]),))]


def _group(name: str) -> tuple[str, ...]:
    """The shipped relations that go by this name: one, or those of a group."""
    by_key = {_key(each): each for each in (*groups(), *groups()[ALL])}
    found = by_key.get(_key(name))
    if found is None:
        return ()
    return (found,) if found in groups()[ALL] else groups()[found]


def _files(path: Path) -> list[_Read]:
    def read(file: Path, category: str) -> Sequence[Relation]:
        return (read_relation(file, category),)

    return [(str(file), partial(read, file, category)) for file, category in relation_files(path)]


def _there(text: str) -> bool:
    """Whether there is a file or folder of that name. Text that cannot be a path is none."""
    try:
        return _path(text).exists()
    except (OSError, ValueError):  # too long for a name; a zero byte
        return False


def _path(text: str) -> Path:
    """The path that is written in `text`, ``~`` being the user's folder."""
    with suppress(RuntimeError):  # no such user
        return Path(text).expanduser()
    return Path(text)
