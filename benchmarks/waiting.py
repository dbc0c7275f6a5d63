"""How long a person waits: every command of the usual session, mapping against the plain way and the floor.

    python -m benchmarks.waiting [--lens maps] [--lens neutral] [--repeats 3] [--sample 4] [--quick]

Maps SmolLM2-135M with the command, each time in a fresh process and folder, then asks the finished atlas.
Each is run ``--repeats`` times and the median of each number stands in the table; the model must be in the
cache. What is printed are the tables of docs/engine.md, under *Waiting* and *Floor*; both lenses take some
ten minutes on two cores, ``--quick`` (the lens maps, once, against two heads) two. Against what the mapping
is held:

* the plain way, as published code does it: for every head and relation, x·W_V·W_O·U of each of its sources in
  float32 on all cores, and torch.topk of both signs; timed on evenly spaced heads and scaled to all;
* the floor of benchmarks.floor, with the rows that this map hit, at this machine's measured speed.

The heads that are timed are ranked in float64 as well; any difference from the atlas stops the benchmark.
"""

# torch is imported once the commands have run: a large process that starts others would count as theirs.
from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.floor import COLUMNS, Work, markdown, powers, said, seconds, table
from headatlas.options import CEILING
from headatlas.progress import Progress, Report, Stats, progress_display

if TYPE_CHECKING:
    from headatlas.mapping.machine import Rates
    from headatlas.mapping.prepared import PreparedMap

MODEL = "smollm2-135m"
MISTYPED = "hedas"
ASKED = (
    ("--help",),
    (MISTYPED, "DIR"),
    ("heads", "DIR"),
    ("heads", "DIR", "--label", "month"),
    ("head", "DIR", "23.4"),
    ("head", "DIR", "23.4", "--words"),
    ("info", "DIR"),
    ("describe", "DIR"),
    ("structure", "DIR"),
    ("plot", "DIR", "-o", "DIR/again.png"),
)
"""Commands without a model, on the atlas of the last map."""


@dataclass(frozen=True)
class Run:
    """A command in a process of its own.

    Attributes:
        seconds: From the start of the process to its end.
        processor: Seconds of processor time, all threads together.
        peak: Bytes of memory at most.
        told: What the child said of itself: ``moments`` and ``stats``.
    """

    seconds: float
    processor: float
    peak: int
    told: dict[str, Any]


def main() -> None:
    """Run everything and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lens", action="append", choices=["maps", "neutral"], help="both by default")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sample", type=int, default=4, help="heads timed the plain way")
    parser.add_argument("--ceiling", type=int, default=CEILING, help="of the maps")
    parser.add_argument("--quick", action="store_true", help="--lens maps --repeats 1 --sample 2")
    given = parser.parse_args()
    lenses, repeats, sample = given.lens or ["maps", "neutral"], given.repeats, given.sample
    if given.quick:
        lenses, repeats, sample = ["maps"], 1, 2
    print(f"{processor_name()}, {os.cpu_count()} cores, {threads()}; Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        maps = {lens: _maps(lens, given.ceiling, repeats, Path(folder)) for lens in lenses}
        last = Path(folder) / f"{lenses[-1]}-0"
        print(f"\n## Waiting\n\nMedians of {repeats}; DIR holds the map of the lens {lenses[-1]}.\n")
        rows = [row for lens, runs in maps.items() for row in _map_rows(lens, runs)]
        for args in (*ASKED, *([("behaviour", "DIR")] if lenses[-1] == "neutral" else ())):
            command = [str(arg).replace("DIR", str(last)) for arg in args]
            name = f"`headatlas {' '.join(args).replace('DIR/', '')}`" + " (mistyped)" * (MISTYPED in args)
            rows.append(_row(name, [run(command) for _ in range(repeats)]))
        print(markdown(("", "seconds", "processor seconds", "peak memory"), rows), flush=True)
        print("\n## Floor")
        for lens, runs in maps.items():
            _compare(lens, given.ceiling, runs, Path(folder) / f"{lens}-0", sample)


def threads() -> str:
    """How many threads torch takes in the processes that are started."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    number = int(os.environ.get("OMP_NUM_THREADS", usable or 1))
    return "1 thread" if number == 1 else f"{number} threads"


