"""The files beside an atlas: figures, their data, the description, the page, the tables.

They are written one by one. A fault in one says nothing about the atlas and stops no other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib import import_module
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from headatlas.addresses import output_path
from headatlas.atlas import Atlas
from headatlas.atlas.export import export_table
from headatlas.atlas.stored import COPY_IT
from headatlas.errors import HeadatlasError
from headatlas.figures.plots import WIDTH_MM, draw_kind, save, write_table
from headatlas.files import atomic_write, check_writable
from headatlas.options import FigureKind, Look

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from headatlas.atlas.behaviours import Looking
    from headatlas.atlas.evidence import Ablation, Dynamic, Preferences
    from headatlas.atlas.salience import Salience

FIGURE_SUFFIXES = (".png", ".svg", ".pdf")
EVIDENCE = "evidence"

Task = Callable[[Path], object]
"""Writes one file."""
Paths = list[Path]
Drawn = dict[str, tuple[FigureKind, Any]]
"""File without its suffix → kind of figure, and what it shows."""


_WRITERS = ("pyarrow.parquet", "headatlas.atlas.cards")
_DRAWERS = (
    "headatlas.figures.map",
    "headatlas.report",
    *(f"matplotlib.backends.backend_{kind}" for kind in ("agg", "svg", "pdf")),
)


def import_writers(*, figures: bool = True) -> None:
    """Import what scores and :func:`write_outputs` need, a second's work, while a map is still ranking."""
    for name in (*_WRITERS, *(_DRAWERS if figures else ())):
        import_module(name)


class UnwrittenError(HeadatlasError):
    """Some outputs could not be written; the message says which and why.

    Attributes:
        written: The files that were.
    """

    def __init__(self, message: str, written: Sequence[Path]) -> None:
        super().__init__(message)
        self.written = tuple(written)


def write_outputs(atlas: Atlas, folder: str | Path, figures: bool = True) -> Paths:
    """Write everything a reader wants to see first; each file replaces its predecessor whole.

    ``heads.parquet`` (one row per head × relation), ``categories.csv`` (the plotted data), and, unless
    ``figures`` is False, ``categories.png``, ``.svg`` and ``.pdf``, ``description.txt``, ``report.html``.

    Returns:
        The files written.

    Raises:
        HeadatlasError: The folder cannot be written.
        UnwrittenError: A file could not be written; all others were.
    """
    folder = output_path(folder)
    check_writable(folder)
    tasks: dict[str, Task] = {
        "heads.parquet": partial(export_table, atlas),
        "categories.csv": lambda path: write_table(atlas.plot.data("categories"), path),
    }
    if figures:
        tasks |= _figure_tasks("categories", "categories", atlas)
        tasks["description.txt"] = partial(_write_description, atlas)
        tasks["report.html"] = partial(_write_page, atlas)
    return _write_all(folder, tasks)


# Each of these writes into ``evidence`` beside the atlas, and raises UnwrittenError as write_outputs does.


def write_inference(atlas: Atlas, agreement: pd.DataFrame, found: Sequence[Dynamic], figures: bool) -> Paths:
    """Write what :func:`headatlas.evidence.statistics.agreement` found, and scatter plots with and without
    context. Like ablations, it writes the table and the page of the map again, for they show evidence."""
    kinds: tuple[FigureKind, ...] = ("context", "without-context")
    drawn: Drawn = {kind: (kind, found) for kind in kinds if figures and found}
    return _write_measured(atlas, {"agreement": agreement}, drawn, again=True)


def write_ablations(atlas: Atlas, found: Sequence[Ablation], figures: bool) -> Paths:
    """Write ``ablation.csv``, a row a task stored in the atlas, and a figure of each task that was found."""
    if not found:
        return []
    from headatlas.evidence.statistics import summarise_ablations

    drawn: Drawn = {f"ablation-{each.label}": ("ablation", each) for each in found if figures}
    tables = {"ablation": summarise_ablations(atlas.evidence.ablations or found)}
    return _write_measured(atlas, tables, drawn, again=True)


def write_behaviours(atlas: Atlas, found: Looking, figures: bool) -> Paths:
    """Write a row per behaviour and head, and a figure; of a user's own text, named after the file.

    Files of the shipped texts that are newer than the measurement are left as they are.
    """
    own = PurePath(found.source).stem
    name = f"behaviour-{own}" if own else "behaviour"
    drawn: Drawn = {name: ("behaviours", found)} if figures else {}
    measured = None if own or atlas.path is None else found.place(atlas.path / EVIDENCE) / "zarr.json"
    return _write_measured(atlas, {name: found.frame()}, drawn, measured=measured)


def write_salience(atlas: Atlas, found: Salience, figures: bool) -> Paths:
    """Write ``salience.csv`` (a row per head and source token), ``spectrum.csv`` (a row per head: numbers,
    what is explained and by what) and a figure."""
    tables = {"salience": found.frame(), "spectrum": found.by_head()}
    return _write_measured(atlas, tables, {"salience": ("salience", found)} if figures else {})


