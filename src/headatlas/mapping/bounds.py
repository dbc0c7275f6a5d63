"""Upper bounds of logits, from cheap arithmetic with a proven error.

A :class:`RightFactor` (U itself, or U in the output space of one head) yields, for rows of length one and a
chunk of the vocabulary, numbers surely not below the logits, and says how far below them the logits can be.
Which one is taken changes the time of a map and no rank: what the bounds leave open is decided in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from headatlas.mapping.machine import rates
from headatlas.mapping.vocabulary import CARRIED, Vocabulary, dot_error, summing_error

_UP = 1 + 2.0**-7
"""Keeps a bound above what it bounds when it is rounded to bfloat16."""
GATHERED = 1 << 18
"""Numbers of U that are gathered at a time for single logits; they should fit into a cache."""
PROJECTED = 8192
SUMMED = 1024
"""Products that are summed in one go. The worst case of a sum grows with its length, so a long one is made of
parts, which are added up afterwards: for single logits in float64, for projections in float32."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class RightFactor:
    """A right factor whose products bound logits.

    Attributes:
        chunk: (start, stop) → [stop - start, q + carried] factors of these vocabulary columns.
        carries: Whether the factors hold their errors in further columns (bfloat16), rather than leave them
            to be added (float32).
        first: [V] float32 error for a row of length one.
        second: [V] float32 error for each unit of length that rounding took from a row; zeros in float32.
        device: Where the factors are.
        kept: Factors that are made when they are first asked for; None where all are there.
    """

    chunk: Callable[[int, int], torch.Tensor]
    carries: bool
    first: torch.Tensor
    second: torch.Tensor
    device: torch.device
    kept: _Kept | None = None

    @property
    def rounding(self) -> float:
        """Relative error of a stored bound."""
        return 2.0**-7 if self.carries else 2.0**-22


