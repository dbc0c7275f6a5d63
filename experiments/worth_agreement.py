"""Tables of how well static scores agree with dynamic ones."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from experiments.worth_scores import Scores
from headatlas.evidence.statistics import Estimate, mean, pearson

Floats = NDArray[np.float64]
THIRDS = ("first", "middle", "last")


def over_heads(static: Floats, dynamic: Floats) -> Floats:
    """[relation] Pearson's r over heads of two arrays [layer, head, relation].

    A static side that says the same of all heads says nothing and counts as 0; where the dynamic side is
    constant there is nothing to agree with, and r is NaN.
    """
    x, y = (each.reshape(-1, each.shape[-1]).T for each in (static, dynamic))
    return np.where(np.ptp(y, axis=1) == 0, np.nan, pearson(x, y))


def given(r_predictor: Floats, r_score: Floats, between: Floats) -> Floats:
    """Partial correlation of predictor and outcome given the score, from the three correlations."""
    left = np.sqrt(np.maximum((1 - r_score**2) * (1 - between**2), 0.0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(left < 1e-9, np.nan, (r_predictor - r_score * between) / left)


def thirds(n_layers: int) -> list[slice]:
    """The first, middle and last third of the layers."""
    edges = [round(part * n_layers / 3) for part in range(4)]
    return [slice(low, high) for low, high in pairwise(edges)]


def known_mean(values: Floats) -> Estimate:
    """Mean over relations that have a value, with its interval."""
    return mean(values[~np.isnan(values)])


def table(
    static: Mapping[str, Scores], context: Scores, without: Scores, reference: str = "neutral"
) -> pd.DataFrame:
    """One row a variant: mean r with context (promotion, suppression), by thirds of the layers (promotion),
    the difference to the reference, relations paired, and r without context.
    """
    base = over_heads(static[reference][0], context[0])
    rows = []
    for name, scores in static.items():
        promotion = over_heads(scores[0], context[0])
        row = {
            "variant": name,
            "with context": shown(known_mean(promotion)),
            f"minus {reference}": "" if name == reference else shown(known_mean(promotion - base), sign=True),
            "suppression": shown(known_mean(over_heads(scores[1], context[1]))),
        }
        for label, part in zip(THIRDS, thirds(scores.shape[1]), strict=True):
            row[label] = f"{known_mean(over_heads(scores[0, part], context[0, part])).value:.2f}"
        row["without context"] = f"{known_mean(over_heads(scores[0], without[0])).value:.2f}"
        rows.append(row)
    return pd.DataFrame(rows)


def by_relation(static: Mapping[str, Scores], context: Scores, names: list[str]) -> pd.DataFrame:
    """r with context (promotion) of every variant and relation."""
    return pd.DataFrame(
        {name: over_heads(scores[0], context[0]) for name, scores in static.items()}, index=names
    ).T


def shown(estimate: Estimate, *, sign: bool = False) -> str:
    """A number with its interval."""
    form = "+.2f" if sign else ".2f"
    return f"{estimate.value:{form}} ({estimate.low:{form}} … {estimate.high:{form}})"


def as_markdown(frame: pd.DataFrame) -> str:
    """A table for docs/lenses.md."""
    rows = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
