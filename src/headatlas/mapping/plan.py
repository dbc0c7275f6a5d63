"""Estimates before a map: memory, time, bytes, and how layers and heads share the memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headatlas.atlas.layout import MAX_CALIBRATION_SOURCES
from headatlas.devices import free_memory
from headatlas.errors import HeadatlasError
from headatlas.lenses import Lens, lens_named
from headatlas.lenses.forward import ACTIVATIONS, CPU, batch_tokens
from headatlas.mapping.machine import Machine, Rates, rates, this_machine
from headatlas.mapping.prepared import MapOptions, as_seen_by, open_for
from headatlas.mapping.screening import SCREENING_TOKENS
from headatlas.options import INFERENCE_SAMPLE, Compute, Sources, TargetPolicy, require_type
from headatlas.progress import duration, size
from headatlas.relations import (
    Relation,
    RelationSpec,
    competing_tokens,
    drawn,
    most_sources,
    resolve_relations,
)
from headatlas.showing import safe_text
from headatlas.weights import can_stream, missing_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from headatlas.architectures import Dims, Model

Range = NDArray[np.float64]
"""[2] the least and the most, of what was measured (docs/engine.md)."""
FIXED = np.array([2.0, 10.0])
"""Seconds of opening, calibration and writing."""
PRODUCTS = {True: np.array([1 / 54, 1 / 18]), False: np.array([1 / 37, 1 / 13])}
"""Multiply-adds of the ranking as a share of those of all logits, by whether the lens reads weights only:
most in the trained model, least in random ones of larger shapes."""
STEPS = np.array([90.0, 520.0])
"""Bytes that the other steps of the ranking move for each head, source and dimension of the model."""
FORWARD = np.array([1.0, 0.8])
"""Of the rate of matrix products, what the forward pass reaches."""
BYTES = 4
TOKENS_A_SOURCE = 2
"""At most, for memory."""
TOKENS = np.array([1.1, 1.8])
"""A source of the shipped relations with the tokenizers tried."""
WATCHED_TOKENS = 7_728
"""Positions of the texts on which heads are watched: 161 sequences of 48."""
WATCHING = np.array([0.8, 1.6])
"""Of the time of a forward pass of these; attention is asked for and summed up beside it."""
CONTEXT_TEXTS = 4
"""Texts of ``evidence inference`` for each source."""
TOKENS_AFTER = 2.0
"""Of a context template after its source, mean of the shipped ones. What stands before is shared."""
LIBRARY_BYTES = 450 << 20
TOKENIZER_BYTES = 1600
"""Of a loaded tokenizer, a token: 1,900 on Gemma 3 (262,144 tokens), 1,300 on SmolLM2; for estimates only."""
WORKING_BYTES = 256 << 20
"""Bounds, candidates and sorted screens of a layer in work, at most; for estimates."""
WORTH_TRIMMING = 128 << 20
"""Bytes of a worker's heads from which freed memory goes back to the system after every layer. Small layers
would spend more time on getting it anew than it is worth."""
KEPT_BYTES = 900 << 20
"""Freed memory that the C library has kept after small layers: 30 MB a layer of SmolLM2, less towards the
end of thirty."""
MOST_WORKERS = 4
"""Layers at a time on the processor's cores, or on each GPU. The rest of the cores help within a layer."""
FEW_HEADS = 8
"""Fewer heads of a layer at a time make products so small that a second worker does not pay."""


_TITLES = {
    "bytes_to_read": "to read",
    "memory_bytes": "memory",
    "seconds_least": "time",
    "inference_seconds_least": "evidence inference",
    "streams": "layer by layer",
}


