"""Which tokens are sources: words by kind of tokenizer, and tokens that were hardly trained."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from tokenizers import decoders
from transformers import PreTrainedTokenizerBase

from headatlas.errors import HeadatlasError
from headatlas.lenses import LENSES
from headatlas.relations import competing_tokens
from headatlas.writing import tokens as module
from headatlas.writing.tokens import (
    begins_word,
    is_wordlike,
    source_tokens,
    token_texts,
    undertrained,
    unused,
)
from tests.relations.tiny_tokenizers import byte_level_bpe, sentence_piece, word_piece


def with_words() -> PreTrainedTokenizerBase:
    """As BERT, with the decoder that such tokenizers have."""
    tokenizer = word_piece()
    tokenizer.backend_tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer


def with_pieces() -> PreTrainedTokenizerBase:
    """As Llama 2, with the decoder that such tokenizers have."""
    tokenizer = sentence_piece("always")
    tokenizer.backend_tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


TOKENIZERS = {
    "byte level": byte_level_bpe,
    "word piece": with_words,
    "sentence piece": with_pieces,
}


def texts_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Name → text of all tokens that compete."""
    competing, _ = competing_tokens(tokenizer, len(tokenizer))
    texts = token_texts(tokenizer, competing)
    return {
        str(tokenizer.convert_ids_to_tokens(token)): texts[token]
        for token in np.flatnonzero(competing).tolist()
    }


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_texts_keep_the_space_before_a_word(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    texts = set(texts_of(tokenizer).values())
    assert {" cat", " paris"} <= {text.lower() for text in texts}
    words = {text for text in texts if is_wordlike(text)}
    assert " cat" in words and " c" not in words and "a" not in words
    assert {text for text in texts if begins_word(text)} >= words


def test_bytes_keep_their_names() -> None:
    byte_level, pieces = texts_of(byte_level_bpe()), texts_of(with_pieces())
    assert byte_level["Ã"] == "Ã" and pieces["<0xE2>"] == "<0xE2>"
    assert byte_level["Ġ"] == " " and pieces["法国"] == "法国"
    assert texts_of(with_words())["##b"] == "b"


def test_word_like() -> None:
    assert all(map(is_wordlike, (" cat", " Été", " हिन्दी", "法国", "法", " 日本")))
    assert not any(map(is_wordlike, ("cat", " a", " 12", " don't", "", " ", "\n", " x1", "12", "ing")))
    assert all(map(begins_word, (" a", " 12", " x1", "法国"))) and not any(
        map(begins_word, ("ing", " ", "", "9"))
    )


def test_unused_tokens() -> None:
    byte_level, pieces = byte_level_bpe(), with_pieces()
    names = {
        str(byte_level.convert_ids_to_tokens(int(token))) for token in unused(byte_level, len(byte_level))
    }
    assert names == {"<|endoftext|>", "<|reserved_3|>", "À", "Á", *map(chr, range(0xF5, 0x100))}
    # Rows without a token are unused, too.
    assert len(unused(byte_level, len(byte_level) + 3)) == len(names) + 3
    names = {str(pieces.convert_ids_to_tokens(int(token))) for token in unused(pieces, len(pieces))}
    assert {"<unused5>", "<0xC0>", "<0xFF>"} <= names and "<0xE2>" not in names


def a_model(seed: int = 0, **more: Any) -> Any:
    """An unembedding whose first ten rows nobody trained, and 40 to 43 neither."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(300, 32, generator=generator)
    pushed = 3 * torch.randn(32, generator=generator)
    for token in (*range(10), *range(40, 44)):
        rows[token] = pushed + 0.2 * rows[token]
    return SimpleNamespace(
        unembed=lambda part: rows[part],
        dims=SimpleNamespace(vocab_size=300, n_layers=1),
        n_block_parameters=1,
        **more,
    )


def test_undertrained_tokens_look_like_unused_ones() -> None:
    model = a_model()
    found, reference = undertrained(model, np.arange(10))
    assert np.flatnonzero(found).tolist() == [40, 41, 42, 43] and reference == 10
    with patch.object(module, "ROWS", 7):
        np.testing.assert_array_equal(undertrained(model, np.arange(10))[0], found)
    # Some trained special tokens among them change nothing.
    assert np.flatnonzero(undertrained(model, np.arange(13))[0]).tolist() == [40, 41, 42, 43]
    # Too few, or not alike: nothing can be told.
    for reference_ in (np.arange(4), np.arange(50, 80)):
        found, reference = undertrained(model, reference_)
        assert not found.any() and reference == 0


def test_choices() -> None:
    tokenizer = byte_level_bpe()
    competing, _ = competing_tokens(tokenizer, 300)
    checkpoint = SimpleNamespace(spec="tiny")
    model = a_model(tokenizer=lambda: tokenizer, checkpoint=checkpoint)
    chosen = {
        choice: source_tokens(model, competing, LENSES["maps"], choice)
        for choice in ("all", "initial", "wordlike")
    }
    assert chosen["all"].ids.tolist() == np.flatnonzero(competing).tolist()
    few = chosen["wordlike"]
    assert {few.texts[token] for token in few.ids} >= {" of", " Paris", " cat"}
    assert all(few.texts[token].startswith(" ") for token in few.ids)
    assert set(few.ids) < set(chosen["initial"].ids) < set(chosen["all"].ids)
    with patch.object(module, "MOST_WITH_FORWARD_PASS", 5):
        assert (
            source_tokens(model, competing, LENSES["neutral"], "wordlike").ids.tolist()
            == few.ids[:5].tolist()
        )
        assert source_tokens(model, competing, LENSES["maps"], "wordlike").ids.tolist() == few.ids.tolist()
    with pytest.raises(HeadatlasError, match="`tokens=wordlike`: its tokenizer has no such token"):
        source_tokens(model, np.zeros(300, dtype=bool), LENSES["maps"], "wordlike")
