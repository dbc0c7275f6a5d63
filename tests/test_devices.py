"""Devices by name, and products that lose nothing beyond float32."""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable, Iterator

import psutil
import pytest
import torch

from headatlas.devices import free_memory, pick_device, share_cores, strict_products, trim_heap
from headatlas.errors import HeadatlasError

MATMULS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch, no_gpu: None) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_there_is_the_cpu() -> None:
    for name in ("auto", "cpu", "cpu:0", torch.device("cpu")):
        assert pick_device(name) == torch.zeros(1).device
    with pytest.raises(HeadatlasError, match=r"`device=cuda`: this machine has no GPU for CUDA.*use auto or"):
        pick_device("cuda")
    with pytest.raises(HeadatlasError, match="`device=mps`: this machine has no GPU for MPS"):
        pick_device("mps")


@pytest.mark.usefixtures("two_gpus")
def test_gpus_are_numbered() -> None:
    assert pick_device() == pick_device("cuda") == torch.device("cuda", 1)
    assert pick_device("cuda:0") == torch.device("cuda", 0)
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(
        HeadatlasError, match=r"`device=cuda:2`: this machine has 2 GPU for CUDA \(numbered from 0\)"
    ):
        pick_device("cuda:2")


@pytest.mark.usefixtures("apple")
def test_an_apple_gpu_is_found() -> None:
    assert pick_device("auto") == pick_device("mps") == torch.device("mps", 0)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:-1", "", "meta", "xpu"])
def test_names_that_mean_nothing(name: str) -> None:
    with pytest.raises(HeadatlasError, match=rf"`device={name}`: there is no such device; use auto, cpu"):
        pick_device(name)


def test_what_threads_freed_goes_back_to_the_system() -> None:
    """Blocks smaller than glibc maps alone stay in the heap of their thread while a later one is in use."""
    process, last = psutil.Process(), []

    def work() -> None:
        blocks = [torch.ones(25_000) for _ in range(3000)]
        last.append(blocks.pop())

    trim_heap()  # else the thread is given what earlier tests freed, and the process does not grow
    before = process.memory_info().rss
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    kept = process.memory_info().rss - before
    glibc = platform.libc_ver()[0] == "glibc"
    assert trim_heap() is glibc
    if glibc:
        assert kept > 150e6, "glibc kept it; else this test shows nothing"
        assert process.memory_info().rss - before < 50e6
    assert bool(last[0].all())


def test_memory_that_is_free() -> None:
    assert 0 < free_memory(torch.device("mps", 0)) < free_memory(torch.device("cpu"))


# Strict products --------------------------------------------------------------------------------------


def found() -> list[object]:
    settings: list[object] = [each.fp32_precision for each in MATMULS]
    return [
        *settings,
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        torch.is_autocast_enabled("cpu"),
    ]


@pytest.fixture
def careless() -> Iterator[None]:
    """A caller who allows everything that is fast."""
    before = [each.fp32_precision for each in MATMULS]
    torch.set_float32_matmul_precision("medium")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield
    torch.set_float32_matmul_precision("highest")
    for each, value in zip(MATMULS, before, strict=True):
        each.fp32_precision = value


@pytest.mark.usefixtures("careless")
def test_what_the_caller_allows_is_off_in_the_block_and_back_after_it() -> None:
    before = found()
    assert before == ["tf32", "bf16", True, True]
    strict = ["ieee", "ieee", False, False]
    a = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    with strict_products():
        assert found() == strict
        with strict_products():
            assert found() == strict
        assert found() == strict
        assert (a @ a).dtype == torch.float32
        torch.testing.assert_close((a @ a).double(), a.double() @ a.double(), rtol=0, atol=1e-4)
    assert found() == before
    assert (a @ a).dtype == torch.bfloat16
    with pytest.raises(KeyError), strict_products():
        raise KeyError
    assert found() == before


@pytest.mark.usefixtures("careless")
def test_the_last_thread_puts_the_settings_back() -> None:
    """The first to come is the first to go; the other still works."""
    inside, leave = threading.Event(), threading.Event()
    seen: list[object] = []

    def other() -> None:
        with strict_products():
            inside.set()
            leave.wait(10)
            seen.append(torch.backends.cuda.matmul.fp32_precision)

    thread = threading.Thread(target=other)
    with strict_products():
        thread.start()
        assert inside.wait(10)
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    leave.set()
    thread.join(10)
    assert seen == ["ieee"]
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"


@pytest.fixture
def two_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_cores")
def test_work_goes_side_by_side_each_on_its_share_of_the_cores() -> None:
    """Two wait for each other, so they are in work at a time; rows are counted over all."""
    both, told = threading.Barrier(2, timeout=30), list[int]()

    def work(item: str, tell: Callable[[int], None]) -> tuple[str, int]:
        both.wait()
        tell(3)
        return item.upper(), torch.get_num_threads()

    made = dict(share_cores(work, ["a", "b", "c", "d"], 4, told.append))
    assert made == {item: (item.upper(), 1) for item in "abcd"}
    assert told == [3, 6, 9, 12] and torch.get_num_threads() == 2
    assert list(share_cores(work, [], 4)) == []


@pytest.mark.usefixtures("two_cores")
def test_what_nobody_waits_for_ends_and_errors_arrive() -> None:
    """Of endless work the block is left; nothing that waits is begun."""
    begun, ended = [], threading.Event()

    def work(item: int, tell: Callable[[int], None]) -> None:
        begun.append(item)
        if item == 0:
            raise ValueError("this one")
        try:
            while True:
                tell(1)
        finally:
            ended.set()

    with pytest.raises(ValueError, match="this one"):
        list(share_cores(work, range(9), 2))
    assert ended.is_set() and set(begun) <= {0, 1, 2}
