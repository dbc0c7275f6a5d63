"""Scores and calibration stored beside the ranks, so that an atlas opens without computing them again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from headatlas.atlas.calibrate import Calibration
from headatlas.atlas.reading import RelationScores
from headatlas.atlas.store import AtlasWriter, read_array
from headatlas.errors import HeadatlasError
from headatlas.options import FLOOR, Thresholds
from headatlas.scoring.calibration import CALIBRATION

if TYPE_CHECKING:
    from headatlas.atlas.atlas import Atlas

_ARRAYS = {
    "promotion_score": "share of sources with an accepted target in the top k",
    "suppression_score": "share of sources with an accepted target in the top k of the negated logits",
    "added_score": "share of sources that the head hits and the state itself does not",
    "promotion_chance": "expected promotion_score if targets were reassigned to sources",
    "promotion_p": "upper tail of the reassignment null for promotion_score",
    "suppression_chance": "expected suppression_score if targets were reassigned to sources",
    "suppression_p": "upper tail of the reassignment null for suppression_score",
}
_CONTROL = "control_score"
STORED = (*_ARRAYS, _CONTROL)
"""Arrays of scores in the store of an atlas."""


def store_scores(atlas: Atlas) -> None:
    """Write the scores of an atlas, at its thresholds, into its store; :meth:`Atlas.open` then finds them.

    The arrays are float64 [layer, head, relation] (``control_score``: [layer, relation]), NaN where a layer
    is not mapped or a relation is left out. They depend on k alone: q and what is implemented follow.
    """
    if atlas.path is None:
        raise ValueError("an atlas in memory has no store to write to")
    names = atlas.relations["relation"].tolist()
    shape = (atlas.n_layers, atlas.n_heads, len(names))
    arrays = {name: np.full(shape, np.nan) for name in _ARRAYS}
    control = np.full((shape[0], shape[2]), np.nan)
    for at, name in enumerate(names):
        if name in atlas.relation_scores:
            found = atlas.relation_scores[name]
            control[:, at] = found.control
            for array, values in _parts(found).items():
                arrays[array][..., at] = values
    try:
        _write(atlas.path, atlas, arrays, control)
    except OSError as error:
        raise HeadatlasError(
            f"{atlas.path}: the scores cannot be written ({error.strerror or error}); "
            "the ranks are saved: make room and run the same command again."
        ) from error


def _write(
    path: Path, atlas: Atlas, arrays: dict[str, NDArray[np.float64]], control: NDArray[np.float64]
) -> None:
    group = zarr.open_group(path, mode="r+")
    on_disk = AtlasWriter(path).done()  # not through xarray, which warns of what killed processes leave
    if not np.array_equal(on_disk, atlas.layers_done):
        # Another process has added layers since; it stores the scores of all when it ends.
        group.attrs.update({"provenance": json.dumps(_provenance(atlas))})
        return
    # Until the new key is there, readers compute for themselves rather than mix old and new.
    group.attrs.update({"scores_of": "", "provenance": json.dumps(_provenance(atlas))})
    for array, values in arrays.items():
        _replace(group, array, values, ("layer", "head", "relation"), _ARRAYS[array])
    _replace(group, _CONTROL, control, ("layer", "relation"), "score of the state itself, without any head")
    group.attrs.update(
        {
            "scores_of": _key(atlas.thresholds, atlas.layers_done),
            "scores_sha256": _digest({**arrays, _CONTROL: control}),
        }
    )


def stored_scores(
    data: xr.Dataset, thresholds: Thresholds, layers_done: NDArray[np.bool_], names: dict[str, int]
) -> dict[str, RelationScores] | None:
    """The stored scores if they belong to these thresholds and layers and are whole, else None.

    Processes that end at the same time may have written over each other where there are no locks: the arrays
    then are not those of the attributes, which are written in one piece.

    Args:
        data: The arrays of :data:`STORED`, with the attributes of the store.
        thresholds: How it is read.
        layers_done: [n_layers] which layers are mapped.
        names: Scored relations with their positions.
    """
    if data.attrs.get("scores_of") != _key(thresholds, layers_done):
        return None
    if not set(STORED) <= set(data.variables):
        return None
    arrays = {name: read_array(data, name) for name in STORED}
    if data.attrs.get("scores_sha256") != _digest(arrays):
        return None
    return {
        name: RelationScores(
            score=arrays["promotion_score"][..., at],
            suppression=arrays["suppression_score"][..., at],
            control=arrays[_CONTROL][:, at],
            added=arrays["added_score"][..., at],
            promotion_null=Calibration(arrays["promotion_chance"][..., at], arrays["promotion_p"][..., at]),
            suppression_null=Calibration(
                arrays["suppression_chance"][..., at], arrays["suppression_p"][..., at]
            ),
        )
        for name, at in names.items()
    }


def _parts(scores: RelationScores) -> dict[str, NDArray[np.float64]]:
    return {
        "promotion_score": scores.score,
        "suppression_score": scores.suppression,
        "added_score": scores.added,
        "promotion_chance": scores.promotion_null.chance,
        "promotion_p": scores.promotion_null.p,
        "suppression_chance": scores.suppression_null.chance,
        "suppression_p": scores.suppression_null.p,
    }


def _provenance(atlas: Atlas) -> dict[str, Any]:
    return {**atlas.provenance, "thresholds": asdict(atlas.thresholds)}


def _key(thresholds: Thresholds, layers_done: NDArray[np.bool_]) -> str:
    layers = np.flatnonzero(layers_done).tolist()
    return json.dumps(
        {
            "k": thresholds.k,
            "k_copy": thresholds.k_copy,
            "layers": layers,
            "calibration": CALIBRATION,
            "floor": FLOOR,
        }
    )


def _digest(arrays: dict[str, NDArray[np.float64]]) -> str:
    """Of the values, whatever the order of the arrays; every NaN is the same."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        values = np.where(np.isnan(arrays[name]), np.nan, arrays[name]).astype("<f8")
        digest.update(f"{name} {values.shape} ".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _replace(
    group: zarr.Group, name: str, values: NDArray[np.float64], dims: tuple[str, ...], long_name: str
) -> None:
    array = group.create_array(
        name,
        shape=values.shape,
        chunks=tuple(max(1, n) for n in values.shape),
        dtype=values.dtype,
        fill_value=np.nan,
        dimension_names=list(dims),
        attributes={"long_name": long_name},
        overwrite=True,
    )
    array[...] = values
