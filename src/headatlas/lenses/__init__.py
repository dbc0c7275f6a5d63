"""Lenses: the source states of every layer, and the right map that goes with them."""

from headatlas.lenses.lens import (
    LENSES,
    NEUTRAL_PREFIXES,
    LayerStates,
    Lens,
    MapsStates,
    States,
    lens_named,
    or_lens_maps,
)
from headatlas.lenses.neutral import NeutralParts, NeutralStates
from headatlas.lenses.streaming import StreamedStates

__all__ = [
    "LENSES",
    "NEUTRAL_PREFIXES",
    "LayerStates",
    "Lens",
    "MapsStates",
    "NeutralParts",
    "NeutralStates",
    "States",
    "StreamedStates",
    "lens_named",
    "or_lens_maps",
]
