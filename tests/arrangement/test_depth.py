"""The small statistics, against brute force and scipy's own corrections."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from headatlas.arrangement.model_structure import (
    chi_square_tail,
    compare_depths,
    holm,
    kruskal_wallis,
    mann_whitney,
    quartiles,
    shortest_band,
)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=30), st.sampled_from([0.5, 0.8, 1.0]))
def test_no_shorter_band_holds_as_much(values: list[int], share: float) -> None:
    found = shortest_band(np.array(values), share)
    inside = sum(found.first <= value <= found.last for value in values)
    assert found.inside == inside
    assert inside >= share * len(values) - 1e-9
    for first, last in product(range(13), repeat=2):
        held = sum(first <= value <= last for value in values)
        if held >= share * len(values) - 1e-9 and last >= first:
            assert (found.length, -found.inside) <= (last - first + 1, -held)


def test_half_of_two_clusters_is_the_denser_one() -> None:
    band = shortest_band(np.array([1, 4, 8, 20, 20, 21, 21, 21]), 0.5)
    assert (band.first, band.last, band.inside) == (20, 21, 5)


def test_quartiles() -> None:
    assert quartiles(np.array([1, 2, 3, 4])) == (1.75, 2.5, 3.25)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_separate_groups_have_the_largest_effect() -> None:
    groups = {"early": np.arange(6), "late": np.arange(10, 16), "few": np.array([3])}
    found = compare_depths(groups)
    assert found is not None
    assert found.sizes == {"early": 6, "late": 6}
    assert found.pairs[0].r == -1.0
    h, p = stats.kruskal(groups["early"], groups["late"])
    assert (found.h, found.p) == (pytest.approx(h), pytest.approx(p))
    assert found.epsilon2 == pytest.approx(h * (12 + 1) / (12**2 - 1))


def test_rank_biserial_is_the_difference_of_favourable_pairs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 11), rng.integers(2, 12, 7)
    found = compare_depths({"a": a, "b": b})
    assert found is not None
    assert found.pairs[0].r == pytest.approx(float(np.sign(a[:, None] - b[None, :]).mean()))


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 12])
@pytest.mark.parametrize("x", [0.0, 0.3, 2.0, 11.0, 80.0])
def test_chi_square_tail_is_scipys(x: float, degrees: int) -> None:
    assert chi_square_tail(x, degrees) == pytest.approx(float(stats.chi2.sf(x, degrees)), rel=1e-12)


@given(st.lists(st.lists(st.integers(0, 40), min_size=5, max_size=20), min_size=2, max_size=5))
def test_tests_are_scipys(lists: list[list[int]]) -> None:
    groups = [np.array(values) for values in lists]
    if len(np.unique(np.concatenate(groups))) == 1:
        return
    assert kruskal_wallis(groups) == pytest.approx(tuple(stats.kruskal(*groups)), rel=1e-9, abs=1e-12)
    found = stats.mannwhitneyu(groups[0], groups[1])
    effect = 2 * found.statistic / (len(groups[0]) * len(groups[1])) - 1
    assert mann_whitney(groups[0], groups[1]) == pytest.approx((found.pvalue, effect), rel=1e-9)


@pytest.mark.parametrize("sizes", [(5, 6), (8, 30), (9, 9)])
def test_untied_groups_are_tested_as_scipy_does(sizes: tuple[int, int]) -> None:
    values = np.random.default_rng(1).permutation(sum(sizes))
    first, second = values[: sizes[0]], values[sizes[0] :]
    assert mann_whitney(first, second)[0] == pytest.approx(float(stats.mannwhitneyu(first, second).pvalue))


@pytest.mark.parametrize(
    "groups",
    [
        {"a": np.zeros(9, int), "b": np.zeros(9, int)},
        {"a": np.arange(9)},
        {"a": np.arange(9), "b": np.arange(4)},
    ],
)
def test_nothing_to_compare(groups: dict[str, np.ndarray]) -> None:
    assert compare_depths(groups) is None
