"""A model opened once for any number of questions: what they share is read once and kept."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from headatlas.architectures import LayerHeads
from headatlas.atlas.layout import Layout, build_layout
from headatlas.devices import strict_products
from headatlas.errors import HeadatlasError
from headatlas.lenses import LayerStates, MapsStates, States
from headatlas.lenses.forward import running
from headatlas.lenses.neutral import collected, prefix_row
from headatlas.mapping.engine import map_layer
from headatlas.mapping.full_vocabulary import Entries, rank_entries
from headatlas.mapping.inputs import LayerInputs
from headatlas.mapping.machine import this_machine
from headatlas.mapping.prepared import PreparedMap, unusable
from headatlas.mapping.run import layer_inputs
from headatlas.mapping.screening import unit
from headatlas.mapping.vocabulary import Vocabulary
from headatlas.options import MAX_CEILING, Compute
from headatlas.progress import Progress, Report, Stats
from headatlas.relations import Relation, tokenise, usable_words
from headatlas.writing.operations import top_targets
from headatlas.writing.run import word_states
from headatlas.writing.tokens import token_texts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FEW_SOURCES = 200
"""Up to so many, every head's outputs go straight through the vocabulary; more are worth a screening set."""
LINES = 1024
"""Rows with a sign that go through the vocabulary together."""

Ranks = NDArray[np.int16]


@dataclass(frozen=True)
class OwnRanks:
    """Ranks of the usable pairs of a layout in one layer, exact below 250.

    Attributes:
        promotion, suppression: [n_heads, P] int16, in the order of ``layout.own_pair``.
        control: [P] int16 of the state itself, without any head.
    """

    promotion: Ranks
    suppression: Ranks
    control: Ranks


