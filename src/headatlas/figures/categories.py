"""The categories figure (which head belongs to how many categories) and its profile over layers.

Both have a panel for all categories and one for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from numpy.typing import NDArray

from headatlas.figures.colours import BLANK, INK, level_colours
from headatlas.figures.grids import ALL, CategoryGrid, Panels, Which, category_grid, choose
from headatlas.figures.page import (
    LINE,
    MARGIN,
    AtlasFigure,
    Key,
    Page,
    panel_columns,
    panel_height,
    round_ticks,
    style,
    text_width,
)
from headatlas.figures.panels import (
    CELL_FOR_LINES,
    LAYER_BELOW,
    axis_height,
    axis_room,
    cell_size,
    fill,
    finish_axes,
    finish_user_axes,
    hatch_layers,
    not_mapped_key,
    only_panel,
    prepare_panel,
    row_of_titles,
    say_empty,
    say_nothing_scored,
    separate,
)

if TYPE_CHECKING:
    from headatlas.atlas import Atlas


def draw_categories(
    atlas: Atlas,
    width_mm: float,
    which: Which,
    *,
    description: str,
    caption: str,
    panels: Panels = "category",
) -> AtlasFigure:
    """The whole figure of an atlas; ``which`` chooses panels."""
    title = f"Categories of the heads of {atlas.model_name}"
    grid = category_grid(atlas, panels)
    return draw_category_grid(grid, width_mm, which, title=title, description=description, caption=caption)


@style()
def draw_category_grid(
    grid: CategoryGrid,
    width_mm: float,
    which: Which,
    *,
    title: str,
    description: str,
    caption: str,
) -> AtlasFigure:
    """The whole figure; ``which`` chooses panels, an empty caption leaves no room for one."""
    n_layers, n_heads = grid.count.shape
    panels = choose(which, grid.panels, "panel")
    page = Page(width_mm, title=title, description=description)
    left = axis_room(n_heads)
    layout = panel_columns(page, len(panels), n_layers, left=left)
    height = panel_height(n_heads, layout.cell, layout.width)
    y = MARGIN
    rows = layout.rows(panels)
    keys = category_keys(grid)
    for row in rows:
        y = row_of_titles(page, layout, y, row)
        for number, (x, panel) in enumerate(zip(layout.lefts, row, strict=False)):
            ax = page.axes(x, y, layout.width, height)
            draw_category_panel(ax, grid, panel, lines=min(layout.cell, height / n_heads))
            finish_axes(page, ax, (x, y, layout.width, height), grid.count.shape, first=number == 0)
        top, y = y, y + height + axis_height() + 1.5
    free = layout.lefts[len(rows[-1]) :]
    if free and page.legend(free[0], top, page.width - MARGIN - free[0], keys, draw=False) <= top + height:
        page.legend(free[0], top, page.width - MARGIN - free[0], keys)
    else:
        y = page.legend(MARGIN, y, page.inner, keys) + 0.4 * LINE
    return page.finish(page.caption(y, caption) + MARGIN)


def draw_category_panel(ax: Axes, grid: CategoryGrid, panel: str, *, lines: float = 0.0) -> None:
    """One panel's cells; every level is an artist with the legend's label, so ``ax.legend()`` has them all.

    Args:
        lines: Size of a cell in millimetres; large ones are set apart by white lines.
    """
    shown = grid.shown(panel)
    prepare_panel(ax, grid.mapped, shown.shape[1])
    for level, (key, colour) in enumerate(
        zip(category_keys(grid), level_colours(grid.n_levels), strict=False), start=1
    ):
        fill(ax, shown == level, colour, label=key.label, zorder=1)
    if lines >= CELL_FOR_LINES:
        separate(ax, *shown.shape)
    if grid.n_relations[panel] == 0:
        say_nothing_scored(ax)
    elif grid.mapped.any() and not shown.any():
        n_heads = int(grid.mapped.sum()) * shown.shape[1]
        say_empty(ax, f"0 of {n_heads:,}\n{'head' if n_heads == 1 else 'heads'}")


def category_keys(grid: CategoryGrid) -> list[Key]:
    """The discrete legend: 1 category, 2 categories, …; none; layers that are not mapped, if any."""
    names = ["1 category"] + [f"{level} categories" for level in range(2, grid.n_levels + 1)]
    keys = [
        Key(name, {"facecolor": colour})
        for name, colour in zip(names, level_colours(grid.n_levels), strict=True)
    ]
    keys.append(Key("none", {"facecolor": BLANK, "edgecolor": "#9a9a9a", "linewidth": 0.4}))
    if not grid.mapped.all():
        keys.append(not_mapped_key())
    return keys


def draw_category_in(
    atlas: Atlas, ax: Axes, which: Which, *, caption: bool, panels: Panels = "category"
) -> Figure:
    """Draw one panel of the categories figure into the user's axes."""
    grid = category_grid(atlas, panels)
    panel = only_panel(choose(ALL if which is None else which, grid.panels, "panel"))
    draw_category_panel(ax, grid, panel, lines=cell_size(ax, *grid.count.shape))
    return finish_user_axes(atlas, ax, panel, heads=True, caption=caption)


# The layers figure ------------------------------------------------------------------------------------

