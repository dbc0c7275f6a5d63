"""The public API: a name that appears or disappears here is a change for users."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import headatlas
from tests.synthetic import make_atlas

NAMES = [
    "Atlas",
    "HeadatlasError",
    "Pair",
    "Relation",
    "__version__",
    "core_relations",
    "describe",
    "load_relations",
    "map_heads",
    "open_atlas",
    "plan",
]


def test_exported_names() -> None:
    assert headatlas.__all__ == NAMES
    assert dir(headatlas) == NAMES


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
    assert {"out", "preset", "lens", "relations", "k", "k_copy", "tau", "criterion", "layers"} <= set(
        parameters
    )
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
    names = {relation.name for relation in headatlas.core_relations()}
    assert "country_to_capital" in names
    made = headatlas.Relation("mine", "mine", "User", (headatlas.Pair("sky", ("blue",)),))
    assert made.pairs[0].targets == ("blue",)
