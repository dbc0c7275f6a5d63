"""The structure of one atlas: likeness within key/value groups, relations per head, depth.

The null of relations per head keeps how many heads of each layer each relation has, and deals them to the
layer's heads independently of the other relations. The expected counts are exact (a sum of Poisson-binomial
distributions). Whether relations gather on few heads is tested with the variance of relations per head within
layers, by permutation.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headatlas.arrangement.depth import Depth, depth_by_category, single_token_atlas
from headatlas.arrangement.groups import Likeness, group_likeness, why_no_groups
from headatlas.atlas.relation_scores import all_single

if TYPE_CHECKING:
    from headatlas.atlas import Atlas


RESAMPLES = 1_999

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Structure:
    """Arrangement of what the heads of one model do.

    Attributes:
        groups: Likeness within key/value groups, by both measures; empty where it cannot be tested.
        no_groups: Why it cannot, or None.
        per_head: Relations per head; None if nothing is mapped or scored.
        depth: Layers of each category's heads.
        depth_single: The same on sources of one token; None if all sources are.
    """

    groups: tuple[Likeness, ...]
    no_groups: str | None
    per_head: RelationsPerHead | None
    depth: Depth
    depth_single: Depth | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def structure(atlas: Atlas) -> Structure:
    """Everything about one atlas, with the thresholds that it is read with."""
    groups = group_likeness(atlas)
    why = why_no_groups(atlas)
    if not groups and why is None:
        why = "no layer has pairs of scoring heads both within a group and between groups"
    return Structure(
        groups=groups,
        no_groups=why,
        per_head=relations_per_head(atlas),
        depth=depth_by_category(atlas),
        depth_single=None if all_single(atlas.dataset) else depth_by_category(single_token_atlas(atlas)),
    )


# Relations per head ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class RelationsPerHead:
    """Heads by the number of relations that they implement or suppress.

    Attributes:
        n_heads: Mapped heads.
        observed: Heads with 0, 1, 2 … relations, up to the largest number.
        expected: The same if relations were dealt to the heads of a layer at random; the last entry includes
            all larger numbers.
        dispersion: Variance of relations per head within layers, as a multiple of the expected one: above 1,
            relations gather on few heads. None where the null leaves no choice.
        p: Chance of at least this dispersion, one-sided, by permutation; None likewise.
    """

    n_heads: int
    observed: tuple[int, ...]
    expected: tuple[float, ...]
    dispersion: float | None
    p: float | None

    @property
    def most(self) -> int:
        return len(self.observed) - 1


def relations_per_head(atlas: Atlas) -> RelationsPerHead | None:
    """Count relations per head; None if nothing has been mapped or scored."""
    calls = called_cells(atlas)
    return None if calls.size == 0 else count_per_head(calls)


def called_cells(atlas: Atlas) -> Bools:
    """[mapped layers, n_heads, n_relations] whether a head implements or suppresses a relation."""
    names = list(atlas.included["relation"])
    table = atlas.table()
    mapped = np.flatnonzero(atlas.layers_done)
    cells = np.zeros((len(mapped), atlas.n_heads, len(names)), dtype=bool)
    called = table[(table["implements"] | table["suppresses"]).to_numpy(dtype=bool)]
    at = np.searchsorted(mapped, called["layer"].to_numpy(dtype=int))
    relation = called["relation"].map(names.index).to_numpy(dtype=int)
    cells[at, called["head"].to_numpy(dtype=int), relation] = True
    return cells


def count_per_head(calls: Bools, *, resamples: int = RESAMPLES) -> RelationsPerHead:
    """Counts and their expectation.

    Args:
        calls: [n_layers, n_heads, n_relations].
    """
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
        expected=tuple(float(n) for n in expected),
        dispersion=found / variance if variance > 0 else None,
        p=_permutation_p(calls, resamples) if variance > 0 else None,
    )


def poisson_binomial(p: Floats) -> Floats:
    """[n + 1] chances of 0 … n successes in n independent trials with chances p [n]."""
    chances = np.ones(1)
    for each in p:
        chances = np.convolve(chances, [1.0 - each, each])
    return chances


def _permutation_p(calls: Bools, resamples: int) -> float:
    """Share of random deals, the observed one among them, that are at least as dispersed.

    The number of calls of a layer is fixed, so its sum of squares over heads orders deals as the variance
    does.
    """
    rng = np.random.default_rng(0)
    null = np.zeros(resamples, dtype=np.int64)
    for layer in calls:
        active = layer[:, layer.any(axis=0)].T
        for part in np.array_split(np.arange(resamples), max(1, resamples * active.size // 10**7)):
            dealt = rng.permuted(np.broadcast_to(active, (len(part), *active.shape)), axis=2)
            null[part] += np.square(dealt.sum(axis=1)).sum(axis=1)
    observed = np.square(calls.sum(axis=2)).sum()
    return float((1 + int((null >= observed).sum())) / (resamples + 1))
