"""Sizes, heads and right maps of a model; layouts of stored projections, from which W_V, b_V and W_O come.

Shapes follow the field's row-vector convention (source token on the left):
``logits(s) = R_l((x_l(s) @ W_V + b_V) @ W_O) @ U``.

Every layout is first brought to ``[out, in]``; then a value layout says which outputs are values:

==============  ==============  ===================================================================
value layout    stored          outputs
==============  ==============  ===================================================================
linear          [out, in]       values only, grouped by key/value head
stacked_qkv     [out, in]       all queries, then all keys, then all values
conv1d_qkv      [in, out]       the same, transposed: GPT-2's Conv1D
per_head_qkv    [out, in]       head by head: query, key, value (GPT-NeoX)
conv1d_per_head [in, out]       the same, transposed
grouped_qkv     [out, in]       by key/value head: its queries, its key, its value (Falcon)
blocks_qvk      [out, in]       four blocks of heads: their queries, values, keys (CodeGen)
latent          [out, latent]   head by head: key, value; from a latent that a second projection makes
latent_by_head  [head, out, l.] the values alone, l. the latent
==============  ==============  ===================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

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


LinearLayout = Literal["linear", "conv1d", "vector"]
"""[out, in]; [in, out]; or [in] for a projection to one number."""
ValueLayout = Literal[
    "linear",
    "stacked_qkv",
    "conv1d_qkv",
    "per_head_qkv",
    "conv1d_per_head",
    "grouped_qkv",
    "blocks_qvk",
    "latent",
    "latent_by_head",
]


def stored_as(layout: ValueLayout) -> LinearLayout:
    """The way a value layout's weight is stored, whatever its outputs are."""
    return "conv1d" if layout.startswith("conv1d") else "linear"


def linear_shape(layout: LinearLayout, d_out: int, d_in: int) -> tuple[int, ...]:
    """Stored shape of a projection from ``d_in`` to ``d_out``."""
    if layout == "vector":
        return (d_in,)
    return (d_in, d_out) if layout == "conv1d" else (d_out, d_in)


def as_linear(stored: torch.Tensor, layout: LinearLayout) -> torch.Tensor:
    """The weight as [out, in]."""
    if layout == "vector":
        return stored.unsqueeze(0)
    return stored.T if layout == "conv1d" else stored


def value_width(layout: ValueLayout, dims: Dims) -> int:
    """Number of outputs of the projection that makes the values."""
    if layout == "linear":
        return dims.n_kv_heads * dims.d_head
    return (dims.n_heads + 2 * dims.n_kv_heads) * dims.d_head


def value_rows(layout: ValueLayout, dims: Dims) -> slice | None:
    """Rows of the stored weight that suffice; None if all are needed."""
    if layout == "stacked_qkv":
        return slice((dims.n_heads + dims.n_kv_heads) * dims.d_head, value_width(layout, dims))
    return None


def value_outputs(outputs: torch.Tensor, layout: ValueLayout, dims: Dims) -> torch.Tensor:
    """Values [n_kv_heads, d_head, ...] of a weight [out, in] (or its :func:`value_rows`) or bias [out]."""
    if layout in ("per_head_qkv", "conv1d_per_head", "grouped_qkv", "blocks_qvk"):
        return split_fused(outputs, layout, dims)[2]
    # Values come last in every other layout, so this also holds when only their rows were read.
    values = outputs[-dims.n_kv_heads * dims.d_head :]
    return values.reshape(dims.n_kv_heads, dims.d_head, *outputs.shape[1:])


def split_latent(
    up: torch.Tensor, down: torch.Tensor, down_bias: torch.Tensor | None, gain: torch.Tensor, dims: Dims
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """W_V and b_V of values made from a latent: multi-head latent attention, arXiv:2405.04434 §2.1.

    The latent of a source is ``norm(x @ down.T)``. Its norm divides by one positive number per source, the
    same for all heads; ranks do not change with it and it is left out. What is left is linear:
    ``W_V = down.T * gain @ up_value.T``.

    ``up`` is [n_heads * (key + d_head), latent], for each head the rows of its key, then of its value; or
    [n_heads, d_head, latent]. Of ``down`` [latent + rotary key, d_model] the latent's rows come first; its
    bias goes through the same norm, so it folds in as well. ``gain`` [latent] is the norm's.
    Returns W_V [n_heads, d_model, d_head], b_V [n_heads, d_head] or None.
    """
    latent = gain.shape[0]
    values = up.reshape(dims.n_heads, -1, latent)[:, -dims.d_head :] * gain  # [n_heads, d_head, latent]
    weight = (values @ down[:latent]).transpose(1, 2).contiguous()
    return weight, None if down_bias is None else values @ down_bias[:latent]


def split_outputs(stored: torch.Tensor, layout: LinearLayout, dims: Dims) -> torch.Tensor:
    """W_O [n_heads, d_head, d_model] from the stored output projection."""
    return as_linear(stored, layout).T.reshape(dims.n_heads, dims.d_head, dims.d_model).contiguous()


def split_fused(
    outputs: torch.Tensor, layout: ValueLayout, dims: Dims
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries [n_heads, d_head, ...], keys and values [n_kv_heads, d_head, ...] of a fused projection.

    ``outputs`` is its weight or bias, with the projection's outputs on the first axis.
    """
    rest = outputs.shape[1:]
    if layout in ("per_head_qkv", "conv1d_per_head", "grouped_qkv"):
        groups = outputs.reshape(dims.n_kv_heads, -1, dims.d_head, *rest)
        queries, keys, values = groups[:, :-2], groups[:, -2], groups[:, -1]
    elif layout == "blocks_qvk":
        queries, values, keys = outputs.reshape(4, 3, -1, *rest).unbind(1)
    else:
        n_queries, n_keys = dims.n_heads * dims.d_head, dims.n_kv_heads * dims.d_head
        queries, keys = outputs[:n_queries], outputs[n_queries : n_queries + n_keys]
        values = outputs[n_queries + n_keys :]
    shape = (-1, dims.d_head, *rest)
    return queries.reshape(shape), keys.reshape(shape), values.reshape(shape)
