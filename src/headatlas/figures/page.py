"""A figure laid out in millimetres: what is drawn at 170 mm is printed at 170 mm.

Matplotlib places things in fractions of a figure and measures text only when it draws. Here the width is
given, text is measured beforehand and wrapped, and the height follows from what has been placed. Lengths are
millimetres, y runs down from the top edge.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from string import ascii_lowercase
from typing import Any, Protocol, TypeVar

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.transforms import Affine2D

from headatlas.errors import HeadatlasError
from headatlas.figures.colours import LIGHT, Palette, palette_of
from headatlas.options import Look
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
LETTER = 3.0
"""Room for a panel's letter."""
DEFAULT_LOOK = Look()
NARROWEST, WIDEST = 30.0, 1000.0
GAP = 3.0
"""Between panels."""
RIGHT = 1.8
"""Right of the last panel, for half of the last tick's label."""
BELOW_TICKS = 1.2 + 0.9 * LINE
"""From the lower edge of a panel to the name of its x axis: ticks and their labels."""
BELOW = BELOW_TICKS + LINE
"""Room under a panel: ticks, their labels, the name of the axis."""
ROW = 3.4
"""Height of a relation's row."""
NARROW = 110.0
"""From this width down panels of rows go under each other."""
BESIDE_TICKS = 2.2
"""Left of a panel, beside its tick labels."""

_TIGHT = re.compile(r" ([≤≥=−]) |(?<=\d) (?=%)")
"""Spaces at which a line does not end: those in “q ≤ 0.01” and “95 %”."""

T = TypeVar("T")

Title = tuple[str, str]
"""Of a panel: its name, and what stands beside it or, in a row where that does not fit, below it; or ""."""


@contextmanager
def style(palette: Palette = LIGHT) -> Iterator[None]:
    """Matplotlib as it comes, with the style of headatlas, whatever the user has set."""
    ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    ticks = {"major.width": 0.4, "major.size": 2.0, "major.pad": 1.5, "labelsize": FONT_PT}
    chosen: dict[str, Any] = {
        "font.family": "sans-serif",
        # The first is part of matplotlib, so a figure is the same on every machine.
        "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
        "font.size": FONT_PT,
        "axes.labelsize": FONT_PT,
        "axes.facecolor": palette.paper,
        "axes.linewidth": 0.4,
        "hatch.linewidth": 0.4,
        "text.parse_math": False,  # a "$" in a relation's title is a "$"
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "headatlas",
        "pdf.fonttype": 42,
        **dict.fromkeys(ink, palette.ink),
        **{f"{axis}tick.{name}": value for axis in "xy" for name, value in ticks.items()},
    }
    with matplotlib.style.context(["default", chosen]):
        yield


SCREEN_DPI, SCREEN_WIDTH = 144, 720
"""Of a figure in a notebook; its width is in pixels of CSS, which screens may draw finer."""


