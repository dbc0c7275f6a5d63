"""Hits of sources with several targets, Wilson's interval, Benjamini–Hochberg."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from headatlas.scoring.scores import (
    RANK_BEYOND,
    RANK_FLAGS,
    RANK_MISSING,
    RANK_UNUSABLE,
    false_discovery_rates,
    source_hits,
    wilson,
)


def test_a_source_is_hit_if_any_accepted_target_is() -> None:
    ranks = np.array([[0, 9, 10, RANK_BEYOND, 31, 3]], dtype=np.int16)
    source = np.array([0, 1, 2, 3, 3, 3])
    assert source_hits(ranks, source, 4, 10).tolist() == [[True, True, False, True]]
    assert source_hits(ranks, source, 4, 1).tolist() == [[True, False, False, False]]
    assert source_hits(ranks, source, 4, 11).tolist() == [[True, True, True, True]]


def test_promotion_follows_the_best_target_and_suppression_the_worst() -> None:
    """One source with three targets among ten tokens: their places decide, seen from both ends."""
    logits = np.array([9.0, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    targets = [2, 5, 8]
    promotion = np.array([(logits >= logits[t]).sum() - 1 for t in targets])
    suppression = np.array([(-logits >= -logits[t]).sum() - 1 for t in targets])
    source = np.zeros(3, dtype=int)
    first_hit = next(k for k in range(1, 11) if source_hits(promotion, source, 1, k)[0])
    assert first_hit == 3, "token 2, the best of the three, is third from the top"
    first_hit = next(k for k in range(1, 11) if source_hits(suppression, source, 1, k)[0])
    assert first_hit == 2, "token 8, the worst of the three, is second from the bottom"


def test_no_code_is_a_hit() -> None:
    codes = np.array(list(RANK_FLAGS.values()), dtype=np.int16)
    assert sorted(codes) == sorted([RANK_BEYOND, RANK_UNUSABLE, RANK_MISSING])
    assert not source_hits(codes, np.arange(3), 3, 250).any()


@given(
    st.lists(st.lists(st.integers(-3, 40), min_size=1, max_size=4), min_size=1, max_size=9),
    st.integers(1, 32),
)
def test_hits_equal_a_loop(sources: list[list[int]], k: int) -> None:
    ranks = np.array([rank for each in sources for rank in each], dtype=np.int16)
    source = np.repeat(np.arange(len(sources)), [len(each) for each in sources])
    expected = [any(0 <= rank < k for rank in each) for each in sources]
    assert source_hits(np.stack([ranks, ranks]), source, len(sources), k).tolist() == [expected, expected]


def test_a_source_without_pairs_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="2 sources have pairs, expected 3"):
        source_hits(np.zeros(3), np.array([0, 0, 2]), 3, 10)


@pytest.mark.parametrize("n", [30, 41, 150])
def test_wilson_equals_scipy(n: int) -> None:
    hits = np.arange(n + 1)
    low, high = wilson(hits, n)
    for x in hits:
        expected = stats.binomtest(int(x), n).proportion_ci(0.95, method="wilson")
        assert (low[x], high[x]) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert (low[0], high[n]) == (0.0, 1.0)
    assert (low >= 0).all() and (high <= 1).all() and (low <= hits / n).all() and (hits / n <= high).all()


def plain_benjamini_hochberg(p: list[float]) -> list[float]:
    """q of a cell: the least, over thresholds from its p on, of n·threshold / (cells at or below it)."""
    return [min(min(1.0, len(p) * t / sum(x <= t for x in p)) for t in p if t >= own) for own in p]


probabilities = st.floats(0.0, 1.0) | st.sampled_from([1e-4, 0.01, 0.5, 1.0])


@given(st.lists(probabilities, min_size=1, max_size=25))
def test_benjamini_hochberg_equals_the_definition(p: list[float]) -> None:
    found = false_discovery_rates(np.array(p))
    np.testing.assert_allclose(found, plain_benjamini_hochberg(p), rtol=1e-12, atol=0)


def test_cells_that_are_not_mapped_do_not_count() -> None:
    p: NDArray[np.float64] = np.array([[0.001, np.nan], [0.02, 0.9]])
    q = false_discovery_rates(p)
    assert np.isnan(q[0, 1])
    np.testing.assert_allclose(q[~np.isnan(p)], plain_benjamini_hochberg([0.001, 0.02, 0.9]))
    assert np.isnan(false_discovery_rates(np.full(3, np.nan))).all()
    assert false_discovery_rates(np.zeros((2, 0))).shape == (2, 0)
