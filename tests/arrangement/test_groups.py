"""Likeness within key/value groups, against scipy's permutation test and planted groups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from headatlas.arrangement import model_structure as module
from headatlas.arrangement.model_structure import (
    cosines,
    group_likeness,
    likeness_of,
    score_vectors,
    why_no_groups,
)
from headatlas.atlas import Atlas
from tests.synthetic import make_atlas

GROUPS = np.repeat([0, 1, 2], 3)


def with_groups(atlas: Atlas, n_groups: int | None) -> Atlas:
    model = {**atlas.provenance["model"], "dims": {"n_kv_heads": n_groups}}
    return Atlas(atlas.dataset, {**atlas.provenance, "model": model}, atlas.thresholds)


def alike(strength: float, seed: int, n_layers: int = 8) -> np.ndarray:
    """[layers, 9, 12] non-negative vectors; heads of a group share a part."""
    rng = np.random.default_rng(seed)
    shared = rng.random((n_layers, 3, 12))[:, GROUPS]
    return strength * shared + (1 - strength) * rng.random((n_layers, 9, 12))


def test_p_of_one_layer_equals_scipys() -> None:
    vectors = alike(0.3, 3, n_layers=1)
    cosine = cosines(vectors[0])
    above = np.triu_indices(9, k=1)

    def difference(labels: np.ndarray) -> float:
        same = labels[above[0]] == labels[above[1]]
        return float(cosine[above][same].mean() - cosine[above][~same].mean())

    found = likeness_of("unsigned", vectors, GROUPS)
    assert found is not None
    expected = stats.permutation_test(
        (GROUPS,), difference, permutation_type="pairings", n_resamples=9_999, random_state=1
    )
    assert found.difference == pytest.approx(expected.statistic)
    assert 0.01 < expected.pvalue < 0.5
    assert found.p == pytest.approx(expected.pvalue, abs=0.03)


def test_planted_likeness_is_found_and_its_interval_holds_it() -> None:
    found = likeness_of("unsigned", alike(0.6, 0), GROUPS)
    assert found is not None and found.low is not None and found.high is not None
    assert found.p == pytest.approx(2 / 10_000)
    assert 0 < found.low < found.difference < found.high
    assert found.difference == pytest.approx(found.within - found.between)
    assert (found.n_within, found.n_between) == (8 * 9, 8 * 27)


def test_no_likeness_gives_uniform_p() -> None:
    p = []
    for seed in range(60):
        found = likeness_of("unsigned", alike(0.0, seed, n_layers=3), GROUPS, resamples=199)
        assert found is not None
        p.append(found.p)
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_opposed_heads_are_alike_only_without_the_sign() -> None:
    vectors = alike(0.9, 1)
    vectors[:, 1::3] *= -1
    signed = likeness_of("signed", vectors, GROUPS)
    unsigned = likeness_of("unsigned", np.abs(vectors), GROUPS)
    assert signed is not None and unsigned is not None
    assert signed.within < 0 < unsigned.within
    assert unsigned.p < 0.01


def test_depth_alone_makes_no_likeness() -> None:
    # Heads of a layer are all alike, those of another layer are not: nothing about groups.
    rng = np.random.default_rng(0)
    vectors = rng.random((6, 1, 12)) + 0.01 * rng.random((6, 9, 12))
    found = likeness_of("unsigned", vectors, GROUPS)
    assert found is not None
    assert abs(found.difference) < 0.01


def test_heads_without_scores_and_unmapped_layers_are_left_out() -> None:
    vectors = alike(0.5, 2)
    vectors[0] = np.nan
    vectors[1, :8] = 0.0
    vectors[2, 2:] = 0.0  # two heads of one group: no pair of different groups
    found = likeness_of("unsigned", vectors, GROUPS)
    assert found is not None
    assert [layer.layer for layer in found.layers] == [3, 4, 5, 6, 7]
    assert likeness_of("unsigned", np.zeros((2, 9, 3)), GROUPS) is None


def test_the_interval_is_that_of_scipy() -> None:
    rng = np.random.default_rng(3)
    differences, weight = rng.normal(size=30), rng.random(30) + 0.1

    def weighted(values: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray((values * weights).sum(axis=axis) / weights.sum(axis=axis))

    found = stats.bootstrap(
        (differences, weight), weighted, paired=True, n_resamples=999, method="percentile", random_state=0
    )
    interval = found.confidence_interval
    assert module._interval(differences, weight, 999) == pytest.approx((interval.low, interval.high))


def test_two_layers_have_no_interval() -> None:
    found = likeness_of("unsigned", alike(0.5, 2, n_layers=2), GROUPS)
    assert found is not None
    assert (found.low, found.high) == (None, None)


def test_score_vectors_come_from_the_atlas(tmp_path: Path) -> None:
    atlas = with_groups(make_atlas(tmp_path / "a.zarr", 4, 4, layers=range(3)), 2)
    table = atlas.table().set_index(["layer", "head", "relation"])
    names = list(atlas.relation_scores)
    row = table.loc[(1, 2, names[3])]
    floor = [0.0 if value < module.FLOOR else value for value in (row["score"], row["suppression"])]
    assert score_vectors(atlas, "signed")[1, 2, 3] == pytest.approx(floor[0] - floor[1])
    assert score_vectors(atlas, "unsigned")[1, 2, 3] == pytest.approx(max(floor))
    found = group_likeness(atlas)
    assert [each.measure for each in found] == ["signed", "unsigned"]
    assert {layer.layer for each in found for layer in each.layers} <= {0, 1, 2}


@pytest.mark.parametrize(
    ("n_groups", "why"), [(1, "share one"), (4, "no groups"), (None, "does not say"), (2, None)]
)
def test_where_there_is_nothing_to_compare(tmp_path: Path, n_groups: int | None, why: str | None) -> None:
    atlas = with_groups(make_atlas(tmp_path / "a.zarr", 3, 4), n_groups)
    reason = why_no_groups(atlas)
    assert (reason is None) == (why is None)
    assert why is None or (reason is not None and why in reason)
    assert bool(group_likeness(atlas)) == (why is None)
