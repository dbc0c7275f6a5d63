"""Layer by layer, a model gives the states it gives in memory; layers are read once, and runs go on."""

from __future__ import annotations

import signal
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from headatlas.architectures import Model, open_model
from headatlas.atlas import Atlas
from headatlas.errors import HeadatlasError
from headatlas.lenses import NEUTRAL_PREFIXES, NeutralStates, StreamedStates, forward, streaming
from headatlas.lenses.forward import beginnings
from headatlas.lenses.saved_states import discard_states
from headatlas.lenses.streaming import BlockPass
from headatlas.mapping import plan, run
from headatlas.mapping.machine import Machine
from headatlas.mapping.prepared import MapOptions
from headatlas.mapping.run import STATES_NAME, map_heads
from headatlas.options import Compute
from headatlas.weights import open_checkpoint
from headatlas.weights.safetensors_source import SafetensorsSource
from tests.architectures.cases import CASES
from tests.architectures.tiny import MODELS
from tests.atlas.made import assert_same_arrays
from tests.mapping.checkpoints import random_relations, save, tiny_model, word_tokenizer
from tests.mapping.slow_run import started

SOURCES = [(20,), (21,), (30, 31), (40, 41, 42, 43, 44, 45), (22,), (20, 30), (23,), (24,)]
LAYERS = 4


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_model("gemma3", layers=LAYERS), tmp_path_factory.mktemp("model") / "gemma")


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> NeutralStates:
    """The states of the pass in memory."""
    return in_memory(opened(folder), tmp_path_factory.mktemp("whole") / "states")


def opened(folder: Path) -> Model:
    return open_model(open_checkpoint(folder))


def in_memory(model: Model, states: Path) -> NeutralStates:
    return NeutralStates.compute(model, SOURCES, NEUTRAL_PREFIXES, states, identity="this model")


def streamed(
    model: Model,
    states: Path,
    sources: Sequence[tuple[int, ...]] = SOURCES,
    prefixes: Sequence[str] = NEUTRAL_PREFIXES,
    identity: str = "this model",
    progress: Callable[[int, int], None] | None = None,
    last: int | None = None,
) -> StreamedStates:
    return StreamedStates(model, sources, prefixes, states, identity=identity, progress=progress, last=last)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def same_states(model: Model, left: Any, right: Any, layers: Sequence[int] | None = None) -> None:
    for layer in range(model.dims.n_layers) if layers is None else layers:
        for kind in ("x", "control"):
            close(getattr(left.layer(layer), kind), getattr(right.layer(layer), kind))


class Reads:
    """What is read out of safetensors, and how much of it is in float32 at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: Counter[str] = Counter()
        view = SafetensorsSource._stored

        def noted(source: SafetensorsSource, name: str, rows: Any = None) -> torch.Tensor:
            self.names[name] += 1
            return view(source, name, rows)

        monkeypatch.setattr(SafetensorsSource, "_stored", noted)

    def of_layer(self, layer: int) -> int:
        return sum(count for name, count in self.names.items() if f"layers.{layer}." in name)


class Calls:
    """Which modules of the blocks are called, and the most parameters that are real at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: Counter[str] = Counter()
        self.most = 0
        made = streaming.load_skeleton

        def watched(checkpoint: Any) -> Any:
            modules = made(checkpoint)
            parts = [(path, part) for path, part in modules.named_modules() if ".layers." in path]
            for path, part in parts:

                def note(_module: Any, _args: Any, _out: Any, path: str = path) -> None:
                    self.paths[path] += 1
                    own = (p for _, part in parts for p in part.parameters(recurse=False))
                    self.most = max(self.most, sum(p.numel() for p in own if p.device.type != "meta"))

                part.register_forward_hook(note)
            return modules

        monkeypatch.setattr(streaming, "load_skeleton", watched)


# Equal to the pass in memory --------------------------------------------------------------------------


@pytest.mark.parametrize("case", MODELS)
def test_states_are_those_of_the_pass_in_memory(case: str, tmp_path: Path) -> None:
    model = opened(save(tiny_model(case), tmp_path / "model"))
    same_states(model, streamed(model, tmp_path / "b"), in_memory(model, tmp_path / "a"))


