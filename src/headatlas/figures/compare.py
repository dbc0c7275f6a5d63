"""The figures of a comparison; here each relation's best score and its depth, atlases side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headatlas.arrangement.comparison import Comparison, RelationAgreement
from headatlas.errors import HeadatlasError
from headatlas.figures.changes import draw_changes, draw_trajectory
from headatlas.figures.colours import Palette, palette_of
from headatlas.figures.page import (
    DEFAULT_LOOK,
    LINE,
    MARGIN,
    AtlasFigure,
    Key,
    Page,
    style,
    text_width,
    wrap,
)
from headatlas.options import Look
from headatlas.scoring.scores import p_value

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

KINDS = ("heads", "trajectory", "relations")
MARKS = ("o", "s", "^", "D", "v", "P")
"""Atlases are told apart by shape as well as by colour."""
READING = (
    "Filled: heads implement the relation; hollow: none does, and the best head is shown all the same. "
    "Lines are 95 % intervals over sources. Dark rules separate categories."
)
ROW = 3.4
"""Height of a relation's row."""
NARROW = 110.0
"""From this width down the two panels go under each other."""


def comparison_kind(found: Comparison, asked: str | None) -> str:
    """The figure that answers a comparison: the one asked for, or the default for what is compared.

    Two atlases of one shape: ``"heads"``; more: ``"trajectory"``; others: ``"relations"``.

    Raises:
        HeadatlasError: The figure asked for cannot be drawn of these atlases.
    """
    if asked is None:
        return "relations" if not found.changes else "heads" if len(found.changes) == 1 else "trajectory"
    if asked not in KINDS:
        raise HeadatlasError(f"`kind`: there is no figure {asked!r}; choose from {', '.join(KINDS)}.")
    if asked == "heads" and len(found.labels) > 2:
        raise HeadatlasError("`kind=heads` shows two models; give two, or `kind=trajectory`.")
    if asked == "heads" and not found.changes:
        raise HeadatlasError(f"`kind=heads`: {found.not_by_head}.")
    return asked


def draw_comparison(
    found: Comparison, width_mm: float, kind: str | None = None, look: Look = DEFAULT_LOOK
) -> AtlasFigure:
    """Draw a comparison: heads that changed, relations over models, or relations side by side.

    Args:
        found: What to draw.
        width_mm: Its width.
        kind: ``"heads"``, ``"trajectory"`` or ``"relations"``; None: :func:`comparison_kind`.
        look: Its look.

    Raises:
        HeadatlasError: The figure asked for cannot be drawn of these atlases.
    """
    kind = comparison_kind(found, kind)
    if kind == "heads":
        return draw_changes(found.changes[0], found.captions, width_mm, look)
    if kind == "trajectory":
        return draw_trajectory(found, width_mm, look)
    with style(palette_of(look)):
        return _draw_relations(found, width_mm, look)


def comparison_data(found: Comparison, kind: str | None = None) -> pd.DataFrame:
    """The numbers that :func:`draw_comparison` plots: rows of heads, or of relations and atlases."""
    if comparison_kind(found, kind) == "heads":
        step = found.changes[0]
        return step.table.assign(a=step.a, b=step.b)
    return found.table


