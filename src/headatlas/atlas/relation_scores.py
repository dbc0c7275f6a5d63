"""The numbers of one relation: hits, control and calibration, from ranks or as stored beside them.

Stored scores carry a key that says for which k and layers they hold, so an atlas opens without computing them
again.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from headatlas.addresses import failures
from headatlas.atlas.store import AtlasWriter, Place, damaged, put_array, read_array, store_at
from headatlas.errors import HeadatlasError
from headatlas.files import unwritten
from headatlas.options import FLOOR, Thresholds
from headatlas.relations.tokenising import MIN_SOURCES, MIN_TARGETS
from headatlas.scoring.calibration import CALIBRATION, Permutations, fit_null
from headatlas.scoring.scores import RANK_MISSING, source_hits

if TYPE_CHECKING:
    from headatlas.atlas.atlas import Atlas

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
SIGNS = ("promotion", "suppression")
HEADS_AT_A_TIME = 256
"""Heads calibrated together: more need more memory and are hardly faster."""
SINGLE_TOKENS = "single_tokens"
"""Group of a store with the scores on sources of one token alone."""
_WHOLE = "whole_pair_source"
"""Array of a dataset made by leaving pairs out: ``pair_source`` of the whole."""


@dataclass(frozen=True)
class Calibration:
    """Arrays [n_layers, n_heads] of one relation and sign: chance level and p; NaN where not mapped."""

    chance: Floats
    p: Floats


@dataclass(frozen=True)
class RelationScores:
    """Everything read from the ranks of one relation, arrays [n_layers, n_heads] unless said."""

    score: Floats  # share of sources hit by promotion
    suppression: Floats  # and by suppression
    control: Floats  # [n_layers] share of sources the state itself hits, without any head
    added: Floats  # share of sources the head hits and the state itself does not
    promotion_null: Calibration
    suppression_null: Calibration

    def of(self, sign: str) -> tuple[Floats, Calibration]:
        """Score and null of a sign, ``"promotion"`` or ``"suppression"``."""
        if sign == "promotion":
            return self.score, self.promotion_null
        return self.suppression, self.suppression_null


def score_relation(data: xr.Dataset, at: int, k: int) -> RelationScores:
    """Score the relation at a position of the relation axis, for all heads; ranks below k are hits."""
    usable = (read_array(data, "pair_relation") == at) & (read_array(data, "pair_source") >= 0)
    source, n_sources = read_array(data, "pair_source")[usable], int(read_array(data, "n_sources")[at])
    missing = read_array(data, "layer_done") == 0
    promoted, suppressed, control = (
        source_hits(read_array(data, f"{name}_rank")[..., usable], source, n_sources, k)
        for name in (*SIGNS, "control")
    )
    _check_mapped(data, usable, ~missing)
    block = _block(data, at, usable)
    permutations = Permutations(len(block.start), str(read_array(data, "relation_sha256")[at]))
    shares = [_share(hits, missing) for hits in (promoted, suppressed)]
    nulls = [
        _calibrate(data, at, sign, k, block, own=hits[..., block.sources], scores=share, drawn=permutations)
        for sign, hits, share in zip(SIGNS, (promoted, suppressed), shares, strict=True)
    ]
    added = _share(promoted & ~control[:, None, :], missing)
    return RelationScores(shares[0], shares[1], _share(control, missing), added, nulls[0], nulls[1])


def _stored_cells(data: xr.Dataset, at: int, sign: str) -> Bools:
    """[n_layers, n_heads] whose cells of a relation are stored, whatever the score on the pairs at hand.

    Of a whole atlas that is everything at the floor, for a score at any k is at most that at the ceiling. Of
    a part of one, the whole is asked: heads at or above the floor at k = ceiling, on all sources.
    """
    if _WHOLE not in data:
        return np.ones((data.sizes["layer"], data.sizes["head"]), dtype=bool)
    source = read_array(data, _WHOLE)
    mine = (read_array(data, "pair_relation") == at) & (source >= 0)
    ranks, n_sources = read_array(data, f"{sign}_rank")[..., mine], int(source[mine].max()) + 1
    hits = source_hits(ranks, source[mine], n_sources, data.attrs["ceiling"])
    return np.asarray(hits.mean(axis=-1) >= FLOOR)


def _check_mapped(data: xr.Dataset, usable: Bools, done: Bools) -> None:
    """Refuse ranks that a finished layer lacks: a chunk file that is gone reads as "not mapped"."""
    for name in ("promotion_rank", "suppression_rank", "control_rank"):
        if (read_array(data, name)[done][..., usable] == RANK_MISSING).any():
            raise damaged(data, name, "a finished layer has no ranks there")


def _share(hits: Bools, missing: Bools) -> Floats:
    """Mean over sources; NaN in layers that are not mapped."""
    share = hits.mean(axis=-1)
    share[missing] = np.nan
    return np.asarray(share, dtype=np.float64)


# Calibration ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """The calibration block of a relation: n sources and m distinct targets."""

    cells: slice  # of the cell axis: stored sources × targets
    used: Bools  # [n_stored] which of the stored sources these n are; all but in a part of an atlas
    sources: NDArray[np.int32]  # [n] their positions among the relation's usable sources
    start: NDArray[np.int64]  # [n] where a source's accepted targets begin in ``column``
    column: NDArray[np.int64]  # positions among the m targets, source after source
    n_targets: int  # m


def _block(data: xr.Dataset, at: int, usable: Bools) -> Block:
    """The calibration block of the relation at a position, of which these pairs are usable."""
    source_relation = read_array(data, "cell_source_relation")
    target_relation = read_array(data, "cell_target_relation")
    offset = sum(
        int((source_relation == before).sum()) * int((target_relation == before).sum())
        for before in range(at)
    )
    stored = read_array(data, "cell_source_index")[source_relation == at]
    sources = stored[stored >= 0]
    targets = read_array(data, "cell_target_id")[target_relation == at]
    pair_source = read_array(data, "pair_source")[usable]
    keep = np.isin(pair_source, sources)
    start = np.searchsorted(pair_source[keep], sources)
    column = np.searchsorted(targets, read_array(data, "pair_target_id")[usable][keep])
    cells = slice(offset, offset + len(stored) * len(targets))
    return Block(cells, stored >= 0, sources, start, column, len(targets))


def _calibrate(
    data: xr.Dataset,
    at: int,
    sign: str,
    k: int,
    block: Block,
    *,
    own: Bools,
    scores: Floats,
    drawn: Permutations,
) -> Calibration:
    """Calibrate all heads for one relation and one sign: p = 1 and no chance level below the floor.

    ``own`` [n_layers, n_heads, n] says which of the block's sources a head hits, by the ranks of the pairs:
    cells that say something else are damaged, as where their file is gone.
    """
    cells = read_array(data, f"cell_{sign}_rank")[..., block.cells]
    chance, p = np.full(scores.shape, np.nan), np.where(np.isnan(scores), np.nan, 1.0)
    heads = np.argwhere((scores >= FLOOR) & _stored_cells(data, at, sign))
    for group in np.split(heads, range(HEADS_AT_A_TIME, len(heads), HEADS_AT_A_TIME)):
        where = tuple(group.T)
        square = cells[where].reshape(len(group), len(block.used), block.n_targets)
        below = square.compress(block.used, axis=1) < k
        hits = np.logical_or.reduceat(below[:, :, block.column], block.start, axis=2)
        if not np.array_equal(np.diagonal(hits, axis1=1, axis2=2), own[where]):
            raise damaged(data, f"cell_{sign}_rank", "it disagrees with the ranks of the pairs")
        null = fit_null(hits, drawn)
        chance[where], p[where] = null.chance, null.p
    return Calibration(chance, p)


# Stored scores --------------------------------------------------------------------------------------

_ARRAYS = {
    "promotion_score": ("score", "share of sources with an accepted target in the top k"),
    "suppression_score": ("suppression", "share of sources with one in the top k of the negated logits"),
    "added_score": ("added", "share of sources that the head hits and the state itself does not"),
    "promotion_chance": ("promotion_null.chance", "expected score if targets were reassigned to sources"),
    "promotion_p": ("promotion_null.p", "upper tail of the reassignment null"),
    "suppression_chance": ("suppression_null.chance", "expected score if targets were reassigned to sources"),
    "suppression_p": ("suppression_null.p", "upper tail of the reassignment null"),
    "control_score": ("control", "score of the state itself, without any head"),
}
"""Stored array → where it is in :class:`RelationScores`, and its description."""
_CONTROL = "control_score"
STORED = tuple(_ARRAYS)
"""Arrays of scores in the store of an atlas."""


def store_scores(atlas: Atlas, *, single_tokens: bool = True) -> None:
    """Write the scores of an atlas, at its thresholds, into its store; :meth:`Atlas.open` then finds them.

    The arrays are float64 [layer, head, relation] (``control_score``: [layer, relation]), NaN where a layer
    is not mapped or a relation is left out. They depend on k alone: q and what is implemented follow. With
    ``single_tokens``, the scores on sources of one token alone are written, too.
    """
    if atlas.path is None:
        raise ValueError("an atlas in memory has no store to write to")
    names = atlas.relations["relation"].tolist()
    parts = {"": {names.index(name): scores for name, scores in atlas.relation_scores.items()}}
    if single_tokens and not all_single(atlas.dataset):
        with suppress(HeadatlasError):  # whoever asks for this reading is told; the atlas is sound without
            parts[SINGLE_TOKENS] = _single_token_scores(atlas)
    shape = (atlas.n_layers, atlas.n_heads, len(names))
    try:
        _write(atlas.path, atlas, {group: _arrays_of(found, shape) for group, found in parts.items()})
    except OSError as error:
        saved = "scores are not saved, ranks are"
        full = f"{saved}: make room and run the same command again"
        raise unwritten(atlas.path, error, saved, full) from error


def _single_token_scores(atlas: Atlas) -> dict[int, RelationScores]:
    data = single_token_dataset(atlas.dataset, int(atlas.provenance["ceiling"]))
    scored = np.flatnonzero(read_array(data, "left_out") == "").tolist()
    k = atlas.relations["k"].tolist()
    return {at: score_relation(data, at, k[at]) for at in scored}


def _arrays_of(found: dict[int, RelationScores], shape: tuple[int, int, int]) -> dict[str, Floats]:
    """Relations' scores as arrays along the relation axis."""
    arrays = {}
    for name, (attribute, _) in _ARRAYS.items():
        arrays[name] = np.full((shape[0], shape[2]) if name == _CONTROL else shape, np.nan)
        for at, scores in found.items():
            arrays[name][..., at] = attrgetter(attribute)(scores)
    return arrays


