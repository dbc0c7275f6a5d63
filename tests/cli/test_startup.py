"""The command answers at once: nothing heavy is imported until a command needs it."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import headatlas
from headatlas.atlas import Atlas
from headatlas.atlas.relation_scores import store_scores
from headatlas.cli.app import GARBAGE_AFTER
from headatlas.cli.output import progress_shown
from headatlas.progress import Progress, beside
from tests.cli.conftest import Run

HEAVY = {
    "torch",
    "transformers",
    "pandas",
    "numpy",
    "matplotlib",
    "xarray",
    "zarr",
    "scipy",
    "pyarrow",
    "gguf",
}


def modules_after(code: str) -> set[str]:
    """Top-level names of the modules a fresh Python has after running `code`."""
    code += "\nimport sys; sys.stderr.write(' '.join({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_import_is_light() -> None:
    assert not modules_after("import headatlas; dir(headatlas); headatlas.HeadatlasError") & HEAVY


@pytest.mark.parametrize("args", [["--help"], ["map", "--help"], ["relations", "check", "--help"]])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['headatlas', *{args!r}]\n"
        "from headatlas.cli import main\ntry: main()\nexcept SystemExit as end: assert not end.code"
    )
    assert not modules_after(code) & HEAVY


@pytest.mark.parametrize(
    "args",
    [
        ["map", "smollm2-135m", "-o", "x", "--relations", "captial"],
        ["map", "smollm2-135m", "-o", "x", "--max-memory", "6"],
        ["map", "smollm2-135m", "-o", "-"],
        ["map", "smollm2-135m", "-o", "/proc/x"],
        ["map", "smollm2-135m", "-o", "x", "--k", "40"],
        ["map", "smollm2-135m", "-o", "x", "--sources", "3"],
        ["plan", "smollm2-135m", "--device", "gpu"],
        ["relations", "show", "captial"],
    ],
)
def test_what_is_given_wrongly_is_said_without_torch(args: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['headatlas', *{args!r}]\n"
        "from headatlas.cli import main\ntry: main()\nexcept SystemExit as end: assert end.code == 2\n"
        "else: raise AssertionError('not refused')"
    )
    assert not modules_after(code) & {"torch", "transformers", "xarray", "zarr"}


READING = (
    ("heads", "DIR"),
    ("heads", "DIR", "--label", "capital"),
    ("head", "DIR", "3.1"),
    ("info", "DIR"),
    ("describe", "DIR"),
    ("structure", "DIR"),
)
"""Commands that show what a finished atlas holds."""


def test_a_finished_atlas_is_read_without_what_measures_and_draws(folder: Path) -> None:
    store_scores(Atlas.open(folder))
    commands = [[str(folder) if arg == "DIR" else arg for arg in command] for command in READING]
    code = (
        f"import sys; from headatlas.cli import app\nfor command in {commands!r}:\n"
        "    try: app(command)\n    except SystemExit as end: assert not end.code, command\n"
        "print('scipy.stats' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
    assert not modules_after(code) & {"torch", "transformers", "matplotlib", "rich"}


@pytest.mark.parametrize("command", READING)
def test_ranks_are_not_read_where_scores_are_stored(folder: Path, run: Run, command: tuple[str, ...]) -> None:
    store_scores(Atlas.open(folder))
    args = [folder if arg == "DIR" else arg for arg in command]
    before = run(*args).stdout
    for name in ("promotion_rank", "suppression_rank", "cell_promotion_rank", "cell_suppression_rank"):
        shutil.rmtree(folder / "atlas.zarr" / name / "c")
    assert run(*args).stdout == before


def test_what_writes_the_outputs_is_imported_while_layers_are_ranked(folder: Path) -> None:
    code = (
        "import sys; from headatlas.outputs import import_writers, write_outputs; import_writers()\n"
        "from headatlas.atlas import Atlas; from headatlas.atlas.relation_scores import store_scores\n"
        f"before, out = set(sys.modules), {str(folder)!r}\n"
        "store_scores(Atlas.open(out)); write_outputs(Atlas.open(out), out)\n"
        "ours = ('headatlas', 'matplotlib', 'scipy')\n"
        "print(*(name for name in set(sys.modules) - before if name.split('.')[0] in ours))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_other_work_begins_after_the_first_step_that_is_done() -> None:
    begun = threading.Event()
    told: list[Progress] = []
    with beside(told.append, begun.set) as progress:
        progress(Progress("open", 0, 0))
        progress(Progress("heads", 0, 2))
        assert not begun.is_set()
        progress(Progress("heads", 1, 2))
        progress(Progress("heads", 2, 2))
    assert begun.is_set()
    assert [each.done for each in told] == [0, 0, 1, 2]


def test_a_map_imports_accelerate_where_it_streams_alone() -> None:
    assert "accelerate" not in modules_after("import headatlas.mapping.run")


def test_garbage_is_collected_as_usual_once_a_run_does_more_than_open() -> None:
    usual = gc.get_threshold()
    gc.set_threshold(GARBAGE_AFTER)
    try:
        with progress_shown() as progress:
            progress(Progress("open", 0, 0, "some-model"))
            assert gc.get_threshold()[0] == GARBAGE_AFTER
            progress(Progress("heads", 0, 1))
            assert gc.get_threshold() == usual
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"headatlas {headatlas.__version__}\n"


def test_no_command_shows_help(run: Run) -> None:
    assert "Commands:" in run(code=2).output


def test_unknown_option_is_exit_code_2(run: Run) -> None:
    result = run("heads", "somewhere", "--bogus", code=2)
    assert "--bogus" in result.stderr
    assert result.stdout == ""
