"""Would a head look there? Logits of queries for a relation's sources beside matched words, from W_Q and W_K.

Queries are the model's states at the end of texts that hold a source of the relation. Keys are states of
*other* sources and of matched words after the neutral prefixes, so no head is credited for finding the very
word that its query has read.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headatlas import __version__
from headatlas.architectures.queries import AttentionRule
from headatlas.atlas import Atlas
from headatlas.atlas.evidence import CONTEXT_TEXT, TASK, Preferences, evidence_group
from headatlas.atlas.stored import SHIPPED, store_dataset
from headatlas.evidence.matching import (
    DRAWS,
    Matched,
    auroc,
    lending,
    matched_words,
    permutation_p,
    ranks_within,
)
from headatlas.evidence.opening import Subject, open_subject
from headatlas.evidence.recording import Watched, watch
from headatlas.evidence.texts import Ids, Template, Templates, Text, in_template, read_templates
from headatlas.lenses import NEUTRAL_PREFIXES, NeutralStates
from headatlas.lenses.forward import running
from headatlas.options import Compute
from headatlas.progress import Progress, Report, silent
from headatlas.relations import TokenisedRelation

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DISTANCES = (1, 2, 4, 8, 16)
"""Positions from key to query, where positions turn them."""
QUERIES = (TASK, CONTEXT_TEXT)
MOST_TOKENS = 8
"""Of a word, as for the lens ``neutral``."""
DEFINITIONS = 1
"""Goes up when a definition changes: what is stored is then measured again."""

Floats = NDArray[np.float64]


def run_attention(
    atlas: Atlas,
    model: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    templates: str | Path | None = None,
    compute: Compute | None = None,
    progress: Report | None = None,
) -> Preferences:
    """Measure preferences of every head for the sources of every scored relation, and store them.

    What is stored is not measured again.

    Args:
        atlas: An atlas from a folder.
        model: Its model; by default the one that the atlas names.
        tokenizer: Needed with a loaded model.
        templates: A file; the shipped templates by default.
        compute: Its device; a model in memory stays where it is.
        progress: Called with each step.

    Raises:
        HeadatlasError: The model is not the atlas's or does not fit into memory, how its family attends is
            not read yet, or a template has no slot.
    """
    tell, found = progress or silent, read_templates(templates)
    tell(Progress("open", 0, 0, atlas.model_name))
    subject = open_subject(atlas, model, tokenizer, compute=compute)
    opened = subject.prepared.model
    opened.queries(opened.layers_with_heads[0])  # refused before anything runs
    asking = _Asking(subject, found)
    name = SHIPPED if templates is None else asking.digest[:12]
    place = Preferences.place(evidence_group(subject.path), name)
    if place.is_dir():
        there = Preferences.read(place)
        if there.provenance.get("digest") == asking.digest:
            return there
    with tempfile.TemporaryDirectory(prefix="headatlas-") as folder:
        store_dataset(place, _measured(asking, Path(folder), tell), _provenance(asking, found))
    return Preferences.read(place)


@dataclass(frozen=True)
class _Compared:
    """A relation's words, and the texts that ask: query → rows among all texts."""

    relation: TokenisedRelation
    matched: Matched
    rows: dict[str, list[int]]


class _Asking:
    """Words and texts of one run.

    Attributes:
        subject: The atlas and its model.
        texts: All texts; the query is at the last position of each.
        words: All words whose keys are needed, as token ids.
        relations: What is compared.
        left_out: Relation → why its words cannot be compared.
    """

    def __init__(self, subject: Subject, templates: Templates) -> None:
        self.subject = subject
        self.texts: list[Text] = []
        self.relations: list[_Compared] = []
        self.left_out: dict[str, str] = {}
        tokenizer = subject.prepared.model.tokenizer()
        every = [each.relation for each in subject.relations]
        lent = lending(tokenizer, subject.prepared.competing, MOST_TOKENS, every)
        for relation in subject.relations:
            if relation.left_out:
                continue
            name, matched = relation.relation.name, matched_words(relation, lent)
            asked = {
                TASK: self._ask(
                    relation, matched, [templates.tasks[name]] if name in templates.tasks else []
                ),
                CONTEXT_TEXT: self._ask(relation, matched, templates.context),
            }
            problem = matched.problem
            if problem is None and not any(asked.values()):
                problem = "the tokenizer cuts its sources differently in every text"
            if problem is not None:
                self.left_out[name] = problem
            else:
                self.relations.append(_Compared(relation, matched, asked))
        self.words: list[Ids] = list(dict.fromkeys(w for each in self.relations for w in each.matched.ids))

    def _ask(self, relation: TokenisedRelation, matched: Matched, templates: Sequence[Template]) -> list[int]:
        """Rows of the texts in which the asked sources stand."""
        tokenizer = self.subject.prepared.model.tokenizer()
        asked = [relation.pairs[at].source_ids for at in matched.asked]
        rows = []
        for template in templates:
            _, placed = in_template(relation, tokenizer, template)
            for source in asked:
                if source in placed:
                    ids = placed[source].ids
                    rows.append(len(self.texts))
                    self.texts.append(Text(ids, len(ids) - 1))
        return rows

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
                (each.relation.relation.name, each.rows, each.matched.ids, each.matched.is_source.tolist())
                for each in self.relations
            ],
        ]
        return hashlib.sha256(json.dumps(body).encode()).hexdigest()