def _write(path: Path, atlas: Atlas, parts: dict[str, dict[str, Floats]]) -> None:
    root = zarr.open_group(path, mode="r+")
    provenance = {**atlas.provenance, "thresholds": asdict(atlas.thresholds)}
    root.attrs.update({"provenance": json.dumps(provenance)})
    on_disk = AtlasWriter(path).done()  # not through xarray, which warns of what killed processes leave
    if not np.array_equal(on_disk, atlas.layers_done):
        return  # another process has added layers since; it stores the scores of all when it ends
    for name, arrays in parts.items():
        group = root.require_group(name) if name else root
        # Until the new key is there, readers compute for themselves rather than mix old and new.
        group.attrs.update({"scores_of": ""})
        for array, values in arrays.items():
            put_array(group, array, values, _dims(array), _ARRAYS[array][1])
        key = _key(atlas.thresholds, atlas.layers_done)
        group.attrs.update({"scores_of": key, "scores_sha256": _digest(arrays)})


def stored_scores(
    data: xr.Dataset, thresholds: Thresholds, layers_done: NDArray[np.bool_], names: dict[str, int]
) -> dict[str, RelationScores] | None:
    """The stored scores if they belong to these thresholds and layers and are whole, else None.

    Processes that end at the same time may have written over each other where there are no locks: the arrays
    then are not those of the attributes, which are written in one piece. ``data`` holds the arrays of
    :data:`STORED` with the attributes of the store; ``names`` are scored relations with their positions.
    """
    if data.attrs.get("scores_of") != _key(thresholds, layers_done):
        return None
    if not set(STORED) <= set(data.variables):
        return None
    arrays = {name: read_array(data, name) for name in STORED}
    if data.attrs.get("scores_sha256") != _digest(arrays):
        return None
    return {name: _taken(arrays, at) for name, at in names.items()}


