"""``map`` and ``plan`` as commands: what they hand on, show, write and say. The mapping itself is made up."""

from __future__ import annotations

import builtins
import contextlib
import inspect
import itertools
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import pytest

from headatlas import __main__ as command
from headatlas.atlas import Atlas
from headatlas.cli.map import map_summary
from headatlas.cli.output import progress_shown
from headatlas.errors import HeadatlasError
from headatlas.mapping.plan import Plan
from headatlas.options import Compute, Thresholds
from headatlas.progress import Progress, duration, size
from headatlas.relations import NOT_DRAWN, core
from headatlas.relations.relation import TokenisedRelation
from tests.atlas.made import tokenised, write_atlas
from tests.cli.conftest import Run
from tests.synthetic import make_atlas

Calls = list[dict[str, Any]]


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], Calls]:
    """Puts a made-up ``map_heads`` in the place of the real one; collects the arguments of its calls."""

    def install(fake: Callable[..., Any]) -> Calls:
        calls: Calls = []

        def map_heads(model: str, **arguments: Any) -> Any:
            calls.append({"model": model, **arguments})
            return fake(**arguments)

        module = ModuleType("headatlas.mapping.run")
        module.__dict__["map_heads"] = map_heads
        monkeypatch.setitem(sys.modules, "headatlas.mapping.run", module)
        return calls

    return install


def four_layers(out: Path, progress: Callable[[Progress], None], **_: Any) -> Atlas:
    path = out / "atlas.zarr"
    atlas = Atlas.open(out) if path.exists() else make_atlas(path, 4, 3)
    for done in range(5):
        progress(Progress("heads", done, 4, ""))
    return atlas


def test_map_writes_everything_and_says_so(run: Run, mapped: Any, tmp_path: Path) -> None:
    mapped(four_layers)
    out = tmp_path / "deep" / "out"
    result = run("map", "some-model", "-o", out)
    assert result.stdout == ""
    assert {
        "atlas.zarr",
        "categories.png",
        "categories.svg",
        "categories.pdf",
        "report.html",
        "heads.parquet",
    } <= {path.name for path in out.iterdir()}
    for part in (
        "layers mapped: 4 of 4",
        "heads belong to a category",
        "left out: year → following (0 usable",
    ):
        assert part in result.stderr
    assert "report.html" in result.stderr and "time: " in result.stderr
    assert "\x1b" not in result.stderr


def test_an_output_that_fails_is_said_after_what_was_found(
    run: Run, mapped: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Atlas) -> str:
        raise ValueError("no median of nothing")

    monkeypatch.setattr(import_module("headatlas.figures.describe"), "describe", broken)
    mapped(four_layers)
    stderr = run("map", "some-model", "-o", tmp_path, code=2).stderr
    assert "heads belong to a category" in stderr
    written = next(line for line in stderr.splitlines() if line.startswith("written to"))
    assert "categories.pdf" in written and "report.html" not in written
    assert stderr.splitlines()[-1] == (
        f"error: {tmp_path}: not written: description.txt, report.html (a fault in headatlas, ValueError: "
        "no median of nothing; --debug shows where); all other outputs are written."
    )
    assert len(Atlas.open(tmp_path).relation_scores) == 19


def test_relations_of_which_few_sources_are_used_are_named(tmp_path: Path) -> None:
    def of(name: str, used: int, given: int) -> TokenisedRelation:
        return tokenised(name, [[at] for at in range(used)] + [[]] * (given - used))

    relations = [of("few", 57, 167), of("just_under", 59, 100), of("enough", 60, 100)]
    atlas = write_atlas(
        tmp_path / "atlas.zarr", [*relations, tokenised("gone", [[1]] * 9, left_out="why")], {}
    )
    lines = map_summary(atlas, tmp_path, [], 1.0).splitlines()
    assert "under 60 % of the sources used: few 57 of 167, just under 59 of 100" in lines
    assert "left out: gone (why)" in lines
    other = write_atlas(
        tmp_path / "other.zarr",
        [of("gone", 9, 9), of("enough", 60, 100)],
        {},
        alternatives={"gone": "enough"},
    )
    assert "in the place of gone: enough" in map_summary(other, tmp_path, [], 1.0).splitlines()
    sample = replace(of("drawn", 40, 100), dropped={NOT_DRAWN: ("word",) * 60}, sampled=40)
    sampled = write_atlas(tmp_path / "sampled.zarr", [sample], {})
    text = map_summary(sampled, tmp_path, [], 1.0)
    assert "under 60 %" not in text and f"sources not used: {NOT_DRAWN} (60)" in text
    every = write_atlas(tmp_path / "every.zarr", [of("enough", 60, 100)], {})
    assert "under 60 %" not in map_summary(every, tmp_path, [], 1.0)


