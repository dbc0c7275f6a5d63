"""Users' relation files: every accepted form, and for every mistake the file, the line and what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headatlas.errors import HeadatlasError
from headatlas.relations import Pair, Relation, readers, resolve_relations

FRANCE = Pair("France", ("Paris",))
BOLIVIA = Pair("Bolivia", ("Sucre", "La Paz"))


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def one(path: Path) -> Relation:
    (relation,) = resolve_relations(path)
    return relation


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("capitals.csv", "source,target\nFrance,Paris\nBolivia,Sucre|La Paz\n"),
        ("capitals.csv", "source,target\r\nFrance,Paris\r\n\r\nBolivia,Sucre\r\nBolivia,La Paz\r\n"),
        ("capitals.csv", '\ufeffTarget, Source\n" Paris ", France\nSucre | La Paz, "Bolivia"\n'),
        ("capitals.CSV", "category,source,target\nx,France,Paris\nx,Bolivia,Sucre|La Paz|Sucre\n"),
        ("capitals.csv", '\n"source","target"\n"France","Paris"\n"Bolivia","Sucre|La Paz"\n'),
        ("capitals.csv", "source;target\r\nFrance;Paris\r\nBolivia;Sucre|La Paz\r\n"),
        ("capitals.csv", '"target";"source";""\n"Paris";"France";"x"\n"Sucre|La Paz";Bolivia;\n'),
        ("capitals.csv", "source\ttarget\rFrance\tParis\rBolivia\tSucre|La Paz\r"),
        ("capitals.csv", "source,target\nFrance,Paris\nBolivia,Sucre|La Paz\n".encode("utf-16")),
        ("capitals.tsv", "\ufeffSource\tTarget\nFrance\tParis\nBolivia\tSucre|La Paz\n".encode("utf-16-be")),
        ("capitals.json", '[["France", "Paris"], ["Bolivia", ["Sucre", "La Paz"]]]'.encode("utf-32")),
        ("capitals.tsv", "source\ttarget\nFrance\tParis\nBolivia\tSucre|La Paz\n"),
        ("capitals.tsv", "source,target\nFrance,Paris\nBolivia,Sucre|La Paz\n"),
        ("capitals.json", '\ufeff[["France", "Paris"],\r\n["Bolivia", ["Sucre", "La Paz"]]]'),
        ("capitals.json", '[["France", "Paris"], ["Bolivia", ["Sucre", "La Paz"]]]'),
        ("capitals.json", '[["France", "Paris"], ["Bolivia", "Sucre"], ["Bolivia", "La Paz"]]'),
        ("capitals.json", '{"pairs": [["France", ["Paris"]], ["Bolivia", ["Sucre", "La Paz"]]]}'),
        (
            "capitals.json",
            '{"properties": {"a": [1]}, "samples": [{"subject": "France", "object": "Paris"},'
            ' {"subject": "Bolivia", "object": ["Sucre", "La Paz"], "more": 1}]}',
        ),
    ],
)
def test_every_form_gives_the_same_relation(tmp_path: Path, name: str, text: str | bytes) -> None:
    relation = one(write(tmp_path / name, text))
    assert relation == Relation("capitals", "capitals", "User", (FRANCE, BOLIVIA))
    assert relation.file == str(tmp_path / name)


def test_the_name_is_the_file_name_made_plain(tmp_path: Path) -> None:
    relation = one(write(tmp_path / "Été → Winter (2).csv", "source,target\na,b\n"))
    assert relation.name == "ete_winter_2"


def test_lre_name_is_the_title(tmp_path: Path) -> None:
    text = '{"name": "country capital city", "samples": [{"subject": "France", "object": "Paris"}]}'
    relation = one(write(tmp_path / "country_capital_city.json", text))
    assert (relation.name, relation.title) == ("country_capital_city", "country capital city")


def test_own_format_says_everything(tmp_path: Path) -> None:
    head = {"name": "x1", "title": "x → y", "category": "Chemistry", "copying": True}
    head |= {"source": "me", "licence": "CC0-1.0", "note": "two\nlines"}
    relation = one(write(tmp_path / "a.json", json.dumps(head | {"pairs": [["a", ["b"]]]})))
    assert (relation.name, relation.title, relation.category, relation.copying) == tuple(
        list(head.values())[:4]
    )
    assert relation.provenance == {"source": "me", "licence": "CC0-1.0", "note": "two\nlines"}


def test_words_from_right_to_left_are_kept(tmp_path: Path) -> None:
    relation = one(
        write(tmp_path / "rtl.csv", "source,target\nצרפת,פריז|עיר האורות\nمصر,القاهرة\nمی‌خواهم,می‌خواهی\n")
    )
    assert relation.pairs == (
        Pair("צרפת", ("פריז", "עיר האורות")),
        Pair("مصر", ("القاهرة",)),
        Pair("می‌خواهم", ("می‌خواهی",)),
    )


def test_a_word_may_hold_the_separator_and_quotes_in_quotes(tmp_path: Path) -> None:
    text = 'source;target\n"a;b";"say ""c"""\nd,e;f\n'
    assert one(write(tmp_path / "q.csv", text)).pairs == (Pair("a;b", ('say "c"',)), Pair("d,e", ("f",)))


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_hundred_thousand_pairs(tmp_path: Path, form: str) -> None:
    pairs = [[f"s{at}", f"t{at % 1000}"] for at in range(100_000)]
    rows = "source,target\n" + "".join(f"{source},{target}\n" for source, target in pairs)
    relation = one(write(tmp_path / f"many.{form}", rows if form == "csv" else json.dumps(pairs)))
    assert len(relation.pairs) == 100_000
    assert relation.n_targets == 1000
    assert relation.pairs[-1] == Pair("s99999", ("t999",))