class OpenModel:
    """A model with the choices of a map, opened for questions about words of one's own.

    The vocabulary is read when first needed and kept. :meth:`hold` keeps the modules and the
    heads of all layers as well; without it each question loads them, and a large model layer by layer.

    Attributes:
        prepared: The model, its lens and which tokens compete.
    """

    def __init__(self, prepared: PreparedMap, compute: Compute | None = None) -> None:
        self.prepared = prepared
        self._machine = this_machine(compute or Compute())
        self._held: PreTrainedModel | None = None
        self._heads: dict[int, LayerHeads] = {}
        self._texts: dict[int, str] = {}

    def hold(self, tell: Report) -> None:
        """Load the modules and all heads, and keep them.

        Raises:
            HeadatlasError: They cannot be made, or hold numbers that are not finite.
        """
        model = self.prepared.model
        with running(model, self._machine.devices[0]) as modules:
            self._held = modules
        layers = model.layers_with_heads
        for done, layer in enumerate(layers):
            tell(Progress("reading", done, len(layers)))
            self._heads[layer] = model.heads(layer)
        tell(Progress("reading", len(layers), len(layers)))
        _ = self.vocabulary
        model.checkpoint.release()

    @property
    def modules(self) -> PreTrainedModel:
        """The modules that are held."""
        if self._held is None:
            raise ValueError("the modules of this model are not held")
        return self._held

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The competing rows of U."""
        return Vocabulary.read(self.prepared.model.unembed, self.prepared.competing)

    def texts(self, ids: Iterable[int]) -> dict[int, str]:
        """Tokens as they continue a text, unescaped."""
        asked = set(ids)
        if new := asked - self._texts.keys():
            named = np.zeros_like(self.prepared.competing)
            named[list(new)] = True
            found = token_texts(self.prepared.model.tokenizer(), named)
            self._texts |= {token: found[token] for token in new}
        return {token: self._texts[token] for token in asked}

    def asking(self, relation: Relation) -> PreparedMap:
        """The map of a relation of any number of pairs.

        Raises:
            HeadatlasError: The tokenizer can use none of them.
        """
        prepared = self.prepared
        item = tokenise(
            relation,
            prepared.model.tokenizer(),
            competing=prepared.competing,
            max_source_tokens=prepared.options.lens.max_source_tokens,
            target_policy=prepared.options.target_policy,
        )
        if (reason := unusable(item)) is not None:
            raise HeadatlasError(
                f"{prepared.model.checkpoint.name}: its tokenizer can use none of the pairs ({reason})."
            )
        return replace(prepared, layout=build_layout([replace(item, left_out=None)]))

    def source_ids(self, words: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Token ids of words, cut as sources of relations are.

        Raises:
            HeadatlasError: One cannot be a source.
        """
        prepared = self.prepared
        lens = prepared.options.lens
        ids, bad = usable_words(
            words,
            prepared.model.tokenizer(),
            competing=prepared.competing,
            max_source_tokens=lens.max_source_tokens,
        )
        for word, reason in bad.items():
            raise HeadatlasError(f"{word!r} cannot be asked with the lens {lens.name}: {reason}.")
        return ids

    @contextmanager
    def states(
        self, sources: Sequence[tuple[int, ...]], tell: Report, *, last: int | None = None
    ) -> Iterator[States]:
        """The states of sources as the lens sees them, for as long as the block lasts.

        Args:
            sources: Token ids of each.
            tell: Called with each step.
            last: The last layer needed; all by default.
        """
        model, lens = self.prepared.model, self.prepared.options.lens
        if self._held is None:
            with tempfile.TemporaryDirectory(prefix="headatlas-") as folder:
                where = Path(folder) / "states"
                identity = str(self.prepared.provenance["model"]["weights_hash"])
                yield word_states(
                    self.prepared, sources, where, self._machine, tell, identity=identity, last=last
                )
        elif lens.weights_only:
            yield _WithHeads(MapsStates(model, sources), self._heads)
        else:
            rows = [prefix_row(model, prefix) for prefix in lens.prefixes]
            seen = collected(model, self._held, sources, rows)
            yield _WithHeads(seen, self._heads)

    def own_ranks(
        self, prepared: PreparedMap, tell: Report, stats: Stats | None = None
    ) -> dict[int, OwnRanks]:
        """Layer → the ranks of the pairs asked, exact below 250: equal to float64 arithmetic on every logit.

        Args:
            prepared: What :meth:`asking` made of the pairs.
            tell: Called with each step; what it raises ends the question.
            stats: Counts what was done, if given.
        """
        model, layout, stats = prepared.model, prepared.layout, stats or Stats()
        layers = model.layers_with_heads
        found: dict[int, OwnRanks] = {}
        few = len(layout.sources) <= FEW_SOURCES
        lines = 2 * (model.dims.n_heads + 1) * len(layout.sources)
        at_once = max(1, LINES // lines) if few else 1
        with self.states(layout.sources, tell) as states, torch.inference_mode(), strict_products():
            for start in range(0, len(layers), at_once):
                tell(Progress("heads", start, len(layers)))
                part = layers[start : start + at_once]
                inputs = [layer_inputs(prepared, states, layer) for layer in part]
                if few:
                    ranked = _directly(layout, inputs, self.vocabulary, stats)
                else:
                    ranked = [_screened(layout, inputs[0], self.vocabulary, stats)]
                found |= zip(part, ranked, strict=True)
                model.checkpoint.release()
            tell(Progress("heads", len(layers), len(layers)))
        return found


class _WithHeads:
    """States of a lens, with the heads that are held."""

    def __init__(self, states: States, heads: dict[int, LayerHeads]) -> None:
        self._states, self._held = states, heads

    def layer(self, layer: int) -> LayerStates:
        return replace(self._states.layer(layer), heads=self._held[layer])


def head_outputs(inputs: LayerInputs) -> list[torch.Tensor]:
    """Of each head, [n, d_model] float64: what it writes for each source, ready for U."""
    values = {group: inputs.values(group) for group in range(inputs.dims.n_kv_heads)}
    heads = range(inputs.dims.n_heads)
    return [values[inputs.dims.kv_head(head)] @ inputs.output(head) for head in heads]


def strongest(rows: torch.Tensor, vocabulary: Vocabulary, top: int) -> list[tuple[list[int], list[int]]]:
    """Of each row [n, d_model] ready for U, the tokens promoted and suppressed most; none for a zero row."""
    promoted, suppressed = top_targets(rows, vocabulary, top)
    nothing = (rows.norm(dim=1) == 0).tolist()  # no token is the strongest there
    lists = zip(promoted.tolist(), suppressed.tolist(), nothing, strict=True)
    return [([], []) if zero else (plus, minus) for plus, minus, zero in lists]


def _screened(layout: Layout, inputs: LayerInputs, vocabulary: Vocabulary, stats: Stats) -> OwnRanks:
    """By the engine of a map, which pays where a head has many rows."""
    found = map_layer(layout, inputs, vocabulary, ceiling=MAX_CEILING, stats=stats)
    own = layout.own_pair
    return OwnRanks(found.promotion[:, own], found.suppression[:, own], found.control[own])


def _directly(
    layout: Layout, layers: Sequence[LayerInputs], vocabulary: Vocabulary, stats: Stats
) -> list[OwnRanks]:
    """Every row straight through the vocabulary: for few rows a screening set costs more than it saves.

    A row drops out when 250 tokens surely beat its target, most of them in the first chunk of the vocabulary.
    """
    spaces = [rows for inputs in layers for rows in (*head_outputs(inputs), inputs.control)]
    n, columns = len(layout.sources), vocabulary.columns(layout.targets)
    row = (np.arange(len(spaces))[:, None] * n + layout.own_row).ravel()
    column = np.tile(layout.own_column, len(spaces))
    sign = np.repeat(np.array([1, -1], dtype=np.int8), len(row))
    entries = Entries(np.tile(row, 2), np.tile(column, 2), sign)
    outputs = unit(torch.cat(spaces))
    ranked = rank_entries(
        outputs, entries, columns, vocabulary, ceiling=MAX_CEILING, stats=stats, in_head=None
    )
    ranks = ranked.ranks.reshape(2, len(layers), -1, len(layout.own_row))
    return [OwnRanks(plus[:-1], minus[:-1], plus[-1]) for plus, minus in zip(*ranks, strict=True)]
