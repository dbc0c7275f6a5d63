"""The figures of a comparison: heads that changed, relations over models, relations side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.path import Path
from numpy.typing import NDArray

from headatlas.arrangement.comparison import (
    CHANGES,
    FEWEST_DISCORDANT,
    Comparison,
    HeadChanges,
    RelationAgreement,
)
from headatlas.errors import HeadatlasError
from headatlas.figures import panels as parts
from headatlas.figures.colours import Palette, palette_of
from headatlas.figures.describe import amount, join_words, short_number
from headatlas.figures.grids import ALL
from headatlas.figures.page import (
    DEFAULT_LOOK,
    LINE,
    MARGIN,
    AtlasFigure,
    Key,
    Page,
    Title,
    counted_ticks,
    panel_columns,
    style,
    text_width,
)
from headatlas.figures.panels import Cell
from headatlas.options import Look
from headatlas.scoring.scores import p_value

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

KINDS = ("heads", "trajectory", "relations")


def comparison_kind(found: Comparison, asked: str | None) -> str:
    """The figure that answers a comparison: the one asked for, or the default for what is compared.

    Two atlases of one shape: ``"heads"``; more: ``"trajectory"``; others: ``"relations"``.
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

    ``kind`` is ``"heads"``, ``"trajectory"`` or ``"relations"``, or what :func:`comparison_kind` says.
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


# Heads of two models ----------------------------------------------------------------------------------


MOST = 3
"""Relations of a head that are told apart by colour; more have the colour of so many."""
NAMED = 3
"""Relations that the words name."""


@dataclass(frozen=True)
class ChangeGrid:
    """One panel of the figure of changes, arrays [n_layers, n_heads] of numbers of relations × signs."""

    lost: Ints  # these four as :class:`~headatlas.arrangement.comparison.HeadChanges` has them
    gained: Ints
    weaker: Ints
    stronger: Ints
    called: Ints  # in either, whatever has changed
    moved: Bools  # a relation that this head lost was gained by another, or the other way round

    @cached_property
    def down(self) -> Ints:
        """Level of the falling colour: 0 none, 1 weaker alone, 2 one relation lost, … up to MOST."""
        return _level(self.lost, self.weaker)

    @cached_property
    def up(self) -> Ints:
        """Level of the rising colour."""
        return _level(self.gained, self.stronger)


def _level(crossed: Ints, shifted: Ints) -> Ints:
    return np.where(crossed > 0, 1 + np.minimum(crossed, MOST), (shifted > 0).astype(np.int64))


def change_grids(found: HeadChanges) -> dict[str, ChangeGrid]:
    """Panel → its grid: All Categories, then each category that was compared."""
    rows = {ALL: found.table} | {
        name: found.table[found.table["category"] == name] for name in found.categories
    }
    return {panel: _grid(found, each) for panel, each in rows.items()}


def _grid(found: HeadChanges, rows: pd.DataFrame) -> ChangeGrid:
    shape = (len(found.mapped), found.n_heads)
    moved = found.relations[found.relations["moved"]]
    names = set(zip(moved["relation"], moved["sign"], strict=True))
    crossed = rows[rows["change"].isin(["lost", "gained"])]
    in_moved = [pair in names for pair in zip(crossed["relation"], crossed["sign"], strict=True)]

    def count(some: pd.DataFrame) -> Ints:
        grid = np.zeros(shape, dtype=np.int64)
        np.add.at(grid, (some["layer"].to_numpy(dtype=int), some["head"].to_numpy(dtype=int)), 1)
        return grid

    return ChangeGrid(
        **{kind: count(rows[rows["change"] == kind]) for kind in CHANGES},
        called=count(rows[rows["called_in"] != ""]),
        moved=count(crossed[np.array(in_moved, dtype=bool)]) > 0,
    )


def draw_changes(found: HeadChanges, captions: Sequence[str], width_mm: float, look: Look) -> AtlasFigure:
    """Draw layer × head panels of the relations that each head lost and gained; ``captions`` say what the two
    atlases are and how they are read."""
    grids = change_grids(found)
    title = f"Heads that changed from {found.a} to {found.b}"
    page = Page(width_mm, look, title=title, description=describe_changes(found))
    marked = False

    def cells(ax: Axes, panel: str, cell: Cell) -> None:
        nonlocal marked
        marked = min(cell) >= parts.CELL_FOR_LINES
        _draw_grid(ax, grids[panel], found.mapped, page.palette, cell=cell)

    def legend(x: float, y: float, width: float, *, draw: bool = True) -> float:
        return page.legend(x, y, width, _keys(grids[ALL], found, page.palette, marked=marked), draw=draw)

    caption = (
        f"From {found.a} to {found.b}. Colour: relations × signs of a head that are lost (minus sign) or "
        f"gained: called in one of the two, and the scores differ on the same sources (q ≤ {found.q_max:g}). "
        f"{'. '.join(dict.fromkeys(captions))}."
    )
    return parts.draw_grids(
        page,
        list(grids),
        (len(found.mapped), found.n_heads),
        caption,
        cells=cells,
        title=lambda panel: _titled(panel, grids[panel]),
        legend=legend,
    )


