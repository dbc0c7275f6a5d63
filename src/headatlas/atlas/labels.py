"""Labels of heads as an atlas stores them: one dataset an author, read without torch.

``docs/labels.md`` says how they are made and judged. A label is a short description that has been tested in
one of two ways, which its ``kind`` names; the two are never mixed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from headatlas.atlas.ablations import read_dataset, store_dataset
from headatlas.errors import HeadatlasError

LABELS_PREFIX = "labels-"
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
    """Write the labels of one author in the place of older ones of this author.

    Args:
        group: The atlas's evidence group.
        rows: :data:`LABEL_COLUMNS`.
        provenance: ``author`` and how the labels were made.

    Raises:
        HeadatlasError: They cannot be written.
    """
    texts = {name: [str(each) for each in rows[name]] for name in _TEXTS}
    # Variable-length strings: the fixed-width kind has no stable Zarr 3 form yet.
    arrays = {name: ("row", np.array(each, dtype=np.dtypes.StringDType())) for name, each in texts.items()}
    arrays |= {name: ("row", rows[name].to_numpy(dtype=np.int64)) for name in ("layer", "head")}
    arrays |= {name: ("row", rows[name].to_numpy(dtype=np.float64)) for name in ("score", "chance", "se")}
    path = labels_path(group, str(provenance["author"]))
    store_dataset(path, xr.Dataset(arrays), provenance)
    return path


def labels_path(group: Path, author: str) -> Path:
    """Path of an author's labels in an atlas's evidence group."""
    return group / f"{LABELS_PREFIX}{hashlib.sha256(author.encode()).hexdigest()[:12]}"


def read_labels(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Labels of one author and their provenance.

    Raises:
        HeadatlasError: They are damaged.
    """
    data, provenance = read_dataset(path)
    missing = [name for name in LABEL_COLUMNS if name not in data.variables]
    if missing:
        raise HeadatlasError(f"{path}: is damaged ({missing[0]} is missing); remove the folder.")
    texts = {name: [str(each) for each in data[name].values] for name in _TEXTS}
    numbers = {name: data[name].values.tolist() for name in LABEL_COLUMNS if name not in _TEXTS}
    return pd.DataFrame(texts | numbers)[list(LABEL_COLUMNS)], provenance


def all_labels(atlas_path: Path | None) -> pd.DataFrame:
    """Labels of all authors in an atlas, by layer, head, kind and author; no row where there are none."""
    group = atlas_path / "evidence" if atlas_path is not None else None
    found = [read_labels(path)[0] for path in sorted(group.glob(f"{LABELS_PREFIX}*"))] if group else []
    frame = in_order(pd.concat(found, ignore_index=True)) if found else no_labels()
    frame.attrs["caption"] = LABELS_CAVEAT
    return frame


class LabelReading:
    """Labels as an atlas hands them out.

    Attributes:
        path: The ``.zarr`` folder of the atlas; None where it has none.
    """

    path: Path | None

    def labels(self) -> pd.DataFrame:
        """Labels of heads that are stored in this atlas: :func:`headatlas.label` makes them.

        One row per head and author, one more where attention says what a head does: layer, head, label,
        support, score, chance, se, author, kind; ``attrs["caption"]`` says what the numbers are not.
        """
        return self._labels.copy()

    @cached_property
    def _labels(self) -> pd.DataFrame:
        return all_labels(self.path)


def no_labels() -> pd.DataFrame:
    """The frame of an atlas whose heads have no labels."""
    kinds: dict[str, Any] = {"layer": np.int64, "head": np.int64, **dict.fromkeys(_TEXTS, object)}
    return pd.DataFrame({name: np.array([], dtype=kinds.get(name, np.float64)) for name in LABEL_COLUMNS})


def in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Labels by layer and head; of a head, those scored by mappings first."""
    last = (rows["kind"] == BY_ATTENTION).to_numpy()
    order = np.lexsort((rows["author"].to_numpy(dtype=str), last, rows["head"], rows["layer"]))
    return rows.iloc[order].reset_index(drop=True)


def label_counts(rows: pd.DataFrame, heads: Sequence[tuple[int, int]] | None = None) -> dict[str, int]:
    """How many heads have a scored label, a label by attention, and neither.

    Args:
        rows: Labels.
        heads: All heads that were asked; by default those with a row.
    """
    named = rows[rows["label"] != UNCLEAR]
    of = {kind: _heads(named[named["kind"] == kind]) for kind in (BY_MAPPINGS, BY_ATTENTION)}
    every = _heads(rows) if heads is None else set(heads)
    clear = of[BY_MAPPINGS] | of[BY_ATTENTION]
    return {"heads": len(every), "scored": len(of[BY_MAPPINGS]), "attention": len(of[BY_ATTENTION])} | {
        UNCLEAR: len(every - clear)
    }


def _heads(rows: pd.DataFrame) -> set[tuple[int, int]]:
    return set(zip(rows["layer"].tolist(), rows["head"].tolist(), strict=True))
