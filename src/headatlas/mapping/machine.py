"""Where a map computes: devices, and a bound for the memory it takes, from what the user says."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from headatlas.architectures.types import Dims
from headatlas.devices import pick_device
from headatlas.mapping.screening import MOST_TOKENS
from headatlas.options import Compute

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


def this_machine(compute: Compute | None = None) -> Machine:
    """The machine, as far as the user lets us have it; all of it by default.

    With a cluster, its machines have the device: this one only reads and writes.

    Raises:
        HeadatlasError: There is no such device.
    """
    compute = Compute() if compute is None else compute
    device = compute.device if compute.cluster is None else "cpu"
    first = pick_device(device)
    devices: tuple[torch.device, ...] = (first,)
    if first.type == "cuda" and device in ("auto", "cuda"):
        devices = tuple(torch.device("cuda", i) for i in range(torch.cuda.device_count()))
    there = int(psutil.virtual_memory().total)
    limit = there if compute.memory is None else min(there, compute.memory)
    return Machine(devices, limit, compute.memory is not None)


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
