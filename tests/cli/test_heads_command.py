"""Commands that read an atlas: what they print, and where."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from headatlas.atlas import Atlas
from tests.cli.conftest import Run, parsed
from tests.synthetic import make_atlas

FIELDS = ["layer", "head", "relation", "category", "score", "suppression", "q", "control", "n_sources"]


def test_heads_json_has_the_fixed_fields_first(run: Run, shared_folder: Path) -> None:
    result = run("heads", shared_folder, "--json")
    records = parsed(result)["rows"]
    assert records
    assert result.stderr == ""
    for record in records:
        assert list(record)[: len(FIELDS)] == FIELDS
        assert isinstance(record["layer"], int) and isinstance(record["n_sources"], int)
        assert record["score"] >= 0.15 or record["suppression"] >= 0.15


def test_heads_json_equals_the_atlas(run: Run, shared_folder: Path) -> None:
    frame = Atlas.open(shared_folder).sel()
    records = parsed(run("heads", shared_folder, "--all", "--json"))["rows"]
    assert [(r["layer"], r["head"], r["relation"]) for r in records] == list(
        zip(frame["layer"], frame["head"], frame["relation"], strict=True)
    )
    assert [r["score"] for r in records] == frame["score"].tolist()


def test_nan_becomes_null(run: Run, shared_folder: Path) -> None:
    records = parsed(run("heads", shared_folder, "--all", "--json"))["rows"]
    assert any(record["chance"] is None for record in records)


def test_heads_can_be_narrowed(run: Run, shared_folder: Path) -> None:
    one = parsed(run("heads", shared_folder, "--only", "Capital", "--all", "--json"))["rows"]
    assert {record["relation"] for record in one} == {"country_to_capital"}
    assert len(one) == 12
    category = parsed(run("heads", shared_folder, "--category", "knowledge", "--json"))["rows"]
    assert {record["category"] for record in category} == {"Knowledge"}
    assert len(parsed(run("heads", shared_folder, "--limit", 3, "--json"))["rows"]) == 3


def test_numbers_can_be_changed_afterwards(run: Run, shared_folder: Path) -> None:
    usual = len(parsed(run("heads", shared_folder, "--json"))["rows"])
    strict = parsed(run("heads", shared_folder, "--tau", 0.6, "--json"))["rows"]
    assert 0 < len(strict) < usual
    assert all(max(r["score"], r["suppression"]) >= 0.6 for r in strict)
    loose = parsed(run("heads", shared_folder, "--criterion", "tau", "--tau", 0.02, "--json"))["rows"]
    assert len(loose) > usual
    k1 = parsed(run("heads", shared_folder, "--k", 1, "--all", "--json"))["rows"]
    k10 = parsed(run("heads", shared_folder, "--all", "--json"))["rows"]
    assert sum(r["score"] for r in k1) < sum(r["score"] for r in k10)
    assert run("heads", shared_folder, "--preset", "maps-paper-llama3").stderr.count("k = 25 (copying 3)")


def test_a_folder_and_its_zarr_are_the_same(run: Run, shared_folder: Path) -> None:
    assert run("heads", shared_folder).stdout == run("heads", shared_folder / "atlas.zarr").stdout


def test_table_is_plain_and_its_caption_is_on_stderr(run: Run, shared_folder: Path) -> None:
    result = run("heads", shared_folder, "--limit", 4)
    lines = result.stdout.splitlines()
    assert len(lines) == 5
    assert lines[0].split()[:2] == ["head", "relation"]
    assert "score ≥ 0.15 and q ≤ 0.01" in result.stderr
    assert "\x1b" not in result.output


def test_nothing_called_is_said(run: Run, shared_folder: Path) -> None:
    result = run("heads", shared_folder, "--tau", 1, "--only", "copying")
    assert result.stdout == ""
    assert "no head is called" in result.stderr
    assert parsed(run("heads", shared_folder, "--tau", 1, "--only", "copying", "--json"))["rows"] == []


def test_head_lists_every_relation(run: Run, shared_folder: Path) -> None:
    records = parsed(run("head", shared_folder, "3.2", "--json"))["rows"]
    assert {(r["layer"], r["head"]) for r in records} == {(3, 2)}
    assert len(records) == 19
    best = [max(r["score"], r["suppression"]) for r in records]
    assert best == sorted(best, reverse=True)
    assert run("head", shared_folder, "L3H2").stdout == run("head", shared_folder, "3.2").stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [("4", "LAYER.HEAD"), ("x.y", "LAYER.HEAD"), ("9.0", "layers 0 to 3"), ("0.3", "heads 0 to 2")],
)
def test_head_refuses_what_is_no_head(run: Run, shared_folder: Path, name: str, message: str) -> None:
    assert message in run("head", shared_folder, name, code=2).stderr


def test_head_of_a_layer_that_is_not_mapped(run: Run, tmp_path: Path) -> None:
    make_atlas(tmp_path / "atlas.zarr", 4, 3, layers=range(2))
    assert "layer 3 is not mapped" in run("head", tmp_path, "3.0", code=2).stderr
    assert "2 of 4 layers not mapped" in run("heads", tmp_path).stderr
    assert parsed(run("info", tmp_path, "--json"))["layers_done"] == [0, 1]


def test_describe_prints_words(run: Run, shared_folder: Path) -> None:
    result = run("describe", shared_folder)
    assert "Synthetic-1M" in result.stdout
    assert result.stderr == ""


def test_info(run: Run, shared_folder: Path) -> None:
    text = run("info", shared_folder).stdout
    assert "4 of 4 layers" in text and "neutral" in text and "0 usable sources" in text
    found = parsed(run("info", shared_folder, "--json"))
    assert found["provenance"]["model"]["name"] == "Synthetic-1M"
    assert found["thresholds"]["k"] == 10
    assert len(found["rows"]) == 20


def test_a_closed_pipe_is_no_traceback(shared_folder: Path) -> None:
    command = f"{sys.executable} -m headatlas heads {shared_folder} --all --json | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == "{\n"
    assert not re.search("Traceback|Error", done.stderr)


def test_words_of_a_head(run: Run, shared_folder: Path) -> None:
    atlas = Atlas.open(shared_folder)
    row = atlas.sel(called=True).query("implements").iloc[0]
    name, relation = f"{row['layer']}.{row['head']}", row["relation"]
    result = run("head", shared_folder, name, "--words", "--only", relation)
    n = round(row["score"] * row["n_sources"])
    assert f"{relation}, promotion: {n} of {row['n_sources']} sources hit (rank below 10)" in result.stdout
    lines = result.stdout.splitlines()
    assert sum(line.startswith("hit ") for line in lines) == n
    assert "≥ 32" in result.stdout and re.search(r"^hit +s\d+ +t\d+ \d+ ", result.stdout, re.M)
    records = parsed(run("head", shared_folder, name, "--only", relation, "--json"))
    pairs = atlas.pairs(row["layer"], row["head"], relation)
    assert records["ceiling"] == 32 and len(records["words"]) == len(pairs)
    assert sum(each["hit"] for each in records["words"]) == n
    card = parsed(run("head", shared_folder, name, "--json"))
    assert {key: records[key] for key in card} == card and set(records) - set(card) == {"ceiling", "words"}


def test_a_limit_of_a_search_counts_heads(run: Run, shared_folder: Path) -> None:
    args = ("heads", shared_folder, "--label", "to", "--tau", 0.02, "--criterion", "tau")
    rows = parsed(run(*args, "--json"))["rows"]
    heads = list(dict.fromkeys((row["layer"], row["head"]) for row in rows))
    assert len(rows) > len(heads) > 2
    first = [row for row in rows if (row["layer"], row["head"]) in heads[:2]]
    assert parsed(run(*args, "-n", 2, "--json"))["rows"] == first and len(first) > 2


@pytest.mark.parametrize("more", [("--only", "capital"), ("--category", "Knowledge"), ("--all",)])
def test_a_search_is_of_all_heads(run: Run, shared_folder: Path, more: tuple[str, ...]) -> None:
    said = run("heads", shared_folder, "--label", "capital", *more, code=2).stderr
    assert said == f"error: --label searches all that is said of every head; leave out {more[0]}.\n"
