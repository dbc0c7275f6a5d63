"""On which device a pass works. Without a GPU, the meta device shows where every product is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from headatlas.architectures import open_model
from headatlas.lenses import NEUTRAL_PREFIXES, NeutralStates, StreamedStates, forward
from headatlas.lenses.forward import batch_tokens
from headatlas.lenses.neutral import Collector, prefix_row
from headatlas.lenses.streaming import BlockPass
from headatlas.weights import open_checkpoint
from tests.architectures.tiny import MODELS
from tests.mapping.checkpoints import save, tiny_model, word_tokenizer

META = torch.device("meta")
SOURCES = [(20,), (21,), (30, 31), (22,)]
PRODUCTS = ("mm", "addmm", "bmm", "linear", "matmul", "scaled_dot_product_attention")


class Elsewhere(TorchDispatchMode):
    """What is computed where. What comes back from the meta device, which holds no numbers, is zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[str] = Counter()
        self.mixed: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        places = {tensor.device.type for tensor in tensors if tensor.ndim}
        name = func.overloadpacket.__name__
        if name in ("to", "_to_copy"):
            to_cpu = torch.device("cpu") in tree_leaves((args[1:], kwargs))
            if to_cpu and args[0].device.type == "meta":
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        elif name == "copy_":
            if args[0].device.type == "cpu" and args[1].device.type == "meta":
                return args[0].zero_()
        elif len(places) > 1:
            self.mixed.append(f"{name}: {places}")
        if name in PRODUCTS:
            self.products[places.pop()] += 1
        return func(*args, **kwargs)


@pytest.fixture(autouse=True)
def many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(forward.MOST_TOKENS, "meta", 1000)


@pytest.mark.parametrize("case", MODELS)
def test_all_work_of_a_block_is_done_on_the_device(case: str, tmp_path: Path) -> None:
    """Weights, rows, masks, positions, keys and values; what comes back is float32 on the CPU."""
    model = open_model(open_checkpoint(save(tiny_model(case), tmp_path / "model")))
    rows = [prefix_row(model, prefix) for prefix in NEUTRAL_PREFIXES]
    there = BlockPass(model, rows, SOURCES, META)
    for layer, leave in ((0, True), (1, True), (2, False)):
        collector = Collector(model, [layer], len(SOURCES), len(rows))
        with Elsewhere() as elsewhere:
            heads = there.advance(collector, lambda _: None, leave=leave)
        assert not elsewhere.mixed
        assert elsewhere.products["meta"] >= (1 if leave else 0) and not elsewhere.products["cpu"]
        states = collector.layer(layer)
        for tensor in (states.x, states.control, heads.W_V, heads.W_O, there.hidden):
            assert tensor.device.type == "cpu" and tensor.dtype == torch.float32


def test_the_whole_model_is_put_on_the_device(tmp_path: Path) -> None:
    folder = save(tiny_model("llama"), tmp_path / "model")
    model = open_model(open_checkpoint(folder))
    with Elsewhere() as elsewhere:
        found = NeutralStates.compute(model, SOURCES, ["The"], tmp_path / "states", identity="", device=META)
    assert elsewhere.products["meta"] and not elsewhere.products["cpu"] and not elsewhere.mixed
    assert found.layer(1).x.shape == (len(SOURCES), 32)


def test_a_model_in_memory_stays_where_it_is(tmp_path: Path) -> None:
    module = tiny_model("llama")
    model = open_model(open_checkpoint(module, word_tokenizer()))
    NeutralStates.compute(model, SOURCES, ["The"], tmp_path / "states", identity="", device=META)
    assert module.device.type == "cpu"


@pytest.mark.parametrize("streamed", [True, False])
def test_what_a_caller_allows_of_float32_changes_no_state(streamed: bool, tmp_path: Path) -> None:
    """Autocast and float32 products that are none stay outside."""
    model = open_model(open_checkpoint(save(tiny_model("qwen2"), tmp_path / "model")))

    def states(name: str) -> list[torch.Tensor]:
        make = StreamedStates if streamed else NeutralStates.compute
        found = make(model, SOURCES, NEUTRAL_PREFIXES, tmp_path / name, identity="")
        return [found.layer(layer).x for layer in range(model.dims.n_layers)]

    expected = states("a")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = states("b")
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_batches_follow_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(open_checkpoint(save(tiny_model("llama"), tmp_path / "model")))
    a_token = 4 * model.n_block_parameters // model.dims.d_model
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    monkeypatch.setattr(forward, "ACTIVATIONS", 100 * a_token)
    assert batch_tokens(model, cpu) == 100
    monkeypatch.setattr(forward, "free_memory", lambda _: 800 * a_token)
    assert batch_tokens(model, cuda) == 200
    monkeypatch.setattr(forward, "free_memory", lambda _: 0)
    assert batch_tokens(model, cuda) == 1
    monkeypatch.setattr(forward, "free_memory", lambda _: 10**15)
    assert batch_tokens(model, cuda) == forward.MOST_TOKENS["cuda"]
