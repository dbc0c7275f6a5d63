"""The structure of one atlas: likeness within key/value groups, relations per head, depth.

*Groups.* Heads are compared by the cosine of their score vectors, one number a relation, in two ways: with
``signed`` numbers (promotion minus suppression: heads that do opposite things come out opposed), and
``unsigned`` (the larger of the two: heads that deal with the same relations come out alike, whatever they do
to the targets). Scores below the calibration floor count as 0, and heads that have no other are left out.
Within a layer, pairs of one group are compared with pairs of different groups, so depth, which both have in
common, explains nothing.

*Relations per head.* The null keeps how many heads of each layer each relation has, and deals them to the
layer's heads independently of the other relations. The expected counts are exact (a sum of Poisson-binomial
distributions). Whether relations gather on few heads is tested with the variance of relations per head within
layers, by permutation.

*Depth.* The state of a source of several tokens is that of its last token and may hold what earlier layers
put there, so a trend over layers could come from such sources alone. Reading the stored ranks again without
them tells.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headatlas.atlas.atlas import Atlas, atlas_of
from headatlas.atlas.relation_scores import all_single, single_token_dataset
from headatlas.options import FLOOR
from headatlas.scoring.scores import p_value
from headatlas.showing import safe_text

MEASURES = ("signed", "unsigned")
GROUP_RESAMPLES = 9_999
CALL_RESAMPLES = 1_999
FEWEST_LAYERS = 3
"""Intervals need at least this many layers to resample."""
MOST_CATEGORIES = 8
"""Of a structure that is printed."""
SMALLEST_GROUP = 5
"""Categories with fewer heads are not compared."""

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Structure:
    """Arrangement of what the heads of one model do.

    Attributes:
        groups: Likeness within key/value groups, by both measures; empty where it cannot be tested.
        no_groups: Why it cannot, or None.
        per_head: Relations per head; None if nothing is mapped or scored.
        depths: Layers of each category's heads.
        depths_single: The same on sources of one token; None if all sources are.
    """

    groups: tuple[Likeness, ...]
    no_groups: str | None
    per_head: RelationsPerHead | None
    depths: Depth
    depths_single: Depth | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def __repr__(self) -> str:
        groups = [
            f"  {each.measure}: within {each.within:.2f}, between {each.between:.2f}, {p_value(each.p)}"
            for each in self.groups
        ]
        lines = ["Key/value groups (.groups): cosine of scores", *(groups or [f"  {self.no_groups}"])]
        if (per_head := self.per_head) is not None:
            counts = ", ".join(f"{n} with {at}" for at, n in enumerate(per_head.observed))
            lines += ["Relations per head (.per_head)", f"  of {per_head.n_heads} heads {counts}"]
            if per_head.p is not None:
                lines += [f"  variance {per_head.dispersion:.2f} times that by chance, {p_value(per_head.p)}"]
        lines += ["Layers of each category's heads (.depths)"]
        lines += [
            f"  {each.category}: {len(each.layers)} heads, median layer {each.median:g}, "
            f"quartiles {each.lower_quartile:g} to {each.upper_quartile:g}"
            for each in self.depths.categories[:MOST_CATEGORIES]
        ]
        if (more := len(self.depths.categories) - MOST_CATEGORIES) > 0:
            lines += [f"  and {more} more categories"]
        if self.depths.comparison is not None:
            lines += [f"  Kruskal–Wallis: {p_value(self.depths.comparison.p)}"]
        return safe_text("\n".join(lines), keep="\n")


def structure(atlas: Atlas | str | Path) -> Structure:
    """Everything about one atlas, or about that at a path, with the thresholds that it is read with."""
    atlas = atlas_of(atlas)
    groups, why, calls = group_likeness(atlas), why_no_groups(atlas), called_cells(atlas)
    if not groups and why is None:
        why = "no layer has pairs of scoring heads both within a group and between groups"
    return Structure(
        groups=groups,
        no_groups=why,
        per_head=count_per_head(calls) if calls.size else None,
        depths=depth_by_category(atlas),
        depths_single=None if all_single(atlas.dataset) else depth_by_category(single_token_atlas(atlas)),
    )


# Likeness within key/value groups --------------------------------------------------------------------


@dataclass(frozen=True)
class LayerLikeness:
    """One layer: number of heads that could be compared, pairs of each kind and their mean cosine."""

    layer: int
    n_heads: int
    n_within: int
    n_between: int
    within: float
    between: float


@dataclass(frozen=True)
class Likeness:
    """Cosine of pairs of heads within groups, compared with pairs of different groups of a layer."""

    measure: str  # ``signed`` or ``unsigned``
    difference: float
    """Mean over the pairs within groups of (their cosine minus the mean cosine between groups of their
    layer): 0 no more alike than others."""
    low: float | None
    high: float | None
    """95 % bootstrap interval over layers (percentile); None with fewer than three layers."""
    p: float  # two-sided permutation p: heads are dealt to the groups of their layer at random
    within: float
    between: float  # the two means that are compared; between is weighted as within is
    by_layer: tuple[LayerLikeness, ...]  # layers that have pairs of both kinds

    @property
    def n_within(self) -> int:
        return sum(layer.n_within for layer in self.by_layer)

    @property
    def n_between(self) -> int:
        return sum(layer.n_between for layer in self.by_layer)


def group_of_head(atlas: Atlas) -> Ints | None:
    """[n_heads] the key/value group of each head, or None if the atlas does not say."""
    n_groups = atlas.provenance["model"].get("dims", {}).get("n_kv_heads")
    if not n_groups or atlas.n_heads % n_groups:
        return None
    return np.arange(atlas.n_heads) // (atlas.n_heads // int(n_groups))


def why_no_groups(atlas: Atlas) -> str | None:
    """The reason why groups cannot be compared in this model, or None if they can."""
    groups = group_of_head(atlas)
    if groups is None:
        return "the atlas does not say how many key/value heads the model has"
    n_groups = int(groups[-1]) + 1
    if n_groups == 1:
        return "all heads of a layer share one key/value group, so there is nothing to compare within a layer"
    if n_groups == atlas.n_heads:
        return "every head has a key/value head of its own: there are no groups"
    return None


def group_likeness(atlas: Atlas) -> tuple[Likeness, ...]:
    """Both measures; empty where groups cannot be compared, or no layer has pairs of both kinds."""
    groups = group_of_head(atlas)
    if groups is None or why_no_groups(atlas) is not None:
        return ()
    found = (likeness_of(measure, score_vectors(atlas, measure), groups) for measure in MEASURES)
    return tuple(each for each in found if each is not None)


def score_vectors(atlas: Atlas, measure: str) -> Floats:
    """[n_layers, n_heads, n_relations] what is compared; NaN in layers that are not mapped."""
    scores = atlas.scores.values
    promotion, suppression = np.where(scores < FLOOR, 0.0, scores)
    return np.asarray(promotion - suppression if measure == "signed" else np.maximum(promotion, suppression))


def cosines(vectors: Floats) -> Floats:
    """[n, n] cosine of every pair of the rows, none of which is zero."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(unit @ unit.T)


