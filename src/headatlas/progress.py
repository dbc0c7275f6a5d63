"""Progress of a run: the steps it tells, how they are shown, and what it counts.

A run tells a callable of its steps. :func:`progress_display` shows them: a bar with the time left on a
terminal, a few plain lines elsewhere.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from headatlas.errors import HeadatlasError
from headatlas.showing import safe_text

_LABELS = {
    "states": "source states",
    "heads": "layers mapped",
    "ablation": "tasks run",
    "behaviour": "texts read",
    "salience": "layers read",
    "reading": "layers read",
    "labels": "questions asked",
}
_SAID = {"open": "opening ", "estimate": ""}
"""Stages without steps: what stands before their note."""
_SECONDS_BETWEEN_LINES = 5.0
_LONGEST_SILENCE = 600.0
"""Seconds after which a line says that a long run is alive, though no tenth is done."""

Stage = Literal[
    "open", "estimate", "states", "heads", "ablation", "behaviour", "salience", "reading", "labels"
]


@dataclass(frozen=True)
class Progress:
    """A step of a run.

    Attributes:
        stage: ``"open"``, ``"estimate"`` (of what is ahead, in the note), ``"states"`` (rows through the
            model), ``"heads"`` (layers), ``"ablation"`` (runs of a task), ``"behaviour"`` (sequences),
            ``"salience"`` or ``"reading"`` (layers) or ``"labels"`` (questions).
        done, total: How far; total is 0 where it is not known.
        note: What to tell people, e.g. ``"layer 12"``.
    """

    stage: Stage
    done: int
    total: int
    note: str = ""


Report = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Tell nobody."""


def steps(tell: Report, stage: Stage) -> Callable[[int, int], None]:
    """Tell of a stage, given what is done of it and all there is."""
    return lambda done, total: tell(Progress(stage, done, total))


@contextmanager
def reporting(progress: Report | bool | None) -> Iterator[Report]:
    """Give the function to tell of a run's steps: True shows them on stderr, a callable gets them."""
    if progress is True:
        with progress_display() as display:
            yield display
    elif callable(progress):
        yield progress
    elif progress in (None, False):
        yield silent
    else:
        raise HeadatlasError(f"`progress` is {progress!r}: give True, or a function that takes each step.")


@contextmanager
def beside(progress: Report, work: Callable[[], object]) -> Iterator[Report]:
    """Do ``work`` in a thread, beside a run: give the function to tell of its steps.

    It begins after the first step that is done, so as not to delay it, and ends before the block does.
    """
    thread = threading.Thread(target=work, name="beside")

    def tell(event: Progress) -> None:
        progress(event)
        if event.done and thread.ident is None:
            thread.start()

    try:
        yield tell
    finally:
        if thread.ident is not None:
            thread.join()


@contextmanager
def progress_display() -> Iterator[Report]:
    """Show a run's steps on stderr while the block runs."""
    if sys.stderr.isatty():
        with _bars() as show:
            yield show
    else:
        yield _lines()


@contextmanager
def _bars() -> Iterator[Report]:
    """One bar per stage."""
    from rich import progress as rich
    from rich.console import Console

    # A layer of a large model takes minutes; the speed must be taken over more than the last few.
    bars = rich.Progress(
        rich.TextColumn("{task.description:>14}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeRemainingColumn(elapsed_when_finished=True),
        rich.TextColumn("{task.fields[note]}", style="dim", markup=False),
        console=Console(stderr=True),
        speed_estimate_period=3600,
    )
    tasks: dict[str, rich.TaskID] = {}

    def show(event: Progress) -> None:
        note = safe_text(event.note)
        if event.stage in _SAID:
            bars.console.print(_SAID[event.stage] + note, markup=False, highlight=False)
            return
        how_far: dict[str, Any] = {"total": event.total, "completed": event.done, "note": note}
        if event.stage not in tasks:
            tasks[event.stage] = bars.add_task(_LABELS[event.stage], **how_far)
        bars.update(tasks[event.stage], **how_far)

    with bars:
        yield show


def _lines() -> Report:
    """At most a dozen lines a stage: when it begins, when another tenth is done, and when all is."""
    began: dict[str, tuple[float, int]] = {}  # two stages may take turns
    told: dict[str, tuple[float, int]] = {}

    def show(event: Progress) -> None:
        if event.stage in _SAID:
            _say(_SAID[event.stage] + event.note)
            return
        now = time.monotonic()
        at, done = told.get(event.stage, (now, event.done + 1))
        begins, ends = event.done < done, event.done >= event.total > done  # begins: maybe anew
        tenth = 10 * (event.done - done) >= event.total
        if begins or event.done == began[event.stage][1]:  # the clock starts with the first work
            began[event.stage] = now, event.done
        if begins or ends or now - at >= (_SECONDS_BETWEEN_LINES if tenth else _LONGEST_SILENCE):
            told[event.stage] = now, event.done
            start, first = began[event.stage]
            seconds = (now - start) / max(1, event.done - first) * (event.total - event.done)
            left = f"about {duration(seconds)} left" if first < event.done < event.total else ""
            said = f"{_LABELS[event.stage]}: {event.done} of {event.total}"
            _say(", ".join(filter(None, (said, left, event.note))))

    return show


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 05 s`` or ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(n_bytes: float) -> str:
    """``512 kB``, ``1.4 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"


def _say(text: str) -> None:
    print(safe_text(text, keep="\n"), file=sys.stderr, flush=True)


@dataclass
class Stats:
    """Counts over one or more layers. A row with a sign counts again in a second round."""

    products: int = 0  # multiply-adds of all matrix products that involve vocabulary columns
    rows: int = 0  # rows with a sign that went through the vocabulary
    rows_dropped: int = 0  # those of them that were eliminated before its end
    hit_rows: int = 0  # those with a rank below the ceiling: no exact method can leave them out
    rechecked: int = 0  # logits computed in float64 because their bounds were too close to call
    seconds: dict[str, float] = field(default_factory=dict)  # per stage, for benchmarks; decides nothing

    def add(self, other: Stats) -> None:
        """Add the counts and times of another machine's work."""
        for each in fields(self):
            if each.name != "seconds":
                setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))
        for stage, seconds in other.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time the block takes to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
