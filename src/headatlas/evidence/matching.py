"""Sources of a relation beside matched other words, and how far a head prefers them: AUROC and its null.

A matched word has as many tokens as a source, stands in text with or without a space as it does, begins with
a capital letter or does not as it does, and has a last token whose id is near (in most tokenizers the order
of ids is that of frequency, roughly). It is a source of another relation and no word of this one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from headatlas.evidence.tasks import spread
from headatlas.evidence.texts import Ids
from headatlas.relations import Relation, TokenisedRelation, core, library
from headatlas.relations.tokenising import word_ids, written_bare

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ASKED = 8
"""Sources that stand in the texts of the queries, at most; they are no keys."""
KEYS = 32
"""Sources that are keys, at most."""
FOILS = 2
"""Matched words for each of them, at most."""
LEAST = 10
"""Sources and matched words that are needed, each."""
SAME_KIND = 0.1
"""A relation that shares a larger part of its sources with another lends it no matched words."""
DRAWS = 9999
"""Permutations of the null."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Kind = tuple[int, bool, bool]
"""Number of tokens, whether written without a space, whether it begins with a capital letter."""


@dataclass(frozen=True)
class Matched:
    """The words whose keys are compared.

    Attributes:
        asked: Positions, among the relation's usable pairs, of the sources that stand in the queries' texts.
        words: As written, sources first.
        ids: Their token ids.
        is_source: [n] whether each is a source.
        stratum: [n] number of the kind of word each is; sources are compared with words of their kind only.
    """

    asked: tuple[int, ...]
    words: tuple[str, ...]
    ids: tuple[Ids, ...]
    is_source: Bools
    stratum: NDArray[np.int64]

    @property
    def problem(self) -> str | None:
        """The reason why these are too few, or None."""
        n_sources, n_foils = int(self.is_source.sum()), int((~self.is_source).sum())
        if n_sources < LEAST or n_foils < LEAST:
            return f"{n_sources} sources with {n_foils} matched words; {LEAST} of each are needed"
        return None


def word_kind(word: str, ids: Ids) -> Kind:
    """The kind of a word: only words of one kind are compared."""
    return len(ids), written_bare(word), word[0].isupper()


def lending(
    tokenizer: PreTrainedTokenizerBase, competing: Bools, most_tokens: int, relations: Sequence[Relation]
) -> dict[str, dict[str, Ids]]:
    """Relation → its sources with their token ids: of the shipped relations and of those given."""
    every = {each.name: each for each in (*core(), *library(), *relations)}
    ids = word_ids(tokenizer, (pair.source for each in every.values() for pair in each.pairs))
    unknown = tokenizer.unk_token_id

    def usable(tokens: Ids) -> bool:
        known = all(t < len(competing) and competing[t] and t != unknown for t in tokens)
        return 0 < len(tokens) <= most_tokens and known

    return {
        name: {pair.source: ids[pair.source] for pair in each.pairs if usable(ids[pair.source])}
        for name, each in every.items()
    }


