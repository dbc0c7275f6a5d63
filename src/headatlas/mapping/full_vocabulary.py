"""Surviving rows through the whole vocabulary: logits with an error propose, float64 decides.

For every row, the tokens that may reach the lowest of its targets are collected; a row or a target is given
up as soon as ``ceiling`` tokens are surely above it. Of what remains, a token that is surely above a target
counts, and one that may be above or below it is computed again: in float32, and where that does not tell
either, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from headatlas.mapping.bounds import Bounded, projecting_pays, single_error, single_logits, whole
from headatlas.mapping.vocabulary import TIE, Vocabulary, some_of
from headatlas.progress import Stats
from headatlas.scoring.scores import RANK_BEYOND

FIRST_CHUNK = 2048
LARGEST_CHUNK = 8192
BLOCK_ROWS = 1024
MOST_CANDIDATES = 2_000_000
MANY_REACHING = 8
"""Times the ceiling: where more tokens a line of the first chunk are candidates, sorting the chunk pays."""

Ints = NDArray[np.int64]
_Arrays = TypeVar("_Arrays", bound=tuple[NDArray[Any], ...])
_Number = TypeVar("_Number", np.float32, np.int64)


class Entries(NamedTuple):
    """Ranks wanted.

    Attributes:
        row: [n] row of the outputs.
        column: [n] target, as a position among the distinct targets.
        sign: [n] 1 for promotion, -1 for suppression.
    """

    row: Ints
    column: Ints
    sign: NDArray[np.int8]


@dataclass(frozen=True)
class Ranked:
    """Ranks that :func:`rank_entries` found, and the tokens that beat the targets.

    Attributes:
        ranks: [n] int16 exact ranks below the ceiling, ``RANK_BEYOND`` otherwise.
        beating_row, beating_token: [m] tokens among the ``ceiling`` first of a row (of those of it that were
            looked at), for either sign: what is worth looking at in similar rows.
    """

    ranks: NDArray[np.int16]
    beating_row: Ints
    beating_token: Ints


def rank_entries(
    outputs: torch.Tensor,
    entries: Entries,
    targets: Ints,
    vocabulary: Vocabulary,
    *,
    ceiling: int,
    stats: Stats,
    in_head: Bounded | None,
    share: float = 1.0,
) -> Ranked:
    """Exact ranks below the ceiling, ``RANK_BEYOND`` otherwise.

    Args:
        outputs: [R, d_model] float64 head outputs after the right map, of length one or zero.
        entries: What is asked.
        targets: [T] vocabulary columns of the distinct targets.
        vocabulary: Competing rows of U.
        ceiling: First rank that is not told apart.
        stats: Counters.
        in_head: The outputs of a head in its own space, or None: cheaper where many go through together.
            Changes cost, not results.
        share: Which part of the head's lines these are, about: the others will need the same bounds.
    """
    # A line is a row with a sign; its logits are those of the row times the sign.
    key, line = numbered(entries.row * 2 + (entries.sign < 0), 2 * len(outputs))
    sign = torch.from_numpy(1.0 - 2.0 * (key % 2))
    rows = some_of(outputs, key // 2) * sign[:, None]
    logit = single_logits(rows, line, vocabulary, targets[entries.column], torch.float64)
    routes = [Bounded(whole(vocabulary), rows)]
    if in_head is not None:
        routes.append(Bounded(in_head.factor, some_of(in_head.rows, key // 2) * sign[:, None]))
    order = np.argsort(line, kind="stable")
    target = targets[entries.column[order]]
    block = _Block(rows, routes, line[order], target, logit[order], share)
    ranks = np.empty(len(line), dtype=np.int16)
    ranks[order], best = _in_parts(block, BLOCK_ROWS, vocabulary, ceiling, stats)
    stats.hit_rows += len(distinct(line[ranks >= 0], len(rows)))
    return Ranked(ranks, key[best.line] // 2, best.token)


@dataclass(frozen=True)
class _Block:
    """Some lines and their entries, sorted by line.

    Attributes:
        rows: [L, d_model] float64 lines.
        routes: Their bounds through d_model, and for the lines of one head through d_head.
        line: [n] line of each entry.
        target: [n] its target as a vocabulary column.
        logit: [n] its signed logit, float64.
        share: Which part of its head's lines the block has, about.
    """

    rows: torch.Tensor
    routes: list[Bounded]
    line: Ints
    target: Ints
    logit: NDArray[np.float64]
    share: float

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, lines: slice) -> _Block:
        """Some of the lines, with their entries."""
        entries = slice(*np.searchsorted(self.line, [lines.start, lines.stop]))
        return _Block(
            self.rows[lines],
            [route.part(lines) for route in self.routes],
            self.line[entries] - lines.start,
            self.target[entries],
            self.logit[entries],
            self.share,
        )

    def route(self, n: int, stop: int) -> Bounded:
        """The cheaper bounds for ``n`` of the lines; U may have to be projected up to column ``stop``."""
        if len(self.routes) > 1:
            d_model, d_head = (route.rows.shape[1] for route in self.routes)
            kept = self.routes[1].factor.kept
            if (kept and kept.until >= stop) or projecting_pays(n / self.share, d_head, d_model):
                return self.routes[1]
        return self.routes[0]


class _Candidates(NamedTuple):
    """Tokens that may be at or above an open target of their line.

    Attributes:
        line, token: [c], lines ascending within a chunk.
        upper, lower: [c] bounds of their logits.
    """

    line: Ints
    token: Ints
    upper: NDArray[np.float32]
    lower: NDArray[np.float32]


_NO_INTS, _NO_FLOATS = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
_NONE = _Candidates(_NO_INTS, _NO_INTS, _NO_FLOATS, _NO_FLOATS)


def concatenated(parts: Sequence[_Arrays]) -> _Arrays:
    """Tuples of arrays as one; there is at least one."""
    return type(parts[0])(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _in_parts(
    block: _Block, size: int, vocabulary: Vocabulary, ceiling: int, stats: Stats
) -> tuple[NDArray[np.int16], _Candidates]:
    """:func:`_rank_block` for so many lines at a time."""
    ranks, best = [np.empty(0, dtype=np.int16)], [_NONE]
    for start in range(0, len(block), size):
        found, beating = _rank_block(block.part(slice(start, start + size)), vocabulary, ceiling, stats)
        ranks.append(found)
        best.append(beating._replace(line=beating.line + start))
    return np.concatenate(ranks), concatenated(best)


def _rank_block(
    block: _Block, vocabulary: Vocabulary, ceiling: int, stats: Stats
) -> tuple[NDArray[np.int16], _Candidates]:
    """Ranks of the entries, and the first ``ceiling`` candidates of each line."""
    length = torch.linalg.vector_norm(block.rows, dim=1).numpy()
    # A line of zeros ties with every token.
    open_ = length[block.line] > 0
    tie = TIE * vocabulary.longest * length
    ranks = np.full(len(block.line), RANK_BEYOND, dtype=np.int64)
    ranks[~open_] = len(vocabulary) - 1
    found = _collect(block, open_, tie, vocabulary, ceiling, stats)
    if found is None:  # rows of U that are nearly copies
        return _in_parts(block, -(-len(block) // 2), vocabulary, ceiling, stats)
    candidates, best = found
    entry = np.flatnonzero(open_)
    if len(entry):
        ranks[entry] = _count(block, entry, tie, candidates, vocabulary, stats)
    ranks = np.where(ranks < ceiling, ranks, RANK_BEYOND)
    among_first = candidates.lower >= best[candidates.line]
    return ranks.astype(np.int16), _Candidates._make(each[among_first] for each in candidates)


def _collect(
    block: _Block,
    open_: NDArray[np.bool_],
    tie: NDArray[np.float64],
    vocabulary: Vocabulary,
    ceiling: int,
    stats: Stats,
) -> tuple[_Candidates, NDArray[np.float32]] | None:
    """Candidates of all lines, and what ``ceiling`` of them surely reach; closes entries in ``open_`` as they
    are surely beaten.

    None if there are too many candidates to hold, for a block of more than one line.
    """
    n_lines, n_tokens = len(block), len(vocabulary)
    best = np.full((n_lines, ceiling), -np.inf, dtype=np.float32)
    parts = [_NONE]
    held, start, chunk = 0, 0, FIRST_CHUNK
    index = distinct(block.line[open_], n_lines)
    stats.rows += len(index)
    while start < n_tokens and len(index):
        stop = min(start + chunk, n_tokens)
        route = block.route(len(index), stop)
        kept = route.factor.kept
        there = kept.until if kept else stop
        near, most = route.near(index, start, stop), route.most_error(index, start, stop).numpy()
        d_model, q = block.rows.shape[1], route.rows.shape[1]
        stats.products += near.numel() * q + max(0, stop - there) * d_model * q
        # What is below the lowest open target cannot change a rank, nor what is below ``ceiling`` tokens
        # (every target that stays open is above those); a tie can.
        limit = np.maximum(_lowest(block, open_)[index], best[index, 0]) - tie[index]
        row, column = where_at_least(near, limit - most)
        if start == 0 and len(row) > MANY_REACHING * ceiling * len(index) and stop >= ceiling:
            reached = kth(near, ceiling)
            surely = reached - most - np.abs(reached) * route.factor.rounding
            limit = np.maximum(limit, surely - tie[index])
            row, column = where_at_least(near, limit - most)
        part = _candidates(near, row, column, index, route, start, limit)
        held += len(part.line)
        if held > MOST_CANDIDATES and n_lines > 1:
            return None
        parts.append(part)
        _keep_best(best, part)
        open_ &= block.logit >= best[block.line, 0]
        start, chunk = stop, min(chunk * 2, LARGEST_CHUNK)
        before, index = index, distinct(block.line[open_], n_lines)
        stats.rows_dropped += len(before) - len(index) if start < n_tokens else 0
    return concatenated(parts), best[:, 0]


def _lowest(block: _Block, open_: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[L] lowest logit of an open target; inf where none is open."""
    lowest = np.full(len(block), np.inf)
    np.minimum.at(lowest, block.line[open_], block.logit[open_])
    return lowest


