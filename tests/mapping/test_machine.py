"""The speed of the machine: measured once, times the cores in use."""

from __future__ import annotations

import pytest
import torch

from headatlas.mapping import bounds, machine
from headatlas.mapping.machine import Rates

CPU = torch.device("cpu")


def test_cores_multiply_and_share_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "measured", lambda _: Rates(1.0, 29.0, 5.0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert machine.rates(CPU) == Rates(6.0, 6 * 29.0, 5.0)
    assert machine.rates(torch.device("cuda", 0)) == Rates(1.0, 29.0, 5.0)


def test_a_measurement_is_of_this_machine_and_made_once() -> None:
    torch.set_num_threads(2)
    machine.measured.cache_clear()
    found = machine.measured(CPU)
    assert torch.get_num_threads() == 2
    assert all(rate > 1e6 for rate in (found.float32, found.bfloat16, found.memory))
    assert machine.measured(CPU) is found


@pytest.mark.parametrize(("half", "pays"), [(1.9, False), (2.1, True)])
def test_bounds_are_made_of_what_multiplies_faster(
    half: float, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "rates", lambda _: Rates(1.0, half, 1.0))
    assert bounds.bfloat16_pays(CPU) is pays
    assert bounds.bfloat16_pays(torch.device("cuda", 0)) and not bounds.bfloat16_pays(torch.device("mps"))
