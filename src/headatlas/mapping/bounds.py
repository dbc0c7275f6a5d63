"""Logits from cheap arithmetic, with a proven error.

A :class:`RightFactor` (U itself, or U in the output space of one head) yields, for rows of length one and a
chunk of the vocabulary, numbers near the logits, and says how far from them the logits can be.
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
from headatlas.mapping.vocabulary import Vocabulary, dot_error, some_of, summing_error

GATHERED = 1 << 18
"""Numbers of U that are gathered at a time for single logits; they should fit into a cache."""
PROJECTED = 8192
SUMMED = 1024
"""Products that are summed in one go. The worst case of a sum grows with its length, so a long one is made of
parts, which are added up afterwards: for single logits in float64, for projections in float32."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class RightFactor:
    """A right factor whose products are near logits.

    Attributes:
        chunk: (start, stop) → [stop - start, q] factors of these vocabulary columns.
        dtype: Of the factors, of rows that are multiplied with them, and of products.
        first: [V] float32 error for a row of length one.
        second: [V] float32 error for each unit of length that rounding took from a row.
        device: Where the factors are.
        kept: Factors that are made when they are first asked for; None where all are there.
    """

    chunk: Callable[[int, int], torch.Tensor]
    dtype: torch.dtype
    first: torch.Tensor
    second: torch.Tensor
    device: torch.device
    kept: _Kept | None = None

    @property
    def rounding(self) -> float:
        """Relative error that storing a product adds; more than half a unit in the last place."""
        return 1.01 * 2.0**-8 if self.dtype == torch.bfloat16 else 2.0**-22


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
        """Left factors on the device, and [L] float32 bounds of what rounding took from each row."""
        left = self.rows.to(self.factor.dtype)
        lost = torch.linalg.vector_norm(self.rows - left.to(torch.float64), dim=1)
        return left.to(self.factor.device), 1.001 * lost.to(torch.float32)

    def near(self, index: Ints, start: int, stop: int) -> torch.Tensor:
        """[len(index), stop - start] numbers near the logits, in the dtype of the factors."""
        left = self._left[0]
        mine = left if len(index) == len(left) else some_of(left, index)
        return mine @ self.factor.chunk(start, stop).T

    def error(self, row: Ints, token: Ints) -> torch.Tensor:
        """[n] float32: how far single logits are at most from these numbers, beside ``factor.rounding``."""
        first, second = (some_of(part, token) for part in (self.factor.first, self.factor.second))
        return first + some_of(self._left[1], row) * second

    def most_error(self, row: Ints, start: int, stop: int) -> torch.Tensor:
        """[n] float32: the largest :meth:`error` of these rows and columns, or more."""
        first, second = (part[start:stop].max() for part in (self.factor.first, self.factor.second))
        return first + some_of(self._left[1], row) * second

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
        left, right = some_of(rows, row[part]), some_of(vocabulary.rows, token[part])
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
    smaller than the worst case of a rounding. Products of bfloat16 numbers are exact in float32, in which
    they are summed.
    """
    if bfloat16_pays(vocabulary.device):
        right, device = vocabulary.bfloat16, vocabulary.device
        # ‖õ‖ and ‖Ũ‖ are longer than ‖o‖ and ‖U‖ by a rounding at most, which 1.01 covers.
        first = 1.01 * (
            vocabulary.bfloat16_lost + summing_error(vocabulary.d_model, device) * vocabulary.norms
        )
        second = 1.001 * vocabulary.norms
        return RightFactor(lambda start, stop: right[start:stop], right.dtype, first, second, device)
    stored = vocabulary.on_device
    return _in_float32(
        lambda start, stop: stored[start:stop].to(torch.float32),
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
        return projected(stored[part].to(torch.float32), right)

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
        """[stop - start, q] factors."""
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
    return RightFactor(chunk, torch.float32, error, torch.zeros_like(error), vocabulary.device)


def _head_in_bfloat16(basis: torch.Tensor, vocabulary: Vocabulary) -> RightFactor:
    """U projected and kept in bfloat16.

    With the rounded basis Q̃ and Ũ and the stored projection P of Q̃·Ũ,
    ‖Q·U - P‖ ≤ ‖Q - Q̃‖·‖U‖ + ‖Q̃‖·‖U - Ũ‖ + ‖Q̃·Ũ - P‖: the first norm is the largest singular value, the last
    that of the sums of each part, at most γ·‖Q̃‖_F·‖Ũ‖ as the parts of both are, of the rounding of their
    results, at most a unit roundoff of each, and of the rounding of P, which is measured.
    """
    right, device = vocabulary.bfloat16, vocabulary.device
    d_head, d_model = basis.shape
    rounded = basis.T.to(torch.bfloat16)
    lost = basis - rounded.T.to(torch.float64)
    spread = 1.001 * float(torch.linalg.eigvalsh(lost @ lost.T)[-1].clamp(min=0)) ** 0.5
    size = float(torch.linalg.vector_norm(rounded, dtype=torch.float64)) * (1 + 2.0**-7)
    relative = size * summing_error(min(d_model, SUMMED), device) + 2 * summing_error(d_head, device)
    of_U = (spread + relative) * vocabulary.norms + (1 + spread) * vocabulary.bfloat16_lost
    of_U, rounded = (1.001 * of_U).to(device), rounded.to(device)
    first, second = torch.zeros(len(vocabulary)), torch.zeros(len(vocabulary))

    def project(part: slice) -> torch.Tensor:
        found, length, taken = _in_parts(right[part], rounded)
        # The rows that are multiplied with them are longer than one by a rounding at most.
        first[part], second[part] = 1.01 * (of_U[part] + taken).cpu(), length.cpu()
        return found

    kept = _Kept(project, len(vocabulary))
    return RightFactor(kept.chunk, right.dtype, first, second, device, kept)


def _in_parts(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The product of bfloat16 matrices [v, n] and [n, d_head], summed in parts of n.

    Returns:
        [v, d_head] bfloat16; and [v] float32 bounds of the length of each row, and of the length of what
        rounding took from it, of the parts and of their sum. What float32 took from the sums of the parts is
        not in it.
    """
    pairs = zip(torch.split(left, SUMMED, dim=1), torch.split(right, SUMMED), strict=True)
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
        parts = torch.split(vocabulary.on_device, PROJECTED)
        return torch.cat([left @ part.to(torch.float32).T for part in parts], dim=1)
    return rows.to(torch.bfloat16).to(device) @ vocabulary.bfloat16.T


def bfloat16_pays(device: torch.device) -> bool:
    """Whether bfloat16 matrices multiply much faster than float32 ones: yes on CUDA, measured on a CPU."""
    return device.type == "cuda" or (device.type == "cpu" and rates(device).bfloat16_pays)
