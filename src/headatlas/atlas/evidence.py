"""Evidence stored in an atlas: dynamic scores, preferences of queries, ablations; read without torch.

Inside the atlas's Zarr group is a group ``evidence``. It holds, for each template, two small atlases
(``context-…`` and ``without-context-…``), and a dataset for each set of preferences (``attention-…``), each
ablated task (``ablation-…``) and choice of heads (``heads-…``). docs/evidence.md says what is measured. What
is confirmed or preferred follows from them and from the thresholds that the atlas is read with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray

from headatlas.atlas.atlas import Atlas
from headatlas.atlas.behaviours import Looking
from headatlas.atlas.labels import Labels
from headatlas.atlas.relation_scores import SIGNS, Floats
from headatlas.atlas.salience import Salience
from headatlas.atlas.store import Place, put_array, read_array, read_store
from headatlas.atlas.stored import COPY_IT, GROUP, Stored, evidence_in
from headatlas.errors import HeadatlasError
from headatlas.files import unwritten
from headatlas.options import Thresholds
from headatlas.scoring.scores import false_discovery_rates, source_hits

CONTEXT = "context"
WITHOUT = "without-context"
SINGLE_HEAD_Q = 0.01
"""Largest q at which ablating a head alone confirms it."""

CRITERIA = (
    "confirmed with context: what the head adds at the end of running texts satisfies the same criterion, in "
    "more than half of the templates",
    "confirmed by ablation: without this head alone the model loses more right answers than it gains "
    f"(one-sided exact McNemar test, q ≤ {SINGLE_HEAD_Q:g}), and more than without any single random head "
    "that was tried",
)
"""Meanings of the two words, wherever they are shown."""

COLUMNS = (
    *("context", "context_suppression", "without_context", "without_context_suppression", "attention"),
    *("confirmed_with_context", "loss_alone", "loss_alone_q", "confirmed_by_ablation"),
)
"""Further columns of :meth:`Atlas.table` where there is evidence."""
_BOOLEAN = {name: "boolean" for name in COLUMNS if name.startswith("confirmed")}


def evidence_group(path: Path) -> Path:
    """The evidence folder inside an atlas, made if it is not there."""
    try:
        zarr.open_group(path, mode="r+").require_group(GROUP)
    except OSError as error:
        raise unwritten(path / GROUP, error, COPY_IT) from error
    return path / GROUP


def dynamic_path(path: Path, kind: str, template: str, relation_hashes: Sequence[str]) -> Path:
    """The path, in an atlas, of the dynamic ranks of a template and a set of relations."""
    body = json.dumps([template, sorted(relation_hashes)])
    return path / GROUP / f"{kind}-{hashlib.sha256(body.encode()).hexdigest()[:12]}.zarr"


def store_attention(path: Path, attention: Floats) -> None:
    """Write [layer, head, relation] attention on the source beside dynamic ranks."""
    try:
        dims = ("layer", "head", "relation")
        said = "weight of the source's last token at the last position, mean over sources"
        put_array(zarr.open_group(path, mode="r+"), "attention", attention, dims, said)
    except OSError as error:
        raise unwritten(path, error, COPY_IT) from error


@dataclass(frozen=True)
class Dynamic:
    """Dynamic scores of one template."""

    template: str  # its text, with ``{}``
    context: Atlas  # what heads add at the last position, as an atlas
    without: Atlas  # the value vectors at the source, as an atlas

    @cached_property
    def attention(self) -> dict[str, Floats]:
        """Relation → [n_layers, n_heads] weight of the source's last token at the last position."""
        values = read_array(self.context.dataset, "attention")
        return {
            name: values[..., at]
            for at, name in enumerate(self.context.relations["relation"])
            if name in self.context.relation_scores
        }

    def complete(self) -> bool:
        """Whether all layers that have heads are there, with attention; reads the scores."""
        for atlas in (self.context, self.without):
            if not set(np.flatnonzero(~atlas.layers_done)) <= set(atlas.layers_without_heads):
                return False
        if "attention" not in self.context.dataset:
            return False
        _ = self.attention, self.without.relation_scores  # read here, where damage is caught
        return True

    def of(self, kind: str) -> Atlas:
        """The atlas of a kind."""
        return self.context if kind == CONTEXT else self.without


def read_dynamic(context: Place, without: Place, thresholds: Thresholds) -> Dynamic:
    """Open the two atlases of a template, read with these thresholds."""
    both = [Atlas(*read_store(path), thresholds, path) for path in (context, without)]
    return Dynamic(str(both[0].provenance["lens"].get("template", "")), *both)