def _titled(panel: str, grid: ChangeGrid) -> Title:
    return panel, f"{grid.lost.sum():,}\u00a0lost, {grid.gained.sum():,}\u00a0gained"


def _colours(palette: Palette) -> tuple[Sequence[str], Sequence[str]]:
    """Colours of the levels of ``down`` and ``up``: alike in grey, where the sign tells them apart."""
    falling, rising = palette.scores(MOST + 3, suppression=True), palette.scores(MOST + 3)
    # One step is left out, so that a score that is lower is plainly fainter than a relation lost.
    return [*falling[:2], *falling[3:]], [*rising[:2], *rising[3:]]


def _draw_grid(ax: Axes, grid: ChangeGrid, mapped: Bools, palette: Palette, *, cell: Cell) -> None:
    """The cells of one panel; a head that both fell and rose is cut in two, its rise at the upper right."""
    parts.prepare_panel(ax, mapped, grid.down.shape[1], palette)
    falling, rising = _colours(palette)
    split = (grid.down > 0) & (grid.up > 0)
    parts.fill_steps(ax, np.where(split, 0, grid.down), falling)
    parts.fill_steps(ax, np.where(split, 0, grid.up), rising)
    for levels, colours, corner in ((grid.down, falling, -0.5), (grid.up, rising, 0.5)):
        for level in np.unique(levels[split]):
            path = _triangles(split & (levels == level), corner)
            parts.add_path(ax, path, facecolor=colours[level], zorder=1)
    parts.separate(ax, grid.down.shape, cell, palette)
    fell = (grid.down > 0) & ~split
    parts.minus(ax, fell, cell, palette, lower=grid.moved)
    x, y = np.nonzero((grid.called > 0) & (grid.down == 0) & (grid.up == 0))
    if len(x):
        parts.add_path(ax, parts.boxes_path(x, y - 0.2, 0.4, 0.4), zorder=2, facecolor=palette.soft)
    if min(cell) >= parts.CELL_FOR_LINES:  # smaller, it would hide the colour
        parts.marks(ax, "moved", grid.moved, cell, palette, raised=fell)
    if mapped.any() and not (grid.called.any() or grid.down.any() or grid.up.any()):
        parts.say_empty(ax, "no head\ncalled", palette)


def _triangles(mask: Bools, corner: float) -> Path:
    """Half of each cell of a mask: at the lower left (−0.5) or the upper right (0.5)."""
    x, y = np.nonzero(mask)
    ends = [(x - 0.5, y + 0.5), (x + 0.5, y - 0.5), (x + corner, y + corner), (x - 0.5, y + 0.5)]
    vertices = np.stack([np.stack(end, axis=-1) for end in ends], axis=1).reshape(-1, 2)
    codes = np.tile([Path.MOVETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY], len(x))
    return Path(vertices, codes.astype(Path.code_type))


def _keys(grid: ChangeGrid, found: HeadChanges, palette: Palette, *, marked: bool) -> list[Key]:
    """The legend: those colours that occur, the dot, the mark, hatching."""
    keys = []
    words = (("lost", "score lower, none lost"), ("gained", "score higher, none gained"))
    for (crossed, shifted), colours, levels in zip(
        words, _colours(palette), (grid.down, grid.up), strict=True
    ):
        minus = crossed == "lost"
        for level in range(1, int(levels.max(initial=0)) + 1):
            name = f"{amount(level - 1, 'relation')} {crossed}"
            name = name.replace(f"{MOST} ", f"{MOST} or more ") if level == MOST + 1 else name
            if level > 1 or (levels == 1).any():
                keys.append(Key(shifted if level == 1 else name, {"facecolor": colours[level]}, minus=minus))
    keys.append(Key.point("called, not shown to differ", color=palette.soft, marker="s", markersize=2.6))
    if grid.moved.any() and marked:
        keys.append(Key("of a relation that moved", {"facecolor": _colours(palette)[1][2]}, mark="moved"))
    return [*keys, *parts.not_mapped_keys(found.mapped, palette)]