class AtlasFigure(Figure):
    """A matplotlib Figure that knows its title and description and saves itself in headatlas's style."""

    def __init__(self, *args: Any, title: str = "", description: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.title = title
        self.description = description

    def savefig(self, fname: Any, **kwargs: Any) -> None:
        """As matplotlib's, at the figure's own dots per inch, with text as text and nothing unseen in it.

        ``headatlas.figures.save`` adds metadata.
        """
        for each in self.findobj(Text):
            text = each.get_text()
            if text != (shown := safe_text(text, keep="\n")):
                each.set_text(shown)
        with style():
            super().savefig(fname, **{"dpi": self.dpi, **kwargs})

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """For notebooks, which show a matplotlib Figure by themselves only once pyplot is imported."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=SCREEN_DPI)
        return buffer.getvalue(), {"width": SCREEN_WIDTH}


@dataclass(frozen=True)
class Key:
    """One entry of a legend: a label beside a small sample.

    The sample is a box, framed as called heads are if it is ``outlined``, with a minus sign or one of
    ``MARKS`` in it, or a line. A line with a marker and no width is a point.
    """

    label: str
    look: dict[str, Any] = field(default_factory=dict)
    line: bool = False
    outlined: bool = False
    minus: bool = False
    mark: str = ""

    @classmethod
    def point(cls, label: str, **look: Any) -> Key:
        """A marker beside its label."""
        return cls(label, {"linewidth": 0.0, "markersize": 3.6, **look}, line=True)


MARKS = {"ablation": ("o", 1.0), "context": ("o", 0.65), "refuted": ("X", 1.0), "moved": ("D", 0.7)}
"""Evidence, or change → marker in a cell, and its size beside the largest."""


def mark_look(mark: str, size: float, ink: str, paper: str) -> dict[str, Any]:
    """How a mark is drawn, its largest kind ``size`` points high."""
    marker, share = MARKS[mark]
    look = {"marker": marker, "markersize": share * size, "markeredgewidth": 0.1 * size}
    return {**look, "markerfacecolor": paper, "markeredgecolor": ink}


class Page:
    """Collects what is on a figure, then gives it the height it needs.

    Its title and description are for the file's metadata.
    """

    def __init__(self, width_mm: float, look: Look = DEFAULT_LOOK, *, title: str, description: str) -> None:
        if not NARROWEST <= width_mm <= WIDEST:
            raise HeadatlasError(
                f"`width_mm` is {width_mm:g} mm: a figure is {NARROWEST:g} to {WIDEST:g} mm wide."
            )
        self.width = float(width_mm)
        self.inner = self.width - 2 * MARGIN
        self.look, self.palette = look, palette_of(look)
        with style(self.palette):
            self.figure = AtlasFigure(
                figsize=(self.width / MM, 1.0),
                dpi=look.dpi,
                facecolor="none" if look.transparent else self.palette.paper,
                title=title,
                description=description,
            )
        self._mm = Affine2D()
        self._boxes: dict[Axes, tuple[float, float, float, float]] = {}
        self._lettered = 0

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes whose frame is the given box."""
        ax = self.figure.add_axes((0.0, 0.0, 1.0, 1.0), label=f"panel {len(self._boxes)}")
        self._boxes[ax] = (left, top, width, height)
        return ax

    def panels(
        self,
        columns: PanelColumns,
        items: Sequence[T],
        height: float,
        *,
        title: Callable[[T], Title],
        draw: Callable[[Axes, T, bool], None],
        category: Callable[[T], str] | None = None,
    ) -> float:
        """Panels with their titles, row by row from the top of the page; returns the height below them.

        ``draw`` is told whether a panel is the first of its row. A ``category`` is written over the titles
        where it begins, and at the start of a row.
        """
        y, seen = MARGIN, set[str]()
        for row in columns.rows(items):
            if category is not None:
                y = self._headings(columns, y, [category(item) for item in row], seen)
            y = self._titles(columns, y, [title(item) for item in row])
            for number, (x, item) in enumerate(zip(columns.lefts, row, strict=False)):
                draw(self.axes(x, y, columns.width, height), item, number == 0)
            y += height + BELOW + 1.5
        return y

    def _headings(self, columns: PanelColumns, y: float, names: Sequence[str], seen: set[str]) -> float:
        """Names of categories above a row, wrapped to the room they have; returns the height below them."""
        starts = [at for at, name in enumerate(names) if at == 0 or name != names[at - 1]]
        deepest = 1
        for at, following in zip(starts, [*starts[1:], None], strict=True):
            x = columns.lefts[at] if at else MARGIN
            end = self.width if following is None else columns.lefts[following]
            heading = f"{names[at]}, continued" if names[at] in seen else names[at]
            lines = wrap(heading, end - x - 1.5, measure=lambda text: text_width(text, bold=True))
            self.lines(x, y, lines, weight="bold")
            deepest = max(deepest, len(lines))
            seen.add(names[at])
        return y + deepest * LINE + 0.3

    def _titles(self, columns: PanelColumns, y: float, titles: Sequence[Title]) -> float:
        """Titles above a row, wrapped, and letters; returns the height of the panels' upper edge."""
        room = columns.title_width - (2 * LETTER if self.look.letters else 0.0)
        joined = [wrap(", ".join(filter(None, title)), room) for title in titles]
        wrapped = [[line for part in title for line in wrap(part, room)] for title in titles]
        if all(len(lines) == 1 for lines in joined):
            wrapped = joined
        deepest = max(len(lines) for lines in wrapped)
        for x, lines in zip(columns.lefts, wrapped, strict=False):
            if self.look.letters:
                self.text(x, y, self._letter(), weight="bold")
            for number, line in enumerate(lines):
                # A title wider than its panel stays on the page.
                centre = min(x + columns.width / 2, self.width - 0.4 - text_width(line) / 2)
                self.text(centre, y + (deepest - len(lines) + number) * LINE, line, ha="center")
        return y + deepest * LINE + 0.6

    def _letter(self) -> str:
        """The next panel's letter: a, b, …, z, aa, ab, …"""
        number, self._lettered = self._lettered, self._lettered + 1
        return (ascii_lowercase[number // 26 - 1] if number > 25 else "") + ascii_lowercase[number % 26]

    def below(self, ax: Axes, height: float, gap: float) -> Axes:
        """Axes of the same width in the lowest part of others, which become shorter."""
        left, top, width, whole = self._boxes[ax]
        self._boxes[ax] = (left, top, width, whole - height - gap)
        return self.axes(left, top + whole - height, width, height)

    def relation_rows(
        self,
        y: float,
        titles: Sequence[str],
        names: Sequence[str],
        draw: Callable[[Axes, str], None],
        *,
        x_name: str = "",
    ) -> float:
        """Panels whose rows are relations, the first at the top, from height y down; returns that below them.

        They stand beside each other, or on a narrow page one under the other. ``draw`` gets each by its name.
        An empty ``x_name`` leaves no room for one.
        """
        longest = 0.42 * self.width
        left = MARGIN + min(max(map(text_width, titles)), longest) + 2.2
        wide, height = self.width > NARROW, len(titles) * ROW
        width = (self.width - MARGIN - left - 4.0) / 2 if wide else self.width - MARGIN - left
        below = BELOW + 0.2 * LINE if x_name else 1.2 + LINE
        x, y = left, y + LINE + 0.6
        for number, name in enumerate(names):
            self.text(x + width / 2, y - LINE - 0.6, name, ha="center")
            if self.look.letters:
                self.text(x, y - LINE - 0.6, self._letter(), weight="bold")
            ax = self.axes(x, y, width, height)
            ax.set_ylim(len(titles) - 0.5, -0.5)
            named = number == 0 or not wide
            ax.set_yticks(range(len(titles)), [_short(each, longest) if named else "" for each in titles])
            draw(ax, name)
            self.name_axes(ax, x_name)
            if wide:
                x += width + 4.0
            elif number + 1 < len(names):
                y += height + below + 1.6 * LINE
        return y + height + below + 0.3 * LINE

    def name_axes(self, ax: Axes, x_name: str, y_name: str = "", labels: str = "") -> None:
        """Write the names of axes; that of y beside its tick labels, the widest of which is ``labels``."""
        left, top, width, height = self._boxes[ax]
        self.text(left + width / 2, top + height + BELOW_TICKS, x_name, ha="center")
        x = left - BESIDE_TICKS - text_width(labels) - 0.35 * LINE
        self.text(x, top + height / 2 - 0.8 * LINE, y_name, rotation=90, ha="center", va="center")

    def text(self, x: float, y: float, text: str, **kwargs: Any) -> None:
        """Text whose line begins at height y; ``va`` defaults to the baseline of that line."""
        if text:
            self.figure.text(x, y + 0.8 * LINE, text, transform=self._transform, **kwargs)

    def lines(self, x: float, y: float, lines: Sequence[str], **kwargs: Any) -> float:
        """Lines of text from height y down; returns the height below them."""
        for number, line in enumerate(lines):
            self.text(x, y + number * LINE, line, **kwargs)
        return y + len(lines) * LINE

    def box(self, x: float, y: float, width: float, height: float, **look: Any) -> None:
        """A rectangle with its top left corner at (x, y)."""
        look = {"linewidth": 0.0, "transform": self._transform, **look}
        self.figure.add_artist(Rectangle((x, y), width, height, **look))

    def line(self, x: Sequence[float], y: Sequence[float], **look: Any) -> None:
        """A polyline."""
        self.figure.add_artist(Line2D(x, y, **{"transform": self._transform, **look}))

    def legend(self, x: float, y: float, width: float, keys: Sequence[Key], *, draw: bool = True) -> float:
        """Samples with labels, flowing into lines; returns the height below them, or only measures it."""
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
        paper, ink = self.palette.paper, self.palette.ink
        middle = x + 0.5 * width
        if key.look.get("linewidth") == 0.0 and key.line:
            self.line([middle], [y + 0.55 * LINE], **key.look)
        elif key.line:
            self.line([x, middle, x + width], [y + 0.55 * LINE] * 3, markevery=[1], **key.look)
        else:
            self.box(x, y + 0.14 * LINE, width, 0.8 * LINE, **key.look)
        if key.outlined:
            inside = {"facecolor": key.look["facecolor"], "edgecolor": paper, "linewidth": 0.6}
            self.box(x, y + 0.14 * LINE, width, 0.8 * LINE, facecolor=ink)
            self.box(x + 0.35, y + 0.14 * LINE + 0.35, width - 0.7, 0.8 * LINE - 0.7, **inside)
        if key.minus:
            self.box(x + 0.3 * width, y + 0.46 * LINE, 0.4 * width, 0.16 * LINE, facecolor=paper)
        if key.mark:
            self.line([middle], [y + 0.54 * LINE], linewidth=0.0, **mark_look(key.mark, 4.0, ink, paper))

    def caption(self, y: float, text: str) -> float:
        """The line under the figure, wrapped to its width, if there is one; returns the height below it."""
        return self.lines(MARGIN, y, wrap(text, self.inner)) if text and self.look.caption else y

    def beside_or_below(self, columns: PanelColumns, y: float, height: float, filled: int, put: Put) -> float:
        """Put a legend into the free end of the last row of ``filled`` panels, if it fits there, or else
        below.

        ``y`` is the height below the row, ``height`` that of its panels. Returns the height below everything.
        """
        top = y - 1.5 - BELOW - height
        for x in columns.lefts[filled : filled + 1]:
            room = self.width - MARGIN - x
            if put(x, top, room, draw=False) <= top + height:
                put(x, top, room)
                return y
        return put(MARGIN, y, self.inner) + 0.4 * LINE

    def finish(self, y: float, caption: str) -> AtlasFigure:
        """Write the caption, fix the height and put everything in its place."""
        height = math.ceil((self.caption(y, caption) + MARGIN) / DOT) * DOT
        self.figure.set_size_inches(self.width / MM, height / MM)
        self._mm.clear().scale(1 / MM, -1 / MM).translate(0, height / MM)
        for ax, (left, top, wide, high) in self._boxes.items():
            ax.set_position((left / self.width, 1 - (top + high) / height, wide / self.width, high / height))
        return self.figure

    @property
    def _transform(self) -> Any:
        return self._mm + self.figure.dpi_scale_trans


class Put(Protocol):
    """Draws something at (x, y) in a width, or only measures it; returns the height below."""

    def __call__(self, x: float, y: float, width: float, *, draw: bool = True) -> float: ...


@dataclass(frozen=True)
class PanelColumns:
    """Panels side by side, in as many rows as the width asks for."""

    lefts: tuple[float, ...]  # left edges of the columns
    width: float  # of a panel
    cell: float  # width of a cell, of n in a panel

    @property
    def title_width(self) -> float:
        """Room for a title over a panel, before it runs into its neighbour's."""
        return self.lefts[1] - self.lefts[0] - 1.6 if len(self.lefts) > 1 else self.width + MARGIN

    def rows(self, items: Sequence[T]) -> list[Sequence[T]]:
        """The items, row by row."""
        n = len(self.lefts)
        return [items[at : at + n] for at in range(0, len(items), n)]


def panel_columns(
    page: Page,
    n_panels: int,
    n_cells: int,
    labels: str,
    *,
    smallest: float = 22.0,
    largest: float | None = None,
) -> PanelColumns:
    """Divide a page's width into panels of n cells each; ``labels`` is the widest tick label of the y axis.

    Panels are no narrower than ``smallest``, unless the page is, and no wider than ``largest``: by default n
    cells of a very small model.
    """
    left = left_of_panel(labels)
    room = page.width - RIGHT - left
    most = max(1, min(n_panels, int((room + GAP) // (smallest + GAP))))
    n = math.ceil(n_panels / math.ceil(n_panels / most))
    if largest is None:
        largest = max(smallest, n_cells * LARGEST_CELL * max(1.0, page.width / 170.0))
    width = min((room - GAP * (n - 1)) / n, largest)
    dots = int(width / n_cells / DOT)
    # Whole dots per cell make sharp edges in a PNG; not at the price of a much smaller panel.
    cell = dots * DOT if dots and dots * DOT * n_cells > 0.92 * width else width / n_cells
    # Panels of a full width spread over the room; the small ones of a small model stand together.
    pitch = (room - cell * n_cells) / (n - 1) if n > 1 and width < largest else width + GAP
    return PanelColumns(tuple(snap(left + number * pitch) for number in range(n)), cell * n_cells, cell)


def left_of_panel(labels: str) -> float:
    """Room left of a panel: margin, name of the y axis, tick labels of which this is the widest, ticks."""
    return MARGIN + LINE + text_width(labels) + BESIDE_TICKS


def snap(length: float) -> float:
    """The nearest whole number of dots."""
    return round(length / DOT) * DOT


def panel_height(n_heads: int, cell_width: float, panel_width: float, *, flat: float = 1.0) -> float:
    """A height at which heads stay apart: square cells where that is neither too flat nor too tall.

    ``flat`` multiplies it, for figures of many panels.
    """
    wanted = n_heads * max(min(cell_width, LARGEST_CELL), 0.45)
    height = min(max(wanted, 22.0), max(60.0, 1.2 * panel_width)) * flat if n_heads > 1 else 12.0
    dots = round(height / n_heads / DOT)
    return dots * DOT * n_heads if dots >= 4 else snap(height)


@lru_cache(maxsize=4096)
def text_width(text: str, *, bold: bool = False) -> float:
    """Width in millimetres of one line at the figures' font size."""
    # Everything is named, so that nothing depends on the user's settings.
    normal: dict[str, Any] = dict.fromkeys(("style", "variant", "stretch"), "normal")
    weight = "bold" if bold else "normal"
    font = FontProperties(family="DejaVu Sans", size=FONT_PT, weight=weight, **normal)
    width, _, _ = text_to_path.get_text_width_height_descent(safe_text(text), font, ismath=False)
    return float(width) / 72 * MM


def wrap(text: str, width: float, *, measure: Callable[[str], float] = text_width) -> list[str]:
    """Break text into lines of at most the given width, between words, and inside a word only if it is longer
    than a line by itself."""
    lines: list[str] = []
    line = ""
    for word in _TIGHT.sub(lambda found: found[0].replace(" ", "\u00a0"), safe_text(text)).split(" "):
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


def _short(title: str, width: float) -> str:
    """A title that fits into its column."""
    lines = wrap(title, width)
    return title if len(lines) == 1 else f"{lines[0]} …"


def round_ticks(n: int, length: float, label: float) -> list[int]:
    """0 and few round positions of n cells, evenly spaced, so far apart that labels of this length can be
    read."""
    factors = (1, 2, 4, 5) if n <= 10 else (1, 2, 5)  # 0, 4, 8 of nine says more than 0, 5
    steps = (factor * 10**power for power in range(7) for factor in factors)
    step = next(step for step in steps if step * length / n >= 1.6 * label and n / step <= 6)
    return list(range(0, n, step))


def counted_ticks(n: int, length: float, label: float) -> list[int]:
    """Few round numbers from 1 to n of n cells counted from 1, evenly spaced."""
    return [at for at in round_ticks(n + 1, length * (n + 1) / n, label) if at] or [1]
