"""Source tokens of salience: which of a vocabulary are like words, and which were hardly ever trained."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from headatlas.architectures import Model
from headatlas.errors import HeadatlasError
from headatlas.lenses import Lens
from headatlas.options import TokenChoice
from headatlas.relations import competing_tokens
from headatlas.relations.tokenising import written_bare

if TYPE_CHECKING:
    from headatlas.weights import Tokenizer

MOST_WITH_FORWARD_PASS = 20_000
"""Word-like tokens that go through the model where the lens needs a forward pass, if it can be afforded."""
LEAST_WITH_FORWARD_PASS = 1000
"""So many go through the largest model."""
FORWARD_PASS = 100e12
"""Floating-point operations of products with weights that may be spent on it."""
LEAST_REFERENCE = 5
"""Fewer unused tokens give no direction to compare with."""
UNDERTRAINED = 0.8
"""Cosine with the centre of unused tokens from which a token counts as undertrained."""
COHERENT = 0.8
"""Cosine with their own centre that most unused tokens must have; else they tell nothing."""
ROWS = 16_384
NOT_IN_UTF8 = (0xC0, 0xC1, *range(0xF5, 0x100))
"""Bytes that no UTF-8 text holds."""
REPLACEMENT = "\ufffd"

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class SourceTokens:
    """The tokens whose states heads are given.

    Attributes:
        ids: [n] ascending.
        texts: [vocab] the text of each token; empty for what does not compete.
        choice: Which were asked for.
        most: The most that might be taken, or None for no such limit.
        left: How many tokens of the choice that limit left out.
        undertrained: Ids left out for it.
        reference: How many unused tokens they were recognised by; 0 where they could not be.
    """

    ids: Ints
    texts: Sequence[str]
    choice: TokenChoice
    most: int | None
    left: int
    undertrained: Ints
    reference: int


def source_tokens(
    model: Model, competing: Bools, lens: Lens, choice: TokenChoice, most: int | None = None
) -> SourceTokens:
    """Choose the source tokens of a model.

    Args:
        model: The opened model.
        competing: [vocab] which tokens stand for text.
        lens: It says how many word-like tokens are taken by default (:func:`default_most`).
        choice: ``"wordlike"``, ``"initial"`` (tokens that begin a word) or ``"all"``.
        most: The first so many by id are taken: vocabularies that are built by merging number their tokens
            by frequency.

    Raises:
        HeadatlasError: There is no such token.
    """
    tokenizer = model.tokenizer()
    texts = token_texts(tokenizer, competing)
    few, reference = undertrained(model, unused(tokenizer, len(competing)))
    known = competing & ~few
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id < len(known):
        known[tokenizer.unk_token_id] = False
    if choice != "all":
        test = is_wordlike if choice == "wordlike" else begins_word
        known &= np.array([test(text) for text in texts])
    ids = np.flatnonzero(known)
    if most is None and choice == "wordlike":
        most = default_most(model, lens)
    if len(ids) == 0:
        raise HeadatlasError(f"{model.checkpoint.spec}: `tokens={choice}`: its tokenizer has no such token.")
    taken = ids[:most]
    left = len(ids) - len(taken)
    return SourceTokens(taken, texts, choice, most, left, np.flatnonzero(few & competing), reference)


def default_most(model: Model, lens: Lens) -> int | None:
    """How many word-like tokens are taken where nobody says: no limit for a lens without a forward pass.

    Else 20,000, or fewer where that pass would take more than 100 · 10¹² operations: two for each weight of
    the blocks, each prefix and each token. At least 1,000.
    """
    if lens.weights_only:
        return None
    a_token = 2 * model.n_block_parameters * model.dims.n_layers * len(lens.prefixes)
    return min(MOST_WITH_FORWARD_PASS, max(LEAST_WITH_FORWARD_PASS, int(FORWARD_PASS / a_token)))


def token_texts(tokenizer: Tokenizer, competing: Bools) -> list[str]:
    """[vocab] each token as it continues a text, with the space it begins with; empty where none competes.

    Tokens that are no whole characters keep the tokenizer's own name.
    """
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids = np.flatnonzero(competing).tolist()
    rows = [anchor, *([*anchor, token] for token in ids)]
    before, *after = tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)
    names = tokenizer.convert_ids_to_tokens(ids)
    texts = [""] * len(competing)
    for token, whole, name in zip(ids, after, names, strict=True):
        text = whole.removeprefix(before) if whole.startswith(before) else ""
        texts[token] = str(name) if not text or REPLACEMENT in text else text
    return texts


def is_wordlike(text: str) -> bool:
    """Whether a token is a word of letters: two or more after a space, one in scripts without spaces."""
    return begins_word(text) and _all_letters(text.strip()) and (text[0] != " " or len(text.strip()) > 1)


def begins_word(text: str) -> bool:
    """Whether a token begins a word: with a space, or with a letter of a script written without spaces."""
    word = text.strip()
    return bool(word) and (text[0] == " " or (word[0].isalpha() and written_bare(text)))


def _all_letters(word: str) -> bool:
    return word.isalpha() or all(unicodedata.category(char)[0] in "LM" for char in word)


def unused(tokenizer: Tokenizer, vocab_size: int) -> Ints:
    """Ids that no text has: padding rows, reserved and special tokens, and bytes that UTF-8 never uses."""
    competing, reserved = competing_tokens(tokenizer, vocab_size)
    names = {f"<0x{byte:02X}>" for byte in NOT_IN_UTF8} | {chr(byte) for byte in NOT_IN_UTF8}
    vocabulary = tokenizer.get_vocab()
    maybe = [vocabulary[name] for name in sorted(names & set(vocabulary)) if vocabulary[name] < vocab_size]
    maybe = [token for token in maybe if competing[token]]
    # Outside byte-level vocabularies these characters are letters.
    rows = [[token] for token in maybe]
    texts = tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False) if maybe else []
    bytes_ = [token for token, text in zip(maybe, texts, strict=True) if REPLACEMENT in text]
    return np.array(sorted({*reserved, *bytes_}), dtype=np.int64)


def undertrained(model: Model, reference: Ints) -> tuple[Bools, int]:
    """Tokens whose rows of U look like those of tokens that no text has.

    Training pushes the rows of tokens that never occur in one direction. A row counts as undertrained if,
    after the mean of U is taken away, its cosine with the centre of the unused rows is 0.8 or more. (S. Land
    and M. Bartolo, *Fishing for Magikarp*, EMNLP 2024, take the cosine distance for models with tied
    embeddings, after removing the first principal component, and try the tokens of the lowest 2 % in prompts.
    Here nothing is tried, so the threshold is high.)

    Args:
        model: The opened model.
        reference: Ids of tokens that no text has.

    Returns:
        [vocab] bool, and how many unused tokens it was told by: 0 where they are fewer than five, or not
        alike.
    """
    n = model.dims.vocab_size
    if len(reference) < LEAST_REFERENCE:
        return np.zeros(n, dtype=np.bool_), 0
    parts = [slice(start, min(start + ROWS, n)) for start in range(0, n, ROWS)]
    mean = torch.stack([model.unembed(part).double().sum(dim=0) for part in parts]).sum(dim=0) / n
    rows = torch.cat([model.unembed(slice(token, token + 1)).double() for token in reference.tolist()]) - mean
    # The median: a few special tokens are trained.
    centre = normalize(normalize(rows, dim=1).median(dim=0).values, dim=0)
    away = (model.unembed(part).double() - mean for part in parts)
    cosine = torch.cat([each @ centre / each.norm(dim=1).clamp(min=1e-12) for each in away]).numpy()
    if np.median(cosine[reference]) < COHERENT:
        return np.zeros(n, dtype=np.bool_), 0
    found: Bools = cosine >= UNDERTRAINED
    found[reference] = False
    return found, len(reference)
