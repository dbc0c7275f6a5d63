"""This machine: its devices, the memory a map may take, and how fast it multiplies and moves memory.

Speed is measured in a fraction of a second, and kept. One core is measured and counts as many times as cores
are in use: on a machine with other work, one thread keeps its speed, while several wait for each other.
Disturbed it can only look slower, so the first few processes that ask measure anew, and the best counts.

Times of a plan follow from it, and which arithmetic proposes bounds (:mod:`headatlas.mapping.bounds`).
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import psutil
import torch

from headatlas.devices import pick_device, strict_products
from headatlas.errors import HeadatlasError
from headatlas.files import atomic_write
from headatlas.options import Compute
from headatlas.weights.local_files import cache_dir

_ROWS, _INNER, _COLUMNS = 128, 512, 2048
"""Of a product so short that some of many are not interrupted by what else runs."""
_MOVED = 64 << 20
_REPEATS = 100
MEASUREMENTS = 4
"""By so many processes; later ones read what is kept."""
_ENOUGH = 0.1
"""Seconds after which an operation is not repeated."""


@dataclass(frozen=True)
class Machine:
    """The devices and the memory that a map may take.

    Attributes:
        devices: One or more; layers are shared out among several.
        memory: Bytes of memory of the machine that the map may take.
        limited: Whether the user set that bound.
    """

    devices: tuple[torch.device, ...]
    memory: int
    limited: bool = False

    @property
    def cores(self) -> int:
        """Processor cores in use."""
        return torch.get_num_threads()


def this_machine(compute: Compute = Compute()) -> Machine:
    """The machine, as far as the user lets us have it; all of it by default.

    With a cluster, its machines have the device: this one only reads and writes.

    Raises:
        HeadatlasError: There is no such device.
    """
    device = compute.device if compute.cluster is None else "cpu"
    first = pick_device(device)
    devices: tuple[torch.device, ...] = (first,)
    if first.type == "cuda" and device in ("auto", "cuda"):
        devices = tuple(torch.device("cuda", i) for i in range(torch.cuda.device_count()))
    there = int(psutil.virtual_memory().total)
    limit = there if compute.memory is None else min(there, compute.memory)
    return Machine(devices, limit, compute.memory is not None)


@dataclass(frozen=True)
class Rates:
    """Speed of a device.

    Attributes:
        float32, bfloat16: Operations a second of products of matrices of this type (a multiply-add is two).
        memory: Bytes a second, read and written, of a large copy by one thread.
    """

    float32: float
    bfloat16: float
    memory: float

    @property
    def bfloat16_pays(self) -> bool:
        """Whether matrices of bfloat16 multiply so much faster that rounding to it is worth its price."""
        return self.bfloat16 > 2 * self.float32

    def best(self, other: Rates) -> Rates:
        """The higher of each."""
        return Rates(*map(max, asdict(self).values(), asdict(other).values()))


def rates(device: torch.device) -> Rates:
    """The speed of a device (of all cores in use), measured unless known of this processor and torch."""
    one, cores = _kept(device), torch.get_num_threads() if device.type == "cpu" else 1
    return Rates(cores * one.float32, cores * one.bfloat16, one.memory)


@cache
def _kept(device: torch.device) -> Rates:
    """The speed of a GPU, or of one core."""
    key = [_name(device), torch.__version__]
    file = cache_dir() / "rates" / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.json"
    times, known = _read(file, key)
    if times >= MEASUREMENTS:
        return known
    best = known.best(measure(device))
    # A folder that cannot be written costs the measurement again next time, nothing else.
    with suppress(HeadatlasError), atomic_write(file) as temporary:
        temporary.write_text(json.dumps({"of": key, "times": times + 1, **asdict(best)}), encoding="utf-8")
    return best


def _read(file: Path, key: list[str]) -> tuple[int, Rates]:
    """Number of measurements kept, and the best; none where the file is not there or not understood."""
    nothing = 0, Rates(0.0, 0.0, 0.0)
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        found = Rates(*(float(stored[name]) for name in ("float32", "bfloat16", "memory")))
        times = int(stored["times"])
        sound = stored["of"] == key and all(0 < each < float("inf") for each in asdict(found).values())
    except (OSError, ValueError, KeyError, TypeError):
        return nothing
    return (times, found) if sound else nothing


def _name(device: torch.device) -> str:
    """The processor or GPU by its name."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    model = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        model = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model
        )
    return f"{device.type} {model} {torch.backends.cpu.get_cpu_capability()}"


def measure(device: torch.device) -> Rates:
    """Time products and copies on a device, or on one core; the fastest of each counts."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(), strict_products():
            return _measured(device)
    finally:
        torch.set_num_threads(threads)


def _measured(device: torch.device) -> Rates:
    left, right = torch.ones(_ROWS, _INNER, device=device), torch.ones(_INNER, _COLUMNS, device=device)
    halves = left.to(torch.bfloat16), right.to(torch.bfloat16)
    source = torch.ones(_MOVED // 4, device=device)
    target = torch.zeros_like(source)
    operations = 2 * _ROWS * _INNER * _COLUMNS
    single = _fastest(device, lambda: left @ right)
    half = _fastest(device, lambda: halves[0] @ halves[1])
    moved = _fastest(device, lambda: target.copy_(source))
    return Rates(operations / single, operations / half, 2 * _MOVED / moved)


def _fastest(device: torch.device, work: Callable[[], torch.Tensor]) -> float:
    """Seconds of the fastest of a few runs; the first finds memory and code cold."""
    times: list[float] = []
    while len(times) < _REPEATS and sum(times) < _ENOUGH:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
        times.append(time.perf_counter() - start)
    return max(min(times), 1e-9)