def _means(cosine: Floats, group: Ints) -> tuple[Floats, Floats, Ints]:
    """Mean cosine within and between groups and number of pairs within, for each row of groups [m, n]."""
    above = np.triu_indices(len(cosine), k=1)
    same = group[:, above[0]] == group[:, above[1]]
    values, n_within = cosine[above], same.sum(axis=1)
    within = (same * values).sum(axis=1)
    return within / n_within, (values.sum() - within) / (len(values) - n_within), n_within


def likeness_of(
    measure: str, vectors: Floats, groups: Ints, *, resamples: int = GROUP_RESAMPLES
) -> Likeness | None:
    """Compare pairs within groups [n_heads] and between them; None if no layer has pairs of both kinds.

    ``vectors`` are [n_layers, n_heads, n_relations], NaN in layers that are not mapped.
    """
    parts = {at: part for at, rows in enumerate(vectors) if (part := _comparable(rows, groups)) is not None}
    if not parts:
        return None
    seen = tuple(_summary(at, *part) for at, part in parts.items())
    weight = np.array([each.n_within for each in seen], dtype=float)
    within, between = np.array([[each.within, each.between] for each in seen]).T
    differences = within - between
    low, high = _interval(differences, weight, resamples)
    observed = float(np.average(differences, weights=weight))
    return Likeness(
        measure=measure,
        difference=observed,
        low=low,
        high=high,
        p=_p_of_likeness(list(parts.values()), weight, observed, resamples),
        within=float(np.average(within, weights=weight)),
        between=float(np.average(between, weights=weight)),
        by_layer=seen,
    )