CONTROL = "no-head control: share of sources that the state itself answers, mean over relations"
_CONTROL_LINE: dict[str, Any] = {"color": INK, "linewidth": 0.8, "linestyle": (0, (3.0, 1.5))}
PANEL_HEIGHT = 26.0


@style()
def draw_layers(
    atlas: Atlas, width_mm: float, which: Which, *, description: str, caption: str
) -> AtlasFigure:
    """The whole figure; ``which`` chooses panels."""
    grid = category_grid(atlas)
    panels = choose(which, grid.panels, "panel")
    page = Page(width_mm, title=f"Categories by layer of {atlas.model_name}", description=description)
    left = MARGIN + LINE + text_width("0.8") + 2.2
    layout = panel_columns(page, len(panels), atlas.n_layers, left=left)
    top_value = profile_limit(grid, panels)
    y = MARGIN
    for row in layout.rows(panels):
        y = row_of_titles(page, layout, y, row)
        for number, (x, panel) in enumerate(zip(layout.lefts, row, strict=False)):
            ax = page.axes(x, y, layout.width, PANEL_HEIGHT)
            draw_profile(ax, grid, panel, limit=top_value)
            layers = round_ticks(atlas.n_layers, layout.width, text_width(str(atlas.n_layers - 1)))
            ax.set_xticks(layers, [str(layer) for layer in layers])
            page.text(x + layout.width / 2, y + PANEL_HEIGHT + LAYER_BELOW, "Layer", ha="center")
            if number:
                ax.set_yticklabels([])
            else:
                at = x - 2.2 - text_width("0.8") - 0.35 * LINE
                middle = y + PANEL_HEIGHT / 2 - 0.8 * LINE
                page.text(at, middle, "Share of heads", rotation=90, ha="center", va="center")
        y += PANEL_HEIGHT + axis_height() + 1.5
    y = page.legend(MARGIN, y, page.inner, profile_keys(grid)) + 0.4 * LINE
    return page.finish(page.caption(y, caption) + MARGIN)


def profile_limit(grid: CategoryGrid, panels: Sequence[str]) -> float:
    """Upper end of the share axis: the smallest of 0.1, 0.2, 0.4, 0.6, 0.8, 1 above everything drawn."""
    n_heads = grid.count.shape[1]
    highest = max(float((grid.shown(panel) > 0).sum(axis=1).max()) / n_heads for panel in panels)
    control = np.concatenate([grid.control[panel] for panel in panels])
    if not np.isnan(control).all():
        highest = max(highest, float(np.nanmax(control)))
    return next(limit for limit in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if highest <= limit)


def draw_profile(ax: Axes, grid: CategoryGrid, panel: str, *, limit: float) -> None:
    """One panel: share of each layer's heads, stacked by number of categories, and the control as a line."""
    shown = grid.shown(panel)
    n_layers, n_heads = shown.shape
    ax.set_xlim(-0.5, n_layers - 0.5)
    ax.set_ylim(0.0, limit)
    ax.set_facecolor("white")
    ax.grid(visible=False)
    ticks = [0.0, limit / 2, limit]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    hatch_layers(ax, grid.mapped, (0.0, limit))
    keys = category_keys(grid)
    # Darkest at the bottom; each level is drawn down to 0 and covered by the next: no seams between them.
    for level, colour in enumerate(level_colours(grid.n_levels), start=1):
        share = (shown >= level).sum(axis=1) / n_heads
        ax.add_patch(_steps(share, colour, keys[level - 1].label))
    if grid.n_relations[panel] == 0:
        say_nothing_scored(ax)
    else:
        at = np.arange(n_layers)
        ax.plot(at, grid.control[panel], color="white", linewidth=1.8, zorder=2.0, solid_capstyle="butt")
        marker = "." if grid.mapped.sum() == 1 else ""
        ax.plot(at, grid.control[panel], label=CONTROL, zorder=2.1, marker=marker, **_CONTROL_LINE)


def _steps(share: NDArray[np.float64], colour: str, label: str) -> PathPatch:
    """A filled staircase from 0 to the share of each layer."""
    edges = np.repeat(np.arange(len(share) + 1) - 0.5, 2)
    heights = np.concatenate([[0.0], np.repeat(share, 2), [0.0]])
    path = Path(np.stack([edges, heights], axis=-1), closed=False)
    return PathPatch(
        path, facecolor=colour, edgecolor="none", linewidth=0.0, label=label, zorder=1, snap=False
    )


def profile_keys(grid: CategoryGrid) -> list[Key]:
    """The legend: levels, the control's line, layers that are not mapped, if any."""
    keys = category_keys(grid)[: grid.n_levels]
    if not grid.mapped.all():
        keys.append(not_mapped_key())
    return [*keys, Key(CONTROL, dict(_CONTROL_LINE), line=True)]


def draw_profile_in(atlas: Atlas, ax: Axes, which: Which, *, caption: bool) -> Figure:
    """Draw one panel of the layers figure into the user's axes."""
    grid = category_grid(atlas)
    panel = only_panel(choose(ALL if which is None else which, grid.panels, "panel"))
    draw_profile(ax, grid, panel, limit=profile_limit(grid, [panel]))
    return finish_user_axes(atlas, ax, panel, heads=False, caption=caption)
