"""Where heads sit and whether categories differ in depth: small statistics on lists of layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

SMALLEST_GROUP = 5
"""Categories with fewer heads are not compared."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Band:
    """The interval first..last of layers (or heads), both included, and how many of the values lie in it."""

    first: int
    last: int
    inside: int

    @property
    def length(self) -> int:
        return self.last - self.first + 1


def shortest_band(values: Ints, share: float) -> Band:
    """The shortest interval that holds at least a share of the values; of equally short ones the one
    that holds most, then the lowest.

    Args:
        values: [n], n > 0, integers in any order.
        share: In (0, 1].
    """
    ordered = np.sort(values)
    # The epsilon keeps 0.8 · 5 from needing 5 values.
    needed = max(1, math.ceil(share * len(ordered) - 1e-9))
    candidates = {
        (int(ordered[at]), int(ordered[at + needed - 1])) for at in range(len(ordered) - needed + 1)
    }
    bands = [Band(a, b, int(((ordered >= a) & (ordered <= b)).sum())) for a, b in candidates]
    return min(bands, key=lambda band: (band.length, -band.inside, band.first))


def quartiles(values: Ints) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile (linear interpolation)."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


@dataclass(frozen=True)
class PairTest:
    """Mann–Whitney test of two groups.

    Attributes:
        first, second: Names of the groups.
        p: Two-sided, after Holm's correction over all pairs.
        r: Rank-biserial correlation, -1 to 1; positive if the first group's values are larger.
    """

    first: str
    second: str
    p: float
    r: float


@dataclass(frozen=True)
class DepthTest:
    """Kruskal–Wallis test over groups, and all pairs of them.

    Attributes:
        sizes: Group → number of values.
        h, p: Test statistic and p (χ² approximation, ties corrected).
        epsilon2: Effect size H / (n - 1): 0 no difference, 1 the largest possible.
        pairs: Every pair of groups.
    """

    sizes: dict[str, int]
    h: float
    p: float
    epsilon2: float
    pairs: tuple[PairTest, ...]


def compare(groups: Mapping[str, Ints]) -> DepthTest | None:
    """Compare groups of layers; those with fewer than five values are left out.

    Returns:
        None if fewer than two groups are left or all values are the same: there is nothing to compare.
    """
    from scipy import stats

    large = {name: np.asarray(values) for name, values in groups.items() if len(values) >= SMALLEST_GROUP}
    if len(large) < 2:
        return None
    together = np.concatenate(list(large.values()))
    if len(np.unique(together)) == 1:
        return None
    h, p = stats.kruskal(*large.values())
    raw, effects = [], []
    for first, second in combinations(large.values(), 2):
        u, p_pair = stats.mannwhitneyu(first, second, alternative="two-sided")
        raw.append(float(p_pair))
        effects.append(2 * float(u) / (len(first) * len(second)) - 1)
    pairs = tuple(
        PairTest(first, second, p_pair, r)
        for (first, second), p_pair, r in zip(combinations(large, 2), holm(raw), effects, strict=True)
    )
    sizes = {name: len(values) for name, values in large.items()}
    return DepthTest(sizes, float(h), float(p), float(h) / (len(together) - 1), pairs)


def holm(p: list[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    largest = 0.0
    for rank, at in enumerate(order):
        largest = max(largest, (len(p) - rank) * p[at])
        adjusted[at] = min(1.0, largest)
    return [float(value) for value in adjusted]
