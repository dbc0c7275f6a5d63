"""What the Hugging Face modules compute, to hold an opened model against. Knows no family.

Every oracle works through hooks on the paths the opened model names, so it checks the paths as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from headatlas.architectures import Model
from headatlas.errors import HeadatlasError

from .tiny import VOCAB, module

# transformers computes RMS norms in float32 whatever the model's dtype.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@contextmanager
def recorded(model: PreTrainedModel, paths: list[str]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """First inputs and outputs of the named modules during the block, in float64."""
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}

    def record(path: str) -> Any:
        def hook(_module: Any, args: Any, kwargs: Any, output: Any) -> None:
            inputs[path] = (args[0] if args else kwargs["hidden_states"]).double()
            outputs[path] = (output[0] if isinstance(output, tuple) else output).double()

        return hook

    handles = [
        module(model, path).register_forward_hook(record(path), with_kwargs=True) for path in set(paths)
    ]
    try:
        with torch.no_grad():
            yield inputs, outputs
    finally:
        for handle in handles:
            handle.remove()


def check_embeddings(opened: Model, model: PreTrainedModel) -> None:
    unembedding = model.get_output_embeddings().weight
    torch.testing.assert_close(opened.unembed(), unembedding.detach(), check_dtype=False)
    if opened.family.safetensors.embed_norm is None:
        embedding = model.get_input_embeddings().weight.detach()
        torch.testing.assert_close(opened.embed(), embedding, check_dtype=False)
        torch.testing.assert_close(opened.embed([7, 3]), embedding[[7, 3]], check_dtype=False)
        return
    first = opened.block_module(0)
    with recorded(model, [first]) as (inputs, _):
        model(_ids(1))
    ours = opened.embed(_ids(1)[:, 0].tolist()).double()
    torch.testing.assert_close(_unit(ours), _unit(inputs[first][:, 0]), check_dtype=False, **CLOSE)


def check_values(opened: Model, model: PreTrainedModel) -> None:
    """Attention-weighted values of the recorded x_l are what enters the output projection.

    Values made from a latent are known up to a positive number per source: there a source is alone, so that
    it attends to itself, and all heads together must be off by the same number.
    """
    dims = opened.dims
    section = opened.family.safetensors
    latent = any(value.layout == "latent" for value in section.value)
    # Some modules with sinks return attention before the sink took its share; LFM3 scales whole heads.
    sinks = any(other.stem.endswith(("sinks!", "g_proj")) for other in section.other)
    gated = any("gate between 0 and 1" in caveat.text for caveat in section.caveats)
    for layer in opened.layers_with_heads:
        heads = opened.heads(layer)
        assert heads.W_V.shape == (dims.n_kv_heads, dims.d_model, dims.d_head)
        assert heads.W_O.shape == (dims.n_heads, dims.d_head, dims.d_model)
        source, output = opened.value_input_module(layer), opened.o_proj_module(layer)
        with recorded(model, [source, output]) as (inputs, _):
            ran = model(_ids(1 if latent else 6), output_attentions=True)
        x = inputs[source]
        values = torch.stack([head_values(opened, layer, head, x) for head in range(dims.n_heads)], 1)
        if latent:
            ours = values.transpose(1, 2).flatten(2)
            torch.testing.assert_close(_unit(ours), _unit(inputs[output]), check_dtype=False, **CLOSE)
            continue
        attention = ran.attentions[opened.layers_with_heads.index(layer) if _only_heads(ran, dims) else layer]
        expected = inputs[output].unflatten(-1, (dims.n_heads, dims.d_head)).transpose(1, 2)
        ours = attention.to(values.dtype) @ values
        if sinks or gated:
            ours, expected = _unit(ours), _unit(expected)
        torch.testing.assert_close(ours, expected, **CLOSE)


def _only_heads(ran: Any, dims: Any) -> bool:
    """Whether attention was returned for layers with heads only."""
    return len(ran.attentions) < dims.n_layers


def head_values(opened: Model, layer: int, head: int, x: torch.Tensor) -> torch.Tensor:
    """x_l @ W_V + b_V of one query head."""
    heads, group = opened.heads(layer), opened.dims.kv_head(head)
    values = x @ heads.W_V[group].to(x.dtype)
    return values if heads.b_V is None else values + heads.b_V[group].to(x.dtype)


def check_direct_contribution(opened: Model, model: PreTrainedModel) -> None:
    """R_l((x_l W_V + b_V) W_O) U is a head's part of the logits, up to a positive scale per row."""
    dims, unembed = opened.dims, model.get_output_embeddings()
    final, layers = opened.final_norm_module(), opened.layers_with_heads
    posts = {layer: _post_norm(opened, layer) for layer in layers}
    outputs_of = {layer: opened.o_proj_module(layer) for layer in layers}
    sources = {layer: opened.value_input_module(layer) for layer in layers}
    paths = [final, *filter(None, posts.values()), *outputs_of.values(), *sources.values()]
    # One-token rows: a head attends to the token itself, so its output is its value.
    with recorded(model, paths) as (inputs, outputs):
        logits = model(_ids(1)).logits
    after = _frozen(module(model, final), inputs[final], outputs[final])
    U = opened.unembed().double().T
    for layer in layers:
        projection, right, heads = (
            module(model, outputs_of[layer]),
            opened.right_map(layer),
            opened.heads(layer),
        )
        for head in range(dims.n_heads):
            written = _written_by(projection, inputs[outputs_of[layer]], head, dims.d_head)
            if (post := posts[layer]) is not None:
                written = _frozen(module(model, post), inputs[post], outputs[post])(written)
            contribution = after(written) @ unembed.weight.double().T
            ours = head_values(opened, layer, head, inputs[sources[layer]]) @ heads.W_O[head].double()
            torch.testing.assert_close(_unit(right.apply(ours) @ U), _unit(contribution), **CLOSE)
    # Logits are what the final norm leaves, unembedded; multipliers and caps may follow and keep the order.
    assert torch.equal(_called(unembed, outputs[final]).argsort(), logits.argsort())


