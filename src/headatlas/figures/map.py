"""The figures of the map: which head belongs to how many categories, that over layers, scores on relations.

The first two have a panel for all categories and one for each, the last one for each relation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.path import Path
from numpy.typing import NDArray

from headatlas.atlas.cards import caption_with_coverage
from headatlas.errors import HeadatlasError
from headatlas.figures import panels as parts
from headatlas.figures.colours import Palette, palette_of
from headatlas.figures.describe import alt_text, amount
from headatlas.figures.grids import (
    ALL,
    CategoryGrid,
    RelationGrid,
    Which,
    category_grid,
    choose,
    choose_by,
    relation_grids,
)
from headatlas.figures.page import (
    GAP,
    AtlasFigure,
    Key,
    Page,
    Title,
    left_of_panel,
    panel_columns,
    style,
    text_width,
)
from headatlas.figures.panels import Cell
from headatlas.options import Look, Panels

if TYPE_CHECKING:
    from headatlas.atlas import Atlas

READING = "Colour: number of categories of a head. n: heads in the panel."


def draw_categories(
    atlas: Atlas, width_mm: float, which: Which, look: Look, *, panels: Panels = "category"
) -> AtlasFigure:
    """The whole figure of an atlas; ``which`` chooses panels."""
    return draw_category_grid(
        category_grid(atlas, panels),
        width_mm,
        which,
        look,
        title=f"Categories of the heads of {atlas.model_name}",
        description=alt_text(atlas, "categories", "" if panels == "category" else panels),
        caption=f"{READING} {caption_with_coverage(atlas)}",
    )


def draw_category_grid(
    grid: CategoryGrid,
    width_mm: float,
    which: Which,
    look: Look,
    *,
    title: str,
    description: str,
    caption: str,
) -> AtlasFigure:
    """The whole figure; ``which`` chooses panels, an empty caption leaves no room for one."""
    page = Page(width_mm, look, title=title, description=description)
    return parts.draw_grids(
        page,
        choose(which, grid.panels, "panel"),
        grid.count.shape,
        caption,
        cells=lambda ax, panel, cell: draw_category_panel(ax, grid, panel, page.palette, cell=cell),
        title=partial(counted, grid),
        legend=partial(page.legend, keys=category_keys(grid, look)),
    )


def counted(grid: CategoryGrid, panel: str) -> Title:
    """A panel's title with the number of its heads."""
    return panel, f"n = {(grid.shown(panel) > 0).sum():,}"


def draw_category_panel(ax: Axes, grid: CategoryGrid, panel: str, palette: Palette, *, cell: Cell) -> None:
    """One panel's cells; every level is an artist with its label, so ``ax.legend()`` has them all."""
    shown = grid.shown(panel)
    parts.prepare_panel(ax, grid.mapped, shown.shape[1], palette)
    for level, colour in enumerate(palette.levels(grid.n_levels), start=1):
        parts.fill(ax, shown == level, colour, label=amount(level, "category"))
    parts.separate(ax, shown.shape, cell, palette)
    if grid.n_relations[panel] == 0:
        parts.say_empty(ax, parts.NOTHING_SCORED, palette)
    elif grid.mapped.any() and not shown.any():
        n_heads = int(grid.mapped.sum()) * shown.shape[1]
        parts.say_empty(ax, f"0 of {n_heads:,}\n{'head' if n_heads == 1 else 'heads'}", palette)


def level_keys(grid: CategoryGrid, look: Look) -> list[Key]:
    """The legend of the levels."""
    levels = enumerate(palette_of(look).levels(grid.n_levels), start=1)
    return [
        Key(amount(level, "category"), {"facecolor": colour})
        for level, colour in levels
        if not look.used_levels or (grid.count == level).any()
    ]


def category_keys(grid: CategoryGrid, look: Look) -> list[Key]:
    """The legend: 1 category, 2 categories, …; none; layers that are not mapped, if any."""
    palette = palette_of(look)
    none = Key("none", {"facecolor": palette.blank, "edgecolor": palette.soft, "linewidth": 0.4})
    return [*level_keys(grid, look), none, *parts.not_mapped_keys(grid.mapped, palette)]


