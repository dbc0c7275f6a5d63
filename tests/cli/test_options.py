"""What all commands share: their options, how much they say, what they print as JSON."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer.main

from headatlas.atlas import Atlas
from headatlas.cli import app
from headatlas.cli.heads import heads_command
from headatlas.cli.options import PARAMETERS, as_options, names_of
from headatlas.errors import HeadatlasError
from headatlas.options import Compute, Thresholds
from tests.cli.conftest import Run, parsed
from tests.synthetic import make_atlas


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("`max_memory` 6: 6 bytes", "--max-memory 6: 6 bytes"),
        ("use `lens=maps`.", "use --lens maps."),
        ("leave out `stream=False`, or", "leave out --no-stream, or"),
        ("start over with `force=True`.", "start over with --force."),
        ("map again with `ceiling=33`", "map again with --ceiling 33"),
        ("`q_max` is 7", "--q-max is 7"),
        ("`k_copy` is 0", "--k-copy is 0"),
        ("choose another `out`", "choose another -o"),
        ("`width_mm`: 'wide'", "--width: 'wide'"),
        ("`cluster=ray://a:1`: no", "--cluster ray://a:1: no"),
        ("`device=cuda:2`: there", "--device cuda:2: there"),
        ("make one with `headatlas map MODEL -o DIR`", "make one with `headatlas map MODEL -o DIR`"),
        ("`sign` is 'up'", "`sign` is 'up'"),
        ("no backticks, k and lens", "no backticks, k and lens"),
        ("`k` and `tau`", "--k and --tau"),
    ],
)
def test_parameters_are_said_as_options(message: str, expected: str) -> None:
    assert as_options(message) == expected


def options_of(*words: str) -> dict[str, Any]:
    command: Any = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    return {flag: parameter for parameter in command.params for flag in parameter.opts}


READING = ("heads", "head", "describe", "plot", "report", "export", "structure", "compare")


@pytest.mark.parametrize("name", [*READING, "map"])
def test_every_command_that_reads_takes_all_thresholds(name: str) -> None:
    there = options_of(name)
    for each in fields(Thresholds):
        option = there[PARAMETERS[each.name]]
        assert option.help == each.metadata["help"] and option.default is None
    assert "--preset" in there
    assert not {"--profile", "--q", "--relation"} & set(there)


def test_a_command_that_computes_takes_what_it_can_use() -> None:
    every = {PARAMETERS[each.name] for each in fields(Compute)}
    assert every <= set(options_of("map"))
    assert every & set(options_of("plan")) == every - {"--cluster"}
    for name in ("inference", "ablation"):
        assert every & set(options_of("evidence", name)) == {"--device"}
        assert "--only" in options_of("evidence", name)


def test_the_signature_of_a_command_that_reads_an_atlas() -> None:
    parameters = inspect.signature(heads_command).parameters
    own = ["only", "category", "everything", "limit", "label", "as_json"]
    assert list(parameters) == ["folder", *own, *(each.name for each in fields(Thresholds)), "preset"]
    assert "atlas" not in parameters


def test_thresholds_begin_with_the_preset(run: Run, shared_folder: Path) -> None:
    def read(*args: object) -> dict[str, Any]:
        found: dict[str, Any] = parsed(run("heads", shared_folder, "--json", *args))["thresholds"]
        return found

    assert Thresholds(**read()) == Thresholds()
    assert Thresholds(**read("--preset", "maps-paper-llama3")) == Thresholds(25, 3, criterion="tau")
    assert Thresholds(**read("--preset", "maps-paper", "--tau", 0.4)) == Thresholds(tau=0.4, criterion="tau")
    given = read("--k", 5, "--k-copy", 2, "--q-max", 0.2, "--criterion", "tau")
    assert Thresholds(**given) == Thresholds(5, 2, q_max=0.2, criterion="tau")


def test_names_are_given_with_commas_or_again(run: Run, shared_folder: Path) -> None:
    assert names_of(None) is None and names_of([]) is None
    assert names_of(["a, b", "c"]) == ["a", "b", "c"]
    with pytest.raises(HeadatlasError, match="`only` names nothing"):
        names_of([" ,"])
    commas = run("heads", shared_folder, "--all", "--only", "capital,past_tense").stdout
    again = run("heads", shared_folder, "--all", "--only", "capital", "--only", "verb → past tense").stdout
    assert commas == again
    rows = parsed(run("heads", shared_folder, "--all", "--only", "capital,past_tense", "--json"))["rows"]
    assert {row["relation"] for row in rows} == {"country_to_capital", "verb_to_past_tense"}


# How much is said ---------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("flag", ["-q", "--quiet"])
def test_quiet_says_nothing_but_errors(run: Run, shared_folder: Path, flag: str, place: int) -> None:
    args = ["heads", str(shared_folder), "--all"]
    usual = run(*args)
    assert "score ≥ 0.15" in usual.stderr
    quiet = [*args]
    quiet.insert(place, flag)
    result = run(*quiet)
    assert result.stderr == "" and result.stdout == usual.stdout
    assert run("-q", "heads", shared_folder / "nothing", code=2).stderr.startswith("error: ")
    assert run(*args).stderr == usual.stderr, "and only this command was quiet"


def test_quiet_names_broken_relation_files(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("source,target\nsky\n")
    result = run("relations", "check", tmp_path, "-q", code=2)
    assert result.stderr.startswith("error: ") and "bad.csv, line 2" in result.stderr


def test_verbose_says_more(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mapped(model: str, *, out: Path, stats: Any, progress: Any, **_: Any) -> Atlas:
        from headatlas.progress import Progress

        with stats.timed("opening"):
            progress(Progress("open", 0, 0, model))
            return make_atlas(out / "atlas.zarr", 2, 2)

    monkeypatch.setattr("headatlas.mapping.run.map_heads", mapped)
    usual = run("map", "some-model", "-o", tmp_path / "a", "--no-figures").stderr
    assert "opening some-model" in usual and "; outputs " not in usual and "time: " in usual
    more = run("map", "some-model", "-o", tmp_path / "b", "--no-figures", "-v").stderr
    assert re.search(r"opening \d+ s; behaviour \d+ s; outputs \d+ s", more)
    assert run("map", "some-model", "-o", tmp_path / "c", "--no-figures", "-q").stderr == ""
    failed = run("map", "some-model", "-o", tmp_path / "d", "--no-figures", "--behaviour", code=2).stderr
    assert (tmp_path / "d" / "heads.parquet").is_file(), "outputs do not depend on behaviour"
    assert "attention was not measured: " in failed and failed.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    "args",
    [
        ["map", "m", "-o", "-"],
        ["plot", "{dir}", "-o", "-"],
        ["plot", "{dir}", "-o", "x.png", "--data", "-"],
        ["report", "{dir}", "-o", "-"],
        ["export", "{dir}", "-o", "-"],
        ["structure", "{dir}", "-o", "-"],
        ["compare", "{dir}", "{dir}", "-o", "-"],
        ["relations", "new", "x", "-o", "-"],
        ["relations", "export", "copying", "-o", "-"],
    ],
    ids=lambda args: " ".join(args[:2]) if args[0] == "relations" else args[0],
)
def test_nothing_is_written_to_standard_output(
    run: Run, shared_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*(arg.format(dir=shared_folder) for arg in args), code=2)
    assert result.stderr == (
        "error: -o -: nothing goes to standard output; give the name of a file or folder.\n"
    )
    assert result.stdout == "" and not list(tmp_path.iterdir())


# JSON ---------------------------------------------------------------------------------------------

ATLAS_FIELDS = ["model", "lens", "thresholds", "caption"]
CARD_FIELDS = [
    *("layer", "head", "statements", "behaviours", "salient", "labels", "similar", "spectrum", "group"),
]


@pytest.mark.parametrize(
    ("args", "more"),
    [
        (["heads", "{dir}"], ["rows"]),
        (["head", "{dir}", "3.2"], ["rows", *CARD_FIELDS]),
        (
            ["info", "{dir}"],
            ["rows", "path", "n_layers", "n_heads", "layers_done", "coverage", "provenance", "evidence"],
        ),
        (["structure", "{dir}"], None),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and value and "{" in str(value) else "",
)
def test_json_of_one_atlas(run: Run, shared_folder: Path, args: list[str], more: list[str] | None) -> None:
    found = parsed(run(*(arg.format(dir=shared_folder) for arg in args), "--json"))
    atlas = Atlas.open(shared_folder)
    assert list(found)[:4] == ATLAS_FIELDS
    assert (found["model"], found["lens"]) == ("Synthetic-1M", "neutral")
    assert Thresholds(**found["thresholds"]) == atlas.thresholds and found["caption"] == atlas.caption()
    if more is not None:
        assert list(found)[4:] == more
        assert all(isinstance(row, dict) for row in found["rows"]) and found["rows"]
    else:
        assert {"groups", "per_head", "depths"} <= set(found)


def test_json_of_several_atlases(run: Run, shared_folder: Path, tmp_path: Path) -> None:
    make_atlas(tmp_path / "other" / "atlas.zarr", 4, 3, seed=1)
    found = parsed(run("compare", shared_folder, tmp_path / "other", "--json", "--tau", 0.3))
    assert list(found) == [*("atlases", "rows", "agreement", "relations_left_out", "changes", "not_by_head")]
    assert [list(each) for each in found["atlases"]] == [["atlas", *ATLAS_FIELDS]] * 2
    assert all(each["thresholds"]["tau"] == 0.3 for each in found["atlases"])
    assert {row["atlas"] for row in found["rows"]} == {each["atlas"] for each in found["atlases"]}


@pytest.mark.parametrize(
    ("args", "fields"),
    [
        (["relations", "list"], {"rows"}),
        (["relations", "check", "capital"], {"tokenizer", "lens", "target_policy", "rows", "problems"}),
        (["relations", "show", "capital"], {"rows"}),
        (["families", "list"], {"transformers", "rows"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_json_is_an_object_everywhere(run: Run, args: list[str], fields: set[str]) -> None:
    found = parsed(run(*args, "--json"))
    assert isinstance(found, dict) and fields <= set(found)


def test_exported_json_has_the_same_fields(run: Run, shared_folder: Path, tmp_path: Path) -> None:
    run("export", shared_folder, "-o", tmp_path / "heads.json")
    found = json.loads((tmp_path / "heads.json").read_text())
    assert list(found)[:4] == ATLAS_FIELDS and "rows" in found
