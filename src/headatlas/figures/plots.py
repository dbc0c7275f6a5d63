"""The figures of an atlas by name: as matplotlib figures, as files, as tables."""

from __future__ import annotations

import base64
import io
import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headatlas.addresses import output_path
from headatlas.errors import HeadatlasError
from headatlas.figures.grids import TABLES, Panels, Which, categories_table, grid_of_table
from headatlas.files import atomic_write
from headatlas.options import Look
from headatlas.showing import safe_cells, safe_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from headatlas.atlas import Atlas

KINDS = tuple(TABLES)
FORMATS = ("png", "svg", "pdf")
PANELS = ("category", "subcategory", "relation")
WIDTH_MM = 170.0


class Plots:
    """The figures of one atlas.

    Every method returns a matplotlib Figure of exactly ``width_mm`` (30 to 1000; 170 by default) with legend
    and caption, drawn without pyplot. ``which`` chooses panels by name; all by default. ``look`` stands for
    the fields of :class:`headatlas.options.Look`: ``caption``, ``letters``, ``colours``, ``dark``,
    ``used_levels``, ``transparent``, ``dpi``.

    Given ``ax``, it draws one panel into those axes instead, which have a size of their own, with axis names,
    title and caption under them; nothing else of the user's figure is touched. Every level has a labelled
    artist, so ``ax.legend()`` gives the legend.

    Layers run from 0 at the left, heads from 0 at the bottom.

    Raises:
        HeadatlasError: The width is out of range or given with ``ax``, or there is no such panel.
    """

    def __init__(self, atlas: Atlas) -> None:
        self._atlas = atlas

    def categories(
        self,
        *,
        ax: Axes | None = None,
        width_mm: float | None = None,
        which: Which = None,
        panels: Panels = "category",
        **look: Any,
    ) -> Figure:
        """Draw which heads belong to how many categories: a panel for all, and one for each.

        Args:
            ax: Draw one panel here, All Categories by default.
            panels: A panel for each ``"category"``, ``"subcategory"`` or ``"relation"``. A head's colour is
                its number of categories in all of them.
        """
        from headatlas.figures.categories import draw_categories, draw_category_in

        check_panels("categories", panels)
        if ax is not None:
            return draw_category_in(self._atlas, ax, which, _look_in(width_mm, look), panels=panels)
        return draw_categories(self._atlas, _width(width_mm), which, Look(**look), panels=panels)

    def relations(
        self, *, ax: Axes | None = None, width_mm: float | None = None, which: Which = None, **look: Any
    ) -> Figure:
        """Draw every head's score on every relation.

        Colour says promotion or, where larger, suppression, which has a minus sign. Heads that are called are
        outlined.

        Args:
            ax: Draw one relation here (``which``; required).
            which: Relations (name or title) or categories; all by default.

        Raises:
            HeadatlasError: As for all figures, or no relation is scored.
        """
        from headatlas.figures.relations import draw_relation_in, draw_relations

        if ax is not None:
            return draw_relation_in(self._atlas, ax, which, _look_in(width_mm, look))
        return draw_relations(self._atlas, _width(width_mm), which, Look(**look))

    def layers(
        self, *, ax: Axes | None = None, width_mm: float | None = None, which: Which = None, **look: Any
    ) -> Figure:
        """Share of each layer's heads in each category, by number of categories; below it the no-head control
        (share of sources that the state itself answers, mean over the panel's relations).

        Args:
            ax: Draw one panel here, All Categories by default, without the control.
        """
        from headatlas.figures.categories import draw_layers, draw_profile_in

        if ax is not None:
            return draw_profile_in(self._atlas, ax, which, _look_in(width_mm, look))
        return draw_layers(self._atlas, _width(width_mm), which, Look(**look))

    def behaviours(self, *, width_mm: float | None = None, which: Which = None, **look: Any) -> Figure:
        """Draw where heads look on the shipped texts: a panel a behaviour, coloured by attention.

        Heads that are called are outlined.

        Raises:
            HeadatlasError: As for all figures, or no behaviour was measured.
        """
        from headatlas.figures.measures import draw_behaviours

        frame = self._atlas.behaviours
        caption = f"{self._atlas.model_name}; {frame.attrs.get('caption', '')}"
        shape = (self._atlas.n_layers, self._atlas.n_heads)
        title = f"Where the heads of {self._atlas.model_name} look"
        return draw_behaviours(
            frame, shape, _width(width_mm), which, Look(**look), title=title, caption=caption
        )

    def salience(self, *, width_mm: float | None = None, which: Which = None, **look: Any) -> Figure:
        """Draw what heads write, in numbers: share explained, copying, effective rank, share of the norm.

        Raises:
            HeadatlasError: As for all figures, or the salience was not computed.
        """
        from headatlas.figures.measures import draw_salience

        explained, spectrum = self._atlas.explained(), self._atlas.spectrum()
        frame = spectrum.merge(explained, on=["layer", "head"], how="left")
        caption = f"{self._atlas.model_name}; {explained.attrs.get('caption', '')}"
        shape = (self._atlas.n_layers, self._atlas.n_heads)
        title = f"What the heads of {self._atlas.model_name} write"
        return draw_salience(
            frame, shape, _width(width_mm), which, Look(**look), title=title, caption=caption
        )

    def _repr_html_(self) -> str:
        """The categories figure, which stands for all of them in notebooks, with its text alternative."""
        from headatlas.figures.page import SCREEN_DPI, SCREEN_WIDTH

        figure = self.categories(caption=False, dpi=SCREEN_DPI)
        shown = base64.b64encode(figure_bytes(figure, "png")).decode("ascii")
        alternative = escape(safe_text(getattr(figure, "description", "")))
        return f'<img alt="{alternative}" width="{SCREEN_WIDTH}" src="data:image/png;base64,{shown}">'

    def data(self, kind: str, panels: Panels = "category") -> pd.DataFrame:
        """The plotted numbers of a figure as a table; :mod:`headatlas.figures.grids` describes its columns.

        Raises:
            HeadatlasError: There is no such figure, or it has no such panels.
        """
        check_panels(check_kind(kind), panels)
        if kind == "categories":
            return categories_table(self._atlas, panels)
        return TABLES[kind](self._atlas)


