"""A figure laid out in millimetres: what is drawn at 170 mm is printed at 170 mm.

Matplotlib places things in fractions of a figure and measures text only when it draws. Here the width is
given, text is measured beforehand and wrapped, and the height follows from what has been placed. Lengths are
millimetres, y runs down from the top edge.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, Rectangle
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.transforms import Affine2D

from headatlas.errors import HeadatlasError
from headatlas.figures.colours import INK
from headatlas.showing import safe_text

MM = 25.4
"""Millimetres in an inch."""
DPI = 300
DOT = MM / DPI
"""One pixel of a saved PNG. Cells are whole dots wide where that costs little: their edges are sharp."""
FONT_PT = 7.0
"""The one font size, as printed."""
LINE = FONT_PT * 1.25 / 72 * MM
"""Height of a line of text."""
MARGIN = 1.0
LARGEST_CELL = 6.0
"""Cells of a very small model are not wider than this (at 170 mm)."""
WIDTHS = (30.0, 1000.0)
"""Narrowest and widest figure."""

_TIGHT = re.compile(" ([≤≥=]) ")

STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    # The first is part of matplotlib, so a figure is the same on every machine.
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
    "font.size": FONT_PT,
    "axes.titlesize": FONT_PT,
    "axes.labelsize": FONT_PT,
    "xtick.labelsize": FONT_PT,
    "ytick.labelsize": FONT_PT,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.4,
    "xtick.major.width": 0.4,
    "ytick.major.width": 0.4,
    "xtick.major.size": 2.0,
    "ytick.major.size": 2.0,
    "xtick.major.pad": 1.5,
    "ytick.major.pad": 1.5,
    "hatch.linewidth": 0.4,
    "text.parse_math": False,  # a "$" in a relation's title is a "$"
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "headatlas",
    "pdf.fonttype": 42,
}


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib as it comes, with the style of headatlas, whatever the user has set."""
    with matplotlib.style.context(["default", STYLE]):
        yield


