"""Whatever bytes a file holds, reading it gives valid relations or one clear error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headatlas.errors import HeadatlasError
from headatlas.relations import Pair, resolve_relations
from headatlas.relations.relation import word_problem

WORDS = st.text(
    st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zs", "Zl", "Zp"]), min_size=1, max_size=8
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
KEYS = st.sampled_from(["pairs", "samples", "subject", "object", "name", "title", "category", "copying", "x"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
TABLE_TEXT = st.lists(
    st.sampled_from(["source", "target", ",", "\t", "|", '"', "\n", "\r", "a", " ", "\0", "é"])
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def check(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        relations = resolve_relations(path)
    except HeadatlasError as error:
        assert str(error).startswith(str(path))
    else:
        (relation,) = relations
        words = [word for pair in relation.pairs for word in (pair.source, *pair.targets)]
        assert [word for word in words if word_problem(word)] == []
        assert len({pair.source for pair in relation.pairs}) == len(relation.pairs) > 0
        assert len(relations[0].sha256) == 64


@given(data=st.binary(max_size=200), suffix=st.sampled_from([".json", ".csv", ".tsv"]))
def test_any_bytes(folder: Path, data: bytes, suffix: str) -> None:
    check(folder / f"bytes{suffix}", data)


@given(value=VALUES, indent=st.sampled_from([None, 1]))
@settings(max_examples=300)
def test_any_json(folder: Path, value: object, indent: int | None) -> None:
    check(folder / "any.json", json.dumps(value, indent=indent).encode())


@given(parts=TABLE_TEXT, header=st.booleans(), suffix=st.sampled_from([".csv", ".tsv"]))
@settings(max_examples=300)
def test_any_table(folder: Path, parts: list[str], header: bool, suffix: str) -> None:
    start = ("source,target\n" if suffix == ".csv" else "source\ttarget\n") if header else ""
    check(folder / f"any{suffix}", (start + "".join(parts)).encode())


@given(
    pairs=st.dictionaries(WORDS, st.lists(WORDS, min_size=1, max_size=3, unique=True), min_size=1, max_size=6)
)
def test_what_is_written_is_what_is_read(folder: Path, pairs: dict[str, list[str]]) -> None:
    path = folder / "round.json"
    path.write_text(json.dumps(list(pairs.items())), encoding="utf-8")
    assert resolve_relations(path)[0].pairs == tuple(
        Pair(source, tuple(targets)) for source, targets in pairs.items()
    )
