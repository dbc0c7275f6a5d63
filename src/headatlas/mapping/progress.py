"""How a run tells what it is doing; who shows it (a bar, lines, nothing) is not its business."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Progress:
    """A step of a run.

    Attributes:
        stage: ``"open"``, ``"states"`` (rows through the model), ``"heads"`` (layers) or ``"ablation"``
            (runs of a task).
        done, total: How far; total is 0 where it is not known.
        note: What to tell people, e.g. ``"layer 12"``.
    """

    stage: Literal["open", "states", "heads", "ablation"]
    done: int
    total: int
    note: str = ""


Report = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Tell nobody."""
