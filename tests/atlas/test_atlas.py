"""What an atlas answers: scores, criteria, tables, categories, from ranks planted so that all is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from headatlas.atlas import Atlas
from headatlas.atlas.atlas import TABLE_COLUMNS
from headatlas.atlas.layout import MAX_CALIBRATION_SOURCES, build_layout
from headatlas.atlas.relation_scores import HEADS_AT_A_TIME, store_scores
from headatlas.errors import HeadatlasError
from headatlas.options import Thresholds
from headatlas.scoring.scores import false_discovery_rates, wilson
from tests.atlas.made import layer_from_squares, tokenised, write_atlas
from tests.figures.planted import Plant, Spec, plant_atlas
from tests.scoring import reference
from tests.synthetic import make_atlas

VOCAB = 60


def ranked_at(n_rows: int, ranks: dict[tuple[int, int], int], heads: int = 1) -> NDArray[np.int64]:
    """[2, heads, n_rows, VOCAB]: beyond the ceiling but for (row, id) → rank, by promotion, in head 0."""
    squares = np.full((2, heads, n_rows, VOCAB), 99)
    for (row, token), rank in ranks.items():
        squares[0, 0, row, token] = rank
    return squares


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return make_atlas(tmp_path_factory.mktemp("synthetic") / "atlas.zarr", 4, 3, layers=range(3))


# Scores -------------------------------------------------------------------------------------------


def test_a_source_counts_once_however_many_targets_it_has(tmp_path: Path) -> None:
    relation = tokenised("several", [[0, 1, 2], [3], [4, -1], [], [5, 6]])
    # Source 0 by its last target, source 2 by its only usable one, source 4 by none below k.
    squares = ranked_at(5, {(0, 2): 4, (2, 4): 0, (4, 5): 10, (4, 6): 31})
    layout = build_layout([relation])
    atlas = write_atlas(tmp_path / "a.zarr", [relation], {0: layer_from_squares(layout, squares)})
    (row,) = atlas.table().to_dict("records")
    assert (row["score"], row["n_sources"], row["suppression"]) == (2 / 4, 4, 0.0)
    scores = [atlas.at(k=k).table()["score"][0] for k in (1, 4, 5, 10, 11, 32)]
    assert scores == [1 / 4, 1 / 4, 2 / 4, 2 / 4, 3 / 4, 3 / 4]
    assert (row["low"], row["high"]) == tuple(float(x) for x in wilson(np.array(2), 4))


def test_copying_relations_have_a_k_of_their_own(tmp_path: Path) -> None:
    relations = [tokenised(name, [[0], [1]], copying=name == "copy") for name in ("copy", "other")]
    squares = ranked_at(2, {(0, 0): 0, (1, 1): 5})
    layer = layer_from_squares(build_layout(relations), squares)
    atlas = write_atlas(tmp_path / "a.zarr", relations, {0: layer})
    assert atlas.table()["score"].tolist() == [0.5, 1.0]
    assert atlas.at(k_copy=6, k=1).table()["score"].tolist() == [1.0, 0.5]
    assert atlas.relations["k"].tolist() == [1, 10]


def test_added_counts_what_the_state_does_not_hold(tmp_path: Path) -> None:
    atlas = plant_atlas(tmp_path / "a.zarr", [Plant(1, 0, "country_to_capital", hits=35)], control=0.25)
    row = atlas.top("country_to_capital", 1).iloc[0]
    # The state hits the last 10 of 40 sources, the head the first 35: 30 are the head's alone.
    assert (row["layer"], row["head"], row["score"], row["control"], row["added"]) == (
        1,
        0,
        35 / 40,
        0.25,
        30 / 40,
    )
    assert row["lift"] == pytest.approx(40)
    assert row["chance"] == pytest.approx(35 / 40 / 40)


@pytest.mark.parametrize("k", [10, 4])
def test_calibration_is_that_of_the_reference(synthetic: Atlas, k: int) -> None:
    """Through the stored cells: h rebuilt from the dataset, p by the plain implementation."""
    data = synthetic.dataset
    sha = data["relation_sha256"].values[6]
    name = data["relation"].values[6]
    sources = np.flatnonzero(data["cell_source_relation"].values == 6)
    targets = np.flatnonzero(data["cell_target_relation"].values == 6)
    sizes = [
        int((data["cell_source_relation"] == r).sum()) * int((data["cell_target_relation"] == r).sum())
        for r in range(6)
    ]
    own = (data["pair_relation"].values == 6) & (data["pair_source"].values >= 0)
    column = np.searchsorted(data["cell_target_id"].values[targets], data["pair_target_id"].values[own])
    order = reference.drawn(len(sources), str(sha))
    null = synthetic.at(k=k).relation_scores[str(name)].promotion_null
    start = sum(sizes)
    for layer in range(3):
        for head in range(3):
            cells = data["cell_promotion_rank"].values[
                layer, head, start : start + len(sources) * len(targets)
            ]
            h = (cells.reshape(len(sources), len(targets)) < k)[:, column]
            if np.trace(h) / len(h) < 0.03:
                assert null.p[layer, head] == 1.0 and np.isnan(null.chance[layer, head])
            else:
                assert null.p[layer, head] == pytest.approx(reference.p_value(h, order), rel=1e-10)
                assert null.chance[layer, head] == pytest.approx(h.mean(), rel=1e-12)
    assert (null.p < 1).any()


def test_heads_in_groups_equal_heads_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atlas = make_atlas(tmp_path / "atlas.zarr", 3, 2)
    monkeypatch.setattr("headatlas.atlas.relation_scores.HEADS_AT_A_TIME", 2)
    assert Atlas.open(tmp_path).table().equals(atlas.table())
    assert HEADS_AT_A_TIME > 2


def test_a_large_relation_is_calibrated_on_some_sources_and_scored_on_all(tmp_path: Path) -> None:
    n, words = 400, 50
    relation = tokenised("large", [[i % words] for i in range(n)])
    layout = build_layout([relation])
    left_out = np.setdiff1d(np.arange(n), layout.blocks[0].sources)
    assert len(left_out) == n - MAX_CALIBRATION_SOURCES
    right = np.full((2, 2, n, VOCAB), 99)
    right[0, 0, np.arange(n), np.arange(n) % words] = 0
    # The second head hits only sources that calibration does not look at.
    right[0, 1, left_out, left_out % words] = 0
    atlas = write_atlas(tmp_path / "a.zarr", [relation], {0: layer_from_squares(layout, right)}, n_heads=2)
    table = atlas.table()
    assert table["score"].tolist() == [1.0, len(left_out) / n]
    shares = np.bincount(layout.blocks[0].sources % words) / MAX_CALIBRATION_SOURCES
    assert table["chance"][0] == pytest.approx((shares**2).sum())
    assert table["chance"][1] == 0.0 and np.isnan(table["lift"][1])
    assert table["p"].tolist() == [pytest.approx(0.0, abs=1e-12), 1.0]
    assert table["implements"].tolist() == [True, False]


# Thresholds ---------------------------------------------------------------------------------------


def test_the_calibrated_criterion_also_asks_for_q(tmp_path: Path) -> None:
    """A head that promotes the same ten words whatever it reads: only the paper's criterion calls it."""
    relation = tokenised("same_words", [[i % 20] for i in range(40)])
    squares = np.full((2, 2, 40, VOCAB), 99)
    squares[0, 0, :, :10] = np.arange(10)
    squares[0, 1, np.arange(40), np.arange(40) % 20] = 0
    layer = layer_from_squares(build_layout([relation]), squares)
    atlas = write_atlas(tmp_path / "a.zarr", [relation], {0: layer}, n_heads=2)
    assert atlas.table()["score"].tolist() == [0.5, 1.0]
    assert atlas.table()["chance"].tolist() == [0.5, pytest.approx(0.05)]
    assert atlas.table()["p"][0] == 1.0 and atlas.table()["lift"][0] == 1.0
    assert atlas.table()["implements"].tolist() == [False, True]
    assert atlas.at(criterion="tau").table()["implements"].tolist() == [True, True]


