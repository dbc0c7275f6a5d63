"""Layers of written weights, and the definition of what they write, by the whole d × d matrix in float64."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from headatlas.architectures import Dims, LayerHeads, RightMap
from headatlas.mapping.inputs import LayerInputs
from headatlas.mapping.vocabulary import Vocabulary
from headatlas.writing.operations import LayerOperations, Operations

VOCAB, D_MODEL, D_HEAD = 200, 48, 12
FIRST = 4
"""Ids below do not compete."""


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def vocabulary(unembed: torch.Tensor) -> Vocabulary:
    competing = np.arange(len(unembed)) >= FIRST
    return Vocabulary.competing(unembed, competing)


def layer(
    states: torch.Tensor,
    W_V: torch.Tensor,
    W_O: torch.Tensor,
    *,
    b_V: torch.Tensor | None = None,
    right: RightMap | None = None,
) -> LayerInputs:
    """A layer of heads from W_V [groups, d_model, d_head] and W_O [heads, d_head, d_model]."""
    dims = Dims(1, len(W_O), len(W_V), W_O.shape[2], W_O.shape[1], VOCAB)
    return LayerInputs(dims, states, LayerHeads(W_V, b_V, W_O), right, b_V is not None, states, None)


def operations(inputs: LayerInputs, unembed: torch.Tensor) -> LayerOperations:
    """Of sources that are all competing tokens; the states are theirs, in order."""
    return Operations(vocabulary(unembed)).layer(inputs, np.arange(FIRST, len(unembed)))


def whole_matrix(inputs: LayerInputs, head: int) -> torch.Tensor:
    """[d_model, d_model] float64 W_V·W_O."""
    return inputs.heads.W_V[inputs.dims.kv_head(head)].double() @ inputs.heads.W_O[head].double()


def brute_force(
    inputs: LayerInputs, unembed: torch.Tensor, ids: NDArray[np.int64], competing: NDArray[np.int64]
) -> list[list[tuple[int, float, list[int], list[int]]]]:
    """For each head (source, gain, promoted, suppressed) of the 30 largest gains, with every logit of U."""
    x, U = inputs.states.double(), unembed.double()[torch.from_numpy(competing)]
    found = []
    for head in range(inputs.dims.n_heads):
        W_O = inputs.heads.W_O[head].double()
        written = x @ whole_matrix(inputs, head)
        if inputs.use_bias and inputs.heads.b_V is not None:
            written = written + inputs.heads.b_V[inputs.dims.kv_head(head)].double() @ W_O
        gains = (written.norm(dim=1) / x.norm(dim=1)).numpy()
        rows = []
        for at in np.argsort(-gains, kind="stable")[:30]:
            row = written[at] if inputs.right is None else inputs.right.apply(written[at])
            order = np.argsort(-(U @ row).numpy(), kind="stable")
            promoted, suppressed = competing[order[:5]].tolist(), competing[order[::-1][:5]].tolist()
            rows.append((int(ids[at]), float(gains[at]), promoted, suppressed))
        found.append(rows)
    return found
