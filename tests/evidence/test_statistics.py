"""Correlations, bootstrap intervals, areas and McNemar's test against SciPy and hand calculation."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from headatlas.atlas.evidence import Ablation, single_heads
from headatlas.evidence.statistics import (
    RESAMPLES,
    SEED,
    area,
    areas,
    correlation,
    curves,
    mean,
    pearson,
    spearman,
    summarise_ablations,
)


def scores(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two related columns with many ties at zero, as scores of heads have."""
    rng = np.random.default_rng(seed)
    x = np.where(rng.random(n) < 0.6, 0.0, rng.random(n))
    return x, np.clip(x + 0.2 * rng.standard_normal(n), 0, 1)


def test_correlations_are_scipys() -> None:
    x, y = scores()
    assert float(pearson(x, y)) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert float(spearman(x, y)) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    rows = np.stack([x, y, x * y]), np.stack([y, y, x])
    together = spearman(*rows)
    apart = [stats.spearmanr(a, b).statistic for a, b in zip(*rows, strict=True)]
    np.testing.assert_allclose(together, apart, atol=1e-12)


def test_rounding_breaks_no_tie() -> None:
    x, y = np.array([0.3, 0.1 + 0.2, 0.0, 1.0]), np.array([0.2, 0.7, 0.0, 0.9])
    assert x[0] != x[1]
    assert float(spearman(x, y)) == pytest.approx(stats.spearmanr([1, 1, 0, 2], y).statistic, abs=1e-12)


def test_a_constant_side_has_no_correlation() -> None:
    x, _ = scores()
    constant = np.full(len(x), 0.3)
    assert float(pearson(x, constant)) == 0.0
    found = correlation(pearson, x, constant)
    assert np.isnan([found.value, found.low, found.high]).all()


@pytest.mark.parametrize(("ours", "theirs"), [(pearson, stats.pearsonr), (spearman, stats.spearmanr)])
def test_intervals_are_those_of_resampled_heads(ours, theirs) -> None:
    x, y = scores()
    found = correlation(ours, x, y)
    rng = np.random.default_rng(SEED + 1)
    drawn = [rng.integers(0, len(x), len(x)) for _ in range(RESAMPLES)]
    by_hand = np.quantile([theirs(x[at], y[at]).statistic for at in drawn], [0.025, 0.975])
    assert found.low < found.value < found.high
    # Two independent bootstraps of this size differ by about a hundredth.
    np.testing.assert_allclose([found.low, found.high], by_hand, atol=0.04)


def test_the_interval_of_a_mean() -> None:
    values = np.random.default_rng(3).random(200)
    found = mean(values)
    half = 1.96 * values.std() / np.sqrt(200)
    assert found.value == pytest.approx(values.mean())
    np.testing.assert_allclose([found.low, found.high], [found.value - half, found.value + half], atol=0.006)
    assert np.isnan(mean(np.array([0.5])).value)
    same = mean(np.full(5, 0.25))
    assert (same.value, same.low, same.high) == (0.25, 0.25, 0.25)


def test_the_area_between_straight_lines() -> None:
    steps = np.array([0, 1, 3, 7])  # evenly spaced on the axis
    upper, lower = np.full(4, 0.8), np.array([0.8, 0.6, 0.4, 0.2])
    assert float(area(steps, lower, upper)) == pytest.approx(0.3)
    assert float(area(steps, upper, upper)) == 0.0
    assert float(area(steps, upper, lower)) == pytest.approx(-0.3)


def made_up(n: int = 40) -> Ablation:
    """A task whose relation's heads take away half of what is right each step, random ones a twentieth."""
    base = np.ones(n, dtype=bool)
    half, quarter, most = (np.arange(n) < n * share for share in (0.5, 0.25, 0.95))
    order = ["relation", "added", "random 0", "random 1"]
    correct = np.stack([[half, quarter], [most, quarter], [most, most], [base, most]])
    data = xr.Dataset(
        {
            "base": ("source", base),
            "correct": (("order", "step", "source"), correct),
            "n_ablated": ("step", np.array([1, 2])),
            "alone": (("single", "source"), np.stack([half, most])),
            "layer": (("order", "rank"), np.array([[3, 2], [2, 3], [0, 1], [1, 1]])),
            "head": (("order", "rank"), np.array([[1, 0], [0, 1], [0, 1], [0, 3]])),
            "control": (("control_name", "step"), np.array([[0.9, 0.8]])),
            "control_base": ("control_name", np.array([1.0])),
        },
        coords={"order": order, "source": [f"w{i}" for i in range(n)], "control_name": ["other"]},
    )
    return Ablation(data, {"relation": "planted", "shots": 0, "method": "zero", "template": "{}"})


def test_the_summary_of_a_task() -> None:
    row = summarise_ablations([made_up()]).iloc[0]
    assert (row["base"], row["without_relation"], row["without_added"]) == (1.0, 0.25, 0.25)
    assert (row["without_random"], row["without_random_low"]) == pytest.approx((0.95, 0.95))
    assert (row["control_base"], row["without_control"], row["controls"]) == (1.0, 0.8, "other")
    at = np.log2([1.0, 2.0, 3.0])
    relation, added, random = [1, 0.5, 0.25], [1, 0.95, 0.25], [1, 0.975, 0.95]
    wanted = [
        np.trapezoid(np.subtract(*pair), at) / at[-1] for pair in ((random, relation), (relation, added))
    ]
    assert [row["area"], row["added_area"]] == pytest.approx(wanted)
    between, orders = areas(made_up())
    assert between.low < between.value < between.high
    assert orders.high < 0 and row["hurts_more"] == "score"


def test_which_order_hurts_more() -> None:
    """Only where the orders take different heads, and the interval is on one side of 0."""
    one = made_up()
    same, swapped = one.data.copy(deep=True), one.data.copy(deep=True)
    for name in ("layer", "head", "correct"):
        same[name][1] = same[name][0]
        swapped[name][[0, 1]] = swapped[name][[1, 0]].values
    tied = one.data.copy(deep=True)
    tied["correct"][1] = tied["correct"][0]
    found = summarise_ablations([Ablation(data, one.provenance) for data in (same, swapped, tied)])
    assert found["hurts_more"].tolist() == ["same heads", "added", "undecided"]


def test_the_curves_of_a_task() -> None:
    frame = curves(made_up())
    relation = frame[frame["curve"] == "relation"]
    assert relation["accuracy"].tolist() == [1.0, 0.5, 0.25]
    for _, row in relation.iterrows():
        found = stats.binomtest(round(40 * row["accuracy"]), 40).proportion_ci(method="wilson")
        assert (row["low"], row["high"]) == pytest.approx((found.low, found.high))
    random = frame[frame["curve"] == "random"]
    assert random[["low", "high"]].to_numpy().tolist() == [[1.0, 1.0], [0.95, 1.0], [0.95, 0.95]]
    assert frame[frame["curve"] == "control: other"]["accuracy"].tolist() == [1.0, 0.9, 0.8]


def test_heads_alone_by_mcnemar() -> None:
    frame = single_heads([made_up()])
    assert frame[["layer", "head"]].to_numpy().tolist() == [[3, 1], [2, 0]]
    assert frame["loss"].tolist() == pytest.approx([0.5, 0.05])
    wanted = [stats.binomtest(20, 20, 0.5, "greater").pvalue, stats.binomtest(2, 2, 0.5, "greater").pvalue]
    assert frame["p"].tolist() == pytest.approx(wanted)
    assert frame["q"].tolist() == pytest.approx(stats.false_discovery_control(wanted).tolist())
    assert frame["confirmed"].tolist() == [True, False]
