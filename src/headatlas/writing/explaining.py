"""Explanations of salient operations: known relations among them, and the fields of words of the rest.

Everything here is about words: a token's text without the space around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from headatlas.relations import Relation
from headatlas.scoring.scores import false_discovery_rates

FIELD_Q = 0.01
LEAST_WORDS = 3
"""Of a field that is named."""
MOST_FIELDS = 5
SMALLEST_FIELD = 5
"""Words of the vocabulary that a field must have."""

Ints = NDArray[np.int64]
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
            if len(names) == 2:
                self._add(names[0], (pair.source for pair in relation.pairs))
                self._add(names[1], (target for pair in relation.pairs for target in pair.targets))

    def _add(self, name: str, words: Iterable[str]) -> None:
        self.fields.setdefault(name, set()).update(word.casefold() for word in words)

    def explain(self, sources: Sequence[str], gains: Floats, targets: Sequence[Sequence[str]]) -> Explained:
        """Hold a head's sources against all pairs.

        A source is explained if it and one of its targets are a pair of a relation, as they are written but
        for the space around them.

        Args:
            sources: Texts of the source tokens.
            gains: Their gains.
            targets: Texts of the tokens that the head promotes or suppresses for each.
        """
        counts: dict[str, int] = {}
        mass, total = 0.0, float((gains**2).sum())
        rest = set()
        for source, gain, words in zip(sources, gains, targets, strict=True):
            found = {name for word in words for name in self._pairs.get((source.strip(), word.strip()), ())}
            mass += float(gain) ** 2 if found else 0.0
            if not found and source.strip():
                rest.add(source.strip().casefold())
            for name in found:
                counts[name] = counts.get(name, 0) + 1
        best = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
        return Explained(mass / total if total > 0 else float("nan"), tuple(best), frozenset(rest))


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
    counts = np.array([[len(each & known[name]) for name in names] for each in mine]).reshape(len(heads), -1)
    sizes = np.array([len(known[name]) for name in names])
    drawn = np.array([[len(each)] for each in mine])
    p = np.asarray(hypergeom.sf(counts - 1, len(words), sizes, drawn)) if names and heads else np.ones((0, 0))
    q = false_discovery_rates(p)
    found = []
    for at, each in enumerate(mine):
        listed: list[tuple[str, int, float]] = []
        covered: set[str] = set()
        for field in np.argsort(p[at], kind="stable").tolist() if names else []:
            here = each & known[names[field]]
            if q[at, field] > FIELD_Q or len(here) < LEAST_WORDS or len(listed) == MOST_FIELDS:
                continue
            if not here <= covered:
                listed.append((names[field], len(here), float(q[at, field])))
                covered |= here
        found.append(listed)
    return found
