"""``plot``, ``report`` and ``export``: an atlas as files."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from headatlas.addresses import shown
from headatlas.cli.options import (
    AtlasArgument,
    CriterionOption,
    K,
    KCopy,
    Profile,
    QMax,
    Tau,
    Width,
    read_atlas,
)
from headatlas.cli.output import parse_width, say
from headatlas.cli.summary import atlas_folder
from headatlas.errors import HeadatlasError

Kind = Literal["categories", "relations", "layers"]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("plot")(plot)
    app.command("report")(report)
    app.command("export")(export)


def plot(
    folder: AtlasArgument,
    out: Annotated[
        str,
        typer.Option(
            "--out", "-o", metavar="FILE", help="The figure: .png, .svg or .pdf.", show_default=False
        ),
    ],
    kind: Annotated[
        Kind, typer.Option("--kind", help="Panels per category, panels per relation, or layer profiles.")
    ] = "categories",
    width: Width = "170mm",
    data: Annotated[
        str | None, typer.Option("--data", metavar="FILE", help="Also write the plotted data, as CSV.")
    ] = None,
    k: K = None,
    k_copy: KCopy = None,
    tau: Tau = None,
    q: QMax = None,
    criterion: CriterionOption = None,
    profile: Profile = None,
) -> None:
    """Draw a figure into a file."""
    width_mm = parse_width(width)
    atlas = read_atlas(folder, profile=profile, k=k, k_copy=k_copy, tau=tau, q=q, criterion=criterion)
    from headatlas.figures import plot as draw
    from headatlas.figures.plots import write_data

    draw(atlas, kind, out, width_mm)
    say(f"written: {out}")
    if data is not None:
        write_data(atlas, kind, data)
        say(f"written: {data}")


def report(
    folder: AtlasArgument,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="FILE", help="Default: report.html beside the atlas."),
    ] = None,
    k: K = None,
    k_copy: KCopy = None,
    tau: Tau = None,
    q: QMax = None,
    criterion: CriterionOption = None,
    profile: Profile = None,
) -> None:
    """Write the interactive page.

    It is one HTML file that needs no network: hover, a slider for tau, a sortable table of heads.
    """
    atlas = read_atlas(folder, profile=profile, k=k, k_copy=k_copy, tau=tau, q=q, criterion=criterion)
    from headatlas.report import write_report

    if out is None and atlas.path is None:
        raise HeadatlasError(
            f"{shown(folder)}: this atlas is at an address; say with -o where the page goes."
        )
    path = write_report(atlas, out or atlas_folder(atlas) / "report.html")
    say(f"written: {path}")


def export(
    folder: AtlasArgument,
    out: Annotated[
        str,
        typer.Option(
            "--out", "-o", metavar="FILE", help="The table: .parquet, .csv or .json.", show_default=False
        ),
    ],
    k: K = None,
    k_copy: KCopy = None,
    tau: Tau = None,
    q: QMax = None,
    criterion: CriterionOption = None,
    profile: Profile = None,
) -> None:
    """Write the whole table: a row per head and relation.

    CSV and Parquet repeat model, lens, k, tau, q and criterion on every row, so that tables of several
    models can be joined; JSON has them once, beside the rows.
    """
    from headatlas.atlas.export import export as write

    atlas = read_atlas(folder, profile=profile, k=k, k_copy=k_copy, tau=tau, q=q, criterion=criterion)
    say(f"written: {write(atlas, out)}")
