"""Padding rows, special and reserved tokens do not compete; bytes and ordinary words do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from headatlas.relations import competing_tokens
from headatlas.relations.tokenising import is_reserved
from tests.relations.tiny_tokenizers import byte_level_bpe, sentence_piece, word_piece


def test_padding_rows_special_and_reserved_tokens_are_masked() -> None:
    tokenizer = byte_level_bpe()
    size = len(tokenizer)
    competing, masked = competing_tokens(tokenizer, size + 3)
    assert competing.dtype == np.bool_
    assert competing.shape == (size + 3,)
    assert masked == (0, 1, size, size + 1, size + 2)
    assert not competing[list(masked)].any()
    assert competing.sum() == size - 2


def test_a_model_with_fewer_rows_than_tokens() -> None:
    tokenizer = byte_level_bpe()
    assert competing_tokens(tokenizer, 10)[1] == (0, 1)


def test_an_id_of_two_tokens_competes_if_one_is_text(tmp_path: Path) -> None:
    tokenizer = word_piece()
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    cat, dog = (tokenizer.convert_tokens_to_ids(word) for word in ("cat", "dog"))
    content["model"]["vocab"] |= {"[unused7]": cat, "[unused8]": dog}
    file.write_text(json.dumps(content))
    doubled = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert doubled.get_vocab()["[unused7]"] == doubled.get_vocab()["cat"] == cat
    size = len(tokenizer)
    assert competing_tokens(doubled, size)[1] == competing_tokens(tokenizer, size)[1]


def test_byte_fallback_competes_and_added_special_tokens_do_not() -> None:
    tokenizer = sentence_piece("never")
    competing, masked = competing_tokens(tokenizer, len(tokenizer))
    assert tokenizer.convert_ids_to_tokens(masked) == ["<unk>", "<s>", "<unused5>", "<image>"]
    assert competing[tokenizer.convert_tokens_to_ids("<0x0A>")]


def test_unused_slots_of_wordpiece() -> None:
    tokenizer = word_piece()
    masked = competing_tokens(tokenizer, len(tokenizer))[1]
    assert tokenizer.convert_ids_to_tokens(masked) == ["[PAD]", "[UNK]", "[unused1]"]


def test_added_words_compete() -> None:
    tokenizer = byte_level_bpe()
    tokenizer.add_tokens(["<h1>", "<tool_call>"])
    assert competing_tokens(tokenizer, len(tokenizer))[1] == (0, 1)


@pytest.mark.parametrize(
    "token",
    [
        "<unused12>",
        "[unused3]",
        "<|reserved_special_token_5|>",
        "<|reserved_3|>",
        "<|reserved_200000|>",
        "<extra_id_0>",
        "<|dummy_0|>",
        "<dummy00001>",
        "<|placeholder1|>",
        "[control_8]",
        "<SPECIAL_20>",
        ">>UNUSED_1<<",
        "[UNUSED_TOKEN_146]",
        "<｜place▁holder▁no▁0｜>",
        "madeupword0001",
    ],
)
def test_reserved_names(token: str) -> None:
    assert is_reserved(token)


@pytest.mark.parametrize(
    "token", ["<0x0A>", "[control]", "unused", "▁reserved", "<h1>", "[1]", "extra1", "<table>"]
)
def test_names_that_are_text(token: str) -> None:
    assert not is_reserved(token)