def _comparable(rows: Floats, groups: Ints) -> tuple[Floats, Ints] | None:
    """Cosines and groups of a layer's heads that have a direction, if they make pairs of both kinds."""
    usable = np.nan_to_num(rows).any(axis=1)
    group = groups[usable]
    sizes = np.unique(group, return_counts=True)[1]
    if len(sizes) < 2 or sizes.max() < 2:
        return None
    return cosines(rows[usable]), group


def _summary(layer: int, cosine: Floats, group: Ints) -> LayerLikeness:
    (within,), (between,), (n_within,) = _means(cosine, group[None])
    n = len(group)
    return LayerLikeness(
        layer, n, int(n_within), n * (n - 1) // 2 - int(n_within), float(within), float(between)
    )


def _p_of_likeness(
    parts: Sequence[tuple[Floats, Ints]], weight: Floats, observed: float, resamples: int
) -> float:
    """Two-sided p, the observed arrangement counted as one of the random ones."""
    rng = np.random.default_rng(0)
    null = np.zeros(resamples)
    for (cosine, group), share in zip(parts, weight / weight.sum(), strict=True):
        for part, dealt in _deals(rng, group, resamples, cosine.size):
            within, between, _ = _means(cosine, dealt)
            null[part] += share * (within - between)
    # Sums in another order may differ by a rounding error: what is equal must count as equal.
    slack = 1e-12 * max(1.0, abs(observed))
    above = (1 + int((null >= observed - slack).sum())) / (resamples + 1)
    below = (1 + int((null <= observed + slack).sum())) / (resamples + 1)
    return min(1.0, 2 * min(above, below))


def _deals(
    rng: np.random.Generator, values: NDArray[Any], resamples: int, cost: int
) -> Iterator[tuple[Ints, NDArray[Any]]]:
    """Values in random orders of their last axis, and their places among all draws; as many as fit at a time.

    ``cost`` is the number of values that are made of each draw.
    """
    parts = max(1, resamples * cost // 10**7)
    for part in np.array_split(np.arange(resamples), parts):
        yield part, rng.permuted(np.broadcast_to(values, (len(part), *values.shape)), axis=-1)


def _interval(differences: Floats, weight: Floats, resamples: int) -> tuple[float | None, float | None]:
    """95 % interval of the weighted mean when layers are drawn anew."""
    if len(differences) < FEWEST_LAYERS:
        return None, None
    # The draws of scipy.stats.bootstrap, whose import takes longer than all else of this command.
    chosen = np.random.RandomState(0).randint(0, len(differences), (resamples, len(differences)))
    means = (differences * weight)[chosen].sum(axis=1) / weight[chosen].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975]).tolist()
    return low, high


# Relations per head ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class RelationsPerHead:
    """Heads by the number of relations that they implement or suppress."""

    n_heads: int  # mapped heads
    observed: tuple[int, ...]  # heads with 0, 1, 2 … relations, up to the largest number
    expected_counts: tuple[float, ...]
    """Expected if relations were dealt to the heads of a layer at random; the last entry includes all larger
    numbers."""
    dispersion: float | None
    """Variance of relations per head within layers, as a multiple of the expected one: above 1, relations
    gather on few heads. None where the null leaves no choice."""
    p: float | None  # chance of at least this dispersion, one-sided, by permutation; None likewise


def called_cells(atlas: Atlas) -> Bools:
    """[mapped layers, n_heads, n_relations] whether a head implements or suppresses a relation."""
    promotes, suppresses = atlas.calls.values[:, atlas.layers_done]
    return np.asarray(promotes | suppresses)