def check_residual(opened: Model, model: PreTrainedModel) -> None:
    """With its MLP silenced, attention changes what leaves its block by what the right map's first half says.

    This holds the place of the norm after attention, and multipliers, against what really happens.
    """
    layer, dims = opened.layers_with_heads[-1], opened.dims
    source, output, block = (
        opened.value_input_module(layer),
        opened.o_proj_module(layer),
        opened.block_module(layer),
    )
    with silenced(model, list(opened.mlp_modules(layer))):
        with recorded(model, [source, output, block]) as (full, left):
            model(_ids(1))
        with silenced(model, [output]), recorded(model, [block]) as (_, left_without):
            model(_ids(1))
    heads, bias = opened.heads(layer), getattr(module(model, output), "bias", None)
    ours = torch.zeros_like(left[block]) + (0 if bias is None else bias.detach())
    for head in range(dims.n_heads):
        values = head_values(opened, layer, head, full[source])
        seen = full[output].unflatten(-1, (dims.n_heads, dims.d_head))[..., head, :]
        share = (seen * values).sum(-1, keepdim=True) / values.square().sum(-1, keepdim=True)
        assert bool((share > 0).all())  # below one beside a sink, anything where values come from a latent
        ours += share * values @ heads.W_O[head].double()
    post = opened.right_map(layer).post_gain
    ours = ours if post is None else ours * post.double()
    change = left[block] - left_without[block]
    torch.testing.assert_close(_unit(ours), _unit(change), check_dtype=False, **CLOSE)


@contextmanager
def silenced(model: PreTrainedModel, paths: list[str]) -> Iterator[None]:
    """The modules' outputs are zero during the block."""

    def nothing(_module: Any, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (torch.zeros_like(output[0]), *output[1:])
        return torch.zeros_like(output)

    handles = [module(model, path).register_forward_hook(nothing) for path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_first_mlp(opened: Model, model: PreTrainedModel) -> None:
    """With the first attention silenced, its block's MLP sees norm(rows)."""
    rows = torch.randn(3, 5, opened.dims.d_model, dtype=torch.float64)
    if not opened.mlp_modules(0):
        with pytest.raises(HeadatlasError, match="the first block has no MLP"):
            opened.first_mlp(rows[0])
        return

    def enter(_module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (rows.to(args[0].dtype), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": rows.to(kwargs["hidden_states"].dtype)}

    replace = module(model, opened.block_module(0)).register_forward_pre_hook(enter, with_kwargs=True)
    try:
        with (
            silenced(model, list(opened.attention_modules(0))),
            recorded(model, list(opened.mlp_modules(0))) as (_, outputs),
        ):
            model(_ids(5))
    finally:
        replace.remove()
    ours = opened.first_mlp(rows.reshape(15, -1)).reshape(rows.shape)
    theirs = sum(outputs[path].reshape(rows.shape) for path in opened.mlp_modules(0))
    torch.testing.assert_close(ours, theirs, check_dtype=False, **CLOSE)


def check_final_norm(opened: Model, model: PreTrainedModel) -> None:
    rows = torch.randn(4, opened.dims.d_model, dtype=torch.float64)
    with torch.no_grad():
        expected = _called(module(model, opened.final_norm_module()), rows)
    torch.testing.assert_close(opened.final_norm(rows), expected, check_dtype=False, **CLOSE)


CHECKS = [
    check_embeddings,
    check_values,
    check_direct_contribution,
    check_residual,
    check_first_mlp,
    check_final_norm,
]


def _ids(length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(3, VOCAB, (3, length), generator=generator)


def _post_norm(opened: Model, layer: int) -> str | None:
    """The module of the norm on the attention's output, where there is one."""
    norm = opened.family.safetensors.post_attention_norm
    if norm is None or opened.right_map(layer).post_gain is None:
        return None
    return f"{opened.block_module(layer)}.{norm.stems[0].removeprefix('{block}')}"


def _written_by(projection: Any, inputs: torch.Tensor, head: int, d_head: int) -> torch.Tensor:
    """What one head adds to the output projection's output: the module's answer with and without it."""
    alone = torch.zeros_like(inputs)
    alone[..., head * d_head : (head + 1) * d_head] = inputs[..., head * d_head : (head + 1) * d_head]
    with torch.no_grad():
        return _called(projection, alone) - _called(projection, torch.zeros_like(inputs))


def _frozen(norm: Any, inputs: torch.Tensor, outputs: torch.Tensor) -> Any:
    """A norm without bias whose scale is held at what it was for ``inputs``, learnt from its outputs."""
    with torch.no_grad():
        centring = torch.allclose(_called(norm, inputs + 1), outputs, rtol=1e-4, atol=1e-5)

    def centred(rows: torch.Tensor) -> torch.Tensor:
        return rows - rows.mean(-1, keepdim=True) if centring else rows

    bias = getattr(norm, "bias", None)
    scale = (outputs if bias is None else outputs - bias) / centred(inputs)
    return lambda rows: centred(rows) * scale


def _called(called: Any, rows: torch.Tensor) -> torch.Tensor:
    """A module's output in float64, computed in the dtype of its parameters."""
    dtype = next((parameter.dtype for parameter in called.parameters()), rows.dtype)
    output: torch.Tensor = called(rows.to(dtype))
    return output.double()


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)
