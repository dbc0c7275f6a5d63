"""Map a checkpoint of benchmarks.checkpoints; print time, memory, work, planted heads, ratio to brute force.

    python -m benchmarks.checkpoints shapes/8b --shape 8b
    python -m benchmarks.map_shape shapes/8b [--lens maps] [--layers A-B] [--sample 2]
    python -m benchmarks.map_shape shapes/8b --lens neutral --stream --prefixes 1 --sources 2000

Mapping runs in a process of its own, whose memory is measured. Then the plain way (every relation's
E·W_V·W_O·U in float32 and the top of both signs) is timed on a few heads and scaled to all, and the ranks of
these heads are compared with float64; a difference stops the benchmark.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.checkpoints import INDEX, Planted, planted_in
from benchmarks.comparison import check, plain_seconds, states_of
from benchmarks.measuring import Measured, first_prefixes, measure, median_run, print_work
from headatlas.atlas import Atlas
from headatlas.lenses import lens_named
from headatlas.mapping.prepared import MapOptions, PreparedMap, prepare_map
from headatlas.mapping.run import layer_inputs
from headatlas.mapping.vocabulary import Vocabulary
from headatlas.options import layers_asked
from headatlas.relations import Relation, resolve_relations


def main(arguments: Sequence[str] | None = None) -> None:
    """Map, compare and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a folder that benchmarks.checkpoints wrote")
    parser.add_argument("--lens", choices=["maps", "neutral"], default="maps")
    parser.add_argument("--stream", action="store_true", help="neutral: layer by layer")
    parser.add_argument("--layers", help="A-B: these layers only")
    parser.add_argument("--device", default="auto", help="where to compute, as for map")
    parser.add_argument("--max-memory", help="memory to stay below, as for map")
    parser.add_argument("--sources", type=int, help="only so many of the sources")
    parser.add_argument("--prefixes", type=int, help="neutral: only so many of the prefixes")
    parser.add_argument("--repeats", type=int, default=1, help="maps; the median in time is printed")
    parser.add_argument("--sample", type=int, default=2, help="heads timed the plain way and checked")
    parser.add_argument("--check-sources", type=int, default=128, help="sources of each that are checked")
    parser.add_argument("--out", type=Path, help="where the atlas and the saved states go; kept if given")
    given = parser.parse_args(arguments)
    if not (given.checkpoint / INDEX).is_file():
        parser.error(
            f"{given.checkpoint} holds no checkpoint; make one: "
            f"python -m benchmarks.checkpoints {given.checkpoint} --shape 8b"
        )
    if given.out is not None and given.out.exists():
        parser.error(f"{given.out} is there already; a map that is resumed cannot be timed, choose another")
    out = given.out or Path(tempfile.mkdtemp(prefix="map-shape-"))
    try:
        _run(given, out)
    finally:
        if given.out is None:
            shutil.rmtree(out, ignore_errors=True)


def _run(given: argparse.Namespace, out: Path) -> None:
    relations = given.checkpoint / "relations"
    outs = [out / str(repeat) for repeat in range(given.repeats)]
    runs = [
        measure(
            given.checkpoint,
            each,
            relations=str(relations),
            sources=given.sources,
            prefixes=given.prefixes,
            lens=given.lens,
            layers=given.layers,
            stream=True if given.stream else None,
            device=given.device,
            max_memory=given.max_memory,
        )
        for each in outs
    ]
    measured, out = median_run(runs), outs[-1]
    with first_prefixes(given.prefixes):
        asked = MapOptions(lens_named(given.lens))
    prepared = prepare_map(given.checkpoint, None, _first(resolve_relations(relations), given.sources), asked)
    layers = layers_asked(given.layers, prepared.model.dims.n_layers)
    atlas = Atlas.open(out)
    print_header(given.checkpoint, prepared, layers)
    print_measured(measured, prepared)
    planted = [head for head in planted_in(given.checkpoint) if head.layer in layers]
    print_planted(planted, atlas)
    compare(measured, prepared, atlas, out, layers, planted, given.sample, given.check_sources, given.device)


def _first(relations: Sequence[Relation], sources: int | None) -> list[Relation]:
    """The first sources of every relation, about so many in all (None: all)."""
    each = None if sources is None else sources // len(relations)
    return [replace(relation, pairs=relation.pairs[:each]) for relation in relations]


