"""Figures of evidence: static against dynamic scores, and what is left of a task as heads are ablated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from headatlas.figures.categories import row_of_titles
from headatlas.figures.colours import INK
from headatlas.figures.page import LINE, MARGIN, AtlasFigure, Key, Page, columns, style, text_width

_PROMOTION, _SUPPRESSION, _GREY = "#1f7674", "#cf8a45", "#8c8c8c"
_POINT: dict[str, dict[str, Any]] = {
    "promotion": {"color": _PROMOTION, "marker": "o"},
    "suppression": {"color": _SUPPRESSION, "marker": "_"},
}
PANEL = 29.0
CURVE_HEIGHT = 42.0
CURVE_WIDTH = 85.0

_CURVES: dict[str, tuple[str, dict[str, Any]]] = {
    "relation": ("heads in order of score", {"color": _PROMOTION, "linewidth": 1.4}),
    "added": (
        "in order of added over the no-head control",
        {"color": "#9c5310", "linewidth": 1.0, "linestyle": (0, (4.0, 1.5))},
    ),
    "random": ("random heads: mean; band: lowest to highest draw", {"color": _GREY, "linewidth": 1.0}),
}
_CONTROL = {"color": INK, "linewidth": 0.7}
_CONTROL_DASHES = ((1.0, 1.5), (5.0, 1.5, 1.0, 1.5))


@dataclass(frozen=True)
class Scatter:
    """One panel: a relation.

    Attributes:
        title: Above it.
        static, dynamic: Sign → [n_heads] scores.
        note: Written inside, e.g. ``"r 0.94"``.
    """

    title: str
    static: Mapping[str, NDArray[np.float64]]
    dynamic: Mapping[str, NDArray[np.float64]]
    note: str


@style()
def draw_agreement(
    panels: Sequence[Scatter], *, title: str, dynamic: str, caption: str, width_mm: float = 170.0
) -> AtlasFigure:
    """A panel a relation, a point a head and sign: static score along x, dynamic score along y.

    Args:
        panels: What to draw.
        title: Of the figure, for the file.
        dynamic: Name of the y axis.
        caption: The line under it.
        width_mm: Width as printed.
    """
    described = "; ".join(f"{panel.title}: {panel.note}" for panel in panels)
    page = Page(width_mm, title=title, description=f"{dynamic} against score of the map. {described}.")
    left = MARGIN + LINE + text_width("0.5") + 2.4
    layout = columns(page, len(panels), 1, left=left, smallest=PANEL, balance=False)
    y = MARGIN
    for row in layout.rows(panels):
        y = row_of_titles(page, layout, y, [panel.title for panel in row])
        for number, (x, panel) in enumerate(zip(layout.lefts, row, strict=False)):
            ax = page.axes(x, y, layout.width, layout.width)
            _scatter(ax, panel)
            page.text(x + layout.width / 2, y + layout.width + 3.2, "Score of the map", ha="center")
            if number:
                ax.set_yticklabels([])
            else:
                middle = y + layout.width / 2 - 0.8 * LINE
                at = x - 2.2 - text_width("0.5") - 0.35 * LINE
                page.text(at, middle, dynamic, rotation=90, ha="center", va="center")
        y += layout.width + 3.2 + LINE + 1.5
    keys = [
        Key("promotion, a point a head", {"facecolor": _PROMOTION}),
        Key("suppression", {"facecolor": _SUPPRESSION}),
    ]
    y = page.legend(MARGIN, y, page.inner, keys) + 0.4 * LINE
    return page.finish(page.caption(y, caption) + MARGIN)


def _scatter(ax: Axes, panel: Scatter) -> None:
    ax.set_xlim(-0.03, 1.03)
    ax.set_ylim(-0.03, 1.03)
    ticks = [0.0, 0.5, 1.0]
    for set_ticks in (ax.set_xticks, ax.set_yticks):
        set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.plot([0, 1], [0, 1], color=_GREY, linewidth=0.4, zorder=1)
    for sign, look in _POINT.items():
        ax.plot(
            panel.static[sign].ravel(),
            panel.dynamic[sign].ravel(),
            linestyle="none",
            markersize=2.2,
            markeredgewidth=0.7 if look["marker"] == "_" else 0.0,
            alpha=0.7,
            zorder=2,
            label=sign,
            **look,
        )
    ax.text(0.03, 0.97, panel.note, va="top", ha="left", transform=ax.transAxes)


@style()
def draw_ablation(
    curves: pd.DataFrame,
    titles: Mapping[str, str],
    *,
    title: str,
    caption: str,
    width_mm: float = CURVE_WIDTH,
) -> AtlasFigure:
    """Accuracy on a task as heads are ablated.

    Args:
        curves: As :func:`headatlas.evidence.curves.curves` makes them.
        titles: Control relation → how people call it.
        title: Above the panel.
        caption: The lines under it.
        width_mm: Width as printed.
    """
    relation = curves[curves["curve"] == "relation"]
    said = ", ".join(
        f"{a:.2f} after {n}" for n, a in zip(relation["heads"], relation["accuracy"], strict=True)
    )
    page = Page(width_mm, title=title, description=f"Accuracy with the relation's heads ablated: {said}.")
    left = MARGIN + LINE + text_width("0.5") + 2.4
    y = page.lines(left, MARGIN, [title]) + 0.6
    ax = page.axes(left, y, page.width - left - MARGIN - 1.0, CURVE_HEIGHT)
    keys = _curves(ax, curves, titles)
    page.text(left + (page.width - left) / 2, y + CURVE_HEIGHT + 3.2, "Heads ablated", ha="center")
    middle = y + CURVE_HEIGHT / 2 - 0.8 * LINE
    page.text(MARGIN + 0.65 * LINE, middle, "Accuracy", rotation=90, ha="center", va="center")
    y += CURVE_HEIGHT + 3.2 + LINE + 1.2
    y = page.legend(MARGIN, y, page.inner, keys) + 0.4 * LINE
    return page.finish(page.caption(y, caption) + MARGIN)


def _curves(ax: Axes, curves: pd.DataFrame, titles: Mapping[str, str]) -> list[Key]:
    """Draw every curve; returns the legend."""
    keys = []
    ax.set_ylim(0.0, 1.0)
    ax.set_yticks([0.0, 0.5, 1.0], ["0", "0.5", "1"])
    dashes = cycle(_CONTROL_DASHES)
    for name, rows in curves.groupby("curve", sort=False):
        at = np.log2(1.0 + rows["heads"].to_numpy(dtype=np.float64))
        if str(name) in _CURVES:
            label, look = _CURVES[str(name)]
        else:
            control = str(name).removeprefix("control: ")
            label = f"control task: {titles.get(control, control)}"
            look = {**_CONTROL, "linestyle": (0, next(dashes))}
        if str(name) == "random":
            low, high = rows["low"].to_numpy(dtype=float), rows["high"].to_numpy(dtype=float)
            ax.fill_between(at, low, high, color=_GREY, alpha=0.25, linewidth=0.0)
        # Dashes over the solid line: both are seen where they agree.
        above = {"added": 4, "relation": 3}.get(str(name), 2)
        ax.plot(at, rows["accuracy"], label=label, zorder=above, **look)
        keys.append(Key(label, dict(look), line=True))
    steps = curves["heads"].unique()
    ax.set_xticks(np.log2(1.0 + steps.astype(np.float64)), [str(n) for n in steps])
    ax.set_xlim(0.0, float(np.log2(1.0 + steps.max())))
    return keys
