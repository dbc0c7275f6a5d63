"""Words, ranks and scores that all variants of a lens share, so that nothing but the lens differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from headatlas.architectures import LayerHeads, Model, RightMap
from headatlas.atlas.layout import Layout, build_layout
from headatlas.evidence.texts import Ids, Template, Text, place
from headatlas.mapping.engine import map_layer
from headatlas.mapping.inputs import LayerInputs, given_values
from headatlas.mapping.vocabulary import Vocabulary
from headatlas.relations import Relation, TokenisedPair, TokenisedRelation, competing_tokens, tokenise
from headatlas.relations.tokenising import reduced
from headatlas.scoring.scores import source_hits

K, K_COPY = 10, 1
Scores = NDArray[np.float64]
"""[sign, layer, head, relation]; sign 0 is promotion, 1 suppression."""


@dataclass(frozen=True)
class Words:
    """Sources that every variant is asked.

    Attributes:
        relations: With the chosen pairs only.
        layout: The axes of these, without calibration.
        texts: For every context template, the text of each source.
    """

    relations: tuple[TokenisedRelation, ...]
    layout: Layout
    texts: dict[Template, list[Text]]

    @property
    def sources(self) -> tuple[Ids, ...]:
        """Token ids of each source; row i of all states belongs to source i."""
        return self.layout.sources

    @property
    def names(self) -> list[str]:
        """Of the relations."""
        return [relation.relation.name for relation in self.relations]


def choose_words(
    model: Model, relations: Sequence[Relation], templates: Sequence[Template], most: int
) -> Words:
    """Sources of one token that every template can use, at most so many a relation, evenly spaced.

    Relations for which fewer than 30 are left are left out.
    """
    tokenizer = model.tokenizer()
    competing, _ = competing_tokens(tokenizer, model.dims.vocab_size)
    texts: dict[Template, dict[Ids, Text]] = {template: {} for template in templates}
    kept = []
    for asked in relations:
        found = tokenise(asked, tokenizer, competing=competing, max_source_tokens=1)
        words = [found.relation.pairs[pair.index].source for pair in found.pairs]
        ids = [pair.source_ids for pair in found.pairs]
        placed = {template: place(tokenizer, template, words, ids) for template in templates}
        everywhere = [at for at in range(len(ids)) if all(each[at] is not None for each in placed.values())]
        chosen = [everywhere[at] for at in evenly(len(everywhere), most)]
        for template, each in placed.items():
            texts[template] |= {ids[at]: text for at in chosen if (text := each[at]) is not None}
        pairs: list[TokenisedPair] = [found.pairs[at] for at in chosen]
        relation = reduced(found, pairs, found.dropped)
        if relation.left_out is None:
            kept.append(relation)
    layout = uncalibrated(build_layout(kept))
    rows = {template: [each[source] for source in layout.sources] for template, each in texts.items()}
    return Words(tuple(kept), layout, rows)


def evenly(n: int, most: int) -> list[int]:
    """At most ``most`` of n places, evenly spaced."""
    return sorted({int((at + 0.5) * n / most) for at in range(most)}) if n > most else list(range(n))


def uncalibrated(layout: Layout) -> Layout:
    """A layout without calibration cells, which only cost time here."""
    none = np.zeros(0, dtype=np.int64)
    blocks = tuple(replace(block, targets=none, columns=none, offset=0) for block in layout.blocks)
    return replace(layout, blocks=blocks)


class Bench:
    """A model in memory, and a folder of scores that are computed once.

    Attributes:
        model: The model.
        words: What it is asked.
        heads, rights: Weights and right maps of every layer.
    """

    def __init__(self, model: Model, words: Words, folder: Path) -> None:
        self.model = model
        self.words = words
        self.folder = folder
        competing, _ = competing_tokens(self.model.tokenizer(), self.model.dims.vocab_size)
        self._vocabulary = Vocabulary.competing(self.model.unembed(), competing)
        layers = range(self.model.dims.n_layers)
        self.heads: list[LayerHeads] = [self.model.heads(layer) for layer in layers]
        self.rights: list[RightMap] = [self.model.right_map(layer) for layer in layers]

    def of_states(self, name: str, states: Callable[[int], torch.Tensor], *, right: bool) -> Scores:
        """Scores of source states [n, d_model], layer by layer; ``right`` also decides on b_V."""

        def inputs(layer: int) -> LayerInputs:
            rows = states(layer)
            return LayerInputs(
                dims=self.model.dims,
                states=rows,
                heads=self.heads[layer],
                right=self.rights[layer] if right else None,
                use_bias=right,
                control_states=torch.zeros_like(rows),  # there is no control
                control_right=None,
            )

        return self.kept(name, lambda: self._scores(inputs))

    def of_outputs(self, name: str, outputs: Callable[[int], torch.Tensor]) -> Scores:
        """Scores of what heads bring to the output projection, [n_heads, n, d_head] a layer."""
        return self.kept(
            name,
            lambda: self._scores(
                lambda layer: given_values(
                    self.model.dims, outputs(layer), self.heads[layer], self.rights[layer]
                )
            ),
        )

    def kept(self, name: str, make: Callable[[], NDArray[np.float64]]) -> NDArray[np.float64]:
        """An array from the folder, or made and put there."""
        file = self.folder / f"{name.replace(' ', '_')}.npy"
        if not file.exists():
            made = make()
            np.save(file, made, allow_pickle=False)
            print(f"  {name}", flush=True)
        found: NDArray[np.float64] = np.load(file, allow_pickle=False)
        return found

    def _scores(self, inputs: Callable[[int], LayerInputs]) -> Scores:
        layout, dims = self.words.layout, self.model.dims
        out = np.zeros((2, dims.n_layers, dims.n_heads, len(layout.blocks)))
        for layer in range(dims.n_layers):
            ranks = map_layer(layout, inputs(layer), self._vocabulary, ceiling=K)
            for sign, each in enumerate((ranks.promotion, ranks.suppression)):
                for at, block in enumerate(layout.blocks):
                    k = K_COPY if self.words.relations[at].relation.copying else K
                    own = each[:, layout.own_pair[block.own]]
                    hits = source_hits(own, block.own_source, block.n_sources, k)
                    out[sign, layer, :, at] = hits.mean(axis=-1)
        return out
