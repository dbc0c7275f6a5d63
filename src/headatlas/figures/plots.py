"""The figures of an atlas by name: as matplotlib figures, as files, as tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from headatlas.addresses import output_path
from headatlas.errors import HeadatlasError
from headatlas.figures.describe import alt_text
from headatlas.figures.saving import figure_format, save
from headatlas.figures.tables import TABLES, categories_table
from headatlas.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from headatlas.atlas import Atlas
    from headatlas.figures.grids import Panels

KINDS = tuple(TABLES)
PANELS = ("category", "subcategory", "relation")
WIDTH_MM = 170.0

Which = str | Sequence[str] | None


class Plots:
    """The figures of one atlas.

    Every method returns a matplotlib Figure of exactly ``width_mm`` with legend and caption, drawn without
    pyplot. Given ``ax``, it draws one panel into those axes instead, with axis names, title and, unless
    ``caption`` is False, the caption under them; nothing else of the user's figure is touched. Every level
    has a labelled artist, so ``ax.legend()`` gives the legend.

    Layers run from 0 at the left, heads from 0 at the bottom.
    """

    def __init__(self, atlas: Atlas) -> None:
        self._atlas = atlas

    def categories(
        self,
        *,
        ax: Axes | None = None,
        width_mm: float = WIDTH_MM,
        which: Which = None,
        panels: Panels = "category",
        caption: bool = True,
    ) -> Figure:
        """Which heads belong to how many categories: a panel for all, and one for each.

        Args:
            ax: Draw one panel here (``which``; All Categories by default).
            width_mm: Width of the figure, 30 to 1000.
            which: Panels, by name (``"All Categories"`` or one of the others); all by default.
            panels: A panel for each ``"category"``, ``"subcategory"`` or ``"relation"``. A head's colour is
                its number of categories in all of them.
            caption: Whether to write the caption under it.

        Raises:
            HeadatlasError: The width is out of range, or there is no such panel or kind of panels.
        """
        from headatlas.figures import axes_mode
        from headatlas.figures.categories import draw_categories
        from headatlas.figures.grids import category_grid

        check_panels("categories", panels)
        if ax is not None:
            return axes_mode.categories(self._atlas, ax, which, panels=panels, caption=caption)
        title = f"Categories of the heads of {self._atlas.model_name}"
        words = self._words("categories", caption, "" if panels == "category" else panels)
        return draw_categories(category_grid(self._atlas, panels), width_mm, which, title=title, **words)

    def relations(
        self, *, ax: Axes | None = None, width_mm: float = WIDTH_MM, which: Which = None, caption: bool = True
    ) -> Figure:
        """Every head's score on every relation: colour by promotion or, where larger, suppression; heads that
        are called outlined, those that suppress marked with a minus.

        Args:
            ax: Draw one relation here (``which``; required).
            width_mm: Width of the figure, 30 to 1000.
            which: Relations (name or title) or categories; all by default.
            caption: Whether to write the caption under it.

        Raises:
            HeadatlasError: The width is out of range, or there is no such relation, or none is scored.
        """
        from headatlas.figures import axes_mode
        from headatlas.figures.relations import draw_relations

        if ax is not None:
            return axes_mode.relation(self._atlas, ax, which, caption=caption)
        return draw_relations(self._atlas, width_mm, which, **self._words("relations", caption))

    def layers(
        self, *, ax: Axes | None = None, width_mm: float = WIDTH_MM, which: Which = None, caption: bool = True
    ) -> Figure:
        """Share of each layer's heads in each category, by number of categories; the no-head control (share
        of sources that the state itself answers, mean over the panel's relations) as a dashed line.

        Args:
            ax: Draw one panel here (``which``; All Categories by default).
            width_mm: Width of the figure, 30 to 1000.
            which: Panels, by name; all by default.
            caption: Whether to write the caption under it.

        Raises:
            HeadatlasError: The width is out of range, or there is no such panel.
        """
        from headatlas.figures import axes_mode
        from headatlas.figures.layers import draw_layers

        if ax is not None:
            return axes_mode.profile(self._atlas, ax, which, caption=caption)
        return draw_layers(self._atlas, width_mm, which, **self._words("layers", caption))

    def _words(self, kind: str, caption: bool, each: str = "") -> dict[str, str]:
        """The alternative text of a figure, and its caption if it is to have one."""
        return {
            "description": alt_text(self._atlas, kind, each),
            "caption": self._atlas.caption() if caption else "",
        }

    def data(self, kind: str, panels: Panels = "category") -> pd.DataFrame:
        """What a figure plots, as a table; the columns are described in :mod:`headatlas.figures.tables`.

        Raises:
            HeadatlasError: There is no such figure, or it has no such panels.
        """
        check_panels(check_kind(kind), panels)
        if kind == "categories":
            return categories_table(self._atlas, panels)
        return TABLES[kind](self._atlas)


def plot_categories(
    table: pd.DataFrame,
    *,
    width_mm: float = WIDTH_MM,
    which: Which = None,
    shape: tuple[int, int] | None = None,
    title: str = "Categories of attention heads",
    caption: str = "",
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

    Raises:
        HeadatlasError: A column is missing, a number is no layer or head, or there is no such panel.
    """
    from headatlas.figures.categories import draw_categories
    from headatlas.figures.grids import grid_of_table

    grid = grid_of_table(table, shape)
    return draw_categories(grid, width_mm, which, title=title, description=caption or title, caption=caption)


