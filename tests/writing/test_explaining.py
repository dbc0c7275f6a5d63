"""What relations explain of salient operations, and the fields of words of the rest."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import hypergeom

from headatlas.relations import Pair, Relation, core, library
from headatlas.writing.explaining import Explained, Library, fields_of
from headatlas.writing.run import _explanations


def relation(name: str, title: str, *pairs: tuple[str, str]) -> Relation:
    return Relation(name, title, "User", tuple(Pair(source, (target,)) for source, target in pairs))


CAPITALS = relation("capital", "country → capital", ("France", "Paris"), ("Italy", "Rome"), ("Peru", "Lima"))


def test_share_is_of_the_mass() -> None:
    known = Library([CAPITALS])
    sources = [" France", " Italy", " red", "Peru"]
    targets = [["x", " Paris"], [" Paris", "y"], [" z"], ["Lima"]]
    found = known.explain(sources, np.array([4.0, 3.0, 2.0, 1.0]), targets)
    assert found.share == pytest.approx((16 + 1) / 30)
    assert found.relations == (("capital", 2),)
    assert found.words == {"italy", "red"}


def test_copying_is_a_rule() -> None:
    found = Library([]).explain([" Bol", " Bol", " "], np.ones(3), [["Bol"], ["bol"], [" "]])
    assert found.share == pytest.approx(1 / 3) and found.relations == (("copying", 1),)
    assert np.isnan(Library([]).explain([], np.ones(0), []).share)


def test_fields_are_named_by_titles() -> None:
    days = [("Monday", "Tuesday"), ("Tuesday", "Sunday"), ("Sunday", "Monday")]
    items = relation("next", "item → the next in its sequence", ("one", "two"), ("two", "three"), *days)
    fields = Library([CAPITALS, items, relation("w", "word → colour", ("sky", "blue"))]).fields
    assert fields == {
        "country": {"france", "italy", "peru"},
        "capital": {"paris", "rome", "lima"},
        "one … three": {"one", "two", "three"},
        "monday … sunday": {"monday", "tuesday", "sunday"},
        "colour": {"blue"},
    }


def test_shipped_relations_have_the_fields_that_are_promised() -> None:
    fields = Library([*core(), *library()]).fields
    months = fields["jun … april"]  # short names follow each other, and "May" leads on to "June"
    assert len(months) == 23 and {"january", "dec", "may"} <= months and len(fields["mon … sun"]) == 7
    assert {"chemical element", "country", "animal"} <= set(fields) and "word" not in fields


def of(*words: str) -> Explained:
    return Explained(0.0, (), frozenset(words))


def test_enriched_fields_are_named() -> None:
    words = [f"w{i}" for i in range(1000)]
    fields = {
        "seven": set(words[:7]),
        "the same": set(words[:7]),
        "small": set(words[7:10]),
        "large": set(words[100:600]),
    }
    heads = [of(*words[:5], *words[100:105]), of(*words[7:10], *words[600:605]), of()]
    rest = fields_of(heads, fields, [f" {word.upper()}" for word in words])
    ((field, count, q),) = rest[0]
    assert (field, count) == ("seven", 5)
    # Three heads × three fields large enough; the two fields of the same words have the smallest p.
    assert q == pytest.approx(hypergeom.sf(4, 1000, 7, 10) * 9 / 2)
    assert rest[1:] == [[], []]
    assert fields_of([], fields, words) == [] and fields_of(heads, {}, words) == [[], [], []]


def test_layers_without_heads_are_no_heads_to_find_fields_in() -> None:
    texts = [f" w{i}" for i in range(200)]
    fields = [relation("field", "one → other", *[(f"w{i}", f"w{i + 10}") for i in range(10)])]
    chosen: Any = SimpleNamespace(texts=texts, ids=np.arange(200))

    def named(n_layers: int) -> list[str]:
        source = np.full((n_layers, 1, 8), -1)
        source[0, 0] = [*range(5), *range(50, 53)]
        targets = np.where(source >= 0, 100, -1)[..., None]
        arrays = {"source": source, "gain": np.ones(source.shape), "promoted": targets, "suppressed": targets}
        return list(_explanations(arrays, chosen, fields)["rest"][1].ravel())

    alone, among = named(1), named(100)
    assert alone[0] != "[]" and among[0] == alone[0] and set(among[1:]) == {"[]"}


def test_chance_names_no_field() -> None:
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(5000)]
    fields = {f"field {i}": set(rng.choice(words, 60, replace=False)) for i in range(30)}
    heads = [of(*rng.choice(words, 30, replace=False)) for _ in range(60)]
    assert sum(map(len, fields_of(heads, fields, words))) <= 1
