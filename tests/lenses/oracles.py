"""Source states by the book: plain forward passes of whole rows, no cache, no batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from headatlas.architectures import Model
from headatlas.architectures.oracle import recorded


def neutral_states(
    opened: Model, model: PreTrainedModel, sources: Sequence[tuple[int, ...]], prefixes: Sequence[list[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x, control), each [n_layers, n, d_model]: means over prefixes at the last position.

    The control is the block's input, centred where the family's norm centres, of length one.
    """
    layers = range(opened.dims.n_layers)
    inputs_of = [opened.value_input_module(layer) for layer in layers]
    blocks = [opened.block_module(layer) for layer in layers]
    x, control = [], []
    for source in sources:
        rows = [
            last_inputs(model, [*prefix, *source], inputs_of, blocks, opened.right_map(0).centre)
            for prefix in prefixes
        ]
        x.append(torch.stack([row[0] for row in rows]).mean(dim=0))
        control.append(torch.stack([row[1] for row in rows]).mean(dim=0))
    return torch.stack(x, dim=1), torch.stack(control, dim=1)


def last_inputs(
    model: PreTrainedModel, ids: list[int], inputs_of: list[str], blocks: list[str], centring: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """What enters the named modules at the last position of one row."""
    with recorded(model, [*inputs_of, *blocks]) as (inputs, _):
        model(input_ids=torch.tensor([ids]), use_cache=False)
    x = torch.stack([inputs[path][0, -1] for path in inputs_of])
    entering = torch.stack([inputs[path][0, -1] for path in blocks])
    if centring:
        entering = entering - entering.mean(dim=-1, keepdim=True)
    return x, entering / entering.norm(dim=-1, keepdim=True)


def value_vectors(opened: Model, model: PreTrainedModel, ids: list[int], layer: int) -> torch.Tensor:
    """[n_heads, d_head] value vectors at the last position, without looking at any value weight.

    What enters the output projection is Z = A·V with A the (lower triangular) attention, so V = A⁻¹·Z.
    """
    path = opened.o_proj_module(layer)
    with recorded(model, [path]) as (inputs, _):
        attention = model(torch.tensor([ids]), output_attentions=True, use_cache=False).attentions[layer][0]
    dims = opened.dims
    mixed = inputs[path][0].view(len(ids), dims.n_heads, dims.d_head).transpose(0, 1)
    values: torch.Tensor = torch.linalg.solve_triangular(attention.to(mixed.dtype), mixed, upper=False)
    return values[:, -1]


def direct_logits(opened: Model, model: PreTrainedModel, ids: list[int], layer: int) -> torch.Tensor:
    """[n_heads, vocab] what each head's value at the last position adds to the logits there.

    Norms on the way keep the scale they have in this forward pass.
    """
    projection: Any = model.get_submodule(opened.o_proj_module(layer))
    block, final = opened.block_module(layer), opened.final_norm_module()
    post = None if opened.right_map(layer).post_gain is None else f"{block}.post_attention_layernorm"
    with recorded(model, [path for path in (final, post) if path]) as (inputs, outputs):
        model(torch.tensor([ids]), use_cache=False)
    dims, unembedding = opened.dims, model.get_output_embeddings().weight
    rows = []
    with torch.no_grad():
        for head, value in enumerate(value_vectors(opened, model, ids, layer)):
            alone = torch.zeros(1, dims.n_heads * dims.d_head, dtype=value.dtype)
            alone[0, head * dims.d_head : (head + 1) * dims.d_head] = value
            written = (projection(alone) - projection(torch.zeros_like(alone)))[0]
            for path in (post, final):
                if path is not None:
                    written = _frozen(model.get_submodule(path), inputs[path], outputs[path], written)
            rows.append(unembedding @ written)
    return torch.stack(rows)


def _frozen(norm: Any, inputs: torch.Tensor, outputs: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """A row through a norm with the scale it had for ``inputs`` at the last position, without its bias."""
    before, after = inputs[0, -1], outputs[0, -1]
    if isinstance(norm, torch.nn.LayerNorm):
        before, row = before - before.mean(), row - row.mean()
        if norm.bias is not None:
            after = after - norm.bias
    return row * (after / before)
