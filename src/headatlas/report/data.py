"""The data of the page: what an atlas holds, as small JSON.

Scores travel as counts of sources, so the page computes exactly the shares that Python computes, and finds
the same heads for every τ. Cells where a head hits no source, promoting or suppressing, are not listed; their
scores are 0 and their q is 1.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from decimal import ROUND_CEILING, Decimal
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headatlas.atlas import Atlas
from headatlas.atlas.cards import caption_with_coverage
from headatlas.atlas.evidence import CRITERIA

FORMAT = 1
Q_DIGITS = 4
"""Significant digits of q; rounding is upwards, so that no head is called because of it."""
DROPPED_SHOWN = 12
"""Examples of dropped sources listed per reason."""
LIST_SHOWN = 24
"""Longer lists in the provenance are cut to this many entries, with their length."""


def page_data(atlas: Atlas, *, alternative: str, in_words: str) -> dict[str, Any]:
    """Everything the page shows, as plain JSON values without NaN.

    Args:
        atlas: The atlas, read with its own thresholds (they are where the page starts).
        alternative: The figure's text alternative.
        in_words: The figure in words, in full.

    Returns:
        ``relations`` holds one entry per relation, in atlas order. Those that are scored have ``cells``:
        columns of equal length: ``at`` (differences of ``layer * n_heads + head``, ascending), ``hits``,
        ``suppressed`` and ``added`` (numbers of sources out of ``n_sources``), ``q``, ``suppression_q``. And
        ``control``, a number of sources per layer, null where the layer is not mapped. Where there is
        evidence, ``evidence`` holds what its words mean, and cells have ``confirmed``.
    """
    table = atlas.table()
    by_relation = dict(iter(table.groupby("relation", sort=False)))
    categories = list(atlas.category_names)
    evidence = list(CRITERIA) if atlas.evidence else None
    digits = max(Q_DIGITS, _significant_digits(atlas.thresholds.q_max))
    relations = []
    for entry in atlas.relations.itertuples(index=False):
        item: dict[str, Any] = {
            "name": entry.relation,
            "title": entry.title,
            "category": categories.index(str(entry.category)),
            "copying": bool(entry.copying),
            "k": int(str(entry.k)),
            "n_pairs": int(str(entry.n_pairs)),
            "n_sources": int(str(entry.n_sources)),
            "n_targets": int(str(entry.n_targets)),
            "left_out": entry.left_out,
            "dropped": _dropped(entry.dropped),
        }
        rows = by_relation.get(str(entry.relation))
        if not entry.left_out and rows is not None:
            item["control"] = _control(rows, atlas.n_layers)
            item["cells"] = _cells(rows, atlas.n_heads, digits)
            if evidence:
                item["cells"]["confirmed"] = _confirmed(rows)
        relations.append(item)
    return {
        "format": FORMAT,
        "model": atlas.model_name,
        "lens": atlas.lens,
        "caption": caption_with_coverage(atlas),
        "rule": atlas.thresholds.describe(),
        "alternative": alternative,
        "in_words": in_words,
        "n_layers": atlas.n_layers,
        "n_heads": atlas.n_heads,
        "layers_done": [int(done) for done in atlas.layers_done],
        "thresholds": asdict(atlas.thresholds),
        "evidence": evidence,
        "categories": categories,
        "relations": relations,
        "provenance": _plain(atlas.provenance),
    }


def _dropped(reasons: Any) -> list[dict[str, Any]]:
    return [
        {"reason": reason, "count": len(words), "examples": [str(word) for word in words[:DROPPED_SHOWN]]}
        for reason, words in dict(reasons).items()
        if len(words)
    ]


def _control(rows: pd.DataFrame, n_layers: int) -> list[int | None]:
    counts: list[int | None] = [None] * n_layers
    first = rows.drop_duplicates("layer")
    hits = _counts(first, "control")
    for layer, count in zip(first["layer"], hits, strict=True):
        counts[int(layer)] = int(count)
    return counts


def _counts(rows: pd.DataFrame, column: str) -> NDArray[np.int64]:
    """Shares of sources back to numbers of sources."""
    shares: NDArray[np.float64] = rows[column].to_numpy(dtype=np.float64)
    counts = np.rint(shares * rows["n_sources"].to_numpy(dtype=np.float64))
    return np.asarray(counts, dtype=np.int64)


def _cells(rows: pd.DataFrame, n_heads: int, digits: int) -> dict[str, list[Any]]:
    hits, suppressed = _counts(rows, "score"), _counts(rows, "suppression")
    chosen = _listed(rows)
    at = rows["layer"].to_numpy()[chosen] * n_heads + rows["head"].to_numpy()[chosen]
    return {
        "at": np.diff(at, prepend=0).tolist(),
        "hits": hits[chosen].tolist(),
        "suppressed": suppressed[chosen].tolist(),
        "added": _counts(rows, "added")[chosen].tolist(),
        "q": _round_up(rows["q"].to_numpy()[chosen], digits),
        "suppression_q": _round_up(rows["suppression_q"].to_numpy()[chosen], digits),
    }


def _listed(rows: pd.DataFrame) -> NDArray[np.int64]:
    """Places of the rows with a hit, by layer and head."""
    places = np.flatnonzero((_counts(rows, "score") > 0) | (_counts(rows, "suppression") > 0))
    order = np.lexsort((rows["head"].to_numpy()[places], rows["layer"].to_numpy()[places]))
    return np.asarray(places[order], dtype=np.int64)


def _confirmed(rows: pd.DataFrame) -> list[int]:
    """For each listed cell 1 if asked with context, plus 2 if by ablation; plus 4 and 8 where confirmed."""
    chosen = _listed(rows)
    bits = np.zeros(len(chosen), dtype=np.int64)
    for asked, yes, name in ((1, 4, "confirmed_with_context"), (2, 8, "confirmed_by_ablation")):
        bits += yes * rows[name].eq(True).to_numpy()[chosen] + asked * rows[name].notna().to_numpy()[chosen]
    return [int(each) for each in bits]


def _round_up(values: NDArray[np.float64], digits: int) -> list[float | int | None]:
    """Each value at that many significant digits, rounded up; NaN becomes None.

    Works on the shortest decimal form, so a value that is already that short stays what it is.
    """
    known: dict[float, float | int | None] = {}
    out: list[float | int | None] = []
    for value in values.tolist():
        if math.isnan(value):
            out.append(None)
            continue
        if value not in known:
            exact = Decimal(repr(value))
            rounded = float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - digits + 1), ROUND_CEILING))
            known[value] = int(rounded) if rounded.is_integer() else rounded
        out.append(known[value])
    return out


def _significant_digits(value: float) -> int:
    return len(Decimal(repr(value)).normalize().as_tuple().digits)


def _plain(value: Any) -> Any:
    """JSON values without NaN or infinity; long lists cut, with their length."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        if len(value) > LIST_SHOWN:
            return {"entries": len(value), "first": [_plain(item) for item in value[:LIST_SHOWN]]}
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return str(value)