@dataclass(frozen=True)
class Plan:
    """Sizes of a model, and estimates of bytes, memory and time of its map.

    Attributes:
        model, family, format: What was found.
        n_layers, n_heads, n_kv_heads, d_model, d_head, vocab: Sizes.
        parameters: Number of weights in use.
        lens: The lens planned for.
        streams: Whether the model goes through layer by layer instead of being loaded.
        n_relations, n_sources: How many relations, and distinct sources before tokenising.
        bytes_to_read: Stored bytes that the map reads.
        memory_bytes: Estimated peak memory.
        seconds_least, seconds_most: Between these lies the time of the map on this machine when nothing else
            uses it, by its measured speed; fetching the model is not in it.
        inference_seconds_least, inference_seconds_most: The same of ``evidence inference``, which can follow.
        notes: What to know before starting.
    """

    model: str
    family: str
    format: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    vocab: int
    parameters: int
    lens: str
    streams: bool
    n_relations: int
    n_sources: int
    bytes_to_read: int
    memory_bytes: int
    seconds_least: float
    seconds_most: float
    inference_seconds_least: float
    inference_seconds_most: float
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """The fields for people, with their titles: sizes in units, time in words, each note on a row."""
        found, rows = self.to_dict(), []
        for name, value in found.items():
            if name == "notes" or name.endswith("seconds_most"):
                continue
            if isinstance(value, bool):
                text = "yes" if value else "no"
            elif "bytes" in name:
                text = size(value)
            elif name.endswith("seconds_least"):
                text = f"{duration(value)} to {duration(found[name.replace('least', 'most')])}"
            else:
                text = f"{value:,}" if isinstance(value, int) else str(value)
            rows.append((_TITLES.get(name, name.removeprefix("n_").replace("_", " ")), text))
        return rows + [("note", note) for note in self.notes]

    def __repr__(self) -> str:
        """As ``headatlas plan`` prints it."""
        return safe_text("\n".join(f"{title:<18}  {text}" for title, text in self.rows()), keep="\n")


def plan(
    model: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    lens: str = "neutral",
    relations: RelationSpec = "core",
    sources: Sources = None,
    target_policy: TargetPolicy = "single",
    compute: Compute = Compute(),
    remote: bool = False,
    adapter: str | Path | None = None,
) -> Plan:
    """Open a model's headers and tokenizer and say what mapping it takes; of the model nothing is computed.

    Relations that the map will leave out are in the notes, and counted: they are few, and so are their words.

    Args:
        model: As for :func:`~headatlas.mapping.run.map_heads`; so are the others.
        tokenizer: Needed with a loaded model.
        lens: ``"neutral"`` or ``"maps"``.
        relations: All that :func:`~headatlas.relations.resolve_relations` accepts.
        sources: The most sources a relation is asked of, or ``"all"``; None: a sample of 100 where more than
            40 relations are asked for, else all.
        target_policy: Whether a target of several tokens may count by its first.
        compute: Where it would be computed, with how much memory, streamed or not.
        remote, adapter: Read a Hugging Face id in place; merge a LoRA adapter.

    Raises:
        HeadatlasError: The model, lens or relations cannot be used, by this tokenizer either.
    """
    require_type("compute", compute, Compute)
    chosen = lens_named(lens)
    options = MapOptions(chosen, target_policy=target_policy, sources=sources)
    asked = resolve_relations(relations)
    sample = most_sources(asked, sources)
    opened = open_for(chosen, model, tokenizer, remote=remote, adapter=adapter)
    left_out, dims = _left_out(opened, asked, options), opened.dims
    n_sources = len({word for relation in asked for word in _words(relation, sample)})
    machine = this_machine(compute)
    streamed = streams(opened, chosen, n_sources, compute.stream, machine)
    device = machine.devices[0]
    passes = 0 if chosen.weights_only else n_sources * len(chosen.prefixes)
    mapping = seconds(
        opened, device, tokens=passes * TOKENS, rows=n_sources, weights_only=chosen.weights_only
    )
    few = min(INFERENCE_SAMPLE, sample or INFERENCE_SAMPLE)
    texts = CONTEXT_TEXTS * len({word for relation in asked for word in _words(relation, few)})
    inference = seconds(opened, device, tokens=texts * (TOKENS + TOKENS_AFTER), rows=2 * texts)
    memory = Memory(opened, chosen, n_sources, streamed)
    only = () if sample is None else (f"each relation is asked of at most {sample} of its sources, a sample",)
    return Plan(
        model=opened.checkpoint.name,
        family=opened.family.name,
        format=opened.checkpoint.format,
        n_layers=dims.n_layers,
        n_heads=dims.n_heads,
        n_kv_heads=dims.n_kv_heads,
        d_model=dims.d_model,
        d_head=dims.d_head,
        vocab=dims.vocab_size,
        parameters=opened.n_parameters,
        lens=chosen.name,
        streams=streamed,
        n_relations=len(asked),
        n_sources=n_sources,
        bytes_to_read=opened.bytes_needed(forward_pass=not chosen.weights_only),
        memory_bytes=memory.needed(machine, _ranks_of_a_head(asked, sample)),
        seconds_least=mapping[0],
        seconds_most=mapping[1],
        inference_seconds_least=inference[0],
        inference_seconds_most=inference[1],
        notes=(*only, *left_out, *_notes(opened, chosen, streamed, rates(device))),
    )


