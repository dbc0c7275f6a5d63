"""Compared atlases on the page of the last: what changed from one to the next, and relations side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headatlas.arrangement.comparison import CALLED_IN, CHANGES, Comparison, HeadChanges
from headatlas.atlas import Atlas
from headatlas.atlas.export import plain_records
from headatlas.atlas.relation_scores import SIGNS
from headatlas.report.packed import Arrays, fixed, pack
from headatlas.report.page import write_report

if TYPE_CHECKING:
    import pandas as pd

LARGE = 100_000
"""Of more cells than this the page gets only those that are called or shown to differ."""


def write_comparison(
    atlases: Sequence[Atlas], path: str | Path, found: Comparison | None = None, q_at: Sequence[int] = ()
) -> Path:
    """Write the page of the last of several atlases, with the comparison of all of them in it.

    Args:
        atlases: Two or more, in the order in which they are compared.
        path: The file, or an existing folder that gets a ``report.html``.
        found: What :func:`headatlas.compare` says of them, if it was asked already.
        q_at: As for :func:`headatlas.report.write_report`.

    Raises:
        HeadatlasError: The atlases cannot be compared, or the file cannot be written.
    """
    if found is None:
        from headatlas.arrangement import compare

        found = compare(*atlases)
    return write_report(atlases[-1], path, q_at, comparison=compared_data(found, atlases))


def compared_data(found: Comparison, atlases: Sequence[Atlas]) -> dict[str, Any]:
    """A comparison as JSON values: ``relations`` and, for models of one shape, ``steps`` head by head.

    ``relations`` holds name, title, category and, for each atlas, its row of :attr:`Comparison.table` or
    None. A step holds its labels, its sentences and its cells as a section (:func:`cells_section`);
    ``scores`` is the section of :func:`score_section`, None without steps.
    """
    records = plain_records(found.table)
    names = list(dict.fromkeys(str(row["relation"]) for row in records))
    rows = {(row["relation"], row["atlas"]): row for row in records}
    said = found.table.drop_duplicates("relation").set_index("relation")[["title", "category"]]
    return {
        "labels": list(found.labels),
        "captions": list(found.captions),
        "left_out": found.left_out,
        "not_by_head": found.not_by_head,
        "agreement": [asdict(pair) for pair in found.agreement],
        "relations": [
            {
                "name": name,
                **said.loc[name].to_dict(),
                "atlases": [rows.get((name, at)) for at in found.labels],
            }
            for name in names
        ],
        "steps": [_step(step, names) for step in found.changes],
        "scores": score_section(atlases, names) if found.changes else None,
    }


def _step(step: HeadChanges, names: list[str]) -> dict[str, Any]:
    from headatlas.figures.compare import describe_changes

    rows = step.table
    if len(rows) > LARGE:
        rows = rows[(rows["called_in"] != "") | (rows["change"] != "")]
    return {
        "a": step.a,
        "b": step.b,
        "q_max": step.q_max,
        "lost": step.counts.lost,
        "gained": step.counts.gained,
        "words": describe_changes(step),
        "left_out": len(step.table) - len(rows),
        "cells": cells_section(rows, names, step.n_heads),
    }


def cells_section(rows: pd.DataFrame, names: list[str], n_heads: int) -> dict[str, Any]:
    """The rows of :attr:`HeadChanges.table` as arrays.

    ``cell`` is layer × heads + head, ``relation`` a position among ``names``, ``down`` 1 for suppression,
    ``change`` one more than the position in :data:`CHANGES` (0: none), ``called`` the position in
    :data:`CALLED_IN`. ``both``, ``only_a`` and ``only_b`` count sources.
    """
    n = rows["n_sources"].to_numpy()
    arrays: Arrays = {
        "cell": ("u4", rows["layer"].to_numpy() * n_heads + rows["head"].to_numpy()),
        "relation": ("u2", rows["relation"].map(names.index).to_numpy(dtype=np.int64)),
        "down": ("u1", (rows["sign"] == "suppression").to_numpy()),
        "n": ("u2", n),
        "both": ("u2", np.rint(rows["score_a"].to_numpy() * n).astype(np.int64) - rows["only_a"].to_numpy()),
        "only_a": ("u2", rows["only_a"].to_numpy()),
        "only_b": ("u2", rows["only_b"].to_numpy()),
        "change": ("u1", rows["change"].map(("", *CHANGES).index).to_numpy(dtype=np.int64)),
        "called": ("u1", rows["called_in"].map(CALLED_IN.index).to_numpy(dtype=np.int64)),
        **{name: ("f8", rows[name].to_numpy(dtype=np.float64)) for name in ("low", "high", "p", "q")},
    }
    return pack(arrays)


def score_section(atlases: Sequence[Atlas], names: list[str]) -> dict[str, Any]:
    """Scores of all heads: for each atlas and sign ``0/promotion`` … [relation, head], four digits."""
    arrays: Arrays = {}
    for at, atlas in enumerate(atlases):
        scores = atlas.scores.reindex(relation=names).transpose("sign", "relation", "layer", "head")
        arrays |= {f"{at}/{sign}": fixed(scores.sel(sign=sign).values, 4) for sign in SIGNS}
    return pack(arrays)
