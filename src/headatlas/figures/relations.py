"""The relations figure: the score of every head on every relation, one panel for each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, PathPatch
from matplotlib.path import Path
from numpy.typing import NDArray

from headatlas.errors import HeadatlasError
from headatlas.figures.colours import INK, score_colours
from headatlas.figures.grids import RelationGrid, Which, choose, relation_grids
from headatlas.figures.page import (
    LINE,
    MARGIN,
    MM,
    AtlasFigure,
    Key,
    Page,
    PanelColumns,
    panel_columns,
    panel_height,
    style,
    text_width,
    wrap,
)
from headatlas.figures.panels import (
    CELL_FOR_LINES,
    axis_height,
    axis_room,
    cell_size,
    fill,
    finish_axes,
    finish_user_axes,
    not_mapped_key,
    only_panel,
    outline,
    prepare_panel,
    row_of_titles,
    separate,
)

if TYPE_CHECKING:
    from headatlas.atlas import Atlas

STEPS = 40
"""Colours from 0 to 1 for each sign: a step is 0.025, finer than the eye reads from a scale."""
WITH_CONTEXT, BY_ABLATION = 0.35, 0.7
"""Heights of the dots in confirmed heads, as shares of a cell."""
BAR = 2.4
"""Height of the colour bar."""


@style()
def draw_relations(
    atlas: Atlas, width_mm: float, which: Which, *, description: str, caption: str
) -> AtlasFigure:
    """The whole figure; ``which`` chooses relations or whole categories."""
    grids = chosen_grids(atlas, which)
    page = Page(
        width_mm, title=f"Relation scores of the heads of {atlas.model_name}", description=description
    )
    layout = panel_columns(
        page, len(grids), atlas.n_layers, left=axis_room(atlas.n_heads), smallest=25.0, balance=False
    )
    height = panel_height(atlas.n_heads, layout.cell, layout.width, flat=0.8)
    keys = relation_keys(atlas, grids)
    y = MARGIN
    for row in pack(grids, len(layout.lefts)):
        y = _headings(page, layout, y, row)
        y = row_of_titles(page, layout, y, [grid.title for _, grid in row])
        for number, (x, (_, grid)) in enumerate(zip(layout.lefts, row, strict=False)):
            ax = page.axes(x, y, layout.width, height)
            draw_relation_panel(ax, grid, atlas.layers_done, cell=min(layout.cell, height / atlas.n_heads))
            finish_axes(page, ax, (x, y, layout.width, height), grid.score.shape, first=number == 0)
        top, y, filled = y, y + height + axis_height() + 1.5, len(row)
    y = _scale(page, layout, keys, (top, height, y), filled)
    return page.finish(page.caption(y, caption) + MARGIN)


def pack(grids: Sequence[RelationGrid], n_columns: int) -> list[list[tuple[str, RelationGrid]]]:
    """Rows of panels, each with its heading.

    A category goes where all of it fits into the row, or else starts a new one. Only its first panel in a row
    has a heading, the others have ``""``.
    """
    rows: list[list[tuple[str, RelationGrid]]] = []
    for category, group in groupby(grids, key=lambda grid: grid.category):
        rest = list(group)
        if not rows or len(rows[-1]) + len(rest) > n_columns:
            rows.append([])
        heading = category
        while rest:
            free = n_columns - len(rows[-1])
            rows[-1] += [(heading if at == 0 else "", grid) for at, grid in enumerate(rest[:free])]
            rest, heading = rest[free:], f"{category}, continued"
            if rest:
                rows.append([])
    return rows


def _headings(page: Page, layout: PanelColumns, y: float, row: Sequence[tuple[str, RelationGrid]]) -> float:
    """The categories' names above a row, cut to the room they have; returns the height below them."""
    starts = [at for at, (heading, _) in enumerate(row) if heading]
    deepest = 1
    for at, following in zip(starts, [*starts[1:], None], strict=True):
        x = layout.lefts[at] if at else MARGIN
        end = page.width if following is None else layout.lefts[following]
        lines = wrap(row[at][0], end - x - 1.5, measure=lambda text: text_width(text, bold=True))
        page.lines(x, y, lines, weight="bold")
        deepest = max(deepest, len(lines))
    return y + deepest * LINE + 0.3