def test_a_source_on_several_rows_has_all_targets_also_itself(tmp_path: Path) -> None:
    relation = one(write(tmp_path / "m.csv", "source,target\na,a\nb,c\na,d|a\n"))
    assert relation.pairs == (Pair("a", ("a", "d")), Pair("b", ("c",)))
    assert not relation.copying


def test_numbers_need_no_quotes_in_json(tmp_path: Path) -> None:
    assert one(write(tmp_path / "years.json", "[[1990, 1991]]")).pairs == (Pair("1990", ("1991",)),)


@pytest.mark.parametrize(("text", "copying"), [("a,a\nb,b", True), ("a,a\nb,b|B", False)])
def test_a_relation_of_words_to_themselves_is_copying(tmp_path: Path, text: str, copying: bool) -> None:
    assert one(write(tmp_path / "c.csv", f"source,target\n{text}\n")).copying is copying


def test_folder_flat_nested_and_by_category(tmp_path: Path) -> None:
    pairs = '[["a", "b"]]'
    for name in (
        "flat.json",
        "alone/alone.json",
        "knowledge/capitals.json",
        "knowledge/rivers/rivers.json",
        "my_chemistry/acids.json",
        "my_chemistry/bases.json",
    ):
        write(tmp_path / name, pairs)
    write(tmp_path / "said.json", '{"category": "Own", "pairs": [["a", "b"]]}')
    for ignored in ("README.md", "alone/data_source.txt", ".DS_Store", ".hidden/x.json", "knowledge/.x.json"):
        write(tmp_path / ignored, b"\xff not a relation")
    assert {relation.name: relation.category for relation in resolve_relations(tmp_path)} == {
        "flat": "User",
        "alone": "User",
        "capitals": "Knowledge",
        "rivers": "Knowledge",
        "acids": "My chemistry",
        "bases": "My chemistry",
        "said": "Own",
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "line 1: the file is empty"),
        ("a.csv", "\ufeff\r\n", "line 1: the file is empty"),
        ("a.csv", ",,\n", "line 1: the header must name"),
        (
            "a.csv",
            "\nSources,target\na,b\n",
            'line 2: the header must name "source" and "target" once each; it has',
        ),
        ("a.csv", "source;target\na;b\nc,d\n", "line 3: 1 of 2 columns; one is missing"),
        ("a.csv", "source,target\na,b\n".encode("utf-16-le"), "line 1: holds zero bytes"),
        (
            "a.csv",
            "source,target\na,b\n".encode("utf-16")[:-1],
            "line 2: not UTF-16 text; save the file as UTF-8",
        ),
        (
            "a.csv",
            "source,target\nא,ב\u200f\n",
            "line 2: the target holds the invisible character U+200F (right-to-left",
        ),
        ("a.csv", "France,Paris\n", "line 1: the header must name"),
        ("a.csv", "source,target,source\na,b,c\n", "line 1: the header must name"),
        ("a.csv", "source,target\n", "there are no pairs"),
        ("a.csv", "source,target\nFrance,Paris\nItaly,\n", "line 3: the target is empty"),
        ("a.csv", "source,target\nItaly,Rome|\n", "line 2: the target is empty"),
        ("a.csv", "source,target\n\n,Rome\n", "line 3: the source is empty"),
        ("a.csv", "source,target\nKorea, South,Seoul\n", "line 2: 3 of 2 columns; quote"),
        ("a.csv", "source,target\nFrance\n", "line 2: 1 of 2 columns; one is missing"),
        ("a.csv", 'source,target\nFrance,"Paris\n', "line 2: not a valid table"),
        ("a.csv", 'source,target\nFrance,"Pa"ris\n', "line 2: not a valid table"),
        ("a.csv", "source,target\nFr\x07ance,Paris\n", "line 2: the source holds the control"),
        ("a.csv", 'source,target\n"a\nb",c\n', "line 3: the source holds the control"),
        ("a.tsv", "source\ttarget\na\t" + "b" * 201 + "\n", "line 2: the target is longer than"),
        ("a.csv", b"source,target\nFran\xe7a,b\n", "line 2: not UTF-8"),
        ("a.json", "", "line 1: the file is empty"),
        ("a.json", "{", "line 1: not valid JSON"),
        ("a.json", '[\n["France", "Paris"],\n]', "line 3: not valid JSON"),
        ("a.json", '[\n["France", "Paris"],\n["Italy", ""]\n]', "line 3: the target is empty"),
        ("a.json", '[\n["France", "Paris"],\n\n["Italy", []]\n]', "line 4: the source has no target"),
        ("a.json", '{"x": [\n], "pairs": [\n["a", "b"], ["c", "d"],\n["e"]]}', "line 4: not a pair"),
        ("a.json", '{"samples": [\n{"subject": "a"}]}', "line 2: not a pair"),
        ("a.json", '[["a", null]]', "line 1: the target is not a word but nothing"),
        ("a.json", "[[true, 1]]", "line 1: the source is not a word but true or false"),
        ("a.json", '[["a", "\\ud800"]]', "line 1: the target holds the control or invalid character U+D800"),
        ("a.json", "[]", "there are no pairs"),
        ("a.json", '{"France": "Paris"}', "not a relation"),
        ("a.json", '"France"', "not a relation"),
        ("a.json", "[" * 100_000, "cannot be read"),
        ("a.json", "[" + "1" * 5000 + "]", "cannot be read"),
        ("a.json", '{"name": "No Name", "pairs": [["a", "b"]]}', "the name 'No Name' is not made of"),
        ("a.json", '{"title": 3, "pairs": [["a", "b"]]}', ': "title" is no text'),
        ("a.json", '{"samples": [],\n"name": 3}', ': "title" is no text'),
        ("a.json", '{"pairs": [["a", "b"]],\n"category": " x"}', ': "category" begins or ends'),
        ("a.json", '{"pairs": [["a", "b"]],\n\n"copying": "no"}', ": \"copying\" is 'no'"),
        (
            "法.csv",
            "source,target\na,b\n",
            "letters a–z and digits, and '法' has none; give it, or its file,",
        ),
        ("法.json", '[["a", "b"]]', "letters a–z and digits, and '法' has none; give it, or its file,"),
        ("a.txt", "France Paris", "a relation file ends in"),
    ],
)
def test_mistakes_are_named_with_file_and_line(
    tmp_path: Path, name: str, text: str | bytes, message: str
) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(HeadatlasError) as caught:
        resolve_relations(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_two_relations_of_one_name(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "source,target\na,b\n")
    write(tmp_path / "a" / "a.json", '[["a", "b"]]')
    with pytest.raises(
        HeadatlasError, match=r"a\.csv: a relation with the name 'a' comes from .*a\.json too"
    ):
        resolve_relations(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(HeadatlasError, match="no such file or folder"):
        resolve_relations(tmp_path / "missing")
    with pytest.raises(HeadatlasError, match="no relation file"):
        resolve_relations(tmp_path)


def test_too_large_is_said_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("wb") as file:
        file.truncate(readers.MAX_BYTES + 1)  # sparse: takes no space on disk
    with pytest.raises(HeadatlasError, match="too large for a relation"):
        resolve_relations(path)