def describe_changes(found: HeadChanges) -> str:
    """Say in words how much of a is in b, what was lost and gained, and how much of that may be chance."""
    n = found.counts
    if not n.called_a and not n.called_b:
        calls = f"No head implements or suppresses a relation in {found.a} or {found.b}."
    else:
        calls = (
            f"Cells (head × relation × sign) that are called: {n.called_a} in {found.a}, {n.called_b} in "
            f"{found.b}, {n.called_both} in both ({n.expected_both:.1f} expected if heads of a layer were "
            "shuffled)."
        )
    if found.equal:
        return f"{calls} Nothing differs: in each of {n.cells:,} cells both hit the same sources."
    changes = (
        f"Lost: {n.lost}. Gained: {n.gained}. Score lower without that: {n.weaker}; higher: {n.stronger}. "
        f"Tested: {n.asked:,} of {n.cells:,} cells, those in which {FEWEST_DISCORDANT} sources or more "
        f"differ; of the {n.different} that differ (q ≤ {found.q_max:g}) at most "
        f"{short_number(n.by_chance)} are expected to be chance."
    )
    sentences = [calls, changes]
    if n.unsure:
        sentences.append(f"Called in one alone, but not shown to differ: {n.unsure}.")
    if n.moves:
        moved = found.relations[found.relations["moved"]]
        sentences.append(f"Moved from heads to others: {join_words(list(dict.fromkeys(moved['title'])))}.")
    if n.mean_difference is not None:
        ends = "" if n.low is None or n.high is None else f" (95 % {_signed(n.low)} to {_signed(n.high)})"
        sentences.append(
            f"Mean difference of the score over cells called in either: {_signed(n.mean_difference)}{ends}."
        )
    hurt = found.relations[found.relations["total"] < 0].head(NAMED)
    if len(hurt):
        signs = hurt["sign"].map({"promotion": "", "suppression": " (suppression)"})
        named = zip(hurt["title"], signs, hurt["total"], strict=True)
        worst = [f"{title}{sign} {_signed(total)}" for title, sign, total in named]
        sentences.append(
            f"Largest fall of the score, summed over heads called in either: {join_words(worst)}."
        )
    return " ".join(sentences)


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


# Relations over revisions -----------------------------------------------------------------------------

SCORES, COUNTS, BETWEEN = 18.0, 8.0, 3.4
"""Heights of the scores, of the numbers of heads under them, and of what is between."""
NARROWEST_PANEL = 25.0
TRAJECTORY_READING = (
    "Above: best score of the relation with its 95 % interval, filled where heads implement it. Below: how "
    "many heads do."
)


def relation_lines(found: Comparison) -> list[pd.DataFrame]:
    """Of each relation that some atlas implements its rows of the table, one an atlas; NaN where it is not
    scored."""
    lines = (rows.set_index("atlas") for _, rows in found.table.groupby("relation", sort=False))
    return [line.reindex(list(found.labels)) for line in lines if line["n_implementing"].any()]


def draw_trajectory(found: Comparison, width_mm: float, look: Look) -> AtlasFigure:
    """Draw a panel per relation: best score and number of heads over the atlases, in the order given."""
    lines = relation_lines(found)
    if not lines:
        raise HeadatlasError("no head of these atlases implements a relation, so there is no line to draw.")
    most = int(max(line["n_implementing"].max() for line in lines))
    page = Page(width_mm, look, title="Relations over models", description=describe_trajectory(found))
    label = max("0.5", str(most), key=text_width)
    columns = panel_columns(
        page,
        len(lines),
        len(found.labels),
        label,
        smallest=NARROWEST_PANEL,
        largest=2 * NARROWEST_PANEL,
    )

    def draw(ax: Axes, line: pd.DataFrame, first: bool) -> None:
        counts = page.below(ax, COUNTS, BETWEEN)
        _draw_scores(ax, line, page.palette)
        _draw_counts(counts, line, most, page.palette)
        ticks = counted_ticks(len(found.labels), columns.width, text_width(str(len(found.labels))))
        for each in (ax, counts):
            each.set_xlim(-0.5, len(found.labels) - 0.5)
            named = [str(at) if each is counts else "" for at in ticks]
            each.set_xticks([at - 1 for at in ticks], named)
            each.grid(visible=False)
            if not first:
                each.set_yticklabels([])
        page.name_axes(ax, "", "Score" if first else "", label)
        page.name_axes(counts, "Model", "Heads" if first else "", label)

    with style(page.palette):
        y = page.panels(
            columns,
            lines,
            SCORES + BETWEEN + COUNTS,
            title=lambda line: (_named(line, "title"), ""),
            draw=draw,
            category=lambda line: _named(line, "category"),
        )
        models = "; ".join(f"{at + 1}\u00a0{label}" for at, label in enumerate(found.labels))
        without = len(dict.fromkeys(found.table["relation"])) - len(lines)
        rest = f" {amount(without, 'relation')} that no model implements: not shown." if without else ""
        readings = list(dict.fromkeys(_reading(caption) for caption in found.captions))
        return page.finish(y, f"{TRAJECTORY_READING} Models: {models}.{rest} Maps: {'. '.join(readings)}.")


