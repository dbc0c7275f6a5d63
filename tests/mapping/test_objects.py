"""A map into object storage: the same atlas as in a folder, also if killed, or made by several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headatlas.atlas import Atlas
from headatlas.errors import HeadatlasError
from headatlas.mapping import run
from headatlas.mapping.run import map_heads
from headatlas.progress import Progress
from tests.mapping.checkpoints import random_relations, save, tiny_model
from tests.storage import bucket
from tests.storage.bucket import BucketFileSystem, keys

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return save(tiny_model("gemma3", layers=4), tmp_path_factory.mktemp("objects") / "model")


@pytest.fixture(scope="module")
def here(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return map_heads(model, relations=random_relations(), out=tmp_path_factory.mktemp("here") / "out")


@pytest.fixture
def cache(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("HEADATLAS_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "states"
    assert not list((tmp_path / "cache").rglob("*.npy")), "states of a finished map are deleted"


def same_atlas(left: Atlas, right: Atlas) -> None:
    """Identical array by array, and in what they say about themselves."""
    assert set(left.dataset.variables) == set(right.dataset.variables)
    for name in left.dataset.variables:
        np.testing.assert_array_equal(
            left.dataset[name].values, right.dataset[name].values, err_msg=str(name)
        )
    assert left.dataset.attrs == right.dataset.attrs


def started(model: Path, out: str, layers: str | None = None, die_at: str | None = None) -> BaseProcess:
    """Begin to map in another process, which kills itself before an object of this name is written."""
    arguments = (os.environ[bucket.FOLDER], os.environ["HEADATLAS_CACHE"], model, out, layers, die_at)
    process = _CONTEXT.Process(target=_map, args=arguments)
    process.start()
    return process


def _map(folder: str, cache: str, model: Path, out: str, layers: str | None, die_at: str | None) -> None:
    os.environ[bucket.FOLDER], os.environ["HEADATLAS_CACHE"] = folder, cache
    torch.set_num_threads(1)

    def before(verb: str, key: str) -> None:
        if verb == "put" and die_at is not None and die_at in key:
            os.kill(os.getpid(), signal.SIGKILL)

    BucketFileSystem.before = staticmethod(before)  # type: ignore[assignment]
    bucket.register()
    map_heads(model, relations=random_relations(), out=out, layers=layers)


def test_parts_and_the_rest(model: Path, here: Atlas, store: str, cache: Path) -> None:
    map_heads(model, relations=random_relations(), out=store, layers="2")
    assert len(list(cache.iterdir())) == 1, "the states wait on this machine for the other layers"
    told: list[Progress] = []
    found = map_heads(model, relations=random_relations(), out=store, progress=told.append)
    same_atlas(found, here)
    assert "states" not in {event.stage for event in told}, "saved states are used again"
    assert not any("states" in key for key in keys())


def test_killed_at_writes(model: Path, here: Atlas, store: str, cache: Path) -> None:
    """While the atlas is made, in a layer before its flag, and while the scores are stored."""
    for at in ("pair_target_id/c", "control_rank/c/1", "layer_done/c/3", "suppression_p/c"):
        process = started(model, store, die_at=at)
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
    found = map_heads(model, relations=random_relations(), out=store)
    same_atlas(found, here)


def test_processes_that_share_an_atlas(model: Path, here: Atlas, store: str, cache: Path) -> None:
    processes = [started(model, store, layers=layers) for layers in ("3", "0-1", None)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    found = map_heads(model, relations=random_relations(), out=store)
    same_atlas(found, here)


def test_another_map_there_is_refused_and_force_starts_over(model: Path, store: str, cache: Path) -> None:
    map_heads(model, relations=random_relations(), out=store, lens="maps", layers="0")
    with pytest.raises(
        HeadatlasError, match=r"^bucket://somewhere/out/atlas.zarr: .* differs in ceiling .*`force=True`"
    ):
        map_heads(model, relations=random_relations(), out=store, lens="maps", ceiling=16)
    found = map_heads(model, relations=random_relations(), out=store, lens="maps", ceiling=16, force=True)
    assert found.layers_done.all() and found.provenance["ceiling"] == 16


def test_a_place_that_cannot_be_written_is_said_before_the_model_is_read(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(verb: str, key: str) -> None:
        raise PermissionError

    def not_yet(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model is read")

    monkeypatch.setattr(run, "prepare", not_yet)
    monkeypatch.setattr(BucketFileSystem, "before", staticmethod(refused))
    with pytest.raises(
        HeadatlasError, match=r"bucket://somewhere/out/.*: cannot be written \(access is refused\)"
    ):
        map_heads("no/model", out=store)
