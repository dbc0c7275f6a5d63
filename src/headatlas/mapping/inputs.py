"""One layer as the engine sees it: source states, value and output weights with the right map folded in."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from headatlas.architectures.types import Dims, LayerHeads, RightMap


@dataclass(frozen=True)
class LayerInputs:
    """Everything needed to map one layer.

    Attributes:
        dims: The model's sizes.
        states: [n, d_model] float32 source states x_l(s).
        heads: The layer's weights.
        right: The right map, or None where the lens has none.
        use_bias: Whether the lens keeps b_V.
        control_states: [n, d_model] float32: what the no-head control reads.
        control_right: The right map of the control (the final norm), or None.
    """

    dims: Dims
    states: torch.Tensor
    heads: LayerHeads
    right: RightMap | None
    use_bias: bool
    control_states: torch.Tensor
    control_right: RightMap | None

    @property
    def n_heads(self) -> int:
        return self.dims.n_heads

    def values(self, head: int) -> torch.Tensor:
        """[n, d_head] float64 value vectors x·W_V + b_V that query head ``head`` reads."""
        return self.group_values(self.dims.kv_head(head))

    def group_values(self, group: int) -> torch.Tensor:
        """[n, d_head] float64 value vectors of a key/value group."""
        out = self.states.to(torch.float64) @ self.heads.W_V[group].to(torch.float64)
        if self.use_bias and self.heads.b_V is not None:
            out = out + self.heads.b_V[group].to(torch.float64)
        return out

    def output(self, head: int) -> torch.Tensor:
        """[d_head, d_model] float64 W_O followed by the right map (linear, so it folds into W_O)."""
        W_O = self.heads.W_O[head].to(torch.float64)
        return W_O if self.right is None else self.right.apply(W_O)

    @property
    def control(self) -> torch.Tensor:
        """[n, d_model] float64 rows of the no-head control, ready for U."""
        rows = self.control_states.to(torch.float64)
        return rows if self.control_right is None else self.control_right.apply(rows)


@dataclass(frozen=True)
class GivenValues(LayerInputs):
    """A layer with a value row of its own for every query head and source.

    Attributes:
        rows: [n_heads, n, d_head] value rows; they take the place of x·W_V + b_V.
    """

    rows: torch.Tensor

    def group_values(self, group: int) -> torch.Tensor:
        """[n, d_head] float64 value rows; every query head is a group of its own here."""
        return self.rows[group].to(torch.float64)


def given_values(dims: Dims, rows: torch.Tensor, heads: LayerHeads, right: RightMap | None) -> GivenValues:
    """Make the inputs of a layer from value rows that were seen in texts, instead of those of a lens.

    Args:
        dims: The model's sizes.
        rows: [n_heads, n, d_head], for example slices of the input of the output projection; row i belongs to
            source i of the layout.
        heads: The layer's weights; of these only W_O is used.
        right: What a head's output passes on its way to U, or None.

    Returns:
        Inputs without a no-head control: its rows are zero and rank nothing.
    """
    nothing = torch.zeros(rows.shape[1], dims.d_model)
    return GivenValues(
        dims=replace(dims, n_kv_heads=dims.n_heads),
        states=nothing,
        heads=heads,
        right=right,
        use_bias=False,
        control_states=nothing,
        control_right=None,
        rows=rows,
    )
