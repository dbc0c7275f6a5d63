"""Numbers and words of the page in little room: arrays as compressed text, which the page unpacks.

A *section* is a set of named arrays, one after the other, each byte plane by byte plane (all lowest bytes,
then all second ones, …; planes of high bytes are nearly constant and compress to nothing), as gzip in base64.
``js/unpack.mjs`` reads it. Ranks are sparse: of each head and relation only pairs below the ceiling.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headatlas.atlas import Atlas
from headatlas.atlas.relation_scores import SIGNS
from headatlas.atlas.salience import stored_salience
from headatlas.atlas.store import read_array
from headatlas.showing import safe_values

MISSING = -(1 << 31)
"""A fixed-point number that is not there."""
TOKENLESS = (1 << 32) - 1
"""A place for a token that holds none."""
LARGE = 1200
"""Pages of more heads than this list fewer salient operations of each."""
FULL, SHORT = (30, 5), (15, 3)
"""Source tokens and directions a head, on a page of few heads and on one of many."""
N_VALUES = 24
"""Singular values of a head, the largest."""

_TYPES = {"u1": np.uint8, "u2": np.uint16, "u4": np.uint32, "i4": np.int32, "f8": np.float64}
_LISTED = {"pair": "u2", "rank": "u1"}
"""Of every rank below the ceiling: its pair and itself."""
_EVIDENCE_NUMBERS = ("context", "context_suppression", "attention", "loss_alone", "loss_alone_q")

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Arrays = dict[str, tuple[str, NDArray[Any]]]
"""Name → type (:data:`_TYPES`) and values."""


def pack(arrays: Arrays, words: Any = None) -> dict[str, Any]:
    """A section: ``arrays`` lists name, type and length of each; ``bytes`` holds them.

    ``words`` are JSON values that travel with them, as the array ``json``; texts in them are made safe to
    show. A value that does not fit its type is an OverflowError.
    """
    if words is not None:
        text = json.dumps(safe_values(words), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
        arrays = {**arrays, "json": ("u1", np.frombuffer(text.encode("ascii"), dtype=np.uint8))}
    listed, parts = [], []
    for name, (kind, values) in arrays.items():
        flat = np.ascontiguousarray(values).ravel()
        cast = flat.astype(_TYPES[kind])
        if kind != "f8" and not np.array_equal(cast, flat):
            raise OverflowError(f"{name} does not fit {kind}")
        little = np.ascontiguousarray(cast, dtype=cast.dtype.newbyteorder("<"))
        parts.append(little.view(np.uint8).reshape(-1, cast.itemsize).T.tobytes())
        listed.append([name, kind, len(flat)])
    # Without a time of writing: the same atlas gives the same bytes.
    squeezed = gzip.compress(b"".join(parts), compresslevel=9, mtime=0)
    return {"arrays": listed, "bytes": base64.b64encode(squeezed).decode("ascii")}


def fixed(values: NDArray[Any], digits: int) -> tuple[str, NDArray[Any]]:
    """Numbers as whole multiples of 10^-digits; NaN as :data:`MISSING`."""
    scaled = np.rint(np.asarray(values, dtype=np.float64) * 10**digits)
    return "i4", np.where(np.isfinite(scaled), scaled, MISSING).astype(np.int64)


# Ranks ----------------------------------------------------------------------------------------------


def rank_section(atlas: Atlas, calibrated: Sequence[Atlas]) -> dict[str, Any]:
    """Ranks of all heads, and p at the k of each reading in ``calibrated``.

    Relations follow each other in the atlas's order, those that were left out are not there. A *row* is a
    head and a relation with any rank below the ceiling: ``rows`` [relation] counts them, ``row_cell`` is the
    step from the row before, ``row_promotion`` and ``row_suppression`` count the ranks; the ranks are in
    ``promotion_pair`` (step from the pair before, among the relation's usable pairs) and ``promotion_rank``,
    the same for suppression. ``pairs`` [relation] counts usable pairs, ``pair_source`` is the position of the
    source of each. ``control`` [relation, layer] counts ranks of the state itself, which ``control_pair`` and
    ``control_rank`` hold. ``p/…`` holds p where it is below 1: for each reading and sign its row (step) and
    value, of copying relations and of the others apart.
    """
    found = [_relation_ranks(atlas, at) for at in atlas.included.index]
    shapes: dict[str, str] = {
        **{"rows": "u4", "row_cell": "u4", "pairs": "u4", "pair_source": "u2"},
        **{f"row_{sign}": "u4" for sign in SIGNS},
        **{f"{name}_{part}": kind for name in (*SIGNS, "control") for part, kind in _LISTED.items()},
        "control": "u4",
    }
    arrays: Arrays = {
        name: (kind, np.concatenate([np.zeros(0, np.int64), *(np.atleast_1d(each[name]) for each in found)]))
        for name, kind in shapes.items()
    }
    cells = [np.cumsum(each["row_cell"]) for each in found]
    arrays |= _p_values(atlas, calibrated, cells)
    if atlas.evidence:
        arrays |= _evidence(atlas, cells)
    return pack(arrays)


def _relation_ranks(atlas: Atlas, at: int) -> dict[str, Ints]:
    data = atlas.dataset
    usable = np.flatnonzero(
        (read_array(data, "pair_relation") == at) & (read_array(data, "pair_source") >= 0)
    )
    done = atlas.layers_done
    out: dict[str, Ints] = {
        "pairs": np.array(len(usable)),
        "pair_source": read_array(data, "pair_source")[usable].astype(np.int64),
    }
    counts = {}
    for sign in SIGNS:
        ranks = read_array(data, f"{sign}_rank")[..., usable].reshape(-1, len(usable))
        cell, pair = np.nonzero((ranks >= 0) & done.repeat(atlas.n_heads)[:, None])
        counts[sign] = np.bincount(cell, minlength=len(ranks))
        out |= {f"{sign}_pair": _steps(pair, cell), f"{sign}_rank": ranks[cell, pair].astype(np.int64)}
    listed = np.flatnonzero(counts["promotion"] + counts["suppression"])
    out |= {"rows": np.array(len(listed)), "row_cell": np.diff(listed, prepend=0)}
    out |= {f"row_{sign}": counts[sign][listed] for sign in SIGNS}
    control = read_array(data, "control_rank")[:, usable]
    layer, pair = np.nonzero((control >= 0) & done[:, None])
    out["control"] = np.bincount(layer, minlength=atlas.n_layers)
    out |= {"control_pair": _steps(pair, layer), "control_rank": control[layer, pair].astype(np.int64)}
    return out


def _steps(values: Ints, group: Ints) -> Ints:
    """Each value less the one before it, starting anew in each group."""
    steps = np.diff(values, prepend=0)
    starts = np.diff(group, prepend=-1) != 0
    steps[starts] = values[starts]
    return steps


def _p_values(atlas: Atlas, calibrated: Sequence[Atlas], cells: Sequence[Ints]) -> Arrays:
    arrays: Arrays = {}
    copying = atlas.included["is_copying"].tolist()
    for reading in calibrated:
        for kind, k in (("plain", reading.thresholds.k), ("copying", reading.thresholds.k_copy)):
            for sign in SIGNS:
                rows, values, first = [], [], 0
                for name, mine, own in zip(atlas.included["relation"], cells, copying, strict=True):
                    if own == (kind == "copying"):
                        p = reading.relation_scores[name].of(sign)[1].p.ravel()[mine]
                        rows.append(first + np.flatnonzero(p < 1))
                        values.append(p[p < 1])
                    first += len(mine)
                joined = np.concatenate(rows) if rows else np.zeros(0, np.int64)
                name = f"p/{kind}/{k}/{sign}"
                arrays[f"{name}/row"] = "u4", np.diff(joined, prepend=0)
                arrays[f"{name}/value"] = "f8", np.concatenate(values) if values else np.zeros(0)
    return arrays


def _evidence(atlas: Atlas, cells: Sequence[Ints]) -> Arrays:
    """Evidence of each row: bits as :func:`confirmed_bits`, and some of its numbers."""
    table = atlas.table().set_index(["relation", "layer", "head"])
    parts = [
        table.loc[name].reindex([divmod(int(cell), atlas.n_heads) for cell in mine])
        for name, mine in zip(atlas.included["relation"], cells, strict=True)
        if len(mine)
    ]
    arrays: Arrays = {"confirmed": ("u1", np.concatenate([confirmed_bits(part) for part in parts]))}
    for name in _EVIDENCE_NUMBERS:
        values = [part[name].to_numpy(dtype=np.float64) for part in parts]
        arrays[f"evidence/{name}"] = fixed(np.concatenate(values), 4)
    return arrays


def confirmed_bits(rows: Any) -> Ints:
    """For each row 1 if asked with context, plus 2 if by ablation; plus 4 and 8 where confirmed."""
    bits = np.zeros(len(rows), dtype=np.int64)
    for asked, yes, name in ((1, 4, "confirmed_with_context"), (2, 8, "confirmed_by_ablation")):
        bits += yes * rows[name].eq(True).fillna(False).to_numpy() + asked * rows[name].notna().to_numpy()
    return bits


def word_section(atlas: Atlas) -> dict[str, Any]:
    """The words of usable pairs: of each relation its sources, and the target of each pair."""
    data = atlas.dataset
    relation, source = read_array(data, "pair_relation"), read_array(data, "pair_source")
    sources, targets = read_array(data, "source"), read_array(data, "target")
    words = []
    for at in atlas.included.index:
        usable = np.flatnonzero((relation == at) & (source >= 0))
        first = usable[np.diff(source[usable], prepend=-1) != 0]
        words.append([sources[first].tolist(), targets[usable].tolist()])
    return pack({}, words)


# Heads ----------------------------------------------------------------------------------------------


def head_section(atlas: Atlas) -> dict[str, Any]:
    """Measurements of heads as wholes: behaviours, spectra, shares explained, labels.

    Arrays are [layer, head] or [behaviour, layer, head]; fixed-point numbers have four digits.
    """
    arrays: Arrays = {}
    looks = atlas.behaviours()
    names = list(dict.fromkeys(looks["behaviour"]))
    if names:
        grids = looks.set_index(["behaviour", "layer", "head"]).astype({"called": float}).to_xarray()
        grids = grids.reindex(behaviour=names, layer=range(atlas.n_layers), head=range(atlas.n_heads))
        grids["q"] = np.ceil(grids["q"] * 1e4) / 1e4  # upwards, so that none looks surer than it is
        for column in ("value", "expected", "low", "high", "q"):
            arrays[f"behaviour/{column}"] = fixed(grids[column].values, 4)
        arrays["behaviour/called"] = "u1", grids["called"].fillna(0.0).values
    written = stored_salience(atlas.place)
    if written is not None:
        for name in ("effective_rank", "copying", "norm_share", "explained"):
            arrays[name] = fixed(written.data[name].values, 4)
    labels = atlas.labels()
    rows = [
        [int(row["layer"]) * atlas.n_heads + int(row["head"]), row["label"], row["support"]]
        + [_number(row[name]) for name in ("score", "chance", "se")]
        + [row["author"], row["kind"]]
        for row in labels.to_dict("records")
    ]
    captions = {
        "behaviour": looks.attrs.get("caption", ""),
        "salience": written.caption() if written is not None else "",
        "labels": labels.attrs.get("caption", "") if rows else "",
    }
    return pack(arrays, {"behaviours": names, "labels": rows, "captions": captions})


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def salience_section(atlas: Atlas) -> dict[str, Any] | None:
    """Salient operations and largest directions of every head; None where never computed.

    ``source`` [head, source], ``promoted`` and ``suppressed`` [head, source, place], ``reads`` and
    ``writes`` [head, direction, end, place] are places among the texts of ``json``, :data:`TOKENLESS` where
    there is none.
    """
    found = stored_salience(atlas.place)
    if found is None:
        return None
    n_sources, n_directions = FULL if atlas.n_layers * atlas.n_heads <= LARGE else SHORT
    data = found.data.isel(order=slice(n_sources), direction=slice(n_directions))
    ids = {name: data[name].values for name in ("source", "promoted", "suppressed", "reads", "writes")}
    named = np.unique(np.concatenate([each.ravel() for each in ids.values()]))
    named = named[named >= 0]
    arrays: Arrays = {
        name: ("u4", np.where(each >= 0, np.searchsorted(named, each), TOKENLESS))
        for name, each in ids.items()
    }
    values = data["singular_values"].values[..., :N_VALUES]
    arrays |= {"gain": fixed(data["gain"].values, 3), "singular_values": fixed(values, 3)}
    sizes = {name: list(each.shape[2:]) for name, each in (*ids.items(), ("singular_values", values))}
    texts = found.data["text"].values[np.searchsorted(found.data["token"].values, named)]
    # Of each head the relations that explain it, and the fields that its other sources come from.
    explained: list[list[Any]] = [[]] * (atlas.n_layers * atlas.n_heads)
    for row in found.explained().to_dict("records"):
        fields = [each[:2] for each in row["rest"]]
        explained[row["layer"] * atlas.n_heads + row["head"]] = [row["relations"], fields]
    return pack(arrays, {"texts": [str(text) for text in texts], "sizes": sizes, "explained": explained})