@dataclass(frozen=True)
class Evidence:
    """Measurements of an atlas's model besides its map: dynamic scores (a template each) and ablated tasks.

    ``damaged`` says of dynamic scores that could not be read, and are left out, why and what to do.
    """

    atlas: Atlas
    dynamics: Sequence[Dynamic]
    ablations: Sequence[Ablation]
    damaged: Sequence[str] = ()

    @classmethod
    def of(cls, atlas: Atlas) -> Evidence:
        """The evidence stored in an atlas; what is not complete or is damaged is left out."""
        dynamics, damaged = [], []
        withouts = evidence_in(atlas.place, f"{WITHOUT}-")
        for name, context in evidence_in(atlas.place, f"{CONTEXT}-").items():
            without = withouts.get(name.replace(CONTEXT, WITHOUT, 1))
            if without is None:
                continue
            try:
                dynamic = read_dynamic(context, without, atlas.thresholds)
                if dynamic.complete():
                    dynamics.append(dynamic)
            except HeadatlasError as error:
                damaged.append(str(error))
        return cls(atlas, dynamics, Ablation.all_in(atlas.place), damaged)

    def __bool__(self) -> bool:
        return bool(self.dynamics or self.ablations)

    def provenance(self) -> dict[str, list[dict[str, Any]]]:
        """Origin of the evidence: an entry for each template, ablated task, set of texts and author."""
        runs = [
            {
                "template": each.template,
                "relations": list(each.context.relation_scores),
                "versions": each.context.provenance["versions"],
            }
            for each in self.dynamics
        ]
        place = self.atlas.place
        watched = sorted(Looking.all_in(place), key=lambda each: each.source)
        return {
            "inference": runs,
            "attention": [each.provenance for each in Preferences.all_in(place)],
            "ablation": [
                {name: each.provenance[name] for name in Ablation.NEEDED} for each in self.ablations
            ],
            "heads": [each.provenance for each in HeadsAblation.all_in(place)],
            "behaviour": [each.provenance for each in watched],
            "salience": [each.provenance for each in Salience.all_in(place)],
            "labels": [each.provenance for each in Labels.all_in(place)],
        }

    def templates_of(self, relation: str) -> list[Dynamic]:
        """The dynamic scores of a relation, each template once: of several runs that of most relations, of
        several of these that of most sources, and of such the one whose relations come last by name.

        q is over all relations of a run, so which run is read must not depend on its name.
        """
        runs = sorted(
            self.dynamics,
            key=lambda each: (
                len(each.context.relation_scores),
                each.context.included["n_sources"].sum(),
                sorted(each.context.relation_scores),
            ),
        )
        found = {each.template: each for each in runs if relation in each.context.relation_scores}
        return [found[template] for template in sorted(found)]

    def sources_of(self, relation: str) -> int:
        """The sources of a relation that were asked, of the template that used fewest; 0 if none did."""
        frames = [each.context.relations for each in self.templates_of(relation)]
        return min(
            (int(each.loc[each["relation"] == relation, "n_sources"].iloc[0]) for each in frames), default=0
        )

    def scores(self, relation: str, kind: str, sign: str) -> tuple[Floats, Floats] | None:
        """Static and dynamic score of every head on a relation, means over templates.

        Two [n_layers, n_heads], NaN where a layer is not mapped; the static one over the sources that each
        template could use. None if no template could use the relation. ``kind`` is :data:`CONTEXT` or
        :data:`WITHOUT`.
        """
        dynamics = [each.of(kind) for each in self.templates_of(relation)]
        if not dynamics:
            return None
        static = [static_on(self.atlas, dynamic, relation, sign) for dynamic in dynamics]
        return np.mean(static, axis=0), np.mean([_score(d, relation, sign) for d in dynamics], axis=0)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per head × relation with any evidence: layer, head, relation, and :data:`COLUMNS`.

        The two ``confirmed_…`` columns are nullable booleans: with context of heads that the atlas calls, by
        ablation of those ablated alone, missing of others.
        """
        base, parts = self.atlas.without_evidence, []
        unknown: dict[str, Any] = dict.fromkeys(COLUMNS, np.nan)
        for name in self.atlas.relation_scores:
            rows = base[base["relation"] == name]
            if found := self._context(name, rows) | self._alone(name, rows):
                asked = rows[["layer", "head", "relation"]].assign(**{**unknown, **found})
                parts.append(asked.astype(_BOOLEAN))
        if not parts:
            return pd.DataFrame(columns=["layer", "head", "relation", *COLUMNS])
        return pd.concat(parts, ignore_index=True)

    def _context(self, name: str, rows: pd.DataFrame) -> dict[str, NDArray[Any]]:
        dynamics = self.templates_of(name)
        if not dynamics:
            return {}
        at = rows["layer"].to_numpy(), rows["head"].to_numpy()
        found: dict[str, NDArray[Any]] = {}
        for kind, prefix in ((CONTEXT, "context"), (WITHOUT, "without_context")):
            for sign, suffix in (("promotion", ""), ("suppression", "_suppression")):
                scores = [_score(each.of(kind), name, sign) for each in dynamics]
                found[prefix + suffix] = np.mean(scores, axis=0)[at]
        found["attention"] = np.mean([each.attention[name] for each in dynamics], axis=0)[at]
        calls = [each.context.calls.sel(sign=list(SIGNS), relation=name).values for each in dynamics]
        called = rows[["implements", "suppresses"]].to_numpy(dtype=bool).T
        confirmed = (called & (np.mean(calls, axis=0)[:, *at] > 0.5)).any(axis=0).astype(object)
        confirmed[~called.any(axis=0)] = None
        found["confirmed_with_context"] = confirmed
        return found

    def _alone(self, name: str, rows: pd.DataFrame) -> dict[str, NDArray[Any]]:
        tests = self.single_heads
        mine = tests[tests["relation"] == name]
        if mine.empty:
            return {}
        # Of several tasks the one that confirms the head, then the clearest.
        order = mine.sort_values(["confirmed", "q", "loss"], ascending=[False, True, False])
        best = order.drop_duplicates(["layer", "head"])
        merged = rows[["layer", "head"]].merge(best, on=["layer", "head"], how="left")
        return {
            "loss_alone": merged["loss"].to_numpy(),
            "loss_alone_q": merged["q"].to_numpy(),
            "confirmed_by_ablation": merged["confirmed"].to_numpy(),
        }

    @cached_property
    def single_heads(self) -> pd.DataFrame:
        """Heads ablated alone: relation, layer, head, shots, method, base, loss (share of answers),
        loss_random (the largest of a random head), p, q (over all rows), confirmed.
        """
        return single_heads(self.ablations)


def _score(atlas: Atlas, relation: str, sign: str) -> Floats:
    return atlas.relation_scores[relation].of(sign)[0]


def static_on(atlas: Atlas, dynamic: Atlas, relation: str, sign: str) -> Floats:
    """[n_layers, n_heads] scores of an atlas over those sources of a relation that a dynamic atlas uses."""
    mine, theirs = (
        int(np.flatnonzero(each.relations["relation"] == relation)[0]) for each in (atlas, dynamic)
    )
    here = np.flatnonzero(read_array(atlas.dataset, "pair_relation") == mine)
    there = np.flatnonzero(read_array(dynamic.dataset, "pair_relation") == theirs)
    # The same words in the same order: the relation's hash says so.
    usable = [read_array(each.dataset, "pair_source") for each in (atlas, dynamic)]
    used = here[(usable[0][here] >= 0) & (usable[1][there] >= 0)]
    _, source = np.unique(usable[0][used], return_inverse=True)
    ranks = read_array(atlas.dataset, f"{sign}_rank")[..., used]
    k = int(atlas.relations["k"].iloc[mine])
    share = source_hits(ranks, source, int(source.max()) + 1, k).mean(axis=-1)
    share[~atlas.layers_done] = np.nan
    return np.asarray(share, dtype=np.float64)


# Preferences of queries --------------------------------------------------------------------------------

TASK, CONTEXT_TEXT = "task", "context"
"""Queries: the end of the relation's task, or the ends of the context templates."""
PREFERENCE_COLUMNS = (
    *("layer", "head", "relation", "query_at", "auroc", "as_high", "p", "q", "prefers", "attention"),
    *("n_sources", "n_words"),
)
PREFERS_Q = 0.01
PREFERS_AUROC = 0.75
PREFERS = f"prefers: q ≤ {PREFERS_Q:g} and AUROC ≥ {PREFERS_AUROC:g}"
PREFERS_CAVEAT = (
    "logits of the query for words after neutral prefixes, before the softmax: what else stands in a text, "
    "and the first position above all, may take the attention all the same"
)


