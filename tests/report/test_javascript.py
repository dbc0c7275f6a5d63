"""The page's own JavaScript, run by node, agrees with Python."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from headatlas.arrangement import compare
from headatlas.atlas import Atlas
from headatlas.atlas.cards import coverage, head_card, similar_heads
from headatlas.figures.compare import comparison_data
from headatlas.figures.plots import write_table
from headatlas.options import Thresholds
from headatlas.report.comparison import compared_data
from headatlas.report.data import page_data
from headatlas.report.page import N_SCORES, bundle, report_html
from headatlas.scoring.scores import wilson
from headatlas.showing import safe_values
from tests.report.made_up import atlas_of, large_atlas, relation
from tests.report.test_page import FOLDER
from tests.synthetic import make_atlas

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(
    NODE is None, reason="node, which runs the page's JavaScript, is not installed"
)

TAUS = (0.0, 0.01, 0.02, 0.03, 0.1, 0.15, 0.155, 0.3, 0.55, 1.0)
KS = ((10, 1), (1, 1), (2, 2), (5, 1), (7, 3), (32, 32), (5, 5))
"""k and k of copying relations."""
Q_AT = (5, 32)
HEADS = ("2.1", "0.0", "3.3")
FRAGMENTS = (
    "",
    "#head=2.1&tau=0.3&relation=country_to_capital",
    "#k=5&k_copy=2&q=any&sign=suppression&category=Linguistic,Knowledge&colour=categories",
    "#head=99.1&tau=7&k=0&relation=nothing,copying&x=%3Cscript%3E&unknown=1&sort=-score&below=1&q=0.05",
    "#find=l%C3%A9on%20%26%20%23&y=looks:self&head=L2H1",
    "#tau=&k=ten&q=&__proto__=1&constructor=2&relation=year_to_following",
)


def node(*arguments: str) -> str:
    done = subprocess.run(
        [str(NODE), *arguments], capture_output=True, text=True, encoding="utf-8", check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(data: Any, folder: Path, **asked: Any) -> Any:
    """The JSON that ``check.mjs`` prints about a page's data."""
    path = folder / "data.json"
    path.write_text(json.dumps({"data": data, "taus": [], **asked}), encoding="utf-8")
    return json.loads(node(str(Path(__file__).with_name("check.mjs")), str(FOLDER / "js"), str(path)))


def evaluated(module: str, names: str, code: str) -> Any:
    """What an expression over some names of one of the page's modules is."""
    address = (FOLDER / "js" / f"{module}.mjs").as_uri()
    text = f"import {{ {names} }} from {json.dumps(address)}; console.log(JSON.stringify({code}));"
    return json.loads(node("--input-type=module", "--eval", text))


