"""The lenses by name, and the source states of the one that reads weights only.

``maps``     weights only, the paper's: layer 0 reads the raw embedding row, later layers the first block's
             MLP of the normed embedding row; no right map, no value bias. Single-token sources.
``neutral``  context-free inference: the model's own state at the value projection after a short neutral
             prefix, averaged over a few fixed prefixes; the full right map and the value bias. Several-token
             sources are read at their last token. Not weights only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from headatlas.architectures import LayerHeads, Model
from headatlas.errors import HeadatlasError
from headatlas.weights import NoModulesError

NEUTRAL_PREFIXES = ("\n", "The", ",", " of")
"""Fixed before any evaluation. Each follows whatever the tokenizer itself puts first."""


@dataclass(frozen=True)
class Lens:
    """A named way to obtain source states."""

    name: str  # as recorded in the atlas and printed on every figure
    prefixes: tuple[str, ...]  # texts put before a source; none for weights-only lenses
    max_source_tokens: int  # longer sources cannot be used
    right_map: bool  # whether the family's right map (and the value bias) is applied
    weights_only: bool  # whether no forward pass is needed
    summary: str  # one sentence for people


LENSES = {
    lens.name: lens
    for lens in (
        Lens(
            name="neutral",
            prefixes=NEUTRAL_PREFIXES,
            max_source_tokens=8,
            right_map=True,
            weights_only=False,
            summary="the model's own state of the source after a short neutral prefix, averaged over four "
            "prefixes: context-free inference, not weights only",
        ),
        Lens(
            name="maps",
            prefixes=(),
            max_source_tokens=1,
            right_map=False,
            weights_only=True,
            summary="weights only, as in the MAPS paper: the embedding row at layer 0, the first MLP of it "
            "later",
        ),
    )
}


@contextmanager
def or_lens_maps() -> Iterator[None]:
    """Add to the refusal of a forward pass that `lens=maps` needs none."""
    try:
        yield
    except NoModulesError as error:
        raise HeadatlasError(f"{str(error).removesuffix('.')}, or use `lens=maps`.") from error


def lens_named(name: str) -> Lens:
    """The lens of that name, or a HeadatlasError that lists the names."""
    try:
        return LENSES[name]
    except KeyError:
        raise HeadatlasError(f"`lens`: there is no lens {name!r}; use {' or '.join(LENSES)}.") from None


@dataclass(frozen=True)
class LayerStates:
    """States of all sources at one layer."""

    x: torch.Tensor  # [n, d_model] float32, what enters the value projection
    control: torch.Tensor  # likewise, what the no-head control sends through the final norm and U
    heads: LayerHeads | None = None  # the layer's heads where the lens had its weights in hand anyway


class States(Protocol):
    """Source states of every layer."""

    def layer(self, layer: int) -> LayerStates:
        """States at a layer."""


class MapsStates:
    """``x_0 = E[s]``; ``x_l = mlp_0(norm(E[s]))`` for later layers (arXiv:2412.11965).

    The control reads the state itself. Positive scales (such as Gemma's √d) change no rank and are left out.
    """

    def __init__(
        self,
        model: Model,
        sources: Sequence[tuple[int, ...]],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Read the embedding rows of sources of one token each, and the first MLP.

        ``progress`` is called with (sources done, sources in all) of the MLP.
        """
        if any(len(source) != 1 for source in sources):
            raise ValueError("the maps lens reads sources of one token only")
        if not model.mlp_modules(0):
            raise HeadatlasError(
                f"{model.checkpoint.spec}: the first block has no MLP, which `lens=maps` needs; use "
                "`lens=neutral`."
            )
        self._first = model.embed([source[0] for source in sources]).to(torch.float32)
        with torch.inference_mode():
            self._later = model.first_mlp(self._first, progress).to(torch.float32)

    def layer(self, layer: int) -> LayerStates:
        rows = self._first if layer == 0 else self._later
        return LayerStates(rows, rows)
