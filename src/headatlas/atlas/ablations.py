"""Ablated tasks as they are stored in an atlas: one dataset a task, complete or not there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import comb

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headatlas.atlas.stored import Stored
from headatlas.scoring.scores import false_discovery_rates

RELATION, ADDED, RANDOM = "relation", "added", "random"
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Ablation(Stored):
    """One ablated task.

    Attributes:
        data: ``base`` [source] and ``correct`` [order, step, source] bool; ``alone`` [head, source] bool;
            ``n_ablated`` [step]; ``control_base`` [control] and ``control`` [control, step] accuracies;
            ``layer`` and ``head`` [order, rank] of the heads in order. Orders are ``relation``, ``added``,
            ``random 0`` …
        provenance: Relation, template, shots, method, model, versions.
    """

    PREFIX = "ablation-"
    VARIABLES = (
        *("base", "correct", "n_ablated", "alone", "layer", "head", "control", "control_base"),
        *("order", "source", "control_name"),
    )
    NEEDED = (
        *("relation", "template", "shots", "method", "seed", "controls", "dropped", "thresholds", "versions"),
    )

    @property
    def relation(self) -> str:
        return str(self.provenance["relation"])

    @property
    def shots(self) -> int:
        return int(self.provenance["shots"])

    @property
    def method(self) -> str:
        return str(self.provenance["method"])

    @cached_property
    def base(self) -> Bools:
        """[source] which sources the whole model answers."""
        return np.asarray(self.data["base"].values).astype(bool)

    @cached_property
    def steps(self) -> NDArray[np.int64]:
        """[step] numbers of heads ablated; the first is 0."""
        return np.concatenate([[0], self.data["n_ablated"].values]).astype(np.int64)

    def correct(self, order: str) -> Bools:
        """[step, source] answers with the heads of an order ablated; the first step is the whole model."""
        found = np.asarray(self.data["correct"].sel(order=order).values).astype(bool)
        return np.concatenate([self.base[None], found])

    @cached_property
    def random(self) -> Bools:
        """[draw, step, source] answers with random heads ablated."""
        names = [str(name) for name in self.data["order"].values if str(name).startswith(RANDOM)]
        return np.stack([self.correct(name) for name in names])

    @cached_property
    def controls(self) -> dict[str, NDArray[np.float64]]:
        """Control relation → [step] accuracy on its task with this relation's heads ablated."""
        base, rest = self.data["control_base"].values, self.data["control"].values
        return {
            str(name): np.concatenate([[base[at]], rest[at]])
            for at, name in enumerate(self.data["control_name"].values)
        }

    def heads(self, order: str = RELATION) -> list[tuple[int, int]]:
        """(layer, head) in the order in which they are ablated."""
        return _heads(self, order)


WHOLE, CHOSEN = "whole", "chosen"
RUNNING_TEXT = "text"


@dataclass(frozen=True)
class HeadsAblation(Stored):
    """Heads of one's own choice, ablated together.

    Attributes:
        data: ``loss`` [condition, item] in nats and ``correct`` [condition, item] bool; ``on`` [item]:
            ``text`` for a running text, where nothing is right or wrong, or the relation whose task it is.
            Conditions are ``whole``, ``chosen``, ``random 0`` …; ``layer`` and ``head`` [order, rank] say
            which heads the last ones are without.
        provenance: Heads, tasks, method, model, versions, tasks left out and why.
    """

    PREFIX = "heads-"
    VARIABLES = ("loss", "correct", "condition", "on", "layer", "head")

    @property
    def heads(self) -> list[tuple[int, int]]:
        """The chosen heads."""
        return _heads(self, CHOSEN)

    @property
    def draws(self) -> list[str]:
        """Names of the random draws."""
        return [str(name) for name in self.data["condition"].values if str(name).startswith(RANDOM)]

    def of(self, variable: str, on: str) -> NDArray[np.float64]:
        """[condition, item] of the items on one thing: whole, chosen, then the draws."""
        mine = np.flatnonzero([str(name) == on for name in self.data["on"].values])
        return np.asarray(self.data[variable].values[:, mine], dtype=np.float64)


def _heads(found: Stored, order: str) -> list[tuple[int, int]]:
    rows = found.data.sel(order=order)
    return [(int(a), int(b)) for a, b in zip(rows["layer"].values, rows["head"].values, strict=True)]


def single_heads(ablations: Sequence[Ablation], q_max: float) -> pd.DataFrame:
    """Heads ablated alone, with an exact one-sided McNemar test each.

    Right answers lost against right answers gained: under the null either is equally likely, so the number
    lost is binomial (McNemar 1947; exact form).

    Args:
        ablations: Stored tasks.
        q_max: Largest false discovery rate over all rows at which a head is confirmed.

    Returns:
        relation, shots, method, layer, head, base, loss, loss_random, p, q, confirmed.
    """
    rows = []
    for each in ablations:
        base = each.base
        random = base.mean() - each.random[:, 1].mean(axis=1)
        for (layer, head), after in zip(each.heads(), each.data["alone"].values.astype(bool), strict=False):
            lost, gained = int((base & ~after).sum()), int((~base & after).sum())
            p = at_least(lost, lost + gained)
            loss = float(base.mean() - after.mean())
            rows.append(
                (each.relation, each.shots, each.method, layer, head, base.mean(), loss, random.max(), p)
            )
    names = ["relation", "shots", "method", "layer", "head", "base", "loss", "loss_random", "p"]
    frame = pd.DataFrame(rows, columns=names)
    frame["q"] = false_discovery_rates(frame["p"].to_numpy(dtype=np.float64))
    frame["confirmed"] = (frame["q"] <= q_max) & (frame["loss"] > frame["loss_random"])
    return frame


def at_least(hits: int, n: int) -> float:
    """Probability of so many heads or more in n throws of a fair coin: the one-sided exact McNemar test.

    Whole numbers until the division, so it is exact; 1 for no throw.
    """
    return float(sum(comb(n, i) for i in range(hits, n + 1)) / 2**n)