def draw_category_in(
    atlas: Atlas, ax: Axes, which: Which, look: Look, *, panels: Panels = "category"
) -> None:
    """Draw one panel of the categories figure into the user's axes."""
    grid = category_grid(atlas, panels)
    panel = parts.only_panel(choose(ALL if which is None else which, grid.panels, "panel"))
    draw_category_panel(ax, grid, panel, palette_of(look), cell=parts.cell_size(ax, *grid.count.shape))
    parts.finish_user_axes(atlas, ax, panel, heads=True, caption=look.caption)


# The layers figure ------------------------------------------------------------------------------------

PROFILE, STRIP, BETWEEN = 24.0, 9.0, 3.0
"""Heights of the share of heads, of the control under it, and of what is between them."""
LAYERS_READING = (
    "Above: share of the layer's heads. Below: no-head control, the share of sources that the state itself "
    "answers (mean over relations). n: heads in the panel."
)


def draw_layers(atlas: Atlas, width_mm: float, which: Which, look: Look) -> AtlasFigure:
    """The whole figure; ``which`` chooses panels."""
    grid = category_grid(atlas)
    panels = choose(which, grid.panels, "panel")
    title, description = f"Categories by layer of {atlas.model_name}", alt_text(atlas, "layers")
    page = Page(width_mm, look, title=title, description=description)
    limit = upper_end([(grid.shown(panel) > 0).mean(axis=1) for panel in panels])
    highest = upper_end([grid.control[panel] for panel in panels])
    label = max(f"{limit / 2:g}", f"{limit:g}", f"{highest:g}", key=text_width)
    columns = panel_columns(page, len(panels), atlas.n_layers, label)

    def draw(ax: Axes, panel: str, first: bool) -> None:
        control = page.below(ax, STRIP, BETWEEN)
        draw_profile(ax, grid, panel, page.palette, limit=limit)
        draw_control(control, grid, panel, page.palette, limit=highest)
        parts.layer_ticks(ax, atlas.n_layers, columns.width)
        parts.layer_ticks(control, atlas.n_layers, columns.width)
        ax.set_xticklabels([])
        page.name_axes(ax, "", "Share of heads" if first else "", label)
        page.name_axes(control, "Layer", "Control" if first else "", label)
        if not first:
            ax.set_yticklabels([])
            control.set_yticklabels([])

    keys = [*level_keys(grid, look), *parts.not_mapped_keys(grid.mapped, page.palette)]
    legend = partial(page.legend, keys=keys)
    height = PROFILE + BETWEEN + STRIP
    with style(page.palette):
        y = page.panels(columns, panels, height, title=partial(counted, grid), draw=draw)
        y = page.beside_or_below(columns, y, height, len(columns.rows(panels)[-1]), legend)
        return page.finish(y, f"{LAYERS_READING} {atlas.caption()}")


def upper_end(shares: Sequence[NDArray[np.float64]]) -> float:
    """Upper end of an axis of shares: the smallest of 0.1, 0.2, 0.4, 0.6, 0.8, 1 above everything drawn."""
    highest = np.nan_to_num(shares).max()
    return next(limit for limit in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if highest <= limit)


def _share_axis(ax: Axes, grid: CategoryGrid, palette: Palette, ticks: Sequence[float]) -> None:
    parts.prepare_axes(ax, grid.mapped, (0.0, ticks[-1]), palette)
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])


def draw_profile(ax: Axes, grid: CategoryGrid, panel: str, palette: Palette, *, limit: float) -> None:
    """One panel: share of each layer's heads, stacked by number of categories."""
    shown = grid.shown(panel)
    _share_axis(ax, grid, palette, (0.0, limit / 2, limit))
    # The strongest at the bottom; each level is drawn down to 0 and covered by the next: no seams.
    for level, colour in enumerate(palette.levels(grid.n_levels), start=1):
        edges = np.repeat(np.arange(len(shown) + 1) - 0.5, 2)
        heights = np.concatenate([[0.0], np.repeat((shown >= level).mean(axis=1), 2), [0.0]])
        stairs = Path(np.stack([edges, heights], axis=-1))
        parts.add_path(ax, stairs, facecolor=colour, label=amount(level, "category"), zorder=1)
    if grid.n_relations[panel] == 0:
        parts.say_empty(ax, parts.NOTHING_SCORED, palette)


