"""Which heads a trained model uses, found by taking them away, without any lens.

To take a head away is to replace its output by its mean over sequences, position by position. Its *total*
effect is what accuracy loses when everything after it sees the replacement; its *direct* effect is what
accuracy loses when only the head's own contribution to the state at the answer is replaced, and later layers
see the head as it was. A head with a direct effect writes the answer itself.

Heads stand in for each other: alone, none may be missed. Therefore the effects are averaged over random sets
of heads taken away at the same time, each with probability ½: the coefficient of a head in the least-squares
fit of accuracy by which heads are there, which is its Banzhaf value in the game of keeping heads (Hammer and
Holzman, *Approximations of pseudo-Boolean functions; applications to game theory*, 1992).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaForCausalLM

from experiments.truth.tasks import Batch, Task

Change = Callable[[int, torch.Tensor], torch.Tensor | None]
"""Given the layer and the heads' joint output [n, length, n_heads, d_head], what to put in its place."""


@dataclass(frozen=True)
class Effects:
    """Accuracy that is due to each head.

    Attributes:
        base: [n_relations] accuracy of the model.
        alone: [n_layers, n_heads, n_relations] total effect of taking this head alone away.
        total: The same, mean over random sets of other heads taken away as well.
        direct: As ``total``, of what heads write straight to the answer.
    """

    base: NDArray[np.float64]
    alone: NDArray[np.float64]
    total: NDArray[np.float64]
    direct: NDArray[np.float64]


def effects(
    model: LlamaForCausalLM, task: Task, *, n: int = 256, n_sets: int = 512, seed: int = 10_000
) -> Effects:
    """Take heads away, alone and in random sets."""
    game = _Game(model, task, n, seed)
    shape = (model.config.num_hidden_layers, model.config.num_attention_heads)
    n_heads = shape[0] * shape[1]
    everything = np.ones(n_heads, dtype=bool)
    base = game.total(everything)
    alone = np.stack([base - game.total(everything & (np.arange(n_heads) != at)) for at in range(n_heads)])
    kept = kept_sets(n_heads, n_sets, seed)
    found = [banzhaf(kept, np.stack([value(row) for row in kept])) for value in (game.total, game.direct)]
    return Effects(base, *(values.reshape(*shape, -1) for values in (alone, *found)))


def kept_sets(n_heads: int, n_sets: int, seed: int) -> NDArray[np.bool_]:
    """[n, n_heads] which heads stay: every set if that is at most ``n_sets``, or random ones."""
    if 2**n_heads <= n_sets:
        return (np.arange(2**n_heads)[:, None] >> np.arange(n_heads)) % 2 == 1
    half = np.random.default_rng(seed).random((n_sets // 2, n_heads)) < 0.5
    return np.concatenate([half, ~half])


def banzhaf(kept: NDArray[np.bool_], value: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n_heads, m] coefficients of the least-squares fit of values [n, m] by kept heads [n, n_heads]."""
    design = np.column_stack([np.ones(len(kept)), kept.astype(float)])
    return np.linalg.lstsq(design, value, rcond=None)[0][1:]


class _Game:
    """Accuracy per relation of a model that keeps only some of its heads."""

    def __init__(self, model: LlamaForCausalLM, task: Task, n: int, seed: int) -> None:
        self._model = model
        self._n_relations = len(task.relations())
        self._batch = task.batch(n, torch.Generator().manual_seed(seed + 1))
        outputs, _ = _clean_run(model, task.batch(n, torch.Generator().manual_seed(seed)))
        self._means = torch.stack([rows.mean(dim=0) for rows in outputs])
        outputs, self._final = _clean_run(model, self._batch)
        asked = self._batch.asked >= 0
        # [n_layers * n_heads, answers, d_model] what each head adds beyond its mean, where answers are due.
        self._written = torch.cat(
            [
                _written(model, rows - mean, layer)[:, asked]
                for layer, (rows, mean) in enumerate(zip(outputs, self._means, strict=True))
            ]
        )
        self._asked = asked

    def total(self, kept: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Accuracy when the heads that are not kept are replaced for everything after them."""
        gone = torch.from_numpy(~kept.reshape(len(self._means), -1))

        def replace(layer: int, heads: torch.Tensor) -> torch.Tensor:
            return torch.where(gone[layer][:, None], self._means[layer], heads)

        with torch.inference_mode(), _hooked(self._model, replace):
            return self._score(self._model(input_ids=self._batch.ids, use_cache=False).logits[self._asked])

    def direct(self, kept: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Accuracy when only what they write to the state at the answer is replaced."""
        gone = torch.from_numpy(~kept).to(self._written.dtype)
        with torch.inference_mode():
            final = self._final[self._asked] - torch.einsum("h,had->ad", gone, self._written)
            return self._score(self._model.lm_head(self._model.model.norm(final)))

    def _score(self, logits: torch.Tensor) -> NDArray[np.float64]:
        right = (logits.argmax(dim=-1) == self._batch.answers[self._asked]).double()
        relation = self._batch.asked[self._asked]
        return np.array([float(right[relation == at].mean()) for at in range(self._n_relations)])


@contextmanager
def _hooked(model: LlamaForCausalLM, change: Change) -> Iterator[None]:
    """Look at, and perhaps replace, what enters every output projection."""
    config = model.config
    handles = []
    for layer, block in enumerate(model.model.layers):

        def hook(
            _module: torch.nn.Module, args: tuple[Any, ...], layer: int = layer
        ) -> tuple[Any, ...] | None:
            joint = args[0]
            heads = joint.unflatten(-1, (config.num_attention_heads, config.head_dim))
            put = change(layer, heads)
            return None if put is None else (put.flatten(-2),)

        handles.append(block.self_attn.o_proj.register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def _clean_run(model: LlamaForCausalLM, batch: Batch) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The heads' outputs, layer by layer, and the state that enters the final norm."""
    outputs: list[torch.Tensor] = []
    final: list[torch.Tensor] = []

    def keep(_layer: int, heads: torch.Tensor) -> None:
        outputs.append(heads.clone())

    handle = model.model.norm.register_forward_pre_hook(lambda _module, args: final.append(args[0].clone()))
    try:
        with _hooked(model, keep):
            model(input_ids=batch.ids, use_cache=False)
    finally:
        handle.remove()
    return outputs, final[0]


@torch.inference_mode()
def _written(model: LlamaForCausalLM, heads: torch.Tensor, layer: int) -> torch.Tensor:
    """[n_heads, n, length, d_model] what heads with outputs [n, length, n_heads, d_head] write."""
    W_O = model.model.layers[layer].self_attn.o_proj.weight.unflatten(1, heads.shape[2:])
    return torch.einsum("nthe,dhe->hntd", heads, W_O)
