"""Likeness of heads within key/value groups, compared with other heads of their layer.

Heads are compared by the cosine of their score vectors, one number a relation, in two ways: with ``signed``
numbers (promotion minus suppression: heads that do opposite things come out opposed), and ``unsigned`` (the
larger of the two: heads that deal with the same relations come out alike, whatever they do to the targets).
Scores below the calibration floor count as 0, and heads that have no other are left out: they have no
direction.

Within a layer, pairs of one group are compared with pairs of different groups. So depth, which both have in
common, explains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headatlas.options import FLOOR

if TYPE_CHECKING:
    from headatlas.atlas import Atlas

MEASURES = ("signed", "unsigned")
RESAMPLES = 9_999
FEWEST_LAYERS = 3
"""Intervals need at least this many layers to resample."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


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
    """Cosine of pairs of heads within groups, compared with pairs of different groups of a layer.

    Attributes:
        measure: ``signed`` or ``unsigned``.
        difference: Mean over the pairs within groups of (their cosine minus the mean cosine between groups of
            their layer): 0 no more alike than others.
        low, high: 95 % bootstrap interval over layers (percentile); None with fewer than three layers.
        p: Two-sided permutation p: heads are dealt to the groups of their layer at random.
        within, between: The two means that are compared; between is weighted as within is.
        layers: Layers that have pairs of both kinds.
    """

    measure: str
    difference: float
    low: float | None
    high: float | None
    p: float
    within: float
    between: float
    layers: tuple[LayerLikeness, ...]

    @property
    def n_within(self) -> int:
        return sum(layer.n_within for layer in self.layers)

    @property
    def n_between(self) -> int:
        return sum(layer.n_between for layer in self.layers)


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
    found = []
    for measure in MEASURES:
        likeness = likeness_of(measure, score_vectors(atlas, measure), groups)
        if likeness is not None:
            found.append(likeness)
    return tuple(found)


def score_vectors(atlas: Atlas, measure: str) -> Floats:
    """[n_layers, n_heads, n_relations] what is compared; NaN in layers that are not mapped."""
    shape = (atlas.n_layers, atlas.n_heads, 0)
    scores = list(atlas.relation_scores.values())
    if not scores:
        return np.zeros(shape)
    promotion, suppression = (
        np.stack([np.where(values < FLOOR, 0.0, values) for values in both], axis=-1)
        for both in ([each.score for each in scores], [each.suppression for each in scores])
    )
    if measure == "signed":
        return np.asarray(promotion - suppression)
    return np.asarray(np.maximum(promotion, suppression))


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
    measure: str, vectors: Floats, groups: Ints, *, resamples: int = RESAMPLES
) -> Likeness | None:
    """Compare pairs within groups and between them.

    Args:
        vectors: [n_layers, n_heads, n_relations]; NaN in layers that are not mapped.
        groups: [n_heads] the group of each head.

    Returns:
        None if no layer has pairs of both kinds.
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
        p=_permutation_p(list(parts.values()), weight, observed, resamples),
        within=float(np.average(within, weights=weight)),
        between=float(np.average(between, weights=weight)),
        layers=seen,
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


def _permutation_p(
    parts: Sequence[tuple[Floats, Ints]], weight: Floats, observed: float, resamples: int
) -> float:
    """Two-sided p, the observed arrangement counted as one of the random ones."""
    rng = np.random.default_rng(0)
    null = np.zeros(resamples)
    for (cosine, group), share in zip(parts, weight / weight.sum(), strict=True):
        for part in np.array_split(np.arange(resamples), max(1, resamples * cosine.size // 10**7)):
            within, between, _ = _means(cosine, rng.permuted(np.tile(group, (len(part), 1)), axis=1))
            null[part] += share * (within - between)
    # Sums in another order may differ by a rounding error: what is equal must count as equal.
    slack = 1e-12 * max(1.0, abs(observed))
    above = (1 + int((null >= observed - slack).sum())) / (resamples + 1)
    below = (1 + int((null <= observed + slack).sum())) / (resamples + 1)
    return min(1.0, 2 * min(above, below))


def _interval(differences: Floats, weight: Floats, resamples: int) -> tuple[float | None, float | None]:
    """95 % interval of the weighted mean when layers are drawn anew."""
    if len(differences) < FEWEST_LAYERS:
        return None, None
    # The draws of scipy.stats.bootstrap, whose import takes longer than all else of this command.
    chosen = np.random.RandomState(0).randint(0, len(differences), (resamples, len(differences)))
    means = (differences * weight)[chosen].sum(axis=1) / weight[chosen].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975]).tolist()
    return low, high
