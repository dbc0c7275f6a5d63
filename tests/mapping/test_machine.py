"""The speed of the machine: kept by processor and torch, else measured; times the cores in use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from headatlas.mapping import bounds, machine
from headatlas.mapping.machine import MEASUREMENTS, Rates

CPU = torch.device("cpu")


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder for what is kept."""
    monkeypatch.setenv("HEADATLAS_CACHE", str(tmp_path))
    machine._kept.cache_clear()
    yield tmp_path / "rates"
    machine._kept.cache_clear()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Rates]:
    """What measurements of one core come to, in order; those that were made are taken away."""
    torch.set_num_threads(1)
    coming = [Rates(float(i), 30.0 - i, 5.0) for i in range(1, 20)]
    monkeypatch.setattr(machine, "measure", lambda _: coming.pop(0))
    return coming


def another_process() -> Rates:
    machine._kept.cache_clear()
    return machine.rates(CPU)


def test_the_best_of_the_first_processes_is_kept(cached: Path, measured: list[Rates]) -> None:
    assert machine.rates(CPU) == machine.rates(CPU) == Rates(1.0, 29.0, 5.0) and len(measured) == 18
    found = [another_process() for _ in range(MEASUREMENTS + 3)]
    assert found[-1] == Rates(float(MEASUREMENTS), 29.0, 5.0) and len(measured) == 19 - MEASUREMENTS
    assert len(list(cached.iterdir())) == 1


def test_torch_and_processor_have_rates_of_their_own(
    cached: Path, measured: list[Rates], monkeypatch: pytest.MonkeyPatch
) -> None:
    another_process()
    monkeypatch.setattr(torch, "__version__", "9.9")
    another_process()
    monkeypatch.setattr(machine, "_name", lambda _: "another processor")
    assert another_process() == Rates(3.0, 27.0, 5.0)
    assert len(list(cached.iterdir())) == 3 and len(measured) == 16


def test_cores_multiply_and_share_their_memory(
    cached: Path, measured: list[Rates], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert machine.rates(CPU) == Rates(6.0, 6 * 29.0, 5.0)
    assert len(measured) == 18


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"of": 1}', "zero", "NaN", "of another"])
def test_what_is_not_understood_is_measured_again(damage: str, cached: Path, measured: list[Rates]) -> None:
    machine.rates(CPU)
    file = next(cached.iterdir())
    stored = json.loads(file.read_text())
    changes = {"zero": {"memory": 0}, "NaN": {"float32": float("nan")}, "of another": {"of": ["x"]}}
    file.write_text(json.dumps(stored | changes[damage]) if damage in changes else damage)
    assert another_process() == Rates(2.0, 28.0, 5.0)
    assert json.loads(file.read_text())["times"] == 1


def test_a_cache_that_cannot_be_written_does_no_harm(
    tmp_path: Path, measured: list[Rates], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HEADATLAS_CACHE", str(tmp_path / "file"))
    assert another_process() == Rates(1.0, 29.0, 5.0)
    machine._kept.cache_clear()


def test_a_measurement_is_of_this_machine(cached: Path) -> None:
    torch.set_num_threads(2)
    found = machine.measure(CPU)
    assert torch.get_num_threads() == 2
    assert all(rate > 1e6 for rate in (found.float32, found.bfloat16, found.memory))


@pytest.mark.parametrize(("half", "pays"), [(1.9, False), (2.1, True)])
def test_bounds_are_made_of_what_multiplies_faster(
    half: float, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "rates", lambda _: Rates(1.0, half, 1.0))
    assert bounds.bfloat16_pays(CPU) is pays
    assert bounds.bfloat16_pays(torch.device("cuda", 0)) and not bounds.bfloat16_pays(torch.device("mps"))
