"""The command answers at once: nothing heavy is imported until a command needs it."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

import headatlas
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


def test_help_answers_within_half_a_second() -> None:
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "headatlas", "--help"], capture_output=True, check=True)
        taken.append(time.perf_counter() - began)
    assert min(taken) < 0.5


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"headatlas {headatlas.__version__}\n"


def test_no_command_shows_help(run: Run) -> None:
    assert "Commands:" in run(code=2).output


def test_unknown_option_is_exit_code_2(run: Run) -> None:
    result = run("heads", "somewhere", "--bogus", code=2)
    assert "--bogus" in result.stderr
    assert result.stdout == ""
