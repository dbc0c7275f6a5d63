"""The salience figure: each cell has the colour of its number, and nothing is drawn of nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from headatlas.errors import HeadatlasError
from headatlas.figures.colours import LIGHT, STEPS
from headatlas.figures.grids import Which
from headatlas.figures.measures import MEASURES, draw_salience
from headatlas.figures.page import AtlasFigure
from headatlas.options import Look

FRAME = pd.DataFrame(
    {
        "layer": [0, 0, 2, 2],
        "head": [0, 1, 0, 1],
        "explained": [0.0, 1.0, 0.25, np.nan],
        "copying": [1.0, -1.0, 0.0, np.nan],
        "effective_rank": [10.0, 40.0, 20.0, np.nan],
        "norm_share": [0.5, 0.25, 0.0, np.nan],
    }
)


class Made:
    """What a salience says of its heads."""

    def by_head(self) -> pd.DataFrame:
        return FRAME

    def caption(self) -> str:
        return "c"


ATLAS: Any = SimpleNamespace(n_layers=3, n_heads=2, model_name="Made", place=None)


def drawn(width_mm: float, which: Which = None, look: Look | None = None) -> AtlasFigure:
    found: Any = Made()
    return draw_salience(ATLAS, width_mm, which, look or Look(), found=found)


def colours(name: str) -> dict[str, set[tuple[int, int]]]:
    """Colour → the cells, as layer and head, that a panel fills with it."""
    figure = drawn(80.0, [name])
    filled: dict[str, set[tuple[int, int]]] = {}
    for patch in figure.axes[0].patches:
        if patch.get_fill() and patch.get_zorder() != 0.5:
            inside = {(x, y) for x in range(3) for y in range(2) if patch.get_path().contains_point((x, y))}
            filled.setdefault(to_hex(patch.get_facecolor()), set()).update(inside)
    return filled


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("explained", {(0, 1): 1.0, (2, 0): 0.25}),
        ("copying", {(0, 0): 1.0, (0, 1): -1.0}),
        ("effective_rank", {(0, 1): 1.0, (2, 0): 1 / 9}),
        ("norm_share", {(0, 0): 1.0, (0, 1): 0.25}),
    ],
)
def test_cells_have_the_colour_of_their_number(name: str, cells: dict[tuple[int, int], float]) -> None:
    filled = colours(name)
    for cell, value in cells.items():
        scale = LIGHT.scores(suppression=value < 0)
        assert cell in filled[scale[round(abs(value) * STEPS)]]
    scales = {*LIGHT.scores()[1:], *LIGHT.scores(suppression=True)[1:]}
    assert set.union(*(found for colour, found in filled.items() if colour in scales)) == set(cells)


def test_words_say_the_range_and_the_first_head() -> None:
    figure = drawn(170.0, look=Look(dark=True))
    assert len([ax for ax in figure.axes if ax.patches]) == len(MEASURES)
    assert "Copying: -1.00 to 1.00, most 0.0" in figure.description
    assert "Effective rank: 10.00 to 40.00, most 0.1" in figure.description


def test_nothing_is_drawn_of_nothing() -> None:
    with pytest.raises(HeadatlasError, match="run `headatlas salience` first"):
        draw_salience(ATLAS, 170.0, None, Look())
    with pytest.raises(HeadatlasError, match="measure"):
        drawn(170.0, ["nonsense"])
