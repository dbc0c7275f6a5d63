"""Dynamic scores: what heads write in running texts, with and without context, ranked and scored like a map.

For each template two small atlases are stored inside the atlas, one of what heads bring to the output
projection at the last position (with context), one of the value vectors at the source (without). They have
the atlas's axes, so k can be changed afterwards, and the same calibration. Each is written layer by layer: a
killed run goes on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from headatlas.architectures import LayerHeads, Model, RightMap
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
from headatlas.atlas.layout import Layout, build_layout
from headatlas.atlas.relation_scores import store_scores
from headatlas.atlas.store import AtlasWriter, create_store, read_store
from headatlas.errors import HeadatlasError
from headatlas.evidence.opening import Subject, open_subject
from headatlas.evidence.recording import Watched, watch
from headatlas.evidence.texts import Ids, Template, Text, in_template, read_templates
from headatlas.lenses.forward import running
from headatlas.mapping.engine import map_layer
from headatlas.mapping.inputs import LayerInputs, given_values
from headatlas.mapping.prepared import differences
from headatlas.mapping.vocabulary import Vocabulary
from headatlas.options import Compute
from headatlas.progress import Progress, Report, silent
from headatlas.relations import TokenisedRelation, contexts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SUMMARIES = {
    CONTEXT: "what each head adds at the last position of the text",
    WITHOUT: "the value vector at the source's last token in the text",
}


def run_inference(
    atlas: Atlas,
    model: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    only: Sequence[str] | None = None,
    templates: str | Path | Sequence[str] | None = None,
    own_templates: bool = False,
    compute: Compute | None = None,
    progress: Report | None = None,
) -> list[Dynamic]:
    """Measure dynamic scores and store them in the atlas; those that are there are not measured again.

    Arguments and errors are those of :func:`headatlas.evidence.inference`; ``progress`` is called with each
    step. Returns one entry for each template.
    """
    if own_templates and templates is not None:
        raise HeadatlasError("`own_templates` and `templates` exclude each other.")
    chosen = [] if own_templates else context_templates(templates)
    tell = progress or silent
    tell(Progress("open", 0, 0, atlas.model_name))
    subject = open_subject(atlas, model, tokenizer, only=only, compute=compute)
    evidence_group(subject.path)
    plans = [_Plan(subject, template) for template in chosen] or _own_plans(subject)
    todo = [plan for plan in plans if not plan.complete()]
    if todo:
        vocabulary = replace(
            Vocabulary.competing(subject.prepared.model.unembed(), subject.prepared.competing),
            device=subject.device,
        )
        with running(subject.prepared.model, subject.device) as modules:
            for at, plan in enumerate(todo):
                with tempfile.TemporaryDirectory(prefix="headatlas-") as folder:
                    seen = _counting("states", sum(len(each.texts) for each in todo[:at]), todo, tell)
                    watched = watch(subject.prepared.model, modules, plan.texts, Path(folder), seen)
                    before = at * len(plan.layers)
                    plan.run(watched, vocabulary, _counting("heads", before, todo, tell))
    return [read_dynamic(plan.path(CONTEXT), plan.path(WITHOUT), atlas.thresholds) for plan in plans]


def context_templates(given: str | Path | Sequence[str] | None) -> list[Template]:
    """Templates from a file, from texts, or the shipped ones.

    Raises:
        HeadatlasError: One has no slot, or there are none.
    """
    if given is None or isinstance(given, (str, Path)):
        return list(read_templates(given).context)
    if not given:
        raise HeadatlasError("templates: none were given; leave it out for the shipped ones.")
    return [Template.of(text, "templates") for text in given]


def _counting(
    stage: Literal["states", "heads"], before: int, todo: list[_Plan], tell: Report
) -> Callable[[int, int], None]:
    """Tells of one template's progress as part of all of them."""
    whole = sum(len(plan.texts) if stage == "states" else len(plan.layers) for plan in todo)
    return lambda done, _: tell(Progress(stage, before + done, whole))


