"""Relations and layers made to measure: several targets, pairs that cannot be used, relations left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headatlas.atlas import Atlas
from headatlas.atlas.layout import Layout, build_layout
from headatlas.atlas.store import CELL_BEYOND, AtlasWriter, LayerRanks, create_store
from headatlas.relations.relation import Pair, Relation, TokenisedPair, TokenisedRelation
from headatlas.scoring.scores import RANK_BEYOND, RANK_UNUSABLE


def tokenised(
    name: str,
    targets: Sequence[Sequence[int]],
    *,
    category: str = "User",
    copying: bool = False,
    left_out: str | None = None,
    first_id: int = 1000,
) -> TokenisedRelation:
    """A relation whose source i accepts the token ids ``targets[i]``; a source without any is not usable, and
    an id below 0 is a target that this tokenizer cannot use."""
    pairs = tuple(
        Pair(f"{name}{i}", tuple(f"t{t}" for t in each) or ("?",)) for i, each in enumerate(targets)
    )
    usable = []
    for i, each in enumerate(targets):
        good = tuple(t for t in each if t >= 0)
        if good:
            usable.append(TokenisedPair(i, (first_id + i,), good, tuple(f"t{t}" for t in good)))
    relation = Relation(name, name.replace("_", " "), category, pairs, copying=copying)
    dropped = {
        "no target is a single token": tuple(p.source for p, t in zip(pairs, targets, strict=True) if not t)
    }
    return TokenisedRelation(relation, tuple(usable), dropped, left_out)


def provenance(**changes: Any) -> dict[str, Any]:
    return {
        "model": {"name": "Made"},
        "lens": {"name": "neutral", "prefixes": []},
        "ceiling": 32,
        "target_policy": "single",
        "thresholds": {},
        "mask": True,
        **changes,
    }


def layer_from_squares(layout: Layout, squares: NDArray[np.integer]) -> LayerRanks:
    """Ranks of heads that are given the rank of every token id for every source row, [2, heads, rows, ids]:
    by promotion, then by suppression. Row i is source id 1000 + i; 32 and above are beyond the ceiling."""
    heads = squares.shape[1]
    ranks = np.full((2, heads, layout.n_pairs), RANK_UNUSABLE, dtype=np.int16)
    cells = np.full((2, heads, layout.n_cells), CELL_BEYOND, dtype=np.uint8)
    for at in np.flatnonzero(layout.pair_source >= 0):
        row = layout.source_ids[layout.pair_relation[at]][layout.pair_source[at]][0] - 1000
        rank = squares[:, :, row, layout.pair_target_id[at]]
        ranks[:, :, at] = np.where(rank < 32, rank, RANK_BEYOND)
    for block in layout.blocks:
        rows = [layout.source_ids[block.relation][s][0] - 1000 for s in block.sources]
        square = squares[:, :, rows][..., block.targets]
        cells[:, :, block.cells] = np.where(square < 32, square, CELL_BEYOND).reshape(2, heads, -1)
    control = np.where(layout.pair_source >= 0, RANK_BEYOND, RANK_UNUSABLE).astype(np.int16)
    return LayerRanks(ranks[0], ranks[1], control, cells[0], cells[1])


def write_atlas(
    path: Path,
    relations: Sequence[TokenisedRelation],
    layers: dict[int, LayerRanks],
    *,
    n_layers: int = 1,
    n_heads: int = 1,
    **changes: Any,
) -> Atlas:
    create_store(
        path, build_layout(relations), n_layers=n_layers, n_heads=n_heads, attributes=provenance(**changes)
    )
    writer = AtlasWriter(path)
    for layer, ranks in layers.items():
        writer.write(layer, ranks)
    return Atlas.open(path)


def assert_same_arrays(left: Atlas, right: Atlas) -> None:
    assert set(left.dataset.variables) == set(right.dataset.variables)
    for name in right.dataset.variables:
        np.testing.assert_array_equal(
            left.dataset[name].values, right.dataset[name].values, err_msg=str(name), strict=True
        )