def _width(width_mm: float | None) -> float:
    return WIDTH_MM if width_mm is None else width_mm


def _look_in(width_mm: float | None, given: dict[str, Any]) -> Look:
    """The look of one panel in the user's axes."""
    look = Look(**given)
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
    from headatlas.figures.categories import draw_category_grid

    grid = grid_of_table(table, shape)
    return draw_category_grid(
        grid, width_mm, which, Look(**look), title=title, description=caption or title, caption=caption
    )


def plot(
    atlas: Atlas,
    kind: str,
    path: str | Path,
    width_mm: float = WIDTH_MM,
    *,
    which: Which = None,
    panels: Panels = "category",
    **look: Any,
) -> Path:
    """Draw a figure into a file.

    Args:
        kind: ``"categories"``, ``"relations"`` or ``"layers"``.
        path: A .png, .svg or .pdf file.
        width_mm: Its width as printed, 30 to 1000.
        which: Panels or relations; all by default.
        panels: Of the categories figure: a panel for each ``"category"``, ``"subcategory"`` or
            ``"relation"``.
        look: Fields of :class:`headatlas.options.Look`.

    Returns:
        The file written.

    Raises:
        HeadatlasError: No such figure or format, a width out of range, or the file cannot be written.
    """
    figure_format(path)
    check_panels(check_kind(kind), panels)
    split = {"panels": panels} if kind == "categories" else {}
    return save(getattr(Plots(atlas), kind)(width_mm=width_mm, which=which, **split, **look), path)


def write_data(atlas: Atlas, kind: str, path: str | Path, panels: Panels = "category") -> Path:
    """Write the numbers that a figure plots as CSV (UTF-8)."""
    return write_table(Plots(atlas).data(kind, panels), path)


def write_table(table: pd.DataFrame, path: str | Path) -> Path:
    """Write a table as CSV (UTF-8), its texts safe for a spreadsheet."""
    where = output_path(path)
    with atomic_write(where) as temporary:
        safe_cells(table).to_csv(temporary, index=False)
    return where


def check_kind(kind: str) -> str:
    """The kind itself."""
    if kind not in KINDS:
        raise HeadatlasError(f"`kind`: there is no figure {kind!r}; choose from {', '.join(KINDS)}.")
    return kind


def check_panels(kind: str, panels: str) -> None:
    """Refuse panels that a figure cannot have."""
    if panels not in PANELS:
        raise HeadatlasError(f"`panels` is {panels!r}: choose from {', '.join(PANELS)}.")
    if kind != "categories" and panels != "category":
        raise HeadatlasError(f"`panels={panels}` is for the figure of the categories, not for {kind}.")


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