def draw_control(ax: Axes, grid: CategoryGrid, panel: str, palette: Palette, *, limit: float) -> None:
    """One panel's control: the share of sources that the state itself answers, a step a layer."""
    _share_axis(ax, grid, palette, (0.0, limit))
    edges = np.arange(len(grid.mapped) + 1) - 0.5
    ax.stairs(grid.control[panel], edges, baseline=None, color=palette.ink, linewidth=0.9)


def draw_profile_in(atlas: Atlas, ax: Axes, which: Which, look: Look) -> None:
    """Draw one panel of the layers figure into the user's axes, without the control."""
    grid = category_grid(atlas)
    panel = parts.only_panel(choose(ALL if which is None else which, grid.panels, "panel"))
    limit = upper_end([(grid.shown(panel) > 0).mean(axis=1)])
    draw_profile(ax, grid, panel, palette_of(look), limit=limit)
    parts.finish_user_axes(atlas, ax, panel, heads=False, caption=look.caption)


# The relations figure -------------------------------------------------------------------------------

RELATIONS_READING = (
    "Colour: the score, or the suppression score where that is larger; minus sign: suppression. "
    "n: heads that implement or suppress the relation."
)
WIDEST_CELLS = 36.0
"""Panels of many layers are at least this wide, so that a head can be seen, if two fit beside each other."""
EVIDENCE = {
    "ablation": "confirmed by ablation",
    "context": "confirmed with context",
    "refuted": "tested, not confirmed",
}
"""Words for marks."""


def draw_relations(atlas: Atlas, width_mm: float, which: Which, look: Look) -> AtlasFigure:
    """The whole figure; ``which`` chooses relations or whole categories."""
    grids = chosen_grids(atlas, which)
    title = f"Relation scores of the heads of {atlas.model_name}"
    page = Page(width_mm, look, title=title, description=alt_text(atlas, "relations"))
    palette, mapped = page.palette, atlas.layers_done
    n_layers, n_heads = shape = grids[0].score.shape
    two = (page.inner - left_of_panel(str(n_heads - 1)) - GAP) / 2
    scales = {"suppression score": palette.scores(suppression=True), "promotion score": palette.scores()}
    return parts.draw_grids(
        page,
        grids,
        shape,
        f"{RELATIONS_READING} {atlas.caption()}",
        cells=lambda ax, grid, cell: draw_relation_panel(ax, grid, mapped, palette, cell=cell),
        title=lambda grid: (grid.title, f"n = {grid.called.sum():,}"),
        legend=partial(parts.colour_bar, page, scales, relation_keys(atlas, grids, palette)),
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
    parts.prepare_panel(ax, mapped, grid.score.shape[1], palette)
    suppressed = parts.fill_signed(ax, grid.shown, palette) | grid.suppresses
    parts.separate(ax, suppressed.shape, cell, palette)
    parts.minus(ax, suppressed, cell, palette, lower=np.any(list(grid.marks.values()), axis=0))
    parts.outline(ax, grid.called, cell, palette)
    for mark, mask in grid.marks.items():
        parts.marks(ax, mark, mask, cell, palette, raised=suppressed)


def relation_keys(atlas: Atlas, grids: Sequence[RelationGrid], palette: Palette) -> list[Key]:
    """The legend: outlines, marks and hatching."""
    promoting, suppressing = ({"facecolor": palette.scores(5, suppression=sign)[2]} for sign in (False, True))
    keys = [Key("implements the relation", promoting, outlined=True)]
    if any(grid.suppresses.any() for grid in grids):
        keys.append(Key("suppresses it", suppressing, outlined=True, minus=True))
    for mark, words in EVIDENCE.items():
        if any(grid.marks[mark].any() for grid in grids):
            keys.append(Key(words, promoting, outlined=True, mark=mark))
    return [*keys, *parts.not_mapped_keys(atlas.layers_done, palette)]


def draw_relation_in(atlas: Atlas, ax: Axes, which: Which, look: Look) -> None:
    """Draw one relation into the user's axes."""
    if which is None:
        raise HeadatlasError(
            "one axes holds one relation: say which, as in relations(ax=ax, which='country_to_capital')."
        )
    grids = {grid.relation: grid for grid in chosen_grids(atlas, which)}
    grid = grids[parts.only_panel(list(grids))]
    cell = parts.cell_size(ax, *grid.score.shape)
    draw_relation_panel(ax, grid, atlas.layers_done, palette_of(look), cell=cell)
    parts.finish_user_axes(atlas, ax, grid.title, heads=True, caption=look.caption)
