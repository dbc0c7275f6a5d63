"""Map SmolLM2-135M and print where the time goes, the peak memory and the ratio to brute force.

    python -m benchmarks.map_smollm2 [--lens maps] [--lens neutral] [--repeats 3] [--sample 6]

Two yardsticks, both in float32 on all cores, timed on evenly spaced heads of the same model with the same
states in the same run, and scaled to all heads:

* the plain way, as published code does it: for every head and relation, x·W_V·W_O·U of each of its sources,
  and torch.topk of both signs;
* shared: the same for every distinct source once, whatever number of relations has it.

Both find hits only. The atlas also holds exact ranks, every calibration cell and the no-head control. The
same heads are ranked in float64 as well; any difference from the atlas stops the benchmark.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.comparison import check, plain_seconds, shared_seconds
from benchmarks.measuring import print_work
from headatlas.atlas import Atlas
from headatlas.lenses import MapsStates, NeutralStates, States, lens_named
from headatlas.mapping.prepared import MapOptions, PreparedMap, prepare_map
from headatlas.mapping.run import layer_inputs, map_heads
from headatlas.mapping.vocabulary import Vocabulary
from headatlas.options import Compute
from headatlas.progress import Stats

MODEL = "smollm2-135m"


def main() -> None:
    """Run and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lens", action="append", choices=["maps", "neutral"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sample", type=int, default=6, help="heads timed by brute force")
    parser.add_argument("--device", default="auto", help="where to compute, as for map")
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for lens in arguments.lens or ["maps", "neutral"]:
        benchmark(lens, arguments.repeats, arguments.sample, arguments.device)


def benchmark(lens: str, repeats: int, sample: int, device: str) -> None:
    """Map ``repeats`` times, then compare with brute force on a sample of heads."""
    runs: list[Stats] = []
    totals: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats):
            stats = Stats()
            start = time.perf_counter()
            atlas = map_heads(
                MODEL, out=Path(folder) / str(repeat), lens=lens, compute=Compute(device), stats=stats
            )
            totals.append(time.perf_counter() - start)
            runs.append(stats)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "linux" else 1e9)
        _print_stages(lens, runs, totals, peak)
        _compare(lens, runs, statistics.median(totals), atlas, sample, Path(folder))


def _print_stages(lens: str, runs: list[Stats], totals: list[float], peak: float) -> None:
    total = statistics.median(totals)
    print(f"\n{MODEL}, lens {lens}: medians of {len(runs)} runs, peak memory {peak:.2f} GB")
    stages = {stage: statistics.median(r.seconds.get(stage, 0.0) for r in runs) for stage in runs[0].seconds}
    print_work(replace(runs[0], seconds=stages), total)


def _compare(lens: str, runs: list[Stats], total: float, atlas: Atlas, sample: int, folder: Path) -> None:
    prepared = prepare_map(MODEL, None, "core", MapOptions(lens_named(lens)))
    states = _states(prepared, folder / "states")
    vocabulary = Vocabulary.competing(prepared.model.unembed(), prepared.competing)
    dims, k = prepared.model.dims, prepared.options.thresholds.k
    n_heads, rows = dims.n_layers * dims.n_heads, np.arange(len(prepared.layout.sources))
    plain: list[float] = []
    shared: list[float] = []
    compared = 0
    for number in np.linspace(0, n_heads - 1, sample).astype(int):
        layer, head = divmod(int(number), dims.n_heads)
        inputs = layer_inputs(prepared, states, layer)
        plain.append(plain_seconds(prepared.layout, inputs, head, vocabulary, k))
        shared.append(shared_seconds(prepared.layout, inputs, head, vocabulary, k))
        compared += check(prepared, inputs, vocabulary, atlas, layer, head, rows)
    mapping = statistics.median(run.seconds["ranking"] for run in runs)
    for name, seconds in (("plain way", plain), ("each source once", shared)):
        brute = statistics.median(seconds) * n_heads
        print(
            f"{name}, float32, scaled from {sample} heads: {brute:.0f} s; "
            f"ranking here {mapping:.1f} s: {brute / mapping:.0f} × faster; all of the map {total:.1f} s: "
            f"{brute / total:.0f} ×"
        )
    full = n_heads * len(prepared.layout.sources) * len(vocabulary) * dims.d_model
    print(
        f"multiply-adds {runs[0].products:.3g} of {full:.3g} (each source once): "
        f"1 in {full / runs[0].products:.0f}"
    )
    print(f"{compared:,} ranks and calibration cells of {sample} heads equal float64 arithmetic's")


def _states(prepared: PreparedMap, folder: Path) -> States:
    if prepared.options.lens.weights_only:
        return MapsStates(prepared.model, prepared.layout.sources)
    return NeutralStates.compute(
        prepared.model,
        prepared.layout.sources,
        prepared.options.lens.prefixes,
        folder,
        identity="benchmark",
    )


if __name__ == "__main__":
    main()
