"""Would a head look there? Logits of queries for a relation's sources beside matched words, from W_Q and W_K.

Queries are the model's states at the end of texts that hold a source of the relation. Keys are states of
*other* sources and of matched words after the neutral prefixes, so no head is credited for finding the very
word that its query has read.

A matched word has as many tokens as a source, stands in text with or without a space as it does, begins with
a capital letter or does not as it does, and has a last token whose id is near (in most tokenizers the order
of ids is that of frequency, roughly). It is a source of another relation and no word of this one.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from headatlas.architectures.queries import AttentionRule
from headatlas.atlas.evidence import CONTEXT_TEXT, TASK, Preferences, evidence_group
from headatlas.atlas.store import strings
from headatlas.atlas.stored import SHIPPED, check_storable, store_dataset
from headatlas.evidence.opening import Subject
from headatlas.evidence.recording import Watched, watch
from headatlas.evidence.texts import Ids, Template, Templates, Text, in_template, source_words, spread
from headatlas.lenses import NEUTRAL_PREFIXES, NeutralStates
from headatlas.lenses.forward import running
from headatlas.progress import Progress
from headatlas.relations import Relation, TokenisedRelation, core, library
from headatlas.relations.tokenising import word_ids, written_bare

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from headatlas.weights import Tokenizer

DISTANCES = (1, 2, 4, 8, 16)
"""Positions from key to query, where positions turn them."""
QUERIES = (TASK, CONTEXT_TEXT)
MOST_TOKENS = 8
"""Of a word, as for the lens ``neutral``."""
DEFINITIONS = 1
"""Goes up when a definition changes: what is stored is then measured again."""
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


def run_attention(subject: Subject, templates: Templates, *, own: bool = False) -> Preferences:
    """Measure preferences of every head for the sources of every scored relation, and store them.

    What is stored is not measured again; ``own`` templates have a place beside that of the shipped ones.
    """
    model = subject.prepared.model
    model.queries(model.layers_with_heads[0])  # refused before anything runs
    asking = _Asking(subject, templates)
    name = asking.digest[:12] if own else SHIPPED
    place = Preferences.place(evidence_group(subject.path), name)
    if place.is_dir():
        there = Preferences.read(place)
        if there.provenance.get("digest") == asking.digest:
            return there
    check_storable(place)
    with tempfile.TemporaryDirectory(prefix="headatlas-") as folder:
        store_dataset(place, _measured(asking, Path(folder)), asking.provenance())
    return Preferences.read(place)


# Words that are compared -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Matched:
    """The words of a relation whose keys are compared."""

    # Places, among the relation's usable pairs, of the sources that stand in the queries' texts.
    asked: tuple[int, ...]
    words: tuple[str, ...]  # as written, sources first
    ids: tuple[Ids, ...]
    is_source: Bools  # [n] whether each is a source
    stratum: NDArray[np.int64]  # [n] kind of each word; sources are compared with words of their kind only

    @property
    def n_sources(self) -> int:
        return int(self.is_source.sum())

    @property
    def foils(self) -> list[str]:
        """The matched words."""
        return list(self.words[self.n_sources :])

    @property
    def problem(self) -> str | None:
        """The reason why these are too few, or None."""
        if min(self.n_sources, len(self.foils)) < LEAST:
            return (
                f"{self.n_sources} sources with {len(self.foils)} matched words; {LEAST} of each are needed"
            )
        return None


def lending(
    tokenizer: Tokenizer, competing: Bools, relations: Sequence[Relation]
) -> dict[str, dict[str, Ids]]:
    """Relation → its sources with their token ids: of the shipped relations and of those given."""
    every = {each.name: each for each in (*core(), *library(), *relations)}
    ids = word_ids(tokenizer, (pair.source for each in every.values() for pair in each.pairs))
    unknown = tokenizer.unk_token_id

    def usable(tokens: Ids) -> bool:
        known = all(t < len(competing) and competing[t] and t != unknown for t in tokens)
        return 0 < len(tokens) <= MOST_TOKENS and known

    return {
        name: {pair.source: ids[pair.source] for pair in each.pairs if usable(ids[pair.source])}
        for name, each in every.items()
    }


def matched_words(relation: TokenisedRelation, lent: Mapping[str, Mapping[str, Ids]]) -> Matched:
    """Choose a relation's keys and their matched words, of what :func:`lending` gives.

    The same words give the same choice.
    """
    pairs, words = relation.pairs, source_words(relation)
    asked = spread(len(pairs), min(ASKED, len(pairs) // 4))
    rest = [at for at in range(len(pairs)) if at not in set(asked)]
    keys = [rest[at] for at in spread(len(rest), KEYS)]
    sources = {words[at]: pairs[at].source_ids for at in keys}
    foils = _foils(sources, _pool(relation, lent))
    kept = {word: ids for word, ids in sources.items() if foils[word]}
    chosen = {**kept, **{other: ids for word in kept for other, ids in foils[word].items()}}
    kinds = [_kind(word, ids) for word, ids in chosen.items()]
    numbers = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
    return Matched(
        tuple(asked),
        tuple(chosen),
        tuple(chosen.values()),
        np.arange(len(chosen)) < len(kept),
        np.array([numbers[kind] for kind in kinds], dtype=np.int64),
    )


def _kind(word: str, ids: Ids) -> Kind:
    return len(ids), written_bare(word), word[0].isupper()


def _pool(relation: TokenisedRelation, lent: Mapping[str, Mapping[str, Ids]]) -> dict[Kind, dict[str, Ids]]:
    """Kind → words of other relations, none of which is a word of this one."""
    own = {pair.source.casefold() for pair in relation.relation.pairs}
    words = own | {target.casefold() for pair in relation.relation.pairs for target in pair.targets}
    tokens = {pair.source_ids for pair in relation.pairs}
    pool: dict[Kind, dict[str, Ids]] = {}
    for found in lent.values():
        others = {word.casefold() for word in found}
        if not others or len(own & others) / min(len(own), len(others)) > SAME_KIND:
            continue
        for word, ids in found.items():
            if word.casefold() not in words and ids not in tokens:
                tokens.add(ids)
                pool.setdefault(_kind(word, ids), {})[word] = ids
    return pool


def _foils(sources: Mapping[str, Ids], pool: dict[Kind, dict[str, Ids]]) -> dict[str, dict[str, Ids]]:
    """Source → up to ``FOILS`` words of its kind with the nearest last token ids, each word once."""
    found: dict[str, dict[str, Ids]] = {word: {} for word in sources}
    for _ in range(FOILS):
        for word, ids in sources.items():
            if left := pool.get(_kind(word, ids)):
                nearest = min(left, key=lambda other: (abs(left[other][-1] - ids[-1]), other))
                found[word][nearest] = left.pop(nearest)
    return found


# What is asked, and what is measured -----------------------------------------------------------------


@dataclass(frozen=True)
class _Compared:
    """A relation's words, and the texts that ask: query → rows among all texts."""

    relation: Relation
    matched: Matched
    rows: dict[str, list[int]]

    @property
    def name(self) -> str:
        return self.relation.name


