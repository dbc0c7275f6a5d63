"""Depth of each category's heads, tests of differences, and both on single-token sources alone.

The state of a source of several tokens is that of its last token and may hold what earlier layers put there,
so a trend over layers could come from such sources alone. Reading the stored ranks again without them tells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headatlas.atlas.atlas import Atlas
from headatlas.atlas.relation_scores import single_token_dataset

SMALLEST_GROUP = 5
"""Categories with fewer heads are not compared."""

Ints = NDArray[np.int64]


def layers_by_category(atlas: Atlas, heads: pd.DataFrame) -> dict[str, Ints]:
    """Category → layers of its heads.

    Args:
        heads: What ``atlas.categories()`` gave.
    """
    each = heads.explode("which")
    return {
        name: each["layer"][each["which"] == name].to_numpy(dtype=np.int64) for name in atlas.category_names
    }


@dataclass(frozen=True)
class CategoryDepth:
    """Layers of the heads of one category, ascending, and their quartiles."""

    category: str
    layers: tuple[int, ...]
    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Depth:
    """Categories that have heads, and their comparison (None where there is nothing to compare)."""

    categories: tuple[CategoryDepth, ...]
    comparison: DepthTest | None


def depth_by_category(atlas: Atlas) -> Depth:
    """Layers of each category's heads, promoting or suppressing, and Kruskal–Wallis over the categories."""
    groups = layers_by_category(atlas, atlas.categories())
    groups = {name: np.sort(layers) for name, layers in groups.items() if len(layers)}
    rows = tuple(
        CategoryDepth(name, tuple(layers.tolist()), *quartiles(layers)) for name, layers in groups.items()
    )
    return Depth(rows, compare_depths(groups))


# Statistics on lists of layers ----------------------------------------------------------------------


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
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return low, middle, high


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


def compare_depths(groups: Mapping[str, Ints]) -> DepthTest | None:
    """Compare groups of layers; those with fewer than five values are left out.

    Returns:
        None if fewer than two groups are left or all values are the same: there is nothing to compare.
    """
    large = {name: np.asarray(values) for name, values in groups.items() if len(values) >= SMALLEST_GROUP}
    if len(large) < 2 or len(np.unique(np.concatenate(list(large.values())))) == 1:
        return None
    h, p = kruskal_wallis(list(large.values()))
    tests = [mann_whitney(first, second) for first, second in combinations(large.values(), 2)]
    adjusted = holm([p_pair for p_pair, _ in tests])
    pairs = tuple(
        PairTest(first, second, p_pair, r)
        for (first, second), p_pair, (_, r) in zip(combinations(large, 2), adjusted, tests, strict=True)
    )
    sizes = {name: len(values) for name, values in large.items()}
    return DepthTest(sizes, h, p, h / (sum(sizes.values()) - 1), pairs)


# Of scipy.stats these would be two lines, but its import takes as long as all else that describes an atlas.


def kruskal_wallis(groups: Sequence[Ints]) -> tuple[float, float]:
    """Kruskal–Wallis H, corrected for ties, and its p by the χ² approximation."""
    together = np.concatenate(groups)
    ranks, ties = _mean_ranks(together)
    n, parts = len(together), np.split(ranks, np.cumsum([len(group) for group in groups])[:-1])
    h = 12 / (n * (n + 1)) * sum(part.sum() ** 2 / len(part) for part in parts) - 3 * (n + 1)
    h = float(h / (1 - ties / (n**3 - n)))
    return h, chi_square_tail(h, len(groups) - 1)


def mann_whitney(first: Ints, second: Ints) -> tuple[float, float]:
    """Two-sided p of the Mann–Whitney test and the rank-biserial correlation.

    Without ties and with at most eight values in one group p is exact; else it is the normal approximation,
    corrected for ties and continuity.
    """
    n_1, n_2 = len(first), len(second)
    ranks, ties = _mean_ranks(np.concatenate([first, second]))
    u = float(ranks[:n_1].sum()) - n_1 * (n_1 + 1) / 2
    r = 2 * u / (n_1 * n_2) - 1
    if ties == 0 and min(n_1, n_2) <= 8:
        from scipy import stats

        return float(stats.mannwhitneyu(first, second, method="exact").pvalue), r
    n = n_1 + n_2
    deviation = math.sqrt(n_1 * n_2 / 12 * (n + 1 - ties / (n * (n - 1))))
    z = (abs(u - n_1 * n_2 / 2) - 0.5) / deviation if deviation > 0 else 0.0
    return min(1.0, math.erfc(z / math.sqrt(2))), r


def _mean_ranks(values: Ints) -> tuple[NDArray[np.float64], int]:
    """Ranks from 1, ties at their mean; and Σ t³ − t over ties of t values."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return ranks[inverse], int((counts**3 - counts).sum())


def chi_square_tail(x: float, degrees: int) -> float:
    """P(χ² ≥ x), in closed form for a whole number of degrees of freedom."""
    half = x / 2
    tail = math.exp(-half) if degrees % 2 == 0 else math.erfc(math.sqrt(half))
    for power in np.arange(1 if degrees % 2 == 0 else 0.5, degrees / 2):
        tail += math.exp(-half) * half**power / math.gamma(power + 1)
    return float(tail)


def holm(p: list[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(np.arange(len(p), 0, -1) * np.asarray(p)[order]).clip(max=1.0)
    return [float(value) for value in adjusted]


# Sources of one token -------------------------------------------------------------------------------


def single_token_atlas(atlas: Atlas) -> Atlas:
    """The atlas restricted to sources of one token; nothing is mapped again.

    Relations left with too few sources or targets are left out, with the reason. A head whose score on all
    sources was below the calibration floor was not examined: its p is 1 here, too, whatever its score.
    """
    small = single_token_dataset(atlas.dataset, int(atlas.provenance["ceiling"]), atlas.place)
    return Atlas(small, atlas.provenance, atlas.thresholds, atlas.place)
