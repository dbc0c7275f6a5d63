"""The distinct among many small numbers, by marking them: several times faster than sorting or hashing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def distinct(values: Ints, below: int) -> Ints:
    """Distinct values, ascending.

    Args:
        values: [n] in 0 … ``below`` - 1.
        below: Where they end.
    """
    return np.flatnonzero(_marked(values, below))


def numbered(values: Ints, below: int) -> tuple[Ints, Ints]:
    """Distinct values, ascending, and [n] the position of each value among them.

    Args:
        values: [n] in 0 … ``below`` - 1.
        below: Where they end.
    """
    marked = _marked(values, below)
    return np.flatnonzero(marked), (np.cumsum(marked) - 1)[values]


def _marked(values: Ints, below: int) -> NDArray[np.bool_]:
    marked = np.zeros(below, dtype=np.bool_)
    marked[values] = True
    return marked