class _Asking:
    """Words and texts of one run."""

    def __init__(self, subject: Subject, templates: Templates) -> None:
        self.subject, self._templates = subject, templates
        self.texts: list[Text] = []  # the query is at the last position of each
        self.relations: list[_Compared] = []
        self.left_out: dict[str, str] = {}  # relation → why its words cannot be compared
        every = [each.relation for each in subject.relations]
        prepared = subject.prepared
        lent = lending(prepared.model.tokenizer(), prepared.competing, every)
        for relation in subject.relations:
            if relation.left_out:
                continue
            name, matched = relation.relation.name, matched_words(relation, lent)
            task = [templates.tasks[name]] if name in templates.tasks else []
            rows = {
                TASK: self._ask(relation, matched, task),
                CONTEXT_TEXT: self._ask(relation, matched, templates.context),
            }
            problem = matched.problem
            if problem is None and not any(rows.values()):
                problem = "the tokenizer cuts its sources differently in every text"
            if problem is None:
                self.relations.append(_Compared(relation.relation, matched, rows))
            else:
                self.left_out[name] = problem
        # All words whose keys are needed.
        self.words: list[Ids] = list(dict.fromkeys(w for each in self.relations for w in each.matched.ids))

    def _ask(self, relation: TokenisedRelation, matched: Matched, templates: Sequence[Template]) -> list[int]:
        """Rows of the texts in which the asked sources stand."""
        first = len(self.texts)
        for template in templates:
            _, placed = in_template(relation, self.subject.prepared.model.tokenizer(), template)
            asked = [placed.get(relation.pairs[at].source_ids) for at in matched.asked]
            self.texts += [Text(text.ids, len(text.ids) - 1) for text in asked if text is not None]
        return list(range(first, len(self.texts)))

    @cached_property
    def digest(self) -> str:
        """Says of which model, words and texts a measurement is."""
        body = [
            DEFINITIONS,
            DRAWS,
            DISTANCES,
            NEUTRAL_PREFIXES,
            self.subject.prepared.provenance["model"]["weights_hash"],
            [text.ids for text in self.texts],
            [
                (each.name, each.rows, each.matched.ids, each.matched.is_source.tolist())
                for each in self.relations
            ],
        ]
        return hashlib.sha256(json.dumps(body).encode()).hexdigest()

    def provenance(self) -> dict[str, Any]:
        """The description of a measurement, as the atlas keeps it."""
        tasks, versions = self._templates.tasks, self.subject.prepared.provenance["versions"]
        return {
            "definitions": DEFINITIONS,
            "digest": self.digest,
            "prefixes": list(NEUTRAL_PREFIXES),
            "context": [str(each) for each in self._templates.context],
            "tasks": {each.name: str(tasks[each.name]) for each in self.relations if each.name in tasks},
            "words": {each.name: each.matched.foils for each in self.relations},
            "left_out": self.left_out,
            "versions": {name: versions[name] for name in ("headatlas", "torch", "transformers")},
        }


