"""Dynamic scores: what heads write in running texts, with and without context, ranked and scored like a map.

For each template two small atlases are stored inside the atlas, one of what heads bring to the output
projection at the last position (with context), one of the value vectors at the source (without). They have
the atlas's axes, so k can be changed afterwards, and the same calibration. Each is written layer by layer: a
killed run goes on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from headatlas.architectures import Model
from headatlas.atlas import Atlas
from headatlas.atlas.evidence import (
    CONTEXT,
    WITHOUT,
    Dynamic,
    dynamic_path,
    evidence_group,
    read_dynamic,
    store_attention,
)
from headatlas.atlas.layout import Layout, build_layout, layouts_together
from headatlas.atlas.relation_scores import store_scores
from headatlas.atlas.store import AtlasWriter, LayerRanks, create_store, read_store
from headatlas.atlas.stored import check_storable
from headatlas.errors import HeadatlasError
from headatlas.evidence.opening import Subject
from headatlas.evidence.recording import Watched, watch
from headatlas.evidence.texts import Ids, Template, Text, in_template, read_templates
from headatlas.lenses.forward import beginnings, running
from headatlas.mapping.inputs import LayerInputs, given_values, side_by_side
from headatlas.mapping.machine import this_machine
from headatlas.mapping.plan import Memory, seconds
from headatlas.mapping.prepared import differences
from headatlas.mapping.vocabulary import Vocabulary
from headatlas.mapping.workers import rank_here, workers_for
from headatlas.options import INFERENCE_SAMPLE, Sources
from headatlas.progress import Progress, Stats, duration
from headatlas.relations import TokenisedRelation, check_sources, contexts
from headatlas.relations.tokenising import sampled

RECORDED_BYTES = 4 << 30
"""Of the recording of the templates that are measured together, at most (one template aside)."""
SUMMARIES = {
    CONTEXT: "what each head adds at the last position of the text",
    WITHOUT: "the value vector at the source's last token in the text",
}


@dataclass(frozen=True)
class InferenceTexts:
    """The texts of a run."""

    templates: tuple[Template, ...] | None  # of all relations; None: of each relation its own
    most: int | None  # sources of a relation that are asked at most; None: all

    @classmethod
    def of(
        cls, given: str | Path | Sequence[str] | None, *, own_templates: bool = False, sources: Sources = None
    ) -> InferenceTexts:
        """Templates from a file, from texts, or the shipped ones; arguments as for evidence.inference."""
        check_sources(sources)
        most = None if sources == "all" else sources or INFERENCE_SAMPLE
        if own_templates:
            if given is not None:
                raise HeadatlasError("`own_templates` and `templates` exclude each other.")
            return cls(None, most)
        if given is None or isinstance(given, (str, Path)):
            return cls(read_templates(given).context, most)
        if not given:
            raise HeadatlasError("templates: none were given; leave it out for the shipped ones.")
        return cls(tuple(Template.of(text, "templates") for text in given), most)


def run_inference(subject: Subject, asked: InferenceTexts, stats: Stats | None = None) -> list[Dynamic]:
    """Measure dynamic scores and store them in the atlas; those that are there are not measured again.

    ``stats`` is filled with counts of what was done. Returns one entry for each template.
    """
    evidence_group(subject.path)
    plans = [
        _Plan(subject, template, relations, asked.most)
        for template, relations in _templates(subject, asked.templates).items()
    ]
    todo = [plan for plan in plans if not plan.complete()]
    groups = [_Together(subject, group) for group in _groups(todo, subject.prepared.model)]
    if groups:
        check_storable(todo[0].path(CONTEXT))
        subject.tell(Progress("estimate", 0, 0, _estimate(groups, subject)))
    for group in groups:
        group.run(Stats() if stats is None else stats)
    return [read_dynamic(plan.path(CONTEXT), plan.path(WITHOUT), subject.atlas.thresholds) for plan in plans]


def _templates(
    subject: Subject, templates: Sequence[Template] | None
) -> dict[Template, Sequence[TokenisedRelation]]:
    """Each template with the relations that are asked in it; by default those whose own it is."""
    if templates is not None:
        return dict.fromkeys(templates, subject.relations)
    found: dict[Template, list[TokenisedRelation]] = {}
    for relation in subject.relations:
        name = relation.relation.name
        for text in contexts().get(name, ()):
            found.setdefault(Template.of(text, name), []).append(relation)
    if not found:
        raise HeadatlasError("`own_templates`: none of these relations has context templates of its own.")
    return {**found}


class _Plan:
    """One template: its texts, its axes, where its ranks go."""

    def __init__(
        self, subject: Subject, template: Template, relations: Sequence[TokenisedRelation], most: int | None
    ) -> None:
        self._subject, self._template = subject, template
        words = subject.prepared.model.tokenizer()
        found = [in_template(relation, words, template) for relation in relations]
        texts: dict[Ids, Text] = {}
        for _, placed in reversed(found):
            texts |= placed
        # Drawn after the template has had its say: so as many are left as can be.
        asked = [relation if most is None else sampled(relation, most) for relation, _ in found]
        self.layout: Layout = build_layout(asked)
        if not self.layout.included:
            raise HeadatlasError(
                f"template {str(template)!r}: the tokenizer cuts too many sources differently there "
                f"({self.layout.relations[0].left_out}); put a space or a word before the slot."
            )
        self.texts = [texts[source] for source in self.layout.sources]

    def path(self, kind: str) -> Path:
        """The store of the ranks of a kind."""
        hashes = [entry.sha256 for entry in self.layout.relations]
        return dynamic_path(self._subject.path, kind, str(self._template), hashes)

    def complete(self) -> bool:
        """Whether everything is there, from this model and these words."""
        layers = list(self._subject.prepared.model.layers_with_heads)
        return (
            all(self.path(kind).exists() and self.writer(kind).done()[layers].all() for kind in SUMMARIES)
            and "attention" in read_store(self.path(CONTEXT))[0]
        )

    def writer(self, kind: str) -> AtlasWriter:
        """Of the ranks of a kind; their store is made if it is not there. One of something else is
        refused.
        """
        path, provenance = self.path(kind), self._provenance(kind)
        if not path.exists():
            dims = self._subject.prepared.model.dims
            create_store(
                path, self.layout, n_layers=dims.n_layers, n_heads=dims.n_heads, attributes=provenance
            )
        elif different := differences(read_store(path)[1], provenance):
            raise HeadatlasError(
                f"{path}: the evidence there differs in {', '.join(different)}; remove that folder."
            )
        return AtlasWriter(path)

    def store_attention(self, watched: Watched, first: int) -> None:
        """Store the attention on the sources, of texts recorded from row ``first`` on."""
        row_of = {source: first + row for row, source in enumerate(self.layout.sources)}
        dims = self._subject.prepared.model.dims
        out = np.full((dims.n_layers, dims.n_heads, len(self.layout.relations)), np.nan)
        for layer in self._subject.prepared.model.layers_with_heads:
            weights = watched.attention(layer).to(torch.float64).numpy()
            for at in self.layout.included:
                rows = [row_of[source] for source in self.layout.source_ids[at]]
                out[layer, :, at] = weights[:, rows].mean(axis=1)
        store_attention(self.path(CONTEXT), out)

    def score(self) -> None:
        """Store the scores beside the ranks."""
        thresholds = self._subject.prepared.options.thresholds
        for kind in SUMMARIES:
            dynamic = Atlas.open(self.path(kind)).at(k=thresholds.k, k_copy=thresholds.k_copy)
            store_scores(dynamic, single_tokens=False)

    def _provenance(self, kind: str) -> dict[str, Any]:
        return {
            **self._subject.prepared.provenance,
            "lens": {
                "name": kind,
                "prefixes": [],
                "template": str(self._template),
                "summary": SUMMARIES[kind],
                "weights_only": False,
            },
            "relations": {entry.name: entry.sha256 for entry in self.layout.relations},
        }


def _groups(plans: Sequence[_Plan], model: Model) -> Iterator[list[_Plan]]:
    """Templates that are recorded and ranked together: all, or as many as their recording leaves room for."""
    dims = model.dims
    a_text = 4 * len(model.layers_with_heads) * (dims.d_model + dims.n_heads * (dims.d_head + 1))
    group: list[_Plan] = []
    for plan in plans:
        if group and a_text * sum(len(each.texts) for each in [*group, plan]) > RECORDED_BYTES:
            yield group
            group = []
        group.append(plan)
    if group:
        yield group


def _estimate(groups: Sequence[_Together], subject: Subject) -> str:
    """The work that is ahead, and how long it takes here."""
    texts, tokens, rows = (
        sum(each)
        for each in zip(*((len(g.texts), g.n_tokens(), len(g.layout.sources)) for g in groups), strict=True)
    )
    model = subject.prepared.model
    least, most = seconds(model, subject.device, tokens=tokens, rows=rows)
    return (
        f"{texts:,} texts, {tokens:,} tokens through the model, {rows:,} rows a head to rank: "
        f"{duration(least)} to {duration(most)} on this machine if nothing else uses it"
    )


class _Together:
    """Some templates, recorded in one pass and ranked as rows of one layout.

    A head's rows of all templates, with context and without, are in one space: what the engine does once for
    a head it does once for all of them. Values without context that several templates share, for they begin
    alike, are rows once.
    """

    def __init__(self, subject: Subject, plans: Sequence[_Plan]) -> None:
        self._subject, self._plans = subject, plans
        self.texts = [text for plan in plans for text in plan.texts]
        self._first = [0, *np.cumsum([len(plan.texts) for plan in plans])][:-1]
        """The first text of each template."""
        self._without: list[int] = []
        """For each template, which of the layouts is its without context."""
        self._without_rows: list[int] = []
        layouts, alike = [plan.layout for plan in plans], dict[tuple[Ids, ...], int]()
        for plan, first in zip(plans, self._first, strict=True):
            begun = tuple(text.ids[: text.source + 1] for text in plan.texts)
            if begun not in alike:
                alike[begun] = len(layouts)
                layouts.append(plan.layout)
                self._without_rows += range(first, first + len(plan.texts))
            self._without.append(alike[begun])
        self.layout = layouts_together(layouts)
        self._pairs = np.cumsum([0, *(each.n_pairs for each in layouts)])
        self._cells = np.cumsum([0, *(each.n_cells for each in layouts)])

    def n_tokens(self) -> int:
        """Tokens that go through the model."""
        if self._subject.prepared.model.only_attention:
            return len(beginnings([text.ids for text in self.texts]))
        return sum(len(text.ids) for text in self.texts)

    def run(self, stats: Stats) -> None:
        """Record what is not done, rank and store it, then score."""
        subject, prepared = self._subject, self._subject.prepared
        model, layers = prepared.model, prepared.model.layers_with_heads
        writers = [{kind: plan.writer(kind) for kind in SUMMARIES} for plan in self._plans]
        todo = [
            at for at in layers if not all(each.is_done(at) for both in writers for each in both.values())
        ]

        def tell(stage: Literal["states", "heads"], done: int, total: int) -> None:
            subject.tell(Progress(stage, done, total))

        with tempfile.TemporaryDirectory(prefix="headatlas-") as folder:
            with running(model, subject.device) as modules:
                watched = watch(model, modules, self.texts, Path(folder), lambda *done: tell("states", *done))
            del modules
            for plan, first in zip(self._plans, self._first, strict=True):
                plan.store_attention(watched, first)
            machine, n_rows = this_machine(subject.compute), len(self.layout.sources)
            vocabulary = Vocabulary.read(model.unembed, prepared.competing)
            share = Memory(model, prepared.options.lens, n_rows).shares(machine)
            nothing = torch.zeros(n_rows, model.dims.d_model)
            ranked = rank_here(
                self.layout,
                workers_for(vocabulary, machine, share),
                ((layer, self._inputs(watched, layer, nothing)) for layer in todo),
                ceiling=prepared.options.ceiling,
                stats=stats,
            )
            first_done = len(layers) - len(todo)
            with closing(ranked):
                for done, (layer, ranks) in enumerate(ranked, start=first_done):
                    tell("heads", done, len(layers))
                    self._write(writers, layer, ranks)
            tell("heads", len(layers), len(layers))
        for plan in self._plans:
            plan.score()

    def _inputs(self, watched: Watched, layer: int, nothing: torch.Tensor) -> LayerInputs:
        """Rows of a layer, with one control for all layers: the engine ranks it once."""
        both = layer_as_watched(self._subject.prepared.model, watched, layer)
        values = replace(both[WITHOUT], states=both[WITHOUT].states[self._without_rows])
        return replace(side_by_side([both[CONTEXT], values]), control_states=nothing)

    def _write(self, writers: Sequence[dict[str, AtlasWriter]], layer: int, ranks: LayerRanks) -> None:
        """Write the ranks of a layer, each part where it belongs."""
        for at, (both, without) in enumerate(zip(writers, self._without, strict=True)):
            for kind, place in ((CONTEXT, at), (WITHOUT, without)):
                pairs, cells = (slice(*ends[place : place + 2]) for ends in (self._pairs, self._cells))
                mine = LayerRanks(
                    ranks.promotion[:, pairs],
                    ranks.suppression[:, pairs],
                    ranks.control[pairs],
                    ranks.cell_promotion[:, cells],
                    ranks.cell_suppression[:, cells],
                )
                both[kind].write(layer, mine)


def layer_as_watched(model: Model, watched: Watched, layer: int) -> dict[str, LayerInputs]:
    """Inputs for the engine of a layer as it was recorded, with and without context."""
    heads, right = model.heads(layer), model.right_map(layer)
    states = watched.states(layer)
    without = LayerInputs(
        dims=model.dims,
        states=states,
        heads=heads,
        right=right,
        use_bias=True,
        control_states=torch.zeros_like(states),  # there is no control
        control_right=None,
    )
    return {CONTEXT: given_values(model.dims, watched.outputs(layer), heads, right), WITHOUT: without}
