"""Take heads out of a running model: at the *input* of the output projection, where they are side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from headatlas.architectures import Model
from headatlas.evidence.tasks import Questions
from headatlas.evidence.texts import Ids
from headatlas.lenses.forward import pre_hooks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Head = tuple[int, int]


@contextmanager
def ablated(
    model: Model, modules: PreTrainedModel, heads: Sequence[Head], means: torch.Tensor | None = None
) -> Iterator[None]:
    """Replace what heads bring to the output projection, at every position, during the block.

    Args:
        model: The opened model.
        modules: Its modules.
        heads: (layer, head).
        means: [n_layers, n_heads, d_head] what to put in their place; zeros if None.
    """
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        by_layer.setdefault(layer, []).append(head)
    hooks = []
    for layer, chosen in by_layer.items():
        instead = None if means is None else means[layer][chosen]
        hooks.append((model.o_proj_module(layer), _replacing(model.dims.n_heads, chosen, instead)))
    with pre_hooks(modules, hooks):
        yield


def _replacing(n_heads: int, chosen: list[int], instead: torch.Tensor | None) -> Callable[..., Any]:
    def hook(
        _module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        entering = args[0] if args else kwargs["hidden_states"]
        rows = entering.clone().view(*entering.shape[:-1], n_heads, -1)
        rows[..., chosen, :] = 0.0 if instead is None else instead.to(rows)
        changed = rows.view(entering.shape)
        return ((changed, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": changed})

    return hook


def mean_outputs(model: Model, modules: PreTrainedModel, prompts: Sequence[Ids]) -> torch.Tensor:
    """[n_layers, n_heads, d_head] float32 what heads bring to the output projection, mean over all positions
    of all prompts, the whole model running; zeros where a layer has no heads.
    """
    dims, asked = model.dims, Questions(model, modules, prompts)
    sums = torch.zeros(dims.n_layers, dims.n_heads * dims.d_head, dtype=torch.float64)

    def adding(layer: int) -> Callable[..., None]:
        def hook(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entering = args[0] if args else kwargs["hidden_states"]
            sums[layer] += asked.weight * entering.flatten(0, -2).cpu().sum(dim=0, dtype=torch.float64)

        return hook

    hooks = [(model.o_proj_module(layer), adding(layer)) for layer in model.layers_with_heads]
    with pre_hooks(modules, hooks):
        asked.answers()
    n_tokens = sum(len(prompt) for prompt in prompts)
    return (sums / n_tokens).to(torch.float32).view(dims.n_layers, dims.n_heads, dims.d_head)
