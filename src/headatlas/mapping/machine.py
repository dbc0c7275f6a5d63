"""This machine: its devices, the memory a map may take, and how fast it multiplies and moves memory.

Speed is measured once a process, in a fraction of a second. One core is measured, by the time that the thread
itself gets on it, and counts as many times as cores are in use: so other work changes little.
Times of a plan follow from it, and which arithmetic proposes bounds (:mod:`headatlas.mapping.bounds`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import psutil
import torch

from headatlas.devices import pick_device, strict_products
from headatlas.options import Compute

_ROWS, _INNER, _COLUMNS = 128, 512, 2048
"""Of a product so short that some of many are not interrupted by what else runs."""
_MOVED = 64 << 20
_REPEATS = 100
_ENOUGH = 0.04
"""Seconds after which an operation is not repeated."""


@dataclass(frozen=True)
class Machine:
    """The devices and the memory that a map may take."""

    devices: tuple[torch.device, ...]  # one or more; layers are shared out among several
    memory: int  # bytes of memory of the machine that the map may take
    limited: bool = False  # whether the user set that bound

    @property
    def cores(self) -> int:
        """Processor cores in use."""
        return torch.get_num_threads()


def this_machine(compute: Compute = Compute()) -> Machine:
    """The machine, as far as the user lets us have it; all of it by default.

    With a cluster, its machines have the device: this one only reads and writes.
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
    """Speed of a device: operations a second of products of matrices of two types (a multiply-add is two)."""

    float32: float
    bfloat16: float
    memory: float  # bytes a second, read and written, of a large copy by one thread

    @property
    def bfloat16_pays(self) -> bool:
        """Whether matrices of bfloat16 multiply so much faster that rounding to it is worth its price."""
        return self.bfloat16 > 2 * self.float32


def rates(device: torch.device) -> Rates:
    """The speed of a device, on a processor of all cores in use."""
    one, cores = measured(device), torch.get_num_threads() if device.type == "cpu" else 1
    return Rates(cores * one.float32, cores * one.bfloat16, one.memory)


@cache
def measured(device: torch.device) -> Rates:
    """Time products and copies on a GPU or on one core; the fastest of each counts."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(), strict_products():
            left = torch.ones(_ROWS, _INNER, device=device)
            right = torch.ones(_INNER, _COLUMNS, device=device)
            halves = left.to(torch.bfloat16), right.to(torch.bfloat16)
            source = torch.ones(_MOVED // 4, device=device)
            target = torch.zeros_like(source)
            single = _fastest(device, lambda: left @ right)
            half = _fastest(device, lambda: halves[0] @ halves[1])
            moved = _fastest(device, lambda: target.copy_(source))
    finally:
        torch.set_num_threads(threads)
    operations = 2 * _ROWS * _INNER * _COLUMNS
    return Rates(operations / single, operations / half, 2 * _MOVED / moved)


def _fastest(device: torch.device, work: Callable[[], torch.Tensor]) -> float:
    """Seconds of the fastest of a few runs; the first finds memory and code cold."""
    # On a processor the thread's own time, in which nothing else runs.
    now = time.thread_time if device.type == "cpu" else time.perf_counter
    times: list[float] = []
    while len(times) < _REPEATS and sum(times) < _ENOUGH:
        start = now()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        times.append(now() - start)
    return max(min(times), 1e-9)
