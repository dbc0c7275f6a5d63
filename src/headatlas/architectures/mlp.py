"""A block's norm and MLP, dense or of experts, as plain tensor arithmetic, built from a checkpoint's tensors.

The arithmetic is done in the dtype and on the device of the rows, which never went through a model. Experts
are read one at a time, and only those that some row is sent to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, cast

from headatlas.architectures.accounting import XIELU, Inventory, of_expert
from headatlas.architectures.family import MLP, Experts, Linear
from headatlas.architectures.layouts import as_linear
from headatlas.architectures.sizes import ExpertSizes
from headatlas.errors import HeadatlasError

if TYPE_CHECKING:
    import torch

    Read = Callable[[str, slice | Sequence[int] | None], torch.Tensor]
    OnRows = Callable[[torch.Tensor], torch.Tensor]


# GPT-OSS: transformers models/gpt_oss/modeling_gpt_oss.py, GptOssExperts.
_ALPHA, _LIMIT = 1.702, 7.0
# What DeepSeek-V3 and its relatives add to a sum before dividing by it.
_TINY = 1e-20


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

    def part(self, outputs: slice) -> LinearWeights:
        """The projection to some of the outputs."""
        return LinearWeights(self.weight[outputs], None if self.bias is None else self.bias[outputs])


class MlpReader:
    """Reads what stands after the norm in a block's second half."""

    def __init__(self, inventory: Inventory, read: Read) -> None:
        self._inventory = inventory
        self._read = read
        stem = inventory.section.mlp.xielu
        self._activation = self._named_activation() if stem is None else self._xielu(stem)

    def of(self, layer: int) -> OnRows:
        """The MLP of a layer, for normed rows [n, d_model]; the layer must have one."""
        experts = self._inventory.layers[layer].experts
        if experts is None:
            return self._mlp(self._inventory.section.mlp, lambda linear: self._linear(linear, layer))
        return self._mixture(experts, layer)

    def _named_activation(self) -> OnRows:
        """The activation that transformers knows under the config's name, of its argument times a factor."""
        sizes = self._inventory.sizes
        function = of_torch(sizes.activation)
        if function is None:
            from transformers.activations import ACT2FN

            if sizes.activation not in ACT2FN:
                raise HeadatlasError(
                    f"{self._inventory.checkpoint.spec}: the config names an unknown activation "
                    f"{sizes.activation!r}; update transformers."
                )
            function = cast("OnRows", ACT2FN[sizes.activation])
        return function if sizes.gate_scale == 1 else lambda x: function(x * sizes.gate_scale)

    def _xielu(self, stem: str) -> OnRows:
        """The activation xIELU (arXiv:2411.13010) with the first layer's own parameters, one number each.

        ``a x² + b x`` for positive x, else ``(e^min(x, eps) - 1 - x) c + b x``, with
        ``a = softplus(alpha_p)``, ``b = beta`` and ``c = b + softplus(alpha_n)``.
        """
        import torch
        from torch.nn.functional import softplus

        names = [self._inventory.name(f"{stem}.{each}!", 0) for each in XIELU]
        numbers = [self._read(name, None).double() for name in names]
        for name, number in zip(names, numbers, strict=True):
            if number.numel() != 1:
                raise HeadatlasError(
                    f"{self._inventory.stored[name].file}: tensor {name!r} must be one number; fetch the "
                    "file again."
                )
        alpha_p, alpha_n, beta, eps = numbers

        def function(x: torch.Tensor) -> torch.Tensor:
            a, b = softplus(alpha_p).to(x), beta.to(x)
            c = b + softplus(alpha_n).to(x)
            below = (torch.expm1(torch.minimum(x, eps.to(x))) - x) * c + b * x
            return torch.where(x > 0, a * x * x + b * x, below)

        return function

    def _mlp(self, mlp: MLP | Experts, read: Callable[[Linear], LinearWeights]) -> OnRows:
        """An MLP, or one expert of a mixture: ``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))``."""
        gate, up, down = (None if each is None else read(each) for each in (mlp.gate, mlp.up, mlp.down))
        if mlp.gate_up is not None:
            both = read(mlp.gate_up)
            half = both.weight.shape[0] // 2
            alternate = isinstance(mlp, Experts) and mlp.interleaved
            gate = both.part(slice(0, None, 2) if alternate else slice(None, half))
            up = both.part(slice(1, None, 2) if alternate else slice(half, None))
        assert up is not None and down is not None  # noqa: S101 (or the family file would not be valid)
        activation, clamped = self._activation, isinstance(mlp, Experts) and mlp.glu == "clamped"

        def feed(x: torch.Tensor) -> torch.Tensor:
            if gate is None:
                return down(activation(up(x)))
            return down(clamped_glu(gate(x), up(x)) if clamped else activation(gate(x)) * up(x))

        return feed

    def _mixture(self, form: Experts, layer: int) -> OnRows:
        """The weighted sum of the chosen experts' outputs, and what the experts add that every row passes."""
        import torch

        choose, shared, gate = self._router(form, layer), None, None
        if form.shared is not None and self._inventory.expert_sizes.shared_width:
            shared = self._mlp(form.shared, lambda linear: self._linear(linear, layer))
            gate = None if form.shared_gate is None else self._linear(form.shared_gate, layer)

        def feed(rows: torch.Tensor) -> torch.Tensor:
            weights, chosen = choose(rows)
            out = torch.zeros_like(rows)
            for number in sorted(set(chosen.flatten().tolist())):
                row, place = (chosen == number).nonzero(as_tuple=True)
                weight, expert = weights[row, place].unsqueeze(1), self._expert(form, layer, number)
                out[row] += expert(rows[row] * weight) if form.weighs_input else expert(rows[row]) * weight
            if shared is not None:
                more = shared(rows)
                out += more if gate is None else more * gate(rows).sigmoid()
            return out

        return feed

    def _router(
        self, form: Experts, layer: int
    ) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        """Chooses the experts of rows [n, d_model]: their weights and numbers, both [n, top_k]."""
        names, sizes = self._inventory, self._inventory.expert_sizes
        logits = self._linear(form.router, layer)
        if form.scores == "sparsemixer":
            return lambda rows: sparse_mixer(logits(rows), sizes.top_k, sizes.jitter)
        correction = None
        if form.correction is not None:  # for choosing only (arXiv:2408.15664)
            correction = self._read(names.name(form.correction, layer), None).flatten()
        in_groups = names.holds(form.grouped) and sizes.groups > sizes.top_groups
        normalise = names.holds(form.normalise)

        def choose(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            scores = logits(rows).softmax(dim=-1) if form.scores == "softmax" else logits(rows).sigmoid()
            eligible = scores if correction is None else scores + correction.to(scores)
            if in_groups:
                eligible = _of_best_groups(eligible, sizes, form.group_score)
            chosen = eligible.topk(sizes.top_k, dim=-1).indices
            weights = scores.gather(1, chosen)
            if normalise:
                weights = weights / (weights.sum(dim=-1, keepdim=True) + _TINY)
            return weights * sizes.scale, chosen

        return choose

    def _expert(self, form: Experts, layer: int, number: int) -> OnRows:
        """One expert, read from tensors of its own or from those of all."""

        def read(linear: Linear) -> LinearWeights:
            if form.layout == "separate":
                return self._linear(of_expert(linear, number), layer)
            name, bias = self._inventory.name(linear.stem, layer), self._inventory.bias(linear, layer)
            if form.layout == "flat":  # below each other; what goes out is stored transposed
                width = self._inventory.expert_sizes.width
                weight = self._read(name, slice(number * width, (number + 1) * width))
                return LinearWeights(weight.T if linear is form.down else weight, None)
            weight = self._read(name, [number])[0]
            return LinearWeights(
                weight=weight if form.layout == "stacked" else weight.T,
                bias=None if bias is None else self._read(bias, [number])[0],
            )

        return self._mlp(form, read)

    def _linear(self, linear: Linear, layer: int) -> LinearWeights:
        bias = self._inventory.bias(linear, layer)
        return LinearWeights(
            weight=as_linear(self._read(self._inventory.name(linear.stem, layer), None), linear.layout),
            bias=None if bias is None else self._read(bias, None),
        )


def of_torch(name: str) -> OnRows | None:
    """An activation that torch has under a name of transformers, whose module of activations imports all that
    models are run with; None for any other."""
    from torch.nn import functional

    known: dict[str, OnRows] = {
        "silu": functional.silu,
        "relu": functional.relu,
        "gelu": functional.gelu,
        "gelu_pytorch_tanh": partial(functional.gelu, approximate="tanh"),
    }
    return known.get(name)


def clamped_glu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """GPT-OSS's gate: both sides clamped, one added to the ungated side."""
    import torch

    gate, up = gate.clamp(max=_LIMIT), up.clamp(-_LIMIT, _LIMIT)
    return (up + 1) * gate * torch.sigmoid(gate * _ALPHA)


def sparse_mixer(logits: torch.Tensor, top_k: int, jitter: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Phi-3.5-MoE's choice (arXiv:2409.12136): one expert after another, the best of those that are left.

    The weight of a chosen expert is its softmax among those left that are within twice the jitter of it.
    Weights and numbers are [n, top_k], for logits [n, n_experts].
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


def _of_best_groups(
    eligible: torch.Tensor, sizes: ExpertSizes, score: Literal["best", "best_two"]
) -> torch.Tensor:
    """Scores [n, n_experts] with those of all but the best groups at minus infinity."""
    import torch

    grouped = eligible.view(eligible.shape[0], sizes.groups, -1)
    value = grouped.amax(dim=-1) if score == "best" else grouped.topk(2, dim=-1).values.sum(dim=-1)
    best = value.topk(sizes.top_groups, dim=-1).indices
    out = torch.ones_like(value, dtype=torch.bool).scatter_(1, best, False)
    return grouped.masked_fill(out.unsqueeze(-1), float("-inf")).view_as(eligible)
