"""The maps lens: the embedding row at layer 0, the first MLP of the normed embedding later."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch

from headatlas.architectures import open_model
from headatlas.architectures.oracle import recorded
from headatlas.errors import HeadatlasError
from headatlas.lenses import LENSES, MapsStates, lens_named
from headatlas.weights import open_checkpoint
from tests.architectures.tiny import MODELS
from tests.mapping.checkpoints import tiny_model, word_tokenizer

SOURCES = [(20,), (7,), (299,), (20,)]


@pytest.mark.parametrize("case", MODELS)
def test_states_are_embedding_rows_and_the_first_mlp_of_them(case: str) -> None:
    torch.set_num_threads(1)
    model = tiny_model(case)
    opened = open_model(open_checkpoint(model, word_tokenizer()))
    states = MapsStates(opened, SOURCES)
    rows = model.get_input_embeddings().weight.detach()[[s[0] for s in SOURCES]]
    torch.testing.assert_close(states.layer(0).x, rows)
    expected = _first_mlp(
        model, opened.block_module(0), opened.o_proj_module(0), opened.mlp_modules(0)[0], rows
    )
    for layer in range(1, opened.dims.n_layers):
        found = states.layer(layer)
        torch.testing.assert_close(found.x, expected.float(), rtol=1e-4, atol=1e-5)
        assert found.control is found.x


def test_the_first_mlp_tells_how_far_it_is() -> None:
    opened = open_model(open_checkpoint(tiny_model("llama"), word_tokenizer()))
    told: list[tuple[int, int]] = []
    with patch("headatlas.architectures.model._ROWS", 3):
        in_parts = MapsStates(opened, SOURCES, lambda *done: told.append(done))
    assert told == [(3, 4), (4, 4)]
    torch.testing.assert_close(in_parts.layer(1).x, MapsStates(opened, SOURCES).layer(1).x)


def _first_mlp(model: Any, block: str, o_proj: str, mlp: str, rows: torch.Tensor) -> torch.Tensor:
    """The first block's MLP when the block reads ``rows`` and its attention writes nothing."""
    silence = model.get_submodule(o_proj).register_forward_hook(lambda _m, _a, out: torch.zeros_like(out))
    enter = model.get_submodule(block).register_forward_pre_hook(
        lambda _m, args: (rows[None].to(args[0].dtype), *args[1:])
    )
    try:
        with recorded(model, [mlp]) as (_, outputs):
            model(torch.tensor([[9] * len(rows)]), use_cache=False)
    finally:
        silence.remove()
        enter.remove()
    return outputs[mlp][0]


def test_sources_of_several_tokens_are_refused() -> None:
    opened = open_model(open_checkpoint(tiny_model("llama"), word_tokenizer()))
    with pytest.raises(ValueError, match="one token"):
        MapsStates(opened, [(20, 21)])


def test_lenses_by_name() -> None:
    assert set(LENSES) == {"neutral", "maps"}
    assert LENSES["maps"].weights_only and not LENSES["maps"].right_map
    assert LENSES["neutral"].right_map and LENSES["neutral"].max_source_tokens > 1
    with pytest.raises(HeadatlasError, match=r"`lens`: there is no lens 'attention'; use neutral or maps"):
        lens_named("attention")
