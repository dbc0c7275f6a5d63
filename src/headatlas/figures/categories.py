"""The categories figure (which head belongs to how many categories) and its profile over layers.

Both have a panel for all categories and one for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.path import Path

from headatlas.figures import panels as parts
from headatlas.figures.colours import BLANK, INK, level_colours
from headatlas.figures.grids import ALL, CategoryGrid, Panels, Which, category_grid, choose
from headatlas.figures.page import LINE, MARGIN, AtlasFigure, Key, Page, panel_columns, panel_height, style

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
    grid: CategoryGrid, width_mm: float, which: Which, *, title: str, description: str, caption: str
) -> AtlasFigure:
    """The whole figure; ``which`` chooses panels, an empty caption leaves no room for one."""
    n_layers, n_heads = grid.count.shape
    panels = choose(which, grid.panels, "panel")
    page = Page(width_mm, title=title, description=description)
    columns = panel_columns(page, len(panels), n_layers, str(n_heads - 1))
    height = panel_height(n_heads, columns.cell, columns.width)

    def draw(ax: Axes, panel: str, first: bool) -> None:
        draw_category_panel(ax, grid, panel, cell=min(columns.cell, height / n_heads))
        parts.cell_axes(page, ax, grid.count.shape, (columns.width, height), first=first)

    def legend(x: float, y: float, width: float, *, draw: bool = True) -> float:
        return page.legend(x, y, width, category_keys(grid), draw=draw)

    rows = columns.rows(panels)
    y = page.panels(columns, MARGIN, rows, height, title=str, draw=draw)
    return page.finish(page.beside_or_below(columns, y, height, len(rows[-1]), legend), caption)


def draw_category_panel(ax: Axes, grid: CategoryGrid, panel: str, *, cell: float) -> None:
    """One panel's cells; every level is an artist with the legend's label, so ``ax.legend()`` has them all.

    Args:
        cell: Size of a cell in millimetres; large ones are set apart by white lines.
    """
    shown = grid.shown(panel)
    parts.prepare_panel(ax, grid.mapped, shown.shape[1])
    for level, colour in enumerate(level_colours(grid.n_levels), start=1):
        parts.fill(ax, shown == level, colour, label=level_name(level))
    parts.separate(ax, shown.shape, cell)
    if grid.n_relations[panel] == 0:
        parts.say_empty(ax, parts.NOTHING_SCORED)
    elif grid.mapped.any() and not shown.any():
        n_heads = int(grid.mapped.sum()) * shown.shape[1]
        parts.say_empty(ax, f"0 of {n_heads:,}\n{'head' if n_heads == 1 else 'heads'}")


def level_name(level: int) -> str:
    """``1 category``, ``2 categories``."""
    return "1 category" if level == 1 else f"{level} categories"


def level_keys(grid: CategoryGrid) -> list[Key]:
    """The legend of the levels."""
    colours = level_colours(grid.n_levels)
    return [Key(level_name(level), {"facecolor": colour}) for level, colour in enumerate(colours, start=1)]


def category_keys(grid: CategoryGrid) -> list[Key]:
    """The legend: 1 category, 2 categories, …; none; layers that are not mapped, if any."""
    none = Key("none", {"facecolor": BLANK, "edgecolor": "#9a9a9a", "linewidth": 0.4})
    return [*level_keys(grid), none, *parts.not_mapped_keys(grid.mapped)]


def draw_category_in(
    atlas: Atlas, ax: Axes, which: Which, *, caption: bool, panels: Panels = "category"
) -> Figure:
    """Draw one panel of the categories figure into the user's axes."""
    grid = category_grid(atlas, panels)
    panel = parts.only_panel(choose(ALL if which is None else which, grid.panels, "panel"))
    draw_category_panel(ax, grid, panel, cell=parts.cell_size(ax, *grid.count.shape))
    return parts.finish_user_axes(atlas, ax, panel, heads=True, caption=caption)


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
    columns = panel_columns(page, len(panels), atlas.n_layers, "0.8")
    limit = profile_limit(grid, panels)

    def draw(ax: Axes, panel: str, first: bool) -> None:
        draw_profile(ax, grid, panel, limit=limit)
        parts.layer_ticks(ax, atlas.n_layers, columns.width)
        page.name_axes(ax, "Layer", "Share of heads" if first else "", "0.8")
        if not first:
            ax.set_yticklabels([])

    y = page.panels(columns, MARGIN, columns.rows(panels), PANEL_HEIGHT, title=str, draw=draw)
    control = Key(CONTROL, dict(_CONTROL_LINE), line=True)
    keys = [*level_keys(grid), *parts.not_mapped_keys(grid.mapped), control]
    return page.finish(page.legend(MARGIN, y, page.inner, keys) + 0.4 * LINE, caption)


def profile_limit(grid: CategoryGrid, panels: Sequence[str]) -> float:
    """Upper end of the share axis: the smallest of 0.1, 0.2, 0.4, 0.6, 0.8, 1 above everything drawn."""
    n_heads = grid.count.shape[1]
    shares = [(grid.shown(panel) > 0).sum(axis=1).max() / n_heads for panel in panels]
    control = np.nan_to_num([grid.control[panel] for panel in panels]).max()
    return next(limit for limit in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if max(*shares, control) <= limit)


def draw_profile(ax: Axes, grid: CategoryGrid, panel: str, *, limit: float) -> None:
    """One panel: share of each layer's heads, stacked by number of categories, and the control as a line."""
    shown = grid.shown(panel)
    parts.prepare_axes(ax, grid.mapped, (0.0, limit))
    ticks = [0.0, limit / 2, limit]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    at = np.arange(len(shown))
    # Darkest at the bottom; each level is drawn down to 0 and covered by the next: no seams between them.
    for level, colour in enumerate(level_colours(grid.n_levels), start=1):
        edges = np.repeat(np.arange(len(shown) + 1) - 0.5, 2)
        heights = np.concatenate([[0.0], np.repeat((shown >= level).mean(axis=1), 2), [0.0]])
        stairs = Path(np.stack([edges, heights], axis=-1))
        parts.add_path(ax, stairs, facecolor=colour, label=level_name(level), zorder=1)
    if grid.n_relations[panel] == 0:
        parts.say_empty(ax, parts.NOTHING_SCORED)
    else:
        ax.plot(at, grid.control[panel], color="white", linewidth=1.8, zorder=2.0, solid_capstyle="butt")
        marker = "." if grid.mapped.sum() == 1 else ""
        ax.plot(at, grid.control[panel], label=CONTROL, zorder=2.1, marker=marker, **_CONTROL_LINE)


def draw_profile_in(atlas: Atlas, ax: Axes, which: Which, *, caption: bool) -> Figure:
    """Draw one panel of the layers figure into the user's axes."""
    grid = category_grid(atlas)
    panel = parts.only_panel(choose(ALL if which is None else which, grid.panels, "panel"))
    draw_profile(ax, grid, panel, limit=profile_limit(grid, [panel]))
    return parts.finish_user_axes(atlas, ax, panel, heads=False, caption=caption)