def _taken(arrays: dict[str, Floats], at: int) -> RelationScores:
    """The scores of the relation at a position of the relation axis."""
    mine = {name: values[..., at] for name, values in arrays.items()}
    score, suppression, control, added = (mine[f"{name}_score"] for name in (*SIGNS, "control", "added"))
    nulls = [Calibration(mine[f"{sign}_chance"], mine[f"{sign}_p"]) for sign in SIGNS]
    return RelationScores(score, suppression, control, added, nulls[0], nulls[1])


def _key(thresholds: Thresholds, layers_done: NDArray[np.bool_]) -> str:
    layers = np.flatnonzero(layers_done).tolist()
    k = {"k": thresholds.k, "k_copy": thresholds.k_copy}
    return json.dumps({**k, "layers": layers, "calibration": CALIBRATION, "floor": FLOOR})


def _digest(arrays: dict[str, NDArray[np.float64]]) -> str:
    """Of the values, whatever the order of the arrays; every NaN is the same."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        values = np.where(np.isnan(arrays[name]), np.nan, arrays[name]).astype("<f8")
        digest.update(f"{name} {values.shape} ".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _dims(name: str) -> list[str]:
    return ["layer", "relation"] if name == _CONTROL else ["layer", "head", "relation"]


# Sources of one token alone -------------------------------------------------------------------------


def all_single(data: xr.Dataset) -> bool:
    """Whether every usable source of an atlas's dataset is one token."""
    usable = read_array(data, "pair_source") >= 0
    return bool((read_array(data, "pair_source_tokens")[usable] == 1).all())


