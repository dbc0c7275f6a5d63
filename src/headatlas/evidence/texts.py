"""Words in texts as one tokenizer cuts them: where a source is, and what must follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headatlas.evidence.templates import Template
from headatlas.lenses.forward import prefix_ids
from headatlas.relations import TokenisedRelation
from headatlas.relations.tokenising import reduced, written_bare

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CUT_DIFFERENTLY = "source is cut differently in the text"
TARGET_CUT_DIFFERENTLY = "target is cut differently after the text"

Ids = tuple[int, ...]

BATCH_TOKENS = 1024
"""Tokens that go through the model together, for its activations' sake."""


@dataclass(frozen=True)
class Text:
    """A text as token ids.

    Attributes:
        ids: After whatever the tokenizer itself puts first.
        source: Position of the source's last token.
    """

    ids: Ids
    source: int


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Ids]:
    """Token ids of texts, after whatever the tokenizer itself puts first."""
    if not texts:
        return []
    first = tuple(prefix_ids(tokenizer, ""))
    rows = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return [first + tuple(row) for row in rows]


def place(
    tokenizer: PreTrainedTokenizerBase, template: Template, words: Sequence[str], sources: Sequence[Ids]
) -> list[Text | None]:
    """Put words into a template.

    Args:
        tokenizer: The model's.
        template: The text.
        words: Sources as written.
        sources: Their token ids in the atlas.

    Returns:
        For each word its text, or None where the tokenizer cuts it there into other tokens.
    """
    begun = encode(tokenizer, [template.before + word for word in words])
    whole = encode(tokenizer, [template.filled(word) for word in words])
    return [
        Text(full, len(start) - 1) if _ends(start, ids) and full[: len(start)] == start else None
        for start, full, ids in zip(begun, whole, sources, strict=True)
    ]


def _ends(row: Ids, ids: Ids) -> bool:
    return len(row) >= len(ids) and row[len(row) - len(ids) :] == ids


def in_template(
    relation: TokenisedRelation, tokenizer: PreTrainedTokenizerBase, template: Template
) -> tuple[TokenisedRelation, dict[Ids, Text]]:
    """What a template can use of a relation, and the text of each of its sources.

    Returns:
        The relation with the pairs that stay, those dropped listed among ``dropped``; source ids → text.
    """
    words = [relation.relation.pairs[pair.index].source for pair in relation.pairs]
    placed = place(tokenizer, template, words, [pair.source_ids for pair in relation.pairs])
    texts = {
        pair.source_ids: text
        for pair, text in zip(relation.pairs, placed, strict=True)
        if text is not None and relation.left_out is None
    }
    gone = tuple(word for word, text in zip(words, placed, strict=True) if text is None)
    dropped = {**relation.dropped, CUT_DIFFERENTLY: gone} if gone else relation.dropped
    stay = [pair for pair, text in zip(relation.pairs, placed, strict=True) if text is not None]
    return reduced(relation, stay, dropped), texts


def continued(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], targets: Sequence[Sequence[str]]
) -> list[list[Ids]]:
    """The ids that follow those of each text when each of its targets is written after it.

    A target whose text changes how the text before it is cut gives an empty tuple.
    """
    prompts = encode(tokenizer, texts)
    flat = [
        prompt + ("" if written_bare(target) else " ") + target
        for prompt, group in zip(texts, targets, strict=True)
        for target in group
    ]
    rows = iter(encode(tokenizer, flat))
    return [
        [row[len(prompt) :] if (row := next(rows))[: len(prompt)] == prompt else () for _ in group]
        for prompt, group in zip(prompts, targets, strict=True)
    ]