def processor_name() -> str:
    """The name that the system gives the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


# Commands in processes of their own -----------------------------------------------------------------


def run(args: Sequence[str]) -> Run:
    """Run a command and measure it; a map says when it came to which layer.

    Raises:
        SystemExit: It failed, or a mistyped one did not.
    """
    with tempfile.NamedTemporaryFile() as told:
        command = [sys.executable, "-m", "benchmarks.waiting", "--child", told.name, *args]
        started = time.time()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        taken = time.time() - started
        if process.returncode != (2 if args[0] == MISTYPED else 0):
            raise SystemExit(f"headatlas {' '.join(args)} failed (exit status {process.returncode})")
        found = json.loads(Path(told.name).read_text() or "{}")
    found["moments"] = {name: at - started for name, at in found.get("moments", {}).items()}
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(taken, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit, found)


def child(path: str, args: Sequence[str]) -> None:
    """Be the command, and leave behind when a map came where, and what it counted."""
    import headatlas.progress as module
    from headatlas.cli import main as command

    moments: dict[str, float] = {}
    counted: list[Stats] = []

    show = progress_display

    @contextmanager
    def display() -> Iterator[Report]:
        def told(event: Progress) -> None:
            moments.setdefault(f"{event.stage} {event.done}", time.time())
            tell(event)

        with show() as tell:
            yield told

    class Counted(Stats):
        def __init__(self) -> None:
            super().__init__()
            counted.append(self)

        @contextmanager
        def timed(self, stage: str) -> Iterator[None]:
            moments.setdefault(f"begins {stage}", time.time())
            with super().timed(stage):
                yield

    module.progress_display, module.Stats = display, Counted  # type: ignore[misc]
    sys.argv = ["headatlas", *args]
    try:
        command()
    finally:
        if counted:
            stats = {**vars(counted[0])}
            Path(path).write_text(json.dumps({"moments": moments, "stats": stats}))


def _maps(lens: str, ceiling: int, repeats: int, folder: Path) -> list[Run]:
    options = ["--lens", lens, "--ceiling", str(ceiling)]
    return [run(["map", MODEL, *options, "-o", str(folder / f"{lens}-{at}")]) for at in range(repeats)]


# Tables ---------------------------------------------------------------------------------------------


def _row(name: str, runs: Sequence[Run]) -> list[str]:
    return [
        name,
        f"{_median([each.seconds for each in runs]):.2f}",
        f"{_median([each.processor for each in runs]):.2f}",
        f"{_median([each.peak for each in runs]) / 1e9:.2f} GB",
    ]


def _map_rows(lens: str, runs: Sequence[Run]) -> list[list[str]]:
    """The map as a whole, and parts of its time as a person sees them go by."""
    last = max(int(name.split()[1]) for name in runs[0].told["moments"] if name.startswith("heads"))
    moments = [each.told["moments"] for each in runs]
    stats = [each.told["stats"]["seconds"] for each in runs]
    parts = {
        "until it says what it opens": [each["open 0"] for each in moments],
        "opening": [each["opening"] for each in stats],
        "until the first bar shows": [
            min(at for name, at in each.items() if name.startswith(("heads", "states"))) for each in moments
        ],
        "until layers begin": [each["begins ranking"] for each in moments],
        "until the first layer is saved": [each["heads 1"] for each in moments],
        "scores, after the last layer": [each["calibration"] for each in stats],
        "where heads look": [each["behaviour"] for each in stats],
        "figures, page, tables": [each["outputs"] for each in stats],
        "all after the last layer": [
            one.seconds - each[f"heads {last}"] for one, each in zip(runs, moments, strict=True)
        ],
    }
    rows = [[f"… {name}", f"{_median(each):.2f}", "", ""] for name, each in parts.items() if max(each) > 0.1]
    return [_row(f"`headatlas map {MODEL} --lens {lens} -o DIR`", runs), *rows]


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


# Against the plain way and the floor ------------------------------------------------------------------


def _compare(lens: str, ceiling: int, runs: Sequence[Run], out: Path, sample: int) -> None:
    """Print what the mapping did, and its time against the plain way's and the floor's."""
    import numpy as np

    from benchmarks.comparison import check, plain_seconds, shared_seconds
    from headatlas.atlas import Atlas
    from headatlas.devices import pick_device
    from headatlas.lenses import lens_named
    from headatlas.mapping.machine import rates
    from headatlas.mapping.prepared import MapOptions, prepare_map
    from headatlas.mapping.run import layer_inputs
    from headatlas.mapping.vocabulary import Vocabulary

    speed, atlas = rates(pick_device("cpu")), Atlas.open(out)
    prepared = prepare_map(MODEL, None, "core", MapOptions(lens_named(lens), ceiling=ceiling))
    states = _states(prepared, out / "states-again")
    vocabulary = Vocabulary.read(prepared.model.unembed, prepared.competing)
    dims, k = prepared.model.dims, prepared.options.thresholds.k
    n_heads, rows = dims.n_layers * dims.n_heads, np.arange(len(prepared.layout.sources))
    timed: dict[str, list[float]] = {"the plain way": [], "each source once": []}
    compared = 0
    for number in np.linspace(0, n_heads - 1, sample).astype(int).tolist():
        layer, head = divmod(number, dims.n_heads)
        inputs = layer_inputs(prepared, states, layer)
        timed["the plain way"].append(plain_seconds(prepared.layout, inputs, head, vocabulary, k))
        timed["each source once"].append(shared_seconds(prepared.layout, inputs, head, vocabulary, k))
        compared += check(prepared, inputs, vocabulary, atlas, layer, head, rows)
    taken = {
        stage: _median([each.told["stats"]["seconds"].get(stage, 0.0) for each in runs])
        for stage in ("reading", "states", "ranking")
    } | {"all": _median([each.seconds for each in runs])}
    print(f"\nFor SmolLM2-135M and `{lens}`, at {said(speed)} ({threads()}):\n")
    _print_floor(work_of(prepared, atlas), speed, taken)
    ways = "; ".join(
        f"{name} {_median(each) * n_heads:,.0f} s ({_median(each) * n_heads / taken['all']:.0f} × the whole "
        f"command, {_median(each) * n_heads / taken['ranking']:.0f} × its ranking)"
        for name, each in timed.items()
    )
    counts, full = runs[0].told["stats"], n_heads * len(rows) * len(vocabulary) * dims.d_model
    print(
        f"\nIn the same run, scaled from {sample} heads: {ways}.\n\nMultiply-adds with columns of U "
        f"{powers(counts['products'])} of {powers(full)} (each source once): 1 in "
        f"{full / counts['products']:.0f}; rows through the vocabulary {counts['rows']:,}, with a rank below "
        f"the ceiling {counts['hit_rows']:,}; {compared:,} ranks and calibration cells of {sample} heads "
        "equal float64 arithmetic's.",
        flush=True,
    )


def _print_floor(work: Work, speed: Rates, taken: dict[str, float]) -> None:
    """What an ideal run takes, beside what this one took."""
    ours = [
        f"{taken['reading']:.2f} s",
        f"{taken['states']:.2f} s",
        "in the next",
        f"{taken['ranking']:.1f} s",
        f"{taken['all']:.1f} s ({taken['all'] / seconds(work, speed):.1f} ×)",
    ]
    rows = table(work, speed, ours)
    rows[-1][0] += ", with imports, figures and page"
    print(markdown(COLUMNS, rows))


def work_of(prepared: PreparedMap, atlas: Any) -> Work:
    """The sizes of a map that was made, with the rows of each head that hold a rank below the ceiling."""
    model, lens = prepared.model, prepared.options.lens
    dims, sources = model.dims, prepared.layout.sources
    attention = 2 * dims.d_model * dims.d_head * (dims.n_heads + dims.n_kv_heads)
    embeddings = (2 if model.stores_unembedding else 1) * dims.vocab_size * dims.d_model
    block = (model.n_parameters - embeddings) // dims.n_layers  # norms beside these are a few rows
    pieces = {source[:end] for source in sources for end in range(1, len(source) + 1)}
    return Work(
        layers=dims.n_layers,
        heads=dims.n_heads,
        kv_heads=dims.n_kv_heads,
        d_model=dims.d_model,
        d_head=dims.d_head,
        d_ff=(block - attention) // (3 * dims.d_model),
        vocab=int(prepared.competing.sum()),
        stored=model.bytes_needed(forward_pass=not lens.weights_only),
        sources=len(sources),
        tokens=len(lens.prefixes) * len(pieces),
        hits=hit_rows(prepared, atlas),
    )


def hit_rows(prepared: PreparedMap, atlas: Any) -> list[int]:
    """For every head how many sources have a rank below the ceiling, of a pair or a calibration cell."""
    import numpy as np

    from headatlas.atlas.store import CELL_BEYOND

    layout, data = prepared.layout, atlas.dataset
    hit = np.zeros((atlas.n_layers, atlas.n_heads, len(layout.sources)), dtype=bool)
    for sign in ("promotion", "suppression"):
        ranks = data[f"{sign}_rank"].values[..., layout.own_pair] >= 0
        for row in np.unique(layout.own_row):
            hit[..., row] |= ranks[..., layout.own_row == row].any(axis=-1)
        for block in layout.blocks:
            cells = data[f"cell_{sign}_rank"].values[..., block.cells] != CELL_BEYOND
            shape = (*cells.shape[:2], len(block.rows), len(block.columns))
            hit[..., block.rows] |= cells.reshape(shape).any(axis=-1)
    return [int(count) for count in hit.sum(axis=-1).ravel()]


def _states(prepared: PreparedMap, folder: Path) -> Any:
    """The states of a lens, computed again: a pass of the same arithmetic on the same machine."""
    from headatlas.lenses import MapsStates, NeutralStates

    if prepared.options.lens.weights_only:
        return MapsStates(prepared.model, prepared.layout.sources)
    sources, prefixes = prepared.layout.sources, prepared.options.lens.prefixes
    return NeutralStates.compute(prepared.model, sources, prefixes, folder, identity="benchmark")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3:])
    else:
        main()
