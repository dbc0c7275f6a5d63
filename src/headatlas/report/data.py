"""The data of the page: what an atlas holds, as small JSON and packed arrays.

Ranks travel, not scores: the page counts hits at any k up to the ceiling, and finds the same heads as Python
for every k and τ. q needs the calibration, which a page cannot run; p travels for the k at which it was run,
and the page derives q of it as Python does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from headatlas.atlas import Atlas
from headatlas.atlas.cards import STATEMENTS, caption_with_coverage, group_size
from headatlas.atlas.evidence import CRITERIA
from headatlas.errors import HeadatlasError
from headatlas.report.packed import head_section, rank_section, salience_section, word_section

FORMAT = 2
DROPPED_SHOWN = 12
"""Examples of dropped sources listed per reason."""
LIST_SHOWN = 24
"""Longer lists in the provenance are cut to this many entries, with their length."""


def page_data(atlas: Atlas, *, alternative: str, in_words: str, q_at: Sequence[int] = ()) -> dict[str, Any]:
    """Everything the page shows, as plain JSON values without NaN; it starts with the atlas's thresholds.

    ``alternative`` and ``in_words`` are the figure's text alternative and the figure in words, ``q_at``
    further k at which heads are calibrated. ``relations`` holds one entry per relation, in atlas order;
    ``packed`` the sections of :mod:`headatlas.report.packed`. Where there is evidence, ``evidence`` holds
    what its words mean.
    """
    categories = list(atlas.category_names)
    ceiling = int(atlas.provenance["ceiling"])
    for k in q_at:
        if not 1 <= k <= ceiling:
            raise HeadatlasError(f"`q_at` is {k}: ranks are stored for k from 1 to {ceiling}.")
    calibrated = [atlas, *(atlas.at(k=k, k_copy=k) for k in q_at)]
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
        "group_size": group_size(atlas),
        "layers_done": [int(done) for done in atlas.layers_done],
        "layers_without_heads": list(atlas.layers_without_heads),
        "ceiling": ceiling,
        "thresholds": asdict(atlas.thresholds),
        "evidence": list(CRITERIA) if atlas.evidence else None,
        "statements": STATEMENTS,
        "categories": categories,
        "relations": _relations(atlas, categories),
        "provenance": _plain(atlas.provenance),
        "packed": {
            "ranks": rank_section(atlas, calibrated),
            "words": word_section(atlas),
            "heads": head_section(atlas),
            "salience": salience_section(atlas),
        },
    }


def _relations(atlas: Atlas, categories: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "name": row["relation"],
            "title": row["title"],
            "category": categories.index(row["category"]),
            "copying": bool(row["is_copying"]),
            **{name: int(row[name]) for name in ("n_pairs", "n_sources", "n_targets")},
            "left_out": row["left_out"],
            "dropped": _dropped(row["dropped"]),
        }
        for row in atlas.relations.to_dict("records")
    ]


def _dropped(reasons: Any) -> list[dict[str, Any]]:
    return [
        {"reason": reason, "count": len(words), "examples": [str(word) for word in words[:DROPPED_SHOWN]]}
        for reason, words in dict(reasons).items()
        if len(words)
    ]


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
