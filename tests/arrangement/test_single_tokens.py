"""Reading an atlas again on sources of one token."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from headatlas.arrangement.model_structure import single_token_atlas
from headatlas.atlas import Atlas
from headatlas.atlas.relation_scores import SINGLE_TOKENS, all_single, store_scores
from headatlas.errors import HeadatlasError
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
    assert not all_single(atlas.dataset)
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


@pytest.mark.parametrize("sign", ["promotion", "suppression"])
@pytest.mark.parametrize("stored", [True, False])
def test_a_head_below_the_floor_on_all_sources_was_not_examined(
    tmp_path: Path, sign: Literal["promotion", "suppression"], stored: bool
) -> None:
    """1 of 40 sources is below 3 %, 1 of the 30 single-token ones is above: no cells are stored of it."""
    specs = (Spec("country → capital", "Knowledge", multi=10),)
    plants = [
        Plant(1, 0, "country_to_capital", hits=1, first=20, sign=sign),
        Plant(1, 1, "country_to_capital", hits=2, first=20, sign=sign),
    ]
    atlas = plant_atlas(tmp_path / "a.zarr", plants, specs=specs)
    if stored:
        store_scores(atlas)
    single = single_token_atlas(Atlas.open(tmp_path / "a.zarr"))
    rows = single.table().set_index(["layer", "head"])
    score, prefix = ("score", "") if sign == "promotion" else ("suppression", "suppression_")
    assert rows[score][1, 0] == pytest.approx(1 / 30) and rows[score][1, 1] == pytest.approx(2 / 30)
    assert rows[f"{prefix}p"][1, 0] == 1.0 and np.isnan(rows[f"{prefix}chance"][1, 0])
    # Examined: two of 30 sources promote their own target, so 2/30 of a hit is expected by chance.
    assert rows[f"{prefix}chance"][1, 1] == pytest.approx(2 / 30 / 30)
    assert rows[f"{prefix}p"][1, 1] < 0.01
    assert "On sources of one token alone" in describe(atlas.at(tau=0.05, criterion="tau"))


def test_a_part_of_a_part_asks_the_whole(tmp_path: Path) -> None:
    specs = (Spec("country → capital", "Knowledge", multi=10),)
    atlas = plant_atlas(tmp_path / "a.zarr", [Plant(1, 0, "country_to_capital", 1, first=20)], specs=specs)
    twice = single_token_atlas(single_token_atlas(atlas))
    assert twice.table().set_index(["layer", "head"])["p"][1, 0] == 1.0


def test_cells_that_are_gone_are_still_noticed(tmp_path: Path) -> None:
    """A score at the floor on all sources says that cells were stored: their bytes are proved missing."""
    atlas = plant_atlas(tmp_path / "a.zarr", PLANTS, specs=SPECS)
    store_scores(atlas)
    shutil.rmtree(tmp_path / "a.zarr" / "cell_promotion_rank" / "c" / "2")
    whole = Atlas.open(tmp_path / "a.zarr")
    assert whole.table()["score"].max() == 0.75  # as stored
    single_token_atlas(whole).table()  # as stored
    with pytest.raises(HeadatlasError, match=r"a\.zarr: cell_promotion_rank is damaged .*map again"):
        single_token_atlas(whole.at(k=9)).table()
    shutil.rmtree(tmp_path / "a.zarr" / SINGLE_TOKENS)
    with pytest.raises(HeadatlasError, match=r"a\.zarr: cell_promotion_rank is damaged .*map again"):
        single_token_atlas(whole).table()


def test_a_chunk_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    atlas = plant_atlas(tmp_path / "a.zarr", PLANTS, specs=SPECS)
    store_scores(atlas)
    chunk = tmp_path / "a.zarr" / "cell_promotion_rank" / "c" / "2" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:9])
    shutil.rmtree(tmp_path / "a.zarr" / SINGLE_TOKENS)
    with pytest.raises(HeadatlasError, match=r"a\.zarr: cell_promotion_rank is damaged"):
        single_token_atlas(Atlas.open(tmp_path / "a.zarr")).table()


def test_stored_scores_are_those_that_are_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atlas = plant_atlas(tmp_path / "a.zarr", PLANTS, specs=SPECS)
    expected, text = single_token_atlas(atlas).table(), describe(atlas)
    store_scores(atlas)
    monkeypatch.setattr("headatlas.atlas.atlas.score_relation", None)
    stored = Atlas.open(tmp_path / "a.zarr")
    assert single_token_atlas(stored).table().equals(expected)
    assert describe(stored) == text


@pytest.mark.parametrize("name", ["promotion_score", "control_score"])
def test_stored_scores_that_are_damaged_are_computed_again(tmp_path: Path, name: str) -> None:
    atlas = plant_atlas(tmp_path / "a.zarr", PLANTS, specs=SPECS)
    expected = single_token_atlas(atlas).table()
    store_scores(atlas)
    for chunk in (tmp_path / "a.zarr" / SINGLE_TOKENS / name / "c").rglob("0"):
        if chunk.is_file():
            chunk.write_bytes(b"damaged")
    assert single_token_atlas(Atlas.open(tmp_path / "a.zarr")).table().equals(expected)


def test_nothing_is_stored_where_all_sources_are_one_token(tmp_path: Path) -> None:
    store_scores(plant_atlas(tmp_path / "a.zarr", PLANTS[2:3], specs=SPECS[2:]))
    assert not (tmp_path / "a.zarr" / SINGLE_TOKENS).exists()


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
    assert "On sources of one token alone (76 of 120): Algorithmic 2 and Knowledge 2." in text
    all_multi = plant_atlas(
        tmp_path / "b.zarr", PLANTS[:1], specs=[Spec("country → capital", "Knowledge", 40)]
    )
    text = describe(all_multi.at(tau=0.05, criterion="tau"))
    assert "On sources of one token alone (0 of 40) this cannot be repeated." in text
