"""Labels of heads as an atlas stores them: one dataset an author, read without torch.

``docs/labels.md`` says how they are made and judged. A label is a short description that has been tested in
one of two ways, which its ``kind`` names; the two are never mixed.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from headatlas.atlas.salience import stored_operations_sha256
from headatlas.atlas.store import Place, strings
from headatlas.atlas.stored import Stored, no_rows, store_dataset

LABEL_COLUMNS = ("layer", "head", "label", "support", "score", "chance", "se", "author", "kind")
UNCLEAR = "unclear"
"""The label of a head whose description does not do better than chance, or that none fits."""
BY_MAPPINGS = "mappings"
"""Kind of a label that was made from half of a head's salient mappings and scored on the other half."""
BY_ATTENTION = "attention"
"""Kind of a label that rests on a measured behaviour and its q: tested by attention, not scored."""
LABELS_CAVEAT = (
    "score: share of held-out salient mappings picked out of five by the label alone; unclear: at or below "
    "chance + 2 standard errors; a label is about what a head does most strongly, not about all it does; "
    "kind attention: tested by attention (q), not scored by mappings"
)
"""Meaning and limits of the numbers, beside them wherever they are shown."""

_TEXTS = ("label", "support", "author", "kind")


def store_labels(group: Path, rows: pd.DataFrame, provenance: dict[str, Any]) -> Path:
    """Write the labels (:data:`LABEL_COLUMNS`) of one author into an atlas's evidence group, in the place of
    older ones; the provenance names the ``author`` and says how they were made."""
    arrays: dict[str, Any] = {name: ("row", strings(map(str, rows[name]))) for name in _TEXTS}
    arrays |= {name: ("row", rows[name].to_numpy(dtype=np.int64)) for name in ("layer", "head")}
    arrays |= {name: ("row", rows[name].to_numpy(dtype=np.float64)) for name in ("score", "chance", "se")}
    path = labels_path(group, str(provenance["author"]))
    store_dataset(path, xr.Dataset(arrays), provenance)
    return path


@dataclass(frozen=True)
class Labels(Stored):
    """Labels of one author."""

    PREFIX = "labels-"
    VARIABLES = LABEL_COLUMNS

    def frame(self) -> pd.DataFrame:
        """:data:`LABEL_COLUMNS`, one row per head and kind."""
        texts = {name: [str(each) for each in self.data[name].values] for name in _TEXTS}
        numbers = {name: self.data[name].values.tolist() for name in LABEL_COLUMNS if name not in _TEXTS}
        return pd.DataFrame(texts | numbers)[list(LABEL_COLUMNS)]


def labels_path(group: Path, author: str) -> Path:
    """Path of an author's labels in an atlas's evidence group."""
    return Labels.place(group, hashlib.sha256(author.encode()).hexdigest()[:12])


def stored_labels(atlas: Place | None) -> pd.DataFrame:
    """Labels of all authors in an atlas, by layer, head, kind and author; no row where there are none.

    A warning says which were judged on salient operations that others have replaced since.
    """
    stored = Labels.all_in(atlas)
    now = stored_operations_sha256(atlas) if stored else None
    for each in stored:
        if each.provenance.get("operations") not in (None, now):
            warnings.warn(
                f"labels by {each.provenance.get('author')} were judged on other salient operations than are "
                "stored now; `headatlas label DIR` judges anew",
                stacklevel=2,
            )
    found = [each.frame() for each in stored]
    none = no_rows(LABEL_COLUMNS, layer=int, head=int, **dict.fromkeys(_TEXTS, object))
    frame = in_order(pd.concat(found, ignore_index=True)) if found else none
    frame.attrs["caption"] = LABELS_CAVEAT
    return frame


def in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Labels by layer and head; of a head, those scored by mappings first."""
    last = (rows["kind"] == BY_ATTENTION).to_numpy()
    order = np.lexsort((rows["author"].to_numpy(dtype=str), last, rows["head"], rows["layer"]))
    return rows.iloc[order].reset_index(drop=True)


def label_counts(rows: pd.DataFrame, heads: Sequence[tuple[int, int]] | None = None) -> dict[str, int]:
    """How many heads (all that were asked, or have a row) have a scored label, one by attention, neither."""
    named = rows[rows["label"] != UNCLEAR]
    scored, watched = (_heads(named[named["kind"] == kind]) for kind in (BY_MAPPINGS, BY_ATTENTION))
    every = _heads(rows) if heads is None else set(heads)
    unclear = len(every - scored - watched)
    return {"heads": len(every), "scored": len(scored), "attention": len(watched), UNCLEAR: unclear}


def _heads(rows: pd.DataFrame) -> set[tuple[int, int]]:
    return set(zip(rows["layer"].tolist(), rows["head"].tolist(), strict=True))