def test_tau_is_met_at_equality(tmp_path: Path) -> None:
    atlas = plant_atlas(
        tmp_path / "a.zarr", [Plant(0, h, "country_to_capital", hits=5 + h) for h in range(3)]
    )
    atlas = atlas.at(criterion="tau")
    assert atlas.sel(relation="country_to_capital", called=True)["head"].tolist() == [2, 1], (
        "6/40 = 0.15 counts, 5/40 does not"
    )


def test_q_is_over_all_cells_of_both_signs(synthetic: Atlas) -> None:
    table = synthetic.table()
    q = false_discovery_rates(np.concatenate([table["p"], table["suppression_p"]]))
    np.testing.assert_allclose(np.concatenate([table["q"], table["suppression_q"]]), q)


@pytest.mark.parametrize("q_max", [0.0001, 0.01, 0.2, 1.0])
def test_called_means_score_and_q(synthetic: Atlas, q_max: float) -> None:
    table = synthetic.at(q_max=q_max).table()
    assert (table["implements"] == (table["score"] >= 0.15) & (table["q"] <= q_max)).all()
    assert (table["suppresses"] == (table["suppression"] >= 0.15) & (table["suppression_q"] <= q_max)).all()
    assert table["implements"].any() and not table["implements"].all()


# Tables -------------------------------------------------------------------------------------------