def on_processor(values: torch.Tensor) -> bool:
    """Whether NumPy can look at the values where they are."""
    return values.device.type == "cpu"


def kth(values: torch.Tensor, k: int) -> NDArray[np.float32]:
    """The k-th largest of each row [n, m], k ≤ m."""
    if not on_processor(values):
        return np.asarray(values.topk(k).values[:, -1].to(torch.float32).cpu())
    # NumPy sorts short float32 rows with vector instructions: ten times faster than partitioning.
    ordered: NDArray[np.float32] = np.sort(values.to(torch.float32).numpy(), axis=1)
    return ordered[:, -k]


def largest_of_groups(values: torch.Tensor, n: int) -> torch.Tensor:
    """[rows, n] the largest of each of n groups of the values of a row; the values themselves if no more.

    The largest in a place is at most that of all values, and hardly less, as two of the first are seldom in
    one group. Sorting all would take ten times as long.
    """
    whole = values.shape[1] // n * n
    if not whole:
        return values
    groups = values[:, :whole].view(len(values), -1, n).amax(dim=1)
    rest = groups[:, : values.shape[1] - whole]
    torch.maximum(rest, values[:, whole:], out=rest)
    return groups


def side_by_side(row: Ints, values: NDArray[_Number], n: int, missing: float = -np.inf) -> NDArray[_Number]:
    """[n, most of a row] values given by row, ascending; what a row has not is ``missing``."""
    counts = np.bincount(row, minlength=n)
    out = np.full((n, counts.max(initial=0)), missing, dtype=values.dtype)
    out[row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)] = values
    return out


