"""Calibrate every head × relation of an atlas from its stored calibration cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headatlas.scoring.calibration import Permutations, fit_null

CELL_BEYOND = 255
"""Code in the cell arrays: at or above the ceiling, or in a cell below the floor that was not examined."""
HEADS_AT_A_TIME = 256
"""Heads calibrated together: more need more memory and are hardly faster."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class BlockTargets:
    """Which targets of a calibration block each of its sources accepts.

    Attributes:
        start: [n] where a source's accepted targets begin in ``column``.
        column: Positions among the block's m targets, source after source.
        n_targets: m.
    """

    start: NDArray[np.int64]
    column: NDArray[np.int64]
    n_targets: int


class CellsDisagreeError(Exception):
    """The calibration cells do not hold the hits that the ranks of the pairs say."""


@dataclass(frozen=True)
class Calibration:
    """Arrays [n_layers, n_heads] of one relation and sign: chance level and p; NaN where not mapped."""

    chance: Floats
    p: Floats


def calibrate_relation(
    cells: NDArray[np.uint8],
    accepted: BlockTargets,
    scores: Floats,
    *,
    own: NDArray[np.bool_],
    k: int,
    examined: NDArray[np.bool_],
    permutations: Permutations,
) -> Calibration:
    """Calibrate all heads for one relation and one sign.

    Args:
        cells: [n_layers, n_heads, n·m] stored ranks of the block (:data:`CELL_BEYOND` from the ceiling on).
        accepted: The block's accepted targets.
        scores: [n_layers, n_heads] relation scores at this k; NaN where not mapped.
        own: [n_layers, n_heads, n] which of the block's sources the head hits, by the ranks of the pairs.
        k: Ranks below k are hits.
        examined: [n_layers, n_heads] whose null is fitted. The others get p = 1 and no chance level; their
            cells are not looked at.
        permutations: The relation's permutations, of n sources.

    Raises:
        CellsDisagreeError: The cells of a head give other hits than ``own``, as where their file is gone.
    """
    n, m = len(accepted.start), accepted.n_targets
    chance = np.full(scores.shape, np.nan)
    p = np.where(np.isnan(scores), np.nan, 1.0)
    heads = np.argwhere(examined)
    for group in np.split(heads, range(HEADS_AT_A_TIME, len(heads), HEADS_AT_A_TIME)):
        where = tuple(group.T)
        below = cells[where].reshape(len(group), n, m) < k
        hits = np.logical_or.reduceat(below[:, :, accepted.column], accepted.start, axis=2)
        if not np.array_equal(np.diagonal(hits, axis1=1, axis2=2), own[where]):
            raise CellsDisagreeError
        null = fit_null(hits, permutations)
        chance[where], p[where] = null.chance, null.p
    return Calibration(chance, p)