def test_options_reach_the_mapping(run: Run, mapped: Any, tmp_path: Path) -> None:
    calls = mapped(four_layers)
    options = "--lens maps --preset maps-paper --relations capital,{mine}"
    options += " --k 5 --k-copy 2 --tau 0.4 --criterion tau"
    more = "--layers 0-5 --target-policy first-token --ceiling 40 --no-figures"
    more += " --no-stream --cluster auto --remote --adapter mine --sources 60"
    mine = tmp_path / "mine.csv"
    mine.write_text("source,target\nsky,blue\n")
    run("map", "m", "-o", tmp_path, *options.format(mine=mine).split(), *more.split())
    given = {name: value for name, value in calls[0].items() if name not in ("progress", "stats", "opened")}
    assert [each.name for each in given.pop("relations")] == ["country_to_capital", "mine"]
    assert given == {
        "model": "m",
        "out": tmp_path,
        "lens": "maps",
        "mask": False,
        "thresholds": Thresholds(5, 2, 0.4, criterion="tau"),
        "layers": "0-5",
        "ceiling": 40,
        "target_policy": "first-token",
        "sources": 60,
        "compute": Compute(stream=False, cluster="auto"),
        "remote": True,
        "adapter": "mine",
        "force": False,
    }


def test_every_argument_is_one_of_the_real_function(mapped: Any, run: Run, tmp_path: Path) -> None:
    from headatlas.mapping.run import map_heads  # before its place is taken

    real = inspect.signature(map_heads)
    calls = mapped(four_layers)
    run("map", "m", "-o", tmp_path, "--no-figures")
    arguments = calls[0]
    real.bind(arguments.pop("model"), **arguments)


def test_the_outputs_follow_the_command_line(run: Run, mapped: Any, tmp_path: Path) -> None:
    mapped(four_layers)
    result = run("map", "m", "-o", tmp_path, "--tau", 0.5, "--q-max", 0.001, "--no-figures")
    assert "score ≥ 0.5 and q ≤ 0.001" in result.stderr
    assert not (tmp_path / "categories.png").exists()


def test_ctrl_c_says_what_is_saved(run: Run, mapped: Any, tmp_path: Path) -> None:
    def stopped(out: Path, **_: Any) -> Atlas:
        make_atlas(out / "atlas.zarr", 4, 3, layers=range(2))
        raise KeyboardInterrupt

    mapped(stopped)
    result = run("map", "m", "-o", tmp_path, code=130)
    assert result.stderr.splitlines()[-1] == "stopped; 2 of 4 layers saved; the same command resumes"
    assert "Aborted" not in result.output


def test_ctrl_c_before_the_first_layer(run: Run, mapped: Any, tmp_path: Path) -> None:
    def stopped(**_: Any) -> Atlas:
        raise KeyboardInterrupt

    mapped(stopped)
    assert "nothing saved yet" in run("map", "m", "-o", tmp_path, code=130).stderr


def test_force_starts_over(run: Run, mapped: Any, folder: Path) -> None:
    calls = mapped(four_layers)
    run("map", "m", "-o", folder, "--no-figures")
    run("map", "m", "-o", folder, "--no-figures", "--force")
    assert [call["force"] for call in calls] == [False, True]


def test_force_with_a_wrong_model_deletes_nothing(run: Run, folder: Path) -> None:
    message = run("map", "./no-such-model", "-o", folder, "--force", code=2).stderr
    assert "no-such-model" in message
    assert Atlas.open(folder).layers_done.all()


