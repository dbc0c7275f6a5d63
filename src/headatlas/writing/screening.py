"""Screening of source tokens: which of them can be in a list of some head, and at which layers?

A pass after all prefixes at once, in whatever arithmetic is quick, gives rough values x·W_V of every token at
every layer. The rank that a token has by these says how likely it is in the list of a head, or among what a
direction reads. Tokens that promise enough are followed: they go through the model after each prefix in
float32, as deep as pays. Lists are made of those states alone; copying, a sum over all tokens, takes the
rough values of a token that was not followed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import torch

from headatlas.architectures import Model
from headatlas.atlas.salience import N_SOURCES, N_TOKENS
from headatlas.devices import share_cores
from headatlas.lenses import NeutralParts
from headatlas.lenses.forward import running, twin
from headatlas.lenses.lens import or_lens_maps
from headatlas.lenses.neutral import after_all_prefixes, collected, make_parts, prefix_row
from headatlas.lenses.saved_states import save_array, whole_array
from headatlas.mapping.bounds import bfloat16_pays
from headatlas.mapping.inputs import LayerInputs
from headatlas.mapping.prepared import PreparedMap
from headatlas.progress import Progress, Report, steps
from headatlas.writing.operations import Floats, HeadFactors, Ints, all_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHOICE = "followed.npy"
PRICE = 0.008
"""Entries of lists that a token must promise for each block that it goes through."""
REACH = 3
"""Of the best tokens of each list, so many times as it holds are thought of."""
READING = 0.3
"""An entry of what a direction reads counts as so many of a list of sources."""
STEEP = 4.5
"""How fast chances fall with rough ranks."""
TRIED = 32
"""Tokens that go through both ways, to see whether the rough states are like the others."""
TOKENS_A_HEAD = 60
"""So many tokens for each head of the model, or more, are screened."""
UNLIKE = 0.2
"""Relative difference of rough states, as the median of those tried, from which nothing is screened."""


class Screening:
    """Source tokens of which some are followed through the model, and rough values of the others.

    Attributes:
        followed: [m] places of those that are followed, the deepest first.
        deepest: [m] the last layer of each.
    """

    def __init__(self, prepared: PreparedMap, tokens: Ints, folder: Path) -> None:
        self.followed = self.deepest = np.empty(0, dtype=np.int64)
        self._prepared, self._tokens, self._folder = prepared, tokens, folder
        self._layers = prepared.model.layers_with_heads
        self._modules: PreTrainedModel | None = None
        self._reading = Lock()

    @classmethod
    def of(
        cls, prepared: PreparedMap, tokens: Ints, folder: Path, device: torch.device, tell: Report
    ) -> Screening | None:
        """Choose which of some tokens are followed.

        The folder keeps the choice, the rough values and the states; what it keeps is not made again.

        Args:
            prepared: The map.
            tokens: [n] ids of the source tokens, ascending.
            folder: One of states of these tokens.
            device: Where the model is put.
            tell: Called with each step.

        Returns:
            None where the rough states of a few tokens are not like their states.
        """
        made = cls(prepared, tokens, folder)
        if not (folder / CHOICE).is_file():
            if not made._roughly(device, tell):
                return None
            made._choose()
        made.followed, made.deepest = np.load(folder / CHOICE, allow_pickle=False)
        return made

    def states(self, device: torch.device, tell: Report) -> NeutralParts:
        """The states of the tokens that are followed, in their order, each as deep as it goes."""
        modules, self._modules = self._modules, None
        return NeutralParts.compute(
            self._prepared.model,
            [(token,) for token in self._tokens[self.followed].tolist()],
            self._prepared.options.lens.prefixes,
            self._folder,
            progress=steps(tell, "states"),
            device=device,
            deepest=self.deepest.tolist(),
            modules=modules,
        )

    def given(self, layer: int, inputs: LayerInputs) -> tuple[LayerInputs, Ints, tuple[torch.Tensor, Ints]]:
        """Arguments of :meth:`Operations.layer`, from inputs with the states of tokens followed so deep."""
        # Equal numbers go by the order of rows, which is to be that of ids.
        places = self.followed[: len(inputs.states)]
        order = np.argsort(places)
        rough = self._rough(layer)[:, :-1], self._tokens
        return replace(inputs, states=inputs.states[order]), self._tokens[places[order]], rough

    def _roughly(self, device: torch.device, tell: Report) -> bool:
        """Send all tokens through the model after all prefixes at once, and save what heads take from them.

        False where the rough states are of no use.
        """
        model, tokens = self._prepared.model, self._tokens
        tell(Progress("states", 0, len(tokens), "choosing tokens"))
        prefixes = [prefix_row(model, prefix) for prefix in self._prepared.options.lens.prefixes]
        with or_lens_maps(), running(model, device) as modules:
            rounded = twin(modules, torch.bfloat16 if bfloat16_pays(modules.device) else None)
            if not _alike(model, modules, rounded, tokens, prefixes):
                return False
            self._modules = modules
            weights = {layer: all_groups(model.heads(layer).W_V) for layer in self._layers}
            width = 1 + model.dims.n_kv_heads * model.dims.d_head
            todo = [
                part
                for part in self._parts()
                if not whole_array(self._folder / _file(part), (len(weights), len(part), width))
            ]
            before = len(tokens) - sum(map(len, todo))

            def make(mine: PreTrainedModel, part: range, done: Callable[[int], None]) -> None:
                some = tokens[part.start : part.stop].tolist()
                rough = after_all_prefixes(model, mine, some, prefixes, onto=weights, progress=done)
                values = torch.stack([rough.layer(layer).x for layer in self._layers])
                save_array(self._folder, _file(part), values.numpy())

            make_parts(
                make,
                rounded,
                todo,
                lambda done: tell(Progress("states", before + done, len(tokens), "choosing tokens")),
            )
        return True

    def _choose(self) -> None:
        """Save which tokens are followed, and how deep: to where they promise most beyond the price."""
        layers = np.array(self._layers)
        by_layer = dict(share_cores(lambda layer, _: self._promised(layer), self._layers))
        promised = np.cumsum([by_layer[layer] for layer in self._layers], axis=0)
        # No pass ends before the second layer (:class:`NeutralParts`).
        beyond = promised - PRICE * layers.clip(min=1)[:, None]
        deepest = np.where(beyond.max(axis=0) > 0, layers[beyond.argmax(axis=0)], -1)
        followed = np.argsort(-deepest, kind="stable")[: int((deepest >= 0).sum())]
        save_array(self._folder, CHOICE, np.stack([followed, deepest[followed]]))

    def _promised(self, layer: int) -> Floats:
        """[n] entries that each token is likely to have in the lists of a layer's heads, by rough values."""
        dims, rough = self._prepared.model.dims, self._rough(layer)
        lengths = rough[:, -1].clamp(min=torch.finfo(torch.float32).tiny)
        by_group = [part.contiguous() for part in torch.split(rough[:, :-1], dims.d_head, dim=1)]
        gains, readings = [], []
        inputs = self._weights(layer)
        for head in range(dims.n_heads):
            own = HeadFactors.of(inputs, head)
            mine = by_group[dims.kv_head(head)]
            written, read = own.roughly(mine)
            gains.append(written / lengths)
            readings.append(read.T / lengths)
        both = torch.cat(readings)
        entries = _likely(torch.stack(gains), N_SOURCES)
        entries += READING * (_likely(both, N_TOKENS) + _likely(-both, N_TOKENS))
        return entries.numpy()

    def _rough(self, layer: int) -> torch.Tensor:
        """[n, n_kv_heads · d_head + 1] float32 rough values of all tokens at a layer, and ‖x‖."""
        at = self._layers.index(layer)
        parts = [np.load(self._folder / _file(part), mmap_mode="r")[at] for part in self._parts()]
        return torch.from_numpy(np.concatenate(parts))

    def _parts(self) -> list[range]:
        n, size = len(self._tokens), NeutralParts.part_size(self._prepared.model)
        return [range(start, min(start + size, n)) for start in range(0, n, size)]

    def _weights(self, layer: int) -> LayerInputs:
        """A layer without states."""
        model = self._prepared.model
        nothing = torch.empty(0, model.dims.d_model)
        use_bias = self._prepared.options.lens.right_map
        with self._reading:
            heads = model.heads(layer)
        return LayerInputs(model.dims, nothing, heads, None, use_bias, nothing, None)