def test_the_table_has_its_columns_in_order(synthetic: Atlas) -> None:
    table = synthetic.table()
    assert tuple(table.columns) == TABLE_COLUMNS
    kinds = {name: table[name].dtype.kind for name in table}
    assert {name for name, kind in kinds.items() if kind == "i"} == {"layer", "head", "n_sources"}
    assert {name for name, kind in kinds.items() if kind == "b"} == {"implements", "suppresses", "called"}
    assert all(isinstance(value, str) for value in table["relation"])
    text = {"relation", "category"}
    floats = set(table) - text - {"layer", "head", "n_sources", "implements", "suppresses", "called"}
    assert all(table[name].dtype == np.float64 for name in floats)
    assert (table["called"] == (table["implements"] | table["suppresses"])).all()
    may_be_empty = {"chance", "lift", "suppression_chance", "suppression_lift"}
    assert not table.drop(columns=list(may_be_empty)).isna().any(axis=None)
    assert (table["chance"].isna() == (table["score"] < 0.03)).all()
    assert (table["suppression_chance"].isna() == (table["suppression"] < 0.03)).all()
    assert ((table["low"] <= table["score"]) & (table["score"] <= table["high"])).all()


def test_layers_that_are_not_mapped_have_no_rows(synthetic: Atlas) -> None:
    assert synthetic.layers_done.tolist() == [True, True, True, False]
    n_relations = len(synthetic.included)
    assert len(synthetic.table()) == 3 * 3 * n_relations
    assert set(synthetic.table()["layer"]) == {0, 1, 2}
    assert set(synthetic.categories()["layer"]) == {0, 1, 2}
    assert "1 of 4 layers not mapped" in synthetic.caption()
    assert all(np.isnan(scores.score[3]).all() for scores in synthetic.relation_scores.values())


def test_an_atlas_without_any_layer_is_empty_and_no_error(tmp_path: Path) -> None:
    atlas = make_atlas(tmp_path / "atlas.zarr", 2, 2, layers=range(0))
    assert atlas.table().empty and tuple(atlas.table().columns) == TABLE_COLUMNS
    assert atlas.sel(called=True).empty and atlas.categories().empty and atlas.top("copying").empty
    store_scores(atlas)
    assert Atlas.open(tmp_path).table().empty


PLANTS = [
    Plant(1, 0, "country_to_capital"),
    Plant(1, 0, "word_to_first_letter", hits=20),
    Plant(1, 0, "verb_to_past_tense", hits=30, sign="suppression"),
    Plant(2, 3, "country_to_capital", hits=30),
    Plant(0, 2, "english_to_french", hits=4),
]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return plant_atlas(tmp_path_factory.mktemp("planted") / "atlas.zarr", PLANTS, mapped=[0, 1, 2, 4])


def called(frame: pd.DataFrame) -> list[tuple[int, int, str]]:
    return list(frame[["layer", "head", "relation"]].itertuples(index=False, name=None))


