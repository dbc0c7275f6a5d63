"""Relations asked for by name, file, folder or pairs; and the errors when none is meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headatlas.errors import HeadatlasError
from headatlas.options import MANY_RELATIONS, SAMPLE
from headatlas.relations import (
    Pair,
    Relation,
    core,
    library,
    match_relation,
    most_sources,
    resolve_relations,
    try_relations,
)

NAMES = ["country_to_capital", "country_to_language", "copying", "name_copying", "word_to_antonym"]
SKY = (Pair("sky", ("blue",)),)


def without(name: str) -> list[Relation]:
    return [each for each in core() if each.name != name]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with relation files."""
    (tmp_path / "folder").mkdir()
    for name in (
        "my.csv",
        "a,b.csv",
        "folder/one.csv",
        "folder/two.csv",
        "copying.csv",
        "country_to_capital.csv",
    ):
        (tmp_path / name).write_text("source,target\nsky,blue\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("country_to_capital", ["country_to_capital"]),
        ("Country to Capital", ["country_to_capital"]),
        ("capital", ["country_to_capital"]),
        ("copying", ["copying"]),
        ("my.csv", ["my"]),
        (Path("my.csv"), ["my"]),
        ("~/my.csv", ["my"]),
        ("a,b.csv", ["a_b"]),
        ("folder/", ["one", "two"]),
        ("capital, my.csv,folder,", ["country_to_capital", "my", "one", "two"]),
        (["capital,my.csv", Path("folder")], ["country_to_capital", "my", "one", "two"]),
        (Relation("sky", "sky", "User", SKY), ["sky"]),
        (("Sky", [("sky", "blue")]), ["sky"]),
        (("capital", "antonym"), ["country_to_capital", "word_to_antonym"]),
        (["copying", ("sky", [("sky", ["blue"])]), Relation("b", "b", "User", SKY)], ["copying", "sky", "b"]),
    ],
)  # fmt: skip
def test_everything_that_is_accepted(here: Path, spec: Any, names: list[str]) -> None:
    assert [relation.name for relation in resolve_relations(spec)] == names


def test_core_is_all_that_is_shipped(here: Path) -> None:
    assert resolve_relations("core") == resolve_relations("CORE") == core()
    assert resolve_relations("core,my.csv")[:-1] == core()


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("all", [*core(), *library()]),
        ("Translation", [each for each in (*core(), *library()) if each.category == "Translation"]),
        ("inflection", [each for each in (*core(), *library()) if each.subcategory == "Inflection"]),
        ("CODE", [each for each in (*core(), *library()) if each.subcategory == "Code"]),
        ("core,all", [*core(), *library()]),
        (
            "capital,core,country_to_capital",
            [resolve_relations("capital")[0], *without("country_to_capital")],
        ),
        ("Greek,english_to_greek", [each for each in library() if each.subcategory == "Greek"]),
        ("Copying", list(resolve_relations("copying"))),
        ("emoji_to", [each for each in library() if each.name == "emoji_to_name"]),
    ],
)
def test_groups_and_names_of_everything_shipped(here: Path, spec: str, expected: list[Relation]) -> None:
    assert len(expected) > 0
    assert list(resolve_relations(spec)) == expected


def test_a_category_goes_before_a_folder(here: Path) -> None:
    (here / "Greek").mkdir()
    (here / "Greek" / "mine.csv").write_text("source,target\nsky,blue\n")
    assert [each.name for each in resolve_relations("Greek")] == ["greek_to_english", "english_to_greek"][
        ::-1
    ]
    assert [each.name for each in resolve_relations("./Greek")] == ["mine"]


def test_names_near_any_shipped_relation_are_said(here: Path) -> None:
    with pytest.raises(HeadatlasError, match=r"did you mean emoji_to_name or name_to_emoji\?"):
        resolve_relations("emoji")
    with pytest.raises(HeadatlasError, match=r"did you mean Translation\?"):
        resolve_relations("Translatoin")
    with pytest.raises(
        HeadatlasError, match=r"^'nope' is neither .* a shipped relation; `headatlas relations"
    ):
        resolve_relations("nope")


