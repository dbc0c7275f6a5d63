"""The behaviours figure: how much every head attends to each kind of place, one panel a behaviour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from headatlas.atlas.behaviours import BEHAVIOURS, Behaviour, best_first
from headatlas.errors import HeadatlasError
from headatlas.figures import panels
from headatlas.figures.colours import Palette
from headatlas.figures.grids import Which, choose
from headatlas.figures.page import (
    DEFAULT_LOOK,
    AtlasFigure,
    Key,
    Page,
)
from headatlas.figures.panels import Cell
from headatlas.options import Look

_UNITS = {"entropy": "nats", "distance": "tokens", "distance_variance": "tokens²"}


def draw_behaviours(
    frame: pd.DataFrame,
    shape: tuple[int, int],
    width_mm: float,
    which: Which = None,
    look: Look = DEFAULT_LOOK,
    *,
    title: str,
    caption: str,
) -> AtlasFigure:
    """A panel a behaviour, [layer × head], coloured by value; heads that are called outlined.

    Titles say how many heads are called. Shares of attention have one scale, from none to all of it. Entropy,
    distance and its variance have one each, up to the largest value, which their titles name.

    Args:
        frame: As :attr:`Atlas.behaviours` is.
        shape: Layers and heads of the model.
        width_mm: Exact width.
        which: Behaviours, by name; all that were measured by default.
        look: The figure's look.
        title: Of the file.
        caption: The line under the figure.

    Raises:
        HeadatlasError: No behaviour was measured, there is no such one, or the width is out of range.
    """
    if frame.empty:
        raise HeadatlasError("no behaviour of this atlas was measured; run `headatlas behaviour` first.")
    rows = {str(name): part for name, part in frame.groupby("behaviour")}
    there = {each.name: each for each in BEHAVIOURS if each.name in rows}
    shown = [there[name] for name in choose(which, list(there), "behaviour")]
    page = Page(width_mm, look, title=title, description=_words(rows, shown))
    seen = np.isin(np.arange(shape[0]), frame["layer"])

    def cells(ax: Axes, each: Behaviour, cell: Cell) -> None:
        draw_behaviour_panel(ax, rows[each.name], seen, shape[1], page.palette, cell=cell)

    def scale(x: float, y: float, width: float, *, draw: bool = True) -> float:
        palette = page.palette
        called = {"facecolor": palette.scores(5)[2], "edgecolor": palette.ink, "linewidth": 0.7}
        keys = [Key("called: more than expected", called), *panels.not_mapped_keys(seen, palette)]
        colours = palette.scores(panels.STEPS + 1)
        return panels.colour_bar(page, {"share of attention": colours}, keys, (x, y, width), draw=draw)

    return panels.draw_measures(
        page,
        shown,
        shape,
        caption,
        cells=cells,
        title=lambda each: _title(rows[each.name], each),
        scale=scale,
    )


def draw_behaviour_panel(
    ax: Axes, rows: pd.DataFrame, seen: NDArray[np.bool_], n_heads: int, palette: Palette, *, cell: Cell
) -> None:
    """One behaviour's cells.

    Args:
        ax: Where to.
        rows: Its rows.
        seen: [n_layers] layers whose heads were watched.
        n_heads: Heads of a layer.
        palette: The colours.
        cell: Its size, which decides how thick lines are.
    """
    shape = (len(seen), n_heads)
    at = rows["layer"].to_numpy(), rows["head"].to_numpy()
    step, called = np.zeros(shape, dtype=int), np.zeros(shape, dtype=bool)
    value = (rows["value"].to_numpy() / _top(rows)).clip(0.0, 1.0)
    # Colours go by the square root, which suits shares; squares make them even for the rest.
    shown = value**2 if rows["behaviour"].iloc[0] in _UNITS else value
    step[at] = np.rint(shown * panels.STEPS)
    called[at] = rows["called"].to_numpy()
    panels.prepare_panel(ax, seen, n_heads, palette)
    panels.fill_steps(ax, step, palette.scores(panels.STEPS + 1))
    panels.separate(ax, shape, cell, palette)
    panels.outline(ax, called, cell, palette)


def _top(rows: pd.DataFrame) -> float:
    """The value that has the darkest colour."""
    return max(float(rows["value"].max()), 1e-9) if rows["behaviour"].iloc[0] in _UNITS else 1.0


def _title(rows: pd.DataFrame, each: Behaviour) -> str:
    if each.name in _UNITS:
        return f"{each.title}, 0 to {_top(rows):.3g} {_UNITS[each.name]}"
    return f"{each.title}, n = {int(rows['called'].sum())}" if each.tested else each.title


def _words(rows: dict[str, pd.DataFrame], shown: Sequence[Behaviour]) -> str:
    """The alternative text: heads called, and the strongest one, of each behaviour that is tested."""
    parts = []
    for each in shown:
        if each.tested:
            best = best_first(rows[each.name]).to_dict("records")[0]
            parts.append(
                f"{each.title}: {int(rows[each.name]['called'].sum())} called, most "
                f"{best['layer']}.{best['head']} ({best['value']:.2f})"
            )
    return f"Heatmaps of layer by head, one a behaviour, coloured by attention. {'; '.join(parts)}."
