"""A map on a Ray cluster of this machine: the same atlas, whatever happens to its workers."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from headatlas.atlas import Atlas
from headatlas.errors import HeadatlasError
from headatlas.mapping import workers as cluster
from headatlas.mapping.run import map_heads
from headatlas.options import Compute
from headatlas.progress import Progress, Stats
from headatlas.relations import Relation
from tests.atlas.made import assert_same_arrays
from tests.mapping.cases import random_problem
from tests.mapping.checkpoints import random_relations, save, tiny_model

ROOT = Path(__file__).parents[2]
MISSING = "Ray, an extra of 240 MB, is not installed: pip install -e '.[dev,cluster]' (make test-cluster)"
DOOMED = "HEADATLAS_TEST_DOOMED"
"""Environment variable: the folder in which doomed tasks say who they are."""


@pytest.fixture(scope="module")
def doomed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("doomed")


@pytest.fixture(scope="module")
def running(doomed: Path) -> Iterator[str]:
    """A cluster of two workers; its address."""
    ray = pytest.importorskip("ray", reason=MISSING)
    # Paths of sockets must be short, so not pytest's own folders.
    place = tempfile.mkdtemp(prefix="ha-ray-")
    environment = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),  # else Ray leaves one in the home folder
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's own announcement of a change is a warning
        "RAY_memory_monitor_refresh_ms": "0",  # else workers die when something else fills the memory
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
        DOOMED: str(doomed),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        sizes = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": 2**28}  # Ray believes in the GPU
        try:
            context = ray.init(**sizes, include_dashboard=False, log_to_driver=False, _temp_dir=place)
            yield context.address_info["address"]
        finally:
            ray.shutdown()
            shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return save(tiny_model("gemma3", layers=4), tmp_path_factory.mktemp("cluster") / "model")


@pytest.fixture(scope="module")
def relations() -> list[Relation]:
    return random_relations()


@pytest.fixture(scope="module")
def here(model: Path, relations: list[Relation], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("here") / "out"
    map_heads(model, relations=relations, out=out)
    return out


def assert_same(left: Atlas, right: Atlas) -> None:
    """Identical array by array, and in what they say about themselves."""
    assert_same_arrays(left, right)
    assert left.provenance == right.provenance


def test_the_same_atlas(
    running: str, model: Path, relations: list[Relation], here: Path, tmp_path: Path
) -> None:
    told: list[Progress] = []
    stats = Stats()
    found = map_heads(
        model,
        relations=relations,
        out=tmp_path,
        compute=Compute(cluster="auto"),
        progress=told.append,
        stats=stats,
    )
    assert_same(found, Atlas.open(here))
    assert [path.name for path in tmp_path.iterdir()] == ["atlas.zarr"]
    assert stats.products > 0 and "screening" in stats.seconds
    heads = [event for event in told if event.stage == "heads"]
    assert {event.note for event in heads} >= {f"layer {layer} done" for layer in range(4)}
    assert [event.done for event in heads] == sorted(event.done for event in heads)
    assert heads[-1].done == heads[-1].total == 4
    assert cluster.import_ray().is_initialized(), "a connection of the caller's stays"


def test_the_workers_need_no_model(running: str, model: Path, relations: list[Relation]) -> None:
    """One that is loaded in this process only is mapped all the same."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    modules = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model)
    found = map_heads(modules, tokenizer, relations=relations, lens="maps", compute=Compute(cluster="auto"))
    expected = map_heads(modules, tokenizer, relations=relations, lens="maps")
    assert_same(found, expected)


def waits_for_its_end(*args: Any) -> Any:
    """In place of `rank_one`: the first task that runs says which process it is, and does not end."""
    try:
        with (Path(os.environ[DOOMED]) / "pid").open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return cluster.rank_one(*args)
    time.sleep(600)
    raise AssertionError("nobody killed this worker")


def test_a_killed_worker_is_replaced(
    running: str,
    doomed: Path,
    model: Path,
    relations: list[Relation],
    here: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "rank_one", waits_for_its_end)
    killed: list[int] = []

    def kill(event: Progress) -> None:
        # By then the other worker has done all other layers.
        if event.stage == "heads" and event.done == 3:
            killed.append(int((doomed / "pid").read_text()))
            os.kill(killed[0], signal.SIGKILL)

    found = map_heads(
        model, relations=relations, out=tmp_path, compute=Compute(cluster="auto"), progress=kill
    )
    assert len(killed) == 1 and killed[0] != os.getpid()
    assert_same(found, Atlas.open(here))


