"""Screening of source tokens: which of them can be in a list of some head, and at which layers?

A pass after all prefixes at once, in whatever arithmetic is quick, proposes: of every head the tokens of
largest gain, and those that its directions seem to read most. They alone go through the model after each
prefix in float32, as deep as the deepest layer that proposed them. Lists are made of those states alone;
copying, a sum over all tokens, takes the rough state of a token that was not followed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from headatlas.architectures import Model
from headatlas.lenses.forward import running
from headatlas.lenses.lens import or_lens_maps
from headatlas.lenses.neutral import NeutralParts, after_all_prefixes, collected, prefix_row
from headatlas.lenses.saved_states import save_array
from headatlas.mapping.bounds import bfloat16_pays
from headatlas.mapping.inputs import LayerInputs
from headatlas.mapping.prepared import PreparedMap
from headatlas.writing.operations import HeadFactors, Ints

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BY_GAIN = 60
"""Tokens of largest rough gain that are followed for each head."""
BY_READING = 6
"""Those with the largest rough product with either end of each direction."""
DEEPEST = "deepest.npy"
TRIED = 64
"""Tokens that go through both ways, to see whether the rough states are like the others."""
TOKENS_A_HEAD = 60
"""So many tokens for each head of the model, or more, are screened."""
UNLIKE = 0.2
"""Relative difference of rough states, as the median of those tried, from which nothing is screened."""


class _LayerScreen:
    """Scores states by what the heads of a layer take from them, in float32, and keeps the best tokens."""

    def __init__(self, inputs: LayerInputs) -> None:
        dims = inputs.dims
        factors = [HeadFactors.of(inputs, head) for head in range(dims.n_heads)]
        self._heads = [
            [own for head, own in enumerate(factors) if dims.kv_head(head) == group]
            for group in range(dims.n_kv_heads)
        ]
        self._by_gain, self._by_reading = _Best(BY_GAIN), _Best(BY_READING)

    def add(self, states: torch.Tensor, start: int) -> None:
        """Take the states of the tokens from a place on."""
        lengths = torch.linalg.vector_norm(states, dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        gains, readings = [], []
        for heads in self._heads:
            values = states @ heads[0].W_V.float()
            for own in heads:
                output = values @ own.L.float() + (own.bias @ own.L).float()
                gains.append(torch.linalg.vector_norm(output, dim=1) / lengths)
                readings.append((values @ own.reading.float()).T / lengths)
        self._by_gain.add(torch.stack(gains), start)
        both = torch.cat(readings)
        self._by_reading.add(torch.cat([both, -both]), start)

    def proposed(self) -> Ints:
        """Places of the best tokens, in any order."""
        places: Ints = torch.cat([self._by_gain.places.ravel(), self._by_reading.places.ravel()]).numpy()
        return places


class _Best:
    """The places of the largest numbers of each row, of numbers that come part by part."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._values: torch.Tensor | None = None
        self.places = torch.empty(0, dtype=torch.int64)

    def add(self, values: torch.Tensor, start: int) -> None:
        """Take [rows, m] numbers of the places from ``start`` on."""
        more = torch.topk(values, min(self._n, values.shape[1]), dim=1)
        if self._values is None:
            self._values, self.places = more.values, more.indices + start
            return
        both = torch.cat([self._values, more.values], dim=1)
        places = torch.cat([self.places, more.indices + start], dim=1)
        self._values, order = torch.topk(both, min(self._n, both.shape[1]), dim=1)
        self.places = places.gather(1, order)


def screening_pays(model: Model, n_tokens: int) -> bool:
    """Whether the tokens that all heads propose are clearly fewer than the tokens there are."""
    heads = len(model.layers_with_heads) * model.dims.n_heads
    return model.only_attention and n_tokens >= TOKENS_A_HEAD * heads


def deepest_layers(
    prepared: PreparedMap, tokens: Ints, folder: Path, device: torch.device, tell: Callable[[int], None]
) -> Ints | None:
    """The last layer at which a token may be in a list of some head, -1 where it is in none.

    The folder keeps that and the rough states; what it keeps is not made again.

    Args:
        prepared: The map.
        tokens: [n] the source tokens.
        folder: One of states of these tokens.
        device: Where the model is put.
        tell: Called with the number of tokens done.

    Returns:
        [n], or None where the rough states of a few tokens are not like their states.
    """
    if (folder / DEEPEST).is_file():
        kept: Ints = np.load(folder / DEEPEST, allow_pickle=False)
        return kept
    model, lens = prepared.model, prepared.options.lens
    prefixes = [prefix_row(model, prefix) for prefix in lens.prefixes]
    with or_lens_maps(), running(model, device) as modules:
        if not _alike(model, modules, tokens, prefixes):
            return None
        screens = {layer: _LayerScreen(_weights(prepared, layer)) for layer in model.layers_with_heads}
        for part in _parts(model, len(tokens)):
            some = tokens[part.start : part.stop].tolist()
            rough = after_all_prefixes(model, modules, some, prefixes, bfloat16=bfloat16_pays(modules.device))
            states = [rough.layer(layer).x for layer in screens]
            for screen, x in zip(screens.values(), states, strict=True):
                screen.add(x, part.start)
            save_array(folder, _file(part), torch.stack(states).to(torch.float16).numpy())
            tell(part.stop)
    deepest = np.full(len(tokens), -1, dtype=np.int64)
    for layer, screen in screens.items():
        deepest[screen.proposed()] = layer
    save_array(folder, DEEPEST, deepest)
    return deepest


def rough_states(model: Model, n_tokens: int, folder: Path, layer: int) -> torch.Tensor:
    """[n, d_model] float32 the rough states of all tokens at a layer, as :func:`deepest_layers` left them."""
    at = model.layers_with_heads.index(layer)
    parts = [np.load(folder / _file(part), mmap_mode="r")[at] for part in _parts(model, n_tokens)]
    return torch.from_numpy(np.concatenate(parts).astype(np.float32))


def _parts(model: Model, n_tokens: int) -> list[range]:
    size = NeutralParts.part_size(model)
    return [range(start, min(start + size, n_tokens)) for start in range(0, n_tokens, size)]


def _file(part: range) -> str:
    return f"rough_{part.start:06d}.npy"


def _weights(prepared: PreparedMap, layer: int) -> LayerInputs:
    """A layer without states."""
    model = prepared.model
    nothing = torch.empty(0, model.dims.d_model)
    use_bias = prepared.options.lens.right_map
    return LayerInputs(model.dims, nothing, model.heads(layer), None, use_bias, nothing, None)


def _alike(model: Model, modules: PreTrainedModel, tokens: Ints, prefixes: Sequence[list[int]]) -> bool:
    """Whether the rough states of a few tokens are like their states, in every layer."""
    tried = tokens[:: max(1, len(tokens) // TRIED)].tolist()
    try:
        rough = after_all_prefixes(model, modules, tried, prefixes, bfloat16=bfloat16_pays(modules.device))
    except (ValueError, TypeError, RuntimeError, AttributeError, IndexError):
        return False  # modules that take no positions, or no mask of their caller's
    true = collected(model, modules, [(token,) for token in tried], prefixes, control=False)

    def off(layer: int) -> float:
        x = true.layer(layer).x
        lengths = torch.linalg.vector_norm(rough.layer(layer).x - x, dim=1)
        return float((lengths / torch.linalg.vector_norm(x, dim=1)).median())

    return all(off(layer) < UNLIKE for layer in model.layers_with_heads)
