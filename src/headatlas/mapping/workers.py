"""The layers of a map on this machine: several at a time, on its cores or on each GPU."""

from __future__ import annotations

import queue
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from headatlas.atlas.layout import Layout
from headatlas.atlas.store import LayerRanks
from headatlas.devices import strict_products, trim_heap
from headatlas.mapping.bounds import whole
from headatlas.mapping.engine import map_layer
from headatlas.mapping.inputs import LayerInputs
from headatlas.mapping.machine import Machine
from headatlas.mapping.plan import Shares, head_bytes
from headatlas.mapping.vocabulary import Vocabulary
from headatlas.progress import Stats

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from headatlas.architectures import RightMap

WORTH_TRIMMING = 128 << 20
"""Bytes of a worker's heads from which freed memory goes back to the system after every layer. Small layers
would spend more time on getting it anew than it is worth."""
TURN = 0.0001
"""Seconds that a thread may keep the interpreter while another waits for it, where layers are side by side.

Their steps are short and mostly in compiled code: with Python's 5 ms, threads waited a tenth of their time.
"""


@dataclass(frozen=True)
class Worker:
    """One layer at a time.

    Attributes:
        vocabulary: Competing rows of U, on the worker's device.
        threads: Processor cores it uses.
        heads: Heads of a layer that it has in work at a time.
    """

    vocabulary: Vocabulary
    threads: int
    heads: int


def workers_for(vocabulary: Vocabulary, machine: Machine, share: Shares) -> list[Worker]:
    """The workers of this machine.

    Args:
        vocabulary: Competing rows of U.
        machine: Where to compute.
        share: What fits.
    """
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
            known = self._known_control(inputs)
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
            if worker.heads * head_bytes(inputs.dims, len(self._layout.sources)) >= WORTH_TRIMMING:
                trim_heap()
            self._free.put(worker)

    def _known_control(self, inputs: LayerInputs) -> NDArray[np.int16] | None:
        known = self._control
        if known is None or known[0] is not inputs.control_states or known[1] is not inputs.control_right:
            return None
        return known[2]


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

    Args:
        layout, ceiling: As for :func:`headatlas.mapping.engine.map_layer`.
        workers: From :func:`workers_for`.
        layers: Layers and their inputs.
        stats: Gets the counts of all workers; times are added up over workers.
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
    """Layers that are done, taken out of those waited for."""
    for future in futures:
        layer = waiting.pop(future)
        ranks, mine = future.result()
        stats.add(mine)
        yield layer, ranks
