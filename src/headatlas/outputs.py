"""The files that a map leaves beside its atlas: figures, their data, the description, the page, the table."""

from __future__ import annotations

from headatlas.atlas import Atlas
from headatlas.atlas.export import export
from headatlas.files import check_writable, replacing
from headatlas.storage import Place, place

FIGURE_SUFFIXES = (".png", ".svg", ".pdf")
WIDTH_MM = 170.0


def write_outputs(atlas: Atlas, folder: str | Place, figures: bool = True) -> list[Place]:
    """Write everything a reader wants to see first; each file replaces its predecessor whole.

    ``heads.parquet`` (one row per head × relation), ``categories.csv`` (the plotted data), and, unless
    ``figures`` is False, ``categories.png``, ``.svg`` and ``.pdf``, ``description.txt``, ``report.html``.

    Returns:
        The files written.

    Raises:
        HeadatlasError: A file cannot be written.
    """
    from headatlas.figures.plots import write_data

    folder = place(folder)
    check_writable(folder)
    written: list[Place] = [
        export(atlas, folder / "heads.parquet"),
        write_data(atlas, "categories", folder / "categories.csv"),
    ]
    if figures:
        from headatlas.report import write_report

        written += _write_figures(atlas, folder)
        written.append(_write_text(atlas, folder / "description.txt"))
        written.append(write_report(atlas, folder / "report.html"))
    return written


def _write_figures(atlas: Atlas, folder: Place) -> list[Place]:
    from headatlas.figures import save

    figure = atlas.plot.categories(width_mm=WIDTH_MM)
    paths = [folder / f"categories{suffix}" for suffix in FIGURE_SUFFIXES]
    return [save(figure, path) for path in paths]


def _write_text(atlas: Atlas, path: Place) -> Place:
    from headatlas.figures.describe import describe

    with replacing(path) as temporary:
        temporary.write_text(describe(atlas).rstrip("\n") + "\n", encoding="utf-8")
    return path
