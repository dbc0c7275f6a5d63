"""Asking an atlas in Python: scores as an array, one head, its words, another reading, a saved copy."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest

import headatlas as ha
from headatlas.atlas import Atlas
from headatlas.atlas.layout import build_layout
from headatlas.atlas.relation_scores import STORED, store_scores
from headatlas.errors import HeadatlasError
from headatlas.options import Thresholds
from tests.atlas.made import assert_same_arrays, layer_from_squares, tokenised, write_atlas
from tests.figures.planted import Plant, plant_atlas
from tests.report.made_up import HOSTILE, atlas_of, relation
from tests.synthetic import make_atlas

PLANTS = [
    Plant(1, 0, "country_to_capital", hits=36),
    Plant(2, 3, "country_to_capital", hits=30),
    Plant(1, 0, "word_to_first_letter", hits=20),
    Plant(1, 0, "verb_to_past_tense", hits=30, sign="suppression"),
    Plant(4, 2, "english_to_french", hits=4),
]
NUMBERS = [
    {"k": 3},
    {"k": 32, "k_copy": 32},
    {"k_copy": 5},
    {"tau": 0.4},
    {"q_max": 1e-9},
    {"criterion": "tau", "tau": 0.02},
]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    """6 × 4 heads; layer 3 is not mapped."""
    return plant_atlas(tmp_path_factory.mktemp("planted") / "atlas.zarr", PLANTS, mapped=[0, 1, 2, 4, 5])


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    """4 × 3 heads whose scores depend on k; layer 3 is not mapped, a relation is left out."""
    return make_atlas(tmp_path_factory.mktemp("synthetic") / "atlas.zarr", 4, 3, layers=range(3))


def fresh(atlas: Atlas, thresholds: Thresholds) -> Atlas:
    """The same ranks, read for the first time."""
    assert atlas.path is not None
    opened = Atlas.open(atlas.path)
    return Atlas(opened.dataset, opened.provenance, thresholds)


# Scores -------------------------------------------------------------------------------------------


def test_scores_are_an_array_with_coordinates(planted: Atlas) -> None:
    scores = planted.scores
    assert scores.dims == ("sign", "layer", "head", "relation") and scores.shape == (2, 6, 4, 4)
    assert scores.dtype == np.float64
    assert scores["sign"].values.tolist() == ["promotion", "suppression"]
    assert scores["layer"].values.tolist() == list(range(6)) and scores["head"].values.tolist() == [
        0,
        1,
        2,
        3,
    ]
    names = ["word_to_first_letter", "country_to_capital", "verb_to_past_tense", "english_to_french"]
    assert scores["relation"].values.tolist() == names
    assert scores["category"].values.tolist() == ["Algorithmic", "Knowledge", "Linguistic", "Translation"]
    assert scores.attrs["thresholds"] == planted.thresholds.describe()
    capital = scores.sel(sign="promotion", relation="country_to_capital")
    assert (float(capital[1, 0]), float(capital[2, 3]), float(capital[0, 0])) == (36 / 40, 30 / 40, 0.0)
    assert float(scores.sel(sign="suppression", relation="verb_to_past_tense", layer=1, head=0)) == 30 / 40
    assert bool(scores.isel(layer=3).isnull().all())
    for name, found in (("p", planted.p), ("q", planted.q)):
        assert found.name == name and found.coords.equals(scores.coords) and found.attrs == scores.attrs
        table = planted.table().set_index(["layer", "head", "relation"])
        for sign, column in (("promotion", name), ("suppression", f"suppression_{name}")):
            stacked = found.sel(sign=sign).to_series().reindex(table.index)
            assert stacked.equals(table[column].rename(name))
    assert not bool(scores.isel(layer=[0, 1, 2, 4, 5]).isnull().any())


def test_scores_equal_the_table(synthetic: Atlas) -> None:
    assert "year_to_following" not in synthetic.scores["relation"]
    table = synthetic.table()
    for sign, column in (("promotion", "score"), ("suppression", "suppression")):
        at = synthetic.scores.sel(sign=sign).to_series().dropna()
        expected = table.set_index(["layer", "head", "relation"])[column]
        assert len(at) == len(expected) == 3 * 3 * 19
        assert at.loc[expected.index].tolist() == expected.tolist()


@pytest.mark.parametrize("changes", NUMBERS)
def test_another_reading_changes_every_number(synthetic: Atlas, changes: dict[str, Any]) -> None:
    first = fresh(synthetic, synthetic.thresholds)
    cached = (first.scores, first.table(), first.categories(), first.relations, first.relation_scores)
    assert cached
    other = first.at(**changes)
    expected = fresh(synthetic, replace(Thresholds(), **changes))
    assert other.thresholds == expected.thresholds
    assert other.scores.identical(expected.scores)
    assert other.table().equals(expected.table()) and other.categories().equals(expected.categories())
    assert other.relations.equals(expected.relations) and other.caption() == expected.caption()
    pairs = [each.pairs(0, 0, "copying") for each in (other, expected)]
    assert pairs[0].equals(pairs[1])
    assert repr(other) == repr(expected) and other._repr_html_() == expected._repr_html_()
    assert other.heads() == expected.heads() and other.lens == first.lens
    differs = not other.table().equals(first.table())
    assert differs and first.thresholds == Thresholds(), "and the first one is what it was"


@pytest.mark.parametrize("stored", [False, True])
def test_the_dataset_holds_no_scores(tmp_path: Path, stored: bool) -> None:
    atlas = make_atlas(tmp_path / "atlas.zarr", 3, 2)
    if stored:
        store_scores(atlas)
    opened = Atlas.open(tmp_path)
    assert not set(STORED) & set(opened.dataset.variables)
    assert not any(name.startswith("scores_") for name in opened.dataset.attrs)
    assert opened.at(k=5).scores.identical(fresh(atlas, Thresholds(k=5)).scores)


def test_thresholds_are_given_or_changed(synthetic: Atlas) -> None:
    paper = Thresholds.preset("maps-paper-llama3")
    assert synthetic.at(paper).thresholds == paper == synthetic.at(paper, tau=None).thresholds
    assert synthetic.at(paper, k=5).thresholds == Thresholds(5, 3, criterion="tau")
    assert Atlas.open(str(synthetic.path), tau=0.3).thresholds == Thresholds(tau=0.3)
    assert synthetic.at(Thresholds.preset("maps-paper"), k_copy=2).thresholds.k_copy == 2
    with pytest.raises(HeadatlasError, match=r"^`k` is 33, above the ceiling 32"):
        synthetic.at(k=33)
    assert synthetic.at("maps-paper-llama3", k=5).thresholds == Thresholds(5, 3, criterion="tau")
    with pytest.raises(HeadatlasError, match="no threshold 'kk'; use k, k_copy, tau, q_max, criterion"):
        synthetic.at(kk=3)
    with pytest.raises(HeadatlasError, match="no preset 'paper'; use one of default, maps-paper"):
        synthetic.at("paper")
    with pytest.raises(HeadatlasError, match=r"^`tau` is 2: it must lie between 0 and 1"):
        synthetic.at(tau=2)


# One head -----------------------------------------------------------------------------------------


def test_pairs_say_which_words_a_head_gets_right(planted: Atlas) -> None:
    pairs = planted.pairs(1, 0, "country_to_capital")
    assert list(pairs) == [
        *("source", "target", "rank", "hit", "source_hit"),
        *("control_rank", "control_hit", "control_source_hit"),
        *("suppression_rank", "suppression_hit", "suppression_source_hit"),
    ]
    assert pairs["source"].tolist() == [f"s{at}" for at in range(40)]
    assert pairs["target"].tolist() == [f"t{at}" for at in range(40)]
    assert pairs["hit"].tolist() == [True] * 36 + [False] * 4
    assert pairs["rank"].dtype == "Int16" and pairs["rank"][:36].tolist() == [0] * 36
    assert pairs["rank"][36:].isna().all(), "beyond the ceiling there is no rank"
    # The state itself hits the last ten.
    assert pairs["control_hit"].tolist() == [False] * 30 + [True] * 10
    assert pairs["control_rank"][30:].tolist() == [0] * 10 and pairs["control_rank"][:30].isna().all()
    assert not pairs["suppression_hit"].any() and pairs["suppression_rank"].isna().all()
    lowered = planted.pairs(1, 0, "verb → past tense")
    assert lowered["suppression_hit"].sum() == 30 and not lowered["hit"].any()


def several_targets(tmp_path: Path) -> Atlas:
    """Source 0 with targets of ranks 4 and 11, source 1 with one that cannot be used and one of rank 31."""
    made = tokenised("several", [[0, 1], [2, -1], [], [3]], category="Mine")
    squares = np.full((2, 1, 4, 60), 99)
    for (row, token), rank in {(0, 0): 11, (0, 1): 4, (1, 2): 31, (3, 3): 40}.items():
        squares[0, 0, row, token] = rank
    layer = layer_from_squares(build_layout([made]), squares)
    return write_atlas(tmp_path / "a.zarr", [made], {0: layer}, n_layers=2)


def test_pairs_have_a_row_for_every_target_that_can_be_used(tmp_path: Path) -> None:
    atlas = several_targets(tmp_path)
    pairs = atlas.pairs(0, 0, "several")
    rows = list(zip(pairs["source"], pairs["target"], pairs["rank"].fillna(-1), pairs["hit"], strict=True))
    assert rows == [
        ("several0", "t0", 11, False),
        ("several0", "t1", 4, True),
        ("several1", "t2", 31, False),
        ("several3", "t3", -1, False),
    ]
    by_source = pairs.drop_duplicates("source")
    assert by_source["source_hit"].mean() == atlas.table()["score"][0] == 1 / 3 != pairs["hit"].mean()
    assert atlas.at(k=4).pairs(0, 0, "several")["hit"].sum() == 0
    assert atlas.at(k=12).pairs(0, 0, "several")["hit"].tolist() == [True, True, False, False]


def test_hits_of_sources_are_the_scores(synthetic: Atlas) -> None:
    names = ["copying", "country_to_capital"]
    pairs = synthetic.pairs(1, 2, names).drop_duplicates(["relation", "source"]).groupby("relation")
    rows = synthetic.sel(layer=1, head=2, relation=names).set_index("relation")
    for column, hits in (("score", "source_hit"), ("suppression", "suppression_source_hit")):
        assert pairs[hits].mean().tolist() == rows[column].loc[names].tolist()
    assert pairs["control_source_hit"].mean().tolist() == rows["control"].loc[names].tolist()
    with pytest.raises(HeadatlasError, match="`relation` names nothing"):
        synthetic.pairs(1, 2, [])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((9, 0, "capital"), r"there is no layer 9: Planted has layers 0 to 5"),
        ((-1, 0, "capital"), r"there is no layer -1"),
        ((0, 4, "capital"), r"there is no head 4: Planted has heads 0 to 3"),
        ((3, 0, "capital"), r"layer 3 is not mapped in this atlas"),
        ((0, 0, "captial"), r"did you mean country_to_capital\?"),
    ],
)
def test_pairs_that_are_not_there(planted: Atlas, asked: tuple[int, int, str], message: str) -> None:
    with pytest.raises(HeadatlasError, match=message):
        planted.pairs(*asked)


def test_heads_for_ones_own_hooks(planted: Atlas) -> None:
    assert planted.heads("country_to_capital") == [(1, 0), (2, 3)] == planted.heads("Capital")
    assert planted.heads(category="knowledge") == [(1, 0), (2, 3)]
    assert planted.heads() == [(1, 0), (2, 3)], "each head once, by its best score"
    assert planted.heads("verb_to_past_tense") == []
    assert planted.heads("verb_to_past_tense", sign="suppression") == [(1, 0)]
    assert planted.heads(sign="suppression") == [(1, 0)]
    assert planted.heads("english_to_french") == []
    assert planted.at(tau=0.1, q_max=1.0).heads("english_to_french") == [(4, 2)]
    assert all(isinstance(number, int) for head in planted.heads() for number in head)
    with pytest.raises(HeadatlasError, match="`sign` is 'up': use promotion or suppression"):
        planted.heads(sign="up")  # type: ignore[arg-type]
    with pytest.raises(HeadatlasError, match="no relation 'x'"):
        planted.heads("x")


def test_one_head_by_its_numbers(planted: Atlas) -> None:
    rows = planted[1, 0]
    assert rows.equals(planted.sel(layer=1, head=0))
    assert rows["relation"].tolist() == [
        *("country_to_capital", "verb_to_past_tense", "word_to_first_letter", "english_to_french"),
    ]
    assert set(zip(rows["layer"], rows["head"], strict=True)) == {(1, 0)}
    assert planted[3, 0].empty, "not mapped"
    for wrong in (1, "1.0", (1, 0, 2)):
        with pytest.raises(TypeError, match=r"write atlas\[layer, head\]"):
            planted[wrong]  # type: ignore[index]
    with pytest.raises(HeadatlasError, match="there is no head 9"):
        planted[1, 9]


def test_rows_are_selected_by_all_that_is_given(planted: Atlas) -> None:
    assert len(planted.sel(layer=2)) == 4 * 4 and len(planted.sel(head=3)) == 5 * 4
    two = planted.sel(relation=["capital", "past"], layer=1)
    assert set(two["relation"]) == {"country_to_capital", "verb_to_past_tense"} and len(two) == 8
    rows = planted.sel(layer=1, called=True)
    assert rows["implements"].tolist() == [True, False, True] and rows["called"].all()
    with pytest.raises(HeadatlasError, match=r"there is no layer 6: Planted has layers 0 to 5"):
        planted.sel(layer=6)
    with pytest.raises(HeadatlasError, match="no category 'x'; it has Algorithmic, Knowledge"):
        planted.sel(category="x")
    with pytest.raises(HeadatlasError, match="no relation 'x'; it has word_to_first_letter, country_to_cap"):
        planted.sel(relation=["capital", "x"])
    with pytest.raises(HeadatlasError, match="no relation 'x'"):
        planted.top("x")
    assert len(planted.top("capital", np.int64(2))) == 2 and planted.top("capital", n=0).empty
    for wrong in (-2, 1.5):
        with pytest.raises(HeadatlasError, match=f"`n` is {wrong}: give a whole number from 0"):
            planted.top("capital", n=wrong)  # type: ignore[arg-type]
    with pytest.raises(HeadatlasError, match=r"`layer` is \[1, 2\]: give one layer"):
        planted.sel(layer=[1, 2])  # type: ignore[arg-type]
    with pytest.raises(HeadatlasError, match="`layer` is '1': give one layer, a whole number from 0"):
        planted.head("1", "0")  # type: ignore[arg-type]
    assert planted.sel(layer=np.int64(1)).equals(planted.sel(layer=1))


def test_the_first_columns_are_those_that_people_look_for(planted: Atlas) -> None:
    first = [
        *("layer", "head", "relation", "score", "q", "suppression", "suppression_q"),
        *("added", "implements", "suppresses"),
    ]
    for frame in (planted.table(), planted.sel(), planted.top("capital"), planted[1, 0]):
        assert list(frame)[:10] == first
        assert repr(frame).splitlines()[0].split() == first
        assert "<th>suppression_q</th>" in str(frame._repr_html_())  # type: ignore[operator]
    table = planted.table().set_index(["layer", "head", "relation"])[["implements", "suppresses", "called"]]
    assert table.dtypes.eq(bool).all()
    assert table.loc[(1, 0, "country_to_capital")].tolist() == [True, False, True]
    assert table.loc[(1, 0, "verb_to_past_tense")].tolist() == [False, True, True]
    assert table.loc[(0, 0, "verb_to_past_tense")].tolist() == [False, False, False]


@pytest.mark.parametrize("most", [None, 100])
def test_the_settings_of_pandas_hold(planted: Atlas, most: int | None) -> None:
    table = planted.top("capital")
    with pd.option_context("display.max_columns", most, "display.width", 1000):
        assert repr(table) == repr(pd.DataFrame(table))
        assert repr(table).splitlines()[0].split() == list(table)
        assert table._repr_html_() == pd.DataFrame(table)._repr_html_()  # type: ignore[operator]
    with pd.option_context("display.float_format", "{:.1f}".format):
        assert "0.9 " in repr(table) and "0.90" not in repr(table)


def test_a_table_that_is_changed_changes_nothing(planted: Atlas) -> None:
    table = planted.table()
    table["score"] = -1.0
    assert (planted.table()["score"] >= 0).all() and planted.heads("capital") == [(1, 0), (2, 3)]


# Shown --------------------------------------------------------------------------------------------


def test_it_is_shown_in_notebooks(planted: Atlas) -> None:
    shown = planted._repr_html_()
    assert planted.caption() in shown
    assert (
        "2 of 20 heads belong to a category: Algorithmic 1, Knowledge 2, Linguistic 1, Translation 0" in shown
    )
    assert "country_to_capital" in shown and "0.90" in shown and "<table" in shown


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    relations = [relation("plain", "a", "Knowledge"), relation("odd", f"odd {HOSTILE}", f"Zoo {HOSTILE}")]
    atlas = atlas_of(tmp_path / "atlas.zarr", relations, f"org/{HOSTILE}", range(6)).at(tau=0.0)
    shown = atlas._repr_html_()
    assert shown.count("<img") == 1 and "<script" not in shown and "<!--" not in shown, "one figure"
    assert "&lt;img src=x onerror=alert(1)&gt;" in shown and "Zoo &lt;/script&gt;" in shown


# Elsewhere ----------------------------------------------------------------------------------------


def test_an_atlas_in_memory_needs_no_files(tmp_path: Path) -> None:
    atlas = make_atlas(tmp_path / "atlas.zarr", 3, 2)
    table, loaded = atlas.table(), atlas.load()
    (tmp_path / "atlas.zarr").rename(tmp_path / "gone")
    assert loaded.path is None and str(loaded.folder) == "DIR" and not loaded.evidence
    assert loaded.table().equals(table) and loaded.at(k=3).scores.shape == (2, 3, 2, 19)
    assert loaded.pairs(0, 0, "copying").shape[0] == 40


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_saved_atlas_is_the_atlas(tmp_path: Path, in_memory: bool) -> None:
    atlas = make_atlas(tmp_path / "first" / "atlas.zarr", 4, 3, layers=range(3)).at(k=4, tau=0.2)
    atlas = atlas.load() if in_memory else atlas
    path = atlas.save(tmp_path / "deep" / "mine")
    assert path == tmp_path / "deep" / "mine" / "atlas.zarr"
    opened = ha.open_atlas(tmp_path / "deep" / "mine")
    assert opened.thresholds == atlas.thresholds == Thresholds(k=4, tau=0.2)
    assert_same_arrays(opened, atlas)
    assert opened.provenance == atlas.provenance | {"thresholds": asdict(atlas.thresholds)}
    assert opened.table().equals(atlas.table()) and opened.categories().equals(atlas.categories())
    assert opened._stored.attrs["scores_of"], "scores are stored with it"
    assert opened.layers_done.tolist() == [True, True, True, False]
    assert [each.name for each in path.parent.iterdir()] == ["atlas.zarr"]
    with pytest.raises(HeadatlasError, match=r"mine/atlas\.zarr: there is an atlas already"):
        atlas.save(tmp_path / "deep" / "mine")


def test_saving_an_atlas_in_memory_scores_nothing_again(
    tmp_path: Path, synthetic: Atlas, monkeypatch: pytest.MonkeyPatch
) -> None:
    atlas = synthetic.load()
    again = Mock(side_effect=AssertionError("scored again"))
    monkeypatch.setattr("headatlas.atlas.atlas.score_relation", again)
    atlas.save(tmp_path)
    assert ha.open_atlas(tmp_path).table().equals(atlas.table())
    again.assert_not_called()


def test_where_it_cannot_be_saved(tmp_path: Path, synthetic: Atlas) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(HeadatlasError, match=r"file/atlas\.zarr: cannot be written .* choose another folder"):
        synthetic.load().save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_tables_of_several_atlases(tmp_path: Path, planted: Atlas) -> None:
    other = plant_atlas(tmp_path / "atlas.zarr", PLANTS[:1], lens="maps").at(tau=0.3, k=5)
    both = ha.concat([planted, other])
    assert len(both) == len(planted.table()) + len(other.table())
    columns = ["model", "lens", "k", "tau", "q_max", "criterion"]
    assert {tuple(row) for row in both[columns].drop_duplicates().values.tolist()} == {
        ("Planted", "neutral", 10, 0.15, 0.01, "calibrated"),
        ("Planted", "maps", 5, 0.3, 0.01, "calibrated"),
    }
    part = both[both["lens"] == "maps"].drop(columns=columns).reset_index(drop=True)
    pd.testing.assert_frame_equal(part, other.table())
    with pytest.raises(HeadatlasError, match="`atlases` is empty: give two or more"):
        ha.concat([])
