"""Where a map computes: devices, and a bound for the memory it takes, from what the user says."""

from __future__ import annotations

import re
from dataclasses import dataclass

import psutil
import torch

from headatlas.architectures.model import Dims
from headatlas.devices import pick_device
from headatlas.errors import HeadatlasError
from headatlas.mapping.screening import MOST_TOKENS

WORKING_BYTES = 256 << 20
"""Bounds, candidates and sorted screens of a layer in work, at most; for estimates."""
MOST_WORKERS = 4
"""Layers at a time on processor cores. The rest of the cores help within a layer."""
FEW_HEADS = 8
"""Fewer heads of a layer at a time make products so small that a second worker does not pay."""


@dataclass(frozen=True)
class Machine:
    """Where a map computes.

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


@dataclass(frozen=True)
class Shares:
    """How a layer's heads fit into memory.

    Attributes:
        workers: Layers in work at a time.
        heads: Heads of a layer in work at a time.
        bytes: What that takes.
    """

    workers: int
    heads: int
    bytes: int


def this_machine(device: str = "auto", max_memory: str | int | None = None) -> Machine:
    """The machine, as far as the user lets us have it.

    Args:
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` (all GPUs of the machine), ``"cuda:N"`` or ``"mps"``.
        max_memory: Bytes, or text such as ``"6GB"``; None: what the machine has.

    Raises:
        HeadatlasError: There is no such device, or the memory means nothing.
    """
    first = pick_device(device)
    devices: tuple[torch.device, ...] = (first,)
    if first.type == "cuda" and device in ("auto", "cuda"):
        devices = tuple(torch.device("cuda", i) for i in range(torch.cuda.device_count()))
    there = int(psutil.virtual_memory().total)
    limit = there if max_memory is None else min(there, memory_of(max_memory))
    return Machine(devices, limit, max_memory is not None)


def memory_of(text: str | int) -> int:
    """Bytes of ``"6GB"``, ``"512 MiB"``, ``"6e9"``."""
    units = {"": 1, "B": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    units |= {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([KMGT]?I?)B?\s*", str(text).upper().replace("E", "e"))
    try:
        n_bytes = float(found[1]) * units[found[2]] if found else 0.0
    except (KeyError, ValueError):
        n_bytes = 0.0
    if n_bytes < 1:
        raise HeadatlasError(f"--max-memory {text}: not an amount of memory; write it like 6GB or 800MB.")
    return int(n_bytes)


def head_bytes(dims: Dims, sources: int) -> int:
    """Memory of one head in work: outputs, basis, targets and screening set, in float64 and float32."""
    per_row = 12 * (sources + dims.d_model) + 4 * (sources + MOST_TOKENS)
    return dims.d_head * per_row


def shares(dims: Dims, sources: int, machine: Machine, held: int) -> Shares:
    """How many layers and heads to have in work at a time.

    Args:
        dims: The model's sizes.
        sources: Number of sources.
        machine: Where it computes.
        held: Bytes that the map holds besides.
    """
    each, room = head_bytes(dims, sources), machine.memory - held
    few = min(FEW_HEADS, dims.n_heads)
    on_gpus = sum(device.type != "cpu" for device in machine.devices)
    most = on_gpus or min(machine.cores, MOST_WORKERS)
    workers = max(1, min(most, room // (WORKING_BYTES + few * each)))
    heads = max(1, min(dims.n_heads, (room // workers - WORKING_BYTES) // each))
    return Shares(workers, heads, workers * (WORKING_BYTES + heads * each))
