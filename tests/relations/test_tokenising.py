"""A word's tokens are those it has in running text, whatever the tokenizer does with spaces."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from headatlas.relations import (
    MIN_SOURCES,
    NOT_DRAWN,
    Pair,
    Relation,
    competing_tokens,
    drawn,
    sampled,
    tokenise,
)
from headatlas.relations.tokenising import (
    SOURCE_REPEATED,
    SOURCE_SEVERAL,
    SOURCE_TOO_LONG,
    SOURCE_UNKNOWN,
    TARGET_RESERVED,
    TARGET_SEVERAL,
    word_ids,
    written_bare,
)
from tests.relations.tiny_tokenizers import byte_level_bpe, sentence_piece, word_piece


def relation(*pairs: tuple[str, list[str]]) -> Relation:
    return Relation("r", "r", "User", tuple(Pair(source, tuple(targets)) for source, targets in pairs))


def all_compete(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    return competing_tokens(tokenizer, len(tokenizer))[0]


@pytest.mark.parametrize(
    ("word", "bare"),
    [
        ("France", False),
        ("été", False),
        ("Москва", False),
        ("서울", False),
        ("1990", True),
        ("(", True),
        ("€", True),
        ("🐶", True),
        ("法国", True),
        ("ねこ", True),
        ("カメラ", True),
        ("ﾈｺ", True),
        ("แมว", True),
    ],
)
def test_words_without_a_space_before_them(word: str, bare: bool) -> None:
    assert written_bare(word) is bare


def test_byte_level_words_take_their_space_along() -> None:
    tokenizer = byte_level_bpe()
    ids = word_ids(tokenizer, ["France", "7", "法"])
    assert tokenizer.convert_ids_to_tokens(ids["France"]) == ["ĠFrance"]
    assert tokenizer.convert_ids_to_tokens(ids["7"]) == ["7"]
    assert len(ids["法"]) == 3  # its three bytes


@pytest.mark.parametrize("prepend", ["always", "first", "never"])
def test_sentencepiece_words_are_the_same_with_and_without_dummy_prefix(prepend: str) -> None:
    tokenizer = sentence_piece(prepend)
    ids = word_ids(tokenizer, ["France", "7", "法国"])
    assert {word: tokenizer.convert_ids_to_tokens(row) for word, row in ids.items()} == {
        "France": ["▁France"],
        "7": ["7"],
        "法国": ["法国"],
    }


def test_wordpiece_words_have_no_space() -> None:
    tokenizer = word_piece()
    ids = word_ids(tokenizer, ["France", "7", "法国"])
    assert {word: tokenizer.convert_ids_to_tokens(row) for word, row in ids.items()} == {
        "France": ["france"],
        "7": ["7"],
        "法国": ["法", "国"],
    }


def test_another_anchor_is_tried_where_the_first_runs_into_the_word() -> None:
    tokenizer = byte_level_bpe()
    clean = word_ids(tokenizer, ["cat"])["cat"]
    tokenizer.add_tokens(["The cat"])
    assert word_ids(tokenizer, ["cat"])["cat"] == clean


def test_a_word_no_anchor_leaves_clean_is_encoded_on_its_own() -> None:
    tokenizer = byte_level_bpe()
    clean = word_ids(tokenizer, ["cat"])["cat"]
    tokenizer.add_tokens(["The cat", "of cat", "\n cat"])
    assert word_ids(tokenizer, ["cat"])["cat"] == clean


def test_pairs_keep_their_place_and_targets_their_order() -> None:
    tokenizer = byte_level_bpe()
    seen = tokenise(
        relation(("Lima", ["Peru"]), ("France", ["Paris", "Marseille", "Rome"])),
        tokenizer,
        competing=all_compete(tokenizer),
        max_source_tokens=1,
    )
    (pair,) = seen.pairs
    assert (pair.index, pair.target_words) == (1, ("Paris", "Rome"))
    assert tokenizer.convert_ids_to_tokens([*pair.source_ids, *pair.target_ids]) == [
        "ĠFrance",
        "ĠParis",
        "ĠRome",
    ]


def test_every_reason_is_counted() -> None:
    tokenizer = word_piece()
    competing = all_compete(tokenizer)
    competing[tokenizer.convert_tokens_to_ids("red")] = False
    pairs = relation(
        ("France", ["Paris"]),
        ("FRANCE", ["Paris"]),
        ("abc", ["cat"]),
        ("Ж", ["cat"]),
        ("dog", ["abc"]),
        ("cat", ["Ж", "red"]),
    )
    seen = tokenise(pairs, tokenizer, competing=competing, max_source_tokens=1)
    assert [pair.index for pair in seen.pairs] == [0]
    assert seen.dropped == {
        SOURCE_REPEATED: ("FRANCE",),
        SOURCE_SEVERAL: ("abc",),
        SOURCE_UNKNOWN: ("Ж",),
        TARGET_SEVERAL: ("dog",),
        TARGET_RESERVED: ("cat",),
    }
    longer = tokenise(pairs, tokenizer, competing=competing, max_source_tokens=2)
    assert longer.dropped[SOURCE_TOO_LONG] == ("abc",)


def test_a_special_token_is_no_source() -> None:
    tokenizer = byte_level_bpe()
    seen = tokenise(
        relation(("<|endoftext|>", ["Paris"])),
        tokenizer,
        competing=all_compete(tokenizer),
        max_source_tokens=4,
    )
    assert seen.dropped == {SOURCE_UNKNOWN: ("<|endoftext|>",)}


def test_targets_of_one_token_id_collapse() -> None:
    tokenizer = word_piece()
    seen = tokenise(
        relation(("France", ["Paris", "paris", "Rome"])),
        tokenizer,
        competing=all_compete(tokenizer),
        max_source_tokens=1,
    )
    assert seen.pairs[0].target_words == ("Paris", "Rome")


def test_first_token_counts_only_when_asked_for() -> None:
    tokenizer = word_piece()
    pairs = relation(("France", ["abc", "acb", "Paris"]))
    single = tokenise(pairs, tokenizer, competing=all_compete(tokenizer), max_source_tokens=1)
    assert single.pairs[0].target_words == ("Paris",)
    first = tokenise(
        pairs, tokenizer, competing=all_compete(tokenizer), max_source_tokens=1, target_policy="first-token"
    )
    assert first.pairs[0].target_words == ("abc", "Paris")
    assert tokenizer.convert_ids_to_tokens(first.pairs[0].target_ids) == ["a", "paris"]


def test_small_relations_are_left_out_with_the_reason() -> None:
    tokenizer = byte_level_bpe()
    competing = all_compete(tokenizer)
    few = tokenise(relation(("France", ["Paris"])), tokenizer, competing=competing, max_source_tokens=1)
    assert few.left_out == f"1 usable sources, at least {MIN_SOURCES} needed"
    sources = [f"{tens}{ones}" for tens in range(1, 6) for ones in range(10)]
    two = relation(*((source, ["Paris", "Rome"]) for source in sources))
    seen = tokenise(two, tokenizer, competing=competing, max_source_tokens=2)
    assert seen.left_out == "2 distinct targets, at least 3 needed"
    three = relation(*((source, ["Paris", "Rome", "red"]) for source in sources))
    assert tokenise(three, tokenizer, competing=competing, max_source_tokens=2).left_out is None


def test_a_sample_has_so_many_usable_sources() -> None:
    targets = "bcdefghi"
    pairs = [(chr(97 + at // 8) + targets[at % 8], [targets[(at + 1) % 8]]) for at in range(120)]
    pairs[5] = (pairs[5][0], ["two tokens"])
    tokenizer = sentence_piece("never")
    arguments = {"competing": all_compete(tokenizer), "max_source_tokens": 8, "target_policy": "first-token"}
    whole = tokenise(relation(*pairs), tokenizer, **arguments)
    part = tokenise(relation(*pairs), tokenizer, **arguments, sources=40)
    assert (len(whole.pairs), len(part.pairs), part.sampled) == (120, 40, 40)
    assert set(part.pairs) <= set(whole.pairs)
    assert [pair.index for pair in part.pairs] == sorted(pair.index for pair in part.pairs)
    words = [pair[0] for pair in pairs]
    kept = {words[pair.index] for pair in part.pairs}
    assert set(part.dropped[NOT_DRAWN]) == set(words) - kept and len(part.dropped[NOT_DRAWN]) == 80
    assert part.sha256 not in (whole.sha256, sampled(whole, 41).sha256)
    assert part == sampled(whole, 40) and sampled(whole, 120) is whole
    assert whole.sha256 == whole.relation.sha256
    # The draw does not follow the order of the pairs, and larger samples hold smaller ones.
    assert kept != set(words[:40])
    assert kept == set(drawn(reversed(words), 40)) > set(drawn(words, 30))


def test_samples_share_what_both_can_use() -> None:
    """Of two vocabularies, or of two relations that ask the same words."""
    words = [f"w{at}" for at in range(100)]
    first, second = (drawn([word for word in words if word not in gone], 50) for gone in ([], words[:10]))
    assert [word for word in first if word not in words[:10]] == second[: len(set(first) - set(words[:10]))]
