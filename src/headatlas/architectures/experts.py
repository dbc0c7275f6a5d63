"""A mixture of experts as plain tensor arithmetic: router, chosen experts, experts every token passes.

The arithmetic is done in the dtype and on the device of the rows. Experts are read one at a time, and only
those that some row is sent to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from headatlas.architectures.mlp import LinearWeights, MLPWeights

if TYPE_CHECKING:
    import torch

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
    """Which experts a row is sent to, and with what weight.

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
