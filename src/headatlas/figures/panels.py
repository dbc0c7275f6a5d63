"""Parts of panels of layer × head cells: x layer, y head, both counted from 0 at the lower left.

A panel stands on a page of ours, or in axes that the user made, in the user's own style.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.textpath import text_to_path
from numpy.typing import NDArray

from headatlas.errors import HeadatlasError
from headatlas.figures.colours import STEPS, Palette
from headatlas.figures.page import (
    DOT,
    FONT_PT,
    LINE,
    MM,
    AtlasFigure,
    Key,
    Page,
    Put,
    Title,
    mark_look,
    panel_columns,
    panel_height,
    round_ticks,
    style,
    text_width,
    wrap,
)

if TYPE_CHECKING:
    from headatlas.atlas import Atlas

T = TypeVar("T")

Bools = NDArray[np.bool_]

Cell = tuple[float, float]
"""Width and height of a cell in millimetres."""
CELL_FOR_LINES = 0.6
"""Smallest width, or height, at which lines between cells help."""
CELL_FOR_SIGNS = 0.7
"""Smallest width at which a sign inside a cell is seen."""
BAR = 2.4
"""Height of a colour bar."""
SHORTEST_BAR = 45.0
TICKS = (0.0, 0.05, 0.2, 0.5, 1.0)


def boxes_path(x: NDArray[Any], y: NDArray[Any], width: float, height: NDArray[Any] | float) -> Path:
    """Rectangles as one path: ``x`` their middle, ``y`` their lower edge."""
    left, right, top = x - width / 2, x + width / 2, y + height
    corners = [(left, y), (right, y), (right, top), (left, top), (left, y)]
    vertices = np.stack([np.stack(corner, axis=-1) for corner in corners], axis=1).reshape(-1, 2)
    codes = np.tile([Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY], len(x))
    return Path(vertices, codes.astype(Path.code_type))


def cells_path(mask: Bools) -> Path:
    """The cells of a mask [n_layers, n_heads] as one path.

    One path per colour leaves no seams where a viewer smooths edges: neighbouring cells of a colour share
    their edge inside the same filled area. Cells one above the other become one rectangle.
    """
    change = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    layer, low = np.nonzero(change == 1)
    _, high = np.nonzero(change == -1)
    return boxes_path(layer, low - 0.5, 1.0, high - low)


def segments(parts: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> Path:
    """Straight lines as one path, from pairs of their ends [n, 2]."""
    vertices = np.concatenate([np.stack(ends, axis=1) for ends in parts]).reshape(-1, 2)
    codes = np.tile([Path.MOVETO, Path.LINETO], len(vertices) // 2)
    return Path(vertices, codes.astype(Path.code_type))


def add_path(ax: Axes, path: Path, **look: Any) -> PathPatch:
    """Draw a path."""
    # Snapping would make narrow cells differ in width, or vanish, at a low resolution.
    patch = PathPatch(path, **{"edgecolor": "none", "linewidth": 0.0, "snap": False, **look})
    ax.add_artist(patch)  # add_patch would measure every vertex to scale axes whose limits are fixed
    return patch


def fill(ax: Axes, mask: Bools, colour: str, **look: Any) -> None:
    """Fill the cells of a mask."""
    add_path(ax, cells_path(mask), **{"facecolor": colour, "zorder": 1, **look})


def fill_steps(ax: Axes, step: NDArray[Any], colours: Sequence[str]) -> None:
    """Fill the cells of each step above 0 of a scale with its colour."""
    for each in np.unique(step[step > 0]):
        fill(ax, step == each, colours[each])


def fill_signed(ax: Axes, value: NDArray[np.float64], palette: Palette) -> Bools:
    """Fill the cells of numbers from −1 to 1, those below 0 in the colour of suppression; returns which."""
    step = np.rint(np.nan_to_num(value).clip(-1.0, 1.0) * STEPS).astype(int)
    fill_steps(ax, step, palette.scores())
    fill_steps(ax, -step, palette.scores(suppression=True))
    return np.asarray(step < 0)


def prepare_panel(ax: Axes, mapped: Bools, n_heads: int, palette: Palette) -> None:
    """Limits, the ground of mapped layers, hatching where layers are not mapped."""
    prepare_axes(ax, mapped, (-0.5, n_heads - 0.5), palette)
    ax.set_axisbelow(False)
    if mapped.any():
        fill(ax, np.repeat(mapped[:, None], n_heads, axis=1), palette.blank, zorder=0.5)


def prepare_axes(ax: Axes, mapped: Bools, span: tuple[float, float], palette: Palette) -> None:
    """Limits of axes over layers, and hatching where layers are not mapped."""
    ax.set_xlim(-0.5, len(mapped) - 0.5)
    ax.set_ylim(*span)
    ax.set_facecolor(palette.paper)
    ax.grid(visible=False)
    change = np.diff(np.pad((~mapped).astype(np.int8), 1))
    for start, end in zip(*(np.flatnonzero(change == sign).tolist() for sign in (1, -1)), strict=True):
        size = (end - start, span[1] - span[0])
        ax.add_patch(Rectangle((start - 0.5, span[0]), *size, zorder=0.6, **not_mapped_look(palette)))


def not_mapped_look(palette: Palette) -> dict[str, Any]:
    """How layers that are not mapped are hatched."""
    look: dict[str, Any] = {"hatch": "//////", "linewidth": 0.0}
    return {"facecolor": palette.paper, "edgecolor": palette.soft, **look}


def separate(ax: Axes, shape: tuple[int, ...], cell: Cell, palette: Palette) -> None:
    """Lines between columns and between rows of cells, where these are wide enough to spare it."""
    n_layers, n_heads = shape
    x, y = np.arange(1, n_layers) - 0.5, np.arange(1, n_heads) - 0.5
    upright = [np.stack([x, np.full_like(x, end)], axis=-1) for end in (-0.5, n_heads - 0.5)]
    level = [np.stack([np.full_like(y, end), y], axis=-1) for end in (-0.5, n_layers - 0.5)]
    # In one direction alone they would make stripes of cells that are nearly square.
    least = CELL_FOR_LINES if min(cell) >= CELL_FOR_LINES else 2 * CELL_FOR_LINES
    for size, ends in zip(cell, (upright, level), strict=True):
        if size >= least:
            width = min(0.48, 0.2 * size / MM * 72)
            path = segments([(ends[0], ends[1])])
            add_path(ax, path, facecolor="none", edgecolor=palette.paper, linewidth=width, zorder=2)


def outline(ax: Axes, mask: Bools, cell: Cell, palette: Palette) -> None:
    """Frame each cell of a mask; inside, where there is room, a line of paper parts it from the colour.

    Without that, a frame round a dark cell (in the dark, a bright one) is not seen.
    """
    x, y = np.nonzero(mask)
    if not len(x):
        return
    ink, gap = min(0.25, max(DOT, 0.11 * min(cell))), min(0.2, max(DOT, 0.08 * min(cell)))
    look = {"facecolor": "none", "joinstyle": "miter"}
    frames = boxes_path(x, y - 0.5, 1.0, 1.0)
    # At the edge of a panel half of a frame lies outside it.
    add_path(ax, frames, edgecolor=palette.ink, linewidth=ink / MM * 72, zorder=3, clip_on=False, **look)
    if min(cell) >= CELL_FOR_LINES:
        wide, high = (1 - (ink + gap) / size for size in cell)
        rings = boxes_path(x, y - high / 2, wide, high)
        add_path(ax, rings, edgecolor=palette.paper, linewidth=gap / MM * 72, zorder=2.4, **look)


def minus(ax: Axes, mask: Bools, cell: Cell, palette: Palette, *, lower: Bools | None = None) -> None:
    """Draw a minus sign in the cells of a mask: what is below 0 is told apart in grey, too.

    In small cells it reaches from side to side. In cells of ``lower``, which have a mark, it is under that.
    """
    x, y = np.nonzero(mask)
    if len(x):
        marked = np.zeros(len(x)) if lower is None else lower[x, y]
        at = y - 0.22 * marked
        width = 0.64 if cell[0] >= CELL_FOR_SIGNS else 1.0
        height = min(0.22, 0.3 * cell[0] / cell[1]) * (1 - 0.45 * marked)
        signs = boxes_path(x, at - height / 2, width, height)
        add_path(ax, signs, zorder=2.5, facecolor=palette.paper)


def marks(ax: Axes, mark: str, mask: Bools, cell: Cell, palette: Palette, *, raised: Bools) -> None:
    """Draw one of ``MARKS`` in the cells of a mask, in those of ``raised`` above a minus sign."""
    x, y = np.nonzero(mask)
    look = mark_look(mark, 0.54 * min(cell) / MM * 72, palette.ink, palette.paper)
    ax.plot(x, y + 0.13 * raised[x, y], linestyle="none", zorder=5, **look)


def say_empty(ax: Axes, why: str, palette: Palette) -> None:
    """In an empty panel: why it is."""
    ground = {"facecolor": palette.paper, "edgecolor": "none", "pad": 1.5}
    look: dict[str, Any] = {"ha": "center", "va": "center", "color": palette.ink, "zorder": 5}
    ax.text(0.5, 0.5, why, transform=ax.transAxes, bbox=ground, **look)


NOTHING_SCORED = "no relation\nscored"


def not_mapped_keys(mapped: Bools, palette: Palette) -> list[Key]:
    """The legend of hatching, if there is any."""
    look = {**not_mapped_look(palette), "linewidth": 0.4}
    return [] if mapped.all() else [Key("layer not mapped", look)]


# On a page of ours --------------------------------------------------------------------------------------


def layer_ticks(ax: Axes, n_layers: int, width: float) -> None:
    """Round ticks on an axis of layers that is ``width`` millimetres long, in the page's font."""
    layers = round_ticks(n_layers, width, text_width(str(n_layers - 1)))
    ax.set_xticks(layers, [str(layer) for layer in layers])


