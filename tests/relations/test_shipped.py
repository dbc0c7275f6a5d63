"""The shipped relations: complete, well formed, one pair a line, under licences that allow shipping."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headatlas.errors import HeadatlasError
from headatlas.evidence.texts import Template, read_templates
from headatlas.relations import (
    CORE_CATEGORIES,
    Relation,
    alternative_to,
    core,
    library,
    resolve_relations,
    selection,
)
from headatlas.relations.readers import read_relation
from headatlas.relations.tokenising import written_bare

MIN_CORE = 100
MIN_SOURCES = 30
# Each allows shipping in an Apache-2.0 package; those that ask for a notice have it in NOTICE.
LICENCES = {"CC0-1.0", "CC-BY-4.0", "MIT", "BSD-2-Clause", "SCOWL", "Unicode-3.0", "WordNet-3.0"}
KEYS = (
    *("name", "title", "category", "subcategory", "core", "copying", "alternative_to", "spacing"),
    *(
        "source",
        "licence",
        "step",
        "note",
        "known_problems",
        "question",
        "contexts",
        "judged",
        "quality",
        "pairs",
    ),
)
EVERY = (*core(), *library())


def by_name(relation: Relation) -> str:
    return relation.name


def test_categories_come_in_order_and_names_are_distinct() -> None:
    for relations in (core(), library()):
        check_order(relations)


def check_order(relations: tuple[Relation, ...]) -> None:
    order = [(CORE_CATEGORIES.index(relation.category), relation.name) for relation in relations]
    assert order == sorted(order)
    assert len({relation.name for relation in relations}) == len(relations)
    assert len({relation.title for relation in relations}) == len(relations)


def test_core_and_library_are_distinct() -> None:
    assert len(core()) == 20
    assert len(library()) >= 100
    assert not {relation.name for relation in core()} & {relation.name for relation in library()}


@pytest.mark.parametrize("relation", EVERY, ids=by_name)
def test_enough_valid_pairs(relation: Relation) -> None:
    least = MIN_CORE if relation in core() else MIN_SOURCES
    assert len(relation.pairs) >= least
    assert len({target for pair in relation.pairs for target in pair.targets}) >= 2


@pytest.mark.parametrize("relation", EVERY, ids=by_name)
def test_provenance(relation: Relation) -> None:
    assert relation.provenance["source"]
    assert set(relation.provenance["licence"].split(" AND ")) <= LICENCES


@pytest.mark.parametrize("relation", EVERY, ids=by_name)
def test_only_copying_relations_repeat_the_source(relation: Relation) -> None:
    if relation.copying:
        assert all(pair.targets == (pair.source,) for pair in relation.pairs)
    else:
        assert [pair for pair in relation.pairs if pair.source in pair.targets] == []


@pytest.mark.parametrize("relation", EVERY, ids=by_name)
def test_one_pair_a_line(relation: Relation) -> None:
    text = Path(relation.file).read_text(encoding="utf-8")
    value = json.loads(text)
    assert list(value) == [key for key in KEYS if key in value]
    head = "".join(f"  {_json(key)}: {_json(value[key])},\n" for key in value if key != "pairs")
    pairs = ",\n".join(f"    {_json(pair)}" for pair in value["pairs"])
    assert text == f'{{\n{head}  "pairs": [\n{pairs}\n  ]\n}}\n'


@pytest.mark.parametrize("relation", EVERY, ids=by_name)
def test_the_declared_spacing_is_that_of_the_words(relation: Relation) -> None:
    declared = _head(relation)["spacing"]
    words = [
        [pair.source for pair in relation.pairs],
        [target for pair in relation.pairs for target in pair.targets],
    ]
    for side, of_side in zip(declared, words, strict=True):
        bare = {written_bare(word) for word in of_side}
        assert bare == {"word": {False}, "bare": {True}, "mixed": {False, True}}[side]


@pytest.mark.parametrize("relation", EVERY, ids=by_name)
def test_questions_are_task_templates(relation: Relation) -> None:
    head = _head(relation)
    if "question" in head:
        template = Template.of(head["question"], relation.name)
        assert not template.after.endswith(" ")
    for text in head.get("contexts", ()):
        Template.of(text, relation.name)
    if relation in core():
        assert head["contexts"]
        assert head["question"]
    if "question" in head:
        assert str(read_templates().tasks[relation.name]) == head["question"]


@pytest.mark.parametrize("relation", library(), ids=by_name)
def test_judged_and_good_enough(relation: Relation) -> None:
    quality = _head(relation)["quality"]
    assert quality["sampled"] == min(100, len(relation.pairs))
    assert quality["upper_95"] < 0.08


def _head(relation: Relation) -> dict[str, Any]:
    head: dict[str, Any] = json.loads(Path(relation.file).read_text(encoding="utf-8"))
    return head


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def test_letters_are_the_words_letters() -> None:
    relations = {relation.name: relation for relation in core()}
    for name, position in (("word_to_first_letter", 0), ("word_to_last_letter", -1)):
        for pair in relations[name].pairs:
            assert pair.targets == (pair.source[position], pair.source[position].upper())


def test_years_are_followed_by_the_next() -> None:
    (years,) = [relation for relation in core() if relation.name == "year_to_following"]
    assert all(pair.targets == (str(int(pair.source) + 1),) for pair in years.pairs)


def test_a_relation_stands_in_for_years() -> None:
    (other,) = [relation for relation in library() if _head(relation).get("alternative_to")]
    assert (other.name, _head(other)["alternative_to"]) == ("item_to_successor", "year_to_following")
    (years,) = resolve_relations("year_to_following")
    assert alternative_to(years) is other
    assert alternative_to(replace(years, pairs=years.pairs[:40])) is None
    assert alternative_to(other) is None
    assert len(other.pairs) >= MIN_CORE


def test_core_is_read_without_the_pairs_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(path: Path) -> Relation:
        read.append(path.stem)
        return read_relation(path)

    monkeypatch.setattr(selection, "read_relation", counted)
    monkeypatch.setattr(selection, "shipped", selection.shipped.__wrapped__)
    assert core() and sorted(read) == sorted(relation.name for relation in core())
    assert all(len(json.dumps(head)) < 4000 and "pairs" not in head for head in selection.heads().values())


def test_the_shipped_folder_reads_as_a_users_would() -> None:
    assert {relation.sha256 for relation in resolve_relations(selection.DATA)} == {
        relation.sha256 for relation in EVERY
    }


@pytest.mark.parametrize(
    ("folder", "text", "message"),
    [
        (
            "knowledge",
            '{"name": "b", "category": "Knowledge", "subcategory": "S", "core": true, "pairs": [["a", "b"]]}',
            "the name or the category",
        ),
        (
            "own",
            '{"name": "a", "category": "Own", "subcategory": "S", "core": true, "pairs": [["a", "b"]]}',
            "is not one of",
        ),
        (
            "knowledge",
            '{"name": "a", "category": "Knowledge", "subcategory": "S", "core": true, "pairs": [["a", "b"]]}',
            "the source and the licence are missing",
        ),
        (
            "knowledge",
            '{"name": "a", "category": "Knowledge", "subcategory": "S", "source": "s", "licence": "l",'
            ' "core": true, "pairs": []}',
            "there are no pairs",
        ),
    ],
)
def test_a_damaged_installation_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, text: str, message: str
) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "a.json").write_text(text, encoding="utf-8")
    monkeypatch.setattr(selection, "DATA", tmp_path)
    for name in ("heads", "groups", "shipped"):
        monkeypatch.setattr(selection, name, getattr(selection, name).__wrapped__)
    with pytest.raises(HeadatlasError, match=message):
        core()
