"""Every family against the Hugging Face modules, from safetensors files and from loaded modules."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from headatlas.architectures import Model, open_model
from headatlas.weights import Checkpoint, open_checkpoint

from .oracle import PARTS, hold
from .tiny import ALL, checkpoint_of, marked, tiny_model

cached_model = lru_cache(2)(tiny_model)


def saved(model: PreTrainedModel, folder: Path) -> Checkpoint:
    """The model as transformers writes it to disk, names included."""
    model.save_pretrained(folder)
    return open_checkpoint(folder)


@pytest.fixture(scope="module", params=marked(ALL))
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Model, PreTrainedModel]:
    model = cached_model(request.param)
    return open_model(saved(model, tmp_path_factory.mktemp("model"))), model


@pytest.mark.parametrize("part", PARTS)
def test_saved_model(pair: tuple[Model, PreTrainedModel], part: str) -> None:
    hold(*pair, part)


def test_shapes_of_heads(pair: tuple[Model, PreTrainedModel]) -> None:
    opened, dims = pair[0], pair[0].dims
    for layer in opened.layers_with_heads:
        heads = opened.heads(layer)
        assert heads.W_V.shape == (dims.n_kv_heads, dims.d_model, dims.d_head)
        assert heads.W_O.shape == (dims.n_heads, dims.d_head, dims.d_model)
        assert heads.b_V is None or heads.b_V.shape == (dims.n_kv_heads, dims.d_head)


def test_modules_of_a_saved_model(pair: tuple[Model, PreTrainedModel]) -> None:
    """The paths hold in the modules that headatlas itself loads."""
    opened, model = pair
    loaded = opened.modules(torch.float64)
    assert type(loaded) is type(model)
    hold(opened, loaded, "final norm")


def test_counts_and_bytes(pair: tuple[Model, PreTrainedModel]) -> None:
    opened, model = pair
    kept = model.state_dict()
    buffers = ((name, buffer) for name, buffer in model.named_buffers() if name in kept)
    text = {
        name: tensor
        for name, tensor in (*model.named_parameters(), *buffers)
        if not any(part in name for part in ("vision", "visual", "multi_modal"))
    }
    assert opened.n_parameters == sum(tensor.numel() for tensor in text.values())
    size = next(model.parameters()).element_size()
    assert (
        opened.bytes_needed(forward_pass=False)
        < opened.bytes_needed(forward_pass=True)
        == size * opened.n_parameters
    )


@pytest.mark.parametrize("case", marked(ALL))
def test_loaded_module(case: str) -> None:
    """A module in memory has other names than its file (tied weights twice, renamed modules)."""
    model = cached_model(case)
    opened = open_model(open_checkpoint(model))
    beside = opened.modules(model.dtype)
    assert type(beside) is type(model) and beside is not model
    places = {name: tensor.data_ptr() for name, tensor in model.named_parameters()}
    assert {name: tensor.data_ptr() for name, tensor in beside.named_parameters()} == places
    hold(opened, model, "values of every head", "first MLP")


@pytest.mark.parametrize(("case", "prefix"), [("gpt2", "transformer."), ("llama", "model.")])
def test_prefix_may_be_absent(case: str, prefix: str, tmp_path: Path) -> None:
    model = cached_model(case)
    checkpoint = saved(model, tmp_path)
    tensors = {name.removeprefix(prefix): checkpoint.source.read(name) for name in checkpoint.source.infos()}
    opened = open_model(checkpoint_of(tensors, dict(checkpoint.config)))
    hold(opened, model, "part of every head in the logits")


def test_masks_stored_by_old_versions_are_ignored(tmp_path: Path) -> None:
    checkpoint = saved(cached_model("gpt2"), tmp_path)
    tensors = {name: checkpoint.source.read(name) for name in checkpoint.source.infos()}
    tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    assert open_model(checkpoint_of(tensors, dict(checkpoint.config))).n_parameters > 0


def test_a_stored_unembedding_counts_even_if_the_config_ties_it(tmp_path: Path) -> None:
    """As in transformers: two different stored tensors are not tied."""
    checkpoint = saved(cached_model("llama-tied-biased-head_dim"), tmp_path)
    tensors = {name: checkpoint.source.read(name) for name in checkpoint.source.infos()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    opened = open_model(checkpoint_of(tensors, dict(checkpoint.config)))
    assert torch.equal(opened.unembed(), tensors["lm_head.weight"])