def _measured(asking: _Asking, folder: Path) -> xr.Dataset:
    """AUROC and p of every head, relation and query."""
    subject, prepared = asking.subject, asking.subject.prepared
    n_keys = len(asking.words) * len(NEUTRAL_PREFIXES)
    total = n_keys + len(asking.texts)
    keys = NeutralStates.compute(
        prepared.model,
        asking.words,
        NEUTRAL_PREFIXES,
        folder / "keys",
        identity=f"{prepared.provenance['model']['weights_hash']} {prepared.provenance['tokenizer_hash']}",
        progress=lambda done, _: subject.tell(Progress("states", done, total)),
        device=subject.device,
    )
    (folder / "queries").mkdir()
    with running(prepared.model, subject.device) as modules:
        rule = prepared.model.attention_rule(modules)
        asked = watch(
            prepared.model,
            modules,
            asking.texts,
            folder / "queries",
            lambda done, _: subject.tell(Progress("states", n_keys + done, total)),
        )
        distances = within_windows(modules.config) if rule.turning else (0,)
        ranks = _ranks(asking, rule, keys, asked, distances)
    return _dataset(asking, ranks, distances)


def within_windows(config: PretrainedConfig) -> tuple[int, ...]:
    """The distances at which every layer sees a key: those inside the sliding window, if layers have one."""
    window = getattr(config.get_text_config(), "sliding_window", None)
    return tuple(each for each in DISTANCES if window is None or each < window)


def _ranks(
    asking: _Asking, rule: AttentionRule, keys: NeutralStates, asked: Watched, distances: Sequence[int]
) -> dict[tuple[str, str], Floats]:
    """(relation, query) → [n_layers, n_heads, distance, word] ranks, means over the texts that ask."""
    subject, model = asking.subject, asking.subject.prepared.model
    shape = (model.dims.n_layers, model.dims.n_heads, len(distances))
    row_of = {word: row for row, word in enumerate(asking.words)}
    out = {
        (each.name, query): np.full((*shape, len(each.matched.ids)), np.nan)
        for each in asking.relations
        for query in QUERIES
        if each.rows[query]
    }
    n_layers = len(model.layers_with_heads)
    for done, layer in enumerate(model.layers_with_heads):
        subject.tell(Progress("heads", done, n_layers))
        heads = model.queries(layer)
        all_keys, all_queries = heads.keys(keys.layer(layer).x), heads.queries(asked.states(layer))
        for each in asking.relations:
            mine = all_keys[:, [row_of[word] for word in each.matched.ids]]
            for query, rows in each.rows.items():
                for at, distance in enumerate(distances if rows else ()):
                    logits = rule.logits(layer, heads, all_queries[:, rows], mine, distance)
                    ranks = ranks_within(logits.double().numpy(), each.matched.stratum)
                    out[each.name, query][layer, :, at] = ranks.mean(axis=1)
    subject.tell(Progress("heads", n_layers, n_layers))
    return out


def _dataset(asking: _Asking, ranks: dict[tuple[str, str], Floats], distances: Sequence[int]) -> xr.Dataset:
    model, compared = asking.subject.prepared.model, asking.relations
    shape = (len(QUERIES), len(compared), model.dims.n_layers, model.dims.n_heads)
    area, p = np.full((*shape, len(distances)), np.nan), np.full(shape, np.nan)
    layers = list(model.layers_with_heads)
    for at, each in enumerate(compared):
        seed = int.from_bytes(bytes.fromhex(each.relation.sha256)[:4], "little")
        labels = each.matched.is_source, each.matched.stratum
        for number, query in enumerate(QUERIES):
            if (mine := ranks.get((each.name, query))) is not None:
                area[number, at] = auroc(mine, *labels)
                cells = mine[layers].mean(axis=2)
                found = permutation_p(cells.reshape(-1, cells.shape[-1]), *labels, seed)
                p[number, at, layers] = found.reshape(cells.shape[:-1])
    heads = ("query", "relation", "layer", "head")
    counts = [(each.matched.n_sources, len(each.matched.foils)) for each in compared]
    n_sources, n_words = np.array(counts, dtype=np.int32).reshape(-1, 2).T
    return xr.Dataset(
        {
            "auroc": ((*heads, "distance"), area),
            "p": (heads, p),
            "n_sources": ("relation", n_sources),
            "n_words": ("relation", n_words),
        },
        coords={
            "query": strings(QUERIES),
            "relation": strings(each.name for each in compared),
            "distance": np.array(distances, dtype=np.int32),
        },
    )


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
    n, m = (
        np.array([(labels & (stratum == number)).sum() for number in np.unique(stratum)])
        for labels in (is_source, ~is_source)
    )
    least, pairs = (n * (n + 1) / 2).sum(), (n * m).sum()
    return np.asarray((ranks @ is_source.astype(np.float64) - least) / pairs)


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