def _candidates(
    near: torch.Tensor,
    row: Ints,
    column: Ints,
    index: Ints,
    bounded: Bounded,
    start: int,
    limit: NDArray[np.float64],
) -> _Candidates:
    """Tokens of a chunk, of those in these rows and columns, that may reach the limit of their row."""
    values = some_of(near.view(-1), row * near.shape[1] + column).to(torch.float32).cpu()
    line, token = index[row], column + start
    off = 1.001 * bounded.error(line, token) + values.abs() * bounded.factor.rounding
    upper = (values + off).numpy()
    found = _Candidates(line, token, upper, (values - off).numpy())
    reaching = upper >= limit[row]
    return _Candidates._make(each[reaching] for each in found)


def where_at_least(values: torch.Tensor, least: NDArray[np.floating[Any]]) -> tuple[Ints, Ints]:
    """Rows and columns of the values [n, m] that were at least the least of their row before rounding.

    And of few others: rounding is monotone, so what reaches the limit does when both are rounded.
    """
    limit = torch.from_numpy(least).to(values.dtype)
    if not on_processor(values):
        row, column = (values >= limit.to(values.device)[:, None]).nonzero(as_tuple=True)
        return row.cpu().numpy(), column.cpu().numpy()
    # The bits of positive numbers are ordered as integers are, and those of negative ones are below:
    # comparing them is twenty times faster than comparing bfloat16.
    as_bits = values.dtype == torch.bfloat16 and bool((limit > 0).all())
    numbers, limits = (
        (each.view(torch.int16) if as_bits else each.to(torch.float32)).numpy() for each in (values, limit)
    )
    reaching = np.flatnonzero(numbers >= limits[:, None])
    return np.divmod(reaching, values.shape[1])


