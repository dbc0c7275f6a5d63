"""A block's norm and MLP, dense or of experts, as plain tensor arithmetic, built from a checkpoint's tensors.

The arithmetic is done in the dtype and on the device of the rows, which never went through a model. Experts
are read one at a time, and only those that some row is sent to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from headatlas.architectures.accounting import XIELU, Inventory, of_expert
from headatlas.architectures.family import MLP, Experts, Linear
from headatlas.architectures.layouts import as_linear
from headatlas.architectures.sizes import ExpertSizes
from headatlas.errors import HeadatlasError

if TYPE_CHECKING:
    import torch

    Read = Callable[[str, slice | Sequence[int] | None], torch.Tensor]


# Rows whose hidden layer is in memory at a time: 256 MB at a width of 14,336.
_ROWS = 4096


@dataclass(frozen=True)
class NormWeights:
    """A norm: ``rms`` divides by the root mean square, ``layer`` by the standard deviation after centring."""

    kind: Literal["rms", "layer"]
    eps: float
    gain: torch.Tensor | None
    bias: torch.Tensor | None

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Norm rows [..., d_model]."""
        if self.kind == "layer":
            rows = rows - rows.mean(dim=-1, keepdim=True)
        rows = rows * (rows.square().mean(dim=-1, keepdim=True) + self.eps).rsqrt()
        if self.gain is not None:
            rows = rows * self.gain.to(rows)
        return rows if self.bias is None else rows + self.bias.to(rows)


@dataclass(frozen=True)
class LinearWeights:
    """A projection with its weight as [out, in]."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Project rows [..., in] to [..., out]."""
        out = rows @ self.weight.to(rows).T
        return out if self.bias is None else out + self.bias.to(rows)


@dataclass(frozen=True)
class MLPWeights:
    """``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))`` without a gate.

    Attributes:
        glu: What joins ``gate(x)`` and ``up(x)`` where it is not ``act(gate) * up``.
    """

    gate: LinearWeights | None
    up: LinearWeights
    down: LinearWeights
    activation: Callable[[torch.Tensor], torch.Tensor]
    glu: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map rows [n, d_model] to [n, d_model]."""
        if self.gate is None:
            return self.down(self.activation(self.up(x)))
        if self.glu is not None:
            return self.down(self.glu(self.gate(x), self.up(x)))
        return self.down(self.activation(self.gate(x)) * self.up(x))


def in_parts(
    rows: torch.Tensor, norm: NormWeights | None, feed: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """``feed(norm(rows))`` of rows [n, d_model], a few thousand at a time, in at least float32."""
    import torch

    dtype = torch.promote_types(rows.dtype, torch.float32)
    out = rows.new_empty(rows.shape, dtype=dtype)
    for start in range(0, rows.shape[0], _ROWS):
        part = rows[start : start + _ROWS].to(dtype)
        out[start : start + _ROWS] = feed(part if norm is None else norm(part))
    return out


def activation_function(name: str, spec: str, scale: float = 1.0) -> Callable[[torch.Tensor], torch.Tensor]:
    """The activation that transformers knows under this name, of its argument times ``scale``.

    Raises:
        HeadatlasError: There is none.
    """
    from transformers.activations import ACT2FN

    if name not in ACT2FN:
        raise HeadatlasError(f"{spec}: the config names an unknown activation {name!r}; update transformers.")
    function: Callable[[torch.Tensor], torch.Tensor] = ACT2FN[name]
    return function if scale == 1 else lambda x: function(x * scale)


def xielu(
    alpha_p: torch.Tensor, alpha_n: torch.Tensor, beta: torch.Tensor, eps: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The activation xIELU (arXiv:2411.13010) with a layer's own parameters, one number each.

    ``a x² + b x`` for positive x, else ``(e^min(x, eps) - 1 - x) c + b x`` with ``a = softplus(alpha_p)``,
    ``c = b + softplus(alpha_n)`` and ``b = beta``.
    """
    import torch
    from torch.nn.functional import softplus

    def function(x: torch.Tensor) -> torch.Tensor:
        a, b = softplus(alpha_p).to(x), beta.to(x)
        c = b + softplus(alpha_n).to(x)
        below = (torch.expm1(torch.minimum(x, eps.to(x))) - x) * c + b * x
        return torch.where(x > 0, a * x * x + b * x, below)

    return function


# GPT-OSS: transformers models/gpt_oss/modeling_gpt_oss.py, GptOssExperts.
_ALPHA, _LIMIT = 1.702, 7.0
# What DeepSeek-V3 and its relatives add to a sum before dividing by it.
_TINY = 1e-20


