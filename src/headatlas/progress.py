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
from typing import TYPE_CHECKING, Literal

from headatlas.errors import HeadatlasError
from headatlas.showing import safe_text

if TYPE_CHECKING:
    import rich.progress

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
    if not sys.stderr.isatty():
        yield _Lines()
        return
    bars = _Bars()
    with bars.progress:
        yield bars


class _Bars:
    """One bar per stage."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        # A layer of a large model takes minutes; the speed must be taken over more than the last few.
        self.progress = Progress(
            TextColumn("{task.description:>14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=Console(stderr=True),
            speed_estimate_period=3600,
        )
        self._tasks: dict[str, rich.progress.TaskID] = {}

    def __call__(self, event: Progress) -> None:
        note = safe_text(event.note)
        if event.stage in _SAID:
            self.progress.console.print(_SAID[event.stage] + note, markup=False, highlight=False)
            return
        if event.stage not in self._tasks:
            self._tasks[event.stage] = self.progress.add_task(
                _LABELS[event.stage], total=event.total, completed=event.done, note=note
            )
        self.progress.update(self._tasks[event.stage], completed=event.done, total=event.total, note=note)


class _Lines:
    """At most a dozen lines a stage: when it begins, when another tenth is done, and when all is."""

    def __init__(self) -> None:
        self._began: dict[str, tuple[float, int]] = {}  # two stages may take turns
        self._said: dict[str, tuple[float, int]] = {}

    def __call__(self, event: Progress) -> None:
        if event.stage in _SAID:
            _say(_SAID[event.stage] + event.note)
            return
        now = time.monotonic()
        at, done = self._said.get(event.stage, (now, event.done + 1))
        begins, ends = event.done < done, event.done >= event.total > done
        tenth = 10 * (event.done - done) >= event.total
        if begins:  # maybe anew
            self._began[event.stage] = (now, event.done)
        if begins or ends or now - at >= (_SECONDS_BETWEEN_LINES if tenth else _LONGEST_SILENCE):
            self._said[event.stage] = (now, event.done)
            parts = [
                f"{_LABELS[event.stage]}: {event.done} of {event.total}",
                self._left(event, now),
                event.note,
            ]
            _say(", ".join(part for part in parts if part))

    def _left(self, event: Progress, now: float) -> str:
        began, at = self._began[event.stage]
        if event.done <= at or event.done >= event.total:
            return ""
        seconds = round((now - began) / (event.done - at) * (event.total - event.done))
        return f"about {duration(seconds)} left"


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 05 s`` or ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _say(text: str) -> None:
    print(safe_text(text, keep="\n"), file=sys.stderr, flush=True)


@dataclass
class Stats:
    """Counts over one or more layers.

    Attributes:
        products: Multiply-adds of all matrix products that involve vocabulary columns.
        rows: Rows with a sign that went through the vocabulary; a row of a second round counts again.
        rows_dropped: Those of them that were eliminated before its end.
        hit_rows: Those of them with a rank below the ceiling: no exact method can leave them out.
        rechecked: Logits computed in float64 because their bounds were too close to call.
        seconds: Time per stage, for benchmarks; never decides anything.
    """

    products: int = 0
    rows: int = 0
    rows_dropped: int = 0
    hit_rows: int = 0
    rechecked: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

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