@pytest.fixture(scope="module")
def checked(atlas: Atlas, data_of: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    data = data_of(report_html(atlas, q_at=Q_AT))
    asked = {"taus": TAUS, "ks": KS, "heads": HEADS, "fragments": FRAGMENTS, "searches": ["s3", "t3", "7.7"]}
    return run(data, tmp_path_factory.mktemp("node"), **asked)


def test_the_bundle_is_a_module(tmp_path: Path) -> None:
    (tmp_path / "bundle.mjs").write_text(bundle(), encoding="utf-8")
    node("--check", str(tmp_path / "bundle.mjs"))


def test_scores_and_q_at_any_k(atlas: Atlas, checked: Any) -> None:
    keys = ["relation", "layer", "head"]
    for found in checked["scored"]:
        other = atlas.at(k=found["k"], k_copy=found["kCopy"])
        table = other.table().set_index(keys)
        names = pd.DataFrame(found["table"], columns=["layer", "head", "relation"])
        rows = table.loc[pd.MultiIndex.from_frame(names[keys])]
        assert len(rows) > 100
        for column in ("score", "suppression", "added", "control"):
            assert found[column] == rows[column].tolist(), (column, found["k"])
        rest = table.drop(rows.index)
        assert (rest[["score", "suppression"]] == 0).all().all()
        assert (rest[["q", "suppression_q"]] == 1).all().all()
        for hits, name in zip(found["stateHits"], other.relation_scores, strict=True):
            n = int(other.included.set_index("relation")["n_sources"][name])
            mine = other.relation_scores[name].control[other.layers_done] * n
            assert hits[: len(mine)] == np.rint(mine).tolist()
        known = found["k"] in (10, *Q_AT) and found["kCopy"] in (1, *Q_AT)
        assert found["known"] == known
        for column in ("q", "suppression_q"):
            assert found[column] == (rows[column].tolist() if known else [None] * len(rows)), found["k"]


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


def test_promotion_and_suppression_apart(atlas: Atlas, checked: Any) -> None:
    table = atlas.table()
    for sign, wanted in (("both", 3), ("promotion", 1), ("suppression", 2)):
        bits = (table["implements"] + 2 * table["suppresses"]) & wanted
        rows = table.assign(bits=bits)[bits > 0][["layer", "head", "relation", "bits"]]
        assert sorted(checked["signs"][sign]) == sorted(rows.to_numpy().tolist())


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
    assert got("suppresses") == rows(table[table["suppresses"]])
    listed = table[(table["score"] > 0) | (table["suppression"] > 0)]
    one = listed[(listed["layer"] == 2) & (listed["head"] == 1)]
    assert got("headByName") == got("headByLongName") == rows(one)
    assert got("headRows") >= rows(one)
    assert got("layer") == rows(listed[listed["layer"] == 2])


def test_words_find_pairs_and_the_heads_that_hit_them(atlas: Atlas, checked: Any) -> None:
    called = atlas.sel(called=True)
    for word, found, rows in zip(("s3", "t3"), checked["searches"], checked["words"], strict=False):
        expected = []
        for row in called.to_dict("records"):
            pairs = atlas.pairs(row["layer"], row["head"], row["relation"])
            mine = pairs[pairs["source"].str.contains(word) | pairs["target"].str.contains(word)]
            if (mine["hit"] | mine["suppression_hit"]).any():
                expected.append([row["layer"], row["head"], row["relation"]])
        assert sorted(rows) == sorted(expected)
        pairs = [each for each in found["pairs"] if each["relation"] == "country_to_capital"]
        for each in pairs[:3]:
            assert word in (each["source"] + each["target"])
            hits = {
                f"{layer}.{head}"
                for layer in range(4)
                for head in range(4)
                for pair in atlas.pairs(layer, head, "country_to_capital").to_dict("records")
                if pair["hit"] and (pair["source"], pair["target"]) == (each["source"], each["target"])
            }
            assert set(each["heads"]) == hits
    assert not any(checked["searches"][2].values()), "there is no layer 7"


def test_a_card_holds_the_pairs_and_the_similar_heads(atlas: Atlas, checked: Any) -> None:
    assert len(checked["cards"]) == len(HEADS)
    for card in checked["cards"]:
        layer, head = map(int, card["head"].split("."))
        assert card["pairs"]
        for name, sign, pairs in card["pairs"]:
            prefix = "" if sign == "promotion" else "suppression_"
            frame = atlas.pairs(layer, head, name)
            ranks = [None if pd.isna(rank) else int(rank) for rank in frame[f"{prefix}rank"]]
            expected = sorted(
                zip(frame["source"], frame["target"], ranks, frame[f"{prefix}hit"], strict=True), key=str
            )
            got = sorted(((p["source"], p["target"], p["rank"], p["hit"]) for p in pairs), key=str)
            assert got == expected
            of_source = frame.groupby("source")
            hit, control = of_source[f"{prefix}hit"].any(), of_source["control_hit"].any()
            assert all(p["sourceHit"] == hit[p["source"]] for p in pairs)
            assert all(p["controlHit"] == control[p["source"]] for p in pairs)
        expected = similar_heads(atlas, layer, head)
        assert [name for name, _ in card["similar"]] == [
            f"{row['layer']}.{row['head']}" for row in expected.to_dict("records")
        ]
        np.testing.assert_allclose([value for _, value in card["similar"]], expected["similarity"])


@pytest.mark.parametrize(
    ("cell", "value", "expected"),
    [
        # 3 is not mapped, and 4 was not measured: their one term is higher than the mean of two of 2.
        (1, [0.5, 0.5, 0.52, 0.5, None], [2, 0]),
        (1, [0.5, None, 0.52, 0.5, None], [4, 2, 0]),  # by what it writes: nobody knows where it looks
        (0, [0.5, 0.5, 0.52, 0.5, None], [1, 2]),  # by where it looks: it scores nowhere
    ],
)
def test_similar_heads_are_compared_by_the_same_terms(
    cell: int, value: list[float | None], expected: list[int]
) -> None:
    values = json.dumps(value).replace("null", "NaN")
    code = f"""similarHeads({{
      atlas: {{ nHeads: 1, nCells: 5, mapped: [1, 1, 1, 0, 1],
        rows: {{ length: 3, cell: [1, 2, 4], relation: [0, 0, 0] }},
        rowsOfCell: {{ start: [0, 0, 1, 2, 2, 3], order: [0, 1, 2] }} }},
      heads: {{ behaviours: [{{ tested: true, value: {values} }}] }},
      reading: {{ scores: {{ score: [0.5, 0.5, 0.5], suppression: [0, 0.3, 0] }} }} }}, {cell})"""
    found = evaluated("measures", "similarHeads", code)
    assert [each["cell"] for each in found] == expected


def test_a_word_that_cannot_be_a_target_has_a_dash_for_a_rank() -> None:
    ranks = "[rankText(7, true), rankText(null, true), rankText(null, false), rankText(null)]"
    assert evaluated("questions", "rankText", ranks) == ["7", "≥ 250", "–", "≥ 250"]


def test_a_card_holds_what_was_measured(tmp_path: Path) -> None:
    atlas = large_atlas(tmp_path / "atlas.zarr", 3, 4)
    data = safe_values(page_data(atlas, alternative="", in_words=""))
    out = run(data, tmp_path, heads=["0.0", "2.3"])
    frame = coverage(atlas)
    assert out["coverage"]["more"] == int(frame["beyond_sink"].sum()) > 0
    for card in out["cards"]:
        layer, head = map(int, card["head"].split("."))
        known = head_card(atlas, layer, head)
        assert known.salient is not None and known.behaviours is not None and known.spectrum is not None
        written = card["written"]
        for own, column in (("source", "source"), ("promoted", "promoted"), ("suppressed", "suppressed")):
            assert [each[own] for each in written["operations"]] == known.salient[column].tolist()
        gains = [each["gain"] for each in written["operations"]]
        np.testing.assert_allclose(gains, known.salient["gain"], atol=1e-3)
        for mine, theirs in zip(written["directions"], known.spectrum["directions"], strict=True):
            for side in ("reads", "promoted", "suppressed"):
                assert [end[side] for end in mine["ends"]] == [end[side] for end in theirs["ends"]]
        looks = known.behaviours.set_index("behaviour")
        assert {name for name, *_ in card["looks"]} == set(looks.index)
        for name, value, expected, q, called in card["looks"]:
            row = looks.loc[name]
            np.testing.assert_allclose([value, expected], [row["value"], row["expected"]], atol=1e-4)
            assert row["q"] - 1e-9 <= q <= row["q"] + 1e-4
            assert bool(called) == row["called"]


def test_coverage_is_that_of_the_atlas(atlas: Atlas, checked: Any) -> None:
    frame = coverage(atlas)
    assert checked["coverage"]["any"] == int(frame["covered"].sum()) > 0
    assert checked["coverage"]["more"] == int(frame["beyond_sink"].sum())
    assert checked["coverage"]["total"] == len(frame)


def test_a_score_that_is_held_to_no_q_is_no_tested_statement(atlas: Atlas, checked: Any) -> None:
    with_q, without_q = checked["coverageByScore"]
    tested, by_score = (
        int((atlas.at(q_max=1e-16, criterion=criterion).categories()["n_categories"] > 0).sum())
        for criterion in ("calibrated", "tau")
    )
    assert with_q == tested < by_score
    assert without_q == 0


@pytest.mark.parametrize("criterion", ["tau", "calibrated"])
def test_the_table_of_changes_says_how_both_were_read(criterion: Any) -> None:
    rule = Thresholds(criterion=criterion).describe()
    said = evaluated("changetable", "fixedWords", f"fixedWords({{ data: {{ rule: {json.dumps(rule)} }} }})")
    assert said.startswith(f"Compared at {rule}, on the sources")
    assert ("q ≤" in said) == (criterion == "calibrated")


def test_colours_measures_and_the_profile_follow_the_scores(atlas: Atlas, checked: Any) -> None:
    assert checked["steps"] == N_SCORES - 1
    table = atlas.table()
    best = table.groupby(["layer", "head"])[["score", "suppression"]].max()
    cells = [layer * atlas.n_heads + head for layer, head in best.index]
    for name in ("score", "suppression"):
        values = checked["measures"][name]
        assert [values[cell] for cell in cells] == best[name].tolist()
        assert [value for cell, value in enumerate(values) if cell not in cells] == [None] * (24 - len(cells))
    one = table[table["relation"] == checked["relationName"]].set_index(["layer", "head"])
    strongest = [checked["strongest"][cell] for cell in cells]
    assert strongest == one.loc[best.index][["score", "suppression"]].max(axis=1).tolist()
    categories = atlas.categories()
    for at, category in enumerate(atlas.category_names):
        mine = categories[[category in which for which in categories["which"]]]
        expected = [int((mine["layer"] == layer).sum()) for layer in range(atlas.n_layers)]
        assert checked["profile"][at] == expected
    whole = atlas.table()
    whole["strength"] = whole[["score", "suppression"]].max(axis=1)
    for layer, (best_score, control) in enumerate(zip(*checked["bestOfLayers"], strict=True)):
        rows = whole[whole["layer"] == layer]
        assert best_score == (rows["strength"].max() if len(rows) else None)
        ties = rows[rows["strength"] == best_score]
        of_same = [row.control if row.score == best_score else None for row in ties.itertuples()]
        assert control in of_same or not of_same
    by_level, by_score, by_layer, unknown = checked["painted"]
    assert by_level == unknown == [f"level-{n}" if n else None for n in checked["readings"][11]["level"]]
    assert by_layer[-1] is None, "layer 5 is not mapped"
    assert by_layer[0] == "score-0"
    assert by_score[cells[0]] in {f"{way}-{n}" for way in ("score", "down") for n in range(1, N_SCORES)}


def test_the_fragment_says_what_was_chosen(atlas: Atlas, checked: Any) -> None:
    assert checked["opening"] == ""
    for found in checked["fragments"]:
        assert found["again"] == found["state"]
    plain, link, many, wrong, odd, empty = checked["fragments"]
    names = atlas.relations["relation"].tolist()
    assert plain["written"] == empty["written"] == ""
    assert plain["state"]["tau"] == atlas.thresholds.tau
    assert link["written"] == "head=2.1&relation=country_to_capital&tau=0.3"
    assert (link["state"]["head"], link["state"]["tau"]) == (2 * atlas.n_heads + 1, 0.3)
    assert (link["chosen"], link["colour"]) == ([names.index("country_to_capital")], "score")
    assert many["state"]["q"] is None
    assert (many["state"]["k"], many["state"]["kCopy"], many["state"]["sign"]) == (5, 2, "suppression")
    assert len(many["chosen"]) == 13
    assert many["colour"] == "categories"
    assert wrong["written"] == "relation=copying&q=0.05&below=1&sort=-score"
    assert odd["state"]["find"] == "léon & #"
    assert odd["state"]["y"] == "looks:self"
    assert odd["written"] == "head=2.1&y=looks:self&find=l%C3%A9on%20%26%20%23"


def test_the_csv_holds_what_is_shown(atlas: Atlas, checked: Any) -> None:
    frame = atlas.sel(called=True)
    rows = list(csv.DictReader(io.StringIO(checked["csv"], newline="")))
    assert len(rows) == len(frame)
    columns = ("score", "low", "high", "suppression", "suppression_low", "control", "added", "n_sources", "q")
    for column in columns:
        read = [float(row[column]) for row in rows]
        np.testing.assert_allclose(read, frame[column].to_numpy(dtype=float), rtol=1e-5, atol=1e-12)
    assert [row["effect"] for row in rows] == [
        ", ".join(word for word, on in (("promotes", up), ("suppresses", down)) if on)
        for up, down in zip(frame["implements"], frame["suppresses"], strict=True)
    ]


def number_or_text(field: str) -> float | str:
    """A field of a CSV, whichever way its number is written."""
    return float(field) if re.fullmatch(r"-?[\d.]+(e-?\d+)?", field) else field


def test_the_csv_of_changes_is_that_of_compare(tmp_path: Path) -> None:
    atlases = [make_atlas(tmp_path / f"{seed}.zarr", seed=seed) for seed in (0, 1)]
    found = compare(*atlases)
    data = compared_data(found, atlases)
    (tmp_path / "data.json").write_text(json.dumps(data), encoding="utf-8")
    code = f"""await (async () => {{
      const load = (name) => import({json.dumps((FOLDER / "js").as_uri())} + `/${{name}}.mjs`);
      const [{{ unpack }}, {{ csvOf }}, fs] = [await load("unpack"), await load("rows"), await import("fs")];
      const data = JSON.parse(fs.readFileSync({json.dumps(str(tmp_path / "data.json"))}, "utf8"));
      const atlas = {{ relations: [], nHeads: {atlases[0].n_heads} }};
      const comparison = decodeChanges(atlas, data, [await unpack(data.steps[0].cells)], null);
      const [step] = comparison.steps;
      return csvOf(changeLines({{ atlas, comparison, step }}, [...step.cell.keys()]));
    }})()"""
    made, file = (
        [[number_or_text(field) for field in row] for row in csv.reader(io.StringIO(text, newline=""))]
        for text in (
            evaluated("changes", "changeLines, decodeChanges", code),
            write_table(comparison_data(found), tmp_path / "data.csv").read_text(encoding="utf-8"),
        )
    )
    assert made == file and len(made) > 100
    assert {row[made[0].index("q")] == "" for row in made[1:]} == {True, False}


def test_hostile_titles_in_the_csv_stay_one_field(
    hostile: Atlas, data_of: Callable[[str], Any], tmp_path: Path
) -> None:
    data = data_of(report_html(hostile.at(tau=0.0)))
    data["relations"][0]["title"] = '=HYPERLINK("x"),\n'
    out = run(data, tmp_path)
    titles = {row["title"] for row in csv.DictReader(io.StringIO(out["csv"], newline=""))}
    assert titles == {"'" + data["relations"][0]["title"]} | {
        relation["title"] for relation in data["relations"][1:]
    }


def test_an_atlas_without_any_layer_is_read(tmp_path: Path, data_of: Callable[[str], Any]) -> None:
    empty = atlas_of(tmp_path / "a.zarr", [relation("r", "r", "Knowledge")], "m", range(0))
    out = run(data_of(report_html(empty)), tmp_path, searches=["t1"])
    assert out["best"] == []
    assert out["coverage"] == {"any": 0, "more": 0, "total": 0}
    assert [each["heads"] for each in out["searches"][0]["pairs"]] == [[]] * len(out["searches"][0]["pairs"])


def test_intervals_are_wilson(checked: Any) -> None:
    low, high = wilson(np.array([0, 13, 40]), 40)
    np.testing.assert_allclose(checked["wilson"], np.stack([low, high], axis=1), atol=1e-12)
    assert checked["ends"] == [[0, 1]] * 500  # no 1.7e-18 for 0


def test_panels_fit_the_room_with_whole_pixels(checked: Any) -> None:
    assert [plan["columns"] for plan in checked["plans"]] == [4, 2, 1, 2, 4]
    for plan in checked["plans"]:
        for cell, zoom in ((plan["main"], plan["zoom"]), (plan["side"], 1)):
            assert (cell["width"] * plan["ratio"]) % 1 == 0
            assert cell["width"] * plan["layers"] <= plan["width"] * zoom
    assert checked["ticks"] == [
        [0, 5, 10, 15, 20, 25],
        [0, 10, 20, 30, 40, 50, 60, 70],
        [0, 4, 8],
        [0, 2],
        [0],
    ]
    assert checked["roundTicks"][:2] == [[0, 0.2, 0.4, 0.6, 0.8, 1], [0, 10, 20]]
    assert checked["roundTicks"][2:] == [[-0.4, -0.2, 0, 0.2, 0.4], [0]]
