"""Killed at random points and resumed, or made by several processes at once: the atlas is the same."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from headatlas.atlas import Atlas
from headatlas.atlas.store import ATLAS_NAME
from headatlas.errors import HeadatlasError
from headatlas.mapping.run import map_heads
from tests.atlas.made import assert_same_arrays
from tests.mapping.checkpoints import random_relations, save, tiny_model
from tests.mapping.slow_run import started

SEEDS = range(6)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return save(tiny_model("gemma3", layers=4), tmp_path_factory.mktemp("killed") / "model")


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, float]:
    """An uninterrupted map, its number of writes, and its time in seconds."""
    started(model, tmp_path_factory.mktemp("first") / "out", die_at_write=1).join(60)  # imports take seconds
    out = tmp_path_factory.mktemp("whole") / "out"
    began = time.monotonic()
    process = started(model, out)
    process.join(60)
    seconds = time.monotonic() - began
    assert process.exitcode == 0
    return out, int((out / "writes").read_text()), seconds


def same_atlas(left: Path, right: Path) -> None:
    """Identical array by array, and in what they say about themselves."""
    one, two = Atlas.open(left), Atlas.open(right)
    assert_same_arrays(one, two)
    assert one.dataset.attrs == two.dataset.attrs


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_at_writes(seed: int, model: Path, whole: tuple[Path, int, float], tmp_path: Path) -> None:
    """Each time halfway through another write: of the new atlas, the states, a layer, the scores."""
    expected, writes, _ = whole
    rng = np.random.default_rng(seed)
    out = tmp_path / "out"
    for at in sorted(rng.integers(1, writes + 1, 3), reverse=True):
        process = started(model, out, die_at_write=int(at))
        process.join(60)
        assert process.exitcode in (-signal.SIGKILL, 0)
    map_heads(model, relations=random_relations(), out=out)
    same_atlas(out, expected)
    assert not [path.name for path in out.iterdir() if path.name not in (ATLAS_NAME, "writes")]


def test_killed_at_random_times(model: Path, whole: tuple[Path, int, float], tmp_path: Path) -> None:
    expected, _, seconds = whole
    rng = np.random.default_rng(0)
    out = tmp_path / "out"
    for share in rng.uniform(0.1, 0.9, 4):
        process = started(model, out)
        time.sleep(seconds * share)
        process.kill()
        process.join(60)
    map_heads(model, relations=random_relations(), out=out)
    same_atlas(out, expected)


@pytest.mark.parametrize("attempt", range(3))
def test_processes_that_share_an_atlas(
    attempt: int, model: Path, whole: tuple[Path, int, float], tmp_path: Path
) -> None:
    """They create it, make the states, map the same layers, and store scores at the same time."""
    out = tmp_path / "out"
    processes = [started(model, out, layers=layers) for layers in ("3", "1-2", None)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    same_atlas(out, whole[0])
    assert {path.name for path in out.iterdir()} == {ATLAS_NAME, "writes"}


def test_an_atlas_that_another_process_writes_is_not_deleted(
    model: Path, whole: tuple[Path, int, float], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = started(model, out)
    while not (out / ATLAS_NAME).exists() and process.is_alive():
        time.sleep(0.01)
    with pytest.raises(HeadatlasError, match="another process is writing to the atlas there"):
        map_heads(model, relations=random_relations(), lens="maps", out=out, force=True)
    process.join(60)
    assert process.exitcode == 0
    same_atlas(out, whole[0])
    assert map_heads(model, relations=random_relations(), lens="maps", out=out, force=True).lens == "maps"
