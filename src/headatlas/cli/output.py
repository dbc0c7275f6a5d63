"""Printing for commands: data on stdout, everything else on stderr. Plain text without colour codes."""

from __future__ import annotations

import gc
import math
import re
import signal
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

import typer

from headatlas.cli.options import as_options
from headatlas.errors import HeadatlasError
from headatlas.showing import safe_json, safe_text

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

    from matplotlib.figure import Figure
    from pandas import DataFrame

    from headatlas.atlas import Atlas
    from headatlas.progress import Report

_MM = {"": 1.0, "mm": 1.0, "cm": 10.0, "in": 25.4, "pt": 25.4 / 72}


_level = 1
_USUAL = gc.get_threshold()
NOTHING_STORED = "stopped; nothing was stored"
_STOPPING = (signal.SIGINT, signal.SIGTERM)


def set_level(*, quiet: bool, verbose: bool) -> None:
    """How much is said on stderr: errors only, the usual, or more."""
    global _level  # noqa: PLW0603
    _level = 0 if quiet else 2 if verbose else 1


def say(message: str) -> None:
    """A message for people, on stderr, unless they asked for quiet; parameters are written as options."""
    if _level >= 1:
        typer.echo(safe_text(as_options(message), keep="\n"), err=True)


def say_more(message: str) -> None:
    """A message for people who asked for more."""
    if _level >= 2:
        typer.echo(safe_text(message, keep="\n"), err=True)


def say_error(message: str) -> None:
    """One line on stderr that says what is wrong, whatever people asked for."""
    typer.echo(safe_text(f"error: {as_options(message)}"), err=True)


def print_text(text: str) -> None:
    """Lines of text on stdout."""
    typer.echo(safe_text(text, keep="\n"))


@contextmanager
def progress_shown() -> Iterator[Report]:
    """Progress on stderr, unless people asked for quiet.

    Once a run does more than open, garbage is collected as often as Python usually does: until then modules
    are imported, which makes none, and after it tensors may hang in cycles.
    """
    from headatlas.progress import Progress, reporting

    opening = ""

    def told(event: Progress) -> None:
        nonlocal opening
        if event.stage != "open" and gc.get_threshold() != _USUAL:
            gc.freeze()
            gc.set_threshold(*_USUAL)
        # Opening is said by a command before its imports, and by the run after them.
        if event.stage != "open" or event.note != opening:
            tell(event)
        opening = event.note if event.stage == "open" else opening

    with reporting(_level >= 1) as tell:
        yield told


@contextmanager
def stopping(kept: Callable[[], str]) -> Iterator[None]:
    """Ctrl-C inside the block, or SIGTERM, says what is kept, and ends the command with exit code 130 or 143.

    Only the first counts: threads that finish their step and files in work must not be torn down by a second.

    Args:
        kept: What to say; asked when it has happened.
    """
    caught = signal.SIGINT

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal caught
        caught = signal.Signals(number)
        for each in _STOPPING:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    # One that a shell has a job in the background ignore stays ignored.
    before = {
        each: found for each in _STOPPING if (found := signal.getsignal(each)) not in (None, signal.SIG_IGN)
    }
    for each in before:
        signal.signal(each, stop)
    try:
        yield
    except KeyboardInterrupt:
        with suppress(BrokenPipeError):  # the signal may have ended who reads it, too
            say(kept())
        raise typer.Exit(128 + caught) from None
    finally:
        for each, found in before.items():
            if signal.getsignal(each) is stop:
                signal.signal(each, found)


def print_json(value: Any) -> None:
    """Data as JSON on stdout. Characters that can be seen stay readable; NaN is not allowed."""
    typer.echo(safe_json(value))


def print_rows(atlas: Atlas, rows: Sequence[Any] | DataFrame | None = None, **more: Any) -> None:
    """An object as JSON on stdout: model, lens, thresholds, caption, rows, and what else there is.

    Tables become lists of records. ``about`` is a line on what the rows are, beside the atlas's caption.
    """
    from headatlas.atlas.export import heading, plain_records

    parts = ({} if rows is None else {"rows": rows}) | more
    tables = {name: plain_records(part) for name, part in parts.items() if hasattr(part, "columns")}
    print_json(heading(atlas) | parts | tables)