def _left_out(model: Model, asked: Sequence[Relation], options: MapOptions) -> list[str]:
    """Notes on relations that the map will leave out; refuses, as the map will, where none is left."""
    if missing_tokenizer(model.checkpoint):
        return []  # the map will refuse that: a note of its own
    words = model.tokenizer()
    competing, _ = competing_tokens(words, model.dims.vocab_size)
    tokenised, replaced = as_seen_by(model, words, competing, asked, options)
    return [
        f"left out: {item.relation.name} ({item.left_out})"
        + (f"; {replaced[item.relation.name]} stands in for it" if item.relation.name in replaced else "")
        for item in tokenised
        if item.left_out
    ]


def _words(relation: Relation, most: int | None) -> list[str]:
    """The sources that will be asked, as far as is known without a tokenizer."""
    words = [pair.source for pair in relation.pairs]
    return words if most is None else drawn(words, most)


def _ranks_of_a_head(asked: Sequence[Relation], most: int | None) -> int:
    """Bytes of the ranks that an atlas holds of a head, of both signs, if every word can be used."""
    n_pairs = n_cells = 0
    for relation in asked:
        words = set(_words(relation, most))
        targets = {word for pair in relation.pairs if pair.source in words for word in pair.targets}
        n_pairs += sum(len(pair.targets) for pair in relation.pairs)
        n_cells += min(len(words), MAX_CALIBRATION_SOURCES) * len(targets)
    return 2 * (2 * n_pairs + n_cells)


def streams(model: Model, lens: Lens, sources: int, stream: bool | None, machine: Machine) -> bool:
    """Whether the forward pass of a lens goes layer by layer on a machine, for so many sources.

    Refuses to where it was asked for (``stream``) and cannot be done. If nothing was said, it does where the
    whole model does not fit into the memory that may be taken, or into half of what is free on the device.
    """
    why_not = _why_whole(model, lens)
    if why_not is not None and stream:
        raise HeadatlasError(why_not)
    if why_not is not None or stream is not None:
        return bool(stream)
    fits = Memory(model, lens, sources).least <= machine.memory
    first = machine.devices[0]
    if first.type != "cpu":
        fits = fits and BYTES * model.n_parameters <= free_memory(first) // 2
    return not fits


def _why_whole(model: Model, lens: Lens) -> str | None:
    """Why the forward pass of a lens cannot go layer by layer, told to who asked for it; None if it can."""
    if lens.weights_only:
        return f"`stream`: the lens {lens.name!r} has no forward pass; leave it out."
    if not model.only_attention:
        return (
            f"{model.checkpoint.spec}: a model with mixers beside attention does not go through layer by "
            "layer, because they do not keep a prefix as attention does; leave out `stream=True`."
        )
    if not can_stream(model.checkpoint):
        return (
            f"{model.checkpoint.spec}: only safetensors go through layer by layer, this is "
            f"{model.checkpoint.format}; leave out `stream=True`."
        )
    return None


def streams_within(model: Model, lens: Lens, sources: int, stream: bool | None, machine: Machine) -> bool:
    """:func:`streams`, but a map that needs more memory than it may take is refused."""
    streamed = streams(model, lens, sources, stream, machine)
    need, have = Memory(model, lens, sources, streamed).least, machine.memory
    if need <= have:
        return streamed
    whose = "`max_memory` allows" if machine.limited else "this machine has"
    amounts = f"needs about {need / 1e9:.1f} GB of memory, {whose} {have / 1e9:.1f} GB"
    if lens.weights_only:
        raise HeadatlasError(f"{model.checkpoint.spec}: the map {amounts}.")
    how = "runs the model layer by layer" if streamed else "loads the whole model"
    instead = "leave out `stream=False`, or " if stream is False and _why_whole(model, lens) is None else ""
    raise HeadatlasError(
        f"{model.checkpoint.spec}: the neutral lens {how} and {amounts}; {instead}use `lens=maps`."
    )


