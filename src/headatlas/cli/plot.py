"""``plot``, ``report`` and ``export``: an atlas as files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from headatlas.cli.options import PlottedData, QAt, Width, draws, names_of, option, out_option, reads_atlas
from headatlas.cli.output import parse_width, say
from headatlas.errors import HeadatlasError
from headatlas.options import FigureKind, Look, Panels

if TYPE_CHECKING:
    from headatlas.atlas import Atlas


@draws
@reads_atlas
def plot_command(
    atlas: Atlas,
    look: Look,
    out: Annotated[Path, out_option("The figure: .png, .svg or .pdf.")],
    kind: Annotated[
        FigureKind,
        option(
            "--kind",
            "Of the map: panels per category, panels per relation, layer profiles. Of what was "
            "measured: where heads look, what they write, scores in texts, preferences of queries, a task.",
        ),
    ] = "categories",
    panels: Annotated[
        Panels, option("--panels", "Of the categories figure: what has a panel of its own.")
    ] = "category",
    which: Annotated[
        list[str] | None,
        option(
            "--which",
            "Only these panels: categories, relations, behaviours or measures by name; or which ablated "
            "task. Default: all.",
            "NAME,…",
        ),
    ] = None,
    width: Width = "170mm",
    data: PlottedData = None,
) -> None:
    """Draw a figure into a file."""
    from headatlas.figures.plots import plot, write_table

    plot(atlas, kind, out, parse_width(width), which=names_of(which, "which"), panels=panels, **asdict(look))
    say(f"written: {out}")
    if data is not None:
        say(f"written: {write_table(atlas.plot.data(kind, panels), data)}")


@reads_atlas
def report_command(
    atlas: Atlas,
    out: Annotated[Path | None, out_option("Default: report.html beside the atlas.")] = None,
    q_at: QAt = None,
) -> None:
    """Write the interactive page.

    It is one HTML file that needs no network: the figure, a card of every head, sliders for k, tau and q,
    search, a scatter and a table (docs/page.md). Its k moves freely; q is there at the atlas's k, and at
    those of --q-at.
    """
    from headatlas.report import write_report

    if out is None and atlas.path is None:
        raise HeadatlasError(
            f"{atlas.dataset.encoding['source']}: this atlas is at an address; say with `out` where the page "
            "goes."
        )
    say(f"written: {write_report(atlas, out or atlas.folder / 'report.html', q_at or ())}")


@reads_atlas
def export_command(
    atlas: Atlas, out: Annotated[Path, out_option("The table: .parquet, .csv or .json.")]
) -> None:
    """Write the whole table: a row per head and relation.

    CSV and Parquet repeat model, lens, k, tau, q and criterion on every row, so that tables of several
    models can be joined; JSON has them once, beside the rows.
    """
    from headatlas.atlas.export import export_table

    say(f"written: {export_table(atlas, out)}")
