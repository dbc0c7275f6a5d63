"""Map a model in a process of its own, and say what that took."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import torch

from headatlas.atlas import Atlas
from headatlas.lenses.lens import LENSES
from headatlas.mapping.run import map_heads
from headatlas.options import Compute
from headatlas.progress import Stats
from headatlas.relations import resolve_relations

STAGES = (
    *("opening", "states", "reading", "ranking", "screening", "survivors", "writing"),
    "calibration",
)


@dataclass(frozen=True)
class Measured:
    """Time, memory and work of a map.

    Attributes:
        stats: What the engine counted, and seconds a stage.
        seconds: From the call of ``map_heads`` to its return; starting Python is not in it.
        peak: Bytes of memory at most, as the system counts it: mapped pages of the weight files included.
        anonymous: Bytes at most without mapped files, looked at every 20 ms; 0 where the system does not say.
        delivered: Bytes that came from the disk and not from the system's cache; 0 where it does not say.
        device_peak: Bytes of a GPU's memory that tensors took at most; 0 without one.
        hits: (head, pair, sign) with a rank below the ceiling: what no exact method can leave out.
    """

    stats: Stats
    seconds: float
    peak: int
    anonymous: int
    delivered: int
    device_peak: int
    hits: int

    @property
    def engine_seconds(self) -> float:
        """Seconds from the first layer read to the last one written: layers are ranked side by side."""
        return self.stats.seconds["ranking"]


def measure(
    model: str | Path, out: Path, *, sources: int | None = None, prefixes: int | None = None, **options: Any
) -> Measured:
    """Map a model into ``out`` in a new process.

    Args:
        model: As for ``map_heads``.
        out: Output folder; the saved states of sources stay in it.
        sources: Use the first sources of every relation only, about so many in all.
        prefixes: Use the first prefixes of the lens only.
        options: Further arguments of ``map_heads``, and the fields of ``Compute``; paths as text.
    """
    asked = {"model": str(model), "out": str(out), "sources": sources, "prefixes": prefixes, **options}
    command = [sys.executable, "-m", "benchmarks.measuring"]
    anonymous = 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(asked).encode())
        process.stdin.close()
        with suppress(psutil.NoSuchProcess):
            watched = psutil.Process(process.pid)
            while process.poll() is None:
                anonymous = max(anonymous, _anonymous(watched))
                time.sleep(0.02)
        text = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"mapping {model} failed (exit status {process.returncode}); its message is above")
    found = json.loads(text.splitlines()[-1])
    return Measured(**found | {"stats": Stats(**found["stats"]), "anonymous": anonymous})


def print_work(stats: Stats, total: float) -> None:
    """Seconds a stage, and what the engine counted."""
    print(f"\n{'stage':<28}{'seconds':>9}")
    for stage in STAGES:
        # Layers are ranked side by side, while others are read and written: its parts are added up over them.
        name = f"  in it, summed: {stage}" if stage in ("screening", "survivors") else stage
        print(f"{name:<28}{stats.seconds.get(stage, 0.0):>9.2f}")
    print(f"{'total':<28}{total:>9.2f}")
    print(
        f"rows through the vocabulary {stats.rows:,}: with a rank below the ceiling {stats.hit_rows:,}, "
        f"dropped before its end {stats.rows_dropped:,}; logits computed in float64 {stats.rechecked:,}"
    )


def median_run(runs: Sequence[Measured]) -> Measured:
    """The run with the median total time (the slower of the middle two)."""
    return sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]


def _anonymous(process: psutil.Process) -> int:
    memory = process.memory_info()
    return memory.rss - memory.shared if hasattr(memory, "shared") else 0


def _map(asked: Mapping[str, Any]) -> dict[str, Any]:
    options = dict(asked)
    sources, prefixes = options.pop("sources"), options.pop("prefixes")
    if sources is not None:
        relations = resolve_relations(options["relations"])
        each = sources // len(relations)
        options["relations"] = [replace(relation, pairs=relation.pairs[:each]) for relation in relations]
    compute = Compute(
        **{each.name: options.pop(each.name) for each in fields(Compute) if each.name in options}
    )
    stats = Stats()
    start = time.perf_counter()
    # The comparison reads the states that were mapped: computed again, their last bits could differ.
    with patch("headatlas.mapping.run.discard_states"), first_prefixes(prefixes):
        atlas = map_heads(options.pop("model"), compute=compute, stats=stats, **options)
    seconds = time.perf_counter() - start
    return {
        "stats": asdict(stats),
        "seconds": seconds,
        "peak": _peak(),
        "delivered": _delivered(),
        "device_peak": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        "hits": hits(atlas),
    }


@contextmanager
def first_prefixes(n: int | None) -> Iterator[None]:
    """Lenses have their first n prefixes only during the block; all if None."""
    fewer = {name: replace(lens, prefixes=lens.prefixes[:n]) for name, lens in LENSES.items()}
    with patch.dict(LENSES, fewer):
        yield


def hits(atlas: Atlas) -> int:
    """(head, pair, sign) with a rank below the ceiling in an atlas; all else is a negative flag."""
    return sum(
        int((atlas.dataset[name].values >= 0).sum()) for name in ("promotion_rank", "suppression_rank")
    )


def _peak() -> int:
    """Bytes. Linux hands ru_maxrss on from the process that started this one, so its own mark is read."""
    with suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(found[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _delivered() -> int:
    process = psutil.Process(os.getpid())
    return process.io_counters().read_bytes if hasattr(process, "io_counters") else 0


if __name__ == "__main__":
    print(json.dumps(_map(json.load(sys.stdin))))