class _Plan:
    """One template: its texts, its axes, where its ranks go."""

    def __init__(self, subject: Subject, template: Template) -> None:
        self._subject = subject
        self._template = template
        words = subject.prepared.model.tokenizer()
        found = [in_template(relation, words, template) for relation in subject.relations]
        texts: dict[Ids, Text] = {}
        for _, placed in reversed(found):
            texts |= placed
        self.layout: Layout = build_layout([relation for relation, _ in found])
        if not self.layout.included:
            raise HeadatlasError(
                f"template {str(template)!r}: the tokenizer cuts too many sources differently there "
                f"({self.layout.relations[0].left_out}); put a space or a word before the slot."
            )
        self.texts = [texts[source] for source in self.layout.sources]

    def path(self, kind: str) -> Path:
        hashes = [entry.sha256 for entry in self.layout.relations]
        return dynamic_path(self._subject.path, kind, str(self._template), hashes)

    def complete(self) -> bool:
        """Whether everything is there, from this model and these words."""
        for kind in (CONTEXT, WITHOUT):
            path = self.path(kind)
            if not path.exists() or not AtlasWriter(path).done()[list(self.layers)].all():
                return False
            self._check(path, kind)
            if "attention" not in read_store(path)[0] and kind == CONTEXT:
                return False
        return True

    @property
    def layers(self) -> tuple[int, ...]:
        """Those that have heads."""
        return self._subject.prepared.model.layers_with_heads

    def run(self, watched: Watched, vocabulary: Vocabulary, tell: Callable[[int, int], None]) -> None:
        """Rank all layers that are not done, then score; ``tell`` gets (layers done, layers in all)."""
        prepared = self._subject.prepared
        writers = {kind: self._writer(kind) for kind in (CONTEXT, WITHOUT)}
        ceiling = prepared.options.ceiling
        store_attention(self.path(CONTEXT), self._attention(watched))
        for at, layer in enumerate(self.layers):
            tell(at, len(self.layers))
            todo = [kind for kind, writer in writers.items() if not writer.done()[layer]]
            inputs = layer_as_watched(prepared.model, watched, layer) if todo else {}
            for kind in todo:
                ranks = map_layer(self.layout, inputs[kind], vocabulary, ceiling=ceiling)
                writers[kind].write(layer, ranks)
        tell(len(self.layers), len(self.layers))
        thresholds = prepared.options.thresholds
        for kind in (CONTEXT, WITHOUT):
            dynamic = Atlas.open(self.path(kind)).at(k=thresholds.k, k_copy=thresholds.k_copy)
            store_scores(dynamic, single_tokens=False)

    def _writer(self, kind: str) -> AtlasWriter:
        path, dims = self.path(kind), self._subject.prepared.model.dims
        if path.exists():
            self._check(path, kind)
        else:
            create_store(
                path,
                self.layout,
                n_layers=dims.n_layers,
                n_heads=dims.n_heads,
                attributes=self._provenance(kind),
            )
        return AtlasWriter(path)

    def _check(self, path: Path, kind: str) -> None:
        _, there = read_store(path)
        if different := differences(there, self._provenance(kind)):
            raise HeadatlasError(
                f"{path}: the evidence there differs in {', '.join(different)}; remove that folder."
            )

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

    def _attention(self, watched: Watched) -> np.ndarray[Any, np.dtype[np.float64]]:
        """[n_layers, n_heads, n_relations] mean over each relation's sources; NaN where it is left out."""
        row_of = {source: row for row, source in enumerate(self.layout.sources)}
        dims = self._subject.prepared.model.dims
        out = np.full((dims.n_layers, dims.n_heads, len(self.layout.relations)), np.nan)
        for layer in self.layers:
            weights = watched.attention(layer).to(torch.float64).numpy()
            for at in self.layout.included:
                rows = [row_of[source] for source in self.layout.source_ids[at]]
                out[layer, :, at] = weights[:, rows].mean(axis=1)
        return out


def _own_plans(subject: Subject) -> list[_Plan]:
    """A plan for each text that shipped relations have of their own, with the relations that have it."""
    found: dict[str, list[TokenisedRelation]] = {}
    for relation in subject.relations:
        for text in contexts().get(relation.relation.name, ()):
            found.setdefault(text, []).append(relation)
    if not found:
        raise HeadatlasError("`own_templates`: none of these relations has context templates of its own.")
    return [
        _Plan(replace(subject, relations=tuple(relations)), Template.of(text, relations[0].relation.name))
        for text, relations in found.items()
    ]


def layer_as_watched(model: Model, watched: Watched, layer: int) -> dict[str, LayerInputs]:
    """Inputs for the engine of a layer as it was recorded, with and without context."""
    heads, right = model.heads(layer), model.right_map(layer)
    return {
        CONTEXT: given_values(model.dims, watched.outputs(layer), heads, right),
        WITHOUT: from_states(model, watched.states(layer), heads, right, use_bias=True),
    }


def from_states(
    model: Model, states: torch.Tensor, heads: LayerHeads, right: RightMap | None, *, use_bias: bool
) -> LayerInputs:
    """Inputs for the engine from states [n, d_model], without a no-head control (its rows are zero)."""
    return LayerInputs(
        dims=model.dims,
        states=states,
        heads=heads,
        right=right,
        use_bias=use_bias,
        control_states=torch.zeros_like(states),
        control_right=None,
    )