def plot(
    atlas: Atlas,
    kind: str,
    path: str | Path,
    width_mm: float = WIDTH_MM,
    *,
    which: Which = None,
    panels: Panels = "category",
    data: bool = False,
) -> list[Path]:
    """Draw a figure into a file, and with ``data`` write the plotted numbers beside it as CSV.

    Args:
        kind: ``"categories"``, ``"relations"`` or ``"layers"``.
        path: A .png, .svg or .pdf file.
        width_mm: Its width as printed, 30 to 1000.
        which: Panels or relations; all by default.
        panels: Of the categories figure: a panel for each ``"category"``, ``"subcategory"`` or
            ``"relation"``.

    Returns:
        The files written.

    Raises:
        HeadatlasError: No such figure or format, a width out of range, or the file cannot be written.
    """
    plots = Plots(atlas)
    draw: dict[str, Callable[..., Figure]] = {name: getattr(plots, name) for name in KINDS}
    figure_format(path)
    check_panels(check_kind(kind), panels)
    split = {"panels": panels} if kind == "categories" else {}
    written = [save(draw[kind](width_mm=width_mm, which=which, **split), path)]
    if data:
        written.append(write_data(atlas, kind, output_path(path).with_suffix(".csv"), panels))
    return written


def write_data(atlas: Atlas, kind: str, path: str | Path, panels: Panels = "category") -> Path:
    """Write the numbers that a figure plots as CSV (UTF-8).

    Raises:
        HeadatlasError: There is no such figure, or the file cannot be written.
    """
    table = Plots(atlas).data(kind, panels)
    where = output_path(path)
    with atomic_write(where) as temporary:
        table.to_csv(temporary, index=False)
    return where


def check_kind(kind: str) -> str:
    """The kind itself.

    Raises:
        HeadatlasError: There is no such figure.
    """
    if kind not in KINDS:
        raise HeadatlasError(f"`kind`: there is no figure {kind!r}; choose from {', '.join(KINDS)}.")
    return kind


def check_panels(kind: str, panels: str) -> None:
    """Refuse panels that a figure cannot have.

    Raises:
        HeadatlasError: There are no such panels, or another figure than that of the categories is split.
    """
    if panels not in PANELS:
        raise HeadatlasError(f"`panels` is {panels!r}: choose from {', '.join(PANELS)}.")
    if kind != "categories" and panels != "category":
        raise HeadatlasError(f"`panels={panels}` is for the figure of the categories, not for {kind}.")
