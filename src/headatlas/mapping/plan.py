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
from headatlas.mapping.prepared import open_for
from headatlas.mapping.screening import SCREENING_TOKENS
from headatlas.options import INFERENCE_SAMPLE, Compute, Sources, require_type
from headatlas.progress import duration
from headatlas.relations import Relation, RelationSpec, drawn, most_sources, resolve_relations
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


@dataclass(frozen=True)
class Plan:
    """Sizes of a model, and estimates of bytes, memory and time of its map.

    Attributes:
        model, family, format: What was found.
        layers, heads, kv_heads, d_model, d_head, vocab: Sizes.
        parameters: Number of weights in use.
        lens: The lens planned for.
        streams: Whether the model goes through layer by layer instead of being loaded.
        relations, sources: How many relations, and distinct sources before tokenising.
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
    layers: int
    heads: int
    kv_heads: int
    d_model: int
    d_head: int
    vocab: int
    parameters: int
    lens: str
    streams: bool
    relations: int
    sources: int
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


def plan(
    model: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    lens: str = "neutral",
    relations: RelationSpec = "core",
    sources: Sources = None,
    compute: Compute = Compute(),
    remote: bool = False,
    adapter: str | Path | None = None,
) -> Plan:
    """Open a model's headers and say what mapping it takes; of the model nothing is computed.

    Args:
        model: As for :func:`~headatlas.mapping.run.map_heads`; so are the others.
        tokenizer: Needed with a loaded model.
        lens: ``"neutral"`` or ``"maps"``.
        relations: All that :func:`~headatlas.relations.resolve_relations` accepts.
        sources: The most sources a relation is asked of, or ``"all"``; None: a sample of 100 where more than
            40 relations are asked for, else all.
        compute: Where it would be computed, with how much memory, streamed or not.
        remote, adapter: Read a Hugging Face id in place; merge a LoRA adapter.

    Raises:
        HeadatlasError: The model, lens or relations cannot be used.
    """
    require_type("compute", compute, Compute)
    chosen = lens_named(lens)
    asked = resolve_relations(relations)
    sample = most_sources(asked, sources)
    opened = open_for(chosen, model, tokenizer, remote=remote, adapter=adapter)
    dims = opened.dims
    n_sources = len({word for relation in asked for word in _words(relation, sample)})
    machine = this_machine(compute)
    streamed = streams(opened, chosen, n_sources, compute.stream, machine)
    speed = rates(machine.devices[0])
    least, most = _seconds(opened, chosen, n_sources, speed)
    few = min(INFERENCE_SAMPLE, sample or INFERENCE_SAMPLE)
    texts = CONTEXT_TEXTS * len({word for relation in asked for word in _words(relation, few)})
    tokens = texts * (TOKENS + TOKENS_AFTER)
    after = inference_seconds(opened, tokens=tokens, rows=2 * texts, device=machine.devices[0])
    return Plan(
        model=opened.checkpoint.name,
        family=opened.family.name,
        format=opened.checkpoint.format,
        layers=dims.n_layers,
        heads=dims.n_heads,
        kv_heads=dims.n_kv_heads,
        d_model=dims.d_model,
        d_head=dims.d_head,
        vocab=dims.vocab_size,
        parameters=opened.n_parameters,
        lens=chosen.name,
        streams=streamed,
        relations=len(asked),
        sources=n_sources,
        bytes_to_read=opened.bytes_needed(forward_pass=not chosen.weights_only),
        memory_bytes=memory_needed(
            opened, chosen, n_sources, machine, streamed=streamed, ranks=_ranks_of_a_head(asked, sample)
        ),
        seconds_least=least,
        seconds_most=most,
        inference_seconds_least=after[0],
        inference_seconds_most=after[1],
        notes=(*_sampled(sample), *_notes(opened, chosen, streamed, speed)),
    )


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


def _sampled(most: int | None) -> tuple[str, ...]:
    """A note on the sample of sources, if there is one."""
    return () if most is None else (f"each relation is asked of at most {most} of its sources, a sample",)


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
    fits = memory_least(model, lens, sources) <= machine.memory
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


def memory_needed(
    model: Model, lens: Lens, sources: int, machine: Machine, *, streamed: bool = False, ranks: int = 0
) -> int:
    """Estimated peak bytes of a map on this machine: of the stage that takes most.

    These are the forward pass, the ranking with the heads that it has in work, and the scores, for which
    every rank is read back: ``ranks`` bytes of a head.
    """
    share = share_of(model, lens, sources, machine, streamed=streamed)
    passed = not (lens.weights_only or streamed)
    # Small layers leave freed memory behind, and so does a forward pass before them: about the model.
    kept = KEPT_BYTES + passed * BYTES * model.n_parameters
    kept *= not worth_trimming(model.dims, sources, share.heads)
    ranking = _held(model, lens, sources, streamed=streamed) + share.bytes + kept
    scores = _libraries(model) + len(model.layers_with_heads) * model.dims.n_heads * ranks
    forward = passed * _forward(model, sources)
    return max(forward, ranking, scores)


def memory_least(model: Model, lens: Lens, sources: int, *, streamed: bool = False) -> int:
    """Estimated peak bytes with one head in work at a time: less does not do."""
    in_work = WORKING_BYTES + head_bytes(model.dims, sources)
    ranking = _held(model, lens, sources, streamed=streamed) + in_work
    return ranking if lens.weights_only or streamed else max(ranking, _forward(model, sources))


def streams_within(model: Model, lens: Lens, sources: int, stream: bool | None, machine: Machine) -> bool:
    """:func:`streams`, but a map that needs more memory than it may take is refused."""
    streamed = streams(model, lens, sources, stream, machine)
    need, have = memory_least(model, lens, sources, streamed=streamed), machine.memory
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


def share_of(model: Model, lens: Lens, sources: int, machine: Machine, *, streamed: bool) -> Shares:
    """Layers and heads that the map of a model has in work at a time."""
    return shares(model.dims, sources, machine, _held(model, lens, sources, streamed=streamed))


def _held(model: Model, lens: Lens, sources: int, *, streamed: bool) -> int:
    """Bytes held while heads are ranked, beside those in work.

    That is the unembedding as stored and in bfloat16, the heads of two layers in float32 and their states.
    Streamed, one block as it is stored, the largest of its projections in float32, a batch of activations and
    the residual stream of every token of every row come to that.
    """
    dims = model.dims
    heads = 2 * BYTES * 2 * dims.n_heads * dims.d_model * dims.d_head
    unembed = (BYTES + BYTES // 2) * dims.vocab_size * dims.d_model
    states = 2 * BYTES * sources * dims.d_model * 2
    held = _libraries(model) + unembed + heads + states
    if not streamed:
        return held
    tokens = len(lens.prefixes) * sources * TOKENS_A_SOURCE
    return held + _block_bytes(model) + ACTIVATIONS + BYTES * tokens * dims.d_model


def _libraries(model: Model) -> int:
    """Bytes of what is imported, and of a loaded tokenizer."""
    return LIBRARY_BYTES + TOKENIZER_BYTES * model.dims.vocab_size


def _forward(model: Model, sources: int) -> int:
    """Bytes of a forward pass of the whole model.

    That is the model in float32, while it is loaded the embedding once more, the states of all layers, and
    the activations of a batch.
    """
    dims = model.dims
    embed = BYTES * dims.vocab_size * dims.d_model
    states = BYTES * sources * dims.d_model * 2 * dims.n_layers
    activations = batch_tokens(model, CPU) * BYTES * model.n_block_parameters // dims.d_model
    return _libraries(model) + BYTES * model.n_parameters + embed + states + activations


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


def inference_seconds(
    model: Model, *, tokens: ArrayLike, rows: int, device: torch.device
) -> tuple[float, float]:
    """The least and the most that ``evidence inference`` takes on a device.

    Tokens that go through the model are a number, or the least and the most; ``rows`` are those of each head
    that are ranked: of every text with context and without.
    """
    speed = rates(device)
    return _rounded(FIXED + _ranking(model, rows, False, speed) + _passing(model, tokens, speed))


def passing_seconds(
    model: Model, tokens: ArrayLike, passes: ArrayLike, device: torch.device
) -> tuple[float, float]:
    """The least and the most in which so many tokens go through a model on a device, in so many small passes.

    In a pass of few tokens the weights are read for little.
    """
    speed = rates(device)
    reading = BYTES * model.n_parameters / speed.memory
    return _rounded(FIXED + _passing(model, tokens, speed) + np.asarray(passes) * reading)


def _seconds(model: Model, lens: Lens, sources: int, speed: Rates) -> tuple[float, float]:
    """The least and the most a map takes at this speed."""
    tokens = 0 if lens.weights_only else sources * len(lens.prefixes)
    ranking = _ranking(model, sources, lens.weights_only, speed)
    return _rounded(FIXED + ranking + _passing(model, tokens * TOKENS, speed))


def _rounded(seconds: Range) -> tuple[float, float]:
    least, most = seconds.round(1).tolist()
    return least, most


def _ranking(model: Model, a_head: int, weights_only: bool, speed: Rates) -> Range:
    """Seconds to rank so many rows of every head."""
    dims = model.dims
    rows = len(model.layers_with_heads) * dims.n_heads * a_head
    logits = 2.0 * rows * dims.vocab_size * dims.d_model
    rate = speed.bfloat16 if speed.bfloat16_pays else speed.float32
    return logits * PRODUCTS[weights_only] / rate + rows * dims.d_model * STEPS / speed.memory


def _passing(model: Model, tokens: ArrayLike, speed: Rates) -> Range:
    """Seconds in which so many tokens go through the model."""
    return _operations(model) * np.asarray(tokens) / (FORWARD * speed.float32)


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