@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_second_signal_does_not_tear_down_what_the_first_ends(sent: str, code: int) -> None:
    script = (
        "import os, signal, sys, time, typer\n"
        "from headatlas.cli.output import stopping\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background ignores it
        "try:\n"
        "    with stopping(lambda: 'what was done is kept'):\n"
        "        try:\n"
        f"            os.kill(os.getpid(), signal.{sent}); time.sleep(60)\n"
        "        finally:\n"
        "            os.kill(os.getpid(), signal.SIGINT); print('in order')\n"
        "except typer.Exit as end:\n"
        "    os.kill(os.getpid(), signal.SIGTERM); sys.exit(end.exit_code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "in order\n", "what was done is kept\n")


def test_stopped_while_it_is_imported_it_ends_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def stopped(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "headatlas.cli":
            raise KeyboardInterrupt
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", stopped)
    with pytest.raises(SystemExit) as ended:
        command.start()
    assert ended.value.code == 130
    monkeypatch.undo()
    monkeypatch.setattr(
        import_module("headatlas.cli.app"), "app", Mock(side_effect=KeyboardInterrupt)
    )  # while commands are made
    with pytest.raises(SystemExit) as ended:
        command.start()
    assert ended.value.code == 130


@pytest.mark.parametrize("module", ["dataclasses", "headatlas.options", "typer", "headatlas.cli"])
def test_stopped_while_this_is_imported_the_process_ends_in_silence(module: str) -> None:
    script = (
        "import runpy, sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stop())\n"
        "import headatlas\n"  # as ``-m`` and the entry point do, before the module that answers
        "runpy.run_module('headatlas', run_name='__main__', alter_sys=True)\n"
    )
    # -S: no module that sites have Python import has imported these before.
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-S", "-c", script, "--version"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_errors_of_the_mapping_are_one_line(run: Run, mapped: Any, tmp_path: Path) -> None:
    def refuse(**_: Any) -> Atlas:
        raise HeadatlasError("model.safetensors: truncated.")

    mapped(refuse)
    said = run("map", "m", "-o", tmp_path, code=2).stderr
    assert said == "opening m\nerror: model.safetensors: truncated.\n"


def test_plain_progress_is_short_and_has_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr("headatlas.progress.time.monotonic", lambda: float(next(clock)))
    with progress_shown() as progress:
        progress(Progress("open", 0, 0, "some-model"))
        progress(Progress("open", 0, 0, "some-model"))  # the command, then the run itself
        progress(Progress("states", 0, 1, "prefix 1 of 4"))
        for done in range(11):
            progress(Progress("heads", done, 10, ""))
    assert capsys.readouterr().err.splitlines() == [
        "opening some-model",
        "source states: 0 of 1, prefix 1 of 4",
        "layers mapped: 0 of 10",
        "layers mapped: 3 of 10, about 14 s left",
        "layers mapped: 6 of 10, about 8 s left",
        "layers mapped: 9 of 10, about 2 s left",
        "layers mapped: 10 of 10",
    ]


def test_the_clock_of_a_stage_starts_with_its_first_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layers are shown before sources go through the model, which takes long."""
    clock = iter([0.0, 100.0, 102.0])
    monkeypatch.setattr("headatlas.progress.time.monotonic", lambda: next(clock))
    with progress_shown() as progress:
        for done in (0, 0, 1):
            progress(Progress("heads", done, 10))
    said = capsys.readouterr().err.splitlines()
    assert said == ["layers mapped: 0 of 10", "layers mapped: 1 of 10, about 18 s left"]


def test_a_log_of_a_long_run_is_short(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, 10)
    monkeypatch.setattr("headatlas.progress.time.monotonic", lambda: float(next(clock)))
    with progress_shown() as progress:
        for done in (*range(201), 200, *range(201)):  # the stage begins anew
            progress(Progress("states", done, 200))
        for done in range(70):  # no tenth is done, so it says every ten minutes that it is alive
            progress(Progress("heads", done, 1000))
    said = [line.partition(",")[0] for line in capsys.readouterr().err.splitlines()]
    tenths = [f"source states: {done} of 200" for done in range(0, 201, 20)]
    assert said == [*tenths, *tenths, "layers mapped: 0 of 1000", "layers mapped: 60 of 1000"]


def test_a_bar_on_a_terminal() -> None:
    """In a pseudo-terminal, as a person sees it."""
    code = (
        "from headatlas.progress import Progress, progress_display\n"
        "with progress_display() as progress:\n"
        "    progress(Progress('open', 0, 0, 'some-model'))\n"
        "    for done in range(4): progress(Progress('heads', done, 3, 'layer note'))\n"
    )
    reader, writer = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stderr=writer)
    os.close(writer)
    shown = b""
    # Linux ends a pseudo-terminal with an error, macOS with an empty read.
    with contextlib.suppress(OSError):
        while chunk := os.read(reader, 4096):
            shown += chunk
    os.close(reader)
    assert process.wait() == 0
    text = shown.decode()
    assert "layers mapped" in text and "3/3" in text and "layer note" in text and "opening some-model" in text


def test_plan(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [each.name for each in fields(Plan) if each.type == "int"]
    found = Plan(
        **dict.fromkeys(("family", "format", "lens"), "tiny"),
        **(dict.fromkeys(whole, 2) | {"bytes_to_read": 2_500_000_000, "memory_bytes": 1_000_000}),
        **{"inference_seconds_least": 1.0, "inference_seconds_most": 2.0},
        model="Tiny",
        streams=False,
        seconds_least=14.6,
        seconds_most=75.0,
        notes=("the licence asks for attribution",),
    )
    asked: list[tuple[Any, ...]] = []
    module = ModuleType("headatlas.mapping.plan")
    module.__dict__["plan"] = lambda model, **rest: asked.append((model, rest)) or found
    monkeypatch.setitem(sys.modules, "headatlas.mapping.plan", module)
    text = run("plan", "tiny", "--lens", "maps", "--adapter", "mine", "--sources", "50").stdout
    options = {"lens": "maps", "compute": Compute(), "remote": False, "adapter": "mine", "sources": 50}
    options["target_policy"] = "single"
    assert [
        (model, {name: value for name, value in rest.items() if name != "relations"}) for model, rest in asked
    ] == [("tiny", options)]
    assert asked[0][1]["relations"] == core()
    for part in ("2.5 GB", "1 MB", "15 s to 1 min 15 s", "attribution"):
        assert part in text and part in repr(found)
    assert repr(found) == text.rstrip("\n")
    assert '"bytes_to_read": 2500000000' in run("plan", "tiny", "--json").stdout


def test_durations_and_sizes() -> None:
    assert [duration(s) for s in (0.4, 59, 61, 3599, 7260)] == [
        *("0 s", "59 s", "1 min 01 s", "59 min 59 s", "2 h 01 min")
    ]
    assert [size(n) for n in (12, 1500, 2.5e9, 3e12)] == ["12 B", "1.5 kB", "2.5 GB", "3 TB"]