def _keep_best(best: NDArray[np.float32], part: _Candidates) -> None:
    """Merge bounds from below into the ``ceiling`` best of each line, the best last, in place."""
    lines, place = numbered(part.line, len(best))
    new = side_by_side(place, part.lower, len(lines))
    best[lines] = np.sort(np.concatenate([best[lines], new], axis=1), axis=1)[:, new.shape[1] :]


def _count(
    block: _Block,
    entry: Ints,
    tie: NDArray[np.float64],
    candidates: _Candidates,
    vocabulary: Vocabulary,
    stats: Stats,
) -> Ints:
    """[len(entry)] ranks: candidates surely above the entry, and those found at or above it."""
    order = np.argsort(candidates.line, kind="stable")
    edges = np.searchsorted(candidates.line[order], np.arange(len(block) + 1))
    line = block.line[entry]
    first, counts = edges[line], edges[line + 1] - edges[line]
    # Every pair of an entry and a candidate of its line.
    at = np.repeat(np.arange(len(entry)), counts)
    which = order[
        np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
    ]
    logit, margin = block.logit[entry][at], tie[line][at]
    surely = candidates.lower[which] > logit
    doubtful = ~surely & (candidates.upper[which] >= logit - margin)
    doubtful &= candidates.token[which] != block.target[entry][at]
    ranks = np.bincount(at[surely], minlength=len(entry))
    at, which, limit = at[doubtful], which[doubtful], (logit - margin)[doubtful]
    found = single_logits(
        block.rows, candidates.line[which], vocabulary, candidates.token[which], torch.float32
    )
    error = single_error(vocabulary, candidates.token[which])
    ranks += np.bincount(at[found - error > limit], minlength=len(entry))
    still = np.abs(found - limit) <= error
    at, which, limit = at[still], which[still], limit[still]
    stats.rechecked += len(which)
    found = single_logits(
        block.rows, candidates.line[which], vocabulary, candidates.token[which], torch.float64
    )
    return ranks + np.bincount(at[found >= limit], minlength=len(entry))


# Distinct among many small numbers: marking them is several times faster than sorting or hashing ------


def distinct(values: Ints, below: int) -> Ints:
    """Distinct values, ascending, of [n] values in 0 … ``below`` - 1."""
    return np.flatnonzero(_marked(values, below))


def numbered(values: Ints, below: int) -> tuple[Ints, Ints]:
    """:func:`distinct` values, and [n] the position of each value among them."""
    marked = _marked(values, below)
    return np.flatnonzero(marked), (np.cumsum(marked) - 1)[values]


def _marked(values: Ints, below: int) -> NDArray[np.bool_]:
    marked = np.zeros(below, dtype=np.bool_)
    marked[values] = True
    return marked
