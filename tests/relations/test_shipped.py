"""The shipped relations: complete, well formed, one pair a line, under licences that allow shipping."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headatlas.errors import HeadatlasError
from headatlas.relations import CORE_CATEGORIES, Relation, core, core_relations, load_relations, shipped

MIN_SOURCES = 100
# Closed classes: the language has no more of them, or no more that are common.
SMALL: dict[str, int] = {}
# Each allows shipping in an Apache-2.0 package; those that ask for a notice have it in NOTICE.
LICENCES = {"CC0-1.0", "CC-BY-4.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "Unicode-3.0", "WordNet-3.0"}


def by_name(relation: Relation) -> str:
    return relation.name


def test_categories_come_in_order_and_names_are_distinct() -> None:
    relations = core()
    order = [(CORE_CATEGORIES.index(relation.category), relation.name) for relation in relations]
    assert order == sorted(order)
    assert len({relation.name for relation in relations}) == len(relations)
    assert len({relation.title for relation in relations}) == len(relations)


@pytest.mark.parametrize("relation", core(), ids=by_name)
def test_enough_valid_pairs(relation: Relation) -> None:
    assert len(relation.pairs) >= SMALL.get(relation.name, MIN_SOURCES)
    assert len({target for pair in relation.pairs for target in pair.targets}) >= 3


@pytest.mark.parametrize("relation", core(), ids=by_name)
def test_provenance(relation: Relation) -> None:
    assert relation.provenance["source"]
    assert set(relation.provenance["licence"].replace(" AND ", ";").split(";")) <= LICENCES


@pytest.mark.parametrize("relation", core(), ids=by_name)
def test_only_copying_relations_repeat_the_source(relation: Relation) -> None:
    if relation.copying:
        assert all(pair.targets == (pair.source,) for pair in relation.pairs)
    elif relation.category in ("Algorithmic", "Knowledge"):  # a translation may look like its word
        assert [pair for pair in relation.pairs if pair.source in pair.targets] == []


@pytest.mark.parametrize("relation", core(), ids=by_name)
def test_one_pair_a_line(relation: Relation) -> None:
    path = Path(relation.file)
    value = json.loads(path.read_text(encoding="utf-8"))
    keys = [
        "name",
        "title",
        "category",
        *(["copying"] if relation.copying else []),
        "source",
        "licence",
        "note",
    ]
    head = "".join(f"  {_json(key)}: {_json(value[key])},\n" for key in keys)
    pairs = ",\n".join(f"    {_json(pair)}" for pair in value["pairs"])
    assert list(value) == [*keys, "pairs"]
    assert path.read_text(encoding="utf-8") == f'{{\n{head}  "pairs": [\n{pairs}\n  ]\n}}\n'


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


def test_what_is_written_is_the_file() -> None:
    assert [each.to_json() for each in core()] == [Path(each.file).read_text("utf-8") for each in core()]


def test_core_relations_are_asked_for_by_name() -> None:
    assert core_relations() == core()
    assert [each.name for each in core_relations("COPYING", "capital", "copying")] == [
        "copying",
        "country_to_capital",
    ]
    with pytest.raises(HeadatlasError, match="did you mean country_to_capital or country_to_language"):
        core_relations("country")


def test_the_shipped_folder_reads_as_a_users_would() -> None:
    assert {relation.sha256 for relation in load_relations(shipped.DATA)} == {
        relation.sha256 for relation in core()
    }


@pytest.mark.parametrize(
    ("folder", "text", "message"),
    [
        (
            "knowledge",
            '{"name": "b", "category": "Knowledge", "pairs": [["a", "b"]]}',
            "the name or the category",
        ),
        ("own", '{"name": "a", "category": "Own", "pairs": [["a", "b"]]}', "is not one of"),
        (
            "knowledge",
            '{"name": "a", "category": "Knowledge", "pairs": [["a", "b"]]}',
            "the licence is missing",
        ),
        ("knowledge", '{"name": "a", "category": "Knowledge", "pairs": []}', "there are no pairs"),
    ],
)
def test_a_damaged_installation_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, text: str, message: str
) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "a.json").write_text(text, encoding="utf-8")
    monkeypatch.setattr(shipped, "DATA", tmp_path)
    with pytest.raises(HeadatlasError, match=message):
        core.__wrapped__()
