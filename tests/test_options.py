"""The choices people make: presets of the paper, amounts of memory, layers, and what is refused."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, asdict
from typing import Any

import numpy as np
import pytest

from headatlas.errors import HeadatlasError
from headatlas.options import (
    CEILING,
    FLOOR,
    PRESETS,
    AblationChoices,
    Compute,
    Thresholds,
    layers_asked,
    memory_of,
    preset,
)


def test_presets_are_those_of_the_specification() -> None:
    assert set(PRESETS) == {"default", "maps-paper", "maps-paper-llama3"}
    ours = preset("default")
    assert (ours.lens, ours.mask, ours.thresholds) == ("neutral", True, Thresholds())
    for name, k, k_copy in (("maps-paper", 10, 1), ("maps-paper-llama3", 25, 3)):
        papers = preset(name)
        assert (papers.lens, papers.mask) == ("maps", False)
        assert papers.thresholds == Thresholds.preset(name) == Thresholds(k, k_copy, criterion="tau")


def test_defaults_are_those_of_the_specification() -> None:
    assert Thresholds() == Thresholds(10, 1, 0.15, 0.01, "calibrated")
    assert (CEILING, FLOOR) == (32, 0.03)


def test_changed_leaves_out_what_is_none_and_the_original() -> None:
    base = Thresholds.preset("maps-paper-llama3")
    assert base.changed() == base == base.changed(k=None, tau=None)
    assert base.changed(k=5) == Thresholds(5, 3, criterion="tau")
    assert (base.k_for(copying=True), base.k_for(copying=False)) == (3, 25)
    with pytest.raises(HeadatlasError, match="no threshold 'kk'; use k, k_copy"):
        base.changed(kk=3)
    with pytest.raises(FrozenInstanceError):
        base.k = 3  # type: ignore[misc]


def test_the_criterion_is_always_said() -> None:
    assert Thresholds().describe() == "k = 10 (copying 1), score ≥ 0.15 and q ≤ 0.01"
    assert Thresholds(tau=0.3, criterion="tau").describe() == "k = 10 (copying 1), score ≥ 0.3"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 0}, r"`k` is 0: it must be at least 1\."),
        ({"k": -4}, r"`k` is -4: it must be at least 1\."),
        ({"k_copy": 0}, r"`k_copy` is 0: it must be at least 1\."),
        ({"k": 300}, r"`k` is 300: it must be at most 250\."),
        ({"k": 2.5}, r"`k` is 2\.5: it must be a whole number\."),
        ({"k": "5"}, r"`k` is '5': it must be a whole number\."),
        ({"k": True}, r"`k` is True: it must be a whole number\."),
        ({"tau": -0.1}, r"`tau` is -0\.1: it must lie between 0 and 1\."),
        ({"tau": 1.5}, r"`tau` is 1\.5: it must lie between 0 and 1\."),
        ({"tau": float("nan")}, r"`tau` is nan: it must lie between 0 and 1\."),
        ({"tau": "high"}, r"`tau` is 'high': it must be a number\."),
        ({"q_max": 2.0}, r"`q_max` is 2\.0: it must lie between 0 and 1\."),
        ({"q_max": float("inf")}, r"`q_max` is inf: it must lie between 0 and 1\."),
        ({"criterion": "paper"}, r"`criterion` is 'paper': use 'calibrated' or 'tau'\."),
    ],
)
def test_bad_values_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HeadatlasError, match=f"^{message}$"):
        Thresholds(**changes)


def test_k_stays_below_the_ceiling() -> None:
    Thresholds(k=32, k_copy=32).check(32)
    with pytest.raises(HeadatlasError, match=r"^`k` is 33, above the ceiling 32 .* with `ceiling=33`\.$"):
        Thresholds(k=33).check(32)
    with pytest.raises(HeadatlasError, match=r"^`k_copy` is 40, above the ceiling 32 .*`ceiling=40`\.$"):
        Thresholds(k_copy=40).check(32)


@pytest.mark.parametrize("changes", [{"k": 1}, {"k": 250}, {"tau": 0.0}, {"tau": 1}, {"q_max": 1.0}])
def test_the_edges_are_allowed(changes: dict[str, Any]) -> None:
    assert Thresholds(**changes)


def test_a_preset_that_does_not_exist() -> None:
    with pytest.raises(
        HeadatlasError, match=r"no preset 'bogus'; use one of default, maps-paper, maps-paper-ll"
    ):
        Thresholds.preset("bogus")


def test_numbers_of_numpy_become_plain() -> None:
    changed = Thresholds().changed(k=np.int64(5), tau=np.float32(0.5))
    assert json.loads(json.dumps(asdict(changed)))["k"] == 5
    assert changed == Thresholds(5, tau=0.5)


@pytest.mark.parametrize(
    ("amount", "n_bytes"),
    [
        ("6GB", 6_000_000_000),
        ("6 gb", 6_000_000_000),
        ("1.5GiB", 3 << 29),
        ("800MB", 800_000_000),
        ("6e9", 6_000_000_000),
        ("2000000", 2_000_000),
        (3 << 30, 3 << 30),
        ("1T", 10**12),
    ],
)
def test_amounts_of_memory(amount: str | int, n_bytes: int) -> None:
    assert memory_of(amount) == n_bytes == Compute(max_memory=amount).memory


@pytest.mark.parametrize("amount", ["", "much", "GB", "6XB", "-6GB", "0", "1..5GB", "nanGB", "6GBs"])
def test_what_is_no_amount(amount: str) -> None:
    with pytest.raises(HeadatlasError, match="not an amount of memory; write it like 6GB"):
        Compute(max_memory=amount)


def test_a_forgotten_unit_is_said() -> None:
    with pytest.raises(
        HeadatlasError, match=r"^`max_memory` 6: 6 bytes are too few; write it like 6GB or 800MB\.$"
    ):
        Compute(max_memory="6")


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12", "mps"])
def test_devices_that_may_be_there(device: str) -> None:
    assert Compute(device=device).device == device


@pytest.mark.parametrize("device", ["", "gpu", "cuda:", "cuda:x", "cpu:0", "CUDA"])
def test_devices_that_cannot_be(device: str) -> None:
    with pytest.raises(HeadatlasError, match=r"^`device` is .*: use auto, cpu, cuda, cuda:N or mps\.$"):
        Compute(device=device)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, [0, 1, 2, 3, 4, 5]),
        ("2-4", [2, 3, 4]),
        (" 2 - 4 ", [2, 3, 4]),
        ("5", [5]),
        (3, [3]),
        (range(1, 3), [1, 2]),
        (slice(4, None), [4, 5]),
        (slice(None, None, 2), [0, 2, 4]),
        ([4, 1, 4], [1, 4]),
        (np.array([0, 5]), [0, 5]),
        ({np.int64(2)}, [2]),
    ],
)
def test_layers(layers: Any, expected: list[int]) -> None:
    assert layers_asked(layers, 6) == expected


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("4-2", r"`layers` is '4-2': 2 comes before 4; write 2-4\."),
        ("a-b", "write A-B, for example 0-15"),
        ("", "write A-B"),
        ("1-", "write A-B"),
        ("-1", "write A-B"),
        ("5-6", "the model has layers 0 to 5"),
        (6, "the model has layers 0 to 5"),
        (-1, "the model has layers 0 to 5"),
        (range(0), "that is no layer"),
        (slice(9, 12), "that is no layer"),
        ([], "that is no layer"),
        ([1.5], "give A-B, a layer, a range, a slice or a list"),
        (True, "give A-B, a layer, a range, a slice or a list"),
        (2.0, "give A-B, a layer, a range, a slice or a list"),
    ],
)
def test_layers_that_mean_nothing(layers: Any, message: str) -> None:
    with pytest.raises(HeadatlasError, match=message):
        layers_asked(layers, 6)


@pytest.mark.parametrize(
    ("choices", "option"),
    [
        ({"shots": -1}, "`shots` is -1"),
        ({"max_heads": 0}, "`max_heads` is 0"),
        ({"sources": 5}, "`sources` is 5"),
        ({"draws": 0}, "`draws` is 0"),
        ({"method": "resample"}, "no method 'resample'"),
    ],
)
def test_choices_that_make_no_sense(choices: dict[str, Any], option: str) -> None:
    with pytest.raises(HeadatlasError, match=option):
        AblationChoices(**choices)
