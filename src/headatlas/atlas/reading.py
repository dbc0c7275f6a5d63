"""From the stored ranks of one relation to its scores: hits, control, calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headatlas.atlas.calibrate import BlockTargets, Calibration, CellsDisagreeError, calibrate_relation
from headatlas.atlas.store import damaged, read_array
from headatlas.options import FLOOR
from headatlas.scoring.calibration import Permutations
from headatlas.scoring.scores import RANK_MISSING, source_hits

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
SIGNS = ("promotion", "suppression")


EXAMINED = "{sign}_examined"
"""Array of a dataset made by leaving pairs out: what :func:`examined` says of the whole."""


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
