"""One panel of a figure inside axes that the user made, in the user's own style."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from headatlas.errors import HeadatlasError
from headatlas.figures import cells
from headatlas.figures.categories import draw_category_panel
from headatlas.figures.grids import ALL, Panels, category_grid, choose
from headatlas.figures.layers import draw_profile, profile_limit
from headatlas.figures.page import MM, round_ticks, wrap
from headatlas.figures.relations import chosen_grids, draw_relation_panel

if TYPE_CHECKING:
    from headatlas.atlas import Atlas

Which = str | Sequence[str] | None


def categories(atlas: Atlas, ax: Axes, which: Which, *, panels: Panels, caption: bool) -> Figure:
    """One panel of the categories figure."""
    grid = category_grid(atlas, panels)
    panel = _one(choose(ALL if which is None else which, grid.panels, "panel"))
    draw_category_panel(ax, grid, panel, lines=_cell(ax, *grid.count.shape))
    return _finish(atlas, ax, panel, heads=True, caption=caption)


def relation(atlas: Atlas, ax: Axes, which: Which, *, caption: bool) -> Figure:
    """One relation."""
    if which is None:
        raise HeadatlasError(
            "one axes holds one relation: say which, as in relations(ax=ax, which='country_to_capital')."
        )
    name = _one([grid.relation for grid in chosen_grids(atlas, which)])
    grid = next(grid for grid in chosen_grids(atlas, which) if grid.relation == name)
    draw_relation_panel(ax, grid, atlas.layers_done, cell=_cell(ax, *grid.score.shape))
    return _finish(atlas, ax, grid.title, heads=True, caption=caption)


def profile(atlas: Atlas, ax: Axes, which: Which, *, caption: bool) -> Figure:
    """One panel of the layers figure."""
    grid = category_grid(atlas)
    panel = _one(choose(ALL if which is None else which, grid.panels, "panel"))
    draw_profile(ax, grid, panel, limit=profile_limit(grid, [panel]))
    return _finish(atlas, ax, panel, heads=False, caption=caption)


def _one(names: Sequence[str]) -> str:
    if len(names) != 1:
        raise HeadatlasError(f"one axes holds one panel; {', '.join(names)} are {len(names)}.")
    return names[0]


def _size(ax: Axes) -> tuple[float, float]:
    """Width and height of the axes in millimetres."""
    box = ax.get_window_extent()
    return box.width / ax.figure.dpi * MM, box.height / ax.figure.dpi * MM


def _cell(ax: Axes, n_layers: int, n_heads: int) -> float:
    width, height = _size(ax)
    return min(width / n_layers, height / n_heads)


def _finish(atlas: Atlas, ax: Axes, title: str, *, heads: bool, caption: bool) -> Figure:
    """Title, axis names, ticks and caption; returns the outermost figure."""
    width, height = _size(ax)
    size = float(ax.xaxis.label.get_fontsize())
    font = FontProperties(size=size)

    def measure(text: str) -> float:
        return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) / 72 * MM

    layers = round_ticks(atlas.n_layers, width, measure(str(atlas.n_layers - 1)))
    cells.set_ticks(ax, layers, round_ticks(atlas.n_heads, height, size / 72 * MM) if heads else None)
    ax.set_xlabel("Layer")
    ax.set_ylabel("Head" if heads else "Share of heads")
    ax.set_title(title, parse_math=False)
    if caption:
        ax.annotate(
            "\n".join(wrap(atlas.caption(), width, measure=measure)),
            xy=(0.0, 0.0),
            xycoords=("axes fraction", ax.xaxis.label),
            xytext=(0.0, -0.3 * size),
            textcoords="offset points",
            ha="left",
            va="top",
            fontsize=size,
            parse_math=False,
        )
    figure: Figure | SubFigure | None = ax.figure
    while isinstance(figure, SubFigure):
        figure = figure.figure
    if not isinstance(figure, Figure):
        raise HeadatlasError("the axes given as ax= belong to no figure.")
    return figure
