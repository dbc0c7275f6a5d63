"""Rules find what is planted, find nothing in random weights, and are scored on mappings they never saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest

from headatlas.describing.judging import (
    CHANCE,
    Halves,
    Mappings,
    above_chance,
    halves,
    right_choices,
    standard_error,
    tokens_of,
)
from headatlas.describing.rules import Describer, Description
from headatlas.errors import HeadatlasError
from headatlas.relations import Relation, resolve_relations
from tests.describing.made import frame_of, planted, random_weights

HEAD = (1, 2)


@cache
def library() -> tuple[Relation, ...]:
    return resolve_relations("all")


@cache
def some() -> tuple[Relation, ...]:
    return resolve_relations("core,english_to_russian")


def described(frame: pd.DataFrame, head: tuple[int, int] = HEAD) -> Description | None:
    mappings = Mappings.of(frame)
    return Describer(mappings, some()).describe(halves(mappings, head))


def words(name: str) -> dict[str, str]:
    """Source → first target of a shipped relation."""
    (relation,) = resolve_relations(name)
    return {pair.source: pair.targets[0] for pair in relation.pairs}


@pytest.mark.parametrize(
    ("label", "plant", "sources"),
    [
        ("copies", lambda word: word, None),
        ("writes the first letter", lambda word: word[0], None),
        ("writes the last letter", lambda word: word[-1] if len(word) > 2 else None, None),
        ("writes the word in capitals", str.upper, None),
        ("country → capital", words("country_to_capital").get, list(words("country_to_capital"))),
        ("English → French", words("english_to_french").get, list(words("english_to_french"))),
        ("writes words that begin with it", lambda word: f"{word}xyz", None),
    ],
)
def test_a_planted_operation_is_named(
    label: str, plant: Callable[[str], str | None], sources: Sequence[str] | None
) -> None:
    given = None if sources is None else {HEAD: sources}
    found = described(planted({HEAD: plant}, sources=given))
    assert found is not None
    assert (found.label, found.proved) == (label, True)
    holds, _, of, _ = found.support.split()
    assert int(holds) >= 20 and of == "30" and found.score > 0.8


def test_suppression_has_labels_of_its_own() -> None:
    found = described(planted({HEAD: lambda word: word}, suppressed=True))
    assert found is not None and found.label == "suppresses the token itself" and found.proved


def test_a_field_of_sources_and_of_targets_is_named() -> None:
    countries, capitals = words("country_to_capital"), list(words("country_to_capital").values())
    found = described(planted({}, sources={HEAD: list(countries)}))
    assert found is not None and found.proved and found.label == "reads words of the field “country”"
    dealt = iter(capitals)
    found = described(planted({HEAD: lambda _: next(dealt)}))
    assert found is not None and found.proved and found.label == "writes words of the field “capital”"


def test_one_word_over_and_over_is_no_field() -> None:
    """A head that promotes the same country whatever the source has one witness, not thirty."""
    found = described(planted({HEAD: lambda _: "France"}))
    assert found is None or ("field" not in found.label and not found.proved)


def test_a_target_in_cyrillic_letters_is_a_script() -> None:
    russian = iter(words("english_to_russian").values())
    found = described(planted({HEAD: lambda _: next(russian)}))
    assert found is not None and found.proved
    assert found.label in ("writes Cyrillic letters", "writes words of the field “Russian”")


def test_the_held_out_half_alone_decides() -> None:
    """Where the operation stops at the described half, the best rule is named and not proved."""
    frame = planted({HEAD: lambda word: word})
    mappings = Mappings.of(frame)
    parts = halves(mappings, HEAD)
    rows = mappings.rows[HEAD]
    orders = [int(np.flatnonzero(rows == at)[0]) for at in parts.held_out]
    gone = (frame["layer"] == HEAD[0]) & (frame["head"] == HEAD[1]) & frame["order"].isin(orders)
    frame.loc[gone, "promoted"] = frame.loc[gone, "promoted"].map(lambda each: ["ĠNothing", *each[1:]])
    found = described(frame)
    assert found is not None and found.label == "copies" and found.support == "15 of 30 mappings"
    assert found.score == pytest.approx(CHANCE) and not found.proved


def test_random_weights_have_no_labels() -> None:
    """Correct for choosing among hundreds of rules: at most 1 % of heads of random weights are named."""
    mappings = Mappings.of(random_weights(16, 13, 0))
    describer = Describer(mappings, library())
    found = [describer.describe(halves(mappings, head)) for head in mappings.heads]
    assert len(found) == 208 and len(describer.rules) > 400
    assert sum(each is not None for each in found) > 0, "some rule fits the half that it was chosen on"
    assert sum(each is not None and each.proved for each in found) <= 0.01 * len(found)


def test_words_dealt_out_anew_have_no_labels() -> None:
    """Every token another token: what is left of a head that writes capitals or French is nothing."""
    sources = {(layer, head): list(words("country_to_capital")) for layer in range(4) for head in range(4)}
    frame = planted(dict.fromkeys(sources, words("country_to_capital").get), 4, 4, sources=sources)
    every = sorted(
        {*frame["source"], *(t for side in ("promoted", "suppressed") for r in frame[side] for t in r)}
    )
    other = dict(zip(every, np.random.default_rng(1).permutation(every), strict=True))
    frame["source"] = [other[each] for each in frame["source"]]
    for side in ("promoted", "suppressed"):
        frame[side] = [[other[each] for each in row] for row in frame[side]]
    mappings = Mappings.of(frame)
    describer = Describer(mappings, library())
    found = [describer.describe(halves(mappings, head)) for head in mappings.heads]
    assert sum(each is not None and each.proved for each in found) == 0


# The choice ---------------------------------------------------------------------------------------


def test_a_tie_counts_by_lot() -> None:
    strength = np.array([2, 0, 1, 2, 2, 0])
    assert right_choices(strength, np.array([[0, 1, 2, 1, 5]])) == 1.0
    assert right_choices(strength, np.array([[0, 1, 3, 4, 2]])) == pytest.approx(1 / 3)
    assert right_choices(strength, np.array([[1, 0, 5, 5, 5]])) == 0.0
    assert right_choices(np.zeros(6, dtype=int), np.array([[0, 1, 2, 3, 4]])) == pytest.approx(CHANCE)


def test_chance_and_its_error() -> None:
    assert standard_error(15) == pytest.approx(np.sqrt(0.2 * 0.8 / 15))
    assert not above_chance(6 / 15, 15) and above_chance(7 / 15, 15)
    assert not above_chance(1.0, 0)
    # A rule that is true at random is right once in five.
    rng = np.random.default_rng(0)
    strength, options = rng.integers(0, 3, 1000), rng.integers(0, 1000, (20000, 5))
    assert right_choices(strength, options) == pytest.approx(CHANCE, abs=0.01)


def test_halves_are_apart_and_distractors_are_of_other_heads() -> None:
    mappings = Mappings.of(random_weights(6, 4, 0))
    parts = halves(mappings, HEAD)
    assert len(parts.described) == len(parts.held_out) == 15
    assert not set(parts.described) & set(parts.held_out)
    for rows, options in (
        (parts.described, parts.described_options),
        (parts.held_out, parts.held_out_options),
    ):
        assert (options[:, 0] == rows).all()
        others = options[:, 1:]
        assert ((mappings.layer[others] != HEAD[0]) | (mappings.head[others] != HEAD[1])).all()
        assert (mappings.kinds[others] == mappings.kinds[rows][:, None]).mean() > 0.9
        assert all(len(set(row)) == 5 for row in options.tolist())
    same, other = halves(mappings, HEAD), halves(mappings, HEAD, seed=1)
    assert (same.held_out_options == parts.held_out_options).all()
    assert (other.held_out != parts.held_out).any()


def test_too_few_mappings_are_not_judged() -> None:
    alone = frame_of({(0, 0): [("Ġa", ["Ġa"], ["Ġb"])] * 30})
    few = frame_of({at: [("Ġa", ["Ġa"], ["Ġb"])] * 10 for at in ((0, 0), (0, 1))})
    for frame in (alone, few):
        mappings = Mappings.of(frame)
        parts = halves(mappings, (0, 0))
        assert isinstance(parts, Halves) and not parts.judged
        assert Describer(mappings, library()[:3]).describe(parts) is None


@pytest.mark.parametrize(
    ("raw", "text", "kind"),
    [
        ("ĠParis", " Paris", "capitalised"),
        ("ing", "ing", "piece"),
        ("ĠÐ¼Ð¸ÑĢ", " мир", "other script"),
        ("Ġ42", " 42", "number"),
        ("Ċ", "\n", "space"),
        ("Ġ(", " (", "symbol"),
        ("Ã", "�", "symbol"),
    ],
)
def test_byte_level_tokens(raw: str, text: str, kind: str) -> None:
    token = tokens_of([raw, "Ġthe"])[raw]
    assert (token.text, token.kind) == (text, kind)


def test_tokens_of_other_tokenizers() -> None:
    pieces = tokens_of(["▁Paris", "s", "<0x0A>", "▁été"])
    assert pieces["▁Paris"].word == "Paris" and pieces["s"].kind == "piece"
    assert pieces["▁été"].kind == "lower" and pieces["<0x0A>"].word == "\\x0a"
    assert tokens_of(["paris", "##s"])["##s"].kind == "piece"
    assert tokens_of([" Paris", "s"])[" Paris"].kind == "capitalised"


def test_a_frame_without_what_is_needed_is_refused() -> None:
    frame = planted({}, 1, 2)
    with pytest.raises(HeadatlasError, match="no column 'promoted'"):
        Mappings.of(frame.drop(columns="promoted"))
    with pytest.raises(HeadatlasError, match="no rows"):
        Mappings.of(frame[:0])
    with pytest.raises(HeadatlasError, match="not a list of tokens"):
        Mappings.of(frame.assign(promoted="text"))


def test_the_hash_is_of_the_mappings() -> None:
    frame = planted({}, 1, 2)
    first = Mappings.of(frame)
    assert Mappings.of(frame.sample(frac=1, random_state=0)).sha256 == first.sha256
    assert replace(first, sources=first.sources[::-1]).sha256 != first.sha256
