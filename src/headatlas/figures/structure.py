"""The structure figure: likeness within key/value groups, relations per head, depth of categories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from headatlas.arrangement.model_structure import CategoryDepth, Likeness, Structure
from headatlas.figures.describe import decimal
from headatlas.figures.page import (
    DEFAULT_LOOK,
    GAP,
    LINE,
    MARGIN,
    RIGHT,
    AtlasFigure,
    Key,
    Page,
    PanelColumns,
    counted_ticks,
    left_of_panel,
    style,
    text_width,
    wrap,
)
from headatlas.figures.panels import layer_ticks
from headatlas.options import Look
from headatlas.scoring.scores import p_value

if TYPE_CHECKING:
    from headatlas.atlas import Atlas

_PAIRS = (
    "Likeness: cosine of two heads' scores, sign ignored, mean over pairs of a layer; larger points are "
    "means of more pairs."
)
_DEPTHS = "Layers: bars are quartiles, dots layers with such a head, in brackets the number of heads."
HEIGHT = 30.0
SMALLEST = 36.0
"""Panels narrower than this go under each other."""
NO_HEADS = "no head implements or suppresses a relation"


@dataclass(frozen=True)
class Part:
    """A panel: its title, the widest label of its y axis, and what draws it."""

    title: str
    labels: str
    draw: Callable[[Page, Axes, Structure, float], list[Key]]
    x_name: str
    y_name: str = ""


def draw_structure(atlas: Atlas, found: Structure, width_mm: float, look: Look = DEFAULT_LOOK) -> AtlasFigure:
    """Panels for what could be computed; the others say why not."""
    description = f"{describe_structure(found)} {atlas.caption()}."
    page = Page(
        width_mm, look, title=f"Structure of the heads of {atlas.model_name}", description=description
    )
    names = [_counted(row) for row in found.depths.categories]
    shown = [
        Part("Likeness in key/value groups", "0.5", _groups_panel, "Layer", "Mean cosine"),
        Part("Relations per head", f"{_most(found):,}", _per_head_panel, "Relations", "Heads"),
        Part("Layers by category", max(names, key=text_width, default=""), _depth_panel, "Layer"),
    ]
    lefts = [left_of_panel(part.labels) - (0.0 if part.y_name else LINE) for part in shown]
    width = (page.width - RIGHT - sum(lefts) - 2 * GAP) / 3
    if width >= SMALLEST:
        steps = [sum(lefts[: at + 1]) + at * (width + GAP) for at in range(3)]
    else:
        width, steps = page.width - RIGHT - max(lefts), [max(lefts)]
    columns = PanelColumns(tuple(steps), width, width)
    keys: list[Key] = []

    def draw(ax: Axes, part: Part, _first: bool) -> None:
        ax.grid(visible=False)
        drawn = part.draw(page, ax, found, width)
        keys.extend(drawn)
        if drawn:
            page.name_axes(ax, part.x_name, part.y_name, part.labels)
        if drawn and part.x_name == "Layer":
            ax.set_xlim(-0.7, atlas.n_layers - 0.3)
            layer_ticks(ax, atlas.n_layers, width)

    reading = [_PAIRS] * bool(found.groups) + [_DEPTHS] * bool(found.depths.categories)
    with style(page.palette):
        y = page.panels(columns, shown, HEIGHT, title=lambda part: (part.title, ""), draw=draw)
        y = page.legend(MARGIN, y, page.inner, keys) + 0.4 * LINE
        return page.finish(y, " ".join([*reading, atlas.caption()]))


def describe_structure(found: Structure) -> str:
    """The tests in words, for screen readers; the figure shows what they are about."""
    parts = [_likeness_words(likeness) for likeness in found.groups]
    if found.no_groups:
        parts.append(f"Key/value groups: {found.no_groups}.")
    if found.per_head is not None and found.per_head.dispersion is not None and found.per_head.p is not None:
        parts.append(
            f"Relations per head vary {found.per_head.dispersion:.1f} times as much as by chance "
            f"({p_value(found.per_head.p)})."
        )
    comparison = found.depths.comparison
    if comparison is not None:
        parts.append(
            f"Depth by category: Kruskal–Wallis {p_value(comparison.p)}, ε² = {comparison.epsilon2:.2f}."
        )
    return " ".join(parts)


def _likeness_words(likeness: Likeness) -> str:
    what = {"signed": "with the sign", "unsigned": "whatever the sign"}[likeness.measure]
    interval = (
        ""
        if likeness.low is None or likeness.high is None
        else f"95 % interval {decimal(likeness.low)} to {decimal(likeness.high)}, "
    )
    return (
        f"Cosine of scores {what}: {decimal(likeness.within)} within groups, {decimal(likeness.between)} "
        f"between (difference {decimal(likeness.difference)}, {interval}{p_value(likeness.p)})."
    )


def _groups_panel(page: Page, ax: Axes, found: Structure, width: float) -> list[Key]:
    """Mean cosine (whatever the sign) within and between groups, layer by layer; size says how many pairs.

    Both kinds of points are hollow: none hides another.
    """
    if not found.groups:
        return _nothing(page, ax, found.no_groups or "", width)
    likeness = next(each for each in found.groups if each.measure == "unsigned")
    layers = [each.layer for each in likeness.by_layer]
    for each in likeness.by_layer:
        ax.plot(
            [each.layer] * 2, [each.within, each.between], color=page.palette.soft, linewidth=0.5, zorder=1
        )
    between = [(each.between, each.n_between) for each in likeness.by_layer]
    within = [(each.within, each.n_within) for each in likeness.by_layer]
    colours = page.palette.levels(4)[2], page.palette.scores(5, suppression=True)[2]
    keys = []
    names = ("one group", "different groups")
    for name, colour, marker, points in zip(names, colours, "os", (within, between), strict=True):
        means, pairs = np.array(points).T
        # A mean of few pairs is a small point.
        size = 4.0 + 14.0 * pairs / pairs.max()
        hollow: dict[str, Any] = {"facecolors": "none", "edgecolors": colour, "linewidths": 0.8}
        ax.scatter(layers, means, s=size, marker=marker, label=name, zorder=2, **hollow)
        keys.append(Key.point(name, color=colour, marker=marker, markerfacecolor="none"))
    ax.set_ylim(-0.07, 1.07)
    ax.set_yticks([0.0, 0.5, 1.0], ["0", "0.5", "1"])
    return keys


def _per_head_panel(page: Page, ax: Axes, found: Structure, width: float) -> list[Key]:
    """Heads by number of relations, and by chance; heads with none are many, so they are written out."""
    per_head = found.per_head
    if per_head is None or len(per_head.observed) == 1:
        return _nothing(page, ax, NO_HEADS, width)
    number, colour = np.arange(1, len(per_head.observed)), page.palette.soft
    ax.bar(number, per_head.observed[1:], width=0.8, color=colour, label="heads", linewidth=0.0)
    look: dict[str, Any] = {"color": page.palette.ink, "linewidth": 1.4}
    ax.hlines(per_head.expected_counts[1:], number - 0.4, number + 0.4, label="by chance", zorder=2, **look)
    ax.set_xlim(0.4, len(per_head.observed) - 0.4)
    ticks = counted_ticks(len(number), width, text_width("10"))
    ax.set_xticks(ticks, [str(at) for at in ticks])
    ax.set_ylim(0.0, _most(found) * 1.25)  # room for the note above the bars
    heads = [int(at) for at in MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]).tick_values(0, _most(found))]
    heads = [at for at in heads if at <= _most(found)]
    ax.set_yticks(heads, [f"{at:,}" for at in heads])
    none = f"none: {per_head.observed[0]:,}, by chance {per_head.expected_counts[0]:,.0f}"
    ax.text(0.97, 0.95, none, transform=ax.transAxes, ha="right", va="top")
    return [Key("heads", {"facecolor": colour}), Key("by chance", look, line=True)]


def _depth_panel(page: Page, ax: Axes, found: Structure, width: float) -> list[Key]:
    """Quartiles of layer for each category, on all sources and on single-token sources."""
    rows = found.depths.categories
    if not rows:
        return _nothing(page, ax, NO_HEADS, width)
    single = (
        {} if found.depths_single is None else {row.category: row for row in found.depths_single.categories}
    )
    every, one = page.palette.levels(4)[1], page.palette.levels(4)[0]
    for number, row in enumerate(rows):
        at = len(rows) - 1 - number
        _box(page, ax, row, at + (0.17 if single else 0.0), every)
        if row.category in single:
            _box(page, ax, single[row.category], at - 0.17, one)
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.set_yticks(range(len(rows)), [_counted(row) for row in reversed(rows)])
    named = [("all sources", every), ("sources of one token", one)] if single else []
    keys = [Key(name, {"facecolor": colour}) for name, colour in named]
    tick = {"marker": "|", "markersize": 7.0, "markeredgewidth": 1.4}
    return [*keys, Key.point("median", color=page.palette.ink, **tick)]


def _most(found: Structure) -> int:
    """The largest number on the axis of heads."""
    per_head = found.per_head
    if per_head is None or len(per_head.observed) == 1:
        return 0
    return int(np.ceil(max(*per_head.observed[1:], *per_head.expected_counts[1:], 2)))


def _counted(row: CategoryDepth) -> str:
    return f"{row.category} ({len(row.layers)})"


def _box(page: Page, ax: Axes, row: CategoryDepth, at: float, colour: str) -> None:
    """Quartiles as a bar, median as a tick, heads as small dots (one for each layer)."""
    ink = page.palette.ink
    low, high = row.lower_quartile - 0.15, row.upper_quartile + 0.15
    ax.barh(at, high - low, left=low, height=0.28, color=colour, linewidth=0.0)
    ax.vlines(row.median, at - 0.16, at + 0.16, color=ink, linewidth=1.4, zorder=3)
    layers = sorted(set(row.layers))
    ax.plot(layers, [at] * len(layers), ".", color=ink, markersize=1.6, zorder=2)


def _nothing(page: Page, ax: Axes, why: str, width: float) -> list[Key]:
    """Words in an empty panel."""
    ax.set_facecolor(page.palette.blank)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.text(0.5, 0.5, "\n".join(wrap(why, width - 3.0)), transform=ax.transAxes, ha="center", va="center")
    return []
