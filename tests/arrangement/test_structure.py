"""The structure of an atlas as a whole: numbers, JSON, figure, commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headatlas.arrangement import structure
from headatlas.atlas import Atlas
from headatlas.figures import describe
from headatlas.figures.structure import draw_structure
from tests.arrangement.test_groups import with_groups
from tests.cli.conftest import Run, parsed, run  # noqa: F401 (a fixture)
from tests.figures.planted import Plant, Spec, plant_atlas
from tests.synthetic import make_atlas

PLANTS = [
    Plant(layer, head, "country_to_capital", hits=30)
    for layer, head in ((1, 0), (2, 0), (2, 1), (3, 2), (4, 2))
]
PLANTS += [Plant(layer, 3, "word_to_first_letter", hits=30) for layer in range(1, 6)]
SPECS = (Spec("country → capital", "Knowledge", multi=4), Spec("word → first letter", "Algorithmic"))


@pytest.fixture
def planted(tmp_path: Path) -> Atlas:
    return with_groups(plant_atlas(tmp_path / "planted.zarr", PLANTS, specs=SPECS), 2)


def test_depth_and_its_test_are_those_of_the_description(planted: Atlas) -> None:
    found = structure(planted)
    rows = {row.category: row for row in found.depth.categories}
    assert rows["Knowledge"].layers == (1, 2, 2, 3, 4)
    assert (rows["Algorithmic"].low, rows["Algorithmic"].median, rows["Algorithmic"].high) == (2, 3, 4)
    assert found.depth.comparison is not None
    assert f"H = {found.depth.comparison.h:.1f}" in describe(planted)
    assert found.depth_single is not None


def test_json_is_plain(planted: Atlas) -> None:
    found = json.loads(json.dumps(structure(planted).to_dict(), allow_nan=False))
    assert list(found) == ["groups", "no_groups", "per_head", "depth", "depth_single"]
    assert found["per_head"]["observed"] == [14, 10]


@pytest.mark.parametrize("width_mm", [60.0, 170.0])
@pytest.mark.parametrize("kind", ["planted", "blank", "unmapped"])
def test_the_figure_says_what_was_found(kind: str, width_mm: float, planted: Atlas, tmp_path: Path) -> None:
    atlas = {
        "planted": lambda: planted,
        "blank": lambda: plant_atlas(tmp_path / "blank.zarr", []),
        "unmapped": lambda: plant_atlas(tmp_path / "none.zarr", [], mapped=[]),
    }[kind]()
    figure = draw_structure(atlas, structure(atlas), width_mm)
    words = " ".join(text.get_text() for text in figure.texts).replace("\u00a0", " ")
    assert "lens neutral" in words
    assert len(figure.axes) == 3
    assert "Kruskal–Wallis" not in words, "results stand in the text"
    assert ("Kruskal–Wallis" in figure.description) == (kind == "planted")
    figure.savefig(tmp_path / "figure.svg")
    assert figure.get_figwidth() * 25.4 == pytest.approx(width_mm)


def test_command_structure(run: Run, tmp_path: Path) -> None:  # noqa: F811
    make_atlas(tmp_path / "out" / "atlas.zarr", 4, 3)
    text = run("structure", tmp_path / "out", "-o", tmp_path / "figure.svg").stdout
    assert "Relations per head" in text and "Kruskal–Wallis" in text
    assert (tmp_path / "figure.svg").is_file()
    found = parsed(run("structure", tmp_path / "out", "--json", "--tau", 0.5))
    assert found["model"] == "Synthetic-1M" and found["thresholds"]["tau"] == 0.5
    assert "a figure can be" in run("structure", tmp_path / "out", "-o", "x.gif", code=2).stderr


def test_command_compare(run: Run, tmp_path: Path) -> None:  # noqa: F811
    for seed in (0, 1):
        make_atlas(tmp_path / str(seed) / "atlas.zarr", 4, 3, seed=seed)
    folders = [tmp_path / "0", tmp_path / "1"]
    result = run("compare", *folders, "-o", tmp_path / "figure.png")
    assert "Spearman" in result.stdout and "not compared: year_to_following" in result.stderr
    assert (tmp_path / "figure.png").is_file()
    found = parsed(run("compare", *folders, "--json"))
    assert len(found["rows"]) == 2 * 19
    assert {row["atlas"] for row in found["rows"]} == set(found["labels"])
    assert "at least two" in run("compare", folders[0], code=2).stderr