def clamped_glu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """GPT-OSS's gate: both sides clamped, one added to the ungated side."""
    import torch

    gate, up = gate.clamp(max=_LIMIT), up.clamp(-_LIMIT, _LIMIT)
    return (up + 1) * gate * torch.sigmoid(gate * _ALPHA)


def sparse_mixer(logits: torch.Tensor, top_k: int, jitter: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Phi-3.5-MoE's choice (arXiv:2409.12136): one expert after another, the best of those that are left.

    The weight of a chosen expert is its softmax among those left that are within twice the jitter of it.

    Returns:
        Weights and numbers, both [n, top_k], for logits [n, n_experts].
    """
    import torch

    left, weights, chosen = logits, [], []
    for _ in range(top_k):
        best, number = left.max(dim=-1, keepdim=True)
        far = (best - logits) / logits.abs().clamp(min=best) > 2 * jitter
        near = left.masked_fill(far, float("-inf")).softmax(dim=-1)
        weights.append(near.gather(-1, number))
        chosen.append(number)
        left = left.scatter(-1, number, float("-inf"))
    return torch.cat(weights, dim=-1), torch.cat(chosen, dim=-1)


@dataclass(frozen=True)
class Router:
    """Chooses the experts that a row is sent to, and their weights.

    Attributes:
        logits: From d_model to one logit an expert.
        scores: ``softmax`` or ``sigmoid`` of the logits, or ``sparsemixer`` (:func:`sparse_mixer`).
        top_k: How many are chosen.
        normalise: Whether the weights of the chosen are divided by their sum.
        correction: [n_experts] added to the scores for choosing only (arXiv:2408.15664), or None.
        groups, top_groups: Experts are divided into groups, and only the best may be chosen from.
        group_score: A group is as good as its best expert, or as its best two together.
        scale: Factor on the weights.
        jitter: What ``sparsemixer`` calls near the best.
    """

    logits: LinearWeights
    scores: Literal["softmax", "sigmoid", "sparsemixer"]
    top_k: int
    normalise: bool
    correction: torch.Tensor | None
    groups: int
    top_groups: int
    group_score: Literal["best", "best_two"]
    scale: float
    jitter: float = 0.0

    def __call__(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and numbers of the chosen experts, both [n, top_k], for rows [n, d_model]."""
        logits = self.logits(rows)
        if self.scores == "sparsemixer":
            return sparse_mixer(logits, self.top_k, self.jitter)
        scores = logits.softmax(dim=-1) if self.scores == "softmax" else logits.sigmoid()
        eligible = scores if self.correction is None else scores + self.correction.to(scores)
        if self.groups > self.top_groups:
            eligible = self._of_best_groups(eligible)
        chosen = eligible.topk(self.top_k, dim=-1).indices
        weights = scores.gather(1, chosen)
        if self.normalise:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + _TINY)
        return weights * self.scale, chosen

    def _of_best_groups(self, eligible: torch.Tensor) -> torch.Tensor:
        """The scores with those of all but the best groups at minus infinity."""
        import torch

        grouped = eligible.view(eligible.shape[0], self.groups, -1)
        if self.group_score == "best":
            value = grouped.amax(dim=-1)
        else:
            value = grouped.topk(2, dim=-1).values.sum(dim=-1)
        best = value.topk(self.top_groups, dim=-1).indices
        out = torch.ones_like(value, dtype=torch.bool).scatter_(1, best, False)
        return grouped.masked_fill(out.unsqueeze(-1), float("-inf")).view_as(eligible)


@dataclass(frozen=True)
class ExpertsWeights:
    """The weighted sum of the chosen experts' outputs, and what the shared experts add.

    Attributes:
        expert: Reads one expert.
        shared: Experts every row passes, or None.
        shared_gate: To one number whose sigmoid scales what they add, or None.
        weighs_input: Whether weights multiply what goes into an expert and not what comes out (Llama 4).
    """

    router: Router
    expert: Callable[[int], MLPWeights]
    shared: MLPWeights | None
    shared_gate: LinearWeights | None
    weighs_input: bool = False

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Map normed rows [n, d_model] to [n, d_model]."""
        import torch

        weights, chosen = self.router(rows)
        out = torch.zeros_like(rows)
        for number in sorted(set(chosen.flatten().tolist())):
            row, place = (chosen == number).nonzero(as_tuple=True)
            weight, expert = weights[row, place].unsqueeze(1), self.expert(number)
            out[row] += expert(rows[row] * weight) if self.weighs_input else expert(rows[row]) * weight
        if self.shared is not None:
            more = self.shared(rows)
            out += more if self.shared_gate is None else more * self.shared_gate(rows).sigmoid()
        return out


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