def chosen_grids(atlas: Atlas, which: Which) -> list[RelationGrid]:
    """The scored relations asked for, by name, title or category, in panel order.

    Raises:
        HeadatlasError: No relation is scored, or a name is not known.
    """
    grids = relation_grids(atlas)
    if not grids:
        raise HeadatlasError("no relation of this atlas is scored, so there is no relations figure to draw.")
    names = dict.fromkeys(
        [grid.relation for grid in grids] + [grid.title for grid in grids] + [grid.category for grid in grids]
    )
    asked = (
        set(choose(which, list(names), "scored relation or category")) if which is not None else set(names)
    )
    return [grid for grid in grids if asked & {grid.relation, grid.title, grid.category}]


def draw_relation_panel(ax: Axes, grid: RelationGrid, mapped: NDArray[np.bool_], *, cell: float) -> None:
    """One relation's cells: colour by score, called heads outlined, suppressing ones marked.

    Args:
        cell: Smaller side of a cell in millimetres, which decides how thick outlines are.
    """
    prepare_panel(ax, mapped, grid.score.shape[1])
    shown = np.nan_to_num(grid.shown)
    step = np.minimum(np.rint(np.abs(shown) * STEPS), STEPS).astype(int)
    for sign in (1, -1):
        palette = score_colours(STEPS + 1, suppression=sign < 0)
        for level in np.unique(step[(np.sign(shown) == sign) & (step > 0)]):
            fill(ax, (step == level) & (np.sign(shown) == sign), palette[level], zorder=1)
    if cell >= CELL_FOR_LINES:
        separate(ax, *shown.shape)
    width = min(0.7, 0.14 * cell / MM * 72)
    outline(ax, grid.implements, width, zorder=3)
    outline(ax, grid.suppresses, width, zorder=3)
    _bars(ax, grid.suppresses)
    _dots(ax, grid.with_context & ~grid.by_ablation, WITH_CONTEXT)
    _dots(ax, grid.by_ablation, BY_ABLATION)


def draw_relation_in(atlas: Atlas, ax: Axes, which: Which, *, caption: bool) -> Figure:
    """Draw one relation into the user's axes."""
    if which is None:
        raise HeadatlasError(
            "one axes holds one relation: say which, as in relations(ax=ax, which='country_to_capital')."
        )
    name = only_panel([grid.relation for grid in chosen_grids(atlas, which)])
    grid = next(grid for grid in chosen_grids(atlas, which) if grid.relation == name)
    draw_relation_panel(ax, grid, atlas.layers_done, cell=cell_size(ax, *grid.score.shape))
    return finish_user_axes(atlas, ax, grid.title, heads=True, caption=caption)


def _bars(ax: Axes, mask: NDArray[np.bool_]) -> None:
    """A minus sign in each cell of a mask: suppression, for those who print in grey."""
    x, y = np.nonzero(mask)
    if len(x) == 0:
        return
    corners = [(-0.3, -0.1), (0.3, -0.1), (0.3, 0.1), (-0.3, 0.1), (-0.3, -0.1)]
    vertices = np.stack([np.stack([x + dx, y + dy], -1) for dx, dy in corners], axis=1).reshape(-1, 2)
    codes = np.tile([Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY], len(x))
    look: dict[str, Any] = {"facecolor": "white", "edgecolor": INK, "linewidth": 0.15, "snap": False}
    ax.add_patch(PathPatch(Path(vertices, codes.astype(Path.code_type)), zorder=4, **look))


def _dots(ax: Axes, mask: NDArray[np.bool_], height: float) -> None:
    """A white dot in each cell of a mask, ``height`` of a cell high: evidence confirms the head."""
    x, y = np.nonzero(mask)
    for layer, head in zip(x, y, strict=True):
        look: dict[str, Any] = {"facecolor": "white", "edgecolor": INK, "linewidth": 0.15, "zorder": 5}
        ax.add_patch(Ellipse((float(layer), float(head)), height, height, **look))