@dataclass(frozen=True)
class Shares:
    """Layers (workers) and heads of a layer in work at a time, and the bytes of memory they take."""

    workers: int
    heads: int
    bytes: int


def head_bytes(dims: Dims, sources: int) -> int:
    """Memory of one head in work: outputs, basis, targets and screening set, in float64 and float32."""
    per_row = 12 * (sources + dims.d_model) + 4 * (sources + SCREENING_TOKENS)
    return dims.d_head * per_row


def worth_trimming(dims: Dims, sources: int, heads: int) -> bool:
    """Whether a worker with so many heads at a time gives freed memory back after every layer."""
    return heads * head_bytes(dims, sources) >= WORTH_TRIMMING


def shares(dims: Dims, sources: int, machine: Machine, held: int) -> Shares:
    """Share memory out among layers and heads, besides the bytes that the map has ``held`` already."""
    each, room = head_bytes(dims, sources), machine.memory - held
    few = min(FEW_HEADS, dims.n_heads)
    # Half of a layer's time on a GPU is the processor's, so each GPU has several, as far as cores go.
    gpus = sum(device.type != "cpu" for device in machine.devices)
    most = max(gpus, min(machine.cores, MOST_WORKERS * max(1, gpus)))
    workers = max(1, min(most, room // (WORKING_BYTES + few * each)))
    heads = max(1, min(dims.n_heads, (room // workers - WORKING_BYTES) // each))
    return Shares(workers, heads, workers * (WORKING_BYTES + heads * each))


@dataclass(frozen=True)
class Memory:
    """Estimated bytes of a map of a model with a lens, for so many sources."""

    model: Model
    lens: Lens
    sources: int
    streamed: bool = False  # whether sources go through layer by layer

    @property
    def held(self) -> int:
        """Bytes held while heads are ranked, beside those in work.

        That is the unembedding as stored and in bfloat16, the heads of two layers in float32 and their
        states. Streamed, one block as it is stored, the largest of its projections in float32, a batch of
        activations and the residual stream of every token of every row come to that.
        """
        dims = self.model.dims
        heads = 2 * BYTES * 2 * dims.n_heads * dims.d_model * dims.d_head
        unembed = (BYTES + BYTES // 2) * dims.vocab_size * dims.d_model
        states = 2 * BYTES * self.sources * dims.d_model * 2
        held = self.libraries + unembed + heads + states
        if not self.streamed:
            return held
        tokens = len(self.lens.prefixes) * self.sources * TOKENS_A_SOURCE
        return held + _block_bytes(self.model) + ACTIVATIONS + BYTES * tokens * dims.d_model

    @property
    def loads_whole(self) -> bool:
        """Whether the map runs the whole model."""
        return not (self.lens.weights_only or self.streamed)

    @property
    def libraries(self) -> int:
        """Bytes of what is imported, and of a loaded tokenizer."""
        return LIBRARY_BYTES + TOKENIZER_BYTES * self.model.dims.vocab_size

    @property
    def forward(self) -> int:
        """Bytes of a forward pass of the whole model; 0 where the map has none.

        That is the model in float32, while it is loaded the embedding once more, the states of all layers,
        and the activations of a batch.
        """
        if not self.loads_whole:
            return 0
        model, dims = self.model, self.model.dims
        embed = BYTES * dims.vocab_size * dims.d_model
        states = BYTES * self.sources * dims.d_model * 2 * dims.n_layers
        activations = batch_tokens(model, CPU) * BYTES * model.n_block_parameters // dims.d_model
        return self.libraries + BYTES * model.n_parameters + embed + states + activations

    @property
    def least(self) -> int:
        """Peak bytes with one head in work at a time: less does not do."""
        return max(self.forward, self.held + WORKING_BYTES + head_bytes(self.model.dims, self.sources))

    def shares(self, machine: Machine) -> Shares:
        """Layers and heads that the map has in work at a time on this machine."""
        return shares(self.model.dims, self.sources, machine, self.held)

    def needed(self, machine: Machine, ranks: int = 0) -> int:
        """Peak bytes on this machine: of the stage that takes most.

        These are the forward pass, the ranking with the heads that it has in work, and the scores, for which
        every rank is read back: ``ranks`` bytes of a head.
        """
        model, share, kept = self.model, self.shares(machine), 0
        if not worth_trimming(model.dims, self.sources, share.heads):
            # Small layers leave freed memory behind, and so does a forward pass before them: about the model.
            kept = KEPT_BYTES + self.loads_whole * BYTES * model.n_parameters
        scores = self.libraries + len(model.layers_with_heads) * model.dims.n_heads * ranks
        return max(self.forward, self.held + share.bytes + kept, scores)


def _block_bytes(model: Model) -> int:
    """Bytes of a decoder block as it is stored, and of its largest module in float32.

    The first block; where there are experts, the one with most. They are in one module, and put together from
    their pieces before.
    """
    layer, experts = model.largest_mixture()
    start = f"{model.stored_name(model.block_module(layer))}."
    infos = [info for name, info in model.checkpoint.source.infos().items() if name.startswith(start)]
    stored = sum(info.nbytes for info in infos) * (2 if experts else 1)
    if (adapter := model.checkpoint.adapter) is not None:  # merged weights are copies in float32
        stored += BYTES * sum(prod(info.shape) for info in infos if info.name in adapter.tensors)
    return stored + BYTES * max(experts, *(prod(info.shape) for info in infos))


def seconds(
    model: Model,
    device: torch.device,
    *,
    tokens: ArrayLike,
    rows: int = 0,
    passes: ArrayLike = 0,
    weights_only: bool = False,
) -> tuple[float, float]:
    """The least and the most seconds in which tokens go through a model and rows of every head are ranked.

    Tokens and passes are a number, or the least and the most; ``rows`` are those of each head, of a lens that
    reads ``weights_only`` or not. In a pass of few tokens the weights are read for little: of such, as many
    are counted as ``passes`` says.
    """
    speed, dims = rates(device), model.dims
    rows *= len(model.layers_with_heads) * dims.n_heads
    logits = 2.0 * rows * dims.vocab_size * dims.d_model
    rate = speed.bfloat16 if speed.bfloat16_pays else speed.float32
    ranking = logits * PRODUCTS[weights_only] / rate + rows * dims.d_model * STEPS / speed.memory
    passing = _operations(model) * np.asarray(tokens) / (FORWARD * speed.float32)
    reading = BYTES * model.n_parameters / speed.memory
    least, most = (FIXED + ranking + passing + np.asarray(passes) * reading).round(1).tolist()
    return least, most


def _operations(model: Model) -> float:
    """Operations of a token's way through the model, without the unembedding."""
    return 2.0 * (model.n_parameters - model.dims.vocab_size * model.dims.d_model)


def _notes(model: Model, lens: Lens, streamed: bool, speed: Rates) -> tuple[str, ...]:
    notes = list(model.checkpoint.notes)
    if missing := missing_tokenizer(model.checkpoint):
        notes.append(f"`headatlas map` will refuse it: {missing.removesuffix('.')}")
    if not model.every_layer_has_heads:
        there = ", ".join(map(str, model.layers_with_heads))
        notes.append(f"attention heads are in layers {there} only; the others have none and are not mapped")
    if streamed:
        notes.append(
            "the neutral lens runs the whole model once per (prefix, source) row, layer by layer: each layer "
            "is read once, and one is in memory at a time"
        )
    elif not lens.weights_only:
        least, most = WATCHING * _operations(model) * WATCHED_TOKENS / speed.float32
        notes += [
            "the neutral lens runs the whole model once per (prefix, source) row; it must fit in memory",
            "the command `headatlas map` also measures where heads look, which is not in the time: about "
            f"{duration(least)} to {duration(most)} more (`--no-behaviour` leaves it out)",
        ]
    single, half, memory = (each / 1e9 for each in (speed.float32, speed.bfloat16, speed.memory))
    return (
        *notes,
        f"time is that of this machine with nothing else to do, at {single:.3g} (float32) and {half:.3g} "
        f"(bfloat16) billion operations and {memory:.3g} GB of memory traffic a second, as measured",
        "it is a range because how many logits must be computed, and how many tokens words have, shows only "
        "in the map; memory is an estimate",
    )