def cell_axes(
    page: Page, ax: Axes, shape: tuple[int, ...], size: tuple[float, float], *, first: bool
) -> None:
    """Ticks and axis names of a panel of this width and height; heads are named on the first of a row."""
    n_layers, n_heads = shape
    layer_ticks(ax, n_layers, size[0])
    heads = round_ticks(n_heads, size[1], FONT_PT / 72 * MM)
    ax.set_yticks(heads, [str(head) if first else "" for head in heads])
    page.name_axes(ax, "Layer", "Head" if first else "", str(n_heads - 1))


def draw_grids(
    page: Page,
    shown: Sequence[T],
    shape: tuple[int, ...],
    caption: str,
    *,
    cells: Callable[[Axes, T, Cell], None],
    title: Callable[[T], Title],
    legend: Put,
    category: Callable[[T], str] | None = None,
    smallest: float = 22.0,
    flat: float = 1.0,
) -> AtlasFigure:
    """Panels of layer × head cells, as many in a row as can be read, with their legend.

    ``cells`` draws those of a panel, of a given size, into axes. Title and category are as
    :meth:`Page.panels` takes them, smallest and flat as :func:`panel_columns` and :func:`panel_height`.
    """
    n_layers, n_heads = shape
    columns = panel_columns(page, len(shown), n_layers, str(n_heads - 1), smallest=smallest)
    height = panel_height(n_heads, columns.cell, columns.width, flat=flat)

    def draw(ax: Axes, each: T, first: bool) -> None:
        cells(ax, each, (columns.cell, height / n_heads))
        cell_axes(page, ax, shape, (columns.width, height), first=first)

    with style(page.palette):
        y = page.panels(columns, shown, height, title=title, draw=draw, category=category)
        filled = len(columns.rows(shown)[-1])
        return page.finish(page.beside_or_below(columns, y, height, filled, legend), caption)


