"""What the family reads of a model, part by part, against what its Hugging Face modules compute.

Each check yields relative differences; positive factors, which change no rank, are left open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from headatlas.architectures.model import Model
from headatlas.errors import HeadatlasError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@contextmanager
def _recorded(
    model: PreTrainedModel, paths: Sequence[str]
) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """First inputs and outputs of the named modules during the block."""
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}

    def recorder(path: str) -> Any:
        def record(_: Any, args: Any, kwargs: Any, output: Any) -> None:
            given: Any = args[0] if args else next(iter(kwargs.values()), None)
            left = output[0] if isinstance(output, tuple) else output
            inputs.setdefault(path, given)
            outputs.setdefault(path, left)

        return record

    hooks = [
        model.get_submodule(path).register_forward_hook(recorder(path), with_kwargs=True)
        for path in set(paths)
    ]
    try:
        yield inputs, outputs
    finally:
        for hook in hooks:
            hook.remove()


def _distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    ours, theirs = ours.double(), theirs.double()
    if ours.shape != theirs.shape:
        raise ValueError(f"shape {list(ours.shape)} instead of {list(theirs.shape)}")
    return float((ours - theirs).norm() / theirs.norm().clamp_min(1e-30))


def _unit(rows: torch.Tensor) -> torch.Tensor:
    """Rows of length one: positive factors change no rank."""
    import torch

    return torch.nn.functional.normalize(rows.double(), dim=-1)


def _ids(rows: int) -> torch.Tensor:
    import torch

    return torch.arange(3, 3 + rows).unsqueeze(1)


def _embeddings(opened: Model, model: Any) -> Iterator[float]:
    if opened._section.embed_norm is None:
        yield _distance(opened.embed([7, 3]), model.get_input_embeddings().weight[[7, 3]])
    yield _distance(opened.unembed(), model.get_output_embeddings().weight)


def _values(opened: Model, model: Any) -> Iterator[float]:
    """One token a row: a head passes its value on."""
    dims, layers = opened.dims, opened.layers_with_heads
    sources = {layer: opened.value_input_module(layer) for layer in layers}
    outputs = {layer: opened.o_proj_module(layer) for layer in layers}
    with _recorded(model, [*sources.values(), *outputs.values()]) as (entering, _):
        model(_ids(5))
    for layer in layers:
        heads, x, passed = opened.heads(layer), entering[sources[layer]], entering[outputs[layer]]
        for head in range(dims.n_heads):
            part = slice(head * dims.d_head, (head + 1) * dims.d_head)
            ours = x @ heads.W_V[dims.kv_head(head)]
            if heads.b_V is not None:
                ours = ours + heads.b_V[dims.kv_head(head)]
            yield _distance(_unit(ours).reshape(5, -1), _unit(passed[..., part]).reshape(5, -1))


def _outputs(opened: Model, model: Any) -> Iterator[float]:
    import torch

    dims = opened.dims
    for layer in opened.layers_with_heads:
        projection, heads = model.get_submodule(opened.o_proj_module(layer)), opened.heads(layer)
        nothing = torch.zeros(2, 1, dims.n_heads * dims.d_head)
        for head in range(dims.n_heads):
            alone = nothing.clone()
            part = slice(head * dims.d_head, (head + 1) * dims.d_head)
            alone[..., part] = torch.randn(2, 1, dims.d_head)
            written = projection(alone) - projection(nothing)
            yield _distance(alone[..., part] @ heads.W_O[head], written)


def _right_maps(opened: Model, model: Any) -> Iterator[float]:
    """The norm on the attention's output, found among the modules by what goes into it."""
    for layer in opened.layers_with_heads:
        block, output = opened.block_module(layer), opened.o_proj_module(layer)
        norms = [
            f"{block}.{name}"
            for name, module in model.get_submodule(block).named_modules()
            if "norm" in type(module).__name__.lower()
        ]
        with _recorded(model, [output, *norms]) as (entering, left):
            model(_ids(5))
        after = [path for path in norms if path in entering and _same(entering[path], left[output])]
        gain = opened.right_map(layer).post_gain
        if (gain is None) != (not after):
            said = "none" if gain is None else "one"
            raise HeadatlasError(
                f"layer {layer} has {len(after)} norms on the attention's output, the file says {said}"
            )
        if gain is not None:
            yield _distance(_unit(left[output] * gain), _unit(left[after[0]]))


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    import torch

    return a.shape == b.shape and torch.equal(a, b)


def _final_norm(opened: Model, model: Any) -> Iterator[float]:
    import torch

    rows = torch.randn(4, opened.dims.d_model)
    theirs = model.get_submodule(opened.final_norm_module())(rows)
    yield _distance(opened.final_norm(rows), theirs)
    right = opened.right_map(opened.layers_with_heads[0])
    centred = rows - rows.mean(-1, keepdim=True) if right.centre else rows
    gain = 1.0 if right.final_gain is None else right.final_gain
    bias = getattr(model.get_submodule(opened.final_norm_module()), "bias", None)
    yield _distance(_unit(centred * gain), _unit(theirs if bias is None else theirs - bias))


def _first_mlp(opened: Model, model: Any) -> Iterator[float]:
    """With the first attention silenced, its block's MLP sees norm(rows)."""
    import torch

    rows = torch.randn(3, 5, opened.dims.d_model)

    def replace(_: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if args:
            return (rows, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": rows}

    def silence(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(output)

    hooks = [
        *(model.get_submodule(at).register_forward_hook(silence) for at in opened.attention_modules(0)),
        model.get_submodule(opened.block_module(0)).register_forward_pre_hook(replace, with_kwargs=True),
    ]
    try:
        with _recorded(model, opened.mlp_modules(0)) as (_, left):
            model(_ids(3).expand(3, 5))
    finally:
        for hook in hooks:
            hook.remove()
    ours = opened.first_mlp(rows.reshape(15, -1))
    theirs = torch.stack([left[path].reshape(15, -1) for path in opened.mlp_modules(0)]).sum(dim=0)
    yield _distance(ours.reshape(15, -1), theirs)


CHECKS: dict[str, Callable[[Model, Any], Iterator[float]]] = {
    "embedding and unembedding": _embeddings,
    "values of every head": _values,
    "outputs of every head": _outputs,
    "norms after attention": _right_maps,
    "final norm": _final_norm,
    "first MLP": _first_mlp,
}
