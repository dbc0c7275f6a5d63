"""``compare`` from the command line: atlases, and models that are mapped first."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from headatlas.mapping.run import folder_names
from tests.cli.conftest import Run, parsed
from tests.figures.planted import Plant, Spec, plant_atlas
from tests.mapping.checkpoints import save, tiny_model, word
from tests.synthetic import make_atlas

CAPITAL = "country_to_capital"


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / name for name in "ab"]
    for folder, hits in zip(folders, (30, 0), strict=True):
        plant_atlas(folder / "atlas.zarr", [Plant(2, 1, CAPITAL, hits), Plant(3, 0, CAPITAL, 25)])
    return folders


def test_two_of_one_shape(run: Run, two: list[Path], tmp_path: Path) -> None:
    result = run("compare", *two, "-o", tmp_path / "f.svg", "--data", tmp_path / "f.csv")
    assert "Lost: 1.\nGained: 0.\n" in result.stdout
    assert " 2.1  country_to_capital  promotion  0.75  0.00" in result.stdout
    assert "Heads that changed" in (tmp_path / "f.svg").read_text()
    rows = pd.read_csv(tmp_path / "f.csv")
    assert rows[["layer", "head", "change"]].fillna("").values.tolist() == [[2, 1, "lost"], [3, 0, ""]]
    found = parsed(run("compare", *two, "--json"))
    (step,) = found["changes"]
    assert found["not_by_head"] == ""
    assert step["counts"]["lost"] == 1 and len(step["changes"]) == 1
    fields = ["layer", "head", "relation", "sign", "score_a", "score_b", "difference"]
    assert list(step["changes"][0])[:12] == [*fields, "low", "high", "p", "q", "change"]


def test_others_are_compared_by_relation(run: Run, two: list[Path], tmp_path: Path) -> None:
    plant_atlas(tmp_path / "c" / "atlas.zarr", [], n_heads=5)
    result = run("compare", two[0], tmp_path / "c", "-o", tmp_path / "f.svg")
    assert "not compared head by head: they have other numbers" in result.stderr
    assert "Best score" in (tmp_path / "f.svg").read_text()
    refused = run("compare", two[0], tmp_path / "c", "--kind", "heads", "-o", tmp_path / "g.svg", code=2)
    assert refused.stderr.splitlines()[-1].startswith("error: --kind heads: ")
    assert refused.stdout == "" and not (tmp_path / "g.svg").exists()


def test_a_long_list_is_cut(run: Run, tmp_path: Path) -> None:
    for seed in range(2):
        make_atlas(tmp_path / str(seed) / "atlas.zarr", 6, 4, seed=seed)
    result = run("compare", tmp_path / "0", tmp_path / "1")
    found = parsed(run("compare", tmp_path / "0", tmp_path / "1", "--json"))
    more = len(found["changes"][0]["changes"]) - 20
    assert more > 0 and f"{more} more rows; --json has them all" in result.stderr


def test_choices_of_maps_are_for_models(run: Run, two: list[Path]) -> None:
    for option in (("--lens", "maps"), ("--maps", "x"), ("--relations", "core"), ("--sources", "50")):
        said = run("compare", *two, *option, code=2).stderr
        assert said == f"error: {option[0]} is for models that are mapped, and all of these are atlases.\n"


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    folders = []
    for name in ("first", "second"):
        model = tiny_model("llama", layers=2)
        if name == "second":
            for parameter in model.get_submodule("model.layers.1.self_attn.o_proj").parameters():
                parameter.data.zero_()
        folders.append(save(model, tmp_path / name))
    pairs = [f"{word(20 + i)},{word(100 + i)}" for i in range(40)]
    (tmp_path / "mine.csv").write_text("\n".join(["source,target", *pairs]))
    return folders


def test_models_are_mapped_first(run: Run, models: list[Path], tmp_path: Path) -> None:
    more = ("--relations", tmp_path / "mine.csv", "--lens", "maps", "--json")
    found = parsed(run("compare", *models, *more))
    assert [each["lens"] for each in found["atlases"]] == ["maps", "maps"]
    assert [each["atlas"] for each in found["atlases"]] == ["first", "second"] and len(found["changes"]) == 1
    assert not list(tmp_path.glob("**/atlas.zarr"))
    twice = run("compare", models[0], models[0], *more, code=2).stderr
    assert "the same atlas is given twice" in twice and twice.count("opening ") == 1
    kept = run("compare", *models, *more, "--maps", tmp_path / "maps")
    assert parsed(kept)["rows"] == found["rows"]
    assert sorted(path.parent.name for path in tmp_path.glob("maps/*/atlas.zarr")) == ["first", "second"]
    again = run("compare", *models, *more, "--maps", tmp_path / "maps")
    assert again.stdout == kept.stdout and "layers mapped" in kept.stderr
    assert "layers mapped" not in again.stderr, "what is mapped is not mapped again"
    mixed = parsed(run("compare", tmp_path / "maps" / "first", models[1], *more[:2], "--json"))
    assert mixed["rows"] == found["rows"], "the lens is that of the atlas"
    other = run("compare", *models, *more[:2], "--lens", "neutral", "--maps", tmp_path / "maps", code=2)
    assert "the atlas there is of another map (differs in lens" in other.stderr
    assert other.stderr.rstrip().endswith("choose another --maps.")


def test_relations_of_an_atlas_that_are_not_shipped(run: Run, two: list[Path], tmp_path: Path) -> None:
    own = plant_atlas(tmp_path / "own" / "atlas.zarr", [], specs=[Spec("atom → number", "Chemistry")])
    said = run("compare", own.folder, tmp_path / "no_model", code=2).stderr
    assert "relations that are not shipped" in said and said.endswith("give them with --relations.\n")


def test_what_is_no_model_either_is_refused(run: Run, two: list[Path], tmp_path: Path) -> None:
    said = run("compare", two[0], tmp_path / "nothing", code=2).stderr
    assert "error: " in said and "nothing" in said


def test_a_mistyped_name_may_be_of_either(run: Run, two: list[Path]) -> None:
    said = run("compare", two[0], "nofolder", code=2).stderr
    assert "error: 'nofolder' is neither an atlas nor a model here" in said


def test_a_page_of_both(run: Run, two: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "compare.html"
    assert f"written: {page}" in run("compare", *two, "--page", page, "--q-at", 5).stderr
    assert "--q-at is of the page, which --page writes" in run("compare", *two, "--q-at", 5, code=2).stderr
    text = page.read_text(encoding="utf-8")
    assert "their attention heads compared" in text and '"not_by_head":""' in text


def test_folders_are_named_after_models() -> None:
    assert folder_names(["a/Q8.gguf", "b/Q4.gguf"]) == ["Q8.gguf", "Q4.gguf"]
    assert folder_names(["a/m.gguf", "b/m.gguf", "c/x"]) == ["a-m.gguf", "b-m.gguf", "c-x"]
    assert folder_names(["org/name@main", "org/name@step1", "pypi:x"]) == [
        "name@main",
        "name@step1",
        "pypi-x",
    ]
    assert folder_names(["https://u:secret@host/m.gguf?sig=1"]) == ["m.gguf"]
    assert folder_names(["/"]) == [""]
