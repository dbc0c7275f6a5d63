"""Ask a running model again and again, whole or without some of its heads.

Heads are taken out at the *input* of the output projection, where they are side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from headatlas.architectures import Model
from headatlas.evidence.texts import BATCH_TOKENS, Ids
from headatlas.lenses.forward import batches, branch, by_length, entering, pre_hooks, require_embedded
from headatlas.lenses.streaming import played_by
from headatlas.options import Method

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

Head = tuple[int, int]

KEPT_BYTES = 512 << 20
"""Of what leaves the blocks for the prompts of a task, at most; of larger ones fewer blocks are kept."""


@contextmanager
def ablated(
    model: Model, modules: PreTrainedModel, heads: Sequence[Head], means: torch.Tensor | None = None
) -> Iterator[None]:
    """Replace what heads bring to the output projection, at every position, during the block.

    In their place stand ``means`` [n_layers, n_heads, d_head]; zeros if None.
    """

    def replacing(layer: int) -> Callable[..., Any]:
        chosen = [head for at, head in heads if at == layer]

        def hook(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            before = entering(args, kwargs)
            rows = before.clone().view(*before.shape[:-1], model.dims.n_heads, -1)
            rows[..., chosen, :] = 0.0 if means is None else means[layer][chosen].to(rows)
            changed = rows.view(before.shape)
            return ((changed, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": changed})

        return hook

    layers = dict.fromkeys(layer for layer, _ in heads)
    with pre_hooks(modules, [(model.o_proj_module(layer), replacing(layer)) for layer in layers]):
        yield


class Questions:
    """Prompts that a running model is asked again and again, each time without some of its heads.

    What all prompts begin with goes through once a time. Of a pass of the whole model, what leaves each block
    is kept as well: without heads, the model is run from the first block on that has any of them. ``method``
    says what takes the place of a head: nothing, or its mean over the positions of all prompts.
    """

    def __init__(
        self, model: Model, modules: PreTrainedModel, prompts: Sequence[Ids], method: Method = "zero"
    ) -> None:
        require_embedded(model, prompts)
        self._model, self._modules, self._prompts, self._method = model, modules, prompts, method
        self._blocks = [modules.get_submodule(model.block_module(at)) for at in range(model.dims.n_layers)]
        # What other mixers than attention keep of a beginning does not continue over several tokens in every
        # family.
        self._n_shared = _shared(prompts) if model.every_layer_has_heads else 0
        rest = [prompt[self._n_shared :] for prompt in prompts]
        # A copy of the shared part's keys and values is held for every row.
        self._parts = [
            members
            for length, alike in by_length(rest).items()
            for members in batches(alike, length + self._n_shared // 4, BATCH_TOKENS)
        ]
        tokens = self._n_shared + sum(map(len, rest))
        each = max(1, KEPT_BYTES // (4 * model.dims.d_model * tokens))
        self._every = -(-model.dims.n_layers // each)
        """Of so many blocks, one is kept."""
        self._left: list[dict[int, Any]] = []
        self._cache: DynamicCache | None = None
        self._weight = 1
        """So many prompts the rows stand for that go through just now."""

    @cached_property
    def means(self) -> torch.Tensor | None:
        """[n_layers, n_heads, d_head] float32 what stands in for heads: what they bring to the output
        projection of the whole model, mean over all positions of all prompts. None: zeros do.
        """
        if self._method == "zero":
            return None
        dims, model = self._model.dims, self._model
        sums = torch.zeros(dims.n_layers, dims.n_heads * dims.d_head, dtype=torch.float64)

        def adding(layer: int) -> Callable[..., None]:
            def hook(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                rows = entering(args, kwargs).flatten(0, -2).cpu()
                sums[layer] += self._weight * rows.sum(dim=0, dtype=torch.float64)

            return hook

        hooks = [(model.o_proj_module(layer), adding(layer)) for layer in model.layers_with_heads]
        with pre_hooks(self._modules, hooks):
            self.answers()
        n_tokens = sum(len(prompt) for prompt in self._prompts)
        return (sums / n_tokens).to(torch.float32).view(dims.n_layers, dims.n_heads, dims.d_head)

    def answers(self, without: Sequence[Head] = ()) -> NDArray[np.int64]:
        """[n] the token with the highest logit after each prompt, without these heads."""
        out = np.empty(len(self._prompts), dtype=np.int64)
        for members, logits in self.logits(without):
            out[members] = logits.argmax(dim=-1).cpu().numpy()
        return out

    @torch.inference_mode()
    def logits(self, without: Sequence[Head] = ()) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Places of some prompts, of one length, and the logits [row, vocab] after them."""
        first = min((layer for layer, _ in without), default=0)
        start = first // self._every * self._every
        if start and not self._left:
            self.answers()  # the whole model: what leaves the blocks before is kept
        means = self.means if without else None
        if keep := not without and not self._left:
            self._left = [{} for _ in range(1 + len(self._parts))]
        with ablated(self._model, self._modules, without, means):
            cache = self._begun(start, keep) if self._n_shared else None
            for number, members in enumerate(self._parts, start=1):
                ids = [self._prompts[at][self._n_shared :] for at in members]
                past = None if cache is None else _repeated(cache, len(members), start)
                yield members, self._run(ids, past, start, number, keep).logits[:, -1]

    def _begun(self, start: int, keep: bool) -> DynamicCache:
        """Keys and values of what all prompts begin with; of blocks before the first, the whole model's."""
        from transformers import DynamicCache

        body: Any = self._modules.base_model
        cache = DynamicCache(config=body.config)
        self._weight = len(self._prompts)
        self._run([self._prompts[0][: self._n_shared]], cache, start, 0, keep)
        self._weight = 1
        if self._cache is not None:
            cache.layers[:start] = self._cache.layers[:start]
        elif keep:
            self._cache = cache
        return cache

    def _run(
        self, rows: Sequence[Ids], past: DynamicCache | None, start: int, number: int, keep: bool
    ) -> Any:
        """A pass of one part, from block ``start`` on, or one that keeps what leaves each block."""
        run: Any = self._modules
        ids = torch.tensor(rows, device=self._modules.device)
        with ExitStack() as stack:
            if start:
                left = self._left[number][start - 1]
                stack.enter_context(played_by(self._blocks[:start], lambda *_, **__: left))
            elif keep:
                stack.enter_context(self._keeping(self._left[number]))
            return run(input_ids=ids, past_key_values=past, use_cache=past is not None, logits_to_keep=1)

    @contextmanager
    def _keeping(self, left: dict[int, Any]) -> Iterator[None]:
        """Keep what leaves the blocks before those that a pass may begin with."""

        def keep(at: int) -> Callable[..., None]:
            def hook(_module: torch.nn.Module, _args: Any, leaving: Any) -> None:
                left[at] = leaving

            return hook

        before = range(self._every - 1, len(self._blocks) - 1, self._every)
        handles = [self._blocks[at].register_forward_hook(keep(at)) for at in before]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _repeated(cache: DynamicCache, n: int, start: int) -> DynamicCache:
    """Keys and values of one row for each of n, from layer ``start`` on; those before are not looked at."""
    past = branch(cache)
    layers: list[Any] = past.layers[start:]
    for layer in layers:
        layer.batch_repeat_interleave(n)
    return past


def asking_takes(prompts: Sequence[Ids]) -> tuple[int, int]:
    """Tokens that go through the model when these prompts are asked once, and passes in which they do."""
    shared = _shared(prompts)
    return shared + sum(len(prompt) - shared for prompt in prompts), 1 + len({*map(len, prompts)})


def _shared(prompts: Sequence[Ids]) -> int:
    """Number of tokens that all prompts begin with, leaving at least one of each."""
    first, last = min(prompts), max(prompts)
    most = min(len(prompt) for prompt in prompts) - 1
    return next((at for at in range(most) if first[at] != last[at]), most)
