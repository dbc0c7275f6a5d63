"""A small made-up atlas in an output folder, and a runner for commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from headatlas.cli import app
from tests.kinds import check_kinds
from tests.synthetic import make_atlas

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "out"
    make_atlas(folder / "atlas.zarr", 4, 3)
    return folder


@pytest.fixture
def folder(shared_folder: Path, tmp_path: Path) -> Path:
    """An output folder of its own for tests that write into it."""
    copy = tmp_path / "out"
    shutil.copytree(shared_folder, copy)
    return copy


def invoke(*args: object, code: int = 0, env: dict[str, str] | None = None) -> Result:
    """Run a command and check its exit code."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], env=env)
    assert result.exit_code == code, f"exit {result.exit_code}: {result.output} {result.exception!r}"
    return result


@pytest.fixture
def run() -> Run:
    return invoke


def parsed(result: Result) -> Any:
    """What a command printed on stdout, as strict JSON with keys of known kinds."""
    found = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    check_kinds(found)
    return found
