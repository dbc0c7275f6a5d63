"""The relations figure: the score of every head on every relation, one panel for each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from numpy.typing import NDArray

from headatlas.errors import HeadatlasError
from headatlas.figures import panels
from headatlas.figures.colours import INK, score_colours
from headatlas.figures.grids import RelationGrid, Which, choose, relation_grids
from headatlas.figures.page import (
    LINE,
    MARGIN,
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

if TYPE_CHECKING:
    from headatlas.atlas import Atlas

WITH_CONTEXT, BY_ABLATION = 0.35, 0.7
"""Heights of the dots in confirmed heads, as shares of a cell."""
_MARK: dict[str, Any] = {"facecolor": "white", "edgecolor": INK, "linewidth": 0.15}


@style()
def draw_relations(
    atlas: Atlas, width_mm: float, which: Which, *, description: str, caption: str
) -> AtlasFigure:
    """The whole figure; ``which`` chooses relations or whole categories."""
    grids = chosen_grids(atlas, which)
    title = f"Relation scores of the heads of {atlas.model_name}"
    page = Page(width_mm, title=title, description=description)
    n_layers, n_heads = shape = grids[0].score.shape
    columns = panel_columns(page, len(grids), n_layers, str(n_heads - 1), smallest=25.0, balance=False)
    height = panel_height(n_heads, columns.cell, columns.width, flat=0.8)

    def draw(ax: Axes, placed: tuple[str, RelationGrid], first: bool) -> None:
        draw_relation_panel(ax, placed[1], atlas.layers_done, cell=min(columns.cell, height / n_heads))
        panels.cell_axes(page, ax, shape, (columns.width, height), first=first)

    def scale(x: float, y: float, width: float, *, draw: bool = True) -> float:
        steps = panels.STEPS + 1
        scales = {
            "suppression score": score_colours(steps, suppression=True),
            "promotion score": score_colours(steps),
        }
        return panels.colour_bar(page, scales, relation_keys(atlas, grids), (x, y, width), draw=draw)

    rows = pack(grids, len(columns.lefts))
    y = page.panels(
        columns,
        MARGIN,
        rows,
        height,
        title=lambda placed: placed[1].title,
        draw=draw,
        above=lambda y, row: _headings(page, columns, y, row),
    )
    return page.finish(page.beside_or_below(columns, y, height, len(rows[-1]), scale), caption)


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


def _headings(page: Page, columns: PanelColumns, y: float, row: Sequence[tuple[str, RelationGrid]]) -> float:
    """The categories' names above a row, cut to the room they have; returns the height below them."""
    starts = [at for at, (heading, _) in enumerate(row) if heading]
    deepest = 1
    for at, following in zip(starts, [*starts[1:], None], strict=True):
        x = columns.lefts[at] if at else MARGIN
        end = page.width if following is None else columns.lefts[following]
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
    kinds = ("relation", "title", "category")
    names = dict.fromkeys(getattr(grid, kind) for kind in kinds for grid in grids)
    asked = set(choose(which, list(names), "scored relation or category"))
    return [grid for grid in grids if asked & {getattr(grid, kind) for kind in kinds}]


def draw_relation_panel(ax: Axes, grid: RelationGrid, mapped: NDArray[np.bool_], *, cell: float) -> None:
    """One relation's cells: colour by score, called heads outlined, suppressing ones marked.

    Args:
        cell: Smaller side of a cell in millimetres, which decides how thick outlines are.
    """
    panels.prepare_panel(ax, mapped, grid.score.shape[1])
    shown = np.nan_to_num(grid.shown)
    step = np.rint(shown * panels.STEPS).astype(int)
    panels.fill_steps(ax, step, score_colours(panels.STEPS + 1))
    panels.fill_steps(ax, -step, score_colours(panels.STEPS + 1, suppression=True))
    panels.separate(ax, shown.shape, cell)
    panels.outline(ax, grid.implements, cell)
    panels.outline(ax, grid.suppresses, cell)
    # A minus sign, for those who print in grey.
    x, y = np.nonzero(grid.suppresses)
    if len(x):
        panels.add_path(ax, panels.boxes_path(x, y - 0.1, 0.6, 0.2), zorder=4, **_MARK)
    _dots(ax, grid.with_context & ~grid.by_ablation, WITH_CONTEXT)
    _dots(ax, grid.by_ablation, BY_ABLATION)


def _dots(ax: Axes, mask: NDArray[np.bool_], height: float) -> None:
    """A white dot in each cell of a mask, ``height`` of a cell high: evidence confirms the head."""
    for at in np.argwhere(mask):
        ax.add_patch(Ellipse((float(at[0]), float(at[1])), height, height, zorder=5, **_MARK))


def relation_keys(atlas: Atlas, grids: Sequence[RelationGrid]) -> list[Key]:
    """The legend: outlines, marks and hatching."""
    green, brown = (
        {"facecolor": score_colours(5, suppression=sign)[2], "edgecolor": INK, "linewidth": 0.7}
        for sign in (False, True)
    )
    keys = [Key("implements the relation", green)]
    if any(grid.suppresses.any() for grid in grids):
        keys.append(Key("suppresses it", brown, minus=True))
    if any((grid.with_context & ~grid.by_ablation).any() for grid in grids):
        keys.append(Key("confirmed with context", green, dot=WITH_CONTEXT))
    if any(grid.by_ablation.any() for grid in grids):
        keys.append(Key("confirmed by ablation", green, dot=BY_ABLATION))
    return [*keys, *panels.not_mapped_keys(atlas.layers_done)]


def draw_relation_in(atlas: Atlas, ax: Axes, which: Which, *, caption: bool) -> Figure:
    """Draw one relation into the user's axes."""
    if which is None:
        raise HeadatlasError(
            "one axes holds one relation: say which, as in relations(ax=ax, which='country_to_capital')."
        )
    grids = {grid.relation: grid for grid in chosen_grids(atlas, which)}
    grid = grids[panels.only_panel(list(grids))]
    draw_relation_panel(ax, grid, atlas.layers_done, cell=panels.cell_size(ax, *grid.score.shape))
    return panels.finish_user_axes(atlas, ax, grid.title, heads=True, caption=caption)
