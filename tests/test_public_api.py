"""The public API: a name that appears or disappears here is a change for users."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import headatlas
from tests.synthetic import make_atlas

NAMES = [
    "Atlas",
    "Compute",
    "HeadatlasError",
    "Pair",
    "Relation",
    "Thresholds",
    "__version__",
    "ask",
    "behaviour",
    "compare",
    "concat",
    "describe",
    "evidence",
    "label",
    "map_heads",
    "open_atlas",
    "plan",
    "plot_categories",
    "query",
    "recipe",
    "resolve_relations",
    "salience",
    "structure",
]
ATLAS = {
    *("open", "at", "load", "save"),
    *("dataset", "provenance", "thresholds", "place", "path"),
    *("model_name", "lens", "folder", "n_layers", "n_heads", "layers_done", "layers_without_heads"),
    *("relations", "included", "left_out", "category_names", "known"),
    *("relation_scores", "scores", "p", "q", "calls", "table", "without_evidence"),
    *("evidence", "forget_evidence"),
    *("behaviours", "salience", "spectrum", "explained", "labels"),
    *("sel", "heads", "head", "search", "coverage", "top", "pairs", "categories"),
    *("caption", "plot", "recipe", "explore"),
}


def test_exported_names() -> None:
    assert headatlas.__all__ == NAMES
    assert dir(headatlas) == NAMES
    assert len(NAMES) < 25


def test_what_an_atlas_has(tmp_path: Path) -> None:
    atlas = make_atlas(tmp_path / "atlas.zarr", 2, 2)
    public = {name for name in {*dir(type(atlas)), *vars(atlas)} if not name.startswith("_")}
    assert public == ATLAS
    for name in ATLAS - {"dataset", "provenance", "thresholds", "place", "folder", "evidence"}:
        assert inspect.getdoc(getattr(headatlas.Atlas, name)) or name in (
            "model_name",
            "lens",
            "n_layers",
            "n_heads",
        )


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_there_and_documented(name: str) -> None:
    value = getattr(headatlas, name)
    assert name == "__version__" or inspect.getdoc(value)


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'bogus'"):
        headatlas.bogus  # noqa: B018


def test_arguments_of_map_heads() -> None:
    parameters = inspect.signature(headatlas.map_heads).parameters
    assert list(parameters)[:2] == ["model", "tokenizer"]
    assert list(parameters)[2:] == [
        *("relations", "lens", "thresholds", "out", "layers", "compute", "progress"),
        *("mask", "ceiling", "target_policy", "sources", "remote", "adapter", "force", "stats", "opened"),
    ]
    keyword_only = [p for name, p in parameters.items() if name not in ("model", "tokenizer")]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in keyword_only)


def test_an_atlas_in_python(tmp_path: Path) -> None:
    make_atlas(tmp_path / "atlas.zarr", 2, 2)
    atlas = headatlas.open_atlas(tmp_path, tau=0.3)
    assert isinstance(atlas, headatlas.Atlas)
    assert atlas.thresholds.tau == 0.3
    assert list(atlas.top("country_to_capital", 1).columns[:3]) == ["layer", "head", "relation"]
    with pytest.raises(headatlas.HeadatlasError):
        headatlas.open_atlas(tmp_path / "missing")


def test_relations_in_python() -> None:
    names = {relation.name for relation in headatlas.resolve_relations("core")}
    assert "country_to_capital" in names
    made = headatlas.Relation("mine", "mine", "User", (headatlas.Pair("sky", ("blue",)),))
    assert made.pairs[0].targets == ("blue",)


def test_evidence_is_a_name_of_three_functions() -> None:
    assert headatlas.evidence.__all__ == ["ablation", "attention", "inference"]
    for name in headatlas.evidence.__all__:
        parameters = inspect.signature(getattr(headatlas.evidence, name)).parameters
        assert list(parameters)[:3] == ["atlas", "model", "tokenizer"]
        assert {"only", "templates", "compute", "progress"} <= set(parameters)


def test_structure_and_compare(tmp_path: Path) -> None:
    first, second = (make_atlas(tmp_path / str(seed) / "atlas.zarr", 3, 2, seed=seed) for seed in (0, 1))
    assert headatlas.structure(first).to_dict()["per_head"]
    table = headatlas.compare(first, second).table
    best = table[table["relation"] == "country_to_capital"]["score"].tolist()
    assert best == [atlas.top("country_to_capital", 1)["score"][0] for atlas in (first, second)]