@dataclass(frozen=True)
class Preferences(Stored):
    """Measurements with one set of templates.

    Attributes:
        data: ``auroc`` [query, relation, layer, head, distance]; ``p`` [query, relation, layer, head], NaN
            where there is no such query or no head; ``n_sources`` and ``n_words`` [relation].
            ``distance`` is [0] where positions are in the states.
        provenance: Templates, relations left out and why, model, versions.
    """

    PREFIX = "attention-"
    VARIABLES = ("auroc", "p", "n_sources", "n_words", "query", "relation", "distance")
    NEEDED = ("left_out",)

    @property
    def left_out(self) -> dict[str, str]:
        """Relation → why its words could not be compared."""
        return dict(self.provenance["left_out"])

    @property
    def distances(self) -> list[int]:
        """Positions between key and query; empty where positions are in the states."""
        return [int(each) for each in self.data["distance"].values if each > 0]

    def frame(self, atlas: Atlas, only: Sequence[str] | None = None) -> pd.DataFrame:
        """One row per called head × relation and query: :data:`PREFERENCE_COLUMNS`, then AUROC by distance.

        ``as_high`` is the share of the model's heads with an AUROC at least as high on the relation,
        ``attention`` what ``evidence inference`` measured, NaN where it has not. q is over all called rows,
        whichever relations are asked for.
        """
        called = _called_rows(atlas)
        parts = [
            self._rows(called[called["relation"] == name], query, at)
            for query in range(self.data.sizes["query"])
            for at, name in enumerate(map(str, self.data["relation"].values))
        ]
        frame = pd.concat(parts, ignore_index=True)
        frame["q"] = false_discovery_rates(frame["p"].to_numpy(dtype=np.float64))
        frame["prefers"] = (frame["q"] <= PREFERS_Q) & (frame["auroc"] >= PREFERS_AUROC)
        if only is not None:
            frame = frame[frame["relation"].isin([atlas.known(name) for name in only])]
        return frame[[*PREFERENCE_COLUMNS, *self._distance_columns]].reset_index(drop=True)

    @property
    def _distance_columns(self) -> list[str]:
        return [f"d{each}" for each in self.distances]

    def _rows(self, called: pd.DataFrame, query: int, relation: int) -> pd.DataFrame:
        """The called heads of a relation for one query; none where there is no such query."""
        at = called["layer"].to_numpy(dtype=int), called["head"].to_numpy(dtype=int)
        by_distance = self.data["auroc"].values[query, relation]
        mean = by_distance.mean(axis=-1)
        every = np.sort(mean[~np.isnan(mean)])
        part = called[["layer", "head", "relation", "attention"]].assign(
            query_at=str(self.data["query"].values[query]),
            auroc=mean[at],
            # Means of the same ranks may differ by rounding.
            as_high=1.0 - np.searchsorted(every, mean[at] - 1e-12) / max(1, len(every)),
            p=self.data["p"].values[query, relation][at],
            n_sources=int(self.data["n_sources"].values[relation]),
            n_words=int(self.data["n_words"].values[relation]),
            **{name: by_distance[..., number][at] for number, name in enumerate(self._distance_columns)},
        )
        return part[part["p"].notna()]

    def caption(self) -> str:
        """The comparison, the criterion and what the numbers are not, in one line."""
        where = f"distances {', '.join(map(str, self.distances))}" if self.distances else "positions as given"
        return (
            "AUROC of a relation's sources over matched words, mean over queries; "
            f"{where}; {PREFERS}; {PREFERS_CAVEAT}"
        )