def relation_keys(atlas: Atlas, grids: Sequence[RelationGrid]) -> list[Key]:
    """The legend: outlines, marks and hatching."""
    green, brown = score_colours(5)[2], score_colours(5, suppression=True)[2]
    keys = [Key("implements the relation", {"facecolor": green, "edgecolor": INK, "linewidth": 0.7})]
    if any(grid.suppresses.any() for grid in grids):
        look = {"facecolor": brown, "edgecolor": INK, "linewidth": 0.7}
        keys.append(Key("suppresses it", look, minus=True))
    look = {"facecolor": green, "edgecolor": INK, "linewidth": 0.7}
    if any((grid.with_context & ~grid.by_ablation).any() for grid in grids):
        keys.append(Key("confirmed with context", look, dot=WITH_CONTEXT))
    if any(grid.by_ablation.any() for grid in grids):
        keys.append(Key("confirmed by ablation", look, dot=BY_ABLATION))
    return keys if atlas.layers_done.all() else [*keys, not_mapped_key()]


def _scale(
    page: Page, layout: PanelColumns, keys: Sequence[Key], last_row: tuple[float, float, float], filled: int
) -> float:
    """The colour bar and the legend: in the free corner of the last row if they fit, or below it.

    Args:
        last_row: Upper edge and height of the last row's panels, and the height below that row.
        filled: Panels in that row.

    Returns:
        The height below everything.
    """
    top, height, below = last_row
    free = layout.lefts[filled:]
    if free:
        x, width = free[0] + 3.0, page.width - MARGIN - free[0] - 3.0
        if (
            width > 45.0
            and _draw_scale(page, x, top, width, keys, draw=False) <= top + height + axis_height()
        ):
            _draw_scale(page, x, top, width, keys)
            return below
    return _draw_scale(page, MARGIN, below, page.inner, keys) + 0.4 * LINE


def _draw_scale(
    page: Page, x: float, y: float, width: float, keys: Sequence[Key], *, draw: bool = True
) -> float:
    """Colour bar from suppression 1 through 0 to promotion 1, its labels, and the legend below."""
    bar = min(width - 4.0, 80.0)
    left = x + 2.0
    names = [("suppression score", 0.25), ("promotion score", 0.75)]
    two_lines = max(text_width(name) for name, _ in names) > 0.5 * bar
    ticks = (-1.0, 0.0, 1.0) if bar < 40 else (-1.0, -0.5, 0.0, 0.5, 1.0)
    if draw:
        for name, at in names:
            page.text(left + at * bar, y, name.split(" ")[0] if two_lines else name, ha="center")
    y += LINE + 0.3
    if draw:
        _draw_bar(page, left, y, bar)
        for tick in ticks:
            at = left + bar * (tick + 1) / 2
            page.line([at, at], [y + BAR, y + BAR + 0.7], color=INK, linewidth=0.4)
            page.text(at, y + BAR + 0.8, f"{abs(tick):g}", ha="center")
    below = y + BAR + 0.8 + LINE
    beside = x + bar + 12.0
    if x + width - beside > 60.0:
        return max(below, page.legend(beside, y - 0.3, x + width - beside, keys, draw=draw))
    return page.legend(x, below + 0.4 * LINE, width, keys, draw=draw)


def _draw_bar(page: Page, left: float, y: float, width: float) -> None:
    half = width / 2
    for number in range(1, STEPS + 1):
        # Each colour reaches to the end and the next is laid over it: no seams between them.
        inner = half * (number - 0.5) / STEPS if number > 0 else 0.0
        page.box(left + half + inner, y, half - inner, BAR, facecolor=score_colours(STEPS + 1)[number])
        brown = score_colours(STEPS + 1, suppression=True)[number]
        page.box(left, y, half - inner, BAR, facecolor=brown)
    page.box(left, y, width, BAR, facecolor="none", edgecolor=INK, linewidth=0.4)
