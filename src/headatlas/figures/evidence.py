"""Figures of evidence: static against dynamic scores, and what is left of a task as heads are ablated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from headatlas.figures.colours import LIGHT
from headatlas.figures.describe import decimal
from headatlas.figures.page import (
    BELOW,
    LINE,
    MARGIN,
    AtlasFigure,
    Key,
    Page,
    left_of_panel,
    panel_columns,
    style,
    text_width,
)

_PROMOTION, _SUPPRESSION, _GREY = "#1f7674", "#9c5310", "#8c8c8c"
_POINT: dict[str, dict[str, Any]] = {
    "promotion": {"color": _PROMOTION, "marker": "o"},
    "suppression": {"color": _SUPPRESSION, "marker": "v"},
}
PANEL, LARGEST_PANEL = 28.0, 42.0
SPAN = (-0.035, 1.035)
BIN = 0.025
"""Heads whose points are about so near to each other are one point."""
MOST_NAMED = 4
"""Heads named in a panel."""
TICKS = (0.0, 0.1, 0.5, 1.0)
CURVE_HEIGHT = 42.0
CURVE_WIDTH = 85.0

_CURVES: dict[str, tuple[str, dict[str, Any]]] = {
    "relation": ("heads in order of score", {"color": _PROMOTION, "linewidth": 1.4, "marker": "o"}),
    "added": (
        "in order of added over the no-head control",
        {"color": _SUPPRESSION, "linewidth": 1.0, "linestyle": (0, (4.0, 1.5)), "marker": "D"},
    ),
    "random": (
        "random heads: mean; band: lowest to highest draw",
        {"color": _GREY, "linewidth": 1.0, "marker": "s"},
    ),
}
_MARK: dict[str, Any] = {"markersize": 2.4, "markeredgewidth": 0.0}
_CONTROL = {"color": LIGHT.ink, "linewidth": 0.7}
_CONTROL_DASHES = ((1.0, 1.5), (5.0, 1.5, 1.0, 1.5))


@dataclass(frozen=True)
class Scatter:
    """One panel: a relation.

    Attributes:
        title: Above it.
        static, dynamic: Sign → [n_layers, n_heads] scores.
        r: Sign → Pearson's r, NaN where there is none.
    """

    title: str
    static: Mapping[str, NDArray[np.float64]]
    dynamic: Mapping[str, NDArray[np.float64]]
    r: Mapping[str, float]

    def notes(self) -> dict[str, str]:
        """Sign → r in words."""
        return {sign: f"r = {decimal(value)}" for sign, value in self.r.items()}


@style()
def draw_agreement(
    panels: Sequence[Scatter],
    *,
    title: str,
    dynamic: str,
    tau: float,
    caption: str,
    width_mm: float = 170.0,
) -> AtlasFigure:
    """A panel a relation, a point a head and sign: static score along x, dynamic score along y.

    Most heads score nearly 0 and few score high, so both axes show the square root. ``dynamic`` names the y
    axis, ``tau`` is the score from which a head is called, a grey line on both axes.
    """
    described = "; ".join(
        f"{panel.title}: " + ", ".join(f"{sign} {note}" for sign, note in panel.notes().items())
        for panel in panels
    )
    page = Page(width_mm, title=title, description=f"{dynamic} against score of the map. {described}.")
    columns = panel_columns(page, len(panels), 1, "0.5", smallest=PANEL, largest=LARGEST_PANEL)

    def draw(ax: Axes, panel: Scatter, first: bool) -> None:
        _scatter(ax, panel, tau, columns.width)
        page.name_axes(ax, "Score of the map", dynamic if first else "", "0.5")
        if not first:
            ax.set_yticklabels([])

    rows = columns.rows(panels)
    y = page.panels(columns, MARGIN, rows, columns.width, title=lambda panel: (panel.title, ""), draw=draw)
    keys = [Key.point(sign, markerfacecolor="none", **look) for sign, look in _POINT.items()]
    keys.append(Key(f"τ = {tau:g}", _TAU, line=True))
    return page.finish(page.legend(MARGIN, y, page.inner, keys) + 0.4 * LINE, caption)


_TAU: dict[str, Any] = {"color": "#b5b5b5", "linewidth": 0.5, "linestyle": (0, (3.0, 2.0))}


def _scatter(ax: Axes, panel: Scatter, tau: float, width: float) -> None:
    for set_limits, set_ticks in ((ax.set_xlim, ax.set_xticks), (ax.set_ylim, ax.set_yticks)):
        set_limits(*SPAN)
        set_ticks(np.sqrt(TICKS), [f"{tick:g}" for tick in TICKS])
    ax.plot([0, 1], [0, 1], color=_GREY, linewidth=0.4, zorder=1)
    ax.axvline(np.sqrt(tau), zorder=1, **_TAU)
    ax.axhline(np.sqrt(tau), zorder=1, **_TAU)
    for sign, look in _POINT.items():
        points = np.sqrt(np.stack([panel.static[sign].ravel(), panel.dynamic[sign].ravel()], axis=1))
        at, n = np.unique(np.rint(points[~np.isnan(points).any(axis=1)] / BIN), axis=0, return_counts=True)
        size = 4.0 + 5.0 * np.log10(n)
        colours: dict[str, Any] = {"facecolors": "none", "edgecolors": look["color"], "linewidths": 0.6}
        x, y = BIN * at.T
        ax.scatter(x, y, s=size, marker=look["marker"], zorder=2, label=sign, **colours)
    for line, (sign, note) in enumerate(panel.notes().items()):
        ax.annotate(
            note,
            (0.0, 1.0),
            (2.0, -2.0 - 8.5 * line),
            xycoords="axes fraction",
            textcoords="offset points",
            color=_POINT[sign]["color"],
            va="top",
            ha="left",
        )
    _name_heads(ax, panel, tau, width)


def _name_heads(ax: Axes, panel: Scatter, tau: float, width: float) -> None:
    """Name the heads that score highest, layer.head, where there is room beside their points."""
    best: list[tuple[float, str, float, float, str]] = []
    unit = (SPAN[1] - SPAN[0]) / width
    dot, line = 0.35 * unit, float(np.sqrt(tau))
    taken = [(0.0, 1.0 - 8.0 * unit, 14.0 * unit, 1.1)]  # where r is written
    for sign in _POINT:
        static, dynamic = panel.static[sign], panel.dynamic[sign]
        points = np.sqrt(np.stack([static.ravel(), dynamic.ravel()], axis=1))
        centres = np.unique(np.rint(points / BIN) * BIN, axis=0).tolist()
        taken += [(x - dot, y - dot, x + dot, y + dot) for x, y in centres]
        for layer, head in np.argwhere(np.fmax(static, dynamic) >= tau).tolist():
            x, y = float(static[layer, head]), float(dynamic[layer, head])
            best.append((max(x, y), sign, x**0.5, y**0.5, f"{layer}.{head}"))
    best.sort(reverse=True)
    named = 0
    for _, sign, x, y, name in best:
        wide, high = text_width(name) * unit, 0.75 * LINE * unit
        sides = (unit, -high / 2), (-wide - unit, -high / 2), (-wide / 2, unit), (-wide / 2, -high - unit)
        boxes = [(x + dx, y + dy, x + dx + wide, y + dy + high) for dx, dy in sides]
        free = [
            box
            for box in boxes
            if min(box) > SPAN[0] and max(box) < SPAN[1] and not any(_overlap(box, each) for each in taken)
        ]
        if free and named < MOST_NAMED:
            box = min(free, key=lambda each: _crossed(each, line))
            ax.text(box[0], box[1], name, color=_POINT[sign]["color"], zorder=3)
            taken.append(box)
            named += 1


def _crossed(box: tuple[float, ...], tau: float) -> int:
    """How many of the diagonal and the two lines at tau cross a box (left, bottom, right, top)."""
    left, bottom, right, top = box
    return (left < top and bottom < right) + (left < tau < right) + (bottom < tau < top)


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether two boxes (left, bottom, right, top) share a point."""
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


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
        curves: As :func:`headatlas.evidence.statistics.curves` makes them.
        titles: Control relation → how people call it.
    """
    relation = curves[curves["curve"] == "relation"]
    said = ", ".join(
        f"{a:.2f} after {n}" for n, a in zip(relation["heads"], relation["accuracy"], strict=True)
    )
    page = Page(width_mm, title=title, description=f"Accuracy with the relation's heads ablated: {said}.")
    left = left_of_panel("0.5")
    y = page.lines(left, MARGIN, [title]) + 0.6
    ax = page.axes(left, y, page.width - left - MARGIN - 1.0, CURVE_HEIGHT)
    keys = _curves(ax, curves, titles)
    page.name_axes(ax, "Heads ablated", "Accuracy", "0.5")
    y = page.legend(MARGIN, y + CURVE_HEIGHT + BELOW + 1.5, page.inner, keys) + 0.4 * LINE
    return page.finish(y, caption)


def _curves(ax: Axes, curves: pd.DataFrame, titles: Mapping[str, str]) -> list[Key]:
    """Draw every curve, those that coincide as one; returns the legend."""
    ax.set_ylim(0.0, 1.0)
    ax.set_yticks([0.0, 0.5, 1.0], ["0", "0.5", "1"])
    dashes = cycle(_CONTROL_DASHES)
    drawn: dict[tuple[float, ...], Key] = {}
    for name, rows in curves.groupby("curve", sort=False):
        at = np.log2(1.0 + rows["heads"].to_numpy(dtype=np.float64))
        low, high = (rows[end].to_numpy(dtype=np.float64) for end in ("low", "high"))
        if str(name) in _CURVES:
            label, look = _CURVES[str(name)]
        else:
            control = str(name).removeprefix("control: ")
            label = f"control task: {titles.get(control, control)}"
            look = {**_CONTROL, "linestyle": (0, next(dashes))}
        if str(name) == "random":
            ax.fill_between(at, low, high, color=_GREY, alpha=0.25, linewidth=0.0)
        if str(name) == "relation":
            ax.vlines(at, low, high, color=look["color"], linewidth=0.6, zorder=3, clip_on=False)
        course = tuple(rows["accuracy"].tolist())
        if course in drawn:
            drawn[course] = replace(drawn[course], label=f"{drawn[course].label}; the same: {label}")
            continue
        # Dashes over the solid line: both are seen where they agree.
        above = {"added": 4, "relation": 3}.get(str(name), 2)
        ax.plot(at, course, label=label, zorder=above, clip_on=False, **_MARK, **look)
        drawn[course] = Key(label, {**_MARK, **look}, line=True)
    steps = curves["heads"].unique()
    ax.set_xticks(np.log2(1.0 + steps.astype(np.float64)), [str(n) for n in steps])
    ends = float(np.log2(1.0 + steps.max()))
    ax.set_xlim(-0.02 * ends, 1.02 * ends)
    return list(drawn.values())
