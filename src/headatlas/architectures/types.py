"""Sizes, heads and right maps of a model.

Shapes follow the field's row-vector convention (source token on the left):
``logits(s) = R_l((x_l(s) @ W_V + b_V) @ W_O) @ U``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Dims:
    """Sizes of a decoder. ``d_head`` is the size of one value vector."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    vocab_size: int

    def kv_head(self, head: int) -> int:
        """The key/value group that query head ``head`` reads its values from."""
        return head // (self.n_heads // self.n_kv_heads)


@dataclass(frozen=True)
class LayerHeads:
    """Value and output weights of every head of one layer, float32."""

    W_V: torch.Tensor  # [n_kv_heads, d_model, d_head], shared by the query heads of a key/value group
    b_V: torch.Tensor | None  # [n_kv_heads, d_head]  # noqa: N815 (the field's name)
    W_O: torch.Tensor  # [n_heads, d_head, d_model]


@dataclass(frozen=True)
class RightMap:
    """The map of a head's output on its way to the unembedding, as far as it changes ranks."""

    post_gain: torch.Tensor | None
    """[d_model] effective gain of the norm after attention, if there is one (Gemma 2/3: ``1 + w``)."""
    centre: bool  # whether the final norm subtracts the mean (LayerNorm)
    final_gain: torch.Tensor | None  # [d_model] effective gain of the final norm, if it has a weight

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        """Map rows [..., d_model] of any float dtype; computed in that dtype, on the device of the rows."""
        if self.post_gain is not None:
            rows = rows * self.post_gain.to(rows)
        if self.centre:
            rows = rows - rows.mean(dim=-1, keepdim=True)
        if self.final_gain is not None:
            rows = rows * self.final_gain.to(rows)
        return rows