# Experts that files have one by one, in other names, below each other, with corrections; and blocks that
# expect masks for as many rows as there are, or tuples of each other.
PUT_TOGETHER = ["mixtral", "qwen3_moe", "deepseek_v3", "minimax_m2"]
REFUSED = ("aria_text", "flint", "glm_moe_dsa")
OTHERS = sorted(case for case in CASES if "-" not in case and case not in (*PUT_TOGETHER, *REFUSED))


@pytest.mark.parametrize(
    "case", [*PUT_TOGETHER, *(pytest.param(case, marks=pytest.mark.exhaustive) for case in OTHERS)]
)
def test_every_family(case: str, tmp_path: Path) -> None:
    """Equal to the pass in memory, or refused where something beside attention works on the tokens."""
    model = opened(save(tiny_model(case), tmp_path / "model"))
    if model.only_attention:
        same_states(model, streamed(model, tmp_path / "b"), in_memory(model, tmp_path / "a"))
        return
    with pytest.raises(HeadatlasError, match="mixers beside attention does not go through layer by layer"):
        plan.plan(tmp_path / "model", relations=random_relations(), compute=Compute(stream=True))


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_blocks_need_beyond_the_file_is_refused(case: str, tmp_path: Path) -> None:
    model = opened(save(tiny_model(case), tmp_path / "model"))
    with pytest.raises(HeadatlasError, match="leave out `stream=True`"):
        streamed(model, tmp_path / "states").layer(0)


@pytest.mark.parametrize("case", MODELS)
def test_heads_come_with_the_states(case: str, tmp_path: Path) -> None:
    """As the engine would read them; layers whose states were saved come without."""
    model = opened(save(tiny_model(case), tmp_path / "model"))
    states = streamed(model, tmp_path / "states")
    for layer in range(model.dims.n_layers):
        found, expected = states.layer(layer).heads, model.heads(layer)
        assert found is not None
        for name in ("W_V", "b_V", "W_O"):
            left, right = getattr(found, name), getattr(expected, name)
            assert (left is None) == (right is None)
            assert left is None or torch.equal(left, right)
        assert states.layer(layer).heads is None


@pytest.mark.parametrize("case", ["llama", "gpt2", "gpt_neox"])
def test_a_checkpoint_of_the_decoder_alone(case: str, tmp_path: Path) -> None:
    """Its names lack the prefix that the module's have."""
    folder = save(tiny_model(f"{case}-tied-biased-head_dim" if case == "llama" else case), tmp_path / "model")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    body = {"llama": "model.", "gpt2": "transformer.", "gpt_neox": "gpt_neox."}[case]
    save_file({name.removeprefix(body): tensor for name, tensor in tensors.items()}, file)
    model = opened(folder)
    same_states(model, streamed(model, tmp_path / "b"), in_memory(model, tmp_path / "a"))


def test_shards_in_half_precision(tmp_path: Path) -> None:
    half = tiny_model("qwen2").to(torch.bfloat16)
    half.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    word_tokenizer().save_pretrained(tmp_path / "model")
    model = opened(tmp_path / "model")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    same_states(model, streamed(model, tmp_path / "b"), in_memory(model, tmp_path / "a"))


def test_batches_change_nothing(
    folder: Path, whole: NeutralStates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "ACTIVATIONS", 1)
    model = opened(folder)
    same_states(model, streamed(model, tmp_path / "states"), whole)


def test_layers_in_any_order(folder: Path, whole: NeutralStates, tmp_path: Path) -> None:
    model = opened(folder)
    same_states(model, streamed(model, tmp_path / "states"), whole, [2, 0, 3, 1])


def test_the_atlas_is_the_same(folder: Path, tmp_path: Path) -> None:
    """Also where only some layers are asked for at first."""
    relations = random_relations()
    expected = map_heads(folder, relations=relations)
    map_heads(folder, relations=relations, compute=Compute(stream=True), layers="2", out=tmp_path)
    assert Atlas.open(tmp_path).layers_done.tolist() == [False, False, True, False]
    found = map_heads(folder, relations=relations, compute=Compute(stream=True), out=tmp_path)
    assert_same_arrays(found, expected)
    assert not (tmp_path / STATES_NAME).exists()