def _reading(caption: str) -> str:
    """A caption without the model's name, which stands in the list of models."""
    return caption.partition("; ")[2] or caption


def _named(line: pd.DataFrame, column: str) -> str:
    """Title or category of a relation, as the first atlas that scores it has it."""
    return str(line[column].dropna().iloc[0])


def _draw_scores(ax: Axes, line: pd.DataFrame, palette: Palette) -> None:
    at, colour = np.arange(len(line)), palette.levels(4)[1]
    ax.set_ylim(0.0, 1.0)
    ax.set_yticks([0.0, 0.5, 1.0], ["0", "0.5", "1"])
    ax.vlines(at, line["low"], line["high"], color=palette.soft, linewidth=0.7, zorder=1)
    ax.plot(at, line["score"], color=colour, linewidth=0.9, zorder=2)
    filled = np.where(line["n_implementing"] > 0, colour, palette.paper)
    ax.scatter(at, line["score"], s=7.0, facecolors=filled, edgecolors=colour, linewidths=0.6, zorder=3)


def _draw_counts(ax: Axes, line: pd.DataFrame, most: int, palette: Palette) -> None:
    ax.set_ylim(0.0, most)
    ax.set_yticks([0, most], ["0", str(most)])
    heads = line["n_implementing"].fillna(0.0)
    ax.bar(np.arange(len(line)), heads, width=0.6, color=palette.levels(4)[0])


def describe_trajectory(found: Comparison) -> str:
    """Say in words how numbers of heads and relations go over the atlases, and what changed at each step."""
    numbers = []
    for label in found.labels:
        rows = found.table[found.table["atlas"] == label]
        implemented = int((rows["n_implementing"] > 0).sum())
        numbers.append(
            f"{label}: {amount(int(rows['n_implementing'].sum()), 'head × relation')} in {implemented}"
        )
    sentences = [f"Implemented, and relations with such a head: {'; '.join(numbers)}."]
    sentences += [f"{step.a} to {step.b}: {describe_changes(step)}" for step in found.changes]
    return " ".join(sentences)


# Relations side by side ---------------------------------------------------------------------------------

SHAPES = ("o", "s", "^", "D", "v", "P")
"""Atlases are told apart by shape as well as by colour."""
READING = (
    "Filled: heads implement the relation; hollow: none does, and the best head is shown all the same. "
    "Lines are 95 % intervals over sources. Strong rules separate categories."
)
DEPTH = "Depth of the best head"


def _draw_relations(found: Comparison, width_mm: float, look: Look) -> AtlasFigure:
    """Rows are relations, by category. Left: best score and interval. Right: relative depth of that head."""
    if len(found.labels) > len(SHAPES):
        raise HeadatlasError(
            f"{len(found.labels)} atlases: a figure shows at most {len(SHAPES)}; the table has them all."
        )
    description = describe_comparison(found)
    page = Page(width_mm, look, title="The same relations in several models", description=description)
    titles, columns = list(dict.fromkeys(found.table["title"])), {"Best score": "score", DEPTH: "depth"}
    y = page.relation_rows(
        MARGIN,
        titles,
        list(columns),
        lambda ax, name: _relations_panel(ax, found, titles, columns[name], page.palette),
    )
    looks = zip(found.labels, _atlas_colours(page.palette), SHAPES, strict=False)
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


def _atlas_colours(palette: Palette) -> Sequence[str]:
    """A colour for each mark, from the two scales in turn."""
    scales = palette.scores(6), palette.scores(6, suppression=True)
    return [scales[which][step] for step in (3, 5, 1) for which in (0, 1)]


def _relations_panel(ax: Axes, found: Comparison, titles: list[str], column: str, palette: Palette) -> None:
    colours = _atlas_colours(palette)
    n = len(found.labels)
    ax.set_xlim(-0.03, 1.03)
    ax.set_xticks([0.0, 0.5, 1.0], ["0", "0.5", "1"] if column == "score" else ["first layer", "", "last"])
    if column == "depth":
        first, _, last = ax.get_xticklabels()
        first.set_horizontalalignment("left")
        last.set_horizontalalignment("right")
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
        points: dict[str, Any] = {"s": 3.2**2, "marker": SHAPES[number], "linewidths": 0.6}
        ax.scatter(rows[column], heights, facecolors=filled, edgecolors=colour, zorder=2, **points)
