"""Layers side by side: the same ranks whatever the machine, nothing lost when something stops."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from headatlas.architectures import Dims
from headatlas.errors import HeadatlasError
from headatlas.mapping import machine as machines
from headatlas.mapping import plan
from headatlas.mapping import workers as side_by_side
from headatlas.mapping.inputs import LayerInputs
from headatlas.mapping.machine import Machine, this_machine
from headatlas.mapping.plan import Shares, head_bytes, shares
from headatlas.mapping.workers import rank_here, workers_for
from headatlas.options import Compute
from headatlas.progress import Stats
from tests.mapping import oracle
from tests.mapping.cases import random_problem

CPU = torch.device("cpu")
GB = 10**9
LLAMA_8B = Dims(32, 32, 8, 4096, 128, 128256)


def test_a_limit_is_not_above_what_there_is() -> None:
    there = this_machine(Compute("cpu")).memory
    assert this_machine(Compute("cpu", "1000TB")).memory == there
    assert this_machine(Compute("cpu", "1GB")) == Machine((CPU,), GB, limited=True)


def test_all_gpus_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(
        machines, "pick_device", lambda name: torch.device("cuda", int(name[5:]) if ":" in name else 0)
    )
    assert [device.index for device in this_machine(Compute("cuda")).devices] == [0, 1, 2]
    assert [device.index for device in this_machine(Compute("auto")).devices] == [0, 1, 2]
    assert [device.index for device in this_machine(Compute("cuda:1")).devices] == [1]


def test_less_memory_means_fewer_layers_then_fewer_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "cores", 4)
    held, found = 3 * GB, []
    for limit in (64 * GB, 6 * GB, 5 * GB, 4 * GB, 7 * GB // 2, 3 * GB + 300 * 10**6):
        share = shares(LLAMA_8B, 3000, Machine((CPU,), limit), held)
        assert held + share.bytes <= limit or share.heads == 1
        found.append((share.workers, share.heads))
    assert found[0] == (4, 32)
    assert found == sorted(found, reverse=True) and len(set(found)) > 3
    assert head_bytes(LLAMA_8B, 3000) < 20 * 10**6


@pytest.mark.parametrize(("cores", "expected"), [(1, 2), (3, 3), (32, 8)])
def test_gpus_share_the_layers_in_work(cores: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "cores", cores)
    _, _, vocabulary = random_problem(0)
    gpus = tuple(torch.device("cuda", i) for i in range(2))
    machine = Machine(gpus, 64 * GB)
    workers = workers_for(vocabulary, machine, shares(LLAMA_8B, 3000, machine, 0))
    assert [worker.vocabulary.device.index for worker in workers] == [i % 2 for i in range(expected)]
    assert len({id(worker.vocabulary) for worker in workers}) == 2  # one copy on each
    assert all(worker.vocabulary.rows is vocabulary.rows for worker in workers)


def layers(n: int, fails_at: int | None = None) -> Iterator[tuple[int, LayerInputs]]:
    for seed in range(n):
        if seed == fails_at:
            raise HeadatlasError("no more")
        _, inputs, _ = random_problem(7)
        yield seed, replace(inputs, states=inputs.states + seed)


@pytest.mark.parametrize("n_workers", [1, 3])
@pytest.mark.parametrize("heads", [1, 4])
def test_every_layer_once_and_exact(n_workers: int, heads: int) -> None:
    layout, _, vocabulary = random_problem(7)
    workers = workers_for(vocabulary, Machine((CPU,), GB), Shares(n_workers, heads, 0))
    stats, threads, turn = Stats(), torch.get_num_threads(), sys.getswitchinterval()
    found = dict(rank_here(layout, workers, layers(5), ceiling=32, stats=stats))
    assert sorted(found) == list(range(5)) and stats.products > 0 and "screening" in stats.seconds
    assert (torch.get_num_threads(), sys.getswitchinterval()) == (threads, turn)
    for layer, inputs in layers(5):
        expected = oracle.brute_force_layer(layout, inputs, vocabulary, ceiling=32)
        for field in fields(expected):
            np.testing.assert_array_equal(getattr(found[layer], field.name), getattr(expected, field.name))


def test_layers_with_the_same_control_rank_it_once() -> None:
    layout, inputs, vocabulary = random_problem(7)
    workers = workers_for(vocabulary, Machine((CPU,), GB), Shares(1, 4, 0))
    rows = []
    for same in (True, False):
        stats = Stats()
        other = inputs.control_states if same else inputs.control_states.clone()
        given = iter([(0, inputs), (1, replace(inputs, control_states=other))])
        found = dict(rank_here(layout, workers, given, ceiling=32, stats=stats))
        np.testing.assert_array_equal(found[0].control, found[1].control)
        rows.append(stats.rows)
    assert rows[0] < rows[1]


def test_what_is_in_work_is_kept_when_reading_fails() -> None:
    layout, _, vocabulary = random_problem(7)
    workers = workers_for(vocabulary, Machine((CPU,), GB), Shares(2, 4, 0))
    kept = []
    with pytest.raises(HeadatlasError, match="no more"):
        for layer, _ in rank_here(layout, workers, layers(5, fails_at=2), ceiling=32, stats=Stats()):
            kept.append(layer)
    assert sorted(kept) == [0, 1]


def test_layers_that_are_done_come_before_an_error() -> None:
    ranks = object()
    failed: Future[Any] = Future()
    failed.set_exception(HeadatlasError("no more"))
    done: Future[Any] = Future()
    done.set_result((ranks, Stats()))
    kept = []
    with pytest.raises(HeadatlasError, match="no more"):
        for layer, _ in side_by_side._delivered({failed: 0, done: 1}, [failed, done], Stats()):
            kept.append(layer)
    assert kept == [1]


@pytest.mark.parametrize(("worth", "expected"), [(0, 4), (plan.WORTH_TRIMMING, 0)])
def test_large_layers_give_back_what_they_freed(
    worth: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each of them; small ones keep it."""
    trimmed: list[None] = []
    monkeypatch.setattr(plan, "WORTH_TRIMMING", worth)
    monkeypatch.setattr(side_by_side, "trim_heap", lambda: trimmed.append(None))
    layout, _, vocabulary = random_problem(0)
    workers = workers_for(vocabulary, Machine((CPU,), 64 * GB), Shares(2, 4, 0))
    done = list(rank_here(layout, workers, layers(4), ceiling=32, stats=Stats()))
    assert len(done) == 4 and len(trimmed) == expected
    assert head_bytes(LLAMA_8B, 3000) * LLAMA_8B.n_heads > plan.WORTH_TRIMMING
