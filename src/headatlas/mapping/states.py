"""Source states of a map: who makes them, whether they fit, and a layer as the engine sees it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from headatlas.architectures import RightMap
from headatlas.errors import HeadatlasError
from headatlas.lenses import MapsStates, NeutralStates, States, StreamedStates
from headatlas.mapping.inputs import LayerInputs
from headatlas.mapping.machine import Machine
from headatlas.mapping.plan import memory_least, streams
from headatlas.mapping.prepared import PreparedMap
from headatlas.progress import Progress, Report
from headatlas.weights import can_stream


def make_states(
    prepared: PreparedMap, folder: Path, tell: Report, machine: Machine, *, stream: bool | None, last: int
) -> States:
    """Source states of all layers, made or taken up where an earlier run stopped.

    Args:
        prepared: What to map.
        folder: Where states are saved until all layers are done.
        tell: Called with progress.
        machine: Where it computes.
        stream: Layer by layer, whole, or (None) by the memory there is.
        last: Last layer wanted; a pass layer by layer ends there.

    Raises:
        HeadatlasError: The memory that may be taken does not suffice.
    """
    streamed = check_memory(prepared, machine, stream)
    lens, model, sources = prepared.options.lens, prepared.model, prepared.layout.sources
    if lens.weights_only:
        return MapsStates(model, sources)
    make = partial(StreamedStates, last=last) if streamed else NeutralStates.compute
    return make(
        model,
        sources,
        lens.prefixes,
        folder,
        identity=f"{prepared.provenance['model']['weights_hash']} {prepared.provenance['tokenizer_hash']}",
        device=machine.devices[0],
        progress=lambda done, total: tell(Progress("states", done, total)),
    )


def check_memory(prepared: PreparedMap, machine: Machine, stream: bool | None) -> bool:
    """Refuse a map that the memory does not suffice for; whether sources go through layer by layer.

    Raises:
        HeadatlasError: It needs more memory than may be taken.
    """
    lens, model, sources = prepared.options.lens, prepared.model, prepared.layout.sources
    streamed = streams(model, lens, len(sources), stream, machine)
    need, have = memory_least(model, lens, len(sources), streamed=streamed), machine.memory
    if need > have:
        how = "runs the model layer by layer" if streamed else "loads the whole model"
        instead = "leave out `stream=False`, or " if stream is False and can_stream(model.checkpoint) else ""
        whose = "`max_memory` allows" if machine.limited else "this machine has"
        need_GB, have_GB = f"{need / 1e9:.1f} GB", f"{have / 1e9:.1f} GB"
        if lens.weights_only:
            raise HeadatlasError(
                f"{model.checkpoint.spec}: the map needs about {need_GB} of memory, {whose} {have_GB}."
            )
        raise HeadatlasError(
            f"{model.checkpoint.spec}: the neutral lens {how} and needs about {need_GB} of memory, "
            f"{whose} {have_GB}; {instead}use `lens=maps`."
        )
    return streamed


def layer_inputs(prepared: PreparedMap, states: States, layer: int) -> LayerInputs:
    """What the engine needs for one layer; its weights are read here and released by the caller."""
    seen = states.layer(layer)
    heads = prepared.model.heads(layer) if seen.heads is None else seen.heads
    right: RightMap | None = None
    control_right: RightMap | None = None
    if prepared.options.lens.right_map:
        right = prepared.model.right_map(layer)
        control_right = RightMap(None, right.centre, right.final_gain)
    return LayerInputs(
        dims=prepared.model.dims,
        states=seen.x,
        heads=heads,
        right=right,
        use_bias=prepared.options.lens.right_map,
        control_states=seen.control,
        control_right=control_right,
    )
