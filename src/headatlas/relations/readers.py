"""Relation files: which of a folder are read, and how the text of each becomes a relation.

A file is a table (CSV, TSV) or JSON: headatlas' own format, a list of pairs, or the samples of the LRE data
sets. A folder may be flat, hold one folder per relation (``name/name.json``), or one folder per category.
Every mistake is said with the file and, where there is one, the line.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from headatlas.errors import HeadatlasError
from headatlas.relations.relation import (
    CORE_CATEGORIES,
    PROVENANCE,
    USER_CATEGORY,
    Pair,
    Relation,
    as_pair,
    is_copying,
    kind,
    merge,
    slug,
    word_problem,
)

MAX_BYTES = 64 * 2**20

_FORMATS = ".json, .csv or .tsv"
_DEPTH = 3  # folder/category/name/name.json
# The longer mark first: UTF-32 begins as UTF-16 does.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SEPARATORS = (",", ";", "\t")
_NO_ROW: tuple[int, list[str]] = (1, [])
_HEAD = ("name", "title", "category", "subcategory")
_SPACE = re.compile(r"[ \t\n\r]*")


def relation_files(path: Path) -> list[tuple[Path, str]]:
    """The relation files of a file or folder, in the order of their paths, each with its default category.

    In a folder that is the name of the subfolder that several relations share; elsewhere ``"User"``. Files
    with other endings (README, notes) and hidden files are ignored in a folder.
    """
    patterns = ["/".join(["*"] * (depth + 1)) for depth in range(_DEPTH)]
    try:
        if path.is_file():
            return [(path, USER_CATEGORY)]
        if not path.is_dir():
            raise HeadatlasError(
                f"{path}: no such file or folder; give a relation file ({_FORMATS}) or a folder of them."
            )
        found = sorted(
            each
            for pattern in patterns
            for each in path.glob(pattern)
            if looks_like_a_file(each.name)
            and each.is_file()
            and not any(part.startswith(".") for part in each.relative_to(path).parts)
        )
    except OSError as error:
        raise HeadatlasError(f"{path}: cannot be read ({error.strerror}).") from None
    if not found:
        raise HeadatlasError(f"{path}: no relation file ({_FORMATS}) in this folder; put one there.")
    tops = [each.relative_to(path).parts[0] for each in found]
    members = Counter(tops)  # a file directly in the folder counts once under its own name
    return [
        (each, _category(top) if members[top] > 1 else USER_CATEGORY)
        for each, top in zip(found, tops, strict=True)
    ]


def looks_like_a_file(name: str) -> bool:
    """Whether a name ends as relation files do."""
    return Path(name).suffix.lower() in _READERS


def read_relation(path: Path, category: str = USER_CATEGORY) -> Relation:
    """The relation in a .json, .csv or .tsv file in UTF-8, or in UTF-16 with its byte order mark.

    It is named after the file unless the file says otherwise; ``category`` is for a file that gives none.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise HeadatlasError(f"{path}: a relation file ends in {_FORMATS}.")
    text = _text(path)
    if not text.strip():
        raise HeadatlasError(f"{path}, line 1: the file is empty.")
    return reader(text, path, category)


def _category(folder: str) -> str:
    """A subfolder's name as a category: a core one in its spelling, another with a capital first letter."""
    name = folder.replace("_", " ").strip() or USER_CATEGORY
    return next(
        (core for core in CORE_CATEGORIES if core.lower() == name.lower()), name[0].upper() + name[1:]
    )


def _text(path: Path) -> str:
    """A file's text: UTF-8, or what its byte order mark says."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise HeadatlasError(
                f"{path}: {size / 2**20:.0f} MiB is too large for a relation; "
                f"keep a few hundred pairs, at most {MAX_BYTES // 2**20} MiB."
            )
        data = path.read_bytes()
    except OSError as error:
        raise HeadatlasError(f"{path}: cannot be read ({error.strerror}).") from None
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        before = data[: error.start].decode(encoding, errors="ignore")
        raise HeadatlasError(
            f"{path}, line {before.count(chr(10)) + 1}: not {encoding[:6].rstrip('-').upper()} text; "
            "save the file as UTF-8."
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise HeadatlasError(
            f"{path}, line {line}: holds zero bytes, as UTF-16 without its byte order mark does; "
            "save the file as UTF-8."
        )
    return text


# Tables


def _read_table(text: str, path: Path, category: str) -> Relation:
    """The relation in a table: a header with ``source`` and ``target``, a pair a row, targets apart by ``|``.

    Columns other than the two are ignored, as are blank lines. The separator is the one by which the header
    has both columns. A source on several rows has all their targets.
    """
    merged = merge(_table_pairs(_rows(text, _separator(text, path), path), path))
    title = path.stem.replace("_", " ")
    return Relation(slug(path.stem), title, category, merged, is_copying(merged), file=str(path))


def _separator(text: str, path: Path) -> str:
    """The separator by which the header names both columns; the one of the file's ending if none does."""
    by_ending = "\t" if path.suffix.lower() == ".tsv" else ","
    for separator in sorted(_SEPARATORS, key=lambda each: each != by_ending):
        with suppress(HeadatlasError):  # quotes that end elsewhere: not this separator
            if _columns(next(_rows(text, separator, path), _NO_ROW)[1]):
                return separator
    return by_ending


