"""The relations figure: the score of every head on every relation, one panel for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from headatlas.errors import HeadatlasError
from headatlas.figures import panels
from headatlas.figures.colours import Palette, palette_of
from headatlas.figures.describe import alt_text
from headatlas.figures.grids import RelationGrid, Which, choose, relation_grids
from headatlas.figures.page import (
    GAP,
    LINE,
    MARGIN,
    AtlasFigure,
    Key,
    Page,
    PanelColumns,
    left_of_panel,
    panel_columns,
    panel_height,
    style,
    text_width,
    wrap,
)
from headatlas.figures.panels import Cell
from headatlas.options import Look

if TYPE_CHECKING:
    from headatlas.atlas import Atlas


class OfCategory(Protocol):
    """Anything that has a panel and belongs to a category."""

    @property
    def category(self) -> str:
        """Its name."""
        ...


Of = TypeVar("Of", bound=OfCategory)

READING = (
    "Colour: the score, or the suppression score where that is larger; minus sign: suppression. "
    "n: heads that implement or suppress the relation."
)
WIDEST_CELLS = 36.0
"""Panels of many layers are at least this wide, so that a head can be seen, if two fit beside each other."""


def draw_relations(atlas: Atlas, width_mm: float, which: Which, look: Look) -> AtlasFigure:
    """The whole figure; ``which`` chooses relations or whole categories."""
    grids = chosen_grids(atlas, which)
    title = f"Relation scores of the heads of {atlas.model_name}"
    page = Page(width_mm, look, title=title, description=alt_text(atlas, "relations"))
    palette = page.palette
    n_layers, n_heads = shape = grids[0].score.shape
    two = (page.inner - left_of_panel(str(n_heads - 1)) - GAP) / 2
    smallest = min(max(25.0, 1.2 * n_layers), WIDEST_CELLS, two)
    columns = panel_columns(page, len(grids), n_layers, str(n_heads - 1), smallest=smallest)
    height = panel_height(n_heads, columns.cell, columns.width, flat=0.8)

    def draw(ax: Axes, placed: tuple[str, RelationGrid], first: bool) -> None:
        cell = (columns.cell, height / n_heads)
        draw_relation_panel(ax, placed[1], atlas.layers_done, palette, cell=cell)
        panels.cell_axes(page, ax, shape, (columns.width, height), first=first)

    def scale(x: float, y: float, width: float, *, draw: bool = True) -> float:
        steps = panels.STEPS + 1
        scales = {
            "suppression score": palette.scores(steps, suppression=True),
            "promotion score": palette.scores(steps),
        }
        keys = relation_keys(atlas, grids, palette)
        return panels.colour_bar(page, scales, keys, (x, y, width), draw=draw)

    rows = with_headings(columns.rows(grids))
    with style(palette):
        y = page.panels(
            columns,
            MARGIN,
            rows,
            height,
            title=lambda placed: (placed[1].title, f"n = {placed[1].called.sum():,}"),
            draw=draw,
            above=lambda y, row: headings(page, columns, y, row),
        )
        y = page.beside_or_below(columns, y, height, len(rows[-1]), scale)
        return page.finish(y, f"{READING} {atlas.caption()}")


def with_headings(rows: Sequence[Sequence[Of]]) -> list[list[tuple[str, Of]]]:
    """Each panel with its heading: its category where that begins and at the start of a row, else ``""``."""
    seen: set[str] = set()
    placed = []
    for row in rows:
        headed = []
        for number, grid in enumerate(row):
            again = grid.category in seen
            heading = f"{grid.category}, continued" if again else grid.category
            headed.append(("" if again and number else heading, grid))
            seen.add(grid.category)
        placed.append(headed)
    return placed


def headings(page: Page, columns: PanelColumns, y: float, row: Sequence[tuple[str, Any]]) -> float:
    """The categories' names above a row, wrapped to the room they have; returns the height below them."""
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


def draw_relation_panel(
    ax: Axes, grid: RelationGrid, mapped: NDArray[np.bool_], palette: Palette, *, cell: Cell
) -> None:
    """One relation's cells: colour by score, called heads outlined, suppressing ones with a minus sign."""
    panels.prepare_panel(ax, mapped, grid.score.shape[1], palette)
    step = np.rint(np.nan_to_num(grid.shown) * panels.STEPS).astype(int)
    panels.fill_steps(ax, step, palette.scores(panels.STEPS + 1))
    panels.fill_steps(ax, -step, palette.scores(panels.STEPS + 1, suppression=True))
    panels.separate(ax, step.shape, cell, palette)
    suppressed = (step < 0) | grid.suppresses
    panels.minus(ax, suppressed, cell, palette, lower=grid.asked)
    panels.outline(ax, grid.implements, cell, palette)
    panels.outline(ax, grid.suppresses, cell, palette)
    for mark, mask in grid.marks.items():
        panels.marks(ax, mark, mask, cell, palette, raised=suppressed)


def relation_keys(atlas: Atlas, grids: Sequence[RelationGrid], palette: Palette) -> list[Key]:
    """The legend: outlines, marks and hatching."""
    promoting, suppressing = (
        {"facecolor": palette.scores(5, suppression=sign)[2], "edgecolor": palette.ink, "linewidth": 0.7}
        for sign in (False, True)
    )
    keys = [Key("implements the relation", promoting)]
    if any(grid.suppresses.any() for grid in grids):
        keys.append(Key("suppresses it", suppressing, minus=True))
    for mark, words in EVIDENCE.items():
        if any(grid.marks[mark].any() for grid in grids):
            keys.append(Key(words, promoting, mark=mark))
    return [*keys, *panels.not_mapped_keys(atlas.layers_done, palette)]


EVIDENCE = {
    "ablation": "confirmed by ablation",
    "context": "confirmed with context",
    "refuted": "tested, not confirmed",
}


def draw_relation_in(atlas: Atlas, ax: Axes, which: Which, look: Look) -> Figure:
    """Draw one relation into the user's axes."""
    if which is None:
        raise HeadatlasError(
            "one axes holds one relation: say which, as in relations(ax=ax, which='country_to_capital')."
        )
    grids = {grid.relation: grid for grid in chosen_grids(atlas, which)}
    grid = grids[panels.only_panel(list(grids))]
    cell = panels.cell_size(ax, *grid.score.shape)
    draw_relation_panel(ax, grid, atlas.layers_done, palette_of(look), cell=cell)
    return panels.finish_user_axes(atlas, ax, grid.title, heads=True, caption=look.caption)