def matched_words(relation: TokenisedRelation, lent: Mapping[str, Mapping[str, Ids]]) -> Matched:
    """Choose a relation's keys and their matched words; the same words give the same choice.

    Args:
        relation: As the tokenizer sees it.
        lent: What :func:`lending` gives.
    """
    asked = spread(len(relation.pairs), min(ASKED, len(relation.pairs) // 4))
    rest = [at for at in range(len(relation.pairs)) if at not in set(asked)]
    sources = {
        _word(relation, rest[at]): relation.pairs[rest[at]].source_ids for at in spread(len(rest), KEYS)
    }
    foils = _foils(sources, _pool(relation, lent))
    kept = {word: ids for word, ids in sources.items() if foils[word]}
    chosen = {**kept, **{other: ids for word in kept for other, ids in foils[word].items()}}
    kinds = [word_kind(word, ids) for word, ids in chosen.items()]
    numbers = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
    return Matched(
        tuple(asked),
        tuple(chosen),
        tuple(chosen.values()),
        np.arange(len(chosen)) < len(kept),
        np.array([numbers[kind] for kind in kinds], dtype=np.int64),
    )


def _word(relation: TokenisedRelation, at: int) -> str:
    return relation.relation.pairs[relation.pairs[at].index].source


def _pool(relation: TokenisedRelation, lent: Mapping[str, Mapping[str, Ids]]) -> dict[Kind, dict[str, Ids]]:
    """Kind → words of other relations, none of which is a word of this one."""
    own = {pair.source.casefold() for pair in relation.relation.pairs}
    words = own | {target.casefold() for pair in relation.relation.pairs for target in pair.targets}
    tokens = {pair.source_ids for pair in relation.pairs}
    pool: dict[Kind, dict[str, Ids]] = {}
    for found in lent.values():
        if not found or _shared(own, {word.casefold() for word in found}) > SAME_KIND:
            continue
        for word, ids in found.items():
            if word.casefold() not in words and ids not in tokens:
                tokens.add(ids)
                pool.setdefault(word_kind(word, ids), {})[word] = ids
    return pool


def _shared(own: set[str], others: set[str]) -> float:
    return len(own & others) / min(len(own), len(others))


def _foils(sources: Mapping[str, Ids], pool: dict[Kind, dict[str, Ids]]) -> dict[str, dict[str, Ids]]:
    """Source → up to ``FOILS`` words of its kind with the nearest last token ids, each word once."""
    found: dict[str, dict[str, Ids]] = {word: {} for word in sources}
    for _ in range(FOILS):
        for word, ids in sources.items():
            left = pool.get(word_kind(word, ids), {})
            if left:
                nearest = min(left, key=lambda other: (abs(left[other][-1] - ids[-1]), other))
                found[word][nearest] = left.pop(nearest)
    return found


# How far sources are preferred -----------------------------------------------------------------------


def ranks_within(logits: Floats, stratum: NDArray[np.int64]) -> Floats:
    """Ranks [..., n] of logits [..., n] among the words of their kind, from 1; ties at their mean."""
    out = np.empty_like(logits, dtype=np.float64)
    for number in np.unique(stratum):
        mine = np.flatnonzero(stratum == number)
        out[..., mine] = stats.rankdata(logits[..., mine], axis=-1)
    return out


def auroc(ranks: Floats, is_source: Bools, stratum: NDArray[np.int64]) -> Floats:
    """Chance that a source ranks above a matched word of its kind, ties counted half.

    Args:
        ranks: [..., n] from :func:`ranks_within`, or their mean over queries: the mean of the AUROCs.
        is_source, stratum: [n].

    Returns:
        [...], between 0 and 1.
    """
    least, pairs = _least_and_pairs(is_source, stratum)
    return np.asarray((ranks @ is_source.astype(np.float64) - least) / pairs)


def _least_and_pairs(is_source: Bools, stratum: NDArray[np.int64]) -> tuple[float, int]:
    """The smallest sum of ranks of the sources, and the number of pairs of a source and a matched word."""
    n = np.array([(is_source & (stratum == number)).sum() for number in np.unique(stratum)])
    m = np.array([(~is_source & (stratum == number)).sum() for number in np.unique(stratum)])
    return float((n * (n + 1) / 2).sum()), int((n * m).sum())


def permutation_p(
    ranks: Floats, is_source: Bools, stratum: NDArray[np.int64], seed: int, draws: int = DRAWS
) -> Floats:
    """One-sided p: share of permutations, within kinds of words, that prefer the sources at least as much.

    Args:
        ranks: [cell, n] mean ranks of each cell's words.
        is_source, stratum: [n].
        seed: Of the permutations, which all cells share.
        draws: Number of permutations.

    Returns:
        [cell] (1 + count) / (1 + draws): valid, and at least 1 / (1 + draws).
    """
    rng = np.random.default_rng(seed)
    labels = np.zeros((draws, len(is_source)))
    for number in np.unique(stratum):
        mine = np.flatnonzero(stratum == number)
        labels[:, mine] = rng.permuted(np.tile(is_source[mine].astype(np.float64), (draws, 1)), axis=1)
    observed = ranks @ is_source.astype(np.float64)
    out = np.empty(len(ranks))
    for start in range(0, len(ranks), 512):
        part = slice(start, start + 512)
        # Equal sums may differ by rounding.
        out[part] = (labels @ ranks[part].T >= observed[part] - 1e-9).sum(axis=0)
    return (1.0 + out) / (1.0 + draws)
