"""Reading an atlas again on sources of one token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headatlas.arrangement.single_tokens import all_single, single_token_atlas
from headatlas.atlas import Atlas
from headatlas.atlas.derived import store_scores
from headatlas.figures import describe
from tests.figures.planted import N_SOURCES, Plant, Spec, plant_atlas

SPECS = (
    Spec("country → capital", "Knowledge", multi=4),
    Spec("verb → past tense", "Linguistic", multi=15),
    Spec("word → first letter", "Algorithmic"),
)
PLANTS = [
    Plant(1, 0, "country_to_capital", hits=4),
    Plant(2, 1, "country_to_capital", hits=22),
    Plant(2, 2, "word_to_first_letter", hits=10),
    Plant(3, 3, "verb_to_past_tense", hits=30),
]


def test_scores_equal_those_on_the_sources_that_stay(tmp_path: Path) -> None:
    atlas = plant_atlas(tmp_path / "a.zarr", PLANTS, specs=SPECS)
    assert not all_single(atlas)
    single = single_token_atlas(atlas)
    assert single.left_out == {"verb_to_past_tense": "25 sources of one token, at least 30 needed"}
    kept = N_SOURCES - 4
    scores = single.table().set_index(["relation", "layer", "head"])["score"]
    assert scores["country_to_capital", 1, 0] == 0
    assert scores["country_to_capital", 2, 1] == pytest.approx((22 - 4) / kept)
    assert scores["word_to_first_letter", 2, 2] == pytest.approx(10 / N_SOURCES)
    assert list(single.included["n_sources"]) == [kept, N_SOURCES]
    control = single.table().set_index(["relation", "layer", "head"])["control"]
    assert control["country_to_capital", 0, 0] == pytest.approx(10 / kept)


def test_calibration_equals_that_of_an_atlas_made_of_these_sources(tmp_path: Path) -> None:
    atlas = plant_atlas(tmp_path / "a.zarr", PLANTS, specs=SPECS)
    single = single_token_atlas(atlas)
    chance = single.table().set_index(["relation", "layer", "head"])["chance"]
    # Each of 18 sources promotes its own target: n · mean of the 36 × 36 hits / n.
    assert chance["country_to_capital", 2, 1] == pytest.approx(18 / 36 / 36)
    assert bool(
        single.table().set_index(["relation", "layer", "head"])["implements"]["country_to_capital", 2, 1]
    )


def test_scores_stored_for_all_sources_are_not_taken_for_those_of_some(tmp_path: Path) -> None:
    store_scores(plant_atlas(tmp_path / "a.zarr", PLANTS, specs=SPECS))
    single = single_token_atlas(Atlas.open(tmp_path / "a.zarr"))
    scores = single.table().set_index(["relation", "layer", "head"])["score"]
    assert scores["country_to_capital", 1, 0] == 0
    assert scores["country_to_capital", 2, 1] == pytest.approx((22 - 4) / (N_SOURCES - 4))


def test_the_given_atlas_is_untouched(tmp_path: Path) -> None:
    atlas = plant_atlas(tmp_path / "a.zarr", PLANTS, specs=SPECS)
    before = atlas.dataset.load().copy(deep=True)
    single_token_atlas(atlas)
    assert atlas.dataset.identical(before)
    assert np.array_equal(atlas.included["n_sources"], [N_SOURCES] * 3)


def test_description_repeats_the_trend_or_says_why_not(tmp_path: Path) -> None:
    text = describe(plant_atlas(tmp_path / "a.zarr", PLANTS, specs=SPECS))
    assert "On sources of one token alone (76 of 120 sources, 2 relations), called heads: 2;" in text
    assert "median layers: Algorithmic 2 and Knowledge 2." in text
    all_multi = plant_atlas(
        tmp_path / "b.zarr", PLANTS[:1], specs=[Spec("country → capital", "Knowledge", 40)]
    )
    assert "no relation keeps enough sources" in describe(all_multi.at(tau=0.05, criterion="tau"))
