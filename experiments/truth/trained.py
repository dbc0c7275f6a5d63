"""Tiny transformers trained on tasks that need a head: what ablation and what each lens says of each head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from experiments.truth.ablating import Effects, effects
from experiments.truth.tasks import Induction, Lookup, Task
from experiments.truth.training import Shape, Trained, train
from headatlas.mapping.run import map_heads
from tests.mapping.checkpoints import word_tokenizer

WORKS = 0.05
"""A head does a share of a job if this much accuracy is due to it: a round number. Others are tried too."""
ENOUGH = 0.9
"""Models that do not reach this accuracy are listed and left out: nothing is known about their heads."""


@dataclass(frozen=True)
class Case:
    """A task with a model for it.

    Attributes:
        learners: For the variant ``few``: the only heads that may learn.
        n: Sequences for ablation; ``n_sets`` random sets of heads are taken away.
    """

    name: str
    task: Task
    shape: Shape
    learners: tuple[tuple[int, int], ...]
    steps: int
    n: int
    n_sets: int = 256


CASES = (
    Case("induction", Induction(), Shape(2, 4, 2), ((0, 1), (1, 2)), 800, 32),
    Case("lookup, attention only", Lookup(), Shape(1, 8, 4, mlp=0), ((0, 1), (0, 2), (0, 6)), 600, 192),
    Case("lookup, three layers", Lookup(), Shape(3, 4, 2), ((1, 2),), 600, 192),
)
VARIANTS = ("all", "few")
"""Whether all heads may learn, or a few."""


def trained_cells(case: Case, variant: str, seed: int) -> tuple[dict[str, Any], pd.DataFrame]:
    """Train, ablate, map with both lenses.

    Returns:
        What came of the training, and a row per lens, head and relation: score, added, control, called, base
        (accuracy of the model), alone, total, direct (accuracy due to the head, see :class:`Effects`), works
        and writes (total and direct effect of at least 0.05).
    """
    learners = case.learners if variant == "few" else None
    trained = train(case.task, case.shape, seed=seed, steps=case.steps, learners=learners)
    what: dict[str, Any] = {
        "task": case.name,
        "heads that learn": variant,
        "seed": seed,
        "processor seconds": trained.seconds,
        "accuracy": trained.accuracy,
    }
    if trained.accuracy < ENOUGH:
        return what, pd.DataFrame()
    found = effects(trained.model, case.task, n=case.n, n_sets=case.n_sets)
    cells = pd.concat(
        [_cells(trained, case.task, found, lens).assign(lens=lens) for lens in ("maps", "neutral")],
        ignore_index=True,
    )
    return what, cells.assign(task=case.name, variant=variant, seed=seed)


def _cells(trained: Trained, task: Task, found: Effects, lens: str) -> pd.DataFrame:
    relations = task.relations()
    atlas = map_heads(trained.model, word_tokenizer(task.vocab), lens=lens, relations=relations)
    table = atlas.table()
    names = [each.name for each in relations]
    at = (
        table["layer"].to_numpy(int),
        table["head"].to_numpy(int),
        table["relation"].map(names.index).to_numpy(int),
    )
    cells = table[["layer", "head", "relation", "score", "added", "control"]].assign(
        called=table["implements"].astype(bool),
        base=found.base[at[2]],
        alone=found.alone[at],
        total=found.total[at],
        direct=found.direct[at],
    )
    return cells.assign(works=cells["total"] >= WORKS, writes=cells["direct"] >= WORKS)
