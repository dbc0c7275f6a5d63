"""Evidence as numbers: correlations over heads, ablation curves and the areas between them, with intervals.

Intervals are 95 % percentile bootstrap intervals (SciPy's).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from operator import index
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from headatlas.atlas import Atlas
from headatlas.atlas.evidence import (
    ADDED,
    CONTEXT,
    RANDOM,
    RELATION,
    RUNNING_TEXT,
    WITHOUT,
    Ablation,
    Dynamic,
    Evidence,
    HeadsAblation,
)
from headatlas.atlas.relation_scores import SIGNS
from headatlas.errors import HeadatlasError
from headatlas.relations.tokenising import NOT_DRAWN
from headatlas.scoring.scores import wilson

RESAMPLES = 2000
SEED = 0
LEVEL = 0.95

Floats = NDArray[np.float64]
Head = tuple[int, int]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % percentile bootstrap interval; all NaN where it is not defined."""

    value: float
    low: float
    high: float


UNDEFINED = Estimate(np.nan, np.nan, np.nan)


def pearson(x: Floats, y: Floats, axis: int = -1) -> Floats:
    """Pearson's r along an axis; 0 where one side is constant."""
    x, y = (each - each.mean(axis=axis, keepdims=True) for each in (x, y))
    # A constant row can leave rounding behind, which must not be correlated.
    sizes = [np.sqrt((each * each).sum(axis=axis)) for each in (x, y)]
    product = sizes[0] * sizes[1]
    constant = np.minimum(*sizes) < 1e-12
    return np.asarray(np.where(constant, 0.0, (x * y).sum(axis=axis) / np.where(constant, 1.0, product)))


def spearman(x: Floats, y: Floats, axis: int = -1) -> Floats:
    """Spearman's ρ along an axis: Pearson's r of the ranks, ties at their mean; 0 where one side is
    constant.
    """
    # Scores are means of a few shares: equal ones differ by rounding, which must not break their tie.
    first, second = (stats.rankdata(np.round(each, 12), axis=axis) for each in (x, y))
    return pearson(first, second, axis=axis)


def pearson_or_nan(x: Floats, y: Floats) -> float:
    """Pearson's r of two arrays of one shape, NaN in either left out; NaN where it is not defined."""
    known = ~(np.isnan(x) | np.isnan(y))
    return float("nan") if _constant(x[known], y[known]) else float(pearson(x[known], y[known]))


def _constant(x: Floats, y: Floats) -> bool:
    return len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0


def correlation(kind: Callable[..., Floats], x: Floats, y: Floats) -> Estimate:
    """A correlation (:func:`pearson` or :func:`spearman`) over heads, with an interval over resampled heads.

    ``x`` and ``y`` are [n], none missing. Undefined where one is constant, or n < 3.
    """
    return UNDEFINED if _constant(x, y) else _bootstrap((x, y), kind)


def mean(values: Floats) -> Estimate:
    """A mean, with an interval over resampled entries (relations, sources); undefined for fewer than two."""
    if len(values) < 2:
        return UNDEFINED
    return _bootstrap((values,), np.mean)


