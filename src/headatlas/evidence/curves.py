"""Ablation curves as numbers: what is left of a task, and the areas between its curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from headatlas.atlas.ablations import ADDED, RELATION, Ablation
from headatlas.evidence.statistics import Estimate, area, mean
from headatlas.scoring.scores import wilson

SUMMARY_COLUMNS = (
    *("relation", "shots", "method", "sources", "heads", "base", "without_relation", "without_added"),
    *("without_random", "without_random_low", "without_random_high", "control_base", "without_control"),
    *("controls", "area", "area_low", "area_high", "added_area", "added_area_low", "added_area_high"),
    "hurts_more",
)

SAME_HEADS, BY_SCORE, BY_ADDED, UNDECIDED = "same heads", "score", "added", "undecided"
"""Which order of heads hurts more: both take the same heads at every step; one, with an interval on its side
of 0; or neither surely."""


def summary(ablations: Sequence[Ablation]) -> pd.DataFrame:
    """One row a task.

    Columns: relation, shots, method; sources (asked); heads (ablated in the end); base and what is left of
    it without the relation's heads, without as many by *added*, without as many random heads (mean, lowest
    and highest draw); control_base and without_control (means over control tasks, NaN without any), controls
    (their names); area between random heads and the relation's, added_area between the order by score and
    that by *added* (positive: *added* hurts more), each with its interval; hurts_more, which of the two
    orders: ``score``, ``added``, ``undecided`` (the interval includes 0), or ``same heads``.
    """
    return pd.DataFrame([_row(each) for each in ablations], columns=list(SUMMARY_COLUMNS))


def _row(each: Ablation) -> dict[str, Any]:
    last = each.random[:, -1].mean(axis=1)
    against_random, against_added = areas(each)
    controls = list(each.controls.values())
    return {
        "relation": each.relation,
        "shots": each.shots,
        "method": each.method,
        "sources": len(each.base),
        "heads": int(each.steps[-1]),
        "base": float(each.base.mean()),
        "without_relation": float(each.correct(RELATION)[-1].mean()),
        "without_added": float(each.correct(ADDED)[-1].mean()),
        "without_random": float(last.mean()),
        "without_random_low": float(last.min()),
        "without_random_high": float(last.max()),
        "control_base": float(np.mean([curve[0] for curve in controls])) if controls else np.nan,
        "without_control": float(np.mean([curve[-1] for curve in controls])) if controls else np.nan,
        "controls": ", ".join(each.controls),
        **_named("area", against_random),
        **_named("added_area", against_added),
        "hurts_more": hurts_more(each, against_added),
    }


def hurts_more(each: Ablation, between: Estimate) -> str:
    """Which order of heads hurts a task more.

    Args:
        each: The task.
        between: Area between the order by score and that by *added*, as :func:`areas` has it.
    """
    by_score, by_added = each.heads(RELATION), each.heads(ADDED)
    if all(set(by_score[:n]) == set(by_added[:n]) for n in each.steps):
        return SAME_HEADS
    if between.low > 0:
        return BY_ADDED
    return BY_SCORE if between.high < 0 else UNDECIDED


def _named(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def areas(each: Ablation) -> tuple[Estimate, Estimate]:
    """Area between random heads (mean of draws) and the relation's, and between the order by score and that
    by *added*; intervals over resampled sources. Both are means over sources of each source's own area.
    """
    relation = each.correct(RELATION).astype(np.float64)
    random = each.random.mean(axis=0)
    added = each.correct(ADDED).astype(np.float64)
    return mean(area(each.steps, relation, random)), mean(area(each.steps, added, relation))


def curves(each: Ablation) -> pd.DataFrame:
    """What the figure of a task plots: curve, heads (ablated), accuracy, low, high.

    Low and high are, for the two orders, Wilson's 95 % interval over the pairs asked; for ``random`` the
    lowest and highest draw; for control tasks nothing.
    """
    rows: list[tuple[str, int, float, float, float]] = []
    for name in (RELATION, ADDED):
        right, n = each.correct(name).sum(axis=1), len(each.base)
        ends = np.stack(wilson(right, n), axis=1)
        rows += [
            (name, int(step), float(value), float(low), float(high))
            for step, value, (low, high) in zip(each.steps, right / n, ends, strict=True)
        ]
    draws = each.random.mean(axis=2)
    rows += [
        ("random", int(n), float(draws[:, at].mean()), float(draws[:, at].min()), float(draws[:, at].max()))
        for at, n in enumerate(each.steps)
    ]
    for name, values in each.controls.items():
        rows += [
            (f"control: {name}", int(n), float(value), np.nan, np.nan)
            for n, value in zip(each.steps, values, strict=True)
        ]
    return pd.DataFrame(rows, columns=["curve", "heads", "accuracy", "low", "high"])
