"""The same atlas read on fewer pairs: only sources that are one token.

The state of a source of several tokens is that of its last token and may hold what earlier layers put there,
so a trend over layers could come from such sources alone. Reading the stored ranks again without them tells.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headatlas.atlas.atlas import Atlas
from headatlas.atlas.relation_scores import EXAMINED, SIGNS, examined
from headatlas.atlas.store import load, read_array
from headatlas.relations.tokenising import MIN_SOURCES, MIN_TARGETS

Bools = NDArray[np.bool_]


def all_single(atlas: Atlas) -> bool:
    """Whether every usable source is one token."""
    usable = read_array(atlas.dataset, "pair_source") >= 0
    return bool((read_array(atlas.dataset, "pair_source_tokens")[usable] == 1).all())


def single_token_atlas(atlas: Atlas) -> Atlas:
    """The atlas restricted to sources of one token; nothing is mapped again.

    Relations left with too few sources or targets are left out, with the reason. A head whose score on all
    sources was below the calibration floor was not examined: its p is 1 here, too, whatever its score.

    Raises:
        HeadatlasError: A file of the atlas is damaged or cannot be read.
    """
    data = load(atlas.dataset)
    keep = (data["pair_source"].values >= 0) & (data["pair_source_tokens"].values == 1)
    small = restrict(data, keep, int(atlas.provenance["ceiling"]))
    return Atlas(small, atlas.provenance, atlas.thresholds, atlas.path)


def restrict(data: xr.Dataset, keep: Bools, ceiling: int) -> xr.Dataset:
    """A copy of an atlas's dataset in which only some pairs are usable.

    Args:
        data: The dataset, loaded.
        keep: [pair] which usable pairs stay.
        ceiling: The atlas's ceiling.
    """
    relation, source = data["pair_relation"].values, data["pair_source"].values
    new_source = np.full_like(source, -1)
    left_out = data["left_out"].values.copy()
    n_sources, n_targets = data["n_sources"].values.copy(), data["n_targets"].values.copy()
    cell_index = data["cell_source_index"].values.copy()
    keep_row = np.zeros(len(cell_index), dtype=bool)
    for at in range(len(left_out)):
        mine = keep & (relation == at)
        kept = np.unique(source[mine])
        rows = data["cell_source_relation"].values == at
        stays = np.isin(cell_index, kept) & rows
        n_sources[at] = len(kept)
        n_targets[at] = len(np.unique(data["pair_target_id"].values[mine]))
        if not left_out[at]:
            left_out[at] = _why_left_out(n_sources[at], n_targets[at], int(stays.sum()))
        if left_out[at]:
            continue
        new_source[mine] = np.searchsorted(kept, source[mine])
        cell_index[stays] = np.searchsorted(kept, cell_index[stays])
        keep_row |= stays
    small = data.isel(cell=_cells(data, keep_row), cell_source=keep_row)
    changed: dict[str, tuple[str | tuple[str, ...], NDArray[Any]]] = {
        "pair_source": ("pair", new_source),
        "n_sources": ("relation", n_sources),
        "n_targets": ("relation", n_targets),
        "left_out": ("relation", left_out),
        "cell_source_index": ("cell_source", cell_index[keep_row]),
    }
    for sign in SIGNS:
        changed[EXAMINED.format(sign=sign)] = ("layer", "head", "relation"), examined(data, sign, ceiling)
    # Scores stored beside the ranks are those of all sources; without their key, readers compute anew.
    return small.assign_attrs(scores_of="").assign(changed)


def _why_left_out(n_sources: int, n_targets: int, n_calibrated: int) -> str:
    if n_sources < MIN_SOURCES:
        return f"{n_sources} sources of one token, at least {MIN_SOURCES} needed"
    if n_targets < MIN_TARGETS:
        return f"{n_targets} distinct targets, at least {MIN_TARGETS} needed"
    return "" if n_calibrated >= MIN_TARGETS else "too few of its sources of one token were calibrated"


def _cells(data: xr.Dataset, keep_row: Bools) -> Bools:
    """[cell] the cells of the calibration sources that stay; blocks are (sources × targets), row by row."""
    row_relation = data["cell_source_relation"].values
    n_targets = np.bincount(data["cell_target_relation"].values, minlength=data.sizes["relation"])
    return np.repeat(keep_row, n_targets[row_relation])