def _measured(asking: _Asking, folder: Path, tell: Report) -> xr.Dataset:
    """AUROC and p of every head, relation and query."""
    subject = asking.subject
    opened, provenance = subject.prepared.model, subject.prepared.provenance
    total = len(asking.texts) + len(asking.words) * len(NEUTRAL_PREFIXES)
    keys = NeutralStates.compute(
        opened,
        asking.words,
        NEUTRAL_PREFIXES,
        folder / "keys",
        identity=f"{provenance['model']['weights_hash']} {provenance['tokenizer_hash']}",
        progress=lambda done, _: tell(Progress("states", done, total)),
        device=subject.device,
    )
    before = total - len(asking.texts)
    (folder / "queries").mkdir()
    with running(opened, subject.device) as modules:
        rule = opened.attention_rule(modules)
        asked = watch(
            opened,
            modules,
            asking.texts,
            folder / "queries",
            lambda done, _: tell(Progress("states", before + done, total)),
        )
        distances = within_windows(modules.config) if rule.turns else (0,)
        ranks = _ranks(asking, rule, keys, asked, distances, tell)
    return _dataset(asking, ranks, distances)


def within_windows(config: PretrainedConfig) -> tuple[int, ...]:
    """The distances at which every layer sees a key: those inside the sliding window, if layers have one."""
    window = getattr(config.get_text_config(), "sliding_window", None)
    return tuple(each for each in DISTANCES if window is None or each < window)


def _ranks(
    asking: _Asking,
    rule: AttentionRule,
    keys: NeutralStates,
    asked: Watched,
    distances: Sequence[int],
    tell: Report,
) -> dict[tuple[str, str], Floats]:
    """(relation, query) → [n_layers, n_heads, distance, word] ranks, means over the texts that ask."""
    model = asking.subject.prepared.model
    dims, row_of = model.dims, {word: row for row, word in enumerate(asking.words)}
    out = {
        (each.relation.relation.name, query): np.full(
            (dims.n_layers, dims.n_heads, len(distances), len(each.matched.ids)), np.nan
        )
        for each in asking.relations
        for query in QUERIES
        if each.rows[query]
    }
    for done, layer in enumerate(model.layers_with_heads):
        tell(Progress("heads", done, len(model.layers_with_heads)))
        heads = model.queries(layer)
        all_keys = heads.keys(keys.layer(layer).x)
        all_queries = heads.queries(asked.states(layer))
        for each in asking.relations:
            mine = all_keys[:, [row_of[word] for word in each.matched.ids]]
            for query, rows in each.rows.items():
                for at, distance in enumerate(distances if rows else ()):
                    logits = rule.logits(layer, heads, all_queries[:, rows], mine, distance)
                    ranks = ranks_within(logits.double().numpy(), each.matched.stratum)
                    out[each.relation.relation.name, query][layer, :, at] = ranks.mean(axis=1)
    tell(Progress("heads", len(model.layers_with_heads), len(model.layers_with_heads)))
    return out


def _dataset(asking: _Asking, ranks: dict[tuple[str, str], Floats], distances: Sequence[int]) -> xr.Dataset:
    dims = asking.subject.prepared.model.dims
    shape = (len(QUERIES), len(asking.relations), dims.n_layers, dims.n_heads)
    found = {"auroc": np.full((*shape, len(distances)), np.nan), "p": np.full(shape, np.nan)}
    layers = list(asking.subject.prepared.model.layers_with_heads)
    for at, each in enumerate(asking.relations):
        seed = int.from_bytes(bytes.fromhex(each.relation.relation.sha256)[:4], "little")
        labels = each.matched.is_source, each.matched.stratum
        for number, query in enumerate(QUERIES):
            if (mine := ranks.get((each.relation.relation.name, query))) is None:
                continue
            found["auroc"][number, at] = auroc(mine, *labels)
            cells = mine[layers].mean(axis=2)
            p = permutation_p(cells.reshape(-1, cells.shape[-1]), *labels, seed)
            found["p"][number, at, layers] = p.reshape(cells.shape[:-1])
    strings, heads = np.dtypes.StringDType(), ("query", "relation", "layer", "head")
    sources = [int(each.matched.is_source.sum()) for each in asking.relations]
    return xr.Dataset(
        {
            "auroc": ((*heads, "distance"), found["auroc"]),
            "p": (heads, found["p"]),
            "n_sources": ("relation", np.array(sources, dtype=np.int32)),
            "n_words": (
                "relation",
                np.array([len(each.matched.ids) for each in asking.relations], dtype=np.int32)
                - np.array(sources, dtype=np.int32),
            ),
        },
        coords={
            "query": np.array(QUERIES, dtype=strings),
            "relation": np.array([each.relation.relation.name for each in asking.relations], dtype=strings),
            "distance": np.array(distances, dtype=np.int32),
        },
    )


def _provenance(asking: _Asking, templates: Templates) -> dict[str, Any]:
    names = [each.relation.relation.name for each in asking.relations]
    return {
        "definitions": DEFINITIONS,
        "digest": asking.digest,
        "prefixes": list(NEUTRAL_PREFIXES),
        "context": [str(each) for each in templates.context],
        "tasks": {name: str(templates.tasks[name]) for name in names if name in templates.tasks},
        "words": {
            each.relation.relation.name: [
                word
                for word, is_source in zip(each.matched.words, each.matched.is_source, strict=True)
                if not is_source
            ]
            for each in asking.relations
        },
        "left_out": asking.left_out,
        "versions": {"headatlas": __version__, **{name: version(name) for name in ("torch", "transformers")}},
    }
