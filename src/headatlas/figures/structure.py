"""The structure figure: likeness within key/value groups, relations per head, depth of categories."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from headatlas.arrangement.depth import CategoryDepth
from headatlas.arrangement.groups import Likeness
from headatlas.arrangement.model_structure import Structure
from headatlas.figures.colours import LIGHT
from headatlas.figures.describe import decimal
from headatlas.figures.page import (
    BELOW,
    LINE,
    MARGIN,
    RIGHT,
    AtlasFigure,
    Key,
    Page,
    left_of_panel,
    round_ticks,
    style,
    text_width,
    wrap,
)
from headatlas.figures.panels import layer_ticks
from headatlas.scoring.scores import p_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from headatlas.atlas import Atlas

_PAIRS = "Likeness: the mean over pairs of heads of a layer; larger points are means of more pairs."
_DEPTHS = "Layers: bars are quartiles, dots layers with such a head, in brackets the number of heads."
HEIGHT = 30.0
SMALLEST = 36.0
"""Panels narrower than this go under each other."""
GAP = 5.0
NO_HEADS = "no head implements or suppresses a relation"

WITHIN, BETWEEN = LIGHT.levels(4)[2], LIGHT.scores(5, suppression=True)[2]
SINGLE = LIGHT.levels(4)[0]

Drawn = tuple[list[Key], str, str]
"""Legend, and the names of the axes."""


@style()
def draw_structure(atlas: Atlas, found: Structure, width_mm: float) -> AtlasFigure:
    """Panels for what could be computed; the others say why not."""
    description = f"{describe_structure(found)} {atlas.caption()}."
    page = Page(width_mm, title=f"Structure of the heads of {atlas.model_name}", description=description)
    names = [_counted(row) for row in found.depth.categories]
    panels: tuple[tuple[str, float, Callable[..., Drawn]], ...] = (
        (
            "Likeness of heads of one key/value group and of different groups",
            left_of_panel("0.5"),
            _groups_panel,
        ),
        ("Relations per head", left_of_panel(str(_most(found))), _per_head_panel),
        ("Layers by category", left_of_panel(max(names, key=text_width, default="")) - LINE, _depth_panel),
    )
    taken = sum(left for _, left, _ in panels) + 2 * GAP
    together = taken + 3 * SMALLEST <= page.width
    x, y, bottom = 0.0, MARGIN, MARGIN
    for title, left, draw in panels:
        width = (page.width - RIGHT - taken) / 3 if together else page.width - RIGHT - left
        lines = wrap(title, width + left - 2.0)
        top = y + (2 if together else len(lines)) * LINE + 0.6
        page.lines(x + left, top - 0.6 - len(lines) * LINE, lines)
        ax = page.axes(x + left, top, width, HEIGHT)
        ax.grid(visible=False)
        keys, x_name, y_name = draw(ax, atlas, found, width)
        page.name_axes(ax, x_name)
        page.text(x + MARGIN, top + HEIGHT / 2 - 0.8 * LINE, y_name, rotation=90, ha="left", va="center")
        room = width + left - LINE - MARGIN
        bottom = max(bottom, page.legend(x + MARGIN + LINE, top + HEIGHT + BELOW + 0.8, room, keys))
        if together:
            x += left + width + GAP
        else:
            y = bottom + 0.8 * LINE
    reading = [_PAIRS] * bool(found.groups) + [_DEPTHS] * bool(found.depth.categories)
    y = page.caption(bottom + 0.4 * LINE, " ".join(reading))
    return page.finish(y, atlas.caption())


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
    comparison = found.depth.comparison
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


_KINDS = (("one group", WITHIN, "o"), ("different groups", BETWEEN, "s"))


def _groups_panel(ax: Axes, atlas: Atlas, found: Structure, width: float) -> Drawn:
    """Mean cosine (whatever the sign) within and between groups, layer by layer; size says how many pairs."""
    if not found.groups:
        return _nothing(ax, found.no_groups or "", width)
    likeness = next(each for each in found.groups if each.measure == "unsigned")
    layers = [each.layer for each in likeness.layers]
    for each in likeness.layers:
        ax.plot([each.layer] * 2, [each.within, each.between], color="#b5b5b5", linewidth=0.7, zorder=1)
    between = [(each.between, each.n_between) for each in likeness.layers]
    within = [(each.within, each.n_within) for each in likeness.layers]
    for (name, colour, marker), points in zip(_KINDS, (within, between), strict=True):
        means, pairs = np.array(points).T
        # A mean of few pairs is a small point.
        size = 3.0 + 14.0 * pairs / pairs.max()
        ax.scatter(layers, means, s=size, color=colour, marker=marker, linewidths=0.0, label=name, zorder=2)
    ax.set_ylim(-0.05, 1.05)
    ax.set_yticks([0.0, 0.5, 1.0], ["0", "0.5", "1"])
    _layer_axis(ax, atlas, width)
    keys = [Key.point(name, color=colour, marker=marker) for name, colour, marker in _KINDS]
    return keys, "Layer", "Mean cosine, sign ignored"


def _per_head_panel(ax: Axes, _atlas: Atlas, found: Structure, width: float) -> Drawn:
    """Heads by number of relations, and by chance; heads with none are many, so they are written out."""
    per_head = found.per_head
    if per_head is None or len(per_head.observed) == 1:
        return _nothing(ax, NO_HEADS, width)
    number = np.arange(1, len(per_head.observed))
    ax.bar(number, per_head.observed[1:], width=0.8, color=WITHIN, label="heads", linewidth=0.0)
    look: dict[str, Any] = {"color": LIGHT.ink, "linewidth": 1.4}
    ax.hlines(per_head.expected[1:], number - 0.4, number + 0.4, label="by chance", zorder=2, **look)
    ax.set_xlim(0.4, len(per_head.observed) - 0.4)
    ticks = [max(1, at) for at in round_ticks(len(number) + 1, width, text_width("10"))]
    ax.set_xticks(ticks, [str(at) for at in ticks])
    ax.set_ylim(0.0, _most(found) * 1.25)  # room for the note above the bars
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    none = f"none: {per_head.observed[0]}, by chance {per_head.expected[0]:.0f}"
    ax.text(0.97, 0.95, none, transform=ax.transAxes, ha="right", va="top")
    keys = [Key("heads", {"facecolor": WITHIN}), Key("by chance", look, line=True)]
    return keys, "Relations", "Heads"


def _depth_panel(ax: Axes, atlas: Atlas, found: Structure, width: float) -> Drawn:
    """Quartiles of layer for each category, on all sources and on single-token sources."""
    rows = found.depth.categories
    if not rows:
        return _nothing(ax, NO_HEADS, width)
    single = (
        {} if found.depth_single is None else {row.category: row for row in found.depth_single.categories}
    )
    for number, row in enumerate(rows):
        at = len(rows) - 1 - number
        _box(ax, row, at + (0.17 if single else 0.0), WITHIN)
        if row.category in single:
            _box(ax, single[row.category], at - 0.17, SINGLE)
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.set_yticks(range(len(rows)), [_counted(row) for row in reversed(rows)])
    _layer_axis(ax, atlas, width)
    keys = [Key("all sources", {"facecolor": WITHIN})] if single else []
    keys += [Key("sources of one token", {"facecolor": SINGLE})] if single else []
    keys.append(Key("median", {"color": LIGHT.ink, "linewidth": 1.4}, line=True))
    return keys, "Layer", ""


def _most(found: Structure) -> int:
    """The largest number on the axis of heads."""
    per_head = found.per_head
    if per_head is None or len(per_head.observed) == 1:
        return 0
    return int(np.ceil(max(*per_head.observed[1:], *per_head.expected[1:], 2)))


def _counted(row: CategoryDepth) -> str:
    return f"{row.category} ({len(row.layers)})"


def _box(ax: Axes, row: CategoryDepth, at: float, colour: str) -> None:
    """Quartiles as a bar, median as a tick, heads as small dots (one for each layer)."""
    ax.barh(at, row.high - row.low + 0.3, left=row.low - 0.15, height=0.28, color=colour, linewidth=0.0)
    ax.vlines(row.median, at - 0.16, at + 0.16, color=LIGHT.ink, linewidth=1.4, zorder=3)
    layers = sorted(set(row.layers))
    ax.plot(layers, [at] * len(layers), ".", color=LIGHT.ink, markersize=1.6, zorder=2, alpha=0.7)


def _layer_axis(ax: Axes, atlas: Atlas, width: float) -> None:
    ax.set_xlim(-0.7, atlas.n_layers - 0.3)
    layer_ticks(ax, atlas.n_layers, width)


def _nothing(ax: Axes, why: str, width: float) -> Drawn:
    """Words in an empty panel."""
    ax.set_facecolor(LIGHT.blank)
    ax.set_xticks([])
    ax.set_yticks([])
    words = "\n".join(wrap(why, width - 3.0))
    ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", va="center")
    return [], "", ""
