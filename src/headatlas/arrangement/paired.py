"""Two shares of the same sources compared: an exact test and an interval of their difference.

Of n sources some are hit in both, some only in the first, some only in the second, some in neither. Sources
count as independent draws from the relation, as for the interval of one score.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headatlas.scoring.scores import wilson

Floats = NDArray[np.float64]
Counts = NDArray[np.integer[Any]]

FEWEST_DISCORDANT = 6
"""With fewer sources that are hit in one alone no outcome has p ≤ 0.05: the smallest of five is 0.0625."""


def mcnemar(only_first: Counts, only_second: Counts) -> Floats:
    """Exact two-sided p of McNemar's test: given how many sources differ, each is as likely lost as gained.

    Args:
        only_first, only_second: Sources hit in one alone, arrays of one shape.

    Returns:
        p of that shape; 1 where none differs.
    """
    from scipy.special import bdtr

    fewer, all_ = np.minimum(only_first, only_second), only_first + only_second
    return np.minimum(1.0, 2.0 * np.asarray(bdtr(fewer, all_, 0.5), dtype=np.float64))


def paired_difference(
    both: Counts, only_first: Counts, only_second: Counts, n: int
) -> tuple[Floats, Floats, Floats]:
    """Second share less the first, with its 95 % interval.

    Newcombe's method 10 (*Statistics in Medicine* 17, 1998, 2635–2650): the Wilson intervals of both shares
    put together by their correlation over sources, which is corrected for continuity.

    Args:
        both, only_first, only_second: Sources hit in both and in one alone, arrays of one shape.
        n: Number of sources.

    Returns:
        (difference, low, high) of that shape.
    """
    first, second = both + only_first, both + only_second
    neither = n - both - only_first - only_second
    low_1, high_1 = wilson(first, n)
    low_2, high_2 = wilson(second, n)
    share_1, share_2 = first / n, second / n
    product = both * neither - only_first * only_second
    corrected = np.where(product > 0, np.maximum(product - n / 2, 0.0), product)
    scale = np.sqrt(first.astype(float) * (n - first) * second * (n - second))
    phi = np.divide(corrected, scale, out=np.zeros_like(scale), where=scale > 0)

    def joined(one: Floats, other: Floats) -> Floats:
        root: Floats = np.sqrt(np.maximum(one**2 - 2 * phi * one * other + other**2, 0.0))
        return root

    difference = (only_second - only_first) / n
    low = difference - joined(share_2 - low_2, high_1 - share_1)
    high = difference + joined(high_2 - share_2, share_1 - low_1)
    return difference, low, high