def test_heads_are_those_called_best_first(planted: Atlas) -> None:
    assert called(planted.sel(called=True)) == [
        (1, 0, "country_to_capital"),
        (1, 0, "verb_to_past_tense"),
        (2, 3, "country_to_capital"),
        (1, 0, "word_to_first_letter"),
    ]
    assert called(planted.sel(relation="country_to_capital", called=True)) == [
        (1, 0, "country_to_capital"),
        (2, 3, "country_to_capital"),
    ]
    assert called(planted.sel(category="linguistic", called=True)) == [(1, 0, "verb_to_past_tense")]
    assert planted.sel(category="Translation", called=True).empty
    everything = planted.sel(relation="english_to_french")
    assert len(everything) == 4 * 4 and called(everything)[0] == (0, 2, "english_to_french")
    row = planted.sel(category="Linguistic", called=True).iloc[0]
    assert (row["score"], row["suppression"], row["implements"], row["suppresses"]) == (
        0.0,
        0.75,
        False,
        True,
    )


def test_a_relation_may_be_named_as_figures_print_it(planted: Atlas) -> None:
    title = planted.relations["title"][0]
    name = planted.relations["relation"][0]
    assert title != name
    assert planted.top(title).equals(planted.top(name))
    assert planted.sel(relation=title).equals(planted.sel(relation=name))


def test_top_heads_are_the_highest_scores_called_or_not(planted: Atlas) -> None:
    top = planted.top("english_to_french", 3)
    assert top["score"].tolist() == [0.1, 0.0, 0.0]
    assert called(top)[1:] == [(0, 0, "english_to_french"), (0, 1, "english_to_french")], "ties in order"
    assert len(planted.top("english_to_french", 1000)) == 16


def test_categories_count_promotion_and_suppression(planted: Atlas) -> None:
    rows = planted.categories()
    assert list(rows) == ["layer", "head", "n_categories", "which", "relations"]
    assert len(rows) == 16
    found = {(r.layer, r.head): r for r in rows.itertuples() if r.n_categories}
    assert set(found) == {(1, 0), (2, 3)}
    assert found[1, 0].which == ("Algorithmic", "Knowledge", "Linguistic")
    assert found[1, 0].relations == ("word_to_first_letter", "country_to_capital", "verb_to_past_tense")
    assert (found[2, 3].n_categories, found[2, 3].which) == (1, ("Knowledge",))


def test_categories_of_users_come_after_the_papers(tmp_path: Path) -> None:
    specs = [
        Spec("zebra → stripe", "Zoo"),
        Spec("a → b", "Knowledge"),
        Spec("c → d", "Algorithmic"),
        Spec("e → f", "Mine"),
    ]
    atlas = plant_atlas(
        tmp_path / "a.zarr", [Plant(0, 0, "zebra_to_stripe"), Plant(0, 0, "a_to_b")], specs=specs
    )
    assert atlas.category_names == ("Algorithmic", "Knowledge", "Mine", "Zoo")
    assert atlas.categories()["which"][0] == ("Knowledge", "Zoo")


def test_relations_left_out_are_named_and_not_scored(synthetic: Atlas) -> None:
    reason = "0 usable sources, at least 30 needed"
    assert synthetic.left_out == {"year_to_following": reason}
    assert "year_to_following" not in set(synthetic.table()["relation"])
    assert synthetic.caption().endswith("left out: year → following")
    with pytest.raises(HeadatlasError, match=f"'year_to_following' was left out of this atlas: {reason}"):
        synthetic.top("year_to_following")
    row = synthetic.relations.set_index("relation").loc["year_to_following"]
    assert (row["n_pairs"], row["n_sources"], row["left_out"]) == (40, 0, reason)
    assert row["dropped"] == {"source is several tokens": []}


def test_the_caption_says_how_it_was_read(tmp_path: Path) -> None:
    relation = tokenised("r", [[0], [1]])
    layer = layer_from_squares(build_layout([relation]), ranked_at(2, {}))
    atlas = write_atlas(tmp_path / "a.zarr", [relation], {0: layer}, target_policy="first-token")
    assert atlas.caption() == (
        "Made; lens neutral; k = 10 (copying 1), score ≥ 0.15 and q ≤ 0.01; targets: first-token"
    )
    paper = atlas.at(Thresholds.preset("maps-paper-llama3"))
    assert "k = 25 (copying 3), score ≥ 0.15;" in paper.caption()
    assert repr(atlas).startswith("<Atlas of Made: 1 of 1 layers × 1 heads, 1 relations, lens neutral")
