"""Exact ranks of one layer's heads without most of the matrix.

Screening (:mod:`headatlas.mapping.screening`) proves that most targets are at or above the ceiling. What
survives goes through the whole vocabulary (:mod:`headatlas.mapping.full_vocabulary`), in rounds: a few of
the pairs, then the other pairs, then the calibration cells of the relations that turned out to reach the
floor. Every round screens with what the rounds before found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from headatlas.atlas.layout import Layout, RelationBlock
from headatlas.atlas.store import CELL_BEYOND, LayerRanks
from headatlas.mapping.bounds import Bounded, RightFactor, in_head, projecting_pays
from headatlas.mapping.full_vocabulary import Entries, concatenated, distinct, numbered, rank_entries
from headatlas.mapping.inputs import LayerInputs
from headatlas.mapping.screening import SIGNS, Space, typical_tokens, unit
from headatlas.mapping.vocabulary import Vocabulary, some_of
from headatlas.options import FLOOR
from headatlas.progress import Stats
from headatlas.scoring.scores import RANK_BEYOND, RANK_UNUSABLE, source_hits

PILOTS = 32
"""Lines (rows with a sign) of a head that go through the vocabulary first, where each is dear."""
Ints = NDArray[np.int64]


NO_ENTRIES = Entries(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int8))


@dataclass(eq=False)
class _Head:
    """One head, or the no-head control: what is known of it, and what is still asked.

    Attributes:
        space: Its outputs.
        ranks: Per sign, [n_pairs] int16 of the atlas.
        cells: Per sign, [n_cells] uint8 of the atlas; empty where none are asked.
        open: Per sign, positions in ``layout.own_row`` that are not ranked or eliminated yet.
        through: Per sign, [n] rows that have gone through the vocabulary.
        entries: What this round asks.
        sinks: Where its ranks go: (array, positions, which entries).
        factor: U in the head's output space, where that serves several rounds.
    """

    space: Space
    ranks: Sequence[NDArray[np.int16]]
    cells: Sequence[NDArray[np.uint8]]
    open: list[Ints] = field(default_factory=list)
    through: list[NDArray[np.bool_]] = field(default_factory=list)
    entries: Entries = NO_ENTRIES
    sinks: list[tuple[NDArray[np.int16] | NDArray[np.uint8], Ints, Ints]] = field(default_factory=list)
    factor: RightFactor | None = None

    def projected(self) -> RightFactor:
        """U in the head's output space, made when it is asked for."""
        if self.space.basis is None:
            raise ValueError("the no-head control has no space of its own")
        return in_head(self.space.basis, self.space.vocabulary)

    @property
    def n_open(self) -> int:
        """Lines with an open pair."""
        row, n = self.space.layout.own_row, len(self.space.rows)
        return sum(len(distinct(row[pairs], n)) for pairs in self.open)

    @property
    def n_asked(self) -> int:
        """Lines of this round."""
        return len(distinct(self.entries.row * 2 + (self.entries.sign > 0), 2 * len(self.space.rows)))

    def ask(self, wanted: list[_Wanted]) -> None:
        """Make this round's entries, each (row, target, sign) once however often it is wanted."""
        n_targets = len(self.space.layout.targets)
        keys = [(each.row * n_targets + each.column) * 2 + (each.sign > 0) for each in wanted]
        together = np.concatenate([np.empty(0, dtype=np.int64), *keys])
        asked, where = np.unique(together, return_inverse=True)
        row, column = np.divmod(asked // 2, n_targets)
        self.entries = Entries(row, column, np.where(asked % 2, 1, -1).astype(np.int8))
        parts = np.split(where, np.cumsum([len(key) for key in keys]))[:-1]
        self.sinks = [(each.into, each.at, part) for each, part in zip(wanted, parts, strict=True)]

    def fill(self, ranks: NDArray[np.int16]) -> None:
        """Write the entries' ranks where they are wanted."""
        for array, position, which in self.sinks:
            values = ranks[which]
            array[position] = np.where(values < 0, CELL_BEYOND, values) if array.dtype == np.uint8 else values


@dataclass(frozen=True)
class _Wanted:
    """Ranks wanted: [n] rows and columns, of one sign, and the positions of an array they go to."""

    row: Ints
    column: Ints
    sign: int
    into: NDArray[np.int16] | NDArray[np.uint8]
    at: Ints


def map_layer(
    layout: Layout,
    inputs: LayerInputs,
    vocabulary: Vocabulary,
    *,
    ceiling: int,
    control: NDArray[np.int16] | None = None,
    heads_at_once: int | None = None,
    stats: Stats | None = None,
) -> LayerRanks:
    """Every rank of one layer below the ceiling; equal to float64 arithmetic on every logit.

    Args:
        layout: Sources, targets, and which pairs and cells of them are asked.
        inputs: States and weights of the layer.
        vocabulary: Competing rows of U.
        ceiling: Ranks below it are exact; from it on they are ``RANK_BEYOND``.
        control: [n_pairs] ranks of the no-head control if they are known, as where layers share their states.
        heads_at_once: Heads in work at a time, all if None; changes memory, not results.
        stats: Counts what was done, if given.
    """
    stats = Stats() if stats is None else stats
    ranks = np.full((2, inputs.dims.n_heads, layout.n_pairs), RANK_UNUSABLE, dtype=np.int16)
    cells = np.full((2, inputs.dims.n_heads, layout.n_cells), CELL_BEYOND, dtype=np.uint8)
    target_rows = vocabulary.float32(vocabulary.columns(layout.targets))
    n_heads, at_once = inputs.dims.n_heads, heads_at_once or inputs.dims.n_heads
    for start in range(0, n_heads, at_once):
        heads, which = [], range(start, min(start + at_once, n_heads))
        with stats.timed("screening"):
            values = inputs.values_of([inputs.dims.kv_head(head) for head in which])
            for head in which:
                mine = values[inputs.dims.kv_head(head)]
                space = Space.of_head(mine, inputs.output(head), layout, vocabulary, target_rows)
                heads.append(_Head(space, list(ranks[:, head]), list(cells[:, head])))
            del values
        if control is None:
            control = np.full(layout.n_pairs, RANK_UNUSABLE, dtype=np.int16)
            space = Space(unit(inputs.control), None, layout, vocabulary, target_rows)
            heads.append(_Head(space, [control], []))
        _in_rounds(heads, ceiling, stats)
    if control is None:
        raise ValueError("a layer has at least one head")
    return LayerRanks(ranks[0], ranks[1], control, cells[0], cells[1])


def _in_rounds(heads: list[_Head], ceiling: int, stats: Stats) -> None:
    """Screen all heads, then rank each that has many open lines by itself, and the others together."""
    with stats.timed("screening"):
        typical_tokens([head.space for head in heads], stats)
        for head in heads:
            _screen_all(head, ceiling, stats)
    alone = [head for head in heads if _many_lines(head, head.n_open)]
    for head in alone:
        head.factor = head.projected()
        # A line costs little here, so nothing is gained by learning from a few first.
        _rounds([head], [None], ceiling, stats)
        head.factor = None  # as large as U is in this head's space
    _rounds([head for head in heads if head not in alone], [PILOTS, None], ceiling, stats)


def _rounds(heads: list[_Head], lines: Sequence[int | None], ceiling: int, stats: Stats) -> None:
    """The pairs, of so many lines at a time (None: of all that are left), then the other cells."""
    for at, some in enumerate(lines):
        with stats.timed("screening"):
            for head in heads:
                if at:
                    _screen_again(head, ceiling, stats)
                head.ask(_own(head, some, stats))
        _rank(heads, ceiling, stats)
    with stats.timed("screening"):
        for head in heads:
            head.ask(_other_cells(head, ceiling, stats))
    _rank(heads, ceiling, stats)


# What each round asks -----------------------------------------------------------------------------


def _screen_all(head: _Head, ceiling: int, stats: Stats) -> None:
    """Open the pairs that screening does not eliminate: a few tokens do for most, all for the rest."""
    space, layout = head.space, head.space.layout
    for ranks in head.ranks:
        ranks[layout.own_pair] = RANK_BEYOND
    everything = np.arange(len(space.rows))
    space.screen([everything for _ in head.ranks], ceiling, stats, first=space.n_first)
    alive = space.alive_own(np.arange(len(layout.own_row)))[: len(head.ranks)]
    head.open = [np.flatnonzero(mask) for mask in alive]
    head.through = [np.zeros(len(space.rows), dtype=np.bool_) for _ in alive]
    _screen_again(head, ceiling, stats)


def _screen_again(head: _Head, ceiling: int, stats: Stats) -> None:
    """Screen the open pairs with all that has been learned."""
    space, layout = head.space, head.space.layout
    rows = [distinct(layout.own_row[pairs], len(space.rows)) for pairs in head.open]
    space.screen(rows, ceiling, stats)
    for at, pairs in enumerate(head.open):
        if len(pairs):
            head.open[at] = pairs[space.alive_own(pairs)[at]]


def _own(head: _Head, lines: int | None, stats: Stats) -> list[_Wanted]:
    """The open pairs of some evenly spaced lines, or of all, and the calibration cells of these lines."""
    layout, n_rows = head.space.layout, len(head.space.rows)
    possible = [_possible(head, at) for at in range(len(head.ranks))]
    open_rows = [distinct(layout.own_row[pairs], n_rows) for pairs in head.open]
    n_lines = sum(len(rows) for rows in open_rows)
    share = 1.0 if lines is None or n_lines <= 2 * lines else lines / n_lines
    wanted = []
    for at, (pairs, rows) in enumerate(zip(head.open, open_rows, strict=True)):
        chosen = rows[np.linspace(0, len(rows) - 1, int(np.ceil(share * len(rows)))).astype(np.int64)]
        among = np.zeros(n_rows, dtype=np.bool_)
        among[chosen] = True
        mine = among[layout.own_row[pairs]]
        head.open[at], asked = pairs[~mine], pairs[mine]
        head.through[at] |= among
        row, column = layout.own_row[asked], layout.own_column[asked]
        wanted.append(_Wanted(row, column, SIGNS[at], head.ranks[at], layout.own_pair[asked]))
        wanted += [_cells(head, block, at, among, stats) for block in possible[at]]
    return wanted


def _possible(head: _Head, at: int) -> list[RelationBlock]:
    """The relations that may reach the floor, if all their open pairs hit."""
    if not head.cells:
        return []
    layout = head.space.layout
    may_hit = head.ranks[at][layout.own_pair] >= 0
    may_hit[head.open[at]] = True
    return [
        block for block in layout.blocks if np.count_nonzero(may_hit[block.own]) >= FLOOR * block.n_sources
    ]


def _other_cells(head: _Head, ceiling: int, stats: Stats) -> list[_Wanted]:
    """The calibration cells of relations at or above the floor, in lines that have not been through.

    Cells of other relations that came along with a line are cleared: what is stored depends on ranks alone.
    """
    asked = []
    for at, ranks in enumerate(head.ranks if head.cells else ()):
        for block in head.space.layout.blocks:
            if _at_floor(head, block, ranks, ceiling):
                asked.append((block, at))
            else:
                head.cells[at][block.cells] = CELL_BEYOND
    if not asked:
        return []
    space = head.space
    # The rows that are left when what is known is applied, then with all tokens.
    rows: list[list[Ints]] = [[np.empty(0, dtype=np.int64)] for _ in head.ranks]
    for block, at in asked:
        left = block.rows[~head.through[at][block.rows]]
        rows[at].append(left[space.alive_cells(left, block.columns, at, stats).any(axis=1)])
    space.screen([distinct(np.concatenate(mine), len(space.rows)) for mine in rows], ceiling, stats)
    return [_cells(head, block, at, ~head.through[at], stats) for block, at in asked]


def _cells(head: _Head, block: RelationBlock, at: int, among: NDArray[np.bool_], stats: Stats) -> _Wanted:
    """The cells of a relation, of one sign and in some rows, that screening does not eliminate."""
    here = np.flatnonzero(among[block.rows])
    i, j = np.nonzero(head.space.alive_cells(block.rows[here], block.columns, at, stats))
    i = here[i]
    cell = block.cells.start + i * len(block.columns) + j
    return _Wanted(block.rows[i], block.columns[j], SIGNS[at], head.cells[at], cell)


def _at_floor(head: _Head, block: RelationBlock, ranks: NDArray[np.int16], ceiling: int) -> bool:
    """Whether the relation's score at k = ceiling reaches the floor."""
    own = ranks[head.space.layout.own_pair[block.own]]
    if np.count_nonzero(own >= 0) < FLOOR * block.n_sources:
        return False
    return bool(source_hits(own, block.own_source, block.n_sources, ceiling).mean() >= FLOOR)


# Through the vocabulary ---------------------------------------------------------------------------


def _rank(heads: Sequence[_Head], ceiling: int, stats: Stats) -> None:
    """Rank what the heads ask: heads with many lines in their own space, the others together."""
    asking = [head for head in heads if len(head.entries.row)]
    alone = [head for head in asking if head.factor or _many_lines(head, head.n_asked)]
    together = [head for head in asking if head not in alone]
    with stats.timed("survivors"):
        for head in alone:
            _through_vocabulary([head], ceiling, stats, alone=True)
        if together:
            _through_vocabulary(together, ceiling, stats)


def _many_lines(head: _Head, lines: int) -> bool:
    """Whether projecting U onto the head's output space pays for this many lines."""
    if head.space.basis is None:
        return False
    return projecting_pays(lines, *head.space.basis.shape)


def _through_vocabulary(heads: Sequence[_Head], ceiling: int, stats: Stats, *, alone: bool = False) -> None:
    """Rank what heads ask, of a single head through its own output space."""
    space = heads[0].space
    outputs, parts, n_rows, bounded, share = [], [], [0], None, 1.0
    for head in heads:
        rows, local = numbered(head.entries.row, len(head.space.rows))
        outputs.append(unit(head.space.outputs(rows)))
        parts.append(head.entries._replace(row=local + n_rows[-1]))
        n_rows.append(n_rows[-1] + len(rows))
        if alone:
            bounded = Bounded(head.factor or head.projected(), some_of(head.space.rows, rows))
            share = head.n_asked / (head.n_asked + head.n_open)
    ranked = rank_entries(
        torch.cat(outputs),
        concatenated(parts),
        space.target_columns,
        space.vocabulary,
        ceiling=ceiling,
        stats=stats,
        in_head=bounded,
        share=share,
    )
    ends = np.cumsum([len(part.row) for part in parts])[:-1]
    of_head = np.searchsorted(n_rows, ranked.beating_row, side="right") - 1
    for at, (head, ranks) in enumerate(zip(heads, np.split(ranked.ranks, ends), strict=True)):
        head.fill(ranks)
        head.space.learn(ranked.beating_token[of_head == at])
