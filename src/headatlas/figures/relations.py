"""The relations figure: the score of every head on every relation, one panel for each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from headatlas.errors import HeadatlasError
from headatlas.figures import panels
from headatlas.figures.colours import Palette, palette_of
from headatlas.figures.describe import alt_text
from headatlas.figures.grids import RelationGrid, Which, choose_by, relation_grids
from headatlas.figures.page import GAP, AtlasFigure, Key, Page, left_of_panel
from headatlas.figures.panels import Cell
from headatlas.options import Look

if TYPE_CHECKING:
    from headatlas.atlas import Atlas


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

    def cells(ax: Axes, grid: RelationGrid, cell: Cell) -> None:
        draw_relation_panel(ax, grid, atlas.layers_done, palette, cell=cell)

    scales = {"suppression score": palette.scores(suppression=True), "promotion score": palette.scores()}
    return panels.draw_grids(
        page,
        grids,
        shape,
        f"{READING} {atlas.caption()}",
        cells=cells,
        title=lambda grid: (grid.title, f"n = {grid.called.sum():,}"),
        legend=partial(panels.colour_bar, page, scales, relation_keys(atlas, grids, palette)),
        category=lambda grid: grid.category,
        smallest=min(max(25.0, 1.2 * n_layers), WIDEST_CELLS, two),
        flat=0.8,
    )


def chosen_grids(atlas: Atlas, which: Which) -> list[RelationGrid]:
    """The scored relations asked for, by name, title or category, in panel order."""
    grids = relation_grids(atlas)
    if not grids:
        raise HeadatlasError("no relation of this atlas is scored, so there is no relations figure to draw.")
    what = "scored relation or category"
    return choose_by(which, grids, lambda grid: (grid.relation, grid.title, grid.category), what)


def draw_relation_panel(
    ax: Axes, grid: RelationGrid, mapped: NDArray[np.bool_], palette: Palette, *, cell: Cell
) -> None:
    """One relation's cells: colour by score, called heads outlined, suppressing ones with a minus sign."""
    panels.prepare_panel(ax, mapped, grid.score.shape[1], palette)
    suppressed = panels.fill_signed(ax, grid.shown, palette) | grid.suppresses
    panels.separate(ax, suppressed.shape, cell, palette)
    panels.minus(ax, suppressed, cell, palette, lower=np.any(list(grid.marks.values()), axis=0))
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
