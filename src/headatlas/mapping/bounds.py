"""Upper bounds of logits, from cheap arithmetic with a proven error.

A :class:`Columns` is a right factor (U itself, or U in the output space of one head) that yields, for rows of
length one and a chunk of the vocabulary, numbers surely not below the logits, and says how far below them the
logits can be. Which one is taken changes the time of a map and no rank: what the bounds leave open is decided
in float64.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from headatlas.mapping.vocabulary import CARRIED, Vocabulary, dot_error

_UP = 1 + 2.0**-7
"""Keeps a bound above what it bounds when it is rounded to bfloat16."""
GATHERED = 32_768
PROJECTED = 8192

Ints = NDArray[np.int64]
Tokens = Callable[[Ints, torch.dtype], torch.Tensor]


@dataclass(frozen=True)
class Columns:
    """A right factor whose products bound logits.

    Attributes:
        chunk: (start, stop) → [stop - start, q + carried] factors of these vocabulary columns.
        carries: Whether the factors hold their errors in further columns (bfloat16), rather than leave them
            to be added (float32).
        first: [V] float32 error for a row of length one.
        second: [V] float32 error for each unit of length that rounding took from a row; zeros in float32.
        tokens: (tokens, dtype) → [n, q] unrounded factors of single columns.
        lengths: [V] float64 lengths of the rows of U.
        device: Where the factors are.
        relative: Error of a float32 dot product of a row of length one with :attr:`tokens` in float32, as a
            share of the length of the row of U.
        rounding: Relative error of a stored bound.
    """

    chunk: Callable[[int, int], torch.Tensor]
    carries: bool
    first: torch.Tensor
    second: torch.Tensor
    tokens: Tokens
    lengths: NDArray[np.float64]
    device: torch.device
    relative: float
    rounding: float


@dataclass(frozen=True)
class Bounded:
    """Rows of length one (or zero) against some columns.

    Attributes:
        columns: The right factor.
        rows: [L, q] float64.
    """

    columns: Columns
    rows: torch.Tensor

    @cached_property
    def _left(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Left factors on the device, and [L] float32 what rounding took from each row."""
        n, q = self.rows.shape
        device = self.columns.device
        if not self.columns.carries:
            return self.rows.to(torch.float32).to(device), torch.zeros(n)
        left = torch.zeros((n, q + CARRIED), dtype=torch.bfloat16)
        left[:, :q] = self.rows
        lost = torch.linalg.vector_norm(self.rows - left[:, :q].to(torch.float64), dim=1)
        left[:, q] = 1.0
        left[:, q + 1] = lost * 1.01 * _UP
        return left.to(device), left[:, q + 1].to(torch.float32)

    def upper(self, index: Ints, start: int, stop: int) -> torch.Tensor:
        """[len(index), stop - start] bounds from above, in the dtype of the factors."""
        left = self._left[0]
        mine = left if len(index) == len(left) else left[torch.from_numpy(index).to(left.device)]
        bounds = mine @ self.columns.chunk(start, stop).T
        if self.columns.carries:
            return bounds
        return bounds.add_(self.columns.first[start:stop].to(bounds.device))

    def lower(self, upper: torch.Tensor, row: Ints, token: Ints) -> torch.Tensor:
        """[n] float32 bounds from below of single logits, given their bounds from above."""
        token_, carried = torch.from_numpy(token), self._left[1][torch.from_numpy(row)]
        error = self.columns.first[token_] + carried * self.columns.second[token_]
        return upper - 2.001 * error - upper.abs() * self.columns.rounding

    def most_slack(self, row: Ints) -> torch.Tensor:
        """[n] float32: no bound from above of these rows is farther than this from its logit."""
        carried = self._left[1][torch.from_numpy(row)]
        return 2.001 * (self.columns.first.max() + carried * self.columns.second.max())

    def logits(self, row: Ints, token: Ints, dtype: torch.dtype) -> NDArray[np.float64]:
        """[n] single logits, in float64 or (with an error of ``columns.relative``) in float32."""
        distinct, place = np.unique(token, return_inverse=True)
        return dots(self.rows.to(dtype), row, self.columns.tokens(distinct, dtype), place)

    def part(self, rows: slice) -> Bounded:
        """The same for some of the rows."""
        return Bounded(self.columns, self.rows[rows])


def dots(left: torch.Tensor, i: Ints, right: torch.Tensor, j: Ints) -> NDArray[np.float64]:
    """Dot products of rows i of one matrix with rows j of another, in their dtype."""
    out = np.empty(len(i))
    for start in range(0, len(i), GATHERED):
        part = slice(start, start + GATHERED)
        a, b = left[torch.from_numpy(i[part])], right[torch.from_numpy(j[part])]
        out[part] = torch.einsum("ed,ed->e", a, b).numpy()
    return out


def whole(vocabulary: Vocabulary) -> Columns:
    """U itself, for rows in the model's dimension: d_model multiply-adds a logit.

    In bfloat16, o·U = õ·Ũ + õ·(U - Ũ) + (o - õ)·U for the rounded õ and Ũ, and by Cauchy–Schwarz the last two
    are at most ‖õ‖·‖U - Ũ‖ + ‖o - õ‖·‖U‖. Both norms are measured, not estimated: they are several times
    smaller than the worst case of a rounding, and travel as two more dimensions of the product. Products of
    bfloat16 numbers are exact in float32, in which they are summed.
    """
    relative = dot_error(vocabulary.d_model)

    def tokens(wanted: Ints, dtype: torch.dtype) -> torch.Tensor:
        return vocabulary.rows[torch.from_numpy(wanted)].to(dtype)

    if bfloat16_pays(vocabulary.device):
        first, second = vocabulary.bfloat16_errors
        return _carrying(vocabulary.bfloat16, first, second, vocabulary, tokens, relative)

    def chunk(start: int, stop: int) -> torch.Tensor:
        return vocabulary.on_device[start:stop].to(torch.float32)

    return _in_float32(chunk, vocabulary, tokens, relative)


