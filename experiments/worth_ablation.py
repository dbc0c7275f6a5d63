"""Losses of tasks when the heads that a lens puts first are set to zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from experiments.worth_agreement import Floats, shown
from experiments.worth_scores import Bench, Scores
from headatlas.evidence.asking import Head, Questions
from headatlas.evidence.statistics import area, mean
from headatlas.evidence.texts import Task, make_task, read_templates

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TASKS = ("country_to_capital", "country_to_language", "word_to_antonym")
VARIANTS = ("maps", "maps right", "residual", "mlps only", "neutral", "neutral 1: 0", "alone")
STEPS = (0, 1, 2, 4, 8)
DRAWS = 5
MIN_BASE = 0.2


def first_heads(scores: Floats, n: int) -> list[Head]:
    """The n heads of highest score [layer, head]; of equal ones the earlier."""
    order = np.argsort(-scores.ravel(), kind="stable")[:n]
    return [(int(at) // scores.shape[1], int(at) % scores.shape[1]) for at in order]


class _Asked:
    """A task, and what the model answers without heads, none first; the same heads are not tried twice."""

    def __init__(self, bench: Bench, modules: PreTrainedModel, task: Task) -> None:
        self._task = task
        self._questions = Questions(bench.model, modules, task.prompts)
        self._known: dict[frozenset[Head], Floats] = {}

    def without(self, heads: Sequence[Head]) -> Floats:
        """[n] 1 where the answer is right."""
        key = frozenset(heads)
        if key not in self._known:
            found = self._questions.answers(sorted(key))
            self._known[key] = self._task.correct(found).astype(np.float64)
        return self._known[key]

    def curve(self, heads: Sequence[Head]) -> Floats:
        """[step, n]."""
        return np.stack([self.without(heads[:n]) for n in STEPS])


def ablation_table(
    bench: Bench, modules: PreTrainedModel, static: Mapping[str, Scores], extra: Mapping[str, Floats]
) -> pd.DataFrame:
    """One row a task and order, and one for random heads: accuracy after 0, 1, 2, 4, 8 heads, and area.

    Args:
        bench: Model and words.
        modules: The model's modules.
        static: Scores of the variants; random heads are drawn from those that no variant puts first.
        extra: Further orders, [layer, head, relation].
    """
    rows = []
    templates = read_templates().tasks
    for at, relation in enumerate(bench.words.relations):
        name = relation.relation.name
        if name not in TASKS:
            continue
        task = make_task(relation, bench.model.tokenizer(), templates[name], shots=0, sources=64)
        asked = _Asked(bench, modules, task)
        base = float(asked.without([]).mean())
        if base < MIN_BASE:
            rows.append({"task": name, "order": f"left out: base accuracy {base:.2f}"})
            continue
        orders = {each: first_heads(static[each][0, :, :, at], STEPS[-1]) for each in VARIANTS}
        taken = {head for heads in orders.values() for head in heads}
        orders |= {each: first_heads(extra[each][:, :, at], STEPS[-1]) for each in extra}
        dims = bench.model.dims
        everything = [(layer, head) for layer in range(dims.n_layers) for head in range(dims.n_heads)]
        free = [head for head in everything if head not in taken]
        draws = [
            [free[i] for i in np.random.default_rng(draw).choice(len(free), STEPS[-1], replace=False)]
            for draw in range(DRAWS)
        ]
        random = np.mean([asked.curve(heads) for heads in draws], axis=0)
        rows.append(_row(name, "random", random))
        for order, heads in orders.items():
            curve = asked.curve(heads)
            found = shown(mean(area(np.array(STEPS), curve, random)))
            rows.append({**_row(name, order, curve), "area": found, "first head": "{}.{}".format(*heads[0])})
            print(f"  {name}, {order}", flush=True)
    return pd.DataFrame(rows).fillna("")


def _row(task: str, order: str, curve: Floats) -> dict[str, str]:
    accuracy = {str(n): f"{value:.2f}" for n, value in zip(STEPS, curve.mean(axis=1), strict=True)}
    return {"task": task, "order": order, **accuracy}
