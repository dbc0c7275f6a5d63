"""The page's data say what the atlas says."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from headatlas.atlas import Atlas
from headatlas.report.data import _round_up, page_data
from headatlas.report.page import bundle, embed, report_html, stylesheet
from tests.report.made_up import atlas_of, large_atlas, relation

KB = 1000


def as_table(data: dict[str, Any]) -> pd.DataFrame:
    """The rows of the page's data, one per listed head × relation."""
    parts = []
    for entry in data["relations"]:
        if "cells" not in entry:
            continue
        cells, n = entry["cells"], entry["n_sources"]
        frame = pd.DataFrame(cells)
        at = frame["at"].cumsum()
        layer = at // data["n_heads"]
        parts.append(
            pd.DataFrame(
                {
                    "layer": layer,
                    "head": at % data["n_heads"],
                    "relation": entry["name"],
                    "category": data["categories"][entry["category"]],
                    "score": frame["hits"] / n,
                    "suppression": frame["suppressed"] / n,
                    "added": frame["added"] / n,
                    "q": frame["q"],
                    "suppression_q": frame["suppression_q"],
                    "control": [entry["control"][i] / n for i in layer],
                    "n_sources": n,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def test_the_rows_are_those_of_the_table(
    atlas: Atlas, page: str, data_of: Callable[[str], dict[str, Any]]
) -> None:
    rows = as_table(data_of(page))
    keys = ["layer", "head", "relation"]
    both = atlas.table().merge(rows, on=keys, how="left", suffixes=("", "_page"), indicator=True)
    listed = both[both["_merge"] == "both"]
    assert len(listed) == len(rows) > 100
    for column in ("category", "score", "suppression", "control", "added", "n_sources"):
        assert (listed[column] == listed[f"{column}_page"]).all(), column
    for column in ("q", "suppression_q"):
        rounded = listed[f"{column}_page"].to_numpy()
        np.testing.assert_allclose(rounded, listed[column], rtol=1e-3)
        assert (rounded >= listed[column].to_numpy()).all()
        assert ((rounded <= 0.01) == (listed[column] <= 0.01)).all()
    omitted = both[both["_merge"] == "left_only"]
    assert (omitted[["score", "suppression"]] == 0).all().all()
    assert (omitted[["q", "suppression_q"]] == 1).all().all()


def test_layers_that_are_not_mapped_are_null(page: str, data_of: Callable[[str], dict[str, Any]]) -> None:
    data = data_of(page)
    assert data["layers_done"] == [1, 1, 1, 1, 0, 0]
    for entry in data["relations"]:
        assert entry["left_out"] or [x is None for x in entry["control"]] == [False] * 4 + [True] * 2


def test_relations_say_what_was_used_and_what_was_not(
    hostile_page: str, page: str, data_of: Callable[[str], dict[str, Any]]
) -> None:
    used = data_of(hostile_page)["relations"][0]
    assert (used["n_pairs"], used["n_sources"], used["n_targets"]) == (40, 40, 20)
    assert used["dropped"] == [{"reason": "because of a → b", "count": 2, "examples": ["a → b"] * 2}]
    (missing,) = [each for each in data_of(page)["relations"] if each["left_out"]]
    assert missing["name"] == "year_to_following"
    assert "at least 30 needed" in missing["left_out"]
    assert "cells" not in missing


def test_an_atlas_without_any_layer(tmp_path: Path, data_of: Callable[[str], dict[str, Any]]) -> None:
    empty = atlas_of(tmp_path / "a.zarr", [relation("r", "r", "Knowledge")], "m", range(0))
    (only,) = data_of(report_html(empty))["relations"]
    assert only["n_sources"] == 40
    assert "cells" not in only


def test_an_atlas_without_any_head_that_counts(
    atlas: Atlas, data_of: Callable[[str], dict[str, Any]]
) -> None:
    nothing = atlas.at(tau=1.0, q_max=0.0)
    assert (nothing.categories()["n_categories"] == 0).all()
    assert data_of(report_html(nothing))["thresholds"]["tau"] == 1.0


def test_long_lists_of_the_provenance_are_cut(hostile: Atlas) -> None:
    provenance = page_data(hostile, alternative="", in_words="")["provenance"]
    assert provenance["masked_ids"]["entries"] == 99
    assert len(provenance["masked_ids"]["first"]) < 99
    assert provenance["notes"][1] is None


@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        (0.01, 0.01),
        (math.nextafter(0.01, 1), 0.01001),
        (0.0, 0),
        (1.0, 1),
        (0.123456, 0.1235),
        (math.nan, None),
    ],
)
def test_q_is_rounded_upwards(value: float, rounded: float | None) -> None:
    assert _round_up(np.array([value]), 4) == [rounded]


@pytest.mark.parametrize(
    ("n_layers", "n_heads", "most"), [(30, 9, 600 * KB), (80, 64, 6000 * KB)], ids=["30x9", "80x64"]
)
def test_the_page_stays_small(tmp_path: Path, n_layers: int, n_heads: int, most: int) -> None:
    large = large_atlas(tmp_path / "a.zarr", n_layers, n_heads)
    data = embed(page_data(large, alternative="", in_words=""))
    assert len(data) + len(bundle()) + len(stylesheet(4)) < most - 50 * KB
