"""Relations that a model has and the library has not: strong mappings that several heads share.

Mappings of a salient source that no rule of spelling and no relation explains are counted over heads. Those
that more heads share than chance lets share are grouped by which heads have them. Each group is proposed as
a relation file, for a person to read, to correct and to name.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headatlas.describing.judging import Mappings, Token
from headatlas.describing.rules import SPELLING, relation_rules
from headatlas.errors import HeadatlasError
from headatlas.relations.relation import Pair, Relation, merge, word_problem
from headatlas.relations.selection import RelationSpec, resolve_relations

LEAST_HEADS = 2
LEAST_SOURCES = 6
LEAST_TARGETS = 3
"""A group has so many different sources and targets."""
COMMON = 0.2
"""A target that a head promotes for a larger share of its sources says nothing of a source."""
CHANCE_SHARE = 0.05
"""Largest share of shared mappings that may be chance; more heads are asked for until it is reached."""
DRAWS = 20
MOST_MAPPINGS = 3000
"""The most shared mappings that are grouped; of more, those of most heads."""
APART = 0.8
"""Average distance (1 − Jaccard index of their heads) up to which groups are joined."""
HEAD_SOURCES = 2
"""A head has a group if it has so many of its mappings."""
MINED_CATEGORY = "Mined"

Head = tuple[int, int]
WordPair = tuple[str, str]


@dataclass(frozen=True)
class MinedRelation:
    """A group of mappings that several heads share."""

    relation: Relation  # its mappings as a relation, to be named
    heads: tuple[Head, ...]  # the heads that have at least two of them, most first


@dataclass(frozen=True)
class Mined:
    """The relations proposed for a model."""

    proposals: tuple[MinedRelation, ...]  # those shared by most heads first
    least_heads: int  # heads that a mapping had to be shared by
    shared: int  # number of unexplained mappings that so many heads share
    by_chance: float  # the number expected where each head's targets are dealt out among its sources anew

    def caption(self) -> str:
        """The criterion, and how much of it is chance, in one line."""
        return (
            f"{self.shared} unexplained mappings are shared by {self.least_heads} heads or more, "
            f"{self.by_chance:.1f} expected by chance (targets dealt out anew among each head's sources); "
            "proposals are unnamed and unread: nobody has judged their pairs"
        )


def mine_relations(
    salience: pd.DataFrame, *, known: RelationSpec = "all", least_heads: int = LEAST_HEADS, seed: int = 0
) -> Mined:
    """Propose relations from salient mappings that the known ones do not explain.

    Args:
        salience: Salient operations of one model.
        known: Relations whose pairs count as explained.
        least_heads: Fewest heads that share a mapping; more are asked for while more than 5 % of the shared
            ones would be shared by chance.
        seed: Of the draws for chance.
    """
    if least_heads < 2:
        raise HeadatlasError(f"`least_heads` is {least_heads}: a mapping is shared by 2 heads or more.")
    mappings = Mappings.of(salience)
    candidates = _Candidates(mappings, resolve_relations(known))
    counts = Counter(pair for pairs in candidates.pairs().values() for pair in pairs)
    rng = np.random.default_rng(seed)
    drawn = [Counter(p for pairs in candidates.pairs(rng).values() for p in pairs) for _ in range(DRAWS)]
    least = least_heads
    while True:
        shared = sum(n >= least for n in counts.values())
        chance = float(np.mean([sum(n >= least for n in each.values()) for each in drawn]))
        if not shared or chance <= CHANCE_SHARE * shared:
            break
        least += 1
    proposals = _grouped(candidates.pairs(), {pair: n for pair, n in counts.items() if n >= least})
    return Mined(tuple(proposals), least, shared, chance)


class _Candidates:
    """Unexplained mappings of each head."""

    def __init__(self, mappings: Mappings, known: Sequence[Relation]) -> None:
        self._explained = frozenset().union(*(rule.pairs for rule in relation_rules(known)))
        self._seen: dict[WordPair, bool] = {}
        self._heads: dict[Head, tuple[list[Token], list[list[Token]]]] = {}
        for head, rows in mappings.rows.items():
            targets = [list(dict.fromkeys(mappings.targets["promoted"][at])) for at in rows]
            often = Counter(target.folded for each in targets for target in each)
            most = max(1, int(COMMON * len(rows)))
            kept = [[t for t in each if _is_word(t) and often[t.folded] <= most] for each in targets]
            self._heads[head] = [mappings.sources[at] for at in rows], kept

    def pairs(self, rng: np.random.Generator | None = None) -> dict[Head, set[WordPair]]:
        """Head → its unexplained mappings; with `rng`, with its targets dealt out anew among its sources."""
        found = {}
        for head, (sources, targets) in self._heads.items():
            order: NDArray[np.int64] = (
                np.arange(len(sources)) if rng is None else rng.permutation(len(sources))
            )
            found[head] = {
                (source.word, target.word)
                for source, at in zip(sources, order, strict=True)
                if _is_word(source)
                for target in targets[at]
                if not self._known(source, target)
            }
        return found

    def _known(self, source: Token, target: Token) -> bool:
        pair = source.folded, target.folded
        found = self._seen.get(pair)
        if found is None:
            found = pair in self._explained or any(holds(source, target) for *_, holds in SPELLING[:-2])
            self._seen[pair] = found
        return found


def _is_word(token: Token) -> bool:
    """Whether a token can be a word of a relation: parts of words are none, where they can be told."""
    whole = len(token.word) > 1 and token.kind != "piece"
    return whole and token.word.isalnum() and word_problem(token.word) is None


def _grouped(pairs: dict[Head, set[WordPair]], counts: dict[WordPair, int]) -> list[MinedRelation]:
    """Groups of mappings that the same heads have, by average linkage, those of most heads first."""
    from scipy.cluster.hierarchy import fcluster, linkage

    chosen = sorted(counts, key=lambda pair: (-counts[pair], pair))[:MOST_MAPPINGS]
    if len(chosen) < LEAST_SOURCES:
        return []
    place = {pair: at for at, pair in enumerate(chosen)}
    heads = list(pairs)
    has = np.zeros((len(chosen), len(heads)), dtype=bool)
    for at, head in enumerate(heads):
        has[[place[pair] for pair in pairs[head] if pair in place], at] = True
    groups = fcluster(linkage(has, "average", metric="jaccard"), APART, criterion="distance")
    members: dict[int, list[int]] = defaultdict(list)
    for row, group in enumerate(groups.tolist()):
        members[group].append(row)
    found = []
    for rows in members.values():
        per_head = has[rows].sum(axis=0)
        order = np.argsort(-per_head, kind="stable")
        own = tuple(heads[at] for at in order if per_head[at] >= HEAD_SOURCES)
        words = merge([Pair(source, (target,)) for source, target in (chosen[row] for row in rows)])
        if len(words) >= LEAST_SOURCES and len({t for pair in words for t in pair.targets}) >= LEAST_TARGETS:
            found.append((own, words))
    found.sort(key=lambda each: (-len(each[0]), -len(each[1]), each[1][0].source))
    return [_proposal(at, own, words) for at, (own, words) in enumerate(found, start=1)]


def _proposal(at: int, heads: tuple[Head, ...], words: tuple[Pair, ...]) -> MinedRelation:
    named = ", ".join(f"{layer}.{head}" for layer, head in heads)
    note = (
        f"Proposed from salient mappings that {len(heads)} heads share ({named}). Nobody has read the pairs: "
        "correct them, and name the relation."
    )
    provenance = {"source": "mined from the weights of a model", "licence": "", "note": note}
    title = f"mined {at}: {words[0].source} → {words[0].targets[0]} …"
    return MinedRelation(Relation(f"mined_{at}", title, MINED_CATEGORY, words, provenance=provenance), heads)
