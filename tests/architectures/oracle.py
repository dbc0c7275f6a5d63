"""The comparisons of `headatlas.architectures.oracle` with the tolerance of the tests, number by number."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, Literal

import pytest
import torch
from transformers import PreTrainedModel

from headatlas.architectures import Model
from headatlas.architectures.oracle import (
    COMPARISONS,
    Compared,
    directions_of,
    of_head,
    random_ids,
    recorded,
    values_of_head,
)
from headatlas.errors import HeadatlasError

# transformers computes RMS norms in float32 whatever the model's dtype.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
PARTS = tuple(COMPARISONS)
Factor = Literal["none", "source", "head"]
"""Positive factors, which change no rank, that are left open when values are compared: none; one for each
source (values made from a latent, whose norm divides by a number of the source); or one for each source and
head (attention sinks and gates, which take a share of what a head passes on)."""


def hold(model: Model, modules: PreTrainedModel, *parts: str) -> None:
    """Hold a model against modules, in all parts or some."""
    for part in parts or PARTS:
        if part == "first MLP" and not model.mlp_modules(0):
            with pytest.raises(HeadatlasError, match="the first block has no MLP"):
                model.first_mlp(torch.ones(1, model.dims.d_model))
            continue
        more = weighted_values(model, modules) if part == "values of every head" else ()
        found = 0
        for each in chain(COMPARISONS[part](model, modules), more):
            tolerance = {} if each.stored else CLOSE
            torch.testing.assert_close(
                each.ours,
                each.theirs,
                check_dtype=False,
                msg=lambda why, at=each.part: f"{at}: {why}",
                **tolerance,
            )
            found += 1
        assert found, part


def weighted_values(model: Model, modules: PreTrainedModel) -> Iterator[Compared]:
    """Values of the recorded x_l, weighted by attention, against what enters the output projections.

    Texts have several tokens where attention is known, and as few factors as possible are left open.
    """
    tokens, factor = as_far_as_known(model)
    layers = model.layers_with_heads
    paths = {layer: (model.value_input_module(layer), model.o_proj_module(layer)) for layer in layers}
    more: dict[str, Any] = {"output_attentions": True} if tokens > 1 else {}
    with recorded(modules, [path for both in paths.values() for path in both]) as (entering, _):
        ran = modules(random_ids(model, tokens), **more)
    for place, (layer, (source, output)) in enumerate(paths.items()):
        heads, dims, passed = model.heads(layer), model.dims, entering[output]
        ours = [values_of_head(heads, dims, head, entering[source]) for head in range(dims.n_heads)]
        if tokens > 1:
            only_heads = len(ran.attentions) < dims.n_layers
            weights = ran.attentions[place if only_heads else layer].detach().cpu().double()
            ours = [weights[:, head] @ own for head, own in enumerate(ours)]
        if factor == "source":
            yield Compared(
                f"values of layer {layer}", directions_of(torch.cat(ours, dim=-1)), directions_of(passed)
            )
            continue
        for head, own in enumerate(ours):
            both = own, of_head(passed, head, dims)
            yield Compared(
                f"weighted values of head {layer}.{head}",
                *(both if factor == "none" else map(directions_of, both)),
            )


def as_far_as_known(model: Model) -> tuple[int, Factor]:
    """How long the texts are and which positive factors are left open when values are compared.

    Values made from a latent are known up to a positive number per source: there a source is alone, so that
    it attends to itself, and all heads together must be off by the same number.
    """
    section = model.family.safetensors
    if any(value.layout == "latent" for value in section.value):
        return 1, "source"
    # Some modules with sinks return attention before the sink took its share; LFM3 scales whole heads.
    sinks = any(other.stem.endswith(("sinks!", "g_proj")) for other in section.other)
    gated = any("gate between 0 and 1" in caveat.text for caveat in section.caveats)
    return 6, "head" if sinks or gated else "none"