def count_per_head(calls: Bools, *, resamples: int = CALL_RESAMPLES) -> RelationsPerHead:
    """Counts of calls [n_layers, n_heads, n_relations] and their expectation."""
    n_layers, n_heads, _ = calls.shape
    number = calls.sum(axis=2)
    observed = np.bincount(number.ravel())
    exact = np.sum([n_heads * poisson_binomial(layer.mean(axis=0)) for layer in calls], axis=0)
    top = len(observed) - 1
    expected = [*exact[:top], exact[top:].sum()]
    share = calls.mean(axis=1)
    variance = float((share * (1.0 - share)).sum(axis=1).mean())
    found = float(number.var(axis=1).mean())
    return RelationsPerHead(
        n_heads=n_layers * n_heads,
        observed=tuple(int(n) for n in observed),
        expected_counts=tuple(float(n) for n in expected),
        dispersion=found / variance if variance > 0 else None,
        p=_p_of_dispersion(calls, resamples) if variance > 0 else None,
    )


def poisson_binomial(p: Floats) -> Floats:
    """[n + 1] chances of 0 … n successes in n independent trials with chances p [n]."""
    chances = np.ones(1)
    for each in p:
        chances = np.convolve(chances, [1.0 - each, each])
    return chances


def _p_of_dispersion(calls: Bools, resamples: int) -> float:
    """Share of random deals, the observed one among them, that are at least as dispersed.

    The number of calls of a layer is fixed, so its sum of squares over heads orders deals as the variance
    does.
    """
    rng = np.random.default_rng(0)
    null = np.zeros(resamples, dtype=np.int64)
    for layer in calls:
        active = layer[:, layer.any(axis=0)].T
        for part, dealt in _deals(rng, active, resamples, active.size):
            null[part] += np.square(dealt.sum(axis=1)).sum(axis=1)
    observed = np.square(calls.sum(axis=2)).sum()
    return float((1 + int((null >= observed).sum())) / (resamples + 1))


# Depth -----------------------------------------------------------------------------------------------


def layers_by_category(atlas: Atlas, heads: pd.DataFrame) -> dict[str, Ints]:
    """Category that has heads → their layers, ascending; ``heads`` is what ``atlas.categories()`` gave."""
    layers = heads.explode("which").groupby("which")["layer"]
    found = {str(name): np.sort(each.to_numpy(dtype=np.int64)) for name, each in layers}
    return {name: found[name] for name in atlas.category_names if name in found}


@dataclass(frozen=True)
class CategoryDepth:
    """Layers of the heads of one category, ascending, and their quartiles."""

    category: str
    layers: tuple[int, ...]
    lower_quartile: float
    median: float
    upper_quartile: float


@dataclass(frozen=True)
class Depth:
    """Categories that have heads, and their comparison (None where there is nothing to compare)."""

    categories: tuple[CategoryDepth, ...]
    comparison: DepthTest | None


def depth_by_category(atlas: Atlas) -> Depth:
    """Layers of each category's heads, promoting or suppressing, and Kruskal–Wallis over the categories."""
    groups = layers_by_category(atlas, atlas.categories())
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


def shortest_band(values: Ints, share: float) -> Band:
    """The shortest interval that holds at least a share (above 0) of the values (one or more); of equally
    short ones the one that holds most, then the lowest."""
    ordered = np.sort(values)
    # The epsilon keeps 0.8 · 5 from needing 5 values.
    needed = max(1, math.ceil(share * len(ordered) - 1e-9))
    candidates = {
        (int(ordered[at]), int(ordered[at + needed - 1])) for at in range(len(ordered) - needed + 1)
    }
    bands = [Band(a, b, int(((ordered >= a) & (ordered <= b)).sum())) for a, b in candidates]
    return min(bands, key=lambda band: (band.last - band.first, -band.inside, band.first))


def quartiles(values: Ints) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile (linear interpolation)."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return low, middle, high


@dataclass(frozen=True)
class PairTest:
    """Mann–Whitney test of two groups."""

    first: str
    second: str
    p: float  # two-sided, after Holm's correction over all pairs
    r: float  # rank-biserial correlation, -1 to 1; positive if the first group's values are larger


@dataclass(frozen=True)
class DepthTest:
    """Kruskal–Wallis test over groups, and all pairs of them."""

    sizes: dict[str, int]  # group → number of values
    h: float  # test statistic, corrected for ties
    p: float  # by the χ² approximation
    epsilon2: float  # effect size H / (n - 1): 0 no difference, 1 the largest possible
    pairs: tuple[PairTest, ...]  # every pair of groups


def compare_depths(groups: Mapping[str, Ints]) -> DepthTest | None:
    """Compare groups of layers; those with fewer than five values are left out.

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
