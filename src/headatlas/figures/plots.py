"""The figures of an atlas by name: as matplotlib figures, as files, as tables."""

from __future__ import annotations

import base64
import io
import re
import warnings
from dataclasses import fields
from html import escape
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, overload

from headatlas.addresses import output_path
from headatlas.errors import HeadatlasError
from headatlas.figures.grids import Which, grid_of_table
from headatlas.files import atomic_write
from headatlas.options import FigureKind, Look, Panels
from headatlas.showing import safe_cells, safe_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from headatlas.atlas import Atlas


class Kind(NamedTuple):
    """A figure: functions of this room as ``module:function``, whose module is imported when it is needed."""

    draw: str  # draws it, from (atlas, width_mm, which, look)
    table: str  # makes the table of its numbers, from the atlas
    panel: str = (
        ""  # draws one panel into the user's axes, from (atlas, ax, which, look); of the map's figures
    )


KINDS: dict[FigureKind, Kind] = {
    "categories": Kind("map:draw_categories", "grids:categories_table", "map:draw_category_in"),
    "relations": Kind("map:draw_relations", "grids:relations_table", "map:draw_relation_in"),
    "layers": Kind("map:draw_layers", "grids:layers_table", "map:draw_profile_in"),
    "behaviours": Kind("measures:draw_behaviours", "measures:behaviours_table"),
    "salience": Kind("measures:draw_salience", "measures:salience_table"),
    "context": Kind("evidence:draw_context", "evidence:context_table"),
    "without-context": Kind("evidence:draw_without", "evidence:without_table"),
    "attention": Kind("evidence:draw_attention", "evidence:attention_table"),
    "ablation": Kind("evidence:draw_ablation", "evidence:ablation_table"),
}
FORMATS = ("png", "svg", "pdf")
WIDTH_MM = 170.0
PAGE_MM = 247.0
"""Height of what is printed on a page of A4; a higher figure is drawn with a warning."""


def draw_kind(
    kind: FigureKind, atlas: Atlas, width_mm: float, which: Which, look: Look, **more: Any
) -> Figure:
    """Draw a figure; where it is higher than a page, a warning says so.

    ``more`` are panels of the categories, and ``found``: what has just been measured, in the place of what
    the atlas holds.
    """
    figure: Figure = _named(KINDS[check_kind(kind)].draw)(atlas, width_mm, which, look, **more)
    if (height := figure.get_figheight() * 25.4) > PAGE_MM:
        warnings.warn(
            f"the {kind} figure is {height:.0f} mm high, more than a page ({PAGE_MM:g} mm): choose panels "
            "with `which` (`headatlas plot`), or draw it wider.",
            stacklevel=3,
        )
    return figure


