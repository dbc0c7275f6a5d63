"""The axes of an atlas, and where the engine finds each pair and cell of them.

The *pair* axis lists every (source, accepted target) of every relation, relation by relation. The *cell* axis
lists, relation by relation, every (calibration source, distinct target) in row-major order: the block from
which the reassignment null is computed.

The engine sees each distinct source and each distinct target once: a rank is that of a target in a row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from headatlas.relations.relation import TokenisedRelation
from headatlas.scoring.calibration import seeded

MAX_CALIBRATION_SOURCES = 150
"""Larger relations are calibrated on a seeded random subset of this many sources (scores use all)."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class RelationEntry:
    """One relation on the atlas's relation axis."""

    name: str
    title: str
    category: str
    copying: bool
    sha256: str
    n_pairs: int
    n_sources: int
    n_targets: int
    left_out: str
    dropped: str
    """JSON: reason → sources that could not be used."""
    subcategory: str
    """The category where the relation has none."""


@dataclass(frozen=True)
class RelationBlock:
    """The usable pairs and the calibration block of one relation that is not left out."""

    relation: int  # position on the relation axis
    sources: NDArray[np.int32]  # [n] positions of the calibration sources among the relation's usable sources
    targets: Ints  # [m] distinct token ids accepted by these sources
    rows: Ints  # [n] the calibration sources as rows
    columns: Ints  # [m] the targets as columns
    offset: int  # where the block's n·m cells begin on the cell axis
    own: slice  # slice of ``own_pair``, ``own_row`` and ``own_column`` of the layout
    own_source: NDArray[np.int32]  # [own] position among the relation's usable sources, ascending
    n_sources: int  # number of usable sources

    @property
    def size(self) -> int:
        """Number of cells."""
        return len(self.sources) * len(self.targets)

    @property
    def cells(self) -> slice:
        """The block's part of the cell axis."""
        return slice(self.offset, self.offset + self.size)


@dataclass(frozen=True)
class Layout:
    """Everything about the axes of an atlas that does not depend on the model's weights."""

    relations: tuple[RelationEntry, ...]  # the relation axis, in the order given
    pair_relation: NDArray[np.int32]  # [pair] position on the relation axis
    pair_source: NDArray[np.int32]  # [pair] position among the relation's usable sources; -1 if not usable
    pair_target_id: Ints  # [pair] token id of the target; -1 if not usable
    pair_words: tuple[tuple[str, str], ...]  # [pair] (source, target) as written
    source_ids: tuple[tuple[tuple[int, ...], ...], ...]  # per relation, the token ids of each usable source
    sources: tuple[tuple[int, ...], ...]
    """Distinct sources as token ids; row i of all states belongs to ``sources[i]``."""
    own_row: Ints  # [P] the source of each usable pair as a row
    blocks: tuple[RelationBlock, ...]  # the relations that are not left out

    @cached_property
    def own_pair(self) -> Ints:
        """[P] position of each usable pair on the pair axis, ascending."""
        return np.flatnonzero(self.pair_source >= 0)

    @cached_property
    def targets(self) -> Ints:
        """[T] token ids of the distinct targets, ascending; column i is ``targets[i]``."""
        return np.unique(self.pair_target_id[self.own_pair])

    @cached_property
    def own_column(self) -> Ints:
        """[P] the target of each usable pair as a column."""
        return np.searchsorted(self.targets, self.pair_target_id[self.own_pair])

    @cached_property
    def n_cells(self) -> int:
        return sum(block.size for block in self.blocks)

    @property
    def n_pairs(self) -> int:
        return len(self.pair_relation)

    @property
    def included(self) -> tuple[int, ...]:
        """Positions of the relations that are not left out."""
        return tuple(block.relation for block in self.blocks)

    @cached_property
    def pair_source_length(self) -> NDArray[np.int32]:
        """[pair] number of tokens of the source; 0 if the pair is not usable."""
        lengths = np.zeros(self.n_pairs, dtype=np.int32)
        lengths[self.own_pair] = [len(self.sources[row]) for row in self.own_row]
        return lengths


