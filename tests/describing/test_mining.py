"""Relations that heads share and the library has not are proposed; chance and what is known are not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from headatlas.atlas import Atlas
from headatlas.describing.mining import mine_relations
from headatlas.errors import HeadatlasError
from headatlas.relations import resolve_relations
from tests.cli.conftest import Run, parsed, run, shared_folder
from tests.describing.made import HOSTILE, planted, random_weights, vocabulary

__all__ = ["run", "shared_folder"]
HEADS = [(0, 1), (1, 2), (2, 3)]


def plants() -> tuple[list[str], dict[str, str]]:
    """Thirty words and, for each, another that has nothing to do with it."""
    words = [token.removeprefix("Ġ") for token in vocabulary() if re.fullmatch("Ġ[a-z]{5,}", token)]
    return words[:30], dict(zip(words[:30], words[400:430], strict=True))


def shared_by(heads: list[tuple[int, int]]) -> object:
    words, other = plants()
    return planted(dict.fromkeys(heads, other.get), sources=dict.fromkeys(heads, words))


def test_what_three_heads_share_is_proposed() -> None:
    found = mine_relations(shared_by(HEADS), known="core")
    _, other = plants()
    (proposal,) = found.proposals
    assert set(proposal.heads) == set(HEADS)
    pairs = {pair.source: set(pair.targets) for pair in proposal.relation.pairs}
    assert sum(other[word] in pairs.get(word, ()) for word in other) >= 28
    assert found.shared >= 28 and found.by_chance <= 0.05 * found.shared
    assert "three" not in found.caption() and "expected by chance" in found.caption()


def test_what_one_head_has_is_not_shared() -> None:
    assert not mine_relations(shared_by(HEADS[:1]), known="core").proposals


def test_what_a_relation_explains_is_not_proposed() -> None:
    (relation,) = resolve_relations("country_to_capital")
    capital = {pair.source: pair.targets[0] for pair in relation.pairs}
    frame = planted(dict.fromkeys(HEADS, capital.get), sources=dict.fromkeys(HEADS, list(capital)[:30]))
    assert not mine_relations(frame, known="core").proposals
    (found,) = mine_relations(frame, known="copying").proposals
    assert len(found.relation.pairs) >= 20


def test_what_spelling_explains_is_not_proposed() -> None:
    words, _ = plants()
    ways = (str.upper, str.capitalize, lambda word: f"{word}xyz")
    written = {word: ways[at % 3](word) for at, word in enumerate(words)}
    frame = planted(dict.fromkeys(HEADS, written.get), sources=dict.fromkeys(HEADS, words))
    assert not mine_relations(frame, known="core").proposals


def test_a_head_that_writes_one_word_proposes_nothing() -> None:
    words, _ = plants()
    frame = planted(dict.fromkeys(HEADS, lambda _: "harbour"), sources=dict.fromkeys(HEADS, words))
    assert not mine_relations(frame, known="core").proposals


def test_random_weights_propose_nothing() -> None:
    assert not mine_relations(random_weights(6, 8, 0), known="core").proposals


def test_hostile_words_are_in_no_proposal() -> None:
    words, _ = plants()
    dealt = {
        word: HOSTILE[at % len(HOSTILE)] for at, word in enumerate(words) if "\ud800" not in HOSTILE[at % 15]
    }
    frame = planted(dict.fromkeys(HEADS, dealt.get), sources=dict.fromkeys(HEADS, words))
    for each in mine_relations(frame, known="core").proposals:
        assert not any(target in HOSTILE for pair in each.relation.pairs for target in pair.targets)


def test_fewer_heads_than_two_share_nothing() -> None:
    with pytest.raises(HeadatlasError, match="`least_heads` is 1"):
        mine_relations(shared_by(HEADS), known="core", least_heads=1)


def test_proposals_are_relation_files(
    run: Run, shared_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = shared_by(HEADS)
    monkeypatch.setattr(Atlas, "salience", lambda _: frame)
    given = ("relations", "mine", shared_folder, "--relations", "core")
    out = tmp_path / "mined"
    result = run(*given, "-o", out)
    assert re.search(r"^mined_1 +\d\d +\d\d +3 +\w+ → \w+", result.stdout, re.M)
    assert "nobody has judged their pairs" in result.stderr
    (relation,) = resolve_relations(out)
    assert relation.category == "Mined" and "Nobody has read the pairs" in relation.provenance["note"]
    assert "0.1, 1.2, 2.3" in relation.provenance["note"] or "heads share" in relation.provenance["note"]
    body = parsed(run(*given, "--json"))
    assert {"model", "lens", "thresholds", "caption", "rows", "about", "least_heads"} == set(body)
    assert len(body["rows"][0]["pairs"]) == len(relation.pairs)
    assert "there already" in run(*given, "-o", out, code=2).stderr
    # The proposals are of the form that the next command takes.
    assert "mined_1" in run("relations", "check", out).stdout
