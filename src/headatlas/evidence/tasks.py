"""Tasks: a relation asked in words, after examples or without, as token ids with the accepted answers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

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
from headatlas.relations import TokenisedPair, TokenisedRelation

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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


def answers(modules: PreTrainedModel, prompts: Sequence[Ids], *, share: bool = True) -> NDArray[np.int64]:
    """[n] the token with the highest logit after each prompt; arguments as for :func:`last_logits`."""
    out = np.empty(len(prompts), dtype=np.int64)
    for members, logits in last_logits(modules, prompts, share=share):
        out[members] = logits.argmax(dim=-1).cpu().numpy()
    return out


@torch.inference_mode()
def last_logits(
    modules: PreTrainedModel, prompts: Sequence[Ids], *, share: bool = True
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Places of some prompts and the logits [row, vocab] after them; prompts of one length go together.

    Args:
        modules: The running model.
        prompts: Token ids.
        share: Send what all prompts begin with through the model once. Not for hybrid models: what other
            mixers than attention keep of it does not continue over several tokens in every family.
    """
    shared = _shared(prompts) if share else 0
    run: Any = modules
    device = modules.device
    past = None
    if shared:
        ids = torch.tensor([prompts[0][:shared]], device=device)
        past = run(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    rest = [prompt[shared:] for prompt in prompts]
    for length, alike in by_length(rest).items():
        # A copy of the shared part's keys and values is held for every row.
        for members in batches(alike, length + shared // 4, BATCH_TOKENS):
            ids = torch.tensor([rest[at] for at in members], device=device)
            mine = copy.deepcopy(past)
            if mine is not None:
                mine.batch_repeat_interleave(len(ids))
            logits = run(input_ids=ids, past_key_values=mine, use_cache=share, logits_to_keep=1).logits
            yield members, logits[:, -1]


def _shared(prompts: Sequence[Ids]) -> int:
    """Number of tokens that all prompts begin with, leaving at least one of each."""
    first, last = min(prompts), max(prompts)
    most = min(len(prompt) for prompt in prompts) - 1
    return next((at for at in range(most) if first[at] != last[at]), most)
