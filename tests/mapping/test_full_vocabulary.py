"""The distinct among small numbers, checked against NumPy's own."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headatlas.mapping.full_vocabulary import distinct, numbered


@given(st.lists(st.integers(0, 40), max_size=60))
def test_the_same_as_sorting(values: list[int]) -> None:
    numbers = np.array(values, dtype=np.int64)
    expected, where = np.unique(numbers, return_inverse=True)
    np.testing.assert_array_equal(distinct(numbers, 41), expected)
    found, position = numbered(numbers, 41)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(position, where)
