"""Relations per head, against scipy's Poisson-binomial and brute-force shuffles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from headatlas.arrangement import structure
from headatlas.arrangement.model_structure import called_cells, count_per_head, poisson_binomial
from tests.figures.planted import Plant, plant_atlas


def random_calls(seed: int, shape: tuple[int, int, int] = (6, 8, 10)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.random(shape) < rng.random((shape[0], 1, shape[2])) * 0.5


@pytest.mark.parametrize("p", [[], [0.3], [0.0, 1.0, 0.5], [0.1, 0.2, 0.7, 0.9]])
def test_poisson_binomial_equals_scipys(p: list[float]) -> None:
    found = poisson_binomial(np.array(p))
    expected = stats.poisson_binom.pmf(np.arange(len(p) + 1), p) if p else [1.0]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_expected_counts_equal_the_mean_of_shuffles() -> None:
    calls = random_calls(0)
    found = count_per_head(calls)
    rng = np.random.default_rng(1)
    mean = np.zeros(calls.shape[2] + 1)
    for _ in range(2000):
        shuffled = rng.permuted(calls, axis=1)
        mean += np.bincount(shuffled.sum(axis=2).ravel(), minlength=len(mean)) / 2000
    top = len(found.observed) - 1
    np.testing.assert_allclose(found.expected[:top], mean[:top], atol=0.25)
    assert found.expected[top] == pytest.approx(mean[top:].sum(), abs=0.25)
    assert sum(found.observed) == found.n_heads == 48
    assert sum(found.expected) == pytest.approx(48)


def test_calls_dealt_at_random_give_uniform_p() -> None:
    found = [count_per_head(random_calls(seed), resamples=199) for seed in range(60)]
    assert stats.kstest([each.p for each in found], "uniform").pvalue > 0.01
    assert np.mean([each.dispersion for each in found]) == pytest.approx(1.0, abs=0.1)


def test_relations_that_gather_are_found() -> None:
    calls = np.zeros((4, 8, 6), dtype=bool)
    calls[:, 0, :] = True
    found = count_per_head(calls)
    assert found.observed == (28, 0, 0, 0, 0, 0, 4)
    assert found.dispersion is not None and found.dispersion == pytest.approx(6.0)
    assert found.p == pytest.approx(1 / 2000)


def test_nothing_to_deal_has_no_p() -> None:
    found = count_per_head(np.zeros((2, 4, 3), dtype=bool))
    assert (found.observed, found.dispersion, found.p) == ((8,), None, None)


def test_cells_are_those_that_are_called(tmp_path: Path) -> None:
    plants = [
        Plant(2, 1, "country_to_capital"),
        Plant(2, 1, "english_to_french", sign="suppression"),
        Plant(5, 3, "verb_to_past_tense", hits=20),
    ]
    atlas = plant_atlas(tmp_path / "a.zarr", plants, mapped=[0, 2, 5])
    cells = called_cells(atlas)
    assert cells.shape == (3, 4, 4)
    assert cells.sum(axis=2).tolist() == [[0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]]
    found = structure(atlas).per_head
    assert found is not None and found.observed == (10, 1, 1)
    assert structure(plant_atlas(tmp_path / "b.zarr", [], mapped=[])).per_head is None
