"""The reassignment null: closed forms, bound and permutations against enumeration; its p-values are valid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from headatlas.scoring import calibration
from headatlas.scoring.calibration import Bools, Permutations, fit_null, moments, tail_bound
from tests.scoring import reference


def squares(largest: int) -> st.SearchStrategy[Bools]:
    return st.integers(2, largest).flatmap(lambda n: arrays(np.bool_, (n, n)))


def heads_of_every_kind(n: int, seed: int) -> Bools:
    """[heads, n, n]: empty, full, diagonal, sparse, with favourite columns, with chatty rows, of low rank."""
    rng = np.random.default_rng(seed)
    empty, diagonal = np.zeros((n, n), dtype=bool), np.eye(n, dtype=bool)
    made = [empty, ~empty, diagonal]
    for density in (0.02, 0.1, 0.3, 0.6):
        noise = rng.random((n, n)) < density
        made += [
            noise,
            noise | (diagonal & (rng.random(n) < 0.2)),
            noise | (diagonal & (rng.random(n) < 0.5)),
            rng.random((n, n)) < density * rng.random(n)[None, :],
            rng.random((n, n)) < density * rng.random(n)[:, None],
            np.outer(rng.random(n) < density, rng.random(n) < 0.5) | noise,
        ]
    return np.stack(made)


@settings(max_examples=60, deadline=None)
@given(squares(6))
def test_moments_equal_enumeration(h: Bools) -> None:
    every = reference.hits_under_all(h)
    mean, variance = moments(h[None])
    assert mean[0] == pytest.approx(every.mean(), abs=1e-12)
    assert variance[0] == pytest.approx(every.var(), abs=1e-12)


def test_moments_of_many_heads_equal_the_formula() -> None:
    h = heads_of_every_kind(37, seed=0)
    mean, variance = moments(h)
    for i, square in enumerate(h):
        assert (mean[i], variance[i]) == pytest.approx(reference.moments(square), abs=1e-9)
    assert moments(np.ones((2, 1, 1), dtype=bool))[1].tolist() == [0.0, 0.0]


@settings(max_examples=60, deadline=None)
@given(squares(7))
def test_the_bound_is_above_the_exact_tail_of_every_count(h: Bools) -> None:
    n = len(h)
    every = reference.hits_under_all(h)
    exact = [(every >= observed).mean() for observed in range(n + 2)]
    bounds = tail_bound(np.broadcast_to(h, (n + 2, n, n)), np.arange(n + 2))
    assert (bounds >= np.array(exact) - 1e-12).all()
    assert (bounds <= 1.0).all()
    assert (np.diff(bounds) <= 1e-12).all(), "more hits are never more likely"


def test_the_bound_is_one_up_to_the_mean() -> None:
    """What lets fit_null skip it there."""
    h = heads_of_every_kind(40, seed=1)
    bounds = tail_bound(h, np.floor(moments(h)[0]).astype(np.int64))
    np.testing.assert_allclose(bounds, 1.0, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(squares(6))
def test_permutations_agree_with_enumeration(h: Bools) -> None:
    n = len(h)
    counts = np.arange(n + 1)
    exact = np.array([reference.exact_tail(h, observed) for observed in counts])
    found = Permutations(n, "seed").tail(np.broadcast_to(h, (n + 1, n, n)), counts)
    # Stopping at 40 leaves a relative error of about 1/√40; six of these, and one draw in 10,000.
    assert (np.abs(found - exact) <= 6 * exact / np.sqrt(40) + 5e-4).all()


def test_permutations_are_the_same_in_every_run_and_every_one_is_a_permutation() -> None:
    first, second, other = (Permutations(12, text) for text in ("a", "a", "b"))
    second.block(2)
    np.testing.assert_array_equal(first.block(0), second.block(0))
    np.testing.assert_array_equal(first.block(2), second.block(2))
    assert (first.block(0) != other.block(0)).any()
    assert (np.sort(first.block(1), axis=1) == np.arange(12)).all()
    blocks = [first.block(i) for i in range(len(calibration._BLOCKS))]
    np.testing.assert_array_equal(np.concatenate(blocks), reference.drawn(12, "a"))
    assert sum(calibration._BLOCKS) == reference.DRAWS


@pytest.mark.parametrize("n", [2, 9, 33])
def test_all_heads_at_once_equal_one_head_and_one_permutation_at_a_time(n: int) -> None:
    h = heads_of_every_kind(n, seed=n)
    order = reference.drawn(n, "relation")
    found = fit_null(h, Permutations(n, "relation"))
    for i, square in enumerate(h):
        p = reference.p_value(square, order)
        # Permutation estimates are ratios of counts and equal; a bound sums logarithms in another order.
        assert found.p[i] == (p if p > reference.ANALYTIC_BELOW else pytest.approx(p, rel=1e-10)), i
        assert found.chance[i] == pytest.approx(square.mean(), rel=1e-12)


def test_no_head_is_no_error() -> None:
    assert fit_null(np.zeros((0, 5, 5), dtype=bool), Permutations(5, "x")).p.shape == (0,)


def test_a_head_that_knows_every_answer_cannot_be_chance() -> None:
    null = fit_null(np.eye(40, dtype=bool)[None], Permutations(40, "x"))
    assert null.p[0] < 1e-15
    assert null.chance[0] == pytest.approx(1 / 40)
    assert null.variance[0] == pytest.approx(1.0)


@pytest.mark.parametrize("n", [30, 150])
def test_a_head_that_promotes_the_same_words_for_all_is_chance(n: int) -> None:
    same = np.zeros((n, n), dtype=bool)
    same[:, : n // 3] = True
    null = fit_null(same[None], Permutations(n, "x"))
    assert null.p[0] == 1.0
    assert null.chance[0] == pytest.approx(np.trace(same) / n)
    assert null.variance[0] == pytest.approx(0.0, abs=1e-12)


def test_more_hits_are_never_less_sure() -> None:
    n = 40
    h = np.random.default_rng(5).random((n, n)) < 0.1
    counts = np.arange(n + 1)
    repeated = np.broadcast_to(h, (n + 1, n, n))
    assert (np.diff(tail_bound(repeated, counts)) <= 0).all()
    assert (np.diff(Permutations(n, "x").tail(repeated, counts)) <= 0).all()


# Validity -----------------------------------------------------------------------------------------


def null_heads(kind: str, heads: int, n: int, rng: np.random.Generator) -> Bools:
    """Heads whose output has structure, and sources whose targets were dealt at random."""
    if kind == "noise":
        h = rng.random((heads, n, n)) < 0.1
    elif kind == "columns":
        h = rng.random((heads, n, n)) < 0.5 * rng.random((heads, 1, n)) ** 4
    elif kind == "rows":
        h = rng.random((heads, n, n)) < 0.5 * rng.random((heads, n, 1)) ** 4
    elif kind == "low rank":
        values = rng.standard_normal((heads, n, 2)) @ rng.standard_normal((heads, 2, n))
        h = values >= np.partition(values, n - 5, axis=2)[:, :, n - 5 : n - 4]
    else:  # Few distinct targets: columns repeat.
        h = (rng.random((heads, n, 4)) < 0.2)[:, :, np.arange(n) % 4]
    dealt = rng.permuted(np.tile(np.arange(n), (heads, 1)), axis=1)
    return np.take_along_axis(h, dealt[:, None, :], axis=2)


@pytest.mark.parametrize("kind", ["noise", "columns", "rows", "low rank", "few targets"])
def test_p_values_of_null_heads_are_not_too_small(kind: str) -> None:
    heads, n = 2000, 30
    rng = np.random.default_rng([1, len(kind)])
    # Every tenth of the heads sees its own permutations, so that their luck averages out.
    parts = np.split(null_heads(kind, heads, n, rng), 10)
    p = np.concatenate([fit_null(part, Permutations(n, f"{kind} {i}")).p for i, part in enumerate(parts)])
    for level in (0.001, 0.01, 0.05, 0.2, 0.5):
        below = int((p <= level).sum())
        assert stats.binomtest(below, heads, level, alternative="greater").pvalue > 1e-4, level


def test_stopping_early_keeps_p_valid() -> None:
    """The stopping rule on its own: p of an observation drawn like the permutations."""
    n, heads = 8, 3000
    h = np.random.default_rng(8).random((n, n)) < 0.3
    rng = np.random.default_rng(9)
    dealt = rng.permuted(np.tile(np.arange(n), (heads, 1)), axis=1)
    observed = h[np.arange(n), dealt].sum(axis=1)
    parts = [
        Permutations(n, str(i)).tail(np.broadcast_to(h, (len(part), n, n)), part)
        for i, part in enumerate(np.split(observed, 30))
    ]
    p = np.concatenate(parts)
    for level in (0.002, 0.01, 0.05, 0.25):
        below = int((p <= level).sum())
        assert stats.binomtest(below, heads, level, alternative="greater").pvalue > 1e-4, level