def single_token_dataset(data: xr.Dataset, ceiling: int, place: Place | None = None) -> xr.Dataset:
    """An atlas's dataset in which only pairs whose source is one token are usable; nothing is mapped again.

    Scores found at its place (the store) are taken along.
    """
    relation, source = read_array(data, "pair_relation"), read_array(data, "pair_source")
    keep = (source >= 0) & (read_array(data, "pair_source_tokens") == 1)
    new_source = np.full_like(source, -1)
    left_out, target = read_array(data, "left_out").copy(), read_array(data, "pair_target_id")
    n_sources, n_targets = read_array(data, "n_sources").copy(), read_array(data, "n_targets").copy()
    row_relation, cell_index = read_array(data, "cell_source_relation"), read_array(data, "cell_source_index")
    new_index = np.full_like(cell_index, -1)
    for at in range(len(left_out)):
        mine = keep & (relation == at)
        kept = np.unique(source[mine])
        stays = np.isin(cell_index, kept) & (row_relation == at)
        n_sources[at], n_targets[at] = len(kept), len(np.unique(target[mine]))
        left_out[at] = left_out[at] or _why_left_out(n_sources[at], n_targets[at], int(stays.sum()))
        if not left_out[at]:
            new_source[mine] = np.searchsorted(kept, source[mine])
            new_index[stays] = np.searchsorted(kept, cell_index[stays])
    changed = {
        "pair_source": ("pair", new_source),
        _WHOLE: ("pair", read_array(data, _WHOLE) if _WHOLE in data else source),
        "n_sources": ("relation", n_sources),
        "n_targets": ("relation", n_targets),
        "left_out": ("relation", left_out),
        "cell_source_index": ("cell_source", new_index),
    }
    # The scores stored beside the ranks are those of all sources.
    stored = xr.Dataset(attrs={"scores_of": ""}) if place is None else _stored_single_tokens(place)
    return data.assign(changed).assign(stored.variables).assign_attrs({**stored.attrs, "ceiling": ceiling})


def _stored_single_tokens(place: Place) -> xr.Dataset:
    """The scores in the group of a store; without a key where they are not there or cannot be read."""
    try:
        group = zarr.open_group(store_at(place), path=SINGLE_TOKENS, mode="r")
        arrays = {name: (_dims(name), np.asarray(group[name])) for name in STORED}
        return xr.Dataset(arrays, attrs=group.attrs.asdict())
    except failures(KeyError, TypeError):
        return xr.Dataset(attrs={"scores_of": ""})


def _why_left_out(n_sources: int, n_targets: int, n_calibrated: int) -> str:
    if n_sources < MIN_SOURCES:
        return f"{n_sources} sources of one token, at least {MIN_SOURCES} needed"
    if n_targets < MIN_TARGETS:
        return f"{n_targets} distinct targets, at least {MIN_TARGETS} needed"
    return "" if n_calibrated >= MIN_TARGETS else "too few of its sources of one token were calibrated"
