"""Devices by name, their memory and how to give it back, work shared by cores, float32 products without loss.

torch is imported when a function is called, so importing this module costs nothing.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from headatlas.errors import HeadatlasError

if TYPE_CHECKING:
    import torch

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")

AT_ONCE = 4
"""Most items that share the cores at a time: each takes memory of its own."""
MPS_SHARE = 0.5
"""Of the memory of a machine whose GPU shares it with the processor: what the GPU may take at most."""


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """A device of this machine, with its number where it is a GPU, as tensors on it report it.

    Args:
        name: ``"auto"`` (CUDA or ROCm if there is such a GPU, then Apple's MPS, then the CPU), ``"cpu"``,
            ``"cuda"``, ``"cuda:N"`` or ``"mps"``; or a device of torch.

    Raises:
        HeadatlasError: The name means nothing, or this machine has no such device.
    """
    import torch

    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise HeadatlasError(f"`device={name}`: there is no such device; use auto, cpu, cuda, cuda:N or mps.")
    if device.type == "cpu":
        return torch.device("cpu")
    there = cuda if device.type == "cuda" else int(mps)
    unnumbered = str(device) == device.type
    if unnumbered and there:
        return torch.device(device.type, torch.cuda.current_device() if device.type == "cuda" else 0)
    if unnumbered or device.index >= there:
        kind = "GPU for CUDA" if device.type == "cuda" else "GPU for MPS"
        found = f"{there} {kind} (numbered from 0)" if there else f"no {kind} that torch can use"
        raise HeadatlasError(f"`device={name}`: this machine has {found}; use auto or cpu.")
    return device


def free_memory(device: torch.device) -> int:
    """Bytes that may still be taken on a device: of a GPU's own memory, or of the machine's."""
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch holds and does not use is free as well.
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    available = int(psutil.virtual_memory().available)
    return int(available * MPS_SHARE) if device.type == "mps" else available


def trim_heap() -> bool:
    """Give memory that the process has freed back to the system; whether the C library could.

    glibc keeps what threads free for their next request, in a heap for each thread. Of blocks of megabytes in
    changing sizes it ends up keeping as much as is in use. Other libraries have no such function and, as far
    as is known, no such need.
    """
    trim = _malloc_trim()
    return trim is not None and bool(trim(0))


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim, which gives back free pages anywhere in the heaps; None elsewhere."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # no glibc; Windows wants a name
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    found: Callable[[int], int] = trim
    return found


class _StoppedError(Exception):
    """Ends work that nobody waits for any more."""


def share_cores(
    work: Callable[[_Item, Callable[[int], None]], _Made],
    items: Sequence[_Item],
    at_once: int = AT_ONCE,
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[_Item, _Made]]:
    """Work on several items at a time, each with its share of the cores; yields them as they get done.

    Most steps are too small for many cores to share.

    Args:
        work: Called with an item and a function to tell how many rows of it are done. Where the caller has
            stopped, that function ends the work.
        items: What to work on, in this order.
        at_once: The most items at a time.
        progress: Called with the rows done of all items, by one thread at a time.
    """
    import torch

    cores, counting = torch.get_num_threads(), threading.Lock()
    n = max(1, min(cores, at_once, len(items)))
    rows, stopped = [0] * len(items), threading.Event()

    def alone(at: int) -> _Made:
        torch.set_num_threads(cores // n)

        def tell(done: int) -> None:
            with counting:
                if stopped.is_set():
                    raise _StoppedError
                rows[at] = done
                if progress is not None:
                    progress(sum(rows))

        return work(items[at], tell)

    ahead = iter(range(len(items)))
    with ThreadPoolExecutor(n, thread_name_prefix="share") as pool:
        try:
            waiting = {pool.submit(alone, at): at for at in islice(ahead, n)}
            while waiting:
                for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                    at, made = waiting.pop(done), done.result()
                    waiting |= {pool.submit(alone, following): following for following in islice(ahead, 1)}
                    yield items[at], made
        finally:
            stopped.set()
            torch.set_num_threads(cores)


_LOCK = threading.Lock()
_ASKING: list[list[tuple[Any, str, Any]]] = []
"""The settings that were, for each block that asks for strict products: the last one puts them back."""


def _strict_settings() -> list[tuple[Any, str, Any]]:
    """torch's settings, of the whole process, for what float32 and bfloat16 products may lose; all off."""
    import torch

    backends: Any = torch.backends
    return [
        (backends.cuda.matmul, "fp32_precision", "ieee"),
        (backends.mkldnn.matmul, "fp32_precision", "ieee"),
        (backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False),
        (backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", False),
    ]


@contextmanager
def strict_products() -> Iterator[None]:
    """Keep products of float32 in float32 during the block, and sums of bfloat16 products too.

    TF32 and its like on the CPU are off, partial sums are not rounded to half precision, and no autocast
    applies. Error bounds rest on that. Afterwards everything is as it was. May be nested, and used by several
    threads at a time.
    """
    import torch

    with ExitStack() as stack:
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        with _LOCK:
            strict = _strict_settings()
            were = [(at, name, getattr(at, name)) for at, name, _ in strict]
            _ASKING.append(_ASKING[0] if _ASKING else were)
            for at, name, value in strict:
                setattr(at, name, value)
        try:
            yield
        finally:
            with _LOCK:
                were = _ASKING.pop()
                for at, name, value in () if _ASKING else were:
                    setattr(at, name, value)
