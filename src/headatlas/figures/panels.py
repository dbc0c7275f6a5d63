"""Parts of panels of layer × head cells: x layer, y head, both counted from 0 at the lower left.

A panel stands on a page of ours, or in axes that the user made, in the user's own style.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.textpath import text_to_path
from numpy.typing import NDArray

from headatlas.errors import HeadatlasError
from headatlas.figures.colours import BLANK, INK, NOT_MAPPED
from headatlas.figures.page import (
    FONT_PT,
    LINE,
    MARGIN,
    MM,
    Key,
    Page,
    PanelColumns,
    round_ticks,
    text_width,
    wrap,
)

if TYPE_CHECKING:
    from headatlas.atlas import Atlas

Bools = NDArray[np.bool_]

NOT_MAPPED_LOOK: dict[str, Any] = {
    "facecolor": "white",
    "edgecolor": NOT_MAPPED,
    "hatch": "//////",
    "linewidth": 0.0,
}
CELL_FOR_LINES = 0.9
"""Smallest cell, in millimetres, at which white lines between cells help."""
LAYER_BELOW = 1.2 + 0.9 * LINE
"""From the lower edge of a panel to the word “Layer”: ticks and their labels."""


def cells_path(mask: Bools) -> Path:
    """The cells of a mask [n_layers, n_heads] as one path.

    One path per colour leaves no seams where a viewer smooths edges: neighbouring cells of a colour share
    their edge inside the same filled area. Cells one above the other become one rectangle.
    """
    padded = np.pad(mask.astype(np.int8), ((0, 0), (1, 1)))
    change = np.diff(padded, axis=1)
    layer, low = np.nonzero(change == 1)
    _, high = np.nonzero(change == -1)
    left, right, bottom, top = layer - 0.5, layer + 0.5, low - 0.5, high - 0.5
    corners = [(left, bottom), (right, bottom), (right, top), (left, top), (left, bottom)]
    vertices = np.stack([np.stack(corner, axis=-1) for corner in corners], axis=1).reshape(-1, 2)
    codes = np.tile([Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY], len(layer))
    return Path(vertices, codes.astype(Path.code_type))


def outline_path(mask: Bools) -> Path:
    """The border of a mask [n_layers, n_heads]: the edges between its cells and the others."""
    padded = np.pad(mask, 1).astype(np.int8)
    upright = np.diff(padded[:, 1:-1], axis=0) != 0  # [n_layers + 1, n_heads]
    level = np.diff(padded[1:-1], axis=1) != 0  # [n_layers, n_heads + 1]
    x, y = np.nonzero(upright)
    tall = np.stack([np.stack([x - 0.5, y - 0.5], -1), np.stack([x - 0.5, y + 0.5], -1)], axis=1)
    x, y = np.nonzero(level)
    flat = np.stack([np.stack([x - 0.5, y - 0.5], -1), np.stack([x + 0.5, y - 0.5], -1)], axis=1)
    vertices = np.concatenate([tall, flat]).reshape(-1, 2)
    codes = np.tile([Path.MOVETO, Path.LINETO], len(tall) + len(flat))
    return Path(vertices, codes.astype(Path.code_type))


def fill(ax: Axes, mask: Bools, colour: str, **look: Any) -> PathPatch:
    """Fill the cells of a mask."""
    # Snapping would make narrow cells differ in width, or vanish, at a low resolution.
    patch = PathPatch(
        cells_path(mask),
        **{"facecolor": colour, "edgecolor": "none", "linewidth": 0.0, "snap": False, **look},
    )
    ax.add_artist(patch)  # add_patch would measure every vertex to scale axes whose limits are fixed
    return patch


def prepare_panel(ax: Axes, mapped: Bools, n_heads: int) -> None:
    """Limits, the pale ground of mapped layers, hatching where layers are not mapped."""
    n_layers = len(mapped)
    ax.set_xlim(-0.5, n_layers - 0.5)
    ax.set_ylim(-0.5, n_heads - 0.5)
    ax.set_facecolor("white")
    ax.set_axisbelow(False)
    ax.grid(visible=False)
    if mapped.any():
        fill(ax, np.repeat(mapped[:, None], n_heads, axis=1), BLANK, zorder=0.5)
    hatch_layers(ax, mapped, (-0.5, n_heads - 0.5))


def hatch_layers(ax: Axes, mapped: Bools, span: tuple[float, float]) -> None:
    """Hatch runs of layers that are not mapped, from span[0] to span[1] on the y axis."""
    change = np.diff(np.pad((~mapped).astype(np.int8), 1))
    starts, ends = np.flatnonzero(change == 1).tolist(), np.flatnonzero(change == -1).tolist()
    for start, end in zip(starts, ends, strict=True):
        box = Rectangle((start - 0.5, span[0]), end - start, span[1] - span[0], zorder=0.6, **NOT_MAPPED_LOOK)
        ax.add_patch(box)


def separate(ax: Axes, n_layers: int, n_heads: int) -> None:
    """White lines between cells."""
    vertices: list[tuple[float, float]] = []
    for layer in range(1, n_layers):
        vertices += [(layer - 0.5, -0.5), (layer - 0.5, n_heads - 0.5)]
    for head in range(1, n_heads):
        vertices += [(-0.5, head - 0.5), (n_layers - 0.5, head - 0.5)]
    if vertices:
        path = Path(vertices, [Path.MOVETO, Path.LINETO] * (len(vertices) // 2))
        ax.add_patch(
            PathPatch(path, facecolor="none", edgecolor="white", linewidth=0.48, zorder=2, snap=False)
        )


def outline(ax: Axes, mask: Bools, width: float, **look: Any) -> None:
    """Draw the border of a mask, ``width`` points wide."""
    if mask.any():
        look = {"edgecolor": INK, "capstyle": "projecting", "zorder": 3, "snap": False, **look}
        ax.add_patch(PathPatch(outline_path(mask), facecolor="none", linewidth=width, **look))


def set_ticks(ax: Axes, layers: Sequence[int], heads: Sequence[int] | None) -> None:
    """Ticks at these layers and heads; None keeps the marks of an earlier panel's heads without labels."""
    ax.set_xticks(layers, [str(layer) for layer in layers])
    if heads is not None:
        ax.set_yticks(heads, [str(head) for head in heads])


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


