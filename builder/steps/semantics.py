"""Parts of speech from WordNet, and the parts of compounds."""

from __future__ import annotations

from builder.facts import HERE, Pairs, read_facts
from builder.store import Store

_PARTS = {"n": "noun", "v": "verb", "a": "adjective", "r": "adverb"}


def part_of_speech(store: Store) -> Pairs:
    """Word → its part of speech, for words that are only one; as many of each as of the rarest."""
    found: dict[str, list[str]] = {part: [] for part in _PARTS}
    for word in store.english.words:
        parts = [part for part in _PARTS if (word, part) in store.wordnet.senses]
        if len(parts) == 1 and len(found[parts[0]]) < 60:
            found[parts[0]].append(word)
    pairs = {word: [_PARTS[part]] for part, words in found.items() for word in words}
    return dict(sorted(pairs.items(), key=lambda pair: store.english.order(pair[0])))


def compound_to_part(_: Store, which: str) -> Pairs:
    """Compound of core's list → its first part, or its last."""
    pairs: Pairs = {}
    for first, compounds in read_facts(HERE / "facts" / "word_to_compound.txt").items():
        for compound in compounds:
            rest = compound.removeprefix(first)
            if compound != rest and len(rest) > 2:
                pairs[compound] = [first if which == "first" else rest]
    return pairs


STEPS = {
    "part_of_speech": part_of_speech,
    "compound_to_part": compound_to_part,
}