def write_preferences(atlas: Atlas, frame: pd.DataFrame, found: Preferences, figures: bool) -> Paths:
    """Write a row per called head × relation and query, and a figure of all that was found."""
    drawn: Drawn = {"attention": ("attention", found)} if figures and len(frame) else {}
    return _write_measured(atlas, {"attention": frame}, drawn)


def write_heads_ablation(atlas: Atlas, frame: pd.DataFrame, heads: Sequence[tuple[int, int]]) -> Paths:
    """Write ``without-….csv``, named after the heads, a row for the running texts and one a task."""
    names = [f"{layer}.{head}" for layer, head in heads]
    if len(names) > 8:
        digest = hashlib.sha256("-".join(names).encode()).hexdigest()[:8]
        names[8:] = [f"{len(names) - 8}-more-{digest}"]
    return _write_measured(atlas, {f"without-{'-'.join(names)}": frame}, {})


def _write_measured(
    atlas: Atlas,
    tables: Mapping[str, pd.DataFrame],
    drawn: Drawn,
    *,
    again: bool = False,
    measured: Path | None = None,
) -> Paths:
    """Write tables, figures and, ``again``, the outputs of the map that are there and show evidence.

    What is newer than the file ``measured`` stays as it is.
    """
    folder = atlas.folder
    check_writable(folder / EVIDENCE, COPY_IT)
    tasks: dict[str, Task] = {
        f"{EVIDENCE}/{name}.csv": partial(write_table, frame) for name, frame in tables.items()
    }
    for name, (kind, found) in drawn.items():
        width = 85.0 if kind == "ablation" else WIDTH_MM
        tasks |= _figure_tasks(f"{EVIDENCE}/{name}", kind, atlas, width, found=found)
    if measured is not None:
        tasks = {name: write for name, write in tasks.items() if not _newer(folder / name, measured)}
    if again:
        shown: dict[str, Task] = {
            "heads.parquet": partial(export_table, atlas),
            "report.html": partial(_write_page, atlas),
        }
        tasks |= {name: write for name, write in shown.items() if (folder / name).exists()}
    return _write_all(folder, tasks)


def _newer(path: Path, other: Path) -> bool:
    """Whether a file is there that was written after another."""
    return path.exists() and other.exists() and path.stat().st_mtime >= other.stat().st_mtime


# One by one ---------------------------------------------------------------------------------------


def _write_all(folder: Path, tasks: dict[str, Task]) -> Paths:
    """Write each file, whatever becomes of the others."""
    written: list[Path] = []
    failed: dict[str, Exception] = {}
    for name, write in tasks.items():
        path = folder / name
        try:
            write(path)
        except Exception as error:  # noqa: BLE001  a defect in one output must not cost the others
            failed[name] = error
        else:
            written.append(path)
    if failed:
        first = next(iter(failed.values()))
        raise UnwrittenError(_unwritten(folder, failed, some=bool(written)), written) from first
    return written


def _unwritten(folder: Path, failed: dict[str, Exception], *, some: bool) -> str:
    """One sentence: which files are missing and why; files with one reason together."""
    reasons: dict[str, list[str]] = {}
    for name, error in failed.items():
        said = str(error).removeprefix(f"{folder / name}: ").rstrip(".")
        if not isinstance(error, HeadatlasError):
            said = f"a fault in headatlas, {type(error).__name__}: {said}; --debug shows where"
        reasons.setdefault(said, []).append(name)
    parts = [f"{_names(names)} ({why})" for why, names in reasons.items()]
    rest = "; all other outputs are written" if some else ""
    return f"{folder}: not written: {'; '.join(parts)}{rest}."


def _names(names: Sequence[str]) -> str:
    """Names of files; those that differ in the suffix alone as one: ``categories.png, .svg, .pdf``."""
    suffixes: dict[str, list[str]] = {}
    for name in names:
        suffix = PurePath(name).suffix
        suffixes.setdefault(name.removesuffix(suffix), []).append(suffix)
    return ", ".join(stem + ", ".join(each) for stem, each in suffixes.items())


def _figure_tasks(
    stem: str, kind: FigureKind, atlas: Atlas, width_mm: float = WIDTH_MM, **found: Any
) -> dict[str, Task]:
    """A figure in each format; it is drawn once."""

    @cache
    def figure() -> Figure:
        return draw_kind(kind, atlas, width_mm, None, Look(), **found)

    return {f"{stem}{suffix}": lambda path: save(figure(), path) for suffix in FIGURE_SUFFIXES}


# The files of a map -------------------------------------------------------------------------------


def _write_description(atlas: Atlas, path: Path) -> None:
    from headatlas.figures.describe import describe

    text = describe(atlas).rstrip("\n") + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _write_page(atlas: Atlas, path: Path) -> None:
    from headatlas.report import write_report

    write_report(atlas, path)