@dataclass(frozen=True)
class Bounded:
    """Rows of length one (or zero) against a right factor.

    Attributes:
        factor: The right factor.
        rows: [L, q] float64, in the space of the factor.
    """

    factor: RightFactor
    rows: torch.Tensor

    @cached_property
    def _left(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Left factors on the device, and [L] float32 what rounding took from each row."""
        n, q = self.rows.shape
        device = self.factor.device
        if not self.factor.carries:
            return self.rows.to(torch.float32).to(device), torch.zeros(n)
        left = torch.zeros((n, q + CARRIED), dtype=torch.bfloat16)
        left[:, :q] = self.rows
        lost = torch.linalg.vector_norm(self.rows - left[:, :q].to(torch.float64), dim=1)
        left[:, q] = 1.0
        left[:, q + 1] = lost * 1.01 * _UP
        return left.to(device), left[:, q + 1].to(torch.float32)

    def upper(self, index: Ints, start: int, stop: int) -> torch.Tensor:
        """[len(index), stop - start] bounds from above, in the dtype of the factors."""
        right, left = self.factor.chunk(start, stop), self._left[0]
        mine = left if len(index) == len(left) else left[torch.from_numpy(index).to(left.device)]
        bounds = mine @ right.T
        if self.factor.carries:
            return bounds
        return bounds.add_(self.factor.first[start:stop].to(bounds.device))

    def lower(self, upper: torch.Tensor, row: Ints, token: Ints) -> torch.Tensor:
        """[n] float32 bounds from below of single logits, given their bounds from above."""
        token_, carried = torch.from_numpy(token), self._left[1][torch.from_numpy(row)]
        error = self.factor.first[token_] + carried * self.factor.second[token_]
        return upper - 2.001 * error - upper.abs() * self.factor.rounding

    def most_slack(self, row: Ints, start: int, stop: int) -> torch.Tensor:
        """[n] float32: no bound from above of these rows and columns is farther than this from its logit."""
        carried = self._left[1][torch.from_numpy(row)]
        first, second = (part[start:stop].max() for part in (self.factor.first, self.factor.second))
        return 2.001 * (first + carried * second)

    def part(self, rows: slice) -> Bounded:
        """Bounds of some of the rows."""
        return Bounded(self.factor, self.rows[rows])


def single_logits(
    outputs: torch.Tensor, row: Ints, vocabulary: Vocabulary, token: Ints, dtype: torch.dtype
) -> NDArray[np.float64]:
    """[n] logits of single rows and tokens, in float64, or in float32 with an error of :func:`single_error`.

    Args:
        outputs: [R, d_model] float64.
        row, token: [n] which.
        vocabulary: Competing rows of U.
        dtype: In which products and parts of the sum are computed.
    """
    out = np.empty(len(row))
    rows = outputs.to(dtype)
    each = max(1, GATHERED // vocabulary.d_model)
    for start in range(0, len(row), each):
        part = slice(start, start + each)
        left = rows.index_select(0, torch.from_numpy(row[part]))
        right = vocabulary.rows.index_select(0, torch.from_numpy(token[part]))
        total = torch.zeros(len(left), dtype=torch.float64)
        for at in range(0, vocabulary.d_model, SUMMED):
            some = slice(at, at + SUMMED)
            total += torch.linalg.vecdot(left[:, some], right[:, some].to(dtype))
        out[part] = total.numpy()
    return out


def single_error(vocabulary: Vocabulary, token: Ints) -> NDArray[np.float64]:
    """[n] error of :func:`single_logits` in float32 for rows of length one and these tokens."""
    return 1.001 * dot_error(min(SUMMED, vocabulary.d_model)) * vocabulary.lengths[token]


def whole(vocabulary: Vocabulary) -> RightFactor:
    """U itself, for rows in the model's dimension: d_model multiply-adds a logit.

    In bfloat16, o·U = õ·Ũ + õ·(U - Ũ) + (o - õ)·U for the rounded õ and Ũ, and by Cauchy–Schwarz the last two
    are at most ‖õ‖·‖U - Ũ‖ + ‖o - õ‖·‖U‖. Both norms are measured, not estimated: they are several times
    smaller than the worst case of a rounding, and travel as two more dimensions of the product. Products of
    bfloat16 numbers are exact in float32, in which they are summed.
    """
    if bfloat16_pays(vocabulary.device):
        right = vocabulary.bfloat16
        first, second = vocabulary.bfloat16_errors
        return RightFactor(lambda start, stop: right[start:stop], True, first, second, vocabulary.device)
    stored = vocabulary.on_device
    return _in_float32(
        lambda start, stop: stored[start:stop, : vocabulary.d_model].to(torch.float32),
        vocabulary,
        dot_error(vocabulary.d_model),
    )


def in_head(basis: torch.Tensor, vocabulary: Vocabulary) -> RightFactor:
    """U projected onto a head's output space: d_head multiply-adds a logit, after d_head · d_model a column.

    Columns are projected when they are asked for, and kept: rows may all drop out before the last.

    Args:
        basis: [d_head, d_model] float64 orthonormal rows that span the head's outputs.
        vocabulary: Competing rows of U.
    """
    if bfloat16_pays(vocabulary.device):
        return _head_in_bfloat16(basis, vocabulary)
    right, stored = basis.to(torch.float32).T.to(vocabulary.device), vocabulary.on_device

    def project(part: slice) -> torch.Tensor:
        return projected(stored[part, : vocabulary.d_model].to(torch.float32), right)

    kept = _Kept(project, len(vocabulary))
    return replace(_in_float32(kept.chunk, vocabulary, head_error(basis)), kept=kept)


def projecting_pays(n_rows: float, d_head: int, d_model: int) -> bool:
    """Whether a logit of so many rows costs less through d_head, with U projected for them, than through
    d_model."""
    return n_rows * (d_model - d_head) > d_model * d_head


def projected(rows: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """[n, d_head] float32 product of rows [n, d_model] and a basis [d_model, d_head], in parts of the sum.

    A sum of K products costs at most γ_K, and that of the parts one unit each: γ_(K + parts) in all, where
    one long sum has γ_d_model.
    """
    if rows.shape[1] <= SUMMED:
        return rows @ basis
    out = rows.new_zeros((len(rows), basis.shape[1]))
    for left, right in zip(torch.split(rows, SUMMED, dim=1), torch.split(basis, SUMMED), strict=True):
        out.addmm_(left, right)
    return out


def head_error(basis: torch.Tensor) -> float:
    """Relative error of float32 logits through a head's output space, of rows from :func:`projected`.

    Each of the d_head coordinates of a projected row of U has the error of one dot product, and the second
    product its own.
    """
    d_head, d_model = basis.shape
    parts = -(-d_model // SUMMED)
    return float(d_head**0.5 * dot_error(min(d_model, SUMMED) + parts) + 2 * dot_error(d_head))


class _Kept:
    """Factors of n columns, made in the order of the vocabulary when they are first asked for.

    Attributes:
        until: How many are made.
    """

    def __init__(self, make: Callable[[slice], torch.Tensor], n: int) -> None:
        self._make, self._n = make, n
        self._made, self.until = torch.empty(0), 0

    def chunk(self, start: int, stop: int) -> torch.Tensor:
        """[stop - start, q + carried] factors."""
        while self.until < stop:
            part = slice(self.until, min(stop, self.until + PROJECTED))
            found = self._make(part)
            if self.until == 0:
                self._made = found.new_empty((self._n, found.shape[1]))
            self._made[part], self.until = found, part.stop
        return self._made[start:stop]


def _in_float32(
    chunk: Callable[[int, int], torch.Tensor], vocabulary: Vocabulary, relative: float
) -> RightFactor:
    error = 1.001 * relative * vocabulary.norms
    return RightFactor(chunk, False, error, torch.zeros_like(error), vocabulary.device)


def _head_in_bfloat16(basis: torch.Tensor, vocabulary: Vocabulary) -> RightFactor:
    """U projected and kept in bfloat16, with the errors carried.

    With the rounded basis Q̃ and Ũ and the stored projection P of Q̃·Ũ,
    ‖Q·U - P‖ ≤ ‖Q - Q̃‖·‖U‖ + ‖Q̃‖·‖U - Ũ‖ + ‖Q̃·Ũ - P‖: the first norm is the largest singular value, the last
    that of the sums of each part, at most γ·‖Q̃‖_F·‖Ũ‖ as the parts of both are, of the rounding of their
    results, at most a unit roundoff of each, and of the rounding of P, which is measured.
    """
    right, device = vocabulary.bfloat16, vocabulary.device
    d_head, d_model = basis.shape
    rounded = torch.zeros((right.shape[1], d_head), dtype=torch.bfloat16)
    rounded[:d_model] = basis.T
    lost = basis - rounded[:d_model].T.to(torch.float64)
    spread = 1.001 * float(torch.linalg.eigvalsh(lost @ lost.T)[-1].clamp(min=0)) ** 0.5
    size = float(torch.linalg.vector_norm(rounded, dtype=torch.float64)) * (1 + 2.0**-7)
    relative = size * summing_error(min(d_model, SUMMED), device) + 2 * summing_error(d_head, device)
    of_U = (spread + relative) * vocabulary.norms + (1 + spread) * vocabulary.bfloat16_lost
    of_U, rounded = (1.001 * of_U).to(device), rounded.to(device)
    first, second = torch.zeros(len(vocabulary)), torch.zeros(len(vocabulary))

    def project(part: slice) -> torch.Tensor:
        found, length, taken = _in_parts(right[part], rounded, d_model)
        factors = found.new_zeros((len(found), d_head + CARRIED))
        factors[:, :d_head] = found
        factors[:, d_head] = (of_U[part] + taken) * _UP
        factors[:, d_head + 1] = length * _UP
        first[part], second[part] = (factors[:, d_head + i].to(torch.float32).cpu() for i in range(2))
        return factors

    kept = _Kept(project, len(vocabulary))
    return RightFactor(kept.chunk, True, first, second, device, kept)


def _in_parts(
    left: torch.Tensor, right: torch.Tensor, n: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The product of bfloat16 matrices [v, n + zeros] and [n + zeros, d_head], summed in parts.

    Returns:
        [v, d_head] bfloat16; and [v] float32 bounds of the length of each row, and of the length of what
        rounding took from it, of the parts and of their sum. What float32 took from the sums of the parts is
        not in it.
    """
    edges = [*range(0, n, SUMMED)][1:]
    pairs = zip(left.tensor_split(edges, dim=1), right.tensor_split(edges), strict=True)
    parts = [some @ other for some, other in pairs]
    if len(parts) == 1:
        length = torch.linalg.vector_norm(parts[0], dim=1, dtype=torch.float32) * 1.001
        return parts[0], length, 2.0**-8 * 1.02 * length
    total = parts[0].to(torch.float32)
    sizes = total.abs()
    for part in parts[1:]:
        total += part
        sizes += part.abs()
    out = total.to(torch.bfloat16)
    # 1.02 covers the sums over parts as well: a few units of float32.
    taken = 2.0**-8 * 1.02 * torch.linalg.vector_norm(sizes, dim=1)
    taken += 1.001 * torch.linalg.vector_norm(total - out.to(torch.float32), dim=1)
    return out, torch.linalg.vector_norm(out, dim=1, dtype=torch.float32) * 1.001, taken


def roughly(rows: torch.Tensor, vocabulary: Vocabulary) -> torch.Tensor:
    """[R, V] logits of rows [R, d_model], on the device, with whatever error is cheap: to choose tokens."""
    device = vocabulary.device
    if not bfloat16_pays(device):
        left = rows.to(torch.float32).to(device)
        parts = torch.split(vocabulary.on_device[:, : vocabulary.d_model], PROJECTED)
        return torch.cat([left @ part.to(torch.float32).T for part in parts], dim=1)
    left = torch.nn.functional.pad(rows.to(torch.bfloat16), (0, CARRIED)).to(device)
    return left @ vocabulary.bfloat16.T


def bfloat16_pays(device: torch.device) -> bool:
    """Whether bfloat16 matrices multiply much faster than float32 ones: yes on CUDA, measured on a CPU."""
    return device.type == "cuda" or (device.type == "cpu" and rates(device).bfloat16_pays)
