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
from headatlas.figures.colours import INK, score_colours
from headatlas.figures.grids import choose
from headatlas.figures.page import (
    LINE,
    MARGIN,
    MM,
    AtlasFigure,
    Key,
    Page,
    panel_columns,
    panel_height,
    style,
)

STEPS = 40
"""Colours from nothing to all."""
BAR, BAR_WIDTH = 2.4, 50.0
"""Height and width of the colour bar."""
_UNITS = {"entropy": "nats", "distance": "tokens", "distance_variance": "tokens²"}


@style()
def draw_behaviours(
    frame: pd.DataFrame,
    shape: tuple[int, int],
    width_mm: float,
    which: str | Sequence[str] | None = None,
    *,
    title: str,
    caption: str,
) -> AtlasFigure:
    """A panel a behaviour, [layer × head], coloured by value; heads that are called outlined.

    Shares of attention have one scale, from none to all of it. Entropy, distance and its variance have one
    each, up to the largest value, which their titles name.

    Args:
        frame: As :attr:`Atlas.behaviours` is.
        shape: Layers and heads of the model.
        width_mm: Exact width.
        which: Behaviours, by name; all that were measured by default.
        title: Of the file.
        caption: The line under the figure.

    Raises:
        HeadatlasError: No behaviour was measured, there is no such one, or the width is out of range.
    """
    if frame.empty:
        raise HeadatlasError("no behaviour of this atlas was measured; run `headatlas behaviour` first.")
    there = [each for each in BEHAVIOURS if (frame["behaviour"] == each.name).any()]
    names = choose(which, [each.name for each in there], "behaviour")
    shown = [each for name in names for each in there if each.name == name]
    page = Page(width_mm, title=title, description=_words(frame, shown))
    layout = panel_columns(page, len(shown), shape[0], left=panels.axis_room(shape[1]), smallest=25.0)
    height = panel_height(shape[1], layout.cell, layout.width, flat=0.8)
    seen = np.zeros(shape[0], dtype=bool)
    seen[frame["layer"].unique()] = True
    y = MARGIN
    for row in layout.rows(shown):
        y = panels.row_of_titles(page, layout, y, [_title(frame, each) for each in row])
        for number, (x, each) in enumerate(zip(layout.lefts, row, strict=False)):
            ax = page.axes(x, y, layout.width, height)
            mine = frame[frame["behaviour"] == each.name]
            draw_behaviour_panel(ax, mine, seen, shape[1], cell=min(layout.cell, height / shape[1]))
            panels.finish_axes(page, ax, (x, y, layout.width, height), shape, first=number == 0)
        y += height + panels.axis_height() + 1.5
    y = _scale(page, y, seen) + 0.4 * LINE
    return page.finish(page.caption(y, caption) + MARGIN)


def draw_behaviour_panel(
    ax: Axes, rows: pd.DataFrame, seen: NDArray[np.bool_], n_heads: int, *, cell: float
) -> None:
    """One behaviour's cells.

    Args:
        ax: Where to.
        rows: Its rows.
        seen: [n_layers] layers whose heads were watched.
        n_heads: Heads of a layer.
        cell: Smaller side of a cell in millimetres, which decides how thick outlines are.
    """
    shape = (len(seen), n_heads)
    at = rows["layer"].to_numpy(), rows["head"].to_numpy()
    level, called = np.zeros(shape, dtype=int), np.zeros(shape, dtype=bool)
    level[at] = np.rint(rows["value"].to_numpy() / _top(rows) * STEPS).clip(0, STEPS)
    called[at] = rows["called"].to_numpy()
    panels.prepare_panel(ax, seen, n_heads)
    palette = score_colours(STEPS + 1)
    for step in np.unique(level[level > 0]):
        panels.fill(ax, level == step, palette[step], zorder=1)
    if cell >= panels.CELL_FOR_LINES:
        panels.separate(ax, *shape)
    panels.outline(ax, called, min(0.7, 0.14 * cell / MM * 72), zorder=3)


def _top(rows: pd.DataFrame) -> float:
    """The value that has the darkest colour."""
    unit = _UNITS.get(str(rows["behaviour"].iloc[0]))
    return 1.0 if unit is None else max(float(rows["value"].max()), 1e-9)


def _title(frame: pd.DataFrame, each: Behaviour) -> str:
    unit = _UNITS.get(each.name)
    if unit is None:
        return each.title
    return f"{each.title}, 0 to {_top(frame[frame['behaviour'] == each.name]):.3g} {unit}"


def _words(frame: pd.DataFrame, shown: Sequence[Behaviour]) -> str:
    """The alternative text: heads called, and the strongest one, of each behaviour that is tested."""
    parts = []
    for each in shown:
        rows = frame[frame["behaviour"] == each.name]
        if each.tested:
            best = best_first(rows).to_dict("records")[0]
            parts.append(
                f"{each.title}: {int(rows['called'].sum())} called, most {best['layer']}.{best['head']} "
                f"({best['value']:.2f})"
            )
    return f"Heatmaps of layer by head, one a behaviour, coloured by attention. {'; '.join(parts)}."


def _scale(page: Page, y: float, seen: NDArray[np.bool_]) -> float:
    """The colour bar and the legend; returns the height below them."""
    width = min(BAR_WIDTH, page.inner - 4.0)
    left = MARGIN + 2.0
    page.text(left + width / 2, y, "share of attention", ha="center")
    top = y + LINE + 0.3
    for number in range(1, STEPS + 1):
        # Each colour reaches to the end and the next is laid over it: no seams between them.
        begun = width * (number - 0.5) / STEPS
        page.box(left + begun, top, width - begun, BAR, facecolor=score_colours(STEPS + 1)[number])
    page.box(left, top, width, BAR, facecolor="none", edgecolor=INK, linewidth=0.4)
    for tick in (0.0, 0.5, 1.0):
        at = left + width * tick
        page.line([at, at], [top + BAR, top + BAR + 0.7], color=INK, linewidth=0.4)
        page.text(at, top + BAR + 0.8, f"{tick:g}", ha="center")
    below = top + BAR + 0.8 + LINE
    look = {"facecolor": score_colours(5)[2], "edgecolor": INK, "linewidth": 0.7}
    keys = [Key("called: more than expected", look)]
    keys += [] if seen.all() else [panels.not_mapped_key()]
    beside = left + width + 10.0
    if page.width - MARGIN - beside > 40.0:
        return max(below, page.legend(beside, top, page.width - MARGIN - beside, keys))
    return page.legend(MARGIN, below + 0.4 * LINE, page.inner, keys)
