"""The MLP of a block, dense or of experts, built from the tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from headatlas.architectures.accounting import XIELU, Inventory, of_expert
from headatlas.architectures.config import ExpertSizes
from headatlas.architectures.experts import ExpertsWeights, Router, clamped_glu
from headatlas.architectures.family import MLP, Experts, Linear
from headatlas.architectures.layouts import as_linear
from headatlas.architectures.mlp import LinearWeights, MLPWeights, activation_function, xielu
from headatlas.errors import HeadatlasError

if TYPE_CHECKING:
    import torch

    Read = Callable[[str, slice | Sequence[int] | None], torch.Tensor]


class MlpReader:
    """Reads what stands after the norm in a block's second half."""

    def __init__(self, inventory: Inventory, read: Read) -> None:
        self._inventory = inventory
        self._read = read
        if inventory.section.mlp.xielu is None:
            self._activation = activation_function(
                inventory.sizes.activation, inventory.checkpoint.spec, inventory.sizes.gate_scale
            )
        else:
            names = [inventory.name(f"{inventory.section.mlp.xielu}.{each}!", 0) for each in XIELU]
            numbers = [read(name, None).double() for name in names]
            if many := [name for name, each in zip(names, numbers, strict=True) if each.numel() != 1]:
                raise HeadatlasError(
                    f"{inventory.stored[many[0]].file}: tensor {many[0]!r} must be one number; fetch the "
                    "file again."
                )
            self._activation = xielu(*numbers)

    def of(self, layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """The MLP of a layer, for normed rows [n, d_model]; the layer must have one."""
        experts, sizes = self._inventory.layers[layer].experts, self._inventory.sizes.experts
        if experts is None or sizes is None:
            return self._mlp(self._inventory.section.mlp, layer)
        return self._mixture(experts, sizes, layer)

    def _mixture(self, experts: Experts, sizes: ExpertSizes, layer: int) -> ExpertsWeights:
        names = self._inventory
        correction = experts.correction
        shared = experts.shared if sizes.shared_width else None
        gate = experts.shared_gate if shared is not None else None
        router = Router(
            logits=self._linear(experts.router, layer),
            scores=experts.scores,
            top_k=sizes.top_k,
            normalise=names.holds(experts.normalise),
            correction=None
            if correction is None
            else self._read(names.name(correction, layer), None).flatten(),
            groups=sizes.groups if names.holds(experts.grouped) else 1,
            top_groups=sizes.top_groups,
            group_score=experts.group_score,
            scale=sizes.scale,
            jitter=sizes.jitter,
        )
        return ExpertsWeights(
            router=router,
            expert=lambda number: self._expert(experts, layer, number),
            shared=None if shared is None else self._mlp(shared, layer),
            shared_gate=None if gate is None else self._linear(gate, layer),
            weighs_input=experts.weighs_input,
        )

    def _expert(self, experts: Experts, layer: int, number: int) -> MLPWeights:
        def of(linear: Linear | None) -> LinearWeights | None:
            if linear is None:
                return None
            if experts.layout == "separate":
                return self._linear(of_expert(linear, number), layer)
            if experts.layout == "flat":
                return self._flat(linear, layer, number, transposed=linear is experts.down)
            one, bias = [number], self._inventory.bias(linear, layer)
            weight = self._read(self._inventory.name(linear.stem, layer), one)[0]
            return LinearWeights(
                weight=weight if experts.layout == "stacked" else weight.T,
                bias=None if bias is None else self._read(bias, one)[0],
            )

        gate, up, down = of(experts.gate), of(experts.up), of(experts.down)
        if (both := of(experts.gate_up)) is not None:
            gate, up = _interleaved(both) if experts.interleaved else _halves(both)
        return self._whole(gate, up, down, clamped=experts.glu == "clamped")

    def _flat(self, linear: Linear, layer: int, number: int, *, transposed: bool) -> LinearWeights:
        """One expert's rows out of all experts' below each other; what goes out is stored transposed."""
        sizes = self._inventory.sizes.experts
        width = 0 if sizes is None else sizes.width
        rows = slice(number * width, (number + 1) * width)
        weight = self._read(self._inventory.name(linear.stem, layer), rows)
        return LinearWeights(weight.T if transposed else weight, None)

    def _mlp(self, mlp: MLP, layer: int) -> MLPWeights:
        def of(linear: Linear | None) -> LinearWeights | None:
            return None if linear is None else self._linear(linear, layer)

        gate, up, down = of(mlp.gate), of(mlp.up), of(mlp.down)
        if (both := of(mlp.gate_up)) is not None:
            gate, up = _halves(both)
        return self._whole(gate, up, down)

    def _whole(
        self,
        gate: LinearWeights | None,
        up: LinearWeights | None,
        down: LinearWeights | None,
        clamped: bool = False,
    ) -> MLPWeights:
        if up is None or down is None:
            raise ValueError("family file: an MLP without 'up' or 'down'")
        return MLPWeights(gate, up, down, self._activation, clamped_glu if clamped else None)

    def _linear(self, linear: Linear, layer: int) -> LinearWeights:
        bias = self._inventory.bias(linear, layer)
        return LinearWeights(
            weight=as_linear(self._read(self._inventory.name(linear.stem, layer), None), linear.layout),
            bias=None if bias is None else self._read(bias, None),
        )


def _halves(both: LinearWeights) -> tuple[LinearWeights, LinearWeights]:
    """Gate and up from one projection with the gate's outputs first."""
    width = both.weight.shape[0] // 2
    return _part(both, slice(None, width)), _part(both, slice(width, None))


def _interleaved(both: LinearWeights) -> tuple[LinearWeights, LinearWeights]:
    """Gate and up from one projection whose outputs alternate."""
    return _part(both, slice(0, None, 2)), _part(both, slice(1, None, 2))


def _part(both: LinearWeights, rows: slice) -> LinearWeights:
    return LinearWeights(both.weight[rows], None if both.bias is None else both.bias[rows])
