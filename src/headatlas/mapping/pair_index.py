"""What the engine is asked: which rows, which target columns, which pairs and calibration blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headatlas.atlas.layout import Layout

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """One relation's calibration block in the engine's coordinates.

    Attributes:
        rows: [n] rows of the source stack.
        columns: [m] positions among the distinct targets.
        cells: Its slice of the cell axis.
    """

    rows: Ints
    columns: Ints
    cells: slice


@dataclass(frozen=True)
class RelationPairs:
    """The usable pairs of one relation.

    Attributes:
        own: Slice of the engine's pair arrays.
        source: [pairs] position among the relation's usable sources, ascending.
        n_sources: Number of usable sources.
        block: Its calibration block.
    """

    own: slice
    source: Ints
    n_sources: int
    block: Block


@dataclass(frozen=True)
class PairIndex:
    """All questions about one layer; the same for every layer of a map.

    Attributes:
        sources: Distinct token-id tuples; row i of every state stack belongs to ``sources[i]``.
        targets: [T] distinct targets as columns of the competing vocabulary.
        own_row: [P] source row of each usable pair.
        own_column: [P] target (position in ``targets``) of each usable pair.
        own_pair: [P] position of each usable pair on the atlas's pair axis.
        relations: The usable pairs, relation by relation.
        n_pairs, n_cells: Lengths of the atlas's pair and cell axes.
    """

    sources: tuple[tuple[int, ...], ...]
    targets: Ints
    own_row: Ints
    own_column: Ints
    own_pair: Ints
    relations: tuple[RelationPairs, ...]
    n_pairs: int
    n_cells: int


def index_pairs(layout: Layout, competing: NDArray[np.bool_]) -> PairIndex:
    """Turn an atlas layout into engine pair_index.

    Args:
        layout: The atlas's axes.
        competing: [vocab] tokens that compete; usable targets all do.
    """
    column_of = np.cumsum(competing) - 1
    row_of: dict[tuple[int, ...], int] = {}
    for members in layout.source_ids:
        for ids in members:
            row_of.setdefault(ids, len(row_of))
    usable = np.flatnonzero(layout.pair_source >= 0)
    targets, own_column = np.unique(column_of[layout.pair_target_id[usable]], return_inverse=True)
    relation, source = layout.pair_relation[usable], layout.pair_source[usable]
    own_row = np.array(
        [row_of[layout.source_ids[r][s]] for r, s in zip(relation, source, strict=True)], dtype=np.int64
    )
    relations = []
    for block in layout.blocks:
        start, stop = np.searchsorted(relation, [block.relation, block.relation + 1])
        members = layout.source_ids[block.relation]
        relations.append(
            RelationPairs(
                own=slice(int(start), int(stop)),
                source=source[start:stop].astype(np.int64),
                n_sources=len(members),
                block=Block(
                    rows=np.array([row_of[members[int(s)]] for s in block.sources], dtype=np.int64),
                    columns=np.searchsorted(targets, column_of[block.targets]),
                    cells=block.slice,
                ),
            )
        )
    return PairIndex(
        sources=tuple(row_of),
        targets=targets.astype(np.int64),
        own_row=own_row,
        own_column=own_column.astype(np.int64),
        own_pair=usable.astype(np.int64),
        relations=tuple(relations),
        n_pairs=layout.n_pairs,
        n_cells=layout.n_cells,
    )