def colour_bar(
    page: Page,
    scales: Mapping[str, Sequence[str]],
    keys: Sequence[Key],
    x: float,
    y: float,
    width: float,
    *,
    draw: bool = True,
) -> float:
    """A colour bar with the legend beside it, or below where there is no room; returns the height below.

    Args:
        scales: Name → colours from 0 to 1, which stand at the square root of what they mean. Of two scales,
            the first runs from 1 (−1, if it is called "below 0") at the left end to 0 in the middle.
        draw: False only measures; a bar too short to be read is endlessly high.
    """
    if width < SHORTEST_BAR and not draw:
        return math.inf
    bar = min(width - 4.0, 40.0 * len(scales))
    left, part = x + 2.0, bar / len(scales)
    short = max(text_width(name) for name in scales) > part
    top, zero = y + LINE + 0.3, left + bar - part
    if draw:
        page.box(left, top, bar, BAR, facecolor=page.palette.blank)
    for number, (name, colours) in enumerate(scales.items() if draw else ()):
        page.text(left + (number + 0.5) * part, y, name.split(" ")[0] if short else name, ha="center")
        for step in range(1, len(colours)):
            # Each colour reaches to the end and the next is laid over it: no seams between them.
            begun = part * math.sqrt((step - 0.5) / (len(colours) - 1))
            start = zero + begun if number == len(scales) - 1 else left
            page.box(start, top, part - begun, BAR, facecolor=colours[step])
    if draw:
        page.box(left, top, bar, BAR, facecolor="none", edgecolor=page.palette.ink, linewidth=0.4)
        for sign, tick in product((-1, 1)[2 - len(scales) :], TICKS[:: 1 if part > 25 else 2]):
            at = zero + sign * part * math.sqrt(tick)
            page.line([at, at], [top + BAR, top + BAR + 0.7], color=page.palette.ink, linewidth=0.4)
            if tick or sign > 0:
                minus = "−" if sign < 0 and "below 0" in scales else ""
                page.text(at, top + BAR + 0.8, f"{minus}{tick:g}", ha="center")
    below = top + BAR + 0.8 + LINE
    beside = x + bar + 12.0
    if x + width - beside > 60.0:
        return max(below, page.legend(beside, top - 0.3, x + width - beside, keys, draw=draw))
    return page.legend(x, below + 0.4 * LINE, width, keys, draw=draw)