def _named(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(import_module(f"headatlas.figures.{module}"), function)


class Plots:
    """The figures of one atlas: ``atlas.plot(kind=…)``, or by a method of the figure's name.

    Every one is a matplotlib Figure of exactly ``width_mm`` (30 to 1000; 170 by default) with legend and
    caption, drawn without pyplot. ``which`` chooses panels by name; all by default. ``look`` stands for
    the fields of :class:`headatlas.options.Look`: ``caption``, ``letters``, ``colours``, ``dark``,
    ``used_levels``, ``transparent``, ``dpi``.

    Given ``ax``, a figure of the map draws one panel into those axes instead, which have a size of their own,
    with axis names, title and caption under them, and returns the axes; nothing else of the user's figure is
    touched. Texts have the user's sizes. Every level has a labelled artist, so ``ax.legend()`` gives the
    legend.

    Layers run from 0 at the left, heads from 0 at the bottom.

    Raises:
        HeadatlasError: The width is out of range or given with ``ax``, or there is no such panel.
        TypeError: There is no such option.
    """

    def __init__(self, atlas: Atlas) -> None:
        self._atlas = atlas

    @overload
    def __call__(self, kind: FigureKind = "categories", *, ax: None = None, **choices: Any) -> Figure: ...
    @overload
    def __call__(self, kind: FigureKind = "categories", *, ax: Axes, **choices: Any) -> Axes: ...
    def __call__(
        self,
        kind: FigureKind = "categories",
        *,
        ax: Axes | None = None,
        width_mm: float | None = None,
        which: Which = None,
        panels: Panels = "category",
        **look: Any,
    ) -> Figure | Axes:
        """Draw any figure that this atlas holds data for.

        Args:
            kind: ``"categories"``, ``"relations"`` and ``"layers"`` show the map, the others what was
                measured: ``"behaviours"``, ``"salience"``, ``"context"`` and ``"without-context"`` (dynamic
                scores), ``"attention"`` (preferences of queries), ``"ablation"``.
            ax: Of the map: draw one panel here.
            width_mm: Its width as printed, 30 to 1000; 170 by default.
            which: Panels, relations or, of the ablation, the task; all by default.
            panels: Of the categories: a panel for each ``"category"``, ``"subcategory"`` or ``"relation"``. A
                head's colour is its number of categories in all of them.

        Raises:
            HeadatlasError: As for all figures, or the atlas holds nothing of it: the command that makes it is
                named.
        """
        more = panel_choice(kind, panels)
        if ax is None:
            width = WIDTH_MM if width_mm is None else width_mm
            return draw_kind(kind, self._atlas, width, which, _look(look, *_PLOT), **more)
        if not KINDS[kind].panel:
            raise HeadatlasError(f"`ax` is for figures of the map; {kind} has a figure of its own.")
        _named(KINDS[kind].panel)(self._atlas, ax, which, _look_in(width_mm, look), **more)
        return ax

    @overload
    def categories(self, *, ax: None = None, **choices: Any) -> Figure: ...
    @overload
    def categories(self, *, ax: Axes, **choices: Any) -> Axes: ...
    def categories(self, **choices: Any) -> Figure | Axes:
        """Draw which heads belong to how many categories: a panel for all, and one for each.

        With ``ax``, one panel: All Categories by default.
        """
        drawn: Figure | Axes = self("categories", **choices)
        return drawn

    @overload
    def relations(self, *, ax: None = None, **choices: Any) -> Figure: ...
    @overload
    def relations(self, *, ax: Axes, **choices: Any) -> Axes: ...
    def relations(self, **choices: Any) -> Figure | Axes:
        """Draw every head's score on every relation; ``which`` takes relations (name or title) or categories.

        Colour says promotion or, where larger, suppression, which has a minus sign. Heads that are called are
        outlined. With ``ax``, one relation, which must be named.
        """
        drawn: Figure | Axes = self("relations", **choices)
        return drawn

    @overload
    def layers(self, *, ax: None = None, **choices: Any) -> Figure: ...
    @overload
    def layers(self, *, ax: Axes, **choices: Any) -> Axes: ...
    def layers(self, **choices: Any) -> Figure | Axes:
        """Share of each layer's heads in each category, by number of categories; below it the no-head control
        (share of sources that the state itself answers, mean over the panel's relations).

        With ``ax``, one panel without the control: All Categories by default.
        """
        drawn: Figure | Axes = self("layers", **choices)
        return drawn

    def behaviours(self, **choices: Any) -> Figure:
        """Draw where heads look on the shipped texts: a panel a behaviour, coloured by attention.

        Heads that are called are outlined.
        """
        figure: Figure = self("behaviours", **choices)
        return figure

    def salience(self, **choices: Any) -> Figure:
        """Draw what heads write, in numbers: share explained, copying, effective rank, share of the norm."""
        figure: Figure = self("salience", **choices)
        return figure

    def _repr_html_(self) -> str:
        """The categories figure, which stands for all of them in notebooks, with its text alternative."""
        from headatlas.figures.page import SCREEN_DPI, SCREEN_WIDTH

        figure = self.categories(caption=False, dpi=SCREEN_DPI)
        shown = base64.b64encode(figure_bytes(figure, "png")).decode("ascii")
        alternative = escape(safe_text(getattr(figure, "description", "")))
        return f'<img alt="{alternative}" width="{SCREEN_WIDTH}" src="data:image/png;base64,{shown}">'

    def data(self, kind: FigureKind, panels: Panels = "category") -> pd.DataFrame:
        """The plotted numbers of a figure as a table; docs/figures.md describes its columns.

        Raises:
            HeadatlasError: There is no such figure, it has no such panels, or the atlas holds nothing of it.
        """
        more = panel_choice(kind, panels)
        table: pd.DataFrame = _named(KINDS[kind].table)(self._atlas, **more)
        return table


_PLOT = ("atlas.plot", "ax", "width_mm", "which", "panels")
"""The function, and what it takes beside the look."""


def _look(given: dict[str, Any], function: str, *others: str) -> Look:
    """The look asked for by name in a call of a function, which takes ``others`` beside it."""
    known = [*others, *(each.name for each in fields(Look))]
    for name in given:
        if name not in known:
            raise TypeError(
                f"{function}() got an unexpected keyword argument {name!r}; it takes {', '.join(known)}"
            )
    return Look(**given)


def _look_in(width_mm: float | None, given: dict[str, Any]) -> Look:
    """The look of one panel in the user's axes."""
    look = _look(given, *_PLOT)
    whole = ("letters", "used_levels", "transparent", "dpi")
    refused = [name for name in whole if getattr(look, name) != getattr(Look(), name)]
    for name in ["width_mm"] * (width_mm is not None) + refused:
        raise HeadatlasError(
            f"`{name}`: the axes given with `ax` are part of a figure of yours; leave it out."
        )
    return look


def plot_categories(
    table: pd.DataFrame,
    *,
    width_mm: float = WIDTH_MM,
    which: Which = None,
    shape: tuple[int, int] | None = None,
    title: str = "Categories of attention heads",
    caption: str = "",
    **look: Any,
) -> Figure:
    """The categories figure of any table: which heads belong to which categories, however that was found.

    Args:
        table: One row per head and category that it belongs to: columns ``layer``, ``head`` (from 0) and
            ``category``; others are ignored, repeated rows count once.
        width_mm: Width of the figure, 30 to 1000.
        which: Panels, by name (``"All Categories"`` or a category); all by default. Categories are in the
            order of their first row.
        shape: (layers, heads per layer) of the model; by default up to the last layer and head of the table.
        title: Of the file, for screen readers.
        caption: The line under the figure.
        look: Fields of :class:`headatlas.options.Look`, but for ``caption``.

    Raises:
        HeadatlasError: A column is missing, a number is no layer or head, or there is no such panel.
    """
    from headatlas.figures.map import draw_category_grid

    grid = grid_of_table(table, shape)
    chosen = _look(look, "plot_categories", "width_mm", "which", "shape", "title")
    return draw_category_grid(
        grid, width_mm, which, chosen, title=title, description=caption or title, caption=caption
    )


def plot(
    atlas: Atlas, kind: FigureKind, path: str | Path, width_mm: float = WIDTH_MM, **choices: Any
) -> Path:
    """Draw a figure into a .png, .svg or .pdf file; ``choices`` are those of :meth:`Plots.__call__`.

    Returns:
        The file written.

    Raises:
        HeadatlasError: No such figure or format, a width out of range, or the file cannot be written.
    """
    figure_format(path)
    return save(Plots(atlas)(kind, width_mm=width_mm, **choices), path)


def write_table(table: pd.DataFrame, path: str | Path) -> Path:
    """Write a table as CSV (UTF-8), its texts safe for a spreadsheet."""
    where = output_path(path)
    with atomic_write(where) as temporary:
        safe_cells(table).to_csv(temporary, index=False)
    return where


def check_kind(kind: FigureKind) -> FigureKind:
    """The kind itself."""
    if kind not in KINDS:
        raise HeadatlasError(f"`kind`: there is no figure {kind!r}; choose from {', '.join(KINDS)}.")
    return kind


def panel_choice(kind: FigureKind, panels: str) -> dict[str, str]:
    """The panels asked for, as functions of the kind take them; refuses what it cannot have."""
    check_kind(kind)
    if panels not in (known := get_args(Panels)):
        raise HeadatlasError(f"`panels` is {panels!r}: choose from {', '.join(known)}.")
    if kind == "categories":
        return {"panels": panels}
    if panels != "category":
        raise HeadatlasError(f"`panels={panels}` is for the figure of the categories, not for {kind}.")
    return {}


# Files ------------------------------------------------------------------------------------------------


def figure_format(path: str | Path) -> str:
    """The format a file name asks for."""
    suffix = output_path(path).suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        found = f"the suffix is .{suffix}" if suffix else "there is no suffix"
        raise HeadatlasError(f"{path}: {found}; a figure can be .png, .svg or .pdf.")
    return suffix


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure; the format follows the suffix. A PNG has the figure's dots per inch, 300 by default.

    The file holds the figure's title and description: ``<title>`` and ``<desc>`` in SVG, Title and Subject in
    PDF, Title and Description in PNG. It holds no date, so the same figure gives the same bytes.

    Raises:
        HeadatlasError: The suffix is not known, or the file cannot be written.
    """
    target = output_path(path)
    data = figure_bytes(figure, figure_format(target))
    with atomic_write(target) as temporary:
        temporary.write_bytes(data)
    return target


def figure_bytes(figure: Figure, file_format: str) -> bytes:
    """The bytes that :func:`save` writes, for pages and notebooks."""
    from headatlas.figures.page import style

    title, description = (safe_text(getattr(figure, name, "")) for name in ("title", "description"))
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Title": title, "Description": description},
        "svg": {"Title": title, "Date": None},
        "pdf": {"Title": title, "Subject": description, "CreationDate": None},
    }
    chosen = {name: value for name, value in metadata[file_format].items() if value != ""}
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format=file_format, dpi=figure.dpi, metadata=chosen)
    data = buffer.getvalue()
    return _describe_svg(data, title, description) if file_format == "svg" else data


def _describe_svg(data: bytes, title: str, description: str) -> bytes:
    """Add what a screen reader reads: role, label and ``<desc>``."""
    if not (title and description):
        return data
    text = data.decode("utf-8")
    text = text.replace("<svg ", '<svg role="img" aria-labelledby="title desc" ', 1)
    text = text.replace("<title>", '<title id="title">', 1)
    wanted = f'</title>\n <desc id="desc">{escape(description, quote=False)}</desc>'
    return re.sub("</title>", lambda _: wanted, text, count=1).encode("utf-8")