def test_a_shipped_relation_goes_before_a_file(here: Path) -> None:
    (here / "copying").mkdir()
    assert resolve_relations("copying")[0].category == "Algorithmic"
    assert resolve_relations("./copying.csv")[0].category == "User"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("captial", "^'captial' is neither a file or folder nor .*; did you mean country_to_capital?"),
        ("country", "did you mean country_to_capital or country_to_language?"),
        ("bogus", "shipped relation; `headatlas relations list all` has the names"),
        ("x" * 5000, "^a long text is neither"),
        ("a\0b", "is neither a file"),
        ("~nobody-of-this-name/x.csv", "no such file or folder"),
        ("y" * 5000 + ".csv", "cannot be read"),
        ("none.csv", "^none.csv: no such file or folder"),
        (Path("none"), "^none: no such file or folder"),
        ("", "^no relations were given; give 'core'"),
        (" , ", "^no relations were given"),
        ([], "^no relations were given"),
        (None, "^relations is nothing; give 'core'"),
        (3, "^relations is a number; give"),
        (b"core", "^relations is of the type bytes; give"),
        ({"a": "b"}, "^relations is an object; give"),
        (["none.csv", 3], r"^relations\[1\] is a number; give"),
        ([["core"]], r"^relations\[0\] is a list of 1; give"),
        (("x", [("a", "b", "c")]), "^relation 'x', pair 1: not a pair .* but a tuple of 3"),
        (("x", ["core"]), "^relation 'x', pair 1: not a pair .* but 'core'"),
        (("x", [("a", "b"), ("c", "")]), "^relation 'x', pair 2: the target is empty"),
        (("x", [("a", None)]), "pair 1: the target is not a word but nothing"),
        (("x", []), "^relation 'x': there are no pairs"),
        (
            "core,country_to_capital.csv",
            "^country_to_capital.csv: a relation with the name 'country_to_capital' comes from core too",
        ),
        (["my.csv", ("my", [("a", "b")])], r"^relations\[1\]: .* 'my' comes from my.csv too"),
    ],
)
def test_everything_else_is_refused_in_one_sentence(here: Path, spec: Any, message: str) -> None:
    with pytest.raises(HeadatlasError, match=message) as caught:
        resolve_relations(spec)
    assert "\n" not in str(caught.value)


def test_going_on_after_errors(here: Path) -> None:
    (here / "folder" / "bad.csv").write_text("source,target\nsky\n")
    found, problems = try_relations("none.csv,folder,my.csv,my.csv")
    assert [relation.name for relation in found] == ["one", "two", "my"]
    assert [str(problem).split(": ")[0] for problem in problems] == [
        "none.csv",
        "folder/bad.csv, line 2",
        "my.csv",
    ]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("copying", "copying"),
        ("COPYING", "copying"),
        ("name-copying", "name_copying"),
        (" word to antonym ", "word_to_antonym"),
        ("language", "country_to_language"),
        ("Antonym", "word_to_antonym"),
    ],
)
def test_a_name_is_matched(name: str, found: str) -> None:
    assert match_relation(name, NAMES) == found


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("to", "did you mean country_to_capital or country_to_language or word_to_antonym?"),
        ("antonyms", "has no relation 'antonyms'; did you mean word_to_antonym?"),
        ("bogus", "this atlas has no relation 'bogus'; it has country_to_capital, country_to_language, "),
        ("", "has no relation ''; it has"),
        (3, "a relation is asked for by its name, not by a number"),
    ],
)
def test_a_name_that_is_not_matched(name: Any, message: str) -> None:
    with pytest.raises(HeadatlasError) as caught:
        match_relation(name, NAMES)
    assert message in str(caught.value)


def test_from_pairs() -> None:
    made = Relation.from_pairs("My colours", [("sky", "blue"), ("sea", ["green"]), ("sea", "blue")], "Colour")
    pairs = (Pair("sky", ("blue",)), Pair("sea", ("green", "blue")))
    assert made == Relation("my_colours", "My colours", "Colour", pairs)
    assert Relation.from_pairs("c", [("a", "a")]).copying
    assert Relation.from_pairs("d", {"sky": "blue", "sea": ["blue", "green"]}) == Relation.from_pairs(
        "d", [("sky", "blue"), ("sea", ["blue", "green"])]
    )
    assert Relation.from_pairs("year", [(1990, 1991)]).pairs == (Pair("1990", ("1991",)),)  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cap", [("France", "Paris")]), "^relation 'cap': the title is a list of 1, not text; Relation"),
        (("cap", "cap", "User", [("France", "Paris")]), "the pairs are a list of 1, not a tuple of Pair"),
        (("cap", "cap", "User", (("France", "Paris"),)), "the pairs are a tuple of 1, not a tuple of Pair"),
        (("cap", "cap", "User", (Pair("a", "b"),)), "the targets of 'a' are 'b', not a tuple"),  # type: ignore[arg-type]
        (("cap", "cap", "User", (Pair("a", (3,)),)), "holds something that is not text"),  # type: ignore[arg-type]
        (("cap", "cap", "User", SKY, "no"), "copying is 'no'"),
        (("cap", "cap"), "there are no pairs"),
        (("Cap", "cap", "User", SKY), "the name 'Cap' is not made of"),
        (("cap", "", "User", SKY), "the title is empty"),
        ((3, "cap"), "the name is a number, not text"),
        (("cap", "cap", "User", SKY * 2), "the source 'sky' is there twice"),
        (("cap", "cap", "User", (Pair("a", ("b", "b")),)), "the same target twice"),
        (("cap", "cap", "User", (Pair("a", ("b\n",)),)), "control or invalid character U\\+000A"),
    ],
)  # fmt: skip
def test_a_relation_checks_its_arguments(arguments: Any, message: str) -> None:
    with pytest.raises(HeadatlasError, match=message):
        Relation(*arguments)


def test_a_library_is_sampled_unless_all_is_asked_for() -> None:
    """One rule for all relations: how many there are decides."""
    few, many = library()[:MANY_RELATIONS], library()[: MANY_RELATIONS + 1]
    assert [most_sources(asked, None) for asked in (core(), few, many)] == [None, None, SAMPLE]
    assert [most_sources(many, sources) for sources in ("all", 150)] == [None, 150]
    assert most_sources(few, 150) == 150