def build_layout(tokenised: Sequence[TokenisedRelation]) -> Layout:
    """Lay out the axes for relations as one tokenizer sees them."""
    relation_of, source_of, target_of, words = _pairs(tokenised)
    source_ids = tuple(
        () if item.left_out else tuple(pair.source_ids for pair in item.pairs) for item in tokenised
    )
    row_of: dict[tuple[int, ...], int] = {}
    for ids in (ids for members in source_ids for ids in members):
        row_of.setdefault(ids, len(row_of))
    own_pair = np.flatnonzero(source_of >= 0)
    own_relation, own_source = relation_of[own_pair], source_of[own_pair]
    targets = np.unique(target_of[own_pair])
    blocks: list[RelationBlock] = []
    for position, item in enumerate(tokenised):
        if item.left_out:
            continue
        chosen = calibration_sources(len(item.pairs), item.relation.sha256)
        accepted = np.unique([t for at in chosen for t in item.pairs[at].target_ids]).astype(np.int64)
        start, stop = np.searchsorted(own_relation, [position, position + 1])
        block = RelationBlock(
            relation=position,
            sources=chosen,
            targets=accepted,
            rows=np.array([row_of[source_ids[position][at]] for at in chosen], dtype=np.int64),
            columns=np.searchsorted(targets, accepted),
            offset=blocks[-1].cells.stop if blocks else 0,
            own=slice(int(start), int(stop)),
            own_source=own_source[start:stop],
            n_sources=len(item.pairs),
        )
        blocks.append(block)
    rows = (row_of[source_ids[r][s]] for r, s in zip(own_relation, own_source, strict=True))
    return Layout(
        relations=tuple(_entry(item) for item in tokenised),
        pair_relation=relation_of,
        pair_source=source_of,
        pair_target_id=target_of,
        pair_words=words,
        source_ids=source_ids,
        sources=tuple(row_of),
        own_row=np.fromiter(rows, dtype=np.int64, count=len(own_pair)),
        blocks=tuple(blocks),
    )


def layouts_together(layouts: Sequence[Layout]) -> Layout:
    """The axes of several layouts one after another; each keeps its rows, also of the same source.

    Relations, pairs, cells and rows of a layout follow those of the one before, in their own order. Targets
    are the distinct ones of all.
    """
    targets = np.unique(np.concatenate([each.targets for each in layouts]))
    blocks: list[RelationBlock] = []
    own_row, pair_relation = [], []
    n_relations = n_rows = n_cells = n_own = 0
    for each in layouts:
        own_row.append(each.own_row + n_rows)
        pair_relation.append(each.pair_relation + n_relations)
        blocks += [
            replace(
                block,
                relation=block.relation + n_relations,
                rows=block.rows + n_rows,
                columns=np.searchsorted(targets, block.targets),
                offset=block.offset + n_cells,
                own=slice(block.own.start + n_own, block.own.stop + n_own),
            )
            for block in each.blocks
        ]
        n_relations, n_rows = n_relations + len(each.relations), n_rows + len(each.sources)
        n_cells, n_own = n_cells + each.n_cells, n_own + len(each.own_row)
    chained = {
        name: tuple(item for each in layouts for item in getattr(each, name))
        for name in ("relations", "pair_words", "source_ids", "sources")
    }
    return Layout(
        **chained,
        pair_relation=np.concatenate(pair_relation).astype(np.int32),
        pair_source=np.concatenate([each.pair_source for each in layouts]),
        pair_target_id=np.concatenate([each.pair_target_id for each in layouts]),
        own_row=np.concatenate(own_row),
        blocks=tuple(blocks),
    )


def _pairs(
    tokenised: Sequence[TokenisedRelation],
) -> tuple[NDArray[np.int32], NDArray[np.int32], Ints, tuple[tuple[str, str], ...]]:
    """The pair axis: relation, source and target id of each pair, and its words."""
    relation_of, source_of, target_of, words = [], [], [], []
    for position, item in enumerate(tokenised):
        usable = {} if item.left_out else {pair.index: at for at, pair in enumerate(item.pairs)}
        for index, pair in enumerate(item.relation.pairs):
            at = usable.get(index, -1)
            accepted: dict[str, int] = {}
            if at >= 0:
                accepted = dict(zip(item.pairs[at].target_words, item.pairs[at].target_ids, strict=True))
            for target in pair.targets:
                relation_of.append(position)
                source_of.append(at if target in accepted else -1)
                target_of.append(accepted.get(target, -1))
                words.append((pair.source, target))
    return (
        np.array(relation_of, dtype=np.int32),
        np.array(source_of, dtype=np.int32),
        np.array(target_of, dtype=np.int64),
        tuple(words),
    )


def _entry(item: TokenisedRelation) -> RelationEntry:
    relation = item.relation
    return RelationEntry(
        name=relation.name,
        title=relation.title,
        category=relation.category,
        copying=relation.copying,
        sha256=item.sha256,
        n_pairs=len(relation.pairs),
        n_sources=len(item.pairs),
        n_targets=len({t for pair in item.pairs for t in pair.target_ids}),
        left_out=item.left_out or "",
        dropped=json.dumps(
            {reason: list(words) for reason, words in item.dropped.items()}, ensure_ascii=False
        ),
        subcategory=relation.subcategory or relation.category,
    )


def calibration_sources(n: int, seed_text: str) -> NDArray[np.int32]:
    """The sources a relation of n is calibrated on: all, or a seeded subset in ascending order."""
    if n <= MAX_CALIBRATION_SOURCES:
        return np.arange(n, dtype=np.int32)
    chosen = seeded(seed_text).choice(n, MAX_CALIBRATION_SOURCES, replace=False)
    return np.sort(chosen).astype(np.int32)
