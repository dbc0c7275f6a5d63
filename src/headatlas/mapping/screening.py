"""Screening: a few hundred tokens prove that most targets are at or above the ceiling.

``ceiling`` tokens that surely beat a target are proof enough, whichever tokens they are. So any set is valid;
a good one eliminates more. It starts with the tokens that top and bottom a few typical rows of the head, and
grows by those that beat the targets looked at so far: similar sources are beaten by similar tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from headatlas.atlas.layout import Layout
from headatlas.mapping.bounds import head_error, projected, roughly
from headatlas.mapping.full_vocabulary import kth, largest_of_groups, where_at_least
from headatlas.mapping.vocabulary import Vocabulary, dot_error, some_of
from headatlas.progress import Stats

SIGNS = (1, -1)
SAMPLED_ROWS = 4
MEAN_ROWS = 10
TOKENS_PER_ROW = 96
FIRST_PER_ROW = 8
LONGEST_TOKENS = 128
SCREENING_TOKENS = 4500
LOGITS_AT_ONCE = 32 << 20
GROUPS = 8
"""Times the ceiling: so many groups of tokens are told apart in a screen."""

Ints = NDArray[np.int64]


@dataclass
class Space:
    """The outputs of one head for all sources, in an orthonormal basis of what the head can write.

    The no-head control is such a space too: its rows are there as they are, without a basis.

    Attributes:
        rows: [n, q] float64, of length one or zero.
        basis: [q, d_model] float64 orthonormal rows, or None for rows in the model's dimension.
        layout: Sources, targets, and which pairs and cells of them are asked.
        vocabulary: Competing rows of U.
        target_rows: [T, d_model] float32 rows of U of the distinct targets, on the device.
        tokens: [S] the screening set.
        n_first: How many of them, learned first, are enough for most rows.
        limits: Per sign, [n] float32: what the sign times a target's float32 logit must reach for a rank that
            may be below the ceiling.
    """

    rows: torch.Tensor
    basis: torch.Tensor | None
    layout: Layout
    vocabulary: Vocabulary
    target_rows: torch.Tensor
    tokens: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    n_first: int = 0
    _screens: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.limits: NDArray[np.float32] = np.full((len(SIGNS), len(self.rows)), -np.inf, dtype=np.float32)

    @classmethod
    def of_head(
        cls,
        values: torch.Tensor,
        output: torch.Tensor,
        layout: Layout,
        vocabulary: Vocabulary,
        target_rows: torch.Tensor,
    ) -> Space:
        """The space of a head.

        Args:
            values: [n, d_head] float64 value vectors, of any scale.
            output: [d_head, d_model] float64 output weights after the right map, of any scale.
            layout, vocabulary, target_rows: As above.
        """
        largest = output.abs().max()
        # Weight decay leaves dead heads with entries near the smallest float32.
        output = output / torch.where(largest > 0, largest, torch.ones_like(largest))
        basis, triangle = torch.linalg.qr(output.T)
        return cls(unit(unit(values) @ triangle.T), basis.T, layout, vocabulary, target_rows)

    @cached_property
    def error(self) -> float:
        """Error of float32 logits of rows of length one, as a share of the length of the row of U."""
        return dot_error(self.rows.shape[1]) if self.basis is None else head_error(self.basis)

    def outputs(self, rows: Ints) -> torch.Tensor:
        """[n, d_model] float64 rows in the model's dimension."""
        mine = some_of(self.rows, rows)
        return mine if self.basis is None else mine @ self.basis

    @cached_property
    def _narrow(self) -> torch.Tensor:
        return self.rows.to(torch.float32).to(self.vocabulary.device)

    @cached_property
    def _signed(self) -> torch.Tensor:
        """[2n, q] float32 rows times each sign."""
        return torch.cat([sign * self._narrow for sign in SIGNS])

    @cached_property
    def _narrow_basis(self) -> torch.Tensor | None:
        return None if self.basis is None else self.basis.to(torch.float32).T.to(self.vocabulary.device)

    @cached_property
    def target_columns(self) -> Ints:
        """[T] vocabulary columns of the distinct targets."""
        return self.vocabulary.columns(self.layout.targets)

    @cached_property
    def _targets(self) -> torch.Tensor:
        """[T, q] float32 targets in this space."""
        return self._projected(self.target_rows)

    @cached_property
    def _own_logits(self) -> NDArray[np.float32]:
        """[P] float32 logits of the targets of ``layout.own_row``."""
        own = self.layout.own_row, self.layout.own_column
        pairs = some_of(self._narrow, own[0]), some_of(self._targets, own[1])
        logits: NDArray[np.float32] = torch.linalg.vecdot(*pairs).cpu().numpy()
        return logits

    def _projected(self, rows: torch.Tensor) -> torch.Tensor:
        return rows if self._narrow_basis is None else projected(rows, self._narrow_basis)

    def learn(self, tokens: Ints) -> None:
        """Screen with these tokens too, which may repeat, up to ``SCREENING_TOKENS`` in all."""
        wanted = np.zeros(len(self.vocabulary), dtype=np.bool_)
        wanted[tokens] = True
        wanted[self.tokens] = False
        new = np.flatnonzero(wanted)[: max(0, SCREENING_TOKENS - len(self.tokens))]
        self.tokens = np.concatenate([self.tokens, new])
        self._screens.append(self._projected(self.vocabulary.float32(new)))

    def screen(self, rows: Sequence[Ints], ceiling: int, stats: Stats, *, first: int | None = None) -> None:
        """Find out how far rows can be screened: raise ``limits``.

        Args:
            rows: Per sign, [n] distinct rows.
            ceiling: First rank that is not told apart.
            stats: Counters.
            first: Use so many of the tokens learned first, all if None.
        """
        tokens = torch.cat(self._screens)[:first]
        lines = np.concatenate([mine + at * len(self.rows) for at, mine in enumerate(rows)])
        if len(tokens) <= ceiling or not len(lines):
            return
        logits = some_of(self._signed, lines) @ tokens.T
        stats.products += len(lines) * len(tokens) * self.rows.shape[1]
        # The target's own logit has an error as well; the rest covers the rounding of these lines.
        guard = np.float32(2.1 * self.error * self.vocabulary.longest)
        limits = self.limits.reshape(-1)
        found = kth(largest_of_groups(logits, GROUPS * ceiling), ceiling) - guard
        limits[lines] = np.maximum(limits[lines], found)

    def alive_own(self, pairs: Ints) -> list[NDArray[np.bool_]]:
        """Per sign, which of the pairs screening has not eliminated.

        Args:
            pairs: [p] positions in ``layout.own_row``.
        """
        row, logits = self.layout.own_row[pairs], self._own_logits[pairs]
        return [sign * logits >= limit[row] for sign, limit in zip(SIGNS, self.limits, strict=True)]

    def alive_cells(self, rows: Ints, columns: Ints, at: int, stats: Stats) -> NDArray[np.bool_]:
        """[rows, columns] which targets screening has not eliminated for the sign ``SIGNS[at]``."""
        lines = some_of(self._signed, rows + at * len(self.rows))
        logits = (lines @ some_of(self._targets, columns).T).cpu().numpy()
        stats.products += logits.size * self.rows.shape[1]
        alive: NDArray[np.bool_] = logits >= self.limits[at, rows][:, None]
        return alive


