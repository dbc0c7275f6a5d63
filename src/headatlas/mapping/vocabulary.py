"""The competing rows of the unembedding, and the rounding errors that the engine's proofs rest on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

UNIT_ROUNDOFF = 2.0**-24
"""Of float32."""
TIE = 2.0**-36
"""Logits closer than this × ‖head output‖ × the longest row of U are a tie; ties count against the target.

Float64 rounding is thousands of times smaller, so which side of this line a pair falls on does not depend on
the order of summation; rows of U that are copies of each other always tie.
"""
ROWS_AT_ONCE = 16_384


@dataclass(frozen=True)
class Vocabulary:
    """Competing rows of U.

    Attributes:
        rows: [V, d_model] U transposed, in bfloat16 where that loses nothing, else in float32. One row per
            competing token, in token order.
        token_ids: [V] their token ids.
        device: Where bounds are computed. Float64 stays on the processor: not every device has it.
    """

    rows: torch.Tensor
    token_ids: NDArray[np.int64]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def competing(cls, unembed: torch.Tensor, competing: NDArray[np.bool_]) -> Vocabulary:
        """Keep the rows that compete.

        Args:
            unembed: [vocab, d_model] U transposed.
            competing: [vocab] whether a token competes.
        """
        return cls.read(lambda part: unembed[part], competing)

    @classmethod
    def read(cls, rows: Callable[[slice], torch.Tensor], competing: NDArray[np.bool_]) -> Vocabulary:
        """Read U some rows at a time and keep those that compete.

        Most checkpoints store bfloat16; held so, U takes half the memory and is still exact.

        Args:
            rows: Reads rows of U transposed, [n, d_model].
            competing: [vocab] whether a token competes.
        """
        ids = np.flatnonzero(competing)
        kept: torch.Tensor | None = None
        filled = 0
        for start in range(0, len(competing), ROWS_AT_ONCE):
            part = slice(start, min(start + ROWS_AT_ONCE, len(competing)))
            mine = torch.from_numpy(np.flatnonzero(competing[part]))
            found = rows(part)[mine].to(torch.float32)
            fits = torch.equal(found.to(torch.bfloat16).to(torch.float32), found)
            if kept is None:
                dtype = torch.bfloat16 if fits else torch.float32
                kept = torch.empty((len(ids), found.shape[1]), dtype=dtype)
            elif not fits:
                kept = kept.to(torch.float32)
            kept[filled : filled + len(found)] = found
            filled += len(found)
        if kept is None:
            raise ValueError("no token competes")
        return cls(kept, ids)

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def d_model(self) -> int:
        return self.rows.shape[1]

    @cached_property
    def norms(self) -> torch.Tensor:
        """[V] float32 lengths of the rows."""
        parts = torch.split(self.rows, ROWS_AT_ONCE)
        return torch.cat([torch.linalg.vector_norm(part.to(torch.float32), dim=1) for part in parts])

    @cached_property
    def lengths(self) -> NDArray[np.float64]:
        """[V] float64 lengths of the rows, rounded up."""
        lengths: NDArray[np.float64] = self.norms.to(torch.float64).numpy() * (1 + 1e-6)
        return lengths

    @cached_property
    def longest(self) -> float:
        """Length of the longest row, rounded up."""
        return float(self.lengths.max())

    @cached_property
    def on_device(self) -> torch.Tensor:
        """:attr:`rows` on the device."""
        return self.rows.to(self.device)

    @cached_property
    def bfloat16(self) -> torch.Tensor:
        """[V, d_model] bfloat16 on the device: U rounded."""
        return self.on_device.to(torch.bfloat16)

    @cached_property
    def bfloat16_lost(self) -> torch.Tensor:
        """[V] float32 bounds of the length of what rounding to bfloat16 lost; zeros where U is bfloat16."""
        lost = torch.zeros(len(self))
        if self.rows.dtype != torch.bfloat16:
            for start in range(0, len(self), ROWS_AT_ONCE):
                part = slice(start, start + ROWS_AT_ONCE)
                rest = self.rows[part] - self.rows[part].to(torch.bfloat16).to(torch.float32)
                lost[part] = 1.001 * torch.linalg.vector_norm(rest, dim=1)
        return lost

    def columns(self, token_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """[n] columns of tokens, all of which compete."""
        return np.searchsorted(self.token_ids, token_ids)

    def float32(self, tokens: NDArray[np.int64]) -> torch.Tensor:
        """[n, d_model] float32 rows of the given columns, exact, on the device."""
        return some_of(self.rows, tokens).to(torch.float32).to(self.device)


def some_of(values: torch.Tensor, which: NDArray[np.int64]) -> torch.Tensor:
    """Elements or rows of a tensor: ``values[which]``, in up to a tenth of the time."""
    return values.index_select(0, torch.from_numpy(which).to(values.device))


def dot_error(length: int) -> float:
    """Bound of |float32 a·b − a·b| / (‖a‖ ‖b‖) for vectors of this length, a first rounded to float32.

    The usual γ_n = nu/(1 − nu) (Higham, *Accuracy and Stability of Numerical Algorithms*, section 3.1) holds
    for every order of summation; a few units are added for the rounding of a and of the threshold.
    """
    n = length + 8
    return n * UNIT_ROUNDOFF / (1 - n * UNIT_ROUNDOFF)


def summing_error(length: int, device: torch.device) -> float:
    """Bound as of :func:`dot_error`, for products of bfloat16 numbers that a device sums in float32.

    Processors round every sum. Tensor cores cut off instead, and align products before they add them (Fasi,
    Higham, Mikaitis and Pranesh, *Numerical behavior of NVIDIA tensor cores*, PeerJ Computer Science 7,
    2021): four times as much covers that.
    """
    return dot_error(length) * (1.0 if device.type == "cpu" else 4.0)