def _called_rows(atlas: Atlas) -> pd.DataFrame:
    """The rows of an atlas that are called, with measured attention where there is any."""
    table = atlas.without_evidence
    called = table[table["called"]][["layer", "head", "relation"]]
    measured = atlas.evidence.table
    if measured.empty:
        return called.assign(attention=np.nan)
    return called.merge(measured[["layer", "head", "relation", "attention"]], how="left")


# Ablations ---------------------------------------------------------------------------------------------

RELATION, ADDED, RANDOM = "relation", "added", "random"
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Ablation(Stored):
    """One ablated task.

    Attributes:
        data: ``base`` [source] and ``correct`` [order, step, source] bool; ``alone`` [head, source] bool;
            ``n_ablated`` [step]; ``control_base`` [control] and ``control`` [control, step] accuracies;
            ``layer`` and ``head`` [order, rank] of the heads in order. Orders are ``relation``, ``added``,
            ``random 0`` …
        provenance: Relation, template, shots, method, model, versions.
    """

    PREFIX = "ablation-"
    VARIABLES = (
        *("base", "correct", "n_ablated", "alone", "layer", "head", "control", "control_base"),
        *("order", "source", "control_name"),
    )
    NEEDED = (
        *("relation", "template", "shots", "method", "seed", "controls", "dropped", "thresholds", "versions"),
    )

    @property
    def relation(self) -> str:
        return str(self.provenance["relation"])

    @property
    def shots(self) -> int:
        return int(self.provenance["shots"])

    @property
    def method(self) -> str:
        return str(self.provenance["method"])

    @property
    def label(self) -> str:
        """The task's name among those of an atlas, in its folders and files."""
        return f"{self.relation}-shots{self.shots}-{self.method}"

    @cached_property
    def base(self) -> Bools:
        """[source] which sources the whole model answers."""
        return np.asarray(self.data["base"].values).astype(bool)

    @cached_property
    def steps(self) -> NDArray[np.int64]:
        """[step] numbers of heads ablated; the first is 0."""
        return np.concatenate([[0], self.data["n_ablated"].values]).astype(np.int64)

    def correct(self, order: str) -> Bools:
        """[step, source] answers with the heads of an order ablated; the first step is the whole model."""
        found = np.asarray(self.data["correct"].sel(order=order).values).astype(bool)
        return np.concatenate([self.base[None], found])

    @cached_property
    def random(self) -> Bools:
        """[draw, step, source] answers with random heads ablated."""
        names = [str(name) for name in self.data["order"].values if str(name).startswith(RANDOM)]
        return np.stack([self.correct(name) for name in names])

    @cached_property
    def controls(self) -> dict[str, NDArray[np.float64]]:
        """Control relation → [step] accuracy on its task with this relation's heads ablated."""
        base, rest = self.data["control_base"].values, self.data["control"].values
        return {
            str(name): np.concatenate([[base[at]], rest[at]])
            for at, name in enumerate(self.data["control_name"].values)
        }

    def heads(self, order: str = RELATION) -> list[tuple[int, int]]:
        """(layer, head) in the order in which they are ablated."""
        return _heads(self, order)


