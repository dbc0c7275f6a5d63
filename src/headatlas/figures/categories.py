"""The categories figure: which head belongs to how many categories, in one panel for all and one for each."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from headatlas.figures import cells
from headatlas.figures.colours import BLANK, level_colours
from headatlas.figures.grids import CategoryGrid, choose
from headatlas.figures.page import (
    FONT_PT,
    LINE,
    MARGIN,
    AtlasFigure,
    Columns,
    Key,
    Page,
    columns,
    panel_height,
    round_ticks,
    style,
    text_width,
    wrap,
)

LAYER_BELOW = 1.2 + 0.9 * LINE
"""From the lower edge of a panel to the word “Layer”: ticks and their labels."""


@style()
def draw_categories(
    grid: CategoryGrid,
    width_mm: float,
    which: str | Sequence[str] | None,
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
    layout = columns(page, len(panels), n_layers, left=left)
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
    cells.prepare(ax, grid.mapped, shown.shape[1])
    for level, (key, colour) in enumerate(
        zip(category_keys(grid), level_colours(grid.n_levels), strict=False), start=1
    ):
        cells.fill(ax, shown == level, colour, label=key.label, zorder=1)
    if lines >= cells.CELL_FOR_LINES:
        cells.separate(ax, *shown.shape)
    if grid.n_relations[panel] == 0:
        say_nothing_scored(ax)
    elif grid.mapped.any() and not shown.any():
        n_heads = int(grid.mapped.sum()) * shown.shape[1]
        say_empty(ax, f"0 of {n_heads:,}\n{'head' if n_heads == 1 else 'heads'}")


def say_nothing_scored(ax: Axes) -> None:
    """In a panel: it is empty because nothing was asked."""
    say_empty(ax, "no relation\nscored")


def say_empty(ax: Axes, why: str) -> None:
    """In an empty panel: why it is."""
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    ax.text(
        0.5,
        0.5,
        why,
        transform=ax.transAxes,
        ha="center",
        va="center",
        bbox=ground,
        zorder=5,
    )


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


def not_mapped_key() -> Key:
    return Key("layer not mapped", {**cells.NOT_MAPPED_LOOK, "linewidth": 0.4})


def axis_room(n_heads: int) -> float:
    """Room left of the first panel: the word “Head”, tick labels, ticks."""
    return MARGIN + LINE + text_width(str(n_heads - 1)) + 2.2


def axis_height() -> float:
    """Room under a panel: ticks, tick labels, the word “Layer”."""
    return LAYER_BELOW + LINE


def row_of_titles(page: Page, layout: Columns, y: float, titles: Sequence[str]) -> float:
    """Titles above a row of panels, wrapped; returns the height of the panels' upper edge."""
    wrapped = [wrap(title, layout.title_width) for title in titles]
    deepest = max(len(lines) for lines in wrapped)
    for x, lines in zip(layout.lefts, wrapped, strict=False):
        for number, line in enumerate(lines):
            at = y + (deepest - len(lines) + number) * LINE
            half = text_width(line) / 2
            centre = min(x + layout.width / 2, page.width - 0.4 - half)
            page.text(centre, at, line, ha="center")
    return y + deepest * LINE + 0.6


def finish_axes(
    page: Page, ax: Axes, box: tuple[float, float, float, float], shape: tuple[int, ...], *, first: bool
) -> None:
    """Ticks and axis names of one panel at ``box`` (left, top, width, height); heads are named only on the
    first of a row."""
    x, y, width, height = box
    n_layers, n_heads = shape
    layers = round_ticks(n_layers, width, text_width(str(n_layers - 1)))
    heads = round_ticks(n_heads, height, FONT_PT / 72 * 25.4)
    cells.set_ticks(ax, layers, heads)
    if not first:
        ax.set_yticklabels([])
    page.text(x + width / 2, y + height + LAYER_BELOW, "Layer", ha="center")
    if first:
        label = x - 2.2 - text_width(str(n_heads - 1)) - 0.35 * LINE
        page.text(label, y + height / 2 - 0.8 * LINE, "Head", rotation=90, ha="center", va="center")
