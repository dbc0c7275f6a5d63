"""The same relation in several atlases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from headatlas.arrangement import compare
from headatlas.arrangement.comparison import labels_of, permutation_spearman
from headatlas.atlas import Atlas
from headatlas.errors import HeadatlasError
from headatlas.figures import save
from headatlas.figures.compare import MARKS, draw_comparison
from tests.figures.planted import FOUR, Plant, Spec, plant_atlas
from tests.synthetic import make_atlas


def test_best_head_depth_and_count_of_each_relation(tmp_path: Path) -> None:
    small = plant_atlas(
        tmp_path / "a.zarr", [Plant(2, 1, "country_to_capital", 30), Plant(4, 0, "country_to_capital", 20)]
    )
    large = plant_atlas(
        tmp_path / "b.zarr", [Plant(9, 3, "country_to_capital", 10)], n_layers=11, lens="maps", control=0.0
    )
    found = compare(small, large)
    assert found.labels == ("Planted (neutral)", "Planted (maps)")
    rows = found.table[found.table["relation"] == "country_to_capital"].to_dict("records")
    picked = [[row[name] for name in ("layer", "head", "depth", "score", "n_implementing")] for row in rows]
    assert picked == [[2, 1, 0.4, 0.75, 2], [9, 3, 0.9, 0.25, 1]]
    assert [row["median_depth"] for row in rows] == pytest.approx([0.6, 0.9])
    none = found.table[found.table["relation"] == "english_to_french"]
    assert none["n_implementing"].tolist() == [0, 0]
    assert none["median_depth"].isna().all()
    assert found.agreement[0].score is None  # four relations are too few


def test_relations_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    other = Spec("atom → number", "Chemistry")
    gone = Spec("country → capital", "Knowledge", left_out="3 usable sources, at least 30 needed")
    first = plant_atlas(tmp_path / "a.zarr", [], specs=(*FOUR, other))
    second = plant_atlas(tmp_path / "b.zarr", [], specs=(FOUR[0], gone, FOUR[2]))
    found = compare(first, second)
    assert set(found.table["relation"]) == {"word_to_first_letter", "verb_to_past_tense"}
    assert set(found.left_out) == {"country_to_capital", "english_to_french", "atom_to_number"}
    assert found.left_out["atom_to_number"] == "scored in 1 of 2 atlases"


def test_relations_of_one_name_with_other_pairs_are_not_compared(tmp_path: Path) -> None:
    first = plant_atlas(tmp_path / "a.zarr", [])
    second = make_atlas(tmp_path / "b.zarr", 4, 3)
    with pytest.raises(HeadatlasError, match="its pairs differ"):
        compare(first, second)


def test_one_atlas_is_no_comparison(tmp_path: Path) -> None:
    with pytest.raises(HeadatlasError, match="at least two"):
        compare(plant_atlas(tmp_path / "a.zarr", []))


@pytest.mark.parametrize("again", ["a.zarr", "link.zarr", "./a.zarr"])
def test_an_atlas_is_not_compared_with_itself(tmp_path: Path, again: str) -> None:
    first = plant_atlas(tmp_path / "a.zarr", [])
    (tmp_path / "link.zarr").symlink_to(tmp_path / "a.zarr")
    with pytest.raises(HeadatlasError, match=f"{again.removeprefix('./')}: the same atlas is given twice"):
        compare(first, plant_atlas(tmp_path / "b.zarr", []), Atlas.open(tmp_path / again))
    other_reading = compare(first, Atlas.open(tmp_path / again).at(k=5))
    assert other_reading.labels == ("Planted (neutral) #1", "Planted (neutral) #2")


def test_labels_differ(tmp_path: Path) -> None:
    one = make_atlas(tmp_path / "a.zarr", 2, 2)
    other = plant_atlas(tmp_path / "b.zarr", [])
    assert labels_of([one, other]) == ("Synthetic-1M", "Planted")
    assert labels_of([one, other, other]) == (
        "Synthetic-1M (neutral)",
        "Planted (neutral) #1",
        "Planted (neutral) #2",
    )


def test_spearman_equals_scipys() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 6, 12).astype(float)
    y = x + rng.normal(0, 3, 12)
    value, p = permutation_spearman(x, y)
    expected = stats.spearmanr(x, y)
    assert value == pytest.approx(expected.statistic)
    assert p == pytest.approx(expected.pvalue, abs=0.02)
    assert permutation_spearman(x[:4], y[:4]) == (None, None)
    assert permutation_spearman(np.ones(9), np.arange(9.0)) == (None, None)


@pytest.fixture
def three(tmp_path: Path) -> list[Atlas]:
    return [make_atlas(tmp_path / f"{seed}.zarr", 4, 3, seed=seed) for seed in range(3)]


@pytest.mark.parametrize("width_mm", [60.0, 170.0])
def test_the_figure_has_every_relation_and_atlas(three: list[Atlas], width_mm: float, tmp_path: Path) -> None:
    found = compare(*three)
    figure = draw_comparison(found, width_mm, "relations")
    assert figure.get_figwidth() * 25.4 == pytest.approx(width_mm)
    words = " ".join(text.get_text() for text in figure.texts).replace("\u00a0", " ")
    for label in found.labels:
        assert label in words or width_mm < 100
    assert "score ≥ 0.15" in words
    assert [len(ax.get_yticks()) for ax in figure.axes] == [19, 19]
    saved = save(figure, tmp_path / "figure.png")
    assert saved.stat().st_size > 0


def test_more_atlases_than_marks_are_refused(three: list[Atlas]) -> None:
    many = compare(*(three[0].at(tau=at / 100) for at in range(len(MARKS) + 1)))
    with pytest.raises(HeadatlasError, match="at most 6"):
        draw_comparison(many, 170, "relations")
