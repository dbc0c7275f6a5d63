"""The page's data say what the atlas says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headatlas.atlas import Atlas
from headatlas.atlas.store import read_array
from headatlas.report.data import page_data
from headatlas.report.packed import MISSING, fixed, pack
from headatlas.report.page import bundle, embed, report_html, stylesheet
from tests.report.made_up import HOSTILE, atlas_of, large_atlas, relation
from tests.report.unpacking import unpack

KB = 1000


def test_the_ranks_are_those_of_the_atlas(
    atlas: Atlas, page: str, data_of: Callable[[str], dict[str, Any]]
) -> None:
    arrays = unpack(data_of(page)["packed"]["ranks"])
    row = pair = entry = 0
    for at, name in enumerate(atlas.included["relation"]):
        cells = np.cumsum(arrays["row_cell"][row : row + arrays["rows"][at]])
        n_pairs = int(arrays["pairs"][at])
        found = np.full((atlas.n_layers * atlas.n_heads, n_pairs), -1)
        for cell, n in zip(cells, arrays["row_promotion"][row : row + len(cells)], strict=True):
            where = np.cumsum(arrays["promotion_pair"][entry : entry + n])
            found[cell, where] = arrays["promotion_rank"][entry : entry + n]
            entry += int(n)
        usable = np.flatnonzero(
            (read_array(atlas.dataset, "pair_relation") == atlas.included.index[at])
            & (read_array(atlas.dataset, "pair_source") >= 0)
        )
        ranks = read_array(atlas.dataset, "promotion_rank")[..., usable].reshape(found.shape)
        assert (np.where(ranks >= 0, ranks, -1) == found).all(), name
        source = arrays["pair_source"][pair : pair + n_pairs]
        assert (source == read_array(atlas.dataset, "pair_source")[usable]).all()
        row, pair = row + len(cells), pair + n_pairs
    assert row == len(arrays["row_cell"]) > 100
    assert entry == len(arrays["promotion_rank"])


def test_what_is_packed_comes_back() -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "u1": rng.integers(0, 256, 9),
        "u2": rng.integers(0, 1 << 16, (3, 2)),
        "u4": rng.integers(0, 1 << 32, 5),
        "i4": rng.integers(-(1 << 31), 1 << 31, 4),
        "f8": rng.random(7) ** 99,
        "none": np.zeros(0),
    }
    kinds = {name: ("u2" if name == "none" else name, values) for name, values in arrays.items()}
    section = pack(kinds, {"words": [HOSTILE, "\u202e"]})
    out = unpack(section)
    for name, values in arrays.items():
        assert out[name].tolist() == values.ravel().tolist()
    assert json.loads(out["json"].tobytes()) == {"words": [HOSTILE, "\\u202e"]}
    assert section == pack(kinds, {"words": [HOSTILE, "\u202e"]})
    with pytest.raises(OverflowError, match="ranks does not fit u1"):
        pack({"ranks": ("u1", np.array([256]))})
    assert fixed(np.array([0.12345, math.nan, -1.0]), 4)[1].tolist() == [1234, MISSING, -10000]


def test_layers_that_are_not_mapped_have_no_rows(
    atlas: Atlas, page: str, data_of: Callable[[str], dict[str, Any]]
) -> None:
    data = data_of(page)
    assert data["layers_done"] == [1, 1, 1, 1, 0, 0]
    arrays = unpack(data["packed"]["ranks"])
    row = 0
    for n in arrays["rows"]:
        assert np.cumsum(arrays["row_cell"][row : row + n])[-1] < 4 * atlas.n_heads
        row += int(n)
    assert not arrays["control"].reshape(-1, atlas.n_layers)[:, 4:].any()


def test_relations_say_what_was_used_and_what_was_not(
    hostile_page: str, page: str, data_of: Callable[[str], dict[str, Any]]
) -> None:
    used = data_of(hostile_page)["relations"][0]
    assert (used["n_pairs"], used["n_sources"], used["n_targets"]) == (40, 40, 20)
    assert used["dropped"] == [{"reason": "because of a → b", "count": 2, "examples": ["a → b"] * 2}]
    (missing,) = [each for each in data_of(page)["relations"] if each["left_out"]]
    assert missing["name"] == "year_to_following"
    assert "at least 30 needed" in missing["left_out"]
    words = json.loads(unpack(data_of(page)["packed"]["words"])["json"].tobytes())
    assert len(words) == 19
    assert words[0] == [[f"s{i}" for i in range(40)], [f"t{i % 20}" for i in range(40)]]


def test_an_atlas_without_any_layer(tmp_path: Path, data_of: Callable[[str], dict[str, Any]]) -> None:
    empty = atlas_of(tmp_path / "a.zarr", [relation("r", "r", "Knowledge")], "m", range(0))
    data = data_of(report_html(empty))
    assert data["relations"][0]["n_sources"] == 40
    assert unpack(data["packed"]["ranks"])["rows"].tolist() == [0]


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
    ("n_layers", "n_heads", "most"), [(30, 9, 1000 * KB), (80, 64, 10_000 * KB)], ids=["30x9", "80x64"]
)
def test_the_page_stays_small(tmp_path: Path, n_layers: int, n_heads: int, most: int) -> None:
    large = large_atlas(tmp_path / "atlas.zarr", n_layers, n_heads)
    data = page_data(large, alternative="", in_words="")
    n_cells = n_layers * n_heads
    operations = unpack(data["packed"]["salience"])["source"]
    assert len(operations) == n_cells * (15 if n_cells > 1200 else 30)
    assert len(unpack(data["packed"]["ranks"])["promotion_rank"]) > 90 * n_cells
    assert len(embed(data)) + len(bundle()) + len(stylesheet(4)) < most
