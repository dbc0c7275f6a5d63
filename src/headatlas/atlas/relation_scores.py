"""The numbers of one relation: hits, control and calibration, from ranks or as stored beside them.

Stored scores carry a key that says for which k and layers they hold, so an atlas opens without computing them
again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from headatlas.atlas.store import AtlasWriter, damaged, read_array
from headatlas.errors import HeadatlasError
from headatlas.options import FLOOR, Thresholds
from headatlas.scoring.calibration import CALIBRATION, Permutations, fit_null
from headatlas.scoring.scores import RANK_MISSING, source_hits

if TYPE_CHECKING:
    from headatlas.atlas.atlas import Atlas

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
SIGNS = ("promotion", "suppression")
HEADS_AT_A_TIME = 256
"""Heads calibrated together: more need more memory and are hardly faster."""
EXAMINED = "{sign}_examined"
"""Array of a dataset made by leaving pairs out: what :func:`examined` says of the whole."""


@dataclass(frozen=True)
class Calibration:
    """Arrays [n_layers, n_heads] of one relation and sign: chance level and p; NaN where not mapped."""

    chance: Floats
    p: Floats


@dataclass(frozen=True)
class RelationScores:
    """Everything read from the ranks of one relation, arrays [n_layers, n_heads] unless said.

    Attributes:
        score, suppression: Share of sources hit, by promotion and by suppression.
        control: [n_layers] share of sources the state itself hits, without any head.
        added: Share of sources the head hits and the state itself does not.
        promotion_null, suppression_null: Chance level and p under the reassignment null.
    """

    score: Floats
    suppression: Floats
    control: Floats
    added: Floats
    promotion_null: Calibration
    suppression_null: Calibration


def score_relation(data: xr.Dataset, at: int, k: int) -> RelationScores:
    """Score one relation for all heads.

    Args:
        data: The atlas's dataset.
        at: The relation's position on the relation axis.
        k: Ranks below k are hits.
    """
    usable = (read_array(data, "pair_relation") == at) & (read_array(data, "pair_source") >= 0)
    source = read_array(data, "pair_source")[usable]
    n_sources = int(read_array(data, "n_sources")[at])
    missing = read_array(data, "layer_done") == 0
    hits = {
        sign: source_hits(read_array(data, f"{sign}_rank")[..., usable], source, n_sources, k)
        for sign in SIGNS
    }
    control = source_hits(read_array(data, "control_rank")[:, usable], source, n_sources, k)
    _check_mapped(data, usable, ~missing)
    scores = {sign: _share(hits[sign], missing) for sign in SIGNS}
    accepted, chosen, cells = _block(data, at, usable)
    permutations = Permutations(len(accepted.start), str(read_array(data, "relation_sha256")[at]))
    nulls = {}
    for sign in SIGNS:
        try:
            nulls[sign] = calibrate_relation(
                read_array(data, f"cell_{sign}_rank")[..., cells],
                accepted,
                scores[sign],
                own=hits[sign][..., chosen],
                k=k,
                examined=(scores[sign] >= FLOOR) & _stored_cells(data, at, sign),
                permutations=permutations,
            )
        except CellsDisagreeError:
            raise damaged(data, f"cell_{sign}_rank", "it disagrees with the ranks of the pairs") from None
    return RelationScores(
        score=scores["promotion"],
        suppression=scores["suppression"],
        control=_share(control, missing),
        added=_share(hits["promotion"] & ~control[:, None, :], missing),
        promotion_null=nulls["promotion"],
        suppression_null=nulls["suppression"],
    )


def _stored_cells(data: xr.Dataset, at: int, sign: str) -> Bools:
    """[n_layers, n_heads] whose cells of a relation are stored, whatever the score on the pairs at hand.

    Of a whole atlas that is everything at the floor, for a score at any k is at most that at the ceiling. Of
    a part of one, :func:`examined` was asked of the whole.
    """
    name = EXAMINED.format(sign=sign)
    if name in data:
        return np.asarray(read_array(data, name)[..., at])
    return np.ones((data.sizes["layer"], data.sizes["head"]), dtype=bool)


def examined(data: xr.Dataset, sign: str, ceiling: int) -> Bools:
    """Whose calibration cells were stored: those at or above the floor at k = ceiling, on all sources.

    Args:
        data: The atlas's dataset, or one made of it by leaving pairs out.
        sign: ``"promotion"`` or ``"suppression"``.
        ceiling: The atlas's ceiling.

    Returns:
        [n_layers, n_heads, n_relations] bool.
    """
    if EXAMINED.format(sign=sign) in data:
        return np.asarray(read_array(data, EXAMINED.format(sign=sign)))
    ranks, source = read_array(data, f"{sign}_rank"), read_array(data, "pair_source")
    relation, n_sources = read_array(data, "pair_relation"), read_array(data, "n_sources").tolist()
    out = np.zeros((*ranks.shape[:2], len(n_sources)), dtype=bool)
    for at in np.flatnonzero(read_array(data, "left_out") == ""):
        mine = (relation == at) & (source >= 0)
        hits = source_hits(ranks[..., mine], source[mine], n_sources[at], ceiling)
        out[..., at] = hits.mean(axis=-1) >= FLOOR
    return out


def _check_mapped(data: xr.Dataset, usable: Bools, done: Bools) -> None:
    """Refuse ranks that a finished layer lacks: a chunk file that is gone reads as "not mapped"."""
    for name in ("promotion_rank", "suppression_rank", "control_rank"):
        gone = (read_array(data, name)[done][..., usable] == RANK_MISSING).any()
        if gone:
            raise damaged(data, name, "a finished layer has no ranks there")


def _share(hits: Bools, missing: Bools) -> Floats:
    """Mean over sources; NaN in layers that are not mapped."""
    share = hits.mean(axis=-1)
    share[missing] = np.nan
    return np.asarray(share, dtype=np.float64)


def _block(data: xr.Dataset, at: int, usable: Bools) -> tuple[BlockTargets, NDArray[np.int32], slice]:
    """The calibration block of a relation: accepted targets, its sources, its slice of the cell axis."""
    source_relation = read_array(data, "cell_source_relation")
    target_relation = read_array(data, "cell_target_relation")
    offset = sum(
        int((source_relation == before).sum()) * int((target_relation == before).sum())
        for before in range(at)
    )
    chosen = read_array(data, "cell_source_index")[source_relation == at]
    targets = read_array(data, "cell_target_id")[target_relation == at]
    pair_source = read_array(data, "pair_source")[usable]
    keep = np.isin(pair_source, chosen)
    start = np.searchsorted(pair_source[keep], chosen)
    column = np.searchsorted(targets, read_array(data, "pair_target_id")[usable][keep])
    return (
        BlockTargets(start, column, len(targets)),
        chosen,
        slice(offset, offset + len(chosen) * len(targets)),
    )


# Calibration ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BlockTargets:
    """Which targets of a calibration block each of its sources accepts.

    Attributes:
        start: [n] where a source's accepted targets begin in ``column``.
        column: Positions among the block's m targets, source after source.
        n_targets: m.
    """

    start: NDArray[np.int64]
    column: NDArray[np.int64]
    n_targets: int


class CellsDisagreeError(Exception):
    """The calibration cells do not hold the hits that the ranks of the pairs say."""


def calibrate_relation(
    cells: NDArray[np.uint8],
    accepted: BlockTargets,
    scores: Floats,
    *,
    own: NDArray[np.bool_],
    k: int,
    examined: NDArray[np.bool_],
    permutations: Permutations,
) -> Calibration:
    """Calibrate all heads for one relation and one sign.

    Args:
        cells: [n_layers, n_heads, n·m] stored ranks of the block (:data:`CELL_BEYOND` from the ceiling on).
        accepted: The block's accepted targets.
        scores: [n_layers, n_heads] relation scores at this k; NaN where not mapped.
        own: [n_layers, n_heads, n] which of the block's sources the head hits, by the ranks of the pairs.
        k: Ranks below k are hits.
        examined: [n_layers, n_heads] whose null is fitted. The others get p = 1 and no chance level; their
            cells are not looked at.
        permutations: The relation's permutations, of n sources.

    Raises:
        CellsDisagreeError: The cells of a head give other hits than ``own``, as where their file is gone.
    """
    n, m = len(accepted.start), accepted.n_targets
    chance = np.full(scores.shape, np.nan)
    p = np.where(np.isnan(scores), np.nan, 1.0)
    heads = np.argwhere(examined)
    for group in np.split(heads, range(HEADS_AT_A_TIME, len(heads), HEADS_AT_A_TIME)):
        where = tuple(group.T)
        below = cells[where].reshape(len(group), n, m) < k
        hits = np.logical_or.reduceat(below[:, :, accepted.column], accepted.start, axis=2)
        if not np.array_equal(np.diagonal(hits, axis1=1, axis2=2), own[where]):
            raise CellsDisagreeError
        null = fit_null(hits, permutations)
        chance[where], p[where] = null.chance, null.p
    return Calibration(chance, p)


# Stored scores --------------------------------------------------------------------------------------

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