def _bootstrap(data: tuple[Floats, ...], statistic: Callable[..., Floats]) -> Estimate:
    value = float(statistic(*data, axis=-1))
    if all(np.ptp(each) == 0 for each in data):
        return Estimate(value, value, value)
    found = stats.bootstrap(
        data,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, 2_000_000 // len(data[0])),
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return Estimate(value, float(found.low), float(found.high))


def area(steps: NDArray[np.integer], lower: Floats, upper: Floats) -> Floats:
    """[…] area between two curves [step, …] over log₂(1 + ``steps``), divided by the length of that axis.

    The mean of ``upper − lower`` along the axis, by the trapezoid rule; steps ascend from 0.
    """
    at = np.log2(1.0 + steps)
    return np.asarray(np.trapezoid(upper - lower, at, axis=0) / (at[-1] - at[0]))


# Agreement of static and dynamic scores -------------------------------------------------------------

KINDS = (CONTEXT, WITHOUT)
MEASURES = {"pearson": pearson, "spearman": spearman}
MEAN = "mean"
_COLUMNS = [f"{measure}{suffix}" for measure in MEASURES for suffix in ("", "_low", "_high")]


def agree(static: Floats, dynamic: Floats) -> dict[str, float]:
    """Correlate two arrays of scores over heads; NaN (not mapped) in either leaves a head out.

    Returns n_heads, then pearson and spearman, each with ``_low`` and ``_high``; NaN where one side is
    constant.
    """
    known = ~(np.isnan(static) | np.isnan(dynamic))
    found: dict[str, float] = {"n_heads": int(known.sum())}
    for name, measure in MEASURES.items():
        found |= _named(name, correlation(measure, static[known], dynamic[known]))
    return found


def agreement(atlas: Atlas, dynamics: Sequence[Dynamic] | None = None) -> pd.DataFrame:
    """Agreement of an atlas with dynamic scores, by default with all that are stored in it.

    Returns:
        One row per relation, kind (``context``, ``without-context``) and sign (``promotion``,
        ``suppression``), and rows whose relation is ``mean``: relation, kind, sign, n_templates, n_sources
        (of the template that used fewest), n_heads, then pearson, spearman, each with ``_low`` and ``_high``.
        NaN where one side is the same for all heads.
    """
    evidence = atlas.evidence if dynamics is None else Evidence(atlas, dynamics, ())
    counts = ["n_templates", "n_sources", "n_heads"]
    columns = ["relation", "kind", "sign", *counts, *_COLUMNS]
    rows: list[dict[str, Any]] = []
    for name, kind, sign in product(atlas.relation_scores, KINDS, SIGNS):
        if (scores := evidence.scores(name, kind, sign)) is not None:
            asked = {"n_templates": len(evidence.templates_of(name)), "n_sources": evidence.sources_of(name)}
            rows.append({"relation": name, "kind": kind, "sign": sign, **asked, **agree(*scores)})
    each = pd.DataFrame(rows, columns=columns)
    for (kind_, sign_), group in each.groupby(["kind", "sign"], sort=False):
        row: dict[str, Any] = {"relation": MEAN, "kind": kind_, "sign": sign_, **group[counts].max()}
        for measure in MEASURES:
            row |= _named(measure, mean(group[measure].dropna().to_numpy(dtype=np.float64)))
        rows.append(row)
    return pd.DataFrame(rows, columns=columns)


def sampling(dynamics: Sequence[Dynamic]) -> str:
    """Say how many sources were asked, and how well a score is known by them; empty if all were."""
    asked = pd.concat([each.context.included for each in dynamics])
    drawn = [n for n, gone in zip(asked["n_sources"], asked["dropped"], strict=True) if NOT_DRAWN in gone]
    if not drawn:
        return ""
    low, high = wilson(np.array(min(drawn) / 2), min(drawn))
    return (
        f"of relations with more than {min(drawn)} sources a sample was asked, by which a score of a half is "
        f"known to ± {float(high - low) / 2:.2f} (95 %)"
    )


def _named(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def against_measured(frame: pd.DataFrame) -> pd.DataFrame:
    """Agreement of AUROCs with measured attention, over the rows of a frame of preferences that have it.

    Returns:
        One row per query: query_at, n_rows, then pearson, spearman, each with ``_low`` and ``_high``. Heads
        of a layer and relations of a head are not independent, so intervals are rather too narrow.
    """
    rows = []
    for query, part in frame[frame["attention"].notna()].groupby("query_at", sort=False):
        found = agree(*(part[name].to_numpy(dtype=np.float64) for name in ("auroc", "attention")))
        if not np.isnan(found["spearman"]):
            rows.append({"query_at": query, "n_rows": found["n_heads"], **found})
    return pd.DataFrame(rows, columns=["query_at", "n_rows", *_COLUMNS])


# Ablation curves --------------------------------------------------------------------------------------

SUMMARY_COLUMNS = (
    *("relation", "shots", "method", "n_sources", "n_heads", "base", "without_relation", "without_added"),
    *("without_random", "without_random_low", "without_random_high", "control_base", "without_control"),
    *("controls", "area", "area_low", "area_high", "added_area", "added_area_low", "added_area_high"),
    "hurts_more",
)

SAME_HEADS, BY_SCORE, BY_ADDED, UNDECIDED = "same heads", "score", "added", "undecided"
"""Which order of heads hurts more: both take the same heads at every step; one, with an interval on its side
of 0; or neither surely."""


def summarise_ablations(ablations: Sequence[Ablation]) -> pd.DataFrame:
    """One row a task.

    Columns: relation, shots, method; n_sources (asked); n_heads (ablated in the end); base and what is left
    of it without the relation's heads, without as many by *added*, without as many random heads (mean, lowest
    and highest draw); control_base and without_control (means over control tasks, NaN without any), controls
    (their names); area between random heads and the relation's, added_area between the order by score and
    that by *added* (positive: *added* hurts more), each with its interval; hurts_more, which of the two
    orders: ``score``, ``added``, ``undecided`` (the interval includes 0), or ``same heads``.
    """
    return pd.DataFrame([_task_row(each) for each in ablations], columns=list(SUMMARY_COLUMNS))


def _task_row(each: Ablation) -> dict[str, Any]:
    last = each.random[:, -1].mean(axis=1)
    against_random, against_added = areas(each)
    controls = np.array([(curve[0], curve[-1]) for curve in each.controls.values()] or [(np.nan, np.nan)])
    return {
        "relation": each.relation,
        "shots": each.shots,
        "method": each.method,
        "n_sources": len(each.base),
        "n_heads": int(each.steps[-1]),
        "base": float(each.base.mean()),
        "without_relation": float(each.correct(RELATION)[-1].mean()),
        "without_added": float(each.correct(ADDED)[-1].mean()),
        "without_random": float(last.mean()),
        "without_random_low": float(last.min()),
        "without_random_high": float(last.max()),
        "control_base": float(controls[:, 0].mean()),
        "without_control": float(controls[:, 1].mean()),
        "controls": ", ".join(each.controls),
        **_named("area", against_random),
        **_named("added_area", against_added),
        "hurts_more": hurts_more(each, against_added),
    }


def hurts_more(each: Ablation, between: Estimate) -> str:
    """The order of heads that hurts a task more, by the area between that by score and that by *added*."""
    by_score, by_added = each.heads(RELATION), each.heads(ADDED)
    if all(set(by_score[:n]) == set(by_added[:n]) for n in each.steps):
        return SAME_HEADS
    if between.low > 0:
        return BY_ADDED
    return BY_SCORE if between.high < 0 else UNDECIDED


def areas(each: Ablation) -> tuple[Estimate, Estimate]:
    """Area between random heads (mean of draws) and the relation's, and between the order by score and that
    by *added*; intervals over resampled sources. Both are means over sources of each source's own area.
    """
    relation = each.correct(RELATION).astype(np.float64)
    random = each.random.mean(axis=0)
    added = each.correct(ADDED).astype(np.float64)
    return mean(area(each.steps, relation, random)), mean(area(each.steps, added, relation))


def curves(each: Ablation) -> pd.DataFrame:
    """The plotted numbers of a task: curve, heads (ablated), accuracy, low, high.

    Low and high are, for the two orders, Wilson's 95 % interval over the pairs asked; for ``random`` the
    lowest and highest draw; for control tasks nothing.
    """
    draws = each.random.mean(axis=2)
    parts: dict[str, tuple[Any, ...]] = {}
    for name in (RELATION, ADDED):
        right, n = each.correct(name).sum(axis=1), len(each.base)
        parts[name] = (right / n, *wilson(right, n))
    parts[RANDOM] = (draws.mean(axis=0), draws.min(axis=0), draws.max(axis=0))
    parts |= {f"control: {name}": (values, np.nan, np.nan) for name, values in each.controls.items()}
    frames = [
        pd.DataFrame({"curve": name, "heads": each.steps, "accuracy": values, "low": low, "high": high})
        for name, (values, low, high) in parts.items()
    ]
    return pd.concat(frames, ignore_index=True)


# Chosen heads -----------------------------------------------------------------------------------------


def named_heads(atlas: Atlas, heads: Sequence[tuple[int, int]]) -> tuple[Head, ...]:
    """Heads that somebody names, each (layer, head) of the atlas's model and named once."""
    try:
        found = tuple((index(layer), index(head)) for layer, head in heads)
    except (TypeError, ValueError):
        raise HeadatlasError("heads are a list of (layer, head), such as [(23, 4)].") from None
    if not found:
        raise HeadatlasError("the list of heads is empty; give (layer, head), such as [(23, 4)].")
    for layer, head in found:
        there = 0 <= layer < atlas.n_layers and 0 <= head < atlas.n_heads
        if not there or layer in atlas.layers_without_heads:
            raise HeadatlasError(
                f"there is no head {layer}.{head}: {atlas.model_name} has {atlas.n_layers} layers "
                f"and {atlas.n_heads} heads in each that has any, both counted from 0."
            )
    if twice := next((each for each in found if found.count(each) > 1), None):
        raise HeadatlasError(f"head {twice[0]}.{twice[1]} is named twice; name it once.")
    return found


def random_heads(heads: Sequence[Head], n_heads: int, seed: int) -> Iterator[list[Head]]:
    """Draws of random heads, without end: as many of each layer as are given, and none of these.

    Where a layer has fewer others, those. ``n_heads`` is the number of heads of a layer.
    """
    rng = np.random.default_rng([seed, *(number for head in sorted(heads) for number in head)])
    layers = sorted({layer for layer, _ in heads})
    mine = {layer: {head for at, head in heads if at == layer} for layer in layers}
    others = {layer: sorted(set(range(n_heads)) - own) for layer, own in mine.items()}
    while True:
        yield [
            (layer, int(head))
            for layer, own in mine.items()
            for head in sorted(rng.choice(others[layer], min(len(own), len(others[layer])), replace=False))
        ]


def summarise_heads(found: HeadsAblation) -> pd.DataFrame:
    """One row for the running texts, and one a task.

    Columns: on (``text`` or a relation), n (texts or prompts); loss of the whole model and without the
    chosen heads, in nats; their difference; random, the mean difference without random heads of the same
    layers, with the lowest and highest draw; excess, the difference less that mean. Intervals of difference
    and excess are over texts or prompts. The accuracies are of tasks, NaN for texts.
    """
    names = dict.fromkeys(str(name) for name in found.data["on"].values)
    return pd.DataFrame([_heads_row(found, name) for name in names])


def _heads_row(found: HeadsAblation, on: str) -> dict[str, Any]:
    loss, correct = found.of("loss", on), found.of("correct", on)
    parts = correct[0], correct[1], correct[2:]
    difference, random = loss[1] - loss[0], loss[2:] - loss[0]
    draws = random.mean(axis=1) if len(random) else np.array([np.nan])
    excess = mean(difference - random.mean(axis=0)) if len(random) else UNDEFINED
    right = [float(rows.mean()) if rows.size and on != RUNNING_TEXT else np.nan for rows in parts]
    return {
        "on": on,
        "n": loss.shape[1],
        "loss": float(loss[0].mean()),
        "without": float(loss[1].mean()),
        **_named("difference", mean(difference)),
        "random": float(draws.mean()),
        "random_low": float(draws.min()),
        "random_high": float(draws.max()),
        **_named("excess", excess),
        "accuracy": right[0],
        "accuracy_without": right[1],
        "accuracy_random": right[2],
    }
