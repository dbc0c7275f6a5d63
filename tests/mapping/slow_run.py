"""A map in a process of its own that can be killed, at a chosen write or at any time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from zarr.storage import _local

from headatlas.mapping import run, workers
from headatlas.options import Compute
from tests.mapping.checkpoints import random_relations

SLEEP = 0.05
"""Seconds added to every layer, so that kills at random times meet all stages."""

# Forked from a process that has imported everything and done nothing else.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


def started(
    model: Path,
    out: Path,
    die_at_write: int | None = None,
    layers: str | None = None,
    stream: bool | None = None,
) -> BaseProcess:
    """Begin to map in another process, which kills itself at the given write to the atlas or the states."""
    process = _CONTEXT.Process(target=_map, args=(model, out, die_at_write, layers, stream))
    process.start()
    return process


def _map(model: Path, out: Path, die_at_write: int | None, layers: str | None, stream: bool | None) -> None:
    torch.set_num_threads(1)
    writes = 0

    def counted(original: Any, *, torn: bool) -> Any:
        def write(path: Path, value: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal writes
            writes += 1
            if writes == die_at_write:
                if torn:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.with_suffix(".0123.partial").write_bytes(value.as_buffer_like()[:7])
                os.kill(os.getpid(), signal.SIGKILL)
            return original(path, value, *args, **kwargs)

        return write

    _local._put = counted(_local._put, torn=True)
    np.save = counted(np.save, torn=False)
    map_layer = workers.map_layer

    def slowly(*args: Any, **kwargs: Any) -> Any:
        time.sleep(SLEEP)
        return map_layer(*args, **kwargs)

    workers.map_layer = slowly
    run.map_heads(model, relations=random_relations(), out=out, layers=layers, compute=Compute(stream=stream))
    (out / "writes").write_text(str(writes))