def _rows(text: str, separator: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with the number of its last line."""
    # newline="" keeps line breaks inside quotes; skipinitialspace allows `France, "Paris"`.
    rows = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=separator != "\t", strict=True
    )
    try:
        for row in rows:
            if any(cell.strip() for cell in row):
                yield rows.line_num, row
    except csv.Error as error:
        raise HeadatlasError(
            f"{path}, line {rows.line_num}: not a valid table ({error}); check the quotes."
        ) from None


def _columns(header: list[str]) -> tuple[int, int] | None:
    """The positions of ``source`` and ``target`` (case does not matter), or None if not there once each."""
    names = [column.strip().lower() for column in header]
    if names.count("source") != 1 or names.count("target") != 1:
        return None
    return names.index("source"), names.index("target")


def _table_pairs(rows: Iterator[tuple[int, list[str]]], path: Path) -> list[Pair]:
    """The pairs of numbered rows, the first of which is the header."""
    line, header = next(rows, _NO_ROW)
    columns = _columns(header)
    if columns is None:
        found = ", ".join(repr(column.strip()) for column in header)
        found = found if len(found) <= 80 else found[:79] + "…"
        raise HeadatlasError(
            f'{path}, line {line}: the header must name "source" and "target" once each; it has {found}.'
        )
    source, target = columns
    pairs = []
    for line, row in rows:
        where = f"{path}, line {line}"
        if len(row) != len(header):
            why = "quote a word that holds the separator" if len(row) > len(header) else "one is missing"
            raise HeadatlasError(f"{where}: {len(row)} of {len(header)} columns; {why}.")
        pairs.append(as_pair((row[source], row[target].split("|")), where))
    return pairs


# JSON


def _read_json(text: str, path: Path, category: str) -> Relation:
    """The relation in a JSON text; the three formats are told apart by what they hold."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise HeadatlasError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}).") from None
    except (ValueError, RecursionError) as error:  # an endless number; thousands of nested brackets
        raise HeadatlasError(f"{path}: JSON that cannot be read ({error}).") from None
    head = value if isinstance(value, dict) else {}
    key = next((key for key in ("pairs", "samples") if isinstance(head.get(key), list)), "")
    items = head[key] if key else value
    if not isinstance(items, list):
        raise HeadatlasError(
            f'{path}, line 1: not a relation. Give a list of pairs ([["France", "Paris"], …]), an object '
            'with "pairs", or one with "samples" of "subject" and "object".'
        )
    if key == "samples":
        head = {"title": head["name"]} if "name" in head else {}
    found = []
    for at, item in enumerate(items):
        try:
            found.append(as_pair(_sample(item), ""))
        except HeadatlasError as error:
            raise HeadatlasError(f"{path}, line {_line_of_item(text, key, at)}{error}") from None
    pairs = merge(found)
    texts = {key: _head_text(head, key, path) for key in (*_HEAD, *PROVENANCE)}
    copying = head.get("copying", is_copying(pairs))
    if not isinstance(copying, bool):
        raise HeadatlasError(f'{path}: "copying" is {kind(copying)}; write true or false.')
    name = texts["name"] or slug(path.stem)
    return Relation(
        name=name,
        title=texts["title"] or (name or path.stem).replace("_", " "),
        category=texts["category"] or category,
        pairs=pairs,
        copying=copying,
        provenance={key: texts[key] for key in PROVENANCE if texts[key]},
        file=str(path),
        subcategory=texts["subcategory"],
    )


def _sample(item: Any) -> Any:
    """An item of the LRE kind as a pair; anything else as it is."""
    if isinstance(item, dict) and "subject" in item and "object" in item:
        return item["subject"], item["object"]
    return item


def _head_text(head: dict[str, Any], key: str, path: Path) -> str:
    """The text under a key of the top object, ``""`` if there is none."""
    value = head.get(key, "")
    if not isinstance(value, str):
        problem: str | None = "is no text"
    else:
        problem = word_problem(value) if value and key not in PROVENANCE else None
    if problem:
        raise HeadatlasError(f'{path}: "{key}" {problem}.')
    return str(value)


def _line_of_item(text: str, key: str, at: int) -> int:
    """The 1-based line of an item of the top list of valid JSON, or of the list under a key at the top."""
    decoder = json.JSONDecoder()

    def skip(position: int) -> int:
        found = _SPACE.match(text, position)
        return found.end() if found else position

    def values(start: int) -> Iterator[tuple[str, int]]:
        """Name, if it has one, and start of each value of the list or object that starts there."""
        position = skip(start + 1)
        while text[position] not in "]}":
            name = ""
            if text[start] == "{":
                name, position = decoder.raw_decode(text, position)
                position = skip(skip(position) + 1)  # the colon
            yield name, position
            position = skip(decoder.raw_decode(text, position)[1])
            position = skip(position + 1) if text[position] == "," else position

    start = skip(0)
    if key:  # of a key given twice the last counts
        start = [place for name, place in values(start) if name == key][-1]
    return text.count("\n", 0, [place for _, place in values(start)][at]) + 1


_READERS: dict[str, Callable[[str, Path, str], Relation]] = {
    ".json": _read_json,
    ".csv": _read_table,
    ".tsv": _read_table,
}