def head_records(heads: Iterable[tuple[int, int]]) -> list[dict[str, int]]:
    """Heads as JSON has them."""
    return [{"layer": layer, "head": head} for layer, head in heads]


Column = str | tuple[str, str | Callable[[Any], Any]]
"""Of a table of records: a field, or a title with the field or with a function of the record."""


def print_records(columns: Sequence[Column], table: DataFrame | Iterable[Any]) -> None:
    """An aligned table on stdout, a row a record: of a frame, or whatever the columns read.

    Numbers go to the right, the rest to the left, under a line of titles.
    """
    records: Iterable[Any] = table.to_dict("records") if hasattr(table, "to_dict") else table
    titled = [(each, each) if isinstance(each, str) else each for each in columns]
    cells = [
        [_cell(_field(row, what) if isinstance(what, str) else what(row)) for _, what in titled]
        for row in records
    ]
    numeric = [bool(cells) and all(map(_is_number, column)) for column in zip(*cells, strict=True)]
    lines = [[title for title, _ in titled], *cells]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        parts = zip(line, widths, numeric or [False] * len(line), strict=True)
        typer.echo("  ".join(_pad(text, width, right) for text, width, right in parts).rstrip())


def _field(record: Any, name: str) -> Any:
    """A field of a record: of a dataclass, or of anything with keys."""
    return getattr(record, name) if is_dataclass(record) else record[name]


HEAD: Column = ("head", lambda row: f"{row['layer']}.{row['head']}")


def small(name: str) -> Column:
    """The column of a small number such as q."""
    return name, lambda row: number(_field(row, name))


def interval_of(low: str = "low", high: str = "high", title: str = "95 %") -> Column:
    """The column of a 95 % interval, from the fields of its ends."""
    return title, lambda row: span(row[low], row[high])


def span(low: float | None, high: float | None, between: str = "…") -> str:
    """An interval as text."""
    return "–" if low is None or high is None or math.isnan(low) else f"{low:.2f} {between} {high:.2f}"


def print_fields(rows: Iterable[tuple[str, Any]]) -> None:
    """Names and values on stdout, one a line."""
    cells = [(safe_text(name), _cell(value)) for name, value in rows]
    width = max((_width(name) for name, _ in cells), default=0)
    for name, text in cells:
        typer.echo(f"{_pad(name, width, False)}  {text}".rstrip())


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.2f}"
    return safe_text(str(value))


def number(value: float | None) -> str:
    """A small number such as q: ``<0.001``, ``0.012``, ``1``."""
    if value is None or math.isnan(value):
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}".rstrip("0").rstrip(".")


def p_equals(p: float) -> str:
    """The rest of a sentence that names p: ``= 0.012``, ``< 0.001``."""
    return "< 0.001" if p < 0.001 else f"= {number(p)}"


def check_figure(out: Path | None) -> None:
    """Refuse a kind of file that cannot be drawn, before anything is computed."""
    if out is not None:
        from headatlas.figures.plots import figure_format

        figure_format(out)


def save_figure(figure: Figure, out: Path) -> None:
    """Write a figure and say so."""
    from headatlas.figures.plots import save

    say(f"written: {save(figure, out)}")


def _is_number(text: str) -> bool:
    return re.fullmatch(r"–|<?-?[\d,]+(\.\d+)?", text) is not None


def _width(text: str) -> int:
    """Columns of a terminal that `text` takes."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space


def parse_width(text: str) -> float:
    """A width such as ``170mm``, ``17cm``, ``6.7in`` or ``170`` (millimetres), in millimetres."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in _MM:
        raise HeadatlasError(f"`width_mm`: {text!r} is not a width; write it like 170mm, 17cm or 6.7in.")
    width = float(match[1]) * _MM[match[2]]
    if not 20 <= width <= 2000:
        raise HeadatlasError(f"`width_mm`: {text!r} is {width:g} mm; it must be between 20 mm and 2000 mm.")
    return width
