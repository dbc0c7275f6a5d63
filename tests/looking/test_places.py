"""Which positions a behaviour is about, and which tokens are run."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from headatlas.architectures import open_model
from headatlas.errors import HeadatlasError
from headatlas.evidence.texts import LENGTH, shipped_texts
from headatlas.looking.one_text import text_ids
from headatlas.looking.sequences import BLOCKS, IN_TEXT, PER_BLOCK, Pieces, everywhere, places, sequences_for
from headatlas.weights import open_checkpoint
from tests.looking.test_measuring import EVERY, opened
from tests.mapping.checkpoints import VOCAB, tiny_model, word_tokenizer

TEXTS = (
    *("<s>", "A", " cat", " saw", " Ben", ".", " A", " cat"),
    *(" 12", "\n", "He", " ran", ",", "!", " On", "ce"),
)


@pytest.fixture
def pieces() -> Pieces:
    begins = tuple(text.startswith(" ") or at in (0, 1, 10) for at, text in enumerate(TEXTS))
    return Pieces(
        tuple(TEXTS.index(text.strip() if text == " A" else text) for text in TEXTS), TEXTS, begins, 1
    )


def where(weights: np.ndarray) -> dict[int, list[int]]:
    """Query → keys; every query's weights must be the same."""
    found = {int(q): np.flatnonzero(weights[q]).tolist() for q in np.flatnonzero(weights.any(axis=1))}
    if found:
        np.testing.assert_allclose(weights[weights > 0], 1 / len(found))
    return found


def test_places_in_a_text(pieces: Pieces) -> None:
    found = {name: where(weights) for name, weights in places(pieces).items()}
    assert tuple(found) == IN_TEXT
    assert found["duplicate_token"] == {6: [1], 7: [2]}
    assert found["induction"] == {6: [2], 7: [3]}
    # The first line and sentence, and queries at a start or next to it, do not count.
    assert found["line_start"] == {query: [10] for query in range(12, 16)}
    assert found["sentence_start"] == {8: [6], 9: [6], 12: [10], 13: [10]}
    assert found["digits"] == {query: [8] for query in range(8, 16)}
    assert found["names"] == {query: [4] for query in range(4, 16)}
    assert found["line_breaks"] == {query: [9] for query in range(9, 16)}
    assert found["punctuation"][15] == [5, 12, 13]


def test_places_that_are_the_same_everywhere() -> None:
    found = {name: where(weights) for name, weights in everywhere(5).items()}
    assert found["previous_token"] == {query: [query - 1] for query in (2, 3, 4)}
    assert found["self"] == {query: [query] for query in (1, 2, 3, 4)}
    assert found["first_position"] == {query: [0] for query in (1, 2, 3, 4)}


def test_the_first_position_is_never_a_place_in_the_text() -> None:
    """Without a token that the tokenizer puts first, a word is there: it counts for nothing but itself."""
    same = Pieces((7, 8, 7, 8, 7), ("w", "x", "w", "x", "w"), (True,) * 5, 1)
    found = {name: where(weights) for name, weights in places(same).items()}
    assert found["duplicate_token"] == {3: [1], 4: [2]}
    assert found["induction"] == {3: [2], 4: [3]}


def test_repeated_sequences_repeat_one_block_and_nothing_else() -> None:
    model, _ = opened("llama")
    sequences = sequences_for(model, EVERY)
    assert sequences.repeated.shape == (len(BLOCKS) * PER_BLOCK, LENGTH)
    assert Counter(sequences.blocks.tolist()) == dict.fromkeys(BLOCKS, PER_BLOCK)
    for ids, block in zip(sequences.repeated, sequences.blocks, strict=True):
        np.testing.assert_array_equal(ids[-block:], ids[-2 * block : -block])
        assert len(set(ids.tolist())) == LENGTH - block
        assert ids[0] == 1  # what the tokenizer itself puts first
    again = sequences_for(model, EVERY)
    assert again.digest == sequences.digest


def test_the_shipped_texts_are_those_that_were_measured() -> None:
    """A change of a text changes every measurement: raise DEFINITIONS, and this digest, on purpose."""
    texts = shipped_texts()
    body = "\0".join(f"{kind}\0{text}" for kind, text in texts)
    assert hashlib.sha256(body.encode()).hexdigest()[:16] == "f78bb554a5154749"
    assert len(texts) == len({text for _, text in texts}) == 136
    kinds = Counter(kind for kind, _ in texts)
    assert {"narrative", "dialogue", "letter", "french", "chinese", "arabic", "python", "json"} <= set(kinds)


def test_a_text_that_cannot_be_used(tmp_path: Path) -> None:
    model, _ = opened("llama")
    short, binary = tmp_path / "short.txt", tmp_path / "binary.txt"
    short.write_text("w20 w21 " * 100)
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HeadatlasError, match=r"short.txt: long enough for 4 sequences of 47 tokens"):
        sequences_for(model, EVERY, short)
    with pytest.raises(HeadatlasError, match=r"binary.txt: is not UTF-8 text"):
        sequences_for(model, EVERY, binary)
    with pytest.raises(HeadatlasError, match=r"nowhere.txt: cannot be read"):
        sequences_for(model, EVERY, tmp_path / "nowhere.txt")


def test_tokens_that_the_embedding_lacks_are_refused(text: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["\x1b[31mextra"])
    own = text.with_name("extra.txt")
    own.write_text(text.read_text() + " \x1b[31mextra" * 200)
    model = open_model(open_checkpoint(tiny_model("llama").eval(), tokenizer))
    said = (
        rf"gives token {VOCAB} \('\\x1b\[31mextra'\), and the model's vocabulary has {VOCAB} tokens; use its"
    )
    with pytest.raises(HeadatlasError, match=said):
        sequences_for(model, EVERY, own)
    with pytest.raises(HeadatlasError, match=said):
        text_ids(model, "The \x1b[31mextra")
