"""The structure figure: likeness within key/value groups, relations per head, depth of categories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headatlas.arrangement.depth import CategoryDepth
from headatlas.arrangement.groups import Likeness
from headatlas.arrangement.model_structure import Structure
from headatlas.figures.colours import BLANK, INK, level_colours, score_colours
from headatlas.figures.describe import decimal, p_value
from headatlas.figures.page import (
    LINE,
    MARGIN,
    AtlasFigure,
    Key,
    Page,
    round_ticks,
    style,
    text_width,
    wrap,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from headatlas.atlas import Atlas

_PAIRS = "Larger points are means of more pairs."
_DEPTHS = "Layers: bars are quartiles, dots layers with such a head, in brackets the number of heads."
HEIGHT = 30.0
SMALLEST = 36.0
"""Panels narrower than this go under each other."""
GAP = 5.0
BELOW = 1.2 + 1.9 * LINE
"""Tick labels and the axis name under a panel."""

WITHIN, BETWEEN = level_colours(4)[2], score_colours(5, suppression=True)[2]
SINGLE = level_colours(4)[1]


@style()
def draw_structure(atlas: Atlas, found: Structure, width_mm: float) -> AtlasFigure:
    """Panels for what could be computed; the others say why not."""
    description = f"{describe_structure(found)} {atlas.caption()}."
    page = Page(width_mm, title=f"Structure of the heads of {atlas.model_name}", description=description)
    names = [_counted(row) for row in found.depth.categories]
    lefts = [
        MARGIN + LINE + text_width("0.5") + 2.2,
        MARGIN + LINE + text_width(str(_most(found))) + 2.2,
        MARGIN + max([text_width(name) for name in names], default=0.0) + 2.2,
    ]
    together = sum(lefts) + 3 * SMALLEST + 2 * GAP <= page.width
    free = page.width - 2 * MARGIN
    y = MARGIN
    x = 0.0
    bottom = y
    for number, (left, title, draw) in enumerate(
        zip(
            lefts,
            (
                "Likeness of heads of one key/value group and of different groups",
                "Relations per head",
                "Layers by category",
            ),
            (_groups_panel, _per_head_panel, _depth_panel),
            strict=True,
        )
    ):
        width = (page.width - MARGIN - sum(lefts) - 2 * GAP) / 3 if together else free - left
        lines = wrap(title, width + left - 2.0)
        top = y + (2 if together else len(lines)) * LINE + 0.6
        page.lines(x + left, top - 0.6 - len(lines) * LINE, lines)
        keys, axis = draw(page.axes(x + left, top, width, HEIGHT), atlas, found, width)
        page.text(x + left + width / 2, top + HEIGHT + 1.2 + 0.9 * LINE, axis[0], ha="center")
        if axis[1]:
            page.text(x + MARGIN, top + HEIGHT / 2 - 0.8 * LINE, axis[1], rotation=90, ha="left", va="center")
        end = page.legend(x + MARGIN + LINE, top + HEIGHT + BELOW + 0.8, width + left - LINE - MARGIN, keys)
        bottom = max(bottom, end)
        if together:
            x += left + width + GAP
        elif number < 2:
            y = bottom + 0.8 * LINE
    reading = [_PAIRS] * bool(found.groups) + [_DEPTHS] * bool(found.depth.categories)
    y = page.caption(bottom + 0.4 * LINE, " ".join([describe_structure(found), *reading]))
    return page.finish(page.caption(y, atlas.caption()) + MARGIN)


def describe_structure(found: Structure) -> str:
    """The tests in words, for the caption and for screen readers."""
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

Drawn = tuple[list[Key], tuple[str, str]]
"""Legend, and the names of the axes."""


def _groups_panel(ax: Axes, atlas: Atlas, found: Structure, width: float) -> Drawn:
    """Mean cosine (whatever the sign) within and between groups, layer by layer; size says how many pairs."""
    _prepare(ax)
    if not found.groups:
        _say(ax, found.no_groups or "", width)
        ax.set_yticks([])
        ax.set_xticks([])
        return [], ("", "")
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
    keys = [
        Key(
            name,
            {"color": colour, "linewidth": 0.0, "marker": marker, "markersize": 3.6, "markevery": [1]},
            line=True,
        )
        for name, colour, marker in _KINDS
    ]
    return keys, ("Layer", "Mean cosine, sign ignored")


def _per_head_panel(ax: Axes, _atlas: Atlas, found: Structure, width: float) -> Drawn:
    """Heads by number of relations, and by chance; heads with none are many, so they are written out."""
    _prepare(ax)
    per_head = found.per_head
    if per_head is None or len(per_head.observed) == 1:
        _say(ax, "no head implements or suppresses a relation", width)
        ax.set_xticks([])
        ax.set_yticks([])
        return [], ("", "")
    number = np.arange(1, len(per_head.observed))
    ax.bar(number, per_head.observed[1:], width=0.8, color=WITHIN, label="heads", linewidth=0.0)
    look: dict[str, Any] = {"color": INK, "linewidth": 1.4}
    ax.hlines(per_head.expected[1:], number - 0.4, number + 0.4, label="by chance", zorder=2, **look)
    ax.set_xlim(0.4, len(per_head.observed) - 0.4)
    ticks = [max(1, at) for at in round_ticks(len(number) + 1, width, text_width("10"))]
    ax.set_xticks(ticks, [str(at) for at in ticks])
    top = _most(found)
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if top / s <= 4)
    ax.set_ylim(0.0, top * 1.25)  # room for the note above the bars
    ax.set_yticks(range(0, top + 1, step), [str(at) for at in range(0, top + 1, step)])
    none = f"none: {per_head.observed[0]}, by chance {per_head.expected[0]:.0f}"
    _corner(ax, none)
    keys = [Key("heads", {"facecolor": WITHIN}), Key("by chance", look, line=True)]
    return keys, ("Relations", "Heads")


def _depth_panel(ax: Axes, atlas: Atlas, found: Structure, width: float) -> Drawn:
    """Quartiles of layer for each category, on all sources and on single-token sources."""
    _prepare(ax)
    rows = found.depth.categories
    if not rows:
        _say(ax, "no head implements or suppresses a relation", width)
        ax.set_xticks([])
        ax.set_yticks([])
        return [], ("", "")
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
    keys.append(Key("median", {"color": INK, "linewidth": 1.4}, line=True))
    return keys, ("Layer", "")


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
    ax.vlines(row.median, at - 0.16, at + 0.16, color=INK, linewidth=1.4, zorder=3)
    layers = sorted(set(row.layers))
    ax.plot(layers, [at] * len(layers), ".", color=INK, markersize=1.6, zorder=2, alpha=0.7)


def _prepare(ax: Axes) -> None:
    ax.set_facecolor("white")
    ax.grid(visible=False)


def _layer_axis(ax: Axes, atlas: Atlas, width: float) -> None:
    ax.set_xlim(-0.7, atlas.n_layers - 0.3)
    ticks = round_ticks(atlas.n_layers, width, text_width(str(atlas.n_layers - 1)))
    ax.set_xticks(ticks, [str(tick) for tick in ticks])


def _say(ax: Axes, text: str, width: float) -> None:
    """Words in an empty panel."""
    ax.set_facecolor(BLANK)
    words = "\n".join(wrap(text, width - 3.0))
    ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", va="center")


def _corner(ax: Axes, text: str) -> None:
    ax.text(0.97, 0.95, text, transform=ax.transAxes, ha="right", va="top")