class AtlasFigure(Figure):
    """A matplotlib Figure that knows its title and description and saves itself in headatlas's style."""

    def __init__(self, *args: Any, title: str = "", description: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.title = title
        self.description = description

    def savefig(self, fname: Any, **kwargs: Any) -> None:
        """As matplotlib's, at 300 dpi, with text as text and nothing unseen in it.

        ``headatlas.figures.save`` adds metadata.
        """
        for each in self.findobj(Text):
            text = each.get_text()
            if text != (shown := safe_text(text, keep="\n")):
                each.set_text(shown)
        with style():
            super().savefig(fname, **{"dpi": DPI, **kwargs})


@dataclass(frozen=True)
class Key:
    """One entry of a legend: a label beside a small sample: a box, a box with a minus sign or a dot (its
    height as a share of the box), or a line."""

    label: str
    look: dict[str, Any] = field(default_factory=dict)
    line: bool = False
    minus: bool = False
    dot: float = 0.0


class Page:
    """Collects what is on a figure, then gives it the height it needs.

    Args:
        width_mm: Exact width of the figure.
        title, description: For the file's metadata.

    Raises:
        HeadatlasError: The width is not between 30 and 1000 mm.
    """

    def __init__(self, width_mm: float, *, title: str, description: str) -> None:
        self.width = check_width(width_mm)
        self.figure = AtlasFigure(
            figsize=(self.width / MM, 1.0), dpi=DPI, facecolor="white", title=title, description=description
        )
        self._mm = Affine2D()
        self._placed: list[tuple[Axes, float, float, float, float]] = []

    @property
    def inner(self) -> float:
        """Width between the margins."""
        return self.width - 2 * MARGIN

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes whose frame is the given box."""
        ax = self.figure.add_axes((0.0, 0.0, 1.0, 1.0), label=f"panel {len(self._placed)}")
        self._placed.append((ax, left, top, width, height))
        return ax

    def text(self, x: float, y: float, text: str, **kwargs: Any) -> Text:
        """Text whose line begins at height y; ``va`` defaults to the baseline of that line."""
        baseline = y + 0.8 * LINE
        return self.figure.text(x, baseline, text, transform=self._transform, **kwargs)

    def lines(self, x: float, y: float, lines: Sequence[str], **kwargs: Any) -> float:
        """Lines of text from height y down; returns the height below them."""
        for number, line in enumerate(lines):
            self.text(x, y + number * LINE, line, **kwargs)
        return y + len(lines) * LINE

    def box(self, x: float, y: float, width: float, height: float, **look: Any) -> None:
        """A rectangle with its top left corner at (x, y)."""
        self.figure.add_artist(
            Rectangle((x, y), width, height, **{"linewidth": 0.0, "transform": self._transform, **look})
        )

    def line(self, x: Sequence[float], y: Sequence[float], **look: Any) -> None:
        """A polyline."""
        self.figure.add_artist(Line2D(x, y, **{"transform": self._transform, **look}))

    def legend(self, x: float, y: float, width: float, keys: Sequence[Key], *, draw: bool = True) -> float:
        """Samples with labels, flowing into lines; returns the height below them.

        Args:
            draw: False only measures.
        """
        sample, gap, between = 4.0, 1.2, 4.0
        at, line = x, y
        for key in keys:
            labels = wrap(key.label, width - sample - gap)
            needed = sample + gap + max(text_width(part) for part in labels)
            if at > x and at + needed > x + width:
                at, line = x, line + LINE * 1.25
            if draw:
                self._sample(at, line, sample, key)
                self.lines(at + sample + gap, line, labels)
            at += needed + between
            if len(labels) > 1:
                at, line = x + width, line + (len(labels) - 1) * LINE
        return line + LINE if keys else y

    def _sample(self, x: float, y: float, width: float, key: Key) -> None:
        if key.line:
            self.line([x, x + width], [y + 0.55 * LINE] * 2, **key.look)
        else:
            self.box(x, y + 0.14 * LINE, width, 0.8 * LINE, **key.look)
        if key.minus:
            look = {"facecolor": "white", "edgecolor": INK, "linewidth": 0.15}
            self.box(x + 0.2 * width, y + 0.46 * LINE, 0.6 * width, 0.16 * LINE, **look)

        if key.dot:
            size = key.dot * 0.8 * LINE
            centre = (x + 0.5 * width, y + 0.54 * LINE)
            dot = Ellipse(centre, size, size, facecolor="white", edgecolor=INK, linewidth=0.15)
            dot.set_transform(self._transform)
            self.figure.add_artist(dot)

    def caption(self, y: float, text: str) -> float:
        """The line under the figure, wrapped to its width, if there is one; returns the height below it."""
        if not text:
            return y
        return self.lines(MARGIN, y, wrap(text, self.inner))

    def finish(self, height: float) -> AtlasFigure:
        """Fix the height and put everything in its place."""
        height = math.ceil(height / DOT) * DOT
        self.figure.set_size_inches(self.width / MM, height / MM)
        self._mm.clear().scale(1 / MM, -1 / MM).translate(0, height / MM)
        for ax, left, top, wide, high in self._placed:
            ax.set_position((left / self.width, 1 - (top + high) / height, wide / self.width, high / height))
        return self.figure

    @property
    def _transform(self) -> Any:
        return self._mm + self.figure.dpi_scale_trans


@dataclass(frozen=True)
class PanelColumns:
    """Panels side by side, in as many rows as the width asks for.

    Attributes:
        lefts: Left edges of the columns.
        width: Width of a panel.
        cell: Width of a cell (of n in a panel).
    """

    lefts: tuple[float, ...]
    width: float
    cell: float

    @property
    def title_width(self) -> float:
        """Room for a title over a panel, before it runs into its neighbour's."""
        return self.lefts[1] - self.lefts[0] - 1.6 if len(self.lefts) > 1 else self.width + MARGIN

    def rows(self, items: Sequence[Any]) -> list[Sequence[Any]]:
        """The items, row by row."""
        n = len(self.lefts)
        return [items[at : at + n] for at in range(0, len(items), n)]


def panel_columns(
    page: Page,
    n_panels: int,
    n_cells: int,
    *,
    left: float,
    smallest: float = 22.0,
    largest: float | None = None,
    balance: bool = True,
) -> PanelColumns:
    """Divide a page's width into panels of n cells each.

    Args:
        left: Room for what stands left of the first panel.
        smallest: Panels are not narrower than this, unless the page is.
        largest: Nor wider than this; by default n cells of a very small model.
        balance: Whether rows get about equally many panels.
    """
    gap = 3.0
    room = page.width - MARGIN - left
    most = max(1, min(n_panels, int((room + gap) // (smallest + gap))))
    n = math.ceil(n_panels / math.ceil(n_panels / most)) if balance else most
    if largest is None:
        largest = max(smallest, n_cells * LARGEST_CELL * max(1.0, page.width / 170.0))
    width = min((room - gap * (n - 1)) / n, largest)
    dots = int(width / n_cells / DOT)
    # Whole dots per cell make sharp edges in a PNG; not at the price of a much smaller panel.
    cell = dots * DOT if dots and dots * DOT * n_cells > 0.92 * width else width / n_cells
    # Panels of a full width spread over the room; the small ones of a small model stand together.
    pitch = (room - cell * n_cells) / (n - 1) if n > 1 and width < largest else width + gap
    return PanelColumns(tuple(snap(left + number * pitch) for number in range(n)), cell * n_cells, cell)


def snap(length: float) -> float:
    """The nearest whole number of dots."""
    return round(length / DOT) * DOT


def panel_height(n_heads: int, cell_width: float, panel_width: float, *, flat: float = 1.0) -> float:
    """A height at which heads stay apart: square cells where that is neither too flat nor too tall.

    Args:
        flat: Multiplies the height, for figures of many panels.
    """
    wanted = n_heads * max(min(cell_width, LARGEST_CELL), 0.45)
    height = min(max(wanted, 22.0), max(60.0, 1.2 * panel_width)) * flat if n_heads > 1 else 12.0
    dots = round(height / n_heads / DOT)
    return dots * DOT * n_heads if dots >= 4 else snap(height)


def check_width(width_mm: float) -> float:
    """The width as a number.

    Raises:
        HeadatlasError: It is not between 30 and 1000 mm.
    """
    low, high = WIDTHS
    if not low <= width_mm <= high:
        raise HeadatlasError(f"`width_mm` is {width_mm:g} mm: a figure is {low:g} to {high:g} mm wide.")
    return float(width_mm)


@lru_cache(maxsize=4096)
def text_width(text: str, *, bold: bool = False) -> float:
    """Width in millimetres of one line at the figures' font size."""
    # Everything is named, so that nothing depends on the user's settings.
    font = FontProperties(
        family="DejaVu Sans",
        size=FONT_PT,
        weight="bold" if bold else "normal",
        style="normal",
        variant="normal",
        stretch="normal",
    )
    width, _, _ = text_to_path.get_text_width_height_descent(safe_text(text), font, ismath=False)
    return float(width) / 72 * MM


def wrap(text: str, width: float, *, measure: Callable[[str], float] = text_width) -> list[str]:
    """Break text into lines of at most the given width, between words, and inside a word only if it is longer
    than a line by itself."""
    lines: list[str] = []
    line = ""
    # "q ≤ 0.01" is not broken.
    for word in _TIGHT.sub("\u00a0\\1\u00a0", safe_text(text)).split(" "):
        joined = f"{line} {word}" if line else word
        if measure(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        line = word
        while len(line) > 1 and measure(line) > width:
            fits = next((n for n in range(len(line) - 1, 1, -1) if measure(line[:n]) <= width), 1)
            lines.append(line[:fits])
            line = line[fits:]
    return [*lines, line] if line else lines


def round_ticks(n: int, length: float, label: float) -> list[int]:
    """Few round positions from 0 to n - 1, far enough apart to read.

    Args:
        n: Number of cells along the axis.
        length: Length of the axis.
        label: Room that one label needs along it.
    """
    steps = (factor * 10**power for power in range(7) for factor in (1, 2, 5))
    step = next(step for step in steps if step * length / n >= 1.6 * label and n / step <= 6)
    return list(range(0, n, step))