def typical_tokens(spaces: Sequence[Space], stats: Stats) -> None:
    """Give every space its first screening set.

    Typical rows are the mean outputs of some relations' sources and a few single sources; their first and
    last tokens are taken, the very first of all rows at the beginning of the set, and the longest rows of U
    at its end. All spaces go through U in one product.
    """
    layout, vocabulary = spaces[0].layout, spaces[0].vocabulary
    n = len(layout.sources)
    picked = np.linspace(0, n - 1, num=min(SAMPLED_ROWS, n)).astype(np.int64)
    which = np.linspace(0, len(layout.blocks) - 1, num=min(MEAN_ROWS, len(layout.blocks)))
    blocks = [layout.blocks[int(at)].rows for at in which]
    outputs = []
    for space in spaces:
        means = torch.stack([some_of(space.rows, block).mean(dim=0) for block in blocks])
        rows = torch.cat([means, some_of(space.rows, picked)])
        outputs.append((rows if space.basis is None else rows @ space.basis).to(torch.float32))
    longest = vocabulary.norms.topk(min(LONGEST_TOKENS, len(vocabulary))).indices.numpy()
    parts = torch.split(torch.cat(outputs), max(32, LOGITS_AT_ONCE // len(vocabulary)))
    found: dict[int, list[tuple[Ints, Ints]]] = {FIRST_PER_ROW: [], TOKENS_PER_ROW: []}
    for at, rows in enumerate(parts):
        logits = roughly(rows, vocabulary)
        stats.products += logits.numel() * rows.shape[1]
        for sign in SIGNS:
            ends = sign * logits
            largest = largest_of_groups(ends, GROUPS * TOKENS_PER_ROW)
            for k, tokens in found.items():
                row, token = where_at_least(ends, kth(largest, min(k, largest.shape[1])))
                tokens.append((at * len(parts[0]) + row, token))
    first, others = (np.concatenate(tokens, axis=1) for tokens in found.values())
    for at, space in enumerate(spaces):
        of_space = [each[1, each[0] // len(outputs[0]) == at] for each in (first, others)]
        space.learn(of_space[0])
        space.n_first = len(space.tokens)
        space.learn(np.concatenate([of_space[1], longest]))


def unit(rows: torch.Tensor) -> torch.Tensor:
    """Rows scaled to length one; zero rows stay zero."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(norms > 0, norms, torch.ones_like(norms))
