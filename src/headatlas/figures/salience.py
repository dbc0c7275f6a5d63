"""The salience figure: share explained, copying, effective rank and norm of every head, a panel each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from headatlas.errors import HeadatlasError
from headatlas.figures import panels
from headatlas.figures.colours import Palette
from headatlas.figures.grids import Which, choose
from headatlas.figures.page import (
    DEFAULT_LOOK,
    AtlasFigure,
    Page,
)
from headatlas.figures.panels import Cell
from headatlas.options import Look


@dataclass(frozen=True)
class Measure:
    """A number of every head.

    Attributes:
        name: Its column.
        title: Of its panel.
        largest: What has the strongest colour, where that is not the largest number there is.
        from_least: Whether the faintest colour is that of the smallest number there is, and not of 0.
    """

    name: str
    title: str
    largest: float | None = None
    from_least: bool = False


MEASURES = (
    Measure("explained", "Share explained", 1.0),
    Measure("copying", "Copying, −1 to 1", 1.0),
    Measure("effective_rank", "Effective rank", from_least=True),
    Measure("norm_share", "Norm share"),
)


def draw_salience(
    frame: pd.DataFrame,
    shape: tuple[int, int],
    width_mm: float,
    which: Which = None,
    look: Look = DEFAULT_LOOK,
    *,
    title: str,
    caption: str,
) -> AtlasFigure:
    """A panel a measure, [layer × head], coloured by value; below 0 in the colour of suppression.

    Colours go by the square root of the value, but evenly for effective rank. Share explained and copying
    reach from 0 to 1, the share of the layer's norm to the largest there is, effective rank from the smallest
    to the largest; titles name these.

    Args:
        frame: A row a head: layer, head and a column a measure.
        shape: Layers and heads of the model.
        width_mm: Exact width.
        which: Measures, by name; all by default.
        look: The figure's look.
        title: Of the file.
        caption: The line under the figure.

    Raises:
        HeadatlasError: Nothing was computed, there is no such measure, or the width is out of range.
    """
    if frame.empty:
        raise HeadatlasError("the salience of this atlas was not computed; run `headatlas salience` first.")
    known = {each.name: each for each in MEASURES}
    shown = [known[name] for name in choose(which, list(known), "measure")]
    page = Page(width_mm, look, title=title, description=_words(frame, shown))
    seen = np.isin(np.arange(shape[0]), frame["layer"])

    def cells(ax: Axes, each: Measure, cell: Cell) -> None:
        draw_measure_panel(ax, frame, each, seen, shape[1], page.palette, cell=cell)

    def scale(x: float, y: float, width: float, *, draw: bool = True) -> float:
        palette = page.palette
        named = {"value": palette.scores(panels.STEPS + 1)}
        if any(each.name == "copying" for each in shown):
            named = {"below 0": palette.scores(panels.STEPS + 1, suppression=True), **named}
        keys = panels.not_mapped_keys(seen, palette)
        return panels.colour_bar(page, named, keys, (x, y, width), draw=draw)

    return panels.draw_measures(
        page, shown, shape, caption, cells=cells, title=lambda each: _title(frame, each), scale=scale
    )


def draw_measure_panel(
    ax: Axes,
    frame: pd.DataFrame,
    each: Measure,
    seen: NDArray[np.bool_],
    n_heads: int,
    palette: Palette,
    *,
    cell: Cell,
) -> None:
    """One measure's cells.

    Args:
        ax: Where to.
        frame: As for :func:`draw_salience`.
        each: The measure.
        seen: [n_layers] layers that have numbers.
        n_heads: Heads of a layer.
        palette: The colours.
        cell: Its size, which decides how thick lines are.
    """
    shape = (len(seen), n_heads)
    value = np.zeros(shape)
    least, largest = _range(frame, each)
    numbers = (frame[each.name].fillna(least).to_numpy(dtype=float) - least) / max(largest - least, 1e-9)
    # Colours go by the square root, which suits shares; squares make them even.
    at = frame["layer"].to_numpy(), frame["head"].to_numpy()
    value[at] = numbers**2 if each.from_least else numbers
    panels.prepare_panel(ax, seen, n_heads, palette)
    for sign in (1, -1):
        step = np.rint((sign * value).clip(0.0, 1.0) * panels.STEPS).astype(int)
        panels.fill_steps(ax, step, palette.scores(panels.STEPS + 1, suppression=sign < 0))
    panels.separate(ax, shape, cell, palette)


def _range(frame: pd.DataFrame, each: Measure) -> tuple[float, float]:
    """The values that have the faintest and the strongest colour."""
    numbers = frame[each.name].dropna()
    if not len(numbers):
        return 0.0, 1.0
    least = float(numbers.min()) if each.from_least else 0.0
    return least, float(numbers.max()) if each.largest is None else each.largest


def _title(frame: pd.DataFrame, each: Measure) -> str:
    least, largest = _range(frame, each)
    return each.title if each.largest is not None else f"{each.title}, {least:.3g} to {largest:.3g}"


def _words(frame: pd.DataFrame, shown: list[Measure]) -> str:
    """The alternative text: the range of each measure, and the head that has the most of it."""
    parts = []
    for each in shown:
        numbers = frame[each.name].dropna()
        if len(numbers):
            best = frame.iloc[int(np.nanargmax(frame[each.name]))]
            parts.append(
                f"{each.title}: {numbers.min():.2f} to {numbers.max():.2f}, most "
                f"{int(best['layer'])}.{int(best['head'])}"
            )
    return f"Heatmaps of layer by head, one a measure, coloured by value. {'; '.join(parts)}."