def say_nothing_scored(ax: Axes) -> None:
    """In a panel: it is empty because nothing was asked."""
    say_empty(ax, "no relation\nscored")


def not_mapped_key() -> Key:
    return Key("layer not mapped", {**NOT_MAPPED_LOOK, "linewidth": 0.4})


# On a page of ours --------------------------------------------------------------------------------------


def axis_room(n_heads: int) -> float:
    """Room left of the first panel: the word “Head”, tick labels, ticks."""
    return MARGIN + LINE + text_width(str(n_heads - 1)) + 2.2


def axis_height() -> float:
    """Room under a panel: ticks, tick labels, the word “Layer”."""
    return LAYER_BELOW + LINE


def row_of_titles(page: Page, layout: PanelColumns, y: float, titles: Sequence[str]) -> float:
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
    set_ticks(ax, layers, heads)
    if not first:
        ax.set_yticklabels([])
    page.text(x + width / 2, y + height + LAYER_BELOW, "Layer", ha="center")
    if first:
        label = x - 2.2 - text_width(str(n_heads - 1)) - 0.35 * LINE
        page.text(label, y + height / 2 - 0.8 * LINE, "Head", rotation=90, ha="center", va="center")


# In the user's axes -------------------------------------------------------------------------------------


def only_panel(names: Sequence[str]) -> str:
    """The one name in a list.

    Raises:
        HeadatlasError: There are more or none.
    """
    if len(names) != 1:
        raise HeadatlasError(f"one axes holds one panel; {', '.join(names)} are {len(names)}.")
    return names[0]


def cell_size(ax: Axes, n_layers: int, n_heads: int) -> float:
    """Smaller side of a cell in the user's axes, in millimetres."""
    width, height = _size(ax)
    return min(width / n_layers, height / n_heads)


def _size(ax: Axes) -> tuple[float, float]:
    """Width and height of the axes in millimetres."""
    box = ax.get_window_extent()
    return box.width / ax.figure.dpi * MM, box.height / ax.figure.dpi * MM


def finish_user_axes(atlas: Atlas, ax: Axes, title: str, *, heads: bool, caption: bool) -> Figure:
    """Title, axis names, ticks and caption of one panel in the user's axes; returns the outermost figure."""
    width, height = _size(ax)
    size = float(ax.xaxis.label.get_fontsize())
    font = FontProperties(size=size)

    def measure(text: str) -> float:
        return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) / 72 * MM

    layers = round_ticks(atlas.n_layers, width, measure(str(atlas.n_layers - 1)))
    set_ticks(ax, layers, round_ticks(atlas.n_heads, height, size / 72 * MM) if heads else None)
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
