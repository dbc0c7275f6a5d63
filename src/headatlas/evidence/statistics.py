"""Correlations, areas between curves, and their bootstrap intervals (SciPy's bootstrap)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 2000
SEED = 0
LEVEL = 0.95

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % percentile bootstrap interval; all NaN where it is not defined."""

    value: float
    low: float
    high: float


UNDEFINED = Estimate(np.nan, np.nan, np.nan)


def pearson(x: Floats, y: Floats, axis: int = -1) -> Floats:
    """Pearson's r along an axis; 0 where one side is constant."""
    x, y = (each - each.mean(axis=axis, keepdims=True) for each in (x, y))
    # A constant row can leave rounding behind, which must not be correlated.
    sizes = [np.sqrt((each * each).sum(axis=axis)) for each in (x, y)]
    product = sizes[0] * sizes[1]
    constant = np.minimum(*sizes) < 1e-12
    return np.asarray(np.where(constant, 0.0, (x * y).sum(axis=axis) / np.where(constant, 1.0, product)))


def spearman(x: Floats, y: Floats, axis: int = -1) -> Floats:
    """Spearman's ρ along an axis: Pearson's r of the ranks, ties at their mean; 0 where one side is
    constant.
    """
    # Scores are means of a few shares: equal ones differ by rounding, which must not break their tie.
    first, second = (stats.rankdata(np.round(each, 12), axis=axis) for each in (x, y))
    return pearson(first, second, axis=axis)


def correlation(kind: Callable[..., Floats], x: Floats, y: Floats) -> Estimate:
    """A correlation over heads, with an interval over resampled heads.

    Args:
        kind: :func:`pearson` or :func:`spearman`.
        x, y: [n] one value a head, none missing.

    Returns:
        Undefined where x or y is constant, or n < 3.
    """
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return UNDEFINED
    return _bootstrap((x, y), kind)


def mean(values: Floats) -> Estimate:
    """A mean, with an interval over resampled entries (relations, sources); undefined for fewer than two."""
    if len(values) < 2:
        return UNDEFINED
    return _bootstrap((values,), np.mean)


def _bootstrap(data: tuple[Floats, ...], statistic: Callable[..., Floats]) -> Estimate:
    value = float(statistic(*data, axis=-1))
    if all(np.ptp(each) == 0 for each in data):
        return Estimate(value, value, value)
    found = stats.bootstrap(
        data,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, 2_000_000 // len(data[0])),
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return Estimate(value, float(found.low), float(found.high))


def area(steps: NDArray[np.integer], lower: Floats, upper: Floats) -> Floats:
    """Area between two curves over log₂(1 + number of heads), divided by the length of that axis.

    Args:
        steps: [step] numbers of heads, ascending from 0.
        lower, upper: [step, …] curves.

    Returns:
        [...] mean of ``upper − lower`` along the axis (trapezoid rule).
    """
    at = np.log2(1.0 + steps)
    return np.asarray(np.trapezoid(upper - lower, at, axis=0) / (at[-1] - at[0]))
