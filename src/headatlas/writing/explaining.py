"""Explanations of salient operations: known relations among them, and the fields of words of the rest.

Everything here is about words: a token's text without the space around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headatlas.relations import Relation
from headatlas.scoring.scores import false_discovery_rates

FIELD_Q = 0.01
LEAST_WORDS = 3
"""Of a field that is named."""
MOST_FIELDS = 5
SMALLEST_FIELD = 5
"""Words of the vocabulary that a field must have."""

COPYING = "copying"
"""The core relation that is a rule: it holds for every word, not only for those of its list."""
SEQUENCES = "item"
"""Sources of a relation that are parts of several sequences; each sequence is a field."""
ANY_WORD = frozenset(
    (
        *("word", "word in capitals", "capitalised word", "the same word", "the same name", "person"),
        *("rhyme", "homophone", "synonym", "antonym", "stronger word", "compound", "first part", "last part"),
        *("its partner in a fixed pair", "word with a negative prefix", "abbreviation", "English", "object"),
        *("thing", "part", "whole", "member", "group", "domain", "the next in its sequence"),
        *("what it does", "what it studies", "what it measures", "what it is known for", "its counterpart"),
        "the word read backwards",
    )
)
"""Titles of words that have nothing in common; they are no fields."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Explained:
    """One head's salient operations held against relations.

    Attributes:
        share: Of the salient mass Σ gain², the part of sources that a relation explains; NaN without sources.
        relations: Relation → sources that it explains, the most first.
        words: The distinct words, in small letters, of the sources that nothing explains.
    """

    share: float
    relations: tuple[tuple[str, int], ...]
    words: frozenset[str]


class Library:
    """Relations by word, and the fields of words that they are made of.

    Attributes:
        fields: Field → its words in small letters.
    """

    def __init__(self, relations: Iterable[Relation]) -> None:
        self._pairs: dict[tuple[str, str], list[str]] = {}
        self.fields: dict[str, set[str]] = {}
        for relation in relations:
            for pair in relation.pairs:
                for target in pair.targets:
                    self._pairs.setdefault((pair.source, target), []).append(relation.name)
            names = relation.title.split(" → ")
            if len(names) != 2:
                continue
            if names[0] == SEQUENCES:
                for chain in _chains(relation):
                    self._add(f"{chain[0]} … {chain[-1]}".casefold(), chain)
            else:
                self._add(names[0], (pair.source for pair in relation.pairs))
            self._add(names[1], (target for pair in relation.pairs for target in pair.targets))

    def _add(self, name: str, words: Iterable[str]) -> None:
        if name not in ANY_WORD:
            self.fields.setdefault(name, set()).update(word.casefold() for word in words)

    def explain(self, sources: Sequence[str], gains: Floats, targets: Sequence[Sequence[str]]) -> Explained:
        """Hold a head's sources against all pairs.

        A source is explained if it and one of its targets are a pair of a relation, as they are written but
        for the space around them; or if the target is the source itself, which is copying.

        Args:
            sources: Texts of the source tokens.
            gains: Their gains.
            targets: Texts of the tokens that the head promotes or suppresses for each.
        """
        counts: dict[str, int] = {}
        mass, total = 0.0, float((gains**2).sum())
        rest = set()
        for source, gain, words in zip(sources, gains, targets, strict=True):
            word, stripped = source.strip(), [target.strip() for target in words]
            found = {name for target in stripped for name in self._pairs.get((word, target), ())}
            if word and word in stripped:
                found.add(COPYING)
            mass += float(gain) ** 2 if found else 0.0
            if word and not found:
                rest.add(word.casefold())
            for name in found:
                counts[name] = counts.get(name, 0) + 1
        best = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
        return Explained(mass / total if total > 0 else float("nan"), tuple(best), frozenset(rest))


def _chains(relation: Relation) -> Iterator[list[str]]:
    """Words of a relation that follow each other, sequence by sequence."""
    following = {pair.source: pair.targets[0] for pair in relation.pairs}
    targets = set(following.values())
    # Those that begin nowhere else first; then circles, such as the days of the week.
    for start in [*(word for word in following if word not in targets), *following]:
        chain, word = [], start
        while word in following:
            chain.append(word)
            word = following.pop(word)
        if chain:
            yield chain if word in chain else [*chain, word]


def fields_of(
    heads: Sequence[Explained], fields: Mapping[str, set[str]], vocabulary: Iterable[str]
) -> list[list[tuple[str, int, float]]]:
    """Fields that the unexplained words of each head come from more often than the vocabulary's words.

    One-sided hypergeometric tests; q is Benjamini–Hochberg over heads × fields. Named are fields of three
    words or more with q ≤ 0.01, the smallest p first, each only if it has a word that no field before it
    has.

    Args:
        heads: The heads.
        fields: Field → its words in small letters.
        vocabulary: The words that sources come from; case does not count.

    Returns:
        For each head, (field, words, q), five at most.
    """
    words = {word.strip().casefold() for word in vocabulary} - {""}
    known = {name: part for name, each in fields.items() if len(part := each & words) >= SMALLEST_FIELD}
    names = list(known)
    mine = [each.words & words for each in heads]
    counts = np.array([[len(each & known[name]) for name in names] for each in mine], dtype=np.int64)
    sizes = np.array([len(known[name]) for name in names], dtype=np.int64)
    drawn = np.array([[len(each)] for each in mine], dtype=np.int64)
    if counts.size == 0:
        return [[] for _ in heads]
    from scipy.stats import hypergeom  # its import takes longer than asking a head

    p = np.asarray(hypergeom.sf(counts - 1, len(words), sizes, drawn))
    q = false_discovery_rates(p)
    found = []
    for at, each in enumerate(mine):
        listed: list[tuple[str, int, float]] = []
        covered: set[str] = set()
        for field in np.argsort(p[at], kind="stable").tolist():
            here = each & known[names[field]]
            if q[at, field] > FIELD_Q or len(here) < LEAST_WORDS or len(listed) == MOST_FIELDS:
                continue
            if not here <= covered:
                listed.append((names[field], len(here), float(q[at, field])))
                covered |= here
        found.append(listed)
    return found
