"""What the engine did, counted: benchmarks print it, tests assert it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields


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
