"""Relation scores from stored ranks, and their intervals."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RANK_BEYOND = -1
"""The rank is at or above the ceiling."""
RANK_UNUSABLE = -2
"""The pair cannot be used with this tokenizer or lens."""
RANK_MISSING = -3
"""The layer has not been mapped yet."""
RANK_FLAGS = {"beyond_ceiling": RANK_BEYOND, "not_usable": RANK_UNUSABLE, "not_mapped": RANK_MISSING}

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


def source_hits(ranks: NDArray[np.integer], source: NDArray[np.integer], n_sources: int, k: int) -> Bools:
    """Which sources are hit: any accepted target with a rank below k.

    Of [..., n_pairs] ranks of one relation's usable pairs (promotion or suppression) and the source of each,
    0 … n_sources - 1 in ascending order, it is [..., n_sources]. The best rank among a source's targets
    decides, so promotion follows the best-scoring accepted target and suppression, whose ranks are those of
    the negated logits, the worst-scoring one.
    """
    below = (ranks >= 0) & (ranks < k)
    starts = np.flatnonzero(np.diff(source, prepend=-1))
    if len(starts) != n_sources:
        raise ValueError(f"{len(starts)} sources have pairs, expected {n_sources}")
    return np.logical_or.reduceat(below, starts, axis=-1)


def wilson(hits: NDArray[np.integer], n: int | NDArray[np.integer]) -> tuple[Floats, Floats]:
    """Wilson score interval at 95 % for hits out of n (of all, or of each): (low, high), same shape as hits.

    Treats sources as independent draws from the relation; it says nothing about other relations.
    """
    z2 = NormalDist().inv_cdf(0.975) ** 2
    share = hits / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # Exactly 0 and 1 at the ends, whatever the rounding; the interval always holds the share.
    low = np.where(hits == 0, 0.0, np.minimum(centre - half, share))
    high = np.where(hits == n, 1.0, np.maximum(centre + half, share))
    return low, high


def false_discovery_rates(p: Floats) -> Floats:
    """Benjamini–Hochberg q of every cell over all cells given; NaN (not mapped) stays NaN.

    The numbers are those of ``scipy.stats.false_discovery_control``, whose import takes longer than all else
    that a command on a finished atlas does.
    """
    q = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p.ravel()[known], kind="stable")]
    raised = p.ravel()[order] * (len(order) / np.arange(1, len(order) + 1))
    q.ravel()[order] = np.minimum(np.minimum.accumulate(raised[::-1])[::-1], 1.0)
    return q


def p_value(value: float, name: str = "p") -> str:
    """``p = 0.031`` or, below 0.001, ``p < 0.001``."""
    return f"{name} < 0.001" if value < 0.001 else f"{name} = {value:.2g}"
