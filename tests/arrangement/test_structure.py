"""The structure of an atlas: likeness in groups, relations per head, depth; against scipy and brute force."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from headatlas.arrangement import model_structure as module
from headatlas.arrangement import structure
from headatlas.arrangement.model_structure import (
    called_cells,
    chi_square_tail,
    compare_depths,
    cosines,
    count_per_head,
    group_likeness,
    holm,
    kruskal_wallis,
    likeness_of,
    mann_whitney,
    poisson_binomial,
    quartiles,
    score_vectors,
    shortest_band,
    why_no_groups,
)
from headatlas.atlas import Atlas
from headatlas.figures import describe
from headatlas.figures.structure import draw_structure
from tests.cli.conftest import Run, parsed, run  # noqa: F401 (a fixture)
from tests.figures.planted import Plant, Spec, plant_atlas
from tests.synthetic import make_atlas

PLANTS = [
    Plant(layer, head, "country_to_capital", hits=30)
    for layer, head in ((1, 0), (2, 0), (2, 1), (3, 2), (4, 2))
]
PLANTS += [Plant(layer, 3, "word_to_first_letter", hits=30) for layer in range(1, 6)]
SPECS = (Spec("country → capital", "Knowledge", multi=4), Spec("word → first letter", "Algorithmic"))


@pytest.fixture
def planted(tmp_path: Path) -> Atlas:
    return with_groups(plant_atlas(tmp_path / "planted.zarr", PLANTS, specs=SPECS), 2)


def test_a_structure_says_what_it_holds(planted: Atlas) -> None:
    found = structure(planted)
    lines = repr(found).splitlines()
    assert len(lines) < 20 and max(map(len, lines)) < 120
    assert "  Algorithmic: 5 heads, median layer 3, quartiles 2 to 4" in lines
    assert f"  of {planted.n_layers * planted.n_heads} heads " in repr(found)
    assert f"  signed: within {found.groups[0].within:.2f}, " in repr(found)


def test_depth_and_its_test_are_those_of_the_description(planted: Atlas) -> None:
    found = structure(planted)
    rows = {row.category: row for row in found.depths.categories}
    assert rows["Knowledge"].layers == (1, 2, 2, 3, 4)
    row = rows["Algorithmic"]
    assert (row.lower_quartile, row.median, row.upper_quartile) == (2, 3, 4)
    assert found.depths.comparison is not None
    assert f"H = {found.depths.comparison.h:.1f}" in describe(planted)
    assert found.depths_single is not None


def test_json_is_plain(planted: Atlas) -> None:
    found = json.loads(json.dumps(structure(planted).to_dict(), allow_nan=False))
    assert list(found) == ["groups", "no_groups", "per_head", "depths", "depths_single"]
    assert found["per_head"]["observed"] == [14, 10]


@pytest.mark.parametrize("width_mm", [60.0, 170.0])
@pytest.mark.parametrize("kind", ["planted", "blank", "unmapped"])
def test_the_figure_says_what_was_found(kind: str, width_mm: float, planted: Atlas, tmp_path: Path) -> None:
    atlas = {
        "planted": lambda: planted,
        "blank": lambda: plant_atlas(tmp_path / "blank.zarr", []),
        "unmapped": lambda: plant_atlas(tmp_path / "none.zarr", [], mapped=[]),
    }[kind]()
    figure = draw_structure(atlas, structure(atlas), width_mm)
    words = " ".join(text.get_text() for text in figure.texts).replace("\u00a0", " ")
    assert "lens neutral" in words
    assert len(figure.axes) == 3
    assert "Kruskal–Wallis" not in words, "results stand in the text"
    assert ("Kruskal–Wallis" in figure.description) == (kind == "planted")
    figure.savefig(tmp_path / "figure.svg")
    assert figure.get_figwidth() * 25.4 == pytest.approx(width_mm)


def test_command_structure(run: Run, tmp_path: Path) -> None:  # noqa: F811
    make_atlas(tmp_path / "out" / "atlas.zarr", 4, 3)
    text = run("structure", tmp_path / "out", "-o", tmp_path / "figure.svg").stdout
    assert "Relations per head" in text and "Kruskal–Wallis" in text
    assert (tmp_path / "figure.svg").is_file()
    found = parsed(run("structure", tmp_path / "out", "--json", "--tau", 0.5))
    assert found["model"] == "Synthetic-1M" and found["thresholds"]["tau"] == 0.5
    assert "a figure can be" in run("structure", tmp_path / "out", "-o", "x.gif", code=2).stderr


def test_command_compare(run: Run, tmp_path: Path) -> None:  # noqa: F811
    for seed in (0, 1):
        make_atlas(tmp_path / str(seed) / "atlas.zarr", 4, 3, seed=seed)
    folders = [tmp_path / "0", tmp_path / "1"]
    result = run("compare", *folders, "-o", tmp_path / "figure.png")
    assert "Spearman" in result.stdout and "not compared: year_to_following" in result.stderr
    assert (tmp_path / "figure.png").is_file()
    found = parsed(run("compare", *folders, "--json"))
    assert len(found["rows"]) == 2 * 19
    assert {row["atlas"] for row in found["rows"]} == {each["atlas"] for each in found["atlases"]}
    assert "at least two" in run("compare", folders[0], code=2).stderr


# Likeness within key/value groups, against scipy's permutation test and planted groups --------------


GROUPS = np.repeat([0, 1, 2], 3)


def with_groups(atlas: Atlas, n_groups: int | None) -> Atlas:
    model = {**atlas.provenance["model"], "dims": {"n_kv_heads": n_groups}}
    return Atlas(atlas.dataset, {**atlas.provenance, "model": model}, atlas.thresholds)


def alike(strength: float, seed: int, n_layers: int = 8) -> np.ndarray:
    """[layers, 9, 12] non-negative vectors; heads of a group share a part."""
    rng = np.random.default_rng(seed)
    shared = rng.random((n_layers, 3, 12))[:, GROUPS]
    return strength * shared + (1 - strength) * rng.random((n_layers, 9, 12))


def test_p_of_one_layer_equals_scipys() -> None:
    vectors = alike(0.3, 3, n_layers=1)
    cosine = cosines(vectors[0])
    above = np.triu_indices(9, k=1)

    def difference(labels: np.ndarray) -> float:
        same = labels[above[0]] == labels[above[1]]
        return float(cosine[above][same].mean() - cosine[above][~same].mean())

    found = likeness_of("unsigned", vectors, GROUPS)
    assert found is not None
    expected = stats.permutation_test(
        (GROUPS,), difference, permutation_type="pairings", n_resamples=9_999, random_state=1
    )
    assert found.difference == pytest.approx(expected.statistic)
    assert 0.01 < expected.pvalue < 0.5
    assert found.p == pytest.approx(expected.pvalue, abs=0.03)


def test_planted_likeness_is_found_and_its_interval_holds_it() -> None:
    found = likeness_of("unsigned", alike(0.6, 0), GROUPS)
    assert found is not None and found.low is not None and found.high is not None
    assert found.p == pytest.approx(2 / 10_000)
    assert 0 < found.low < found.difference < found.high
    assert found.difference == pytest.approx(found.within - found.between)
    assert (found.n_within, found.n_between) == (8 * 9, 8 * 27)


def test_no_likeness_gives_uniform_p() -> None:
    p = []
    for seed in range(60):
        found = likeness_of("unsigned", alike(0.0, seed, n_layers=3), GROUPS, resamples=199)
        assert found is not None
        p.append(found.p)
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_opposed_heads_are_alike_only_without_the_sign() -> None:
    vectors = alike(0.9, 1)
    vectors[:, 1::3] *= -1
    signed = likeness_of("signed", vectors, GROUPS)
    unsigned = likeness_of("unsigned", np.abs(vectors), GROUPS)
    assert signed is not None and unsigned is not None
    assert signed.within < 0 < unsigned.within
    assert unsigned.p < 0.01


def test_depth_alone_makes_no_likeness() -> None:
    # Heads of a layer are all alike, those of another layer are not: nothing about groups.
    rng = np.random.default_rng(0)
    vectors = rng.random((6, 1, 12)) + 0.01 * rng.random((6, 9, 12))
    found = likeness_of("unsigned", vectors, GROUPS)
    assert found is not None
    assert abs(found.difference) < 0.01


def test_heads_without_scores_and_unmapped_layers_are_left_out() -> None:
    vectors = alike(0.5, 2)
    vectors[0] = np.nan
    vectors[1, :8] = 0.0
    vectors[2, 2:] = 0.0  # two heads of one group: no pair of different groups
    found = likeness_of("unsigned", vectors, GROUPS)
    assert found is not None
    assert [layer.layer for layer in found.by_layer] == [3, 4, 5, 6, 7]
    assert likeness_of("unsigned", np.zeros((2, 9, 3)), GROUPS) is None


def test_the_interval_is_that_of_scipy() -> None:
    rng = np.random.default_rng(3)
    differences, weight = rng.normal(size=30), rng.random(30) + 0.1

    def weighted(values: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray((values * weights).sum(axis=axis) / weights.sum(axis=axis))

    found = stats.bootstrap(
        (differences, weight), weighted, paired=True, n_resamples=999, method="percentile", random_state=0
    )
    interval = found.confidence_interval
    assert module._interval(differences, weight, 999) == pytest.approx((interval.low, interval.high))


def test_two_layers_have_no_interval() -> None:
    found = likeness_of("unsigned", alike(0.5, 2, n_layers=2), GROUPS)
    assert found is not None
    assert (found.low, found.high) == (None, None)


def test_score_vectors_come_from_the_atlas(tmp_path: Path) -> None:
    atlas = with_groups(make_atlas(tmp_path / "a.zarr", 4, 4, layers=range(3)), 2)
    table = atlas.table().set_index(["layer", "head", "relation"])
    names = list(atlas.relation_scores)
    row = table.loc[(1, 2, names[3])]
    floor = [0.0 if value < module.FLOOR else value for value in (row["score"], row["suppression"])]
    assert score_vectors(atlas, "signed")[1, 2, 3] == pytest.approx(floor[0] - floor[1])
    assert score_vectors(atlas, "unsigned")[1, 2, 3] == pytest.approx(max(floor))
    found = group_likeness(atlas)
    assert [each.measure for each in found] == ["signed", "unsigned"]
    assert {layer.layer for each in found for layer in each.by_layer} <= {0, 1, 2}


@pytest.mark.parametrize(
    ("n_groups", "why"), [(1, "share one"), (4, "no groups"), (None, "does not say"), (2, None)]
)
def test_where_there_is_nothing_to_compare(tmp_path: Path, n_groups: int | None, why: str | None) -> None:
    atlas = with_groups(make_atlas(tmp_path / "a.zarr", 3, 4), n_groups)
    reason = why_no_groups(atlas)
    assert (reason is None) == (why is None)
    assert why is None or (reason is not None and why in reason)
    assert bool(group_likeness(atlas)) == (why is None)


# Relations per head, against scipy's Poisson-binomial and brute-force shuffles ----------------------


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
    np.testing.assert_allclose(found.expected_counts[:top], mean[:top], atol=0.25)
    assert found.expected_counts[top] == pytest.approx(mean[top:].sum(), abs=0.25)
    assert sum(found.observed) == found.n_heads == 48
    assert sum(found.expected_counts) == pytest.approx(48)


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


# The small statistics, against brute force and scipy's own corrections ------------------------------


@given(st.lists(st.integers(0, 12), min_size=1, max_size=30), st.sampled_from([0.5, 0.8, 1.0]))
def test_no_shorter_band_holds_as_much(values: list[int], share: float) -> None:
    found = shortest_band(np.array(values), share)
    inside = sum(found.first <= value <= found.last for value in values)
    assert found.inside == inside
    assert inside >= share * len(values) - 1e-9
    for first, last in product(range(13), repeat=2):
        held = sum(first <= value <= last for value in values)
        if held >= share * len(values) - 1e-9 and last >= first:
            assert (found.last - found.first, -found.inside) <= (last - first, -held)


def test_half_of_two_clusters_is_the_denser_one() -> None:
    band = shortest_band(np.array([1, 4, 8, 20, 20, 21, 21, 21]), 0.5)
    assert (band.first, band.last, band.inside) == (20, 21, 5)


def test_quartiles() -> None:
    assert quartiles(np.array([1, 2, 3, 4])) == (1.75, 2.5, 3.25)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_separate_groups_have_the_largest_effect() -> None:
    groups = {"early": np.arange(6), "late": np.arange(10, 16), "few": np.array([3])}
    found = compare_depths(groups)
    assert found is not None
    assert found.sizes == {"early": 6, "late": 6}
    assert found.pairs[0].r == -1.0
    h, p = stats.kruskal(groups["early"], groups["late"])
    assert (found.h, found.p) == (pytest.approx(h), pytest.approx(p))
    assert found.epsilon2 == pytest.approx(h * (12 + 1) / (12**2 - 1))


def test_rank_biserial_is_the_difference_of_favourable_pairs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 11), rng.integers(2, 12, 7)
    found = compare_depths({"a": a, "b": b})
    assert found is not None
    assert found.pairs[0].r == pytest.approx(float(np.sign(a[:, None] - b[None, :]).mean()))


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 12])
@pytest.mark.parametrize("x", [0.0, 0.3, 2.0, 11.0, 80.0])
def test_chi_square_tail_is_scipys(x: float, degrees: int) -> None:
    assert chi_square_tail(x, degrees) == pytest.approx(float(stats.chi2.sf(x, degrees)), rel=1e-12)


@given(st.lists(st.lists(st.integers(0, 40), min_size=5, max_size=20), min_size=2, max_size=5))
def test_tests_are_scipys(lists: list[list[int]]) -> None:
    groups = [np.array(values) for values in lists]
    if len(np.unique(np.concatenate(groups))) == 1:
        return
    assert kruskal_wallis(groups) == pytest.approx(tuple(stats.kruskal(*groups)), rel=1e-9, abs=1e-12)
    found = stats.mannwhitneyu(groups[0], groups[1])
    effect = 2 * found.statistic / (len(groups[0]) * len(groups[1])) - 1
    assert mann_whitney(groups[0], groups[1]) == pytest.approx((found.pvalue, effect), rel=1e-9)


@pytest.mark.parametrize("sizes", [(5, 6), (8, 30), (9, 9)])
def test_untied_groups_are_tested_as_scipy_does(sizes: tuple[int, int]) -> None:
    values = np.random.default_rng(1).permutation(sum(sizes))
    first, second = values[: sizes[0]], values[sizes[0] :]
    assert mann_whitney(first, second)[0] == pytest.approx(float(stats.mannwhitneyu(first, second).pvalue))


@pytest.mark.parametrize(
    "groups",
    [
        {"a": np.zeros(9, int), "b": np.zeros(9, int)},
        {"a": np.arange(9)},
        {"a": np.arange(9), "b": np.arange(4)},
    ],
)
def test_nothing_to_compare(groups: dict[str, np.ndarray]) -> None:
    assert compare_depths(groups) is None