WHOLE, CHOSEN = "whole", "chosen"
RUNNING_TEXT = "text"


@dataclass(frozen=True)
class HeadsAblation(Stored):
    """Heads of one's own choice, ablated together.

    Attributes:
        data: ``loss`` [condition, item] in nats and ``correct`` [condition, item] bool; ``on`` [item]:
            ``text`` for a running text, where nothing is right or wrong, or the relation whose task it is.
            Conditions are ``whole``, ``chosen``, ``random 0`` …; ``layer`` and ``head`` [order, rank] say
            which heads the last ones are without.
        provenance: Heads, tasks, method, model, versions, tasks left out and why.
    """

    PREFIX = "heads-"
    VARIABLES = ("loss", "correct", "condition", "on", "layer", "head")

    @property
    def heads(self) -> list[tuple[int, int]]:
        """The chosen heads."""
        return _heads(self, CHOSEN)

    @property
    def draws(self) -> list[str]:
        """Names of the random draws."""
        return [str(name) for name in self.data["condition"].values if str(name).startswith(RANDOM)]

    def of(self, variable: str, on: str) -> NDArray[np.float64]:
        """[condition, item] of the items on one thing: whole, chosen, then the draws."""
        mine = np.flatnonzero([str(name) == on for name in self.data["on"].values])
        return np.asarray(self.data[variable].values[:, mine], dtype=np.float64)


def _heads(found: Stored, order: str) -> list[tuple[int, int]]:
    rows = found.data.sel(order=order)
    return [(int(a), int(b)) for a, b in zip(rows["layer"].values, rows["head"].values, strict=True)]


def single_heads(ablations: Sequence[Ablation]) -> pd.DataFrame:
    """Heads ablated alone, with an exact one-sided McNemar test each.

    Right answers lost against right answers gained: under the null either is equally likely, so the number
    lost is binomial (McNemar 1947; exact form).
    """
    rows = []
    for each in ablations:
        base = each.base
        random = base.mean() - each.random[:, 1].mean(axis=1)
        for (layer, head), after in zip(each.heads(), each.data["alone"].values.astype(bool), strict=False):
            lost, gained = int((base & ~after).sum()), int((~base & after).sum())
            p = at_least(lost, lost + gained)
            loss = float(base.mean() - after.mean())
            rows.append(
                (each.relation, each.shots, each.method, layer, head, base.mean(), loss, random.max(), p)
            )
    names = ["relation", "shots", "method", "layer", "head", "base", "loss", "loss_random", "p"]
    frame = pd.DataFrame(rows, columns=names)
    frame["q"] = false_discovery_rates(frame["p"].to_numpy(dtype=np.float64))
    frame["confirmed"] = (frame["q"] <= SINGLE_HEAD_Q) & (frame["loss"] > frame["loss_random"])
    return frame


def at_least(hits: int, n: int) -> float:
    """Probability of so many heads or more in n throws of a fair coin: the one-sided exact McNemar test.

    Whole numbers until the division, so it is exact; 1 for no throw.
    """
    return float(sum(comb(n, i) for i in range(hits, n + 1)) / 2**n)
