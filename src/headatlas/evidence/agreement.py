"""How well static scores agree with dynamic ones: correlations over heads, relation by relation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from headatlas.atlas import Atlas
from headatlas.atlas.evidence import CONTEXT, WITHOUT, Dynamic, Evidence
from headatlas.evidence.statistics import Estimate, Floats, correlation, mean, pearson, spearman

KINDS = (CONTEXT, WITHOUT)
SIGNS = ("promotion", "suppression")
MEASURES = {"pearson": pearson, "spearman": spearman}
MEAN = "mean"


@dataclass(frozen=True)
class Agreement:
    """One correlation over heads.

    Attributes:
        pearson, spearman: Between static and dynamic scores.
        n_heads: Over how many heads.
    """

    pearson: Estimate
    spearman: Estimate
    n_heads: int


def agree(static: Floats, dynamic: Floats) -> Agreement:
    """Correlate two arrays of scores over heads.

    Args:
        static, dynamic: Arrays of one shape, a score a head; NaN (not mapped) in either leaves a head out.
    """
    known = ~(np.isnan(static) | np.isnan(dynamic))
    x, y = static[known], dynamic[known]
    return Agreement(correlation(pearson, x, y), correlation(spearman, x, y), int(known.sum()))


def agreement(atlas: Atlas, dynamics: tuple[Dynamic, ...] | list[Dynamic] | None = None) -> pd.DataFrame:
    """Agreement of an atlas with dynamic scores, by default with all that are stored in it.

    Returns:
        One row per relation, kind (``context``, ``without-context``) and sign (``promotion``,
        ``suppression``), and rows whose relation is ``mean``: relation, kind, sign, n_templates, n_heads,
        then pearson, spearman, each with ``_low`` and ``_high``. NaN where one side is the same for all
        heads.
    """
    evidence = atlas.evidence if dynamics is None else Evidence(atlas, dynamics, ())
    rows = list(_rows(atlas, evidence))
    frame = pd.DataFrame(rows, columns=["relation", "kind", "sign", "n_templates", "n_heads", *_columns()])
    means = [_mean(kind, sign, group) for (kind, sign), group in frame.groupby(["kind", "sign"], sort=False)]
    return pd.concat(
        [frame, *([pd.DataFrame(means, columns=frame.columns)] if means else [])], ignore_index=True
    )


def _rows(atlas: Atlas, evidence: Evidence) -> Iterator[tuple[object, ...]]:
    for name in atlas.relation_scores:
        for kind in KINDS:
            for sign in SIGNS:
                scores = evidence.scores(name, kind, sign)
                if scores is not None:
                    found = agree(*scores)
                    n_templates = len(evidence.templates_of(name))
                    numbers = _numbers(found.pearson) + _numbers(found.spearman)
                    yield (name, kind, sign, n_templates, found.n_heads, *numbers)


def _mean(kind: object, sign: object, group: pd.DataFrame) -> tuple[object, ...]:
    numbers: tuple[float, ...] = ()
    for measure in MEASURES:
        values = group[measure].dropna().to_numpy(dtype=np.float64)
        numbers += _numbers(mean(values))
    return (MEAN, kind, sign, group["n_templates"].max(), group["n_heads"].max(), *numbers)


def _numbers(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def _columns() -> list[str]:
    return [f"{measure}{suffix}" for measure in MEASURES for suffix in ("", "_low", "_high")]
