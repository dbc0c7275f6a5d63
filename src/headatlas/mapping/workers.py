"""The layers of a map: several at a time on this machine (cores or GPUs), or one a task on a Ray cluster.

With a cluster this process reads the model, makes the source states, and writes the atlas. A task gets all it
needs through Ray's object store (one layer's states and weights; the unembedding once a machine, in shared
memory) and returns the layer's ranks. So the other machines need headatlas, but neither the model nor the
folder of the atlas, and a layer's result is that of the same function with the same numbers here.
"""

from __future__ import annotations

import logging
import queue
import socket
import sys
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray

from headatlas import __version__
from headatlas.atlas.layout import Layout
from headatlas.atlas.store import LayerRanks
from headatlas.devices import strict_products, trim_heap
from headatlas.errors import HeadatlasError, first_line
from headatlas.mapping.bounds import whole
from headatlas.mapping.engine import map_layer
from headatlas.mapping.inputs import LayerInputs
from headatlas.mapping.machine import Machine
from headatlas.mapping.plan import Shares, worth_trimming
from headatlas.mapping.vocabulary import Vocabulary
from headatlas.progress import Stats

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from headatlas.architectures import RightMap


TURN = 0.0001
"""Seconds that a thread may keep the interpreter while another waits for it, where layers are side by side.

Their steps are short and mostly in compiled code: with Python's 5 ms, threads waited a tenth of their time.
"""


@dataclass(frozen=True)
class Worker:
    """One layer at a time."""

    vocabulary: Vocabulary  # competing rows of U, on the worker's device
    threads: int  # processor cores it uses
    heads: int  # heads of a layer that it has in work at a time