def test_the_same_rows_go_through_as_in_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every beginning of a source once for each prefix: its last token, a row of the residual stream."""
    made: list[BlockPass] = []
    before = StreamedStates._pass_before
    monkeypatch.setattr(
        StreamedStates, "_pass_before", lambda self, layer: made.append(before(self, layer)) or made[-1]
    )
    streamed(opened(folder), tmp_path / "states").layer(1)
    assert made[0].n_tokens == len(made[0].hidden) == 4 * (2 + len(beginnings(SOURCES)))


# What is read and held --------------------------------------------------------------------------------


def test_every_layer_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole map. Values and outputs are looked at again for the heads, while their pages are held."""
    monkeypatch.setenv("HEADATLAS_SELF_CHECK", "0")  # which reads the first block's attention, too
    reads = Reads(monkeypatch)
    map_heads(folder, relations=random_relations(), compute=Compute(stream=True))
    stored = opened(folder).checkpoint.source.infos()
    for name, info in stored.items():
        if ".layers." in name and len(info.shape) > 1:
            again = "v_proj" in name or "o_proj" in name
            assert reads.names[name] == 1 + again, name


def test_heads_are_read_while_the_block_is_held(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views: list[weakref.ref[torch.Tensor]] = []
    stored, heads = SafetensorsSource.stored, Model.heads

    def noted(source: SafetensorsSource, name: str) -> torch.Tensor:
        view = stored(source, name)
        views.append(weakref.ref(view))
        return view

    def read(model: Model, layer: int) -> Any:
        alive.append(sum(view() is not None for view in views))
        return heads(model, layer)

    alive: list[int] = []
    monkeypatch.setattr(SafetensorsSource, "stored", noted)
    monkeypatch.setattr(Model, "heads", read)
    model = opened(folder)
    states = streamed(model, tmp_path / "states")
    of_a_block = sum(".layers.0." in name for name in model.checkpoint.source.infos())
    for layer in range(LAYERS):
        states.layer(layer)
    assert alive == [of_a_block] * LAYERS
    assert not any(view() is not None for view in views)


def test_one_projection_is_in_float32_at_a_time(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    model = opened(folder)
    streamed(model, tmp_path / "states").layer(LAYERS - 1)
    infos = model.checkpoint.source.infos()
    assert calls.most == max(prod(info.shape) for name, info in infos.items() if ".layers." in name)


def test_the_last_block_is_not_left(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it works but the norm and the projections before that of the values, where sources end."""
    calls = Calls(monkeypatch)
    model = opened(folder)
    states = streamed(model, tmp_path / "states")
    states.layer(LAYERS - 1)
    # Of the beginnings of one to six tokens; sources have one, two or six.
    steps, ends = 6, 3
    for layer in range(LAYERS):
        path = model.block_module(layer)
        left = layer < LAYERS - 1
        rows = len(NEUTRAL_PREFIXES) * (1 + steps if left else ends)
        assert calls.paths[f"{path}.input_layernorm"] == rows
        for part in (".self_attn.v_proj", ".self_attn.o_proj", ".mlp.down_proj"):
            assert calls.paths[path + part] == left * rows


def test_of_the_embedding_only_the_rows_of_the_tokens_are_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_read: list[Any] = []
    read = SafetensorsSource.read

    def noted(source: SafetensorsSource, name: str, rows: Any = None) -> torch.Tensor:
        if "embed_tokens" in name:
            rows_read.append(rows)
        return read(source, name, rows)

    monkeypatch.setattr(SafetensorsSource, "read", noted)
    streamed(opened(folder), tmp_path / "states").layer(0)
    tokens = {token for source in SOURCES for token in source} | {1, 4, 5, 6, 7}
    assert rows_read == [sorted(tokens)]


def test_a_saved_layer_needs_no_modules(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(folder)
    states = streamed(model, tmp_path / "states")
    expected = [states.layer(layer).x for layer in range(LAYERS)]
    reads = Reads(monkeypatch)
    again = streamed(model, tmp_path / "states")
    assert all(torch.equal(again.layer(layer).x, expected[layer]) for layer in range(LAYERS))
    assert not reads.names
    assert not list((tmp_path / "states").glob("entering_*.npy"))


# Going on ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", range(LAYERS))
def test_a_run_broken_off_within_a_layer_goes_on_there(
    at: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(folder)
    uninterrupted = streamed(model, tmp_path / "a")
    expected = [uninterrupted.layer(layer) for layer in range(LAYERS)]
    through = BlockPass._through
    calls = 0

    def stopped(self: BlockPass, *args: Any) -> None:
        nonlocal calls
        calls += self.next == at
        if calls == 3:
            raise KeyboardInterrupt
        through(self, *args)

    states = streamed(model, tmp_path / "b")
    with monkeypatch.context() as patch:
        patch.setattr(BlockPass, "_through", stopped)
        with pytest.raises(KeyboardInterrupt):
            states.layer(LAYERS - 1)
    reads = Reads(monkeypatch)
    for going_on in (states, streamed(model, tmp_path / "b")):  # the same object, and another process
        for layer in range(LAYERS):
            for kind in ("x", "control"):
                found, wanted = going_on.layer(layer), expected[layer]
                assert torch.equal(getattr(found, kind), getattr(wanted, kind))
    blocks = len(model.checkpoint.source.infos()) // LAYERS
    for layer in range(LAYERS):
        assert (reads.of_layer(layer) >= blocks) == (layer >= at)


def test_killed_at_writes(folder: Path, tmp_path: Path) -> None:
    """A map in a process of its own, killed at writes to atlas and states: the atlas is the same."""
    expected = map_heads(folder, relations=random_relations(), compute=Compute(stream=True))
    out = tmp_path / "out"
    died = 0
    for at in (60, 25, 9):
        process = started(folder, out, die_at_write=at, stream=True)
        process.join(60)
        died += process.exitcode == -signal.SIGKILL
    assert died >= 2
    found = map_heads(folder, relations=random_relations(), out=out, compute=Compute(stream=True))
    assert_same_arrays(found, expected)


def test_processes_that_share_a_folder(folder: Path, tmp_path: Path) -> None:
    """They save the same layers, and the first to be done with the last one deletes the states."""
    expected = map_heads(folder, relations=random_relations())
    out = tmp_path / "out"
    processes = [started(folder, out, layers=layers, stream=True) for layers in ("3", "1-2", None)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    found = Atlas.open(out)
    assert_same_arrays(found, expected)
    assert {path.name for path in out.iterdir()} == {"atlas.zarr", "writes"}


def test_states_deleted_by_another_process_are_still_given(
    folder: Path, whole: NeutralStates, tmp_path: Path
) -> None:
    model = opened(folder)
    states = streamed(model, tmp_path / "states")
    states.layer(0)
    discard_states(tmp_path / "states")
    same_states(model, states, whole, [1, 2])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x_002", "control_002", "entering_003"])
def test_states_deleted_while_they_are_read_are_still_given(
    name: str, folder: Path, whole: NeutralStates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, load = opened(folder), np.load
    streamed(model, tmp_path / "states").layer(2)
    deleted = 0

    def deleting(file: Path, mmap_mode: str | None = None, **kwargs: Any) -> Any:
        nonlocal deleted
        if file.stem == name and mmap_mode is None:
            deleted += 1
            discard_states(tmp_path / "states")
        return load(file, mmap_mode, **kwargs)

    monkeypatch.setattr(np, "load", deleting)
    same_states(model, streamed(model, tmp_path / "states"), whole, [2, 3])
    assert deleted
    assert not list(tmp_path.iterdir())


def test_another_process_ends_while_a_layer_is_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was done with all layers and deleted the states: there is nothing left to do."""
    expected = map_heads(folder, relations=random_relations())
    out, read = tmp_path / "out", run.layer_inputs

    def late(prepared: Any, states: Any, layer: int) -> Any:
        if layer == 2:
            with monkeypatch.context() as patch:
                patch.setattr(run, "layer_inputs", read)
                map_heads(folder, relations=random_relations(), out=out)
            assert not (out / "states").exists()
        return read(prepared, states, layer)

    monkeypatch.setattr(run, "layer_inputs", late)
    found = map_heads(folder, relations=random_relations(), out=out)
    assert_same_arrays(found, expected)


@pytest.mark.parametrize("damage", ["x lost", "x truncated", "control empty", "entering truncated", "index"])
def test_damaged_states_are_computed_again(
    damage: str, folder: Path, whole: NeutralStates, tmp_path: Path
) -> None:
    model, states = opened(folder), tmp_path / "states"
    streamed(model, states).layer(2)
    what = damage.split(maxsplit=1)[0]
    file = states / {"x": "x_001.npy", "control": "control_000.npy", "entering": "entering_003.npy"}.get(
        what, "states.json"
    )
    if damage.endswith("lost"):
        file.unlink()
    else:
        file.write_bytes(b"" if damage.endswith("empty") else file.read_bytes()[:-20])
    same_states(model, streamed(model, states), whole)


def test_the_states_another_process_saved_first_count(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks are exact for the saved states, so there must be one version of them."""
    model = opened(folder)
    slow, fast = (streamed(model, tmp_path / "states") for _ in range(2))
    slow.layer(0)
    fast.layer(2)
    file = tmp_path / "states" / "x_002.npy"
    changed = np.load(file) + 1
    np.save(file, changed)
    reads = Reads(monkeypatch)
    assert torch.equal(slow.layer(2).x, torch.from_numpy(changed))
    slow.layer(3)  # from where the fast one is, not from block 1
    assert not reads.of_layer(1) and not reads.of_layer(2) and reads.of_layer(3)


@pytest.mark.parametrize(
    "change", [{"sources": SOURCES[:-1]}, {"prefixes": ["The"]}, {"identity": "another model"}]
)
def test_states_of_another_question_are_replaced(
    change: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    model = opened(folder)
    streamed(model, tmp_path / "states").layer(2)
    found = streamed(model, tmp_path / "states", **change).layer(1)
    assert torch.equal(found.x, streamed(model, tmp_path / "fresh", **change).layer(1).x)
    assert not (tmp_path / "states" / "x_002.npy").exists()


@pytest.mark.parametrize("first", range(1, LAYERS))
def test_later_layers_go_on_where_earlier_ones_ended(
    first: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs, each of some layers: the second begins with the last block of the first."""
    model = opened(folder)
    uninterrupted = streamed(model, tmp_path / "a")
    expected = [uninterrupted.layer(layer) for layer in range(LAYERS)]
    early = streamed(model, tmp_path / "b", last=first - 1)
    for layer in range(first):
        early.layer(layer)
    reads = Reads(monkeypatch)
    later = streamed(model, tmp_path / "b")
    for layer in range(LAYERS):
        for kind in ("x", "control"):
            assert torch.equal(getattr(later.layer(layer), kind), getattr(expected[layer], kind))
    assert [bool(reads.of_layer(layer)) for layer in range(LAYERS)] == [
        layer >= first - 1 for layer in range(LAYERS)
    ]


def test_a_map_of_later_layers_goes_on_where_that_of_earlier_ones_ended(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADATLAS_SELF_CHECK", "0")  # which reads the first block's attention, too
    relations = random_relations()
    expected = map_heads(folder, relations=relations, compute=Compute(stream=True))
    map_heads(folder, relations=relations, compute=Compute(stream=True), layers="0-1", out=tmp_path)
    reads = Reads(monkeypatch)
    found = map_heads(folder, relations=relations, compute=Compute(stream=True), layers="2-3", out=tmp_path)
    assert not reads.of_layer(0) and reads.of_layer(2) and reads.of_layer(3)
    assert_same_arrays(found, expected)


# Refusals and progress --------------------------------------------------------------------------------


def test_states_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    broken = tiny_model("llama")
    with torch.no_grad():
        broken.get_submodule("model.layers.1.mlp.down_proj").weight[0] = 3e38
    states = streamed(opened(save(broken, tmp_path / "model")), tmp_path / "states")
    states.layer(1)
    with pytest.raises(HeadatlasError, match=r"the states of layer 2 are not finite"):
        states.layer(2)
    assert not (tmp_path / "states" / "x_002.npy").exists()


def test_what_stands_in_the_way_is_named(folder: Path, tmp_path: Path) -> None:
    model = opened(folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "alabama.txt").write_text("mine")
    with pytest.raises(HeadatlasError, match=r"mine: cannot be written \(Directory not empty\)"):
        streamed(model, tmp_path / "mine")
    assert (tmp_path / "mine" / "alabama.txt").read_text() == "mine"
    states = streamed(model, tmp_path / "states")
    (tmp_path / "states" / "x_000.npy").mkdir()
    with pytest.raises(HeadatlasError, match=r"states: cannot be written"):
        states.layer(0)


def test_a_tensor_of_a_shape_that_the_modules_do_not_have(folder: Path, tmp_path: Path) -> None:
    """Query and key projections are not checked when a model is opened, for no head's formula reads them."""
    copied = save(tiny_model("gemma3", layers=LAYERS), tmp_path / "model")
    file = copied / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.self_attn.q_proj.weight"
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, file)
    states = streamed(opened(copied), tmp_path / "states")
    states.layer(0)
    with pytest.raises(HeadatlasError, match=rf"'{name}' has the shape \[47, 32\].*expects \[48, 32\]"):
        states.layer(1)


def test_a_tensor_that_the_modules_have_no_place_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accounting takes its tensors from the family, modules theirs from the config."""
    model = opened(folder)
    needed = model.needed_in_block
    assert needed(1) == {name for name in model.checkpoint.source.infos() if ".layers.1." in name}
    monkeypatch.setattr(
        model, "needed_in_block", lambda layer: needed(layer) | {"more"} if layer else needed(0)
    )
    states = streamed(model, tmp_path / "states")
    states.layer(0)
    with pytest.raises(HeadatlasError, match="holds 'more', for which modules of its config have no place"):
        states.layer(1)


def test_progress_counts_rows_of_all_layers(folder: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    states = streamed(
        opened(folder), tmp_path / "states", progress=lambda done, total: told.append((done, total))
    )
    a_layer = len(SOURCES) * len(NEUTRAL_PREFIXES)
    for layer in range(LAYERS):
        states.layer(layer)
        assert told[-1] == ((layer + 1) * a_layer, LAYERS * a_layer)
    assert sorted(told) == told


# When it streams --------------------------------------------------------------------------------------


@pytest.fixture
def too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine holds a layer but not a model."""
    monkeypatch.setattr(plan.Memory, "least", property(lambda each: 1 if each.streamed else 10**15))


@pytest.mark.usefixtures("too_large")
def test_what_does_not_fit_is_streamed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch)
    found = plan.plan(folder, relations=random_relations())
    assert found.streams and any("one is in memory at a time" in note for note in found.notes)
    assert map_heads(folder, relations=random_relations(), layers="0").layers_done[0]
    assert reads.of_layer(0) and not reads.of_layer(1)
    assert not plan.plan(folder, relations=random_relations(), lens="maps").streams
    assert not plan.plan(tiny_model("llama"), word_tokenizer(), relations=random_relations()).streams


def test_what_fits_is_loaded(folder: Path) -> None:
    found = plan.plan(folder, relations=random_relations())
    assert not found.streams and any("must fit in memory" in note for note in found.notes)
    assert plan.plan(folder, relations=random_relations(), compute=Compute(stream=True)).streams


def test_a_model_that_the_gpu_does_not_hold_is_streamed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of what is free there is for the weights."""
    model, lens = opened(folder), MapOptions().lens
    gpu, cpu = (Machine((torch.device(name),), 10**12) for name in ("cuda:0", "cpu"))
    weights = 4 * model.n_parameters
    for free, streamed in ((2 * weights, False), (2 * weights - 2, True)):
        monkeypatch.setattr(plan, "free_memory", lambda _, free=free: free)
        assert plan.streams(model, lens, 10, None, gpu) is streamed
        assert not plan.streams(model, lens, 10, False, gpu)
        assert not plan.streams(model, lens, 10, None, cpu)


def test_memory_does_not_grow_with_depth(folder: Path) -> None:
    model = opened(folder)
    deep = opened(folder)
    deep.dims = replace(model.dims, n_layers=1000)
    lens, machine = MapOptions().lens, Machine((torch.device("cpu"),), 10**11)
    need = [plan.Memory(each, lens, 1000, streamed=True).needed(machine) for each in (model, deep)]
    assert need[0] == need[1]
    assert model.n_block_parameters * LAYERS < model.n_parameters


def test_what_cannot_be_streamed_is_said(folder: Path) -> None:
    with pytest.raises(HeadatlasError, match="only safetensors go through layer by layer, this is module"):
        map_heads(
            tiny_model("llama"), word_tokenizer(), relations=random_relations(), compute=Compute(stream=True)
        )
    with pytest.raises(HeadatlasError, match="'maps' has no forward pass"):
        map_heads(
            folder,
            relations=random_relations(several_tokens=False),
            lens="maps",
            compute=Compute(stream=True),
        )