def in_head(basis: torch.Tensor, vocabulary: Vocabulary) -> Columns:
    """U projected onto a head's output space once: d_head multiply-adds a logit from then on.

    Args:
        basis: [d_head, d_model] float64 orthonormal rows that span the head's outputs.
        vocabulary: Competing rows of U.
    """
    narrow = basis.to(torch.float32)

    def tokens(wanted: Ints, dtype: torch.dtype) -> torch.Tensor:
        Q = basis if dtype == torch.float64 else narrow
        parts = np.array_split(wanted, len(wanted) // PROJECTED + 1)
        return torch.cat([vocabulary.rows[torch.from_numpy(part)].to(dtype) @ Q.T for part in parts])

    relative = head_error(basis)
    if bfloat16_pays(vocabulary.device):
        return _head_in_bfloat16(basis, vocabulary, tokens, relative)
    right, on_device = narrow.T.to(vocabulary.device), vocabulary.on_device
    factors = torch.cat([on_device[part].to(torch.float32) @ right for part in _parts(len(vocabulary))])
    return _in_float32(lambda start, stop: factors[start:stop], vocabulary, tokens, relative)


def _in_float32(
    chunk: Callable[[int, int], torch.Tensor], vocabulary: Vocabulary, tokens: Tokens, relative: float
) -> Columns:
    error = 1.001 * relative * vocabulary.norms
    none = torch.zeros_like(error)
    return Columns(
        chunk, False, error, none, tokens, vocabulary.lengths, vocabulary.device, relative, 2.0**-22
    )


def _carrying(
    factors: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    vocabulary: Vocabulary,
    tokens: Tokens,
    relative: float,
) -> Columns:
    def chunk(start: int, stop: int) -> torch.Tensor:
        return factors[start:stop]

    return Columns(
        chunk, True, first, second, tokens, vocabulary.lengths, vocabulary.device, relative, 2.0**-7
    )


def head_error(basis: torch.Tensor) -> float:
    """Relative error of float32 logits through a head's output space.

    Each of the d_head coordinates of a projected row of U has the error of one dot product, and the second
    product its own.
    """
    d_head, d_model = basis.shape
    return float(d_head**0.5 * dot_error(d_model) + 2 * dot_error(d_head))


def _parts(n: int) -> list[slice]:
    return [slice(start, min(start + PROJECTED, n)) for start in range(0, n, PROJECTED)]


def _head_in_bfloat16(
    basis: torch.Tensor, vocabulary: Vocabulary, tokens: Tokens, relative: float
) -> Columns:
    """U projected and kept in bfloat16, with the errors carried.

    With the rounded basis Q̃ and Ũ and the stored projection P of Q̃·Ũ,
    ‖Q·U - P‖ ≤ ‖Q - Q̃‖·‖U‖ + ‖Q̃‖·‖U - Ũ‖ + ‖Q̃·Ũ - P‖: the first norm is the largest singular value, the last
    at most a unit roundoff of ‖P‖.
    """
    right, device = vocabulary.bfloat16, vocabulary.device
    d_head, d_model = basis.shape
    rounded = torch.zeros((right.shape[1], d_head), dtype=torch.bfloat16)
    rounded[:d_model] = basis.T
    lost = basis - rounded[:d_model].T.to(torch.float64)
    spread = 1.001 * float(torch.linalg.eigvalsh(lost @ lost.T)[-1].clamp(min=0)) ** 0.5
    of_U = (spread + 2 * relative) * vocabulary.norms + (1 + spread) * vocabulary.bfloat16_errors[0]
    of_U, rounded = (1.001 * of_U).to(device), rounded.to(device)
    factors = torch.zeros((len(vocabulary), d_head + CARRIED), dtype=torch.bfloat16, device=device)
    for part in _parts(len(vocabulary)):
        projected = right[part] @ rounded
        length = torch.linalg.vector_norm(projected, dim=1, dtype=torch.float32) * 1.001
        factors[part, :d_head] = projected
        factors[part, d_head] = (of_U[part] + 2.0**-8 * 1.02 * length) * _UP
        factors[part, d_head + 1] = length * _UP
    first, second = (factors[:, d_head + i].to(torch.float32).cpu() for i in range(2))
    return _carrying(factors, first, second, vocabulary, tokens, relative)


def roughly(rows: torch.Tensor, vocabulary: Vocabulary) -> torch.Tensor:
    """[R, V] logits of rows [R, d_model], on the device, with whatever error is cheap: to choose tokens."""
    device = vocabulary.device
    if not bfloat16_pays(device):
        left = rows.to(torch.float32).to(device)
        parts = torch.split(vocabulary.on_device, PROJECTED)
        return torch.cat([left @ part.to(torch.float32).T for part in parts], dim=1)
    left = torch.nn.functional.pad(rows.to(torch.bfloat16), (0, CARRIED)).to(device)
    return left @ vocabulary.bfloat16.T


@cache
def bfloat16_pays(device: torch.device) -> bool:
    """Whether bfloat16 matrices multiply much faster than float32 ones: yes on CUDA, measured on a CPU."""
    if device.type != "cpu":
        return device.type == "cuda"
    left, right = torch.ones(256, 512), torch.ones(4096, 512)
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        a, b = left.to(dtype), right.to(dtype).T
        times = []
        for _ in range(4):
            start = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - start)
        seconds.append(min(times))
    return seconds[1] < 0.5 * seconds[0]
