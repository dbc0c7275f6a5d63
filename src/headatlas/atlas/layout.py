"""Which pairs and which calibration cells an atlas holds, and in what order.

The *pair* axis lists every (source, accepted target) of every relation, relation by relation. The *cell* axis
lists, relation by relation, every (calibration source, distinct target) in row-major order: the block from
which the reassignment null is computed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from headatlas.relations.relation import Relation, TokenisedRelation

MAX_CALIBRATION_SOURCES = 150
"""Larger relations are calibrated on a seeded random subset of this many sources (scores use all)."""


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
class CellBlock:
    """The calibration block of one relation.

    Attributes:
        relation: Position on the relation axis.
        sources: [n] positions among the relation's usable sources.
        targets: [m] distinct token ids accepted by these sources.
        offset: Where the block's n·m cells begin on the cell axis.
    """

    relation: int
    sources: NDArray[np.int32]
    targets: NDArray[np.int64]
    offset: int

    @property
    def size(self) -> int:
        return len(self.sources) * len(self.targets)

    @property
    def slice(self) -> slice:
        return slice(self.offset, self.offset + self.size)


@dataclass(frozen=True)
class Layout:
    """Everything about the axes of an atlas that does not depend on the model's weights.

    Attributes:
        relations: The relation axis, in the order given.
        pair_relation: [pair] position on the relation axis.
        pair_source: [pair] position among the relation's usable sources; -1 if not usable.
        pair_target_id: [pair] token id of the target; -1 if not usable.
        pair_words: [pair] (source, target) as written.
        source_ids: Per relation, the token ids of each usable source.
        blocks: Calibration blocks of the relations that are not left out.
    """

    relations: tuple[RelationEntry, ...]
    pair_relation: NDArray[np.int32]
    pair_source: NDArray[np.int32]
    pair_target_id: NDArray[np.int64]
    pair_words: tuple[tuple[str, str], ...]
    source_ids: tuple[tuple[tuple[int, ...], ...], ...]
    blocks: tuple[CellBlock, ...]

    @cached_property
    def n_cells(self) -> int:
        return sum(block.size for block in self.blocks)

    @property
    def n_pairs(self) -> int:
        return len(self.pair_relation)

    @property
    def included(self) -> tuple[int, ...]:
        """Positions of the relations that are not left out."""
        return tuple(i for i, entry in enumerate(self.relations) if not entry.left_out)

    @cached_property
    def pair_source_length(self) -> NDArray[np.int32]:
        """[pair] number of tokens of the source; 0 if the pair is not usable."""
        lengths = np.zeros(self.n_pairs, dtype=np.int32)
        for at in np.flatnonzero(self.pair_source >= 0):
            lengths[at] = len(self.source_ids[self.pair_relation[at]][self.pair_source[at]])
        return lengths


def build_layout(tokenised: Sequence[TokenisedRelation]) -> Layout:
    """Lay out the axes for relations as one tokenizer sees them."""
    entries, relation_of, source_of, target_of, words, source_ids = [], [], [], [], [], []
    for position, item in enumerate(tokenised):
        entries.append(_entry(item))
        usable = {} if item.left_out else {pair.index: at for at, pair in enumerate(item.pairs)}
        source_ids.append(tuple(pair.source_ids for pair in item.pairs) if not item.left_out else ())
        for index, pair in enumerate(item.relation.pairs):
            at = usable.get(index, -1)
            accepted = (
                dict(zip(item.pairs[at].target_words, item.pairs[at].target_ids, strict=True))
                if at >= 0
                else {}
            )
            for target in pair.targets:
                relation_of.append(position)
                source_of.append(at if target in accepted else -1)
                target_of.append(accepted.get(target, -1))
                words.append((pair.source, target))
    return Layout(
        relations=tuple(entries),
        pair_relation=np.array(relation_of, dtype=np.int32),
        pair_source=np.array(source_of, dtype=np.int32),
        pair_target_id=np.array(target_of, dtype=np.int64),
        pair_words=tuple(words),
        source_ids=tuple(source_ids),
        blocks=_blocks(tokenised),
    )


def _entry(item: TokenisedRelation) -> RelationEntry:
    relation: Relation = item.relation
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


def _blocks(tokenised: Sequence[TokenisedRelation]) -> tuple[CellBlock, ...]:
    blocks: list[CellBlock] = []
    offset = 0
    for position, item in enumerate(tokenised):
        if item.left_out:
            continue
        sources = calibration_sources(len(item.pairs), item.relation.sha256)
        targets = np.unique([t for at in sources for t in item.pairs[at].target_ids]).astype(np.int64)
        block = CellBlock(position, sources, targets, offset)
        blocks.append(block)
        offset += block.size
    return tuple(blocks)


def calibration_sources(n: int, seed_text: str) -> NDArray[np.int32]:
    """The sources a relation of n is calibrated on: all, or a seeded subset in ascending order."""
    if n <= MAX_CALIBRATION_SOURCES:
        return np.arange(n, dtype=np.int32)
    seed = int.from_bytes(hashlib.sha256(seed_text.encode()).digest()[:8], "little")
    rng = np.random.Generator(np.random.PCG64(seed))
    return np.sort(rng.choice(n, MAX_CALIBRATION_SOURCES, replace=False)).astype(np.int32)
