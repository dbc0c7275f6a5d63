"""Tasks: a relation asked in words, after examples or without, as token ids with the accepted answers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from headatlas.architectures import Model
from headatlas.evidence.texts import (
    BATCH_TOKENS,
    CUT_DIFFERENTLY,
    TARGET_CUT_DIFFERENTLY,
    Ids,
    Template,
    answered,
    continued,
    place,
)
from headatlas.lenses.forward import batches, by_length
from headatlas.lenses.streaming import played_by
from headatlas.relations import TokenisedPair, TokenisedRelation

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

KEPT_BYTES = 512 << 20
"""Of what leaves the blocks for the prompts of a task, at most; of larger ones fewer blocks are kept."""


@dataclass(frozen=True)
class Task:
    """Prompts of one relation, with the answers that are right.

    Attributes:
        relation: Name of the relation.
        template: With ``{}``.
        shots: Number of examples.
        words: Sources asked.
        prompts: Token ids of each prompt.
        accepted: For each, the token ids that are right.
        dropped: Reason → sources that cannot be asked.
    """

    relation: str
    template: str
    shots: int
    words: tuple[str, ...]
    prompts: tuple[Ids, ...]
    accepted: tuple[frozenset[int], ...]
    dropped: dict[str, tuple[str, ...]]

    def correct(self, answers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[n] which answers are right."""
        return np.array(
            [int(a) in right for a, right in zip(answers, self.accepted, strict=True)], dtype=bool
        )


def make_task(
    relation: TokenisedRelation,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    *,
    shots: int,
    sources: int,
) -> Task:
    """Write a relation's task.

    Args:
        relation: As the tokenizer sees it.
        tokenizer: The model's.
        template: Its task template.
        shots: Examples before each question, evenly spaced over the usable pairs; they are not asked.
        sources: At most so many, evenly spaced over what is left.
    """
    examples = spread(len(relation.pairs), shots)
    lines = [_line(relation, relation.pairs[at], template) for at in examples]
    asked = Template("".join(f"{line}\n" for line in lines) + template.before, template.after)
    pairs = [pair for at, pair in enumerate(relation.pairs) if at not in set(examples)]
    words = [relation.relation.pairs[pair.index].source for pair in pairs]
    placed = place(tokenizer, asked, words, [pair.source_ids for pair in pairs])
    following = continued(
        tokenizer, [asked.filled(word) for word in words], [pair.target_words for pair in pairs]
    )
    usable: list[tuple[str, Ids, frozenset[int]]] = []
    dropped: dict[str, list[str]] = {}
    for word, pair, text, after in zip(words, pairs, placed, following, strict=True):
        right = frozenset(token for token, ids in zip(pair.target_ids, after, strict=True) if ids == (token,))
        if text is None:
            dropped.setdefault(CUT_DIFFERENTLY, []).append(word)
        elif not right:
            dropped.setdefault(TARGET_CUT_DIFFERENTLY, []).append(word)
        else:
            usable.append((word, text.ids, right))
    chosen = [usable[at] for at in spread(len(usable), sources)]
    return Task(
        relation.relation.name,
        str(template),
        shots,
        tuple(word for word, _, _ in chosen),
        tuple(ids for _, ids, _ in chosen),
        tuple(right for _, _, right in chosen),
        {reason: tuple(gone) for reason, gone in dropped.items()},
    )


def _line(relation: TokenisedRelation, pair: TokenisedPair, template: Template) -> str:
    return answered(template.filled(relation.relation.pairs[pair.index].source), pair.target_words[0])


def spread(n: int, wanted: int) -> list[int]:
    """At most ``wanted`` of n places, evenly spaced."""
    return sorted({int((at + 0.5) * n / wanted) for at in range(wanted)}) if n > wanted else list(range(n))


class Questions:
    """Prompts that a running model is asked again and again, each time without some of its heads.

    What all prompts begin with goes through once a time. The first time, nothing being ablated, what leaves
    each block is kept as well: without heads, the model is run from the first block on that has any of them.

    Attributes:
        weight: Of the rows going through, how many prompts each stands for.
    """

    def __init__(self, model: Model, modules: PreTrainedModel, prompts: Sequence[Ids]) -> None:
        """Nothing is run yet.

        Args:
            model: The opened model.
            modules: Its modules, in evaluation mode.
            prompts: Token ids.
        """
        self._modules, self._prompts, self.weight = modules, prompts, 1
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

    def answers(self, without: Collection[int] = ()) -> NDArray[np.int64]:
        """[n] the token with the highest logit after each prompt; arguments as for :meth:`logits`."""
        out = np.empty(len(self._prompts), dtype=np.int64)
        for members, logits in self.logits(without):
            out[members] = logits.argmax(dim=-1).cpu().numpy()
        return out

    @torch.inference_mode()
    def logits(self, without: Collection[int] = ()) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Places of some prompts and the logits [row, vocab] after them; prompts of one length go together.

        Args:
            without: Layers in which heads are ablated, by hooks that are in place; none for the whole model.
        """
        start = self._start(min(without, default=0))
        if start and not self._left:
            raise ValueError("the whole model is asked first")
        if keep := not without and not self._left:
            self._left = [{} for _ in range(1 + len(self._parts))]
        cache = self._begun(start, keep) if self._n_shared else None
        for number, members in enumerate(self._parts, start=1):
            ids = [self._prompts[at][self._n_shared :] for at in members]
            past = None if cache is None else _repeated(cache, len(members), start)
            yield members, self._run(ids, past, start, number, keep).logits[:, -1]

    def _start(self, layer: int) -> int:
        """The first block that is run where a layer is the first to change."""
        return layer // self._every * self._every

    def _begun(self, start: int, keep: bool) -> DynamicCache:
        """Keys and values of what all prompts begin with; of blocks before the first, the whole model's."""
        from transformers import DynamicCache

        body: Any = self._modules.base_model
        cache = DynamicCache(config=body.config)
        self.weight = len(self._prompts)
        self._run([self._prompts[0][: self._n_shared]], cache, start, 0, keep)
        self.weight = 1
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
        given = {"past_key_values": past, "use_cache": past is not None, "logits_to_keep": 1}
        if start:
            left = self._left[number][start - 1]
            with played_by(self._blocks[:start], lambda *_, **__: left):
                return run(input_ids=ids, **given)
        if not keep:
            return run(input_ids=ids, **given)
        with self._keeping(self._left[number]):
            return run(input_ids=ids, **given)

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
    past: Any = copy.copy(cache)
    # Layers take new tensors in the place of the old ones, which are not written to.
    past.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in past.layers[start:]:
        layer.batch_repeat_interleave(n)
    repeated: DynamicCache = past
    return repeated


def tokens_asked(prompts: Sequence[Ids]) -> int:
    """Tokens that go through the model when these prompts are asked once."""
    shared = _shared(prompts)
    return shared + sum(len(prompt) - shared for prompt in prompts)


def _shared(prompts: Sequence[Ids]) -> int:
    """Number of tokens that all prompts begin with, leaving at least one of each."""
    first, last = min(prompts), max(prompts)
    most = min(len(prompt) for prompt in prompts) - 1
    return next((at for at in range(most) if first[at] != last[at]), most)
