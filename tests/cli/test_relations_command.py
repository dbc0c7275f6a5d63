"""``relations`` and ``families``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headatlas.relations import core, library, resolve_relations
from tests.cli.conftest import Run, parsed
from tests.mapping import checkpoints


def test_list_has_the_shipped_relations(run: Run) -> None:
    rows = parsed(run("relations", "list", "--json"))["rows"]
    assert {"country_to_capital", "word_to_first_letter"} <= {row["relation"] for row in rows}
    assert all(row["provenance"]["licence"] for row in rows)
    assert "country → capital" in run("relations", "list").stdout
    head, *lines = run("relations", "list", "capital", "copying", "--long").stdout.splitlines()
    assert head.split() == [
        "relation",
        "title",
        "category",
        "subcategory",
        "sources",
        "targets",
        "copying",
        "licence",
        "source",
    ]
    assert [line.split()[0] for line in lines] == ["country_to_capital", "copying"]
    assert all("CC0-1.0  written by hand" in line for line in lines)
    assert ["  Geography  " in line for line in lines] == [True, False]
    assert len(parsed(run("relations", "list", "all", "--json"))["rows"]) == len(core()) + len(library())
    greek = parsed(run("relations", "list", "Greek", "--json"))["rows"]
    assert [row["subcategory"] for row in greek] == ["Greek", "Greek"]


def test_check_counts_what_is_in_a_folder(run: Run, tmp_path: Path) -> None:
    (tmp_path / "colour.csv").write_text("source,target\nsky,blue\ngrass,green\nsea,blue|green\n")
    (tmp_path / "same.json").write_text(json.dumps([["a", "a"], ["b", "b"]]))
    rows = {row["relation"]: row for row in parsed(run("relations", "check", tmp_path, "--json"))["rows"]}
    assert rows["colour"]["n_pairs"] == 3 and rows["colour"]["n_target_words"] == 2
    assert not {"n_sources", "n_targets"} & set(rows["colour"]), "they are counts of one tokenizer"
    assert not rows["colour"]["is_copying"] and rows["same"]["is_copying"]
    lines = run("relations", "check", tmp_path).stdout.splitlines()
    assert lines[0].split() == ["relation", "category", "sources", "targets", "copying"]
    assert lines[1].split() == ["colour", "User", "3", "2", "no"]


def test_check_says_what_is_too_small_or_doubtful(run: Run, tmp_path: Path) -> None:
    pairs = [[f"s{at}", f"t{at}"] for at in range(29)]
    (tmp_path / "a.json").write_text(json.dumps(pairs))
    (tmp_path / "b.json").write_text(json.dumps([*pairs, ["x", ["y", "x"]]]))
    (tmp_path / "c.json").write_text(json.dumps([[f"s{at}", f"t{at % 2}"] for at in range(30)]))
    assert run("relations", "check", tmp_path).stderr.splitlines() == [
        "below the minimum, an atlas leaves it out: a (29 sources, at least 30 needed)",
        "b: 'x' is its own target; heads that copy score there too",
        "below the minimum, an atlas leaves it out: c (2 distinct targets, at least 3 needed)",
    ]
    rows = parsed(run("relations", "check", tmp_path, "--json"))["rows"]
    assert [row["too_small"] is None for row in rows] == [False, True, False]


def test_check_goes_on_after_a_broken_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("source,target\nsky\n")
    (tmp_path / "good.csv").write_text("source,target\nsky,blue\n")
    (tmp_path / "worse.json").write_text("[")
    result = run("relations", "check", tmp_path, "captial", code=2)
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["relation", "good"]
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert [error.split(": ")[1] for error in errors[:2]] == [
        f"{tmp_path / 'bad.csv'}, line 2",
        f"{tmp_path / 'worse.json'}, line 1",
    ]
    assert "did you mean country_to_capital?" in errors[2]
    found = parsed(run("relations", "check", tmp_path, "--json", code=2))
    assert [row["relation"] for row in found["rows"]] == ["good"]
    assert len(found["problems"]) == 2


@pytest.mark.parametrize(("policy", "usable"), [("single", 30), ("first-token", 31)])
def test_check_with_a_model(run: Run, tmp_path: Path, policy: str, usable: int) -> None:
    model = checkpoints.save(checkpoints.tiny_model("llama"), tmp_path / "model")
    pairs = [[f"w{at}", f"w{at + 50}"] for at in range(20, 50)]
    (tmp_path / "r.json").write_text(json.dumps([*pairs, ["w100", "w101 w102"], ["nothing", "w103"]]))
    args = ("relations", "check", tmp_path / "r.json", "--tokenizer", model, "--target-policy", policy)
    found = parsed(run(*args, "--json"))
    assert (found["tokenizer"], found["lens"], found["target_policy"]) == (str(model), "neutral", policy)
    row = found["rows"][0]
    assert (row["n_pairs"], row["n_target_words"], row["n_sources"]) == (32, 32, usable)
    assert row["left_out"] == ""
    (tmp_path / "s.json").write_text(json.dumps([*pairs[1:], ["nothing", "w103"]]))
    result = run("relations", "check", tmp_path / "s.json", "--tokenizer", model)
    assert "left out with this model: s (29 usable sources, at least 30 needed)" in result.stderr


@pytest.mark.parametrize("name", ["my_colour.json", "my_colour.csv", "my_colour.tsv"])
def test_new_writes_a_file_that_is_read(run: Run, tmp_path: Path, name: str) -> None:
    more = ("--category", "Colours") if name.endswith("json") else ()
    run("relations", "new", "My colour", "-o", tmp_path / "new" / name, *more)
    (relation,) = resolve_relations(tmp_path / "new" / name)
    assert (relation.name, relation.category) == ("my_colour", "Colours" if more else "User")
    assert [(pair.source, pair.targets) for pair in relation.pairs] == [
        ("hot", ("cold",)),
        ("big", ("small", "little")),
    ]
    again = run("relations", "new", "My colour", "-o", tmp_path / "new" / name, code=2)
    assert "there already" in again.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["x", "-o", "x.txt"], "a relation file ends in .json, .csv or .tsv"),
        (["x", "-o", "y.csv"], "a table is named after its file; call it x.csv"),
        (["x", "-o", "x.csv", "--category", "C"], "no place for a category"),
        (["→", "-o", "x.json"], "relation '→': a name is made of the letters a–z"),
        (["x", "-o", "x.json", "--category", " C"], "the category begins or ends with a space"),
    ],
)
def test_new_refuses(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in run("relations", "new", *args, code=2).stderr
    assert not list(tmp_path.iterdir())


def test_export_gives_the_same_relations(run: Run, tmp_path: Path) -> None:
    run("relations", "export", "core", "-o", tmp_path / "all")
    assert {each.sha256 for each in resolve_relations(tmp_path / "all")} == {each.sha256 for each in core()}
    run("relations", "export", "capital,copying", "-o", tmp_path / "two")
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        "copying.json",
        "country_to_capital.json",
    ]
    again = run("relations", "export", "copying", "antonym", "-o", tmp_path / "two", code=2)
    assert "copying.json: there already" in again.stderr
    assert not (tmp_path / "two" / "word_to_antonym.json").exists()
    run("relations", "export", "stronger", "-o", tmp_path / "other")
    (relation,) = resolve_relations(tmp_path / "other")
    (shipped,) = resolve_relations("stronger")
    assert relation == shipped and relation.provenance == shipped.provenance


def test_show_prints_pairs_and_their_origin(run: Run, tmp_path: Path) -> None:
    result = run("relations", "show", "country_to_capital")
    assert any(line.split() == ["France", "Paris"] for line in result.stdout.splitlines())
    assert "licence" in result.stderr
    (row,) = parsed(run("relations", "show", "country_to_capital", "--json"))["rows"]
    assert {"source": "France", "targets": ["Paris"]} in row["pairs"]
    file = tmp_path / "mine.csv"
    file.write_text("source,target\nsky,blue|grey\n")
    assert "blue | grey" in run("relations", "show", file).stdout


def test_show_of_several_says_which_pair_is_whose(run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("source,target\nsky,blue\n")
    lines = run("relations", "show", tmp_path).stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["relation", "source", "targets"],
        ["a", "sky", "blue"],
        ["b", "sky", "blue"],
    ]
    rows = parsed(run("relations", "show", tmp_path / "a.csv", "stronger", "--json"))["rows"]
    assert [row["relation"] for row in rows] == ["a", "word_to_stronger_word"]
    said = run("relations", "show", "stronger").stderr
    assert "(Linguistic, Meaning)" in said and "known problems: Other answers can be right as well" in said


def test_families(run: Run) -> None:
    rows = {row["family"]: row for row in parsed(run("families", "list", "--json"))["rows"]}
    assert "LlamaForCausalLM" in rows["llama"]["architectures"]
    assert "llama" in rows["llama"]["gguf"]
    assert "LlamaForCausalLM" in run("families", "list").stdout
