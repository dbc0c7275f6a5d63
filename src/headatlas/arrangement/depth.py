"""How deep each category's heads sit, whether categories differ, and the same on single-token sources.

The state of a source of several tokens is that of its last token and may hold what earlier layers put there,
so a trend over layers could come from such sources alone. Reading the stored ranks again without them tells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from headatlas.atlas.atlas import Atlas
from headatlas.atlas.relation_scores import EXAMINED, SIGNS, examined
from headatlas.atlas.store import load, read_array
from headatlas.relations.tokenising import MIN_SOURCES, MIN_TARGETS

SMALLEST_GROUP = 5
"""Categories with fewer heads are not compared."""

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def layers_by_category(atlas: Atlas, heads: pd.DataFrame) -> dict[str, Ints]:
    """Category → layers of its heads.

    Args:
        heads: What ``atlas.categories()`` gave.
    """
    return {
        name: heads["layer"].to_numpy(dtype=np.int64)[
            np.array([name in which for which in heads["which"]], bool)
        ]
        for name in atlas.category_names
    }


@dataclass(frozen=True)
class CategoryDepth:
    """Where the heads of one category sit: their layers, ascending, and the quartiles."""

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
    rows = [
        CategoryDepth(name, tuple(int(layer) for layer in layers), *quartiles(layers))
        for name, layers in groups.items()
    ]
    return Depth(tuple(rows), compare_depths(groups))


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


def compare_depths(groups: Mapping[str, Ints]) -> DepthTest | None:
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


# Fewer pairs ----------------------------------------------------------------------------------------


def all_single(atlas: Atlas) -> bool:
    """Whether every usable source is one token."""
    usable = read_array(atlas.dataset, "pair_source") >= 0
    return bool((read_array(atlas.dataset, "pair_source_tokens")[usable] == 1).all())


def single_token_atlas(atlas: Atlas) -> Atlas:
    """The atlas restricted to sources of one token; nothing is mapped again.

    Relations left with too few sources or targets are left out, with the reason. A head whose score on all
    sources was below the calibration floor was not examined: its p is 1 here, too, whatever its score.

    Raises:
        HeadatlasError: A file of the atlas is damaged or cannot be read.
    """
    data = load(atlas.dataset)
    keep = (data["pair_source"].values >= 0) & (data["pair_source_tokens"].values == 1)
    small = restrict(data, keep, int(atlas.provenance["ceiling"]))
    return Atlas(small, atlas.provenance, atlas.thresholds, atlas.path)


def restrict(data: xr.Dataset, keep: Bools, ceiling: int) -> xr.Dataset:
    """A copy of an atlas's dataset in which only some pairs are usable.

    Args:
        data: The dataset, loaded.
        keep: [pair] which usable pairs stay.
        ceiling: The atlas's ceiling.
    """
    relation, source = data["pair_relation"].values, data["pair_source"].values
    new_source = np.full_like(source, -1)
    left_out = data["left_out"].values.copy()
    n_sources, n_targets = data["n_sources"].values.copy(), data["n_targets"].values.copy()
    cell_index = data["cell_source_index"].values.copy()
    keep_row = np.zeros(len(cell_index), dtype=bool)
    for at in range(len(left_out)):
        mine = keep & (relation == at)
        kept = np.unique(source[mine])
        rows = data["cell_source_relation"].values == at
        stays = np.isin(cell_index, kept) & rows
        n_sources[at] = len(kept)
        n_targets[at] = len(np.unique(data["pair_target_id"].values[mine]))
        if not left_out[at]:
            left_out[at] = _why_left_out(n_sources[at], n_targets[at], int(stays.sum()))
        if left_out[at]:
            continue
        new_source[mine] = np.searchsorted(kept, source[mine])
        cell_index[stays] = np.searchsorted(kept, cell_index[stays])
        keep_row |= stays
    small = data.isel(cell=_cells(data, keep_row), cell_source=keep_row)
    changed: dict[str, tuple[str | tuple[str, ...], NDArray[Any]]] = {
        "pair_source": ("pair", new_source),
        "n_sources": ("relation", n_sources),
        "n_targets": ("relation", n_targets),
        "left_out": ("relation", left_out),
        "cell_source_index": ("cell_source", cell_index[keep_row]),
    }
    for sign in SIGNS:
        changed[EXAMINED.format(sign=sign)] = ("layer", "head", "relation"), examined(data, sign, ceiling)
    # Scores stored beside the ranks are those of all sources; without their key, readers compute anew.
    return small.assign_attrs(scores_of="").assign(changed)


def _why_left_out(n_sources: int, n_targets: int, n_calibrated: int) -> str:
    if n_sources < MIN_SOURCES:
        return f"{n_sources} sources of one token, at least {MIN_SOURCES} needed"
    if n_targets < MIN_TARGETS:
        return f"{n_targets} distinct targets, at least {MIN_TARGETS} needed"
    return "" if n_calibrated >= MIN_TARGETS else "too few of its sources of one token were calibrated"


def _cells(data: xr.Dataset, keep_row: Bools) -> Bools:
    """[cell] the cells of the calibration sources that stay; blocks are (sources × targets), row by row."""
    row_relation = data["cell_source_relation"].values
    n_targets = np.bincount(data["cell_target_relation"].values, minlength=data.sizes["relation"])
    return np.repeat(keep_row, n_targets[row_relation])
