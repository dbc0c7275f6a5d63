"""The first block's norm and MLP as plain tensor arithmetic, for rows that never went through a model.

The arithmetic is done in the dtype and on the device of the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from headatlas.errors import HeadatlasError

if TYPE_CHECKING:
    import torch

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