def workers_for(vocabulary: Vocabulary, machine: Machine, share: Shares) -> list[Worker]:
    """The workers of this machine."""
    devices = [device for device in machine.devices if device.type != "cpu"]
    each = max(1, machine.cores // share.workers)
    # Those of a GPU share what is on it.
    vocabularies = [replace(vocabulary, device=device) for device in devices] or [vocabulary]
    return [Worker(vocabularies[at % len(vocabularies)], each, share.heads) for at in range(share.workers)]


class _Ranker:
    """Ranks a layer with whichever worker is free; called by the pool's threads.

    Ranks of the no-head control are kept for layers that share the states it reads, as those of ``maps`` do.
    """

    def __init__(self, layout: Layout, workers: Sequence[Worker], ceiling: int) -> None:
        self._layout, self._ceiling = layout, ceiling
        self._control: tuple[torch.Tensor, RightMap | None, NDArray[np.int16]] | None = None
        self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in workers:
            _ = whole(worker.vocabulary), worker.vocabulary.lengths  # once, before threads ask for them
            self._free.put(worker)

    def rank(self, inputs: LayerInputs) -> tuple[LayerRanks, Stats]:
        worker, stats = self._free.get(), Stats()
        try:
            torch.set_num_threads(worker.threads)
            known, control = None, self._control
            if control and control[0] is inputs.control_states and control[1] is inputs.control_right:
                known = control[2]
            with strict_products():
                ranks = map_layer(
                    self._layout,
                    inputs,
                    worker.vocabulary,
                    ceiling=self._ceiling,
                    control=known,
                    heads_at_once=worker.heads,
                    stats=stats,
                )
            if known is None:
                self._control = inputs.control_states, inputs.control_right, ranks.control
            return ranks, stats
        finally:
            if worth_trimming(inputs.dims, len(self._layout.sources), worker.heads):
                trim_heap()
            self._free.put(worker)


@contextmanager
def _cores_shared(workers: Sequence[Worker]) -> Iterator[None]:
    """Few threads for this thread's own products, and short turns, while several workers are at work."""
    cores, turn = torch.get_num_threads(), sys.getswitchinterval()
    if len(workers) > 1:
        # With more threads than cores, each waits for the others at every product.
        torch.set_num_threads(workers[0].threads)
        sys.setswitchinterval(TURN)
    try:
        yield
    finally:
        torch.set_num_threads(cores)
        sys.setswitchinterval(turn)


_Waiting = dict["Future[tuple[LayerRanks, Stats]]", int]


def rank_here(
    layout: Layout,
    workers: Sequence[Worker],
    layers: Iterator[tuple[int, LayerInputs]],
    *,
    ceiling: int,
    stats: Stats,
) -> Generator[tuple[int, LayerRanks], None, None]:
    """Ranks of layers as they get done, in any order. This thread reads the next layer while others rank.

    ``stats`` gets the counts of all workers; times are added up over workers.
    """
    ranker = _Ranker(layout, workers, ceiling)
    waiting: _Waiting = {}
    exhausted = False
    pool = ThreadPoolExecutor(len(workers), thread_name_prefix="layer")
    with _cores_shared(workers), ExitStack() as after:
        after.callback(pool.shutdown, cancel_futures=True)
        while waiting or not exhausted:
            # One more than can be in work, so that no worker waits while this thread reads.
            try:
                room = not exhausted and len(waiting) <= len(workers)
                given = next(layers, None) if room else None
                exhausted |= room and given is None
                if given is not None:
                    waiting[pool.submit(ranker.rank, given[1])] = given[0]
                del given  # the worker alone holds the layer
                still_room = not exhausted and len(waiting) <= len(workers)
                done, _ = wait(waiting, timeout=0 if still_room else None, return_when=FIRST_COMPLETED)
            except BaseException:
                # What is in work is not lost; what waits is not begun.
                yield from _delivered(waiting, [one for one in waiting if not one.cancel()], stats)
                raise
            yield from _delivered(waiting, done, stats)


def _delivered(
    waiting: _Waiting, futures: Iterable[Future[tuple[LayerRanks, Stats]]], stats: Stats
) -> Iterator[tuple[int, LayerRanks]]:
    """Layers that are done, taken out of those waited for; an error comes after what can be kept."""
    for future in sorted(futures, key=lambda one: one.exception() is not None):
        layer = waiting.pop(future)
        ranks, mine = future.result()
        stats.add(mine)
        yield layer, ranks


RETRIES = 5
"""How often a layer is given to another worker when its worker or machine is lost."""
SECONDS_TO_ANSWER = 10


def import_ray() -> Any:
    """Ray, or a HeadatlasError that says how to get it."""
    try:
        import ray
    except ImportError as error:
        raise HeadatlasError("`cluster` needs Ray; get it with pip install 'headatlas[cluster]'.") from error
    return ray


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection to a running cluster during the block; one that the caller has is used and kept.

    The address is ``"auto"``, the cluster this machine belongs to, or ``HOST:PORT``, its head.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield
        return
    if address.startswith("ray://"):
        raise HeadatlasError(
            f"`cluster={address}`: the command runs on a machine of the cluster; start it there (by "
            "`ray job submit`, or in a shell of it) with `cluster=auto`."
        )
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, OverflowError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise HeadatlasError(
            f"`cluster={address}`: no connection to a Ray cluster ({first_line(error)}); "
            "start one with `ray start --head`, or give its address."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise an OSError where nobody listens at ``HOST:PORT``; Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=SECONDS_TO_ANSWER).close()


def rank_on_cluster(
    layout: Layout,
    vocabulary: Vocabulary,
    layers: Iterator[tuple[int, LayerInputs]],
    *,
    n_layers: int,
    ceiling: int,
    stats: Stats,
    device: str = "cpu",
) -> Iterator[tuple[int, LayerRanks]]:
    """Ranks of layers as they get done, in any order. What is not done when the caller stops is cancelled.

    The number of layers to come decides how many processors each gets. With the device ``"cuda"`` each task
    has a GPU of its own, whichever Ray gives it. A layer that is lost is given to other workers, ``RETRIES``
    times.
    """
    ray = import_ray()
    cpus, gpus, at_once = _shares(ray.nodes(), n_layers, device)
    vocabulary = replace(vocabulary, device=torch.device("cuda" if gpus else "cpu"))
    task = ray.remote(rank_one).options(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)
    waiting: dict[Any, int] = {}
    with _tensors_in_shared_memory():
        _ = vocabulary.norms  # computed once and sent along
        try:
            common = ray.put(layout), ray.put(vocabulary)
            while True:
                # Twice as many as can run, so that no machine waits while this one reads.
                given = next(layers, None) if len(waiting) < 2 * at_once else None
                if given is not None:
                    waiting[task.remote(*common, given[1], ceiling, cpus, __version__)] = given[0]
                elif not waiting:
                    return
                ready, _ = ray.wait(list(waiting), timeout=None if given is None else 0)
                for reference in ready:
                    layer = waiting.pop(reference)
                    ranks, done = _fetched(ray, reference, layer)
                    stats.add(done)
                    yield layer, ranks
        except ray.exceptions.RayError as error:
            raise HeadatlasError(
                f"the cluster takes no more layers ({first_line(error)}); "
                "finished layers are saved, the same command goes on."
            ) from error
        finally:
            for reference in waiting:
                ray.cancel(reference)


def rank_one(
    layout: Layout, vocabulary: Vocabulary, inputs: LayerInputs, ceiling: int, cpus: int, version: str
) -> tuple[LayerRanks, Stats]:
    """The task: one layer, on any machine that has this version of headatlas, on the vocabulary's device."""
    if version != __version__:
        raise HeadatlasError(
            f"a machine of the cluster has headatlas {__version__}, this one {version}; "
            "install the same version on all."
        )
    torch.set_num_threads(cpus)
    stats = Stats()
    with strict_products():
        return map_layer(layout, inputs, vocabulary, ceiling=ceiling, stats=stats), stats


def _shares(nodes: list[dict[str, Any]], n_layers: int, device: str = "cpu") -> tuple[int, int, int]:
    """Processors and GPUs a layer, and how many layers that makes at once; all are used if that can be."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    kind = device.partition(":")[0]
    if kind == "cuda":
        shares = [(int(each.get("CPU", 0)), int(each["GPU"])) for each in alive if each.get("GPU", 0) >= 1]
        if not shares:
            raise HeadatlasError(
                f"`device={device}`: no machine of the cluster has a GPU that Ray knows of; start one with "
                "`ray start --num-gpus N`, or use `device=cpu`."
            )
        return max(1, min(cpus // gpus for cpus, gpus in shares)), 1, sum(gpus for _, gpus in shares)
    if kind != "cpu":
        raise HeadatlasError(f"`device={device}`: Ray shares out processors and CUDA GPUs; use cpu or cuda.")
    sizes = [int(each.get("CPU", 0)) for each in alive]
    sizes = [size for size in sizes if size] or [1]  # a cluster may start its machines only when asked
    cpus = max(1, min(*sizes, sum(sizes) // n_layers))
    return cpus, 0, sum(size // cpus for size in sizes)


def _fetched(ray: Any, reference: Any, layer: int) -> tuple[LayerRanks, Stats]:
    """The result of a task; its failure as a HeadatlasError that says why."""
    try:
        found: tuple[LayerRanks, Stats] = ray.get(reference)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, HeadatlasError):
            raise HeadatlasError(f"layer {layer} on the cluster: {cause}") from error
        raise HeadatlasError(
            f"layer {layer} failed on the cluster ({type(cause or error).__name__}: "
            f"{first_line(cause or error)}); finished layers are saved, the same command goes on."
        ) from error
    return found


@contextmanager
def _tensors_in_shared_memory() -> Iterator[None]:
    """Ray keeps NumPy arrays in memory that all processes of a machine share, tensors only in copies."""
    from ray.util import deregister_serializer, register_serializer

    register_serializer(torch.Tensor, serializer=_packed, deserializer=_unpacked)
    try:
        yield
    finally:
        deregister_serializer(torch.Tensor)


def _packed(tensor: torch.Tensor) -> tuple[NDArray[Any], torch.dtype, tuple[int, ...]]:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy(), flat.dtype, tuple(tensor.shape)


def _unpacked(packed: tuple[NDArray[Any], torch.dtype, tuple[int, ...]]) -> torch.Tensor:
    raw, dtype, shape = packed
    with warnings.catch_warnings():
        # Shared memory is read-only; the engine writes into nothing that it is given.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(raw).view(dtype).view(shape)