def _likely(numbers: torch.Tensor, size: int) -> torch.Tensor:
    """[n] float64 entries that tokens are likely to have in lists of this size, by rough numbers [lists, n].

    The chance of rank r is 1 / (1 + (r / size) ** STEEP): a half where the list ends.
    """
    places = torch.topk(numbers, min(REACH * size, numbers.shape[1]), dim=1).indices
    ranks = torch.arange(places.shape[1], dtype=torch.float64) + 0.5
    chances = (1 / (1 + (ranks / size) ** STEEP)).expand(places.shape)
    return numbers.new_zeros(numbers.shape[1], dtype=torch.float64).index_add_(
        0, places.ravel(), chances.ravel()
    )


def _file(part: range) -> str:
    return f"rough_{part.start:06d}.npy"


def screening_pays(model: Model, n_tokens: int) -> bool:
    """Whether the tokens that all heads propose are clearly fewer than the tokens there are."""
    heads = len(model.layers_with_heads) * model.dims.n_heads
    return model.only_attention and n_tokens >= TOKENS_A_HEAD * heads


def _alike(
    model: Model,
    modules: PreTrainedModel,
    rounded: PreTrainedModel,
    tokens: Ints,
    prefixes: Sequence[list[int]],
) -> bool:
    """Whether the rough states of a few tokens are like their states, in every layer."""
    tried = tokens[:: max(1, len(tokens) // TRIED)].tolist()
    try:
        rough = after_all_prefixes(model, rounded, tried, prefixes)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, RuntimeError, AttributeError, IndexError):
        return False  # modules that take no positions, or no mask of their caller's
    true = collected(model, modules, [(token,) for token in tried], prefixes, control=False)

    def off(layer: int) -> float:
        x = true.layer(layer).x
        lengths = torch.linalg.vector_norm(rough.layer(layer).x - x, dim=1)
        return float((lengths / torch.linalg.vector_norm(x, dim=1)).median())

    return all(off(layer) < UNLIKE for layer in model.layers_with_heads)
