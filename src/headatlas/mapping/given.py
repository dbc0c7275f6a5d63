"""A layer whose value rows are given: what heads were seen to read, instead of what a lens says they read."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from headatlas.architectures.types import Dims, LayerHeads, RightMap
from headatlas.mapping.inputs import LayerInputs


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
    """Inputs for :func:`headatlas.mapping.engine.map_layer` (or the oracle) from ready-made value rows.

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
