"""The page's own JavaScript, run by node, agrees with Python."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headatlas.atlas import Atlas
from headatlas.report.page import bundle, report_html
from headatlas.scoring.scores import wilson
from tests.report.test_page import FOLDER

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(
    NODE is None, reason="node, which runs the page's JavaScript, is not installed"
)

TAUS = (0.0, 0.01, 0.02, 0.03, 0.1, 0.15, 0.155, 0.3, 0.55, 1.0)


def node(*arguments: str) -> str:
    done = subprocess.run(
        [str(NODE), *arguments], capture_output=True, text=True, encoding="utf-8", check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checked(
    atlas: Atlas, page: str, data_of: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    path = tmp_path_factory.mktemp("node") / "data.json"
    path.write_text(json.dumps({"data": data_of(page), "taus": TAUS}), encoding="utf-8")
    return json.loads(node(str(Path(__file__).with_name("check.mjs")), str(FOLDER / "js"), str(path)))


def test_the_bundle_is_a_module(tmp_path: Path) -> None:
    (tmp_path / "bundle.mjs").write_text(bundle(), encoding="utf-8")
    node("--check", str(tmp_path / "bundle.mjs"))


def test_the_same_heads_for_every_criterion(atlas: Atlas, checked: Any) -> None:
    assert len(checked["readings"]) == 2 * len(TAUS)
    for reading in checked["readings"]:
        other = atlas.at(tau=reading["tau"], criterion=reading["criterion"])
        frame = other.categories()
        level = np.zeros((atlas.n_layers, atlas.n_heads), dtype=int)
        level[frame["layer"], frame["head"]] = frame["n_categories"]
        assert reading["level"] == level.ravel().tolist(), other
        for at, category in enumerate(atlas.category_names):
            mine = frame[[category in which for which in frame["which"]]]
            assert sum(reading["member"][at]) == reading["counts"][at + 1]["total"] == len(mine)
            levels = [int((mine["n_categories"] == n).sum()) for n in (1, 2, 3, 4)]
            assert reading["counts"][at + 1]["levels"] == levels
        assert reading["counts"][0]["total"] == int((level > 0).sum())


def test_the_table_of_heads_is_in_the_atlas_order(atlas: Atlas, checked: Any) -> None:
    expected = atlas.sel(called=True)[["layer", "head", "relation"]].to_numpy().tolist()
    assert checked["best"] == expected


def test_the_table_can_be_filtered(atlas: Atlas, checked: Any) -> None:
    def rows(frame: Any) -> set[tuple[Any, ...]]:
        return set(frame[["layer", "head", "relation"]].itertuples(index=False, name=None))

    def got(name: str) -> set[tuple[Any, ...]]:
        return {tuple(row) for row in checked[name]}

    assert got("capital") == rows(atlas.sel(relation="country_to_capital", called=True))
    assert got("relation") == rows(atlas.sel(relation=checked["relationName"], called=True))
    heads = {layer * atlas.n_heads + head for layer, head, _ in got("relation")}
    assert {cell for cell, on in enumerate(checked["relationHeads"]) if on} == heads
    table = atlas.table()
    listed = table[(table["score"] > 0) | (table["suppression"] > 0)]
    one = listed[(listed["layer"] == 2) & (listed["head"] == 1)]
    assert got("head") == got("headByName") == got("headRows") == rows(one)


def test_the_csv_holds_what_is_shown(atlas: Atlas, checked: Any) -> None:
    frame = atlas.sel(called=True)
    rows = list(csv.DictReader(io.StringIO(checked["csv"], newline="")))
    assert len(rows) == len(frame)
    columns = ("score", "low", "high", "suppression", "suppression_low", "control", "added", "n_sources", "q")
    for column in columns:
        read = [float(row[column]) for row in rows]
        np.testing.assert_allclose(read, frame[column].to_numpy(dtype=float), rtol=1e-3, atol=1e-12)
    assert [row["effect"] for row in rows] == [
        ", ".join(word for word, on in (("promotes", up), ("suppresses", down)) if on)
        for up, down in zip(frame["implements"], frame["suppresses"], strict=True)
    ]


def test_hostile_titles_in_the_csv_stay_one_field(
    hostile: Atlas, data_of: Callable[[str], Any], tmp_path: Path
) -> None:
    data = data_of(report_html(hostile.at(tau=0.0)))
    data["relations"][0]["title"] = '=HYPERLINK("x"),\n'
    data["relations"].append(data["relations"][0])
    (tmp_path / "data.json").write_text(json.dumps({"data": data, "taus": []}), encoding="utf-8")
    script = Path(__file__).with_name("check.mjs")
    out = json.loads(node(str(script), str(FOLDER / "js"), str(tmp_path / "data.json")))
    titles = {row["title"] for row in csv.DictReader(io.StringIO(out["csv"], newline=""))}
    assert titles == {relation["title"] for relation in data["relations"][1:3]} | {
        "'" + data["relations"][0]["title"]
    }


def test_intervals_are_wilson(checked: Any) -> None:
    low, high = wilson(np.array([0, 13, 40]), 40)
    np.testing.assert_allclose(checked["wilson"], np.stack([low, high], axis=1), atol=1e-12)
    assert checked["ends"] == [[0, 1]] * 500  # no 1.7e-18 for 0


def test_panels_fit_the_room_with_whole_pixels(checked: Any) -> None:
    kinds = [plan["kind"] for plan in checked["plans"]]
    assert kinds == ["row", "focus", "stack", "stack", "row"]
    for plan in checked["plans"]:
        for cell in (plan["first"], plan["others"]):
            assert (cell["width"] * plan["ratio"]) % 1 == 0
            assert cell["width"] * plan["layers"] <= plan["width"]
    assert checked["ticks"] == [[0, 5, 10, 15, 20, 25, 29], [0, 10, 20, 30, 40, 50, 60, 70, 79], [0, 2], [0]]