# In the user's axes -------------------------------------------------------------------------------------


def only_panel(names: Sequence[str]) -> str:
    """The one name in a list."""
    if len(names) != 1:
        raise HeadatlasError(f"one axes holds one panel; {', '.join(names)} are {len(names)}.")
    return names[0]


def cell_size(ax: Axes, n_layers: int, n_heads: int) -> Cell:
    """The size of a cell in the user's axes."""
    width, height = _size(ax)
    return width / n_layers, height / n_heads


def _size(ax: Axes) -> tuple[float, float]:
    """Width and height of the axes in millimetres."""
    box = ax.get_window_extent()
    return box.width / ax.figure.dpi * MM, box.height / ax.figure.dpi * MM


def finish_user_axes(atlas: Atlas, ax: Axes, title: str, *, heads: bool, caption: bool) -> None:
    """Title, axis names, ticks and caption of one panel in the user's axes."""
    width, height = _size(ax)
    size = float(ax.xaxis.label.get_fontsize())
    font = FontProperties(size=size)

    def measure(text: str) -> float:
        return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) / 72 * MM

    layers = round_ticks(atlas.n_layers, width, measure(str(atlas.n_layers - 1)))
    ax.set_xticks(layers, [str(layer) for layer in layers])
    if heads:
        rows = round_ticks(atlas.n_heads, height, size / 72 * MM)
        ax.set_yticks(rows, [str(row) for row in rows])
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