def _draw_relations(found: Comparison, width_mm: float, look: Look) -> AtlasFigure:
    """Rows are relations, by category. Left: best score and interval. Right: relative depth of that head.

    Raises:
        HeadatlasError: There are more atlases than can be told apart.
    """
    if len(found.labels) > len(MARKS):
        raise HeadatlasError(
            f"{len(found.labels)} atlases: a figure shows at most {len(MARKS)}; the table has them all."
        )
    description = describe_comparison(found)
    page = Page(width_mm, look, title="The same relations in several models", description=description)
    titles = list(dict.fromkeys(found.table["title"]))
    longest = 0.42 * page.width
    left = MARGIN + min(max(text_width(title) for title in titles), longest) + 2.2
    height = len(titles) * ROW
    wide = page.width > NARROW
    width = (page.width - MARGIN - left - 4.0) / 2 if wide else page.width - MARGIN - left
    x, y = left, MARGIN + LINE + 0.6
    for number, (name, column) in enumerate((("Best score", "score"), ("Depth of the best head", "depth"))):
        page.text(x + width / 2, y - LINE - 0.6, name, ha="center")
        ax = page.axes(x, y, width, height)
        _panel(ax, found, titles, column, page.palette)
        labels = [_short(title, longest) for title in titles] if number == 0 or not wide else []
        ax.set_yticks(range(len(titles)), labels or [""] * len(titles))
        ticks = ["0", "0.5", "1"] if column == "score" else ["first layer", "", "last"]
        ax.set_xticks([0.0, 0.5, 1.0], ticks)
        if column == "depth":
            first, _, last = ax.get_xticklabels()
            first.set_horizontalalignment("left")
            last.set_horizontalalignment("right")
        if wide:
            x += width + 4.0
        elif number == 0:
            y += height + 2.6 * LINE + 1.2
    y += height + 1.2 + 1.3 * LINE
    looks = zip(found.labels, _colours(page.palette), MARKS, strict=False)
    keys = [Key.point(label, color=colour, marker=mark) for label, colour, mark in looks]
    y = page.legend(MARGIN, y, page.inner, keys) + 0.4 * LINE
    return page.finish(y, " ".join([READING, *(f"{caption}." for caption in found.captions)]))


def describe_comparison(found: Comparison) -> str:
    """Say how to read the figure and how far the atlases agree."""
    parts = [READING]
    parts += [_agreement(pair) for pair in found.agreement if pair.score is not None]
    return " ".join([*parts, *(f"{caption}." for caption in found.captions)])


def _agreement(pair: RelationAgreement) -> str:
    text = f"{pair.first} and {pair.second}: Spearman correlation of best scores "
    text += f"{_with_p(pair.score, pair.score_p)} over {pair.n_score} relations"
    if pair.depth is not None:
        text += f", of depths {_with_p(pair.depth, pair.depth_p)} over {pair.n_depth}"
    return f"{text}."


def _with_p(value: float | None, p: float | None) -> str:
    return "–" if value is None or p is None else f"{value:.2f} ({p_value(p)})"


def _colours(palette: Palette) -> Sequence[str]:
    """A colour for each mark, from the two scales in turn."""
    scales = palette.scores(6), palette.scores(6, suppression=True)
    return [scales[which][step] for step in (3, 5, 1) for which in (0, 1)]


def _panel(ax: Axes, found: Comparison, titles: list[str], column: str, palette: Palette) -> None:
    colours = _colours(palette)
    n = len(found.labels)
    ax.set_ylim(len(titles) - 0.5, -0.5)
    ax.set_xlim(-0.03, 1.03)
    table = found.table
    first_of_category = set(table.drop_duplicates("category")["title"])
    for at, title in enumerate(titles):
        begins = title in first_of_category and at > 0
        colour, alpha = (palette.ink, 1.0) if begins else (palette.soft, 0.3)
        ax.axhline(at - 0.5, color=colour, alpha=alpha, linewidth=0.3, zorder=0)
    for number, label in enumerate(found.labels):
        rows = table[table["atlas"] == label]
        offset = (number - (n - 1) / 2) * min(0.38, 0.84 / n)
        heights, colour = rows["title"].map(titles.index) + offset, colours[number]
        if column == "score":
            ax.hlines(heights, rows["low"], rows["high"], color=colour, linewidth=0.7, zorder=1)
        filled = np.where(rows["n_implementing"] > 0, colour, palette.paper)
        points: dict[str, Any] = {"s": 3.2**2, "marker": MARKS[number], "linewidths": 0.6}
        ax.scatter(rows[column], heights, facecolors=filled, edgecolors=colour, zorder=2, **points)


def _short(title: str, width: float) -> str:
    """A title that fits into its column."""
    lines = wrap(title, width)
    return title if len(lines) == 1 else f"{lines[0]} …"
