"""One layer as the engine sees it: source states, value and output weights with the right map folded in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from headatlas.architectures import Dims, LayerHeads, RightMap


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
        given: [n_heads, n, d_head] value rows, float32 or float64, that take the place of x·W_V + b_V, or
            None. With them, every query head is a key/value group of its own.
    """

    dims: Dims
    states: torch.Tensor
    heads: LayerHeads
    right: RightMap | None
    use_bias: bool
    control_states: torch.Tensor
    control_right: RightMap | None
    given: torch.Tensor | None = None

    def values(self, group: int) -> torch.Tensor:
        """[n, d_head] float64 value vectors x·W_V + b_V of a key/value group."""
        return self.values_of([group])[group]

    def values_of(self, groups: Iterable[int]) -> dict[int, torch.Tensor]:
        """:meth:`values` of several groups, from one product."""
        if self.given is not None:
            return {group: self.given[group].to(torch.float64) for group in groups}
        some = sorted(set(groups))
        W_V = torch.cat([self.heads.W_V[group] for group in some], dim=1)
        values = self.states.to(torch.float64) @ W_V.to(torch.float64)
        if self.use_bias and self.heads.b_V is not None:
            values += torch.cat([self.heads.b_V[group] for group in some]).to(torch.float64)
        return dict(zip(some, torch.split(values, self.dims.d_head, dim=1), strict=True))

    def output(self, head: int) -> torch.Tensor:
        """[d_head, d_model] float64 W_O followed by the right map (linear, so it folds into W_O)."""
        W_O = self.heads.W_O[head].to(torch.float64)
        return W_O if self.right is None else self.right.apply(W_O)

    @property
    def control(self) -> torch.Tensor:
        """[n, d_model] float64 rows of the no-head control, ready for U."""
        rows = self.control_states.to(torch.float64)
        return rows if self.control_right is None else self.control_right.apply(rows)


def given_values(dims: Dims, rows: torch.Tensor, heads: LayerHeads, right: RightMap | None) -> LayerInputs:
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
    own_groups = replace(dims, n_kv_heads=dims.n_heads)
    return LayerInputs(own_groups, nothing, heads, right, False, nothing, None, given=rows)


def side_by_side(parts: Sequence[LayerInputs]) -> LayerInputs:
    """Make inputs of one layer whose rows are those of several, one after another: what is done once for a
    head is then done once for all of them.

    Args:
        parts: Inputs of the same layer, with the same right map, without a no-head control.
    """
    first, n_heads = parts[0], parts[0].dims.n_heads
    rows = [torch.stack([part.values(part.dims.kv_head(head)) for head in range(n_heads)]) for part in parts]
    return given_values(first.dims, torch.cat(rows, dim=1), first.heads, first.right)