def print_header(checkpoint: Path, prepared: PreparedMap, layers: Sequence[int]) -> None:
    """Print what is mapped, and on what."""
    dims = prepared.model.dims
    print(
        f"{checkpoint}: {dims.n_layers} layers × {dims.n_heads} heads, {dims.n_kv_heads} value groups, "
        f"d {dims.d_model:,}, d_head {dims.d_head}, vocabulary {dims.vocab_size:,}\n"
        f"lens {_lens(prepared)}, layers {layers[0]} to {layers[-1]}, "
        f"{len(prepared.layout.sources):,} sources in {len(prepared.layout.included)} relations\n"
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )


def _lens(prepared: PreparedMap) -> str:
    lens = prepared.options.lens
    return lens.name if lens.weights_only else f"{lens.name} (prefixes: {len(lens.prefixes)})"


def print_measured(measured: Measured, prepared: PreparedMap) -> None:
    """Time a stage, memory, bytes."""
    print_work(measured.stats, measured.seconds)
    print(
        f"\npeak memory {measured.peak / 1e9:.2f} GB, without mapped pages of files "
        f"{measured.anonymous / 1e9:.2f} GB"
        + (f"; of the GPU {measured.device_peak / 1e9:.2f} GB" if measured.device_peak else "")
    )
    stored = sum(info.nbytes for info in prepared.model.checkpoint.source.infos().values())
    needed = prepared.model.bytes_needed(forward_pass=not prepared.options.lens.weights_only)
    print(
        f"all layers need {needed / 1e9:.3g} GB "
        f"of the {stored / 1e9:.3g} GB stored; the disk delivered {measured.delivered / 1e9:.3g} GB, "
        "the system's cache the rest"
    )
    print(f"ranks of pairs below the ceiling {measured.hits:,}")


def print_planted(planted: Sequence[Planted], atlas: Atlas) -> None:
    """Print how many planted heads are called for what they were planted for, and what else is called."""
    wanted = {(head.layer, head.head, head.relation, head.verb) for head in planted}
    found = called(atlas)
    right = len(wanted & found)
    recall = f"{right / len(wanted):.3f}" if wanted else "none planted here"
    precision = f"{right / len(found):.3f}" if found else "none called"
    print(
        f"planted heads called {right} of {len(wanted)} (recall {recall}), "
        f"heads × relations called {len(found)} (precision {precision})"
    )


def called(atlas: Atlas) -> set[tuple[int, int, str, str]]:
    """(layer, head, relation, verb) of all that an atlas calls."""
    table = atlas.sel(called=True)
    return {
        (int(layer), int(head), str(relation), verb)
        for verb in ("implements", "suppresses")
        for layer, head, relation in table[table[verb]][["layer", "head", "relation"]].itertuples(index=False)
    }


def compare(
    measured: Measured,
    prepared: PreparedMap,
    atlas: Atlas,
    out: Path,
    layers: Sequence[int],
    planted: Sequence[Planted],
    sample: int,
    check_sources: int,
    device: str,
) -> None:
    """The plain way on some heads, the planted ones first, and their ranks in float64.

    The plain way is timed on the GPU if that is what was asked for, else on the processor.
    """
    on = device if device.startswith("cuda") else "cpu"
    dims, layout = prepared.model.dims, prepared.layout
    vocabulary = Vocabulary.competing(prepared.model.unembed(), prepared.competing)
    states = states_of(prepared, out)
    spread = np.linspace(layers[0] * dims.n_heads, layers[-1] * dims.n_heads + dims.n_heads - 1, sample)
    chosen = [(head.layer, head.head) for head in planted[: (sample + 1) // 2]]
    chosen += [divmod(int(at), dims.n_heads) for at in spread[: sample - len(chosen)]]
    rows = np.linspace(0, len(layout.sources) - 1, min(check_sources, len(layout.sources)))
    seconds, compared = [], 0
    for layer, head in chosen:
        inputs = layer_inputs(prepared, states, layer)
        seconds.append(plain_seconds(layout, inputs, head, vocabulary, prepared.options.thresholds.k, on))
        compared += check(prepared, inputs, vocabulary, atlas, layer, head, rows.astype(np.int64))
    n_heads = len(layers) * dims.n_heads
    plain = statistics.median(seconds) * n_heads
    full = n_heads * len(layout.sources) * len(vocabulary) * dims.d_model
    print(
        f"the plain way in float32 on {on}, scaled from {len(chosen)} heads: {plain:,.0f} s; "
        f"engine {measured.engine_seconds:.1f} s (control included): "
        f"{plain / measured.engine_seconds:.1f} × faster; multiply-adds "
        f"{measured.stats.products:.3g} of {full:.3g}: 1 in {full / measured.stats.products:.0f}"
    )
    print(
        f"{compared:,} ranks and calibration cells of {len(chosen)} heads and {len(rows)} sources "
        "equal float64 arithmetic's"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
