"""Recovery of the heads that are known to do a job, by numbers given to heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats


def auroc(score: ArrayLike, truth: ArrayLike) -> float:
    """Chance that a head that does the job scores higher than one that does not; ties count half.

    This is Mann and Whitney's U divided by the number of pairs. NaN if all heads are of one kind.
    """
    score, truth = np.asarray(score, dtype=float), np.asarray(truth, dtype=bool)
    yes, no = score[truth], score[~truth]
    if len(yes) == 0 or len(no) == 0:
        return float("nan")
    return float(stats.mannwhitneyu(yes, no, method="asymptotic").statistic) / (len(yes) * len(no))


def recovery(cells: pd.DataFrame, score: str, called: str, truth: str) -> dict[str, Any]:
    """AUROC of a score; precision and recall of a call.

    Args:
        cells: A row per head and relation (and sign); several models may be stacked.
        score, called, truth: Names of its columns: numbers, what the lens calls, what is true.
    """
    right = int((cells[called] & cells[truth]).sum())
    n_called, n_true = int(cells[called].sum()), int(cells[truth].sum())
    return {
        "cells": len(cells),
        "true": n_true,
        "called": n_called,
        "precision": right / n_called if n_called else float("nan"),
        "recall": right / n_true if n_true else float("nan"),
        "auroc": auroc(cells[score], cells[truth]),
    }


def by_group(cells: pd.DataFrame, groups: list[str], *, score: str, called: str, truth: str) -> pd.DataFrame:
    """:func:`recovery` for every value of the columns ``groups``; lowest and highest AUROC of a seed."""
    rows = []
    for key, part in cells.groupby(groups, sort=False):
        each = [auroc(one[score], one[truth]) for _, one in part.groupby("seed")]
        known = [value for value in each if not np.isnan(value)]
        row: Mapping[str, Any] = recovery(part, score, called, truth)
        span = (min(known), max(known)) if known else (float("nan"),) * 2
        rows.append({**dict(zip(groups, key, strict=True)), **row, "lowest": span[0], "highest": span[1]})
    return pd.DataFrame(rows)