def test_another_version_on_a_machine_is_refused(
    running: str, model: Path, relations: list[Relation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "__version__", "0.0.7")
    with pytest.raises(HeadatlasError, match=r"layer \d on the cluster: a machine .* this one 0\.0\.7"):
        map_heads(model, relations=relations, lens="maps", compute=Compute(cluster="auto"))


def test_ctrl_c_keeps_finished_layers(
    running: str, model: Path, relations: list[Relation], here: Path, tmp_path: Path
) -> None:
    def stop(event: Progress) -> None:
        if event.note.endswith("done"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        map_heads(model, relations=relations, out=tmp_path, compute=Compute(cluster="auto"), progress=stop)
    assert Atlas.open(tmp_path).layers_done.sum() == 1
    told: list[Progress] = []
    found = map_heads(
        model, relations=relations, out=tmp_path, compute=Compute(cluster="auto"), progress=told.append
    )
    assert_same(found, Atlas.open(here))
    assert "states" not in {event.stage for event in told}, "saved states are reused"
    assert [event.total for event in told if event.stage == "heads"][-1] == 3


def test_the_command(running: str, model: Path, relations: list[Relation], tmp_path: Path) -> None:
    """In a process of its own that connects, and says nothing but its own words."""
    written, out = tmp_path / "relations", tmp_path / "out"
    written.mkdir()
    for relation in relations:
        pairs = [[pair.source, list(pair.targets)] for pair in relation.pairs]
        (written / f"{relation.name}.json").write_text(json.dumps(pairs))
    command = [sys.executable, "-m", "headatlas", "map", str(model), "-o", str(out), "--lens", "maps"]
    command += ["--relations", str(written), "--layers", "1", "--no-figures", "--cluster", running]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "layers mapped: 1 of 1" in done.stderr and "ray" not in done.stderr.lower()
    assert_same(Atlas.open(out), map_heads(str(model), relations=written, lens="maps", layers="1"))


def what_it_gets(layout: Any, vocabulary: Any, inputs: Any, ceiling: int, cpus: int, version: str) -> Any:
    """In place of `rank_one`."""
    return (cluster.import_ray().get_gpu_ids(), ceiling, vocabulary.device.type), Stats()


def test_a_task_gets_a_gpu_if_asked_for(running: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "rank_one", what_it_gets)
    nothing: Any = SimpleNamespace()
    _, _, vocabulary = random_problem(0)
    layers: Any = iter([(0, nothing), (1, nothing)])
    found = cluster.rank_on_cluster(
        nothing, vocabulary, layers, n_layers=2, ceiling=32, stats=Stats(), device="cuda:1"
    )
    expected = [0], 32, "cuda"
    assert sorted(found) == [(0, expected), (1, expected)]


def always_dies(*_: Any) -> Any:
    """In place of `rank_one`."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_layer_that_kills_every_worker_is_named(
    running: str, model: Path, relations: list[Relation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "rank_one", always_dies)
    monkeypatch.setattr(cluster, "RETRIES", 0)
    with pytest.raises(HeadatlasError, match=r"layer 2 failed on the cluster \(WorkerCrashedError.*goes on"):
        map_heads(
            model, relations=relations, out=tmp_path, lens="maps", layers="2", compute=Compute(cluster="auto")
        )
    assert not Atlas.open(tmp_path).layers_done.any()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", r"`cluster=127.0.0.1:1`: no connection .*refused.*ray start --head"),
        ("nonsense", r"`cluster=nonsense`: no connection"),
        ("host:99999999", r"no connection"),
        ("ray://head:10001", r"runs on a machine of the cluster"),
    ],
)
def test_no_cluster_there(address: str, message: str, model: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason=MISSING)
    if ray.is_initialized():  # by the tests above
        ray.shutdown()
    with pytest.raises(HeadatlasError, match=message):
        map_heads(model, out=tmp_path / "out", compute=Compute(cluster=address))
    assert not (tmp_path / "out").exists()


def test_without_ray_it_is_said_how_to_get_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(HeadatlasError, match=r"`cluster` needs Ray; .* pip install 'headatlas\[cluster\]'"):
        map_heads(model, out=tmp_path / "out", compute=Compute(cluster="auto"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 4), (5,), ()])
def test_tensors_are_handed_over_as_they_are(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape, dtype=dtype)
    raw, *rest = cluster._packed(tensor)
    raw.flags.writeable = False
    again = cluster._unpacked((raw, *rest))
    assert again.dtype == dtype and torch.equal(again, tensor)


@pytest.mark.parametrize(
    ("cpus", "n_layers", "expected"),
    [
        ((2,), 30, (1, 0, 2)),
        ((64, 64), 32, (4, 0, 32)),
        ((64, 8), 4, (8, 0, 9)),
        ((16,), 1, (16, 0, 1)),
        ((0,), 4, (1, 0, 1)),
    ],
)
def test_processors_a_layer(cpus: tuple[int, ...], n_layers: int, expected: tuple[int, int, int]) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": float(n)}} for n in cpus]
    gone = {"Alive": False, "Resources": {"CPU": 512.0}}
    assert cluster._shares([*nodes, gone], n_layers) == expected


@pytest.mark.parametrize(
    ("machines", "expected"),
    [(((16, 8),), (2, 1, 8)), (((64, 4), (8, 1), (128, 0)), (8, 1, 5)), (((1, 2),), (1, 1, 2))],
)
def test_a_gpu_a_layer(machines: tuple[tuple[int, int], ...], expected: tuple[int, int, int]) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": float(c), "GPU": float(g)}} for c, g in machines]
    assert cluster._shares(nodes, 32, "cuda") == cluster._shares(nodes, 32, "cuda:1") == expected


def test_devices_that_no_machine_of_the_cluster_has() -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 8.0}}]
    with pytest.raises(HeadatlasError, match=r"`device=cuda`: no machine .* GPU .* `ray start --num-gpus N`"):
        cluster._shares(nodes, 32, "cuda")
    with pytest.raises(HeadatlasError, match=r"`device=mps`: .* use cpu or cuda"):
        cluster._shares(nodes, 32, "mps")
