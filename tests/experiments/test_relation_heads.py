"""Which heads relations share: statistics of hand-made sets, and tables and figure of a small atlas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments import relation_heads as heads
from tests.report.made_up import atlas_of, relation


def test_jaccard_index_of_sets() -> None:
    sets = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]], dtype=bool)
    assert heads.jaccard(sets)[0, 1] == pytest.approx(1 / 3)
    assert heads.jaccard(sets)[2, 2] == 0
    assert heads.mean_overlap(sets) == pytest.approx((1 / 3) / 3)


def test_the_null_keeps_the_number_of_heads_in_each_layer() -> None:
    rng = np.random.default_rng(1)
    sets = rng.random((5, 4, 9)) < 0.3
    drawn = heads.redrawn(sets, rng)
    assert (drawn.sum(-1) == sets.sum(-1)).all()
    assert (drawn != sets).any()


def test_expected_overlap_is_that_of_independent_draws() -> None:
    sets = np.zeros((2, 3, 10), dtype=bool)
    sets[0, :, :4] = sets[1, :, 5:] = True
    _, shared = heads.under_null(sets, 4000)
    assert shared[:, 0, 1].mean() == pytest.approx(3 * 4 * 5 / 10, abs=0.1)


def test_p_is_small_for_the_same_heads_and_not_for_the_same_layers() -> None:
    same = np.zeros((4, 5, 9), dtype=bool)
    same[:, 3, :3] = True
    null, _ = heads.under_null(same, 500)
    assert heads.p_value(float(heads.mean_overlap(same.reshape(4, -1))), null) == pytest.approx(1 / 501)
    whole_layer = np.zeros((4, 5, 9), dtype=bool)
    whole_layer[:, 3] = True
    null, _ = heads.under_null(whole_layer, 50)
    assert heads.p_value(float(heads.mean_overlap(whole_layer.reshape(4, -1))), null) == 1


def test_holm() -> None:
    assert heads.holm(np.array([0.01, 0.04, 0.03])).tolist() == pytest.approx([0.03, 0.06, 0.06])


def test_tables_and_figure_of_an_atlas(tmp_path: Path) -> None:
    names = [("a_to_english", "Translation"), ("b_to_english", "Translation"), ("copying", "Algorithmic")]
    made = [relation(name, name, category) for name, category in names]
    atlas = atlas_of(tmp_path / "a.zarr", made, "Small", range(6))
    assert heads.languages(atlas) == ["a_to_english", "b_to_english"]
    text = heads.languages_table(atlas, 50)
    called = atlas.table()[lambda t: t["implements"] & (t["relation"] == "a_to_english")]
    assert f"a {len(called)}, b " in text
    both = heads.categories_table(atlas, 50)
    assert both["categories"].tolist() == ["Algorithmic, Translation"]
    coverage = heads.coverage_table(atlas).set_index("relations")
    n = len(atlas.table()[lambda t: t["implements"]][["layer", "head"]].drop_duplicates())
    assert coverage.loc["all (3)", "implements"] == f"{n} of 24 ({n / 24:.0%})"
    assert coverage.index.tolist() == ["core (1)", "all (3)"]
    heads.draw([atlas], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
