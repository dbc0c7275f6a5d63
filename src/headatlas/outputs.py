"""The files beside an atlas: figures, their data, the description, the page, the tables.

They are written one by one. A fault in one says nothing about the atlas and stops no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib import import_module
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from headatlas.addresses import output_path
from headatlas.atlas import Atlas
from headatlas.atlas.export import export_table
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
EVIDENCE_FOLDER = "evidence"

Task = Callable[[Path], object]
"""Writes one file."""


_WRITERS = ("scipy.special", "pyarrow.parquet", "headatlas.atlas.cards")
_DRAWERS = (
    "headatlas.figures.categories",
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


def write_outputs(atlas: Atlas, folder: str | Path, figures: bool = True) -> list[Path]:
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


def write_inference(
    atlas: Atlas, agreement: pd.DataFrame, dynamics: Sequence[Dynamic], folder: Path, *, figures: bool = True
) -> list[Path]:
    """Write ``evidence/agreement.csv`` and, unless ``figures`` is False, the scatter plots with and without
    context; and write the table and the page again that lie in ``folder``, for they show evidence.

    Args:
        atlas: The atlas, opened since the scores were stored.
        agreement: What :func:`headatlas.evidence.statistics.agreement` found.
        dynamics: The dynamic scores it was found with.
        folder: The atlas's output folder.

    Raises:
        UnwrittenError: A file could not be written; all others were.
    """
    tasks: dict[str, Task] = {f"{EVIDENCE_FOLDER}/agreement.csv": partial(write_table, agreement)}
    kinds: tuple[FigureKind, ...] = ("context", "without-context")
    for kind in kinds if figures and dynamics else ():
        tasks |= _figure_tasks(f"{EVIDENCE_FOLDER}/{kind}", kind, atlas, found=dynamics)
    return _write_all(folder, tasks | _showing_evidence(atlas, folder))


def write_ablations(
    atlas: Atlas, ablations: Sequence[Ablation], folder: Path, *, figures: bool = True
) -> list[Path]:
    """Write ``evidence/ablation.csv`` (a row a task stored in the atlas) and, unless ``figures`` is False, a
    figure a task; and write the table and the page again that lie in ``folder``, for they show evidence.

    Args:
        atlas: The atlas, opened since the tasks were stored.
        ablations: The tasks to draw.
        folder: The atlas's output folder.

    Raises:
        UnwrittenError: A file could not be written; all others were.
    """
    if not ablations:
        return []
    from headatlas.evidence.statistics import summarise_ablations

    stored = atlas.evidence.ablations or tuple(ablations)
    tasks: dict[str, Task] = {
        f"{EVIDENCE_FOLDER}/ablation.csv": lambda path: write_table(summarise_ablations(list(stored)), path)
    }
    for each in ablations if figures else ():
        tasks |= _figure_tasks(
            f"{EVIDENCE_FOLDER}/ablation-{each.label}", "ablation", atlas, 85.0, found=each
        )
    return _write_all(folder, tasks | _showing_evidence(atlas, folder))


def write_behaviours(atlas: Atlas, found: Looking, folder: Path, *, figures: bool = True) -> list[Path]:
    """Write ``evidence/behaviour.csv`` (a row per behaviour and head) and, unless ``figures`` is False, a
    figure. What was measured on a user's own text is named after the file.

    Files of the shipped texts that are newer than the measurement are left as they are.

    Returns:
        The files written.

    Raises:
        UnwrittenError: A file could not be written; all others were.
    """
    own = PurePath(found.source).stem
    stem = f"{EVIDENCE_FOLDER}/behaviour" + (f"-{own}" if own else "")
    tasks: dict[str, Task] = {f"{stem}.csv": partial(write_table, found.frame())}
    if figures:
        tasks |= _figure_tasks(stem, "behaviours", atlas, found=found)
    if not own and atlas.path is not None:
        measured = found.place(atlas.path / EVIDENCE_FOLDER) / "zarr.json"
        tasks = {name: write for name, write in tasks.items() if not _newer(folder / name, measured)}
    return _write_all(folder, tasks)


def _newer(path: Path, other: Path) -> bool:
    """Whether a file is there that was written after another."""
    return path.exists() and other.exists() and path.stat().st_mtime >= other.stat().st_mtime


def write_salience(atlas: Atlas, found: Salience, folder: Path, *, figures: bool = True) -> list[Path]:
    """Write ``evidence/salience.csv`` (a row per head and source token), ``evidence/spectrum.csv`` (a row per
    head: numbers, what is explained and by what) and, unless ``figures`` is False, a figure.

    Raises:
        UnwrittenError: A file could not be written; all others were.
    """
    stem = f"{EVIDENCE_FOLDER}/salience"
    tasks: dict[str, Task] = {
        f"{stem}.csv": partial(write_table, found.frame()),
        f"{EVIDENCE_FOLDER}/spectrum.csv": partial(write_table, found.by_head()),
    }
    if figures:
        tasks |= _figure_tasks(stem, "salience", atlas, found=found)
    return _write_all(folder, tasks)


def write_preferences(
    atlas: Atlas, found: Preferences, frame: pd.DataFrame, folder: Path, *, figures: bool = True
) -> list[Path]:
    """Write ``evidence/attention.csv`` (``frame``: a row per called head × relation and query) and, unless
    ``figures`` is False, a figure of all that was found.

    Raises:
        UnwrittenError: A file could not be written; all others were.
    """
    stem = f"{EVIDENCE_FOLDER}/attention"
    tasks: dict[str, Task] = {f"{stem}.csv": partial(write_table, frame)}
    if figures and len(frame):
        tasks |= _figure_tasks(stem, "attention", atlas, found=found)
    return _write_all(folder, tasks)


def write_heads_ablation(frame: pd.DataFrame, heads: Sequence[tuple[int, int]], folder: Path) -> list[Path]:
    """Write ``evidence/without-….csv``, named after the heads, a row for the running texts and one a task.

    Raises:
        UnwrittenError: It could not be written.
    """
    names = "-".join(f"{layer}.{head}" for layer, head in heads[:8]) + ("-more" if len(heads) > 8 else "")
    return _write_all(folder, {f"{EVIDENCE_FOLDER}/without-{names}.csv": partial(write_table, frame)})


# One by one ---------------------------------------------------------------------------------------


def _write_all(folder: Path, tasks: dict[str, Task]) -> list[Path]:
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


def _showing_evidence(atlas: Atlas, folder: Path) -> dict[str, Task]:
    """Those outputs of the map that show evidence, as far as they are there."""
    tasks: dict[str, Task] = {
        "heads.parquet": partial(export_table, atlas),
        "report.html": partial(_write_page, atlas),
    }
    return {name: write for name, write in tasks.items() if (folder / name).exists()}


# The files of a map -------------------------------------------------------------------------------


def _write_description(atlas: Atlas, path: Path) -> None:
    from headatlas.figures.describe import describe

    text = describe(atlas).rstrip("\n") + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _write_page(atlas: Atlas, path: Path) -> None:
    from headatlas.report import write_report

    write_report(atlas, path)
