"""The engine equals the float64 oracle, source by source, at any batch size, and counts what it saves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from headatlas.architectures import Dims, LayerHeads
from headatlas.atlas.store import LayerRanks
from headatlas.mapping import bounds, engine, full_vocabulary, screening
from headatlas.mapping.vocabulary import Vocabulary, summing_error
from headatlas.progress import Stats
from tests.lenses.test_devices import META, Elsewhere
from tests.mapping import oracle
from tests.mapping.cases import random_problem


@pytest.fixture(params=["float32", "bfloat16"], autouse=True)
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test holds for both kinds of screening, whatever this processor prefers."""
    monkeypatch.setattr(bounds, "bfloat16_pays", lambda _: request.param == "bfloat16")


def assert_same(left: LayerRanks, right: LayerRanks) -> None:
    for field in fields(LayerRanks):
        np.testing.assert_array_equal(
            getattr(left, field.name), getattr(right, field.name), err_msg=field.name
        )


@pytest.mark.parametrize("norm", ["layer", "sandwich", "none"])
@pytest.mark.parametrize("ceiling", [1, 5, 32, 250])
def test_engine_equals_the_oracle(norm: str, ceiling: int) -> None:
    for seed in range(3):
        layout, inputs, vocabulary = random_problem(seed, norm=norm)
        expected = oracle.brute_force_layer(layout, inputs, vocabulary, ceiling=ceiling)
        assert_same(engine.map_layer(layout, inputs, vocabulary, ceiling=ceiling), expected)
        if ceiling >= 32:
            assert (expected.promotion >= 0).any() and (expected.cell_promotion < 255).any()


@pytest.mark.parametrize("pilots", [1, 7, 100_000])
@pytest.mark.parametrize("alone", [True, False])
def test_results_do_not_depend_on_rounds_routes_or_chunks(
    pilots: int, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, inputs, vocabulary = random_problem(7)
    expected = engine.map_layer(layout, inputs, vocabulary, ceiling=32)
    monkeypatch.setattr(full_vocabulary, "FIRST_CHUNK", 33)
    monkeypatch.setattr(full_vocabulary, "LARGEST_CHUNK", 50)
    monkeypatch.setattr(full_vocabulary, "BLOCK_ROWS", 13)
    monkeypatch.setattr(full_vocabulary, "MOST_CANDIDATES", 2000)
    monkeypatch.setattr(bounds, "SUMMED", 5)
    monkeypatch.setattr(engine, "PILOTS", pilots)
    monkeypatch.setattr(engine, "_many_lines", lambda head, _: alone and head.space.basis is not None)
    assert_same(engine.map_layer(layout, inputs, vocabulary, ceiling=32), expected)


@pytest.mark.parametrize("heads_at_once", [1, 3])
def test_heads_may_be_in_work_a_few_at_a_time(heads_at_once: int) -> None:
    """And a control that is known is not computed again."""
    layout, inputs, vocabulary = random_problem(7)
    stats = Stats(), Stats()
    expected = engine.map_layer(layout, inputs, vocabulary, ceiling=32, stats=stats[0])
    found = engine.map_layer(
        layout, inputs, vocabulary, ceiling=32, heads_at_once=heads_at_once, control=expected.control
    )
    assert_same(found, expected)
    engine.map_layer(layout, inputs, vocabulary, ceiling=32, control=expected.control, stats=stats[1])
    assert stats[1].rows < stats[0].rows and stats[1].products < stats[0].products


def test_what_a_gpu_does_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Selecting by torch instead of NumPy; the numbers are still the processor's."""
    layout, inputs, vocabulary = random_problem(7)
    expected = engine.map_layer(layout, inputs, vocabulary, ceiling=32)
    asked: list[torch.device] = []
    monkeypatch.setattr(full_vocabulary, "on_processor", lambda values: asked.append(values.device))
    assert_same(engine.map_layer(layout, inputs, vocabulary, ceiling=32), expected)
    assert len(asked) > 10


def test_near_ties_are_decided_in_float64() -> None:
    """Rows of U that differ by less than float32 can see: only a float64 recheck ranks them."""
    layout, inputs, vocabulary = random_problem(3, vocab=400)
    rows = vocabulary.rows.clone()
    base = rows[int(vocabulary.columns(layout.targets)[0])].clone()
    generator = torch.Generator().manual_seed(0)
    near = [i for i in range(0, 380, 9) if i not in vocabulary.columns(layout.targets)]
    for i in near:
        rows[i] = base * (1 + 2e-7 * torch.randn(1, generator=generator))
    close = replace(vocabulary, rows=rows)
    stats = Stats()
    found = engine.map_layer(layout, inputs, close, ceiling=250, stats=stats)
    assert_same(found, oracle.brute_force_layer(layout, inputs, close, ceiling=250))
    assert stats.rechecked > 0


def test_a_vocabulary_smaller_than_the_ceiling_still_has_exact_ranks() -> None:
    layout, inputs, vocabulary = random_problem(5, vocab=130)
    found = engine.map_layer(layout, inputs, vocabulary, ceiling=250)
    assert_same(found, oracle.brute_force_layer(layout, inputs, vocabulary, ceiling=250))
    assert (found.promotion[:, layout.own_pair] >= 0).all()


def test_a_head_that_writes_nothing_ranks_nothing() -> None:
    layout, inputs, vocabulary = random_problem(1)
    W_O = inputs.heads.W_O.clone()
    W_O[2] = 0
    zero = replace(inputs, heads=LayerHeads(inputs.heads.W_V, inputs.heads.b_V, W_O))
    found = engine.map_layer(layout, zero, vocabulary, ceiling=32)
    assert_same(found, oracle.brute_force_layer(layout, zero, vocabulary, ceiling=32))
    assert (found.promotion[2] < 0).all() and (found.suppression[2] < 0).all()
    assert (found.cell_promotion[2] == 255).all()


def test_copies_of_a_row_count_against_the_target_both_ways() -> None:
    """A target whose row of U has a copy is never rank 0: ties are pessimistic."""
    layout, inputs, vocabulary = random_problem(2)
    target = int(vocabulary.columns(layout.targets)[layout.own_column[0]])
    rows = vocabulary.rows.clone()
    rows[(target + 1) % len(vocabulary)] = rows[target]
    twin = replace(vocabulary, rows=rows)
    found = oracle.brute_force_layer(layout, inputs, twin, ceiling=250)
    pair = layout.own_pair[0]
    both = np.concatenate([found.promotion[:, pair], found.suppression[:, pair]])
    assert not (both == 0).any()
    assert_same(engine.map_layer(layout, inputs, twin, ceiling=250), found)


@pytest.mark.parametrize("exponent", [-122, 60])
def test_the_scale_of_a_head_changes_nothing(exponent: int) -> None:
    """Positive scales change no rank, also where float32 products would underflow."""
    layout, inputs, vocabulary = random_problem(6)
    expected = engine.map_layer(layout, inputs, vocabulary, ceiling=32)
    heads = LayerHeads(inputs.heads.W_V, inputs.heads.b_V, inputs.heads.W_O * 2.0**exponent)
    assert (heads.W_O != 0).all()
    scaled = replace(inputs, heads=heads)
    weak = replace(vocabulary, rows=vocabulary.rows * 2.0**-24)
    assert_same(oracle.brute_force_layer(layout, scaled, weak, ceiling=32), expected)
    assert_same(engine.map_layer(layout, scaled, weak, ceiling=32), expected)


def test_screening_leaves_little_of_the_matrix() -> None:
    """Where states resemble each other, as a model's do, screening eliminates most rows."""
    dims = Dims(1, 4, 2, 64, 16, 8000)
    layout, inputs, vocabulary = random_problem(0, vocab=8000, dims=dims)
    alike = replace(inputs, states=inputs.states[:1] + 0.1 * inputs.states)
    stats = Stats()
    engine.map_layer(layout, alike, vocabulary, ceiling=32, stats=stats)
    n = len(layout.sources)
    # The control's rows all go in; the heads' rows, once a sign, mostly do not.
    assert stats.rows - n < 0.3 * 2 * dims.n_heads * n
    # Of all logits, float64 sees few.
    assert 0 < stats.rechecked < 0.05 * dims.n_heads * n * len(vocabulary)


def test_a_head_projects_the_vocabulary_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a head goes alone, pilots, pairs and cells share the projection; no column is projected twice."""
    layout, inputs, vocabulary = random_problem(7)
    columns = []
    make = bounds._Kept.__init__

    def counted(self: bounds._Kept, project: Callable[[slice], torch.Tensor], n: int) -> None:
        columns.append(0)
        at = len(columns) - 1

        def counting(part: slice) -> torch.Tensor:
            columns[at] += part.stop - part.start
            return project(part)

        make(self, counting, n)

    monkeypatch.setattr(bounds._Kept, "__init__", counted)
    monkeypatch.setattr(engine, "_many_lines", lambda head, _: head.space.basis is not None)
    monkeypatch.setattr(engine, "PILOTS", 4)
    engine.map_layer(layout, inputs, vocabulary, ceiling=32)
    assert columns == [len(vocabulary)] * inputs.dims.n_heads


def test_screens_sort_groups_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tokens screen: of a row, no more numbers are sorted than there are groups."""
    layout, inputs, vocabulary = random_problem(0, vocab=8000, dims=Dims(1, 4, 2, 64, 16, 8000))
    screens, sorted_, in_screens, kth, screen = [], [], [], screening.kth, screening.Space.screen

    def screened(space: screening.Space, *args: Any, **given: Any) -> None:
        screens.append(len(space.tokens))
        before = len(sorted_)
        screen(space, *args, **given)
        in_screens.extend(sorted_[before:])

    monkeypatch.setattr(screening, "kth", lambda values, k: sorted_.append(values.shape[1]) or kth(values, k))
    monkeypatch.setattr(screening.Space, "screen", screened)
    engine.map_layer(layout, inputs, vocabulary, ceiling=8)
    assert max(screens) > 10 * screening.GROUPS * 8
    assert max(in_screens) == screening.GROUPS * 8


def test_kv_groups_share_values_but_not_outputs() -> None:
    """Swapping the value weights of one group changes only the heads that read it."""
    layout, inputs, vocabulary = random_problem(4)
    before = engine.map_layer(layout, inputs, vocabulary, ceiling=32)
    W_V = inputs.heads.W_V.clone()
    W_V[1] = W_V[1].flip(0)
    changed = replace(inputs, heads=LayerHeads(W_V, inputs.heads.b_V, inputs.heads.W_O))
    after = engine.map_layer(layout, changed, vocabulary, ceiling=32)
    np.testing.assert_array_equal(before.promotion[:2], after.promotion[:2])
    assert (before.promotion[2:] != after.promotion[2:]).any()


def test_other_devices_have_wider_bounds() -> None:
    """Tensor cores do not round their sums: the bounds allow for it, whether U is kept in bfloat16 or not."""
    for exact in (True, False):
        _, _, vocabulary = random_problem(7)
        rows = vocabulary.rows.to(torch.bfloat16).to(torch.float32) if exact else vocabulary.rows
        here = Vocabulary.competing(rows, np.ones(len(rows), dtype=bool))
        assert (here.rows.dtype == torch.bfloat16) is exact
        there = replace(here, device=torch.device("meta"))
        assert there.bfloat16.device.type == "meta"
        assert summing_error(24, there.device) == 4 * summing_error(24, here.device)
        lost = torch.linalg.vector_norm(rows - rows.to(torch.bfloat16).to(torch.float32), dim=1)
        assert (here.bfloat16_lost >= lost).all()
        np.testing.assert_allclose(here.bfloat16_lost, lost, atol=2e-2 * float(here.norms.max()), rtol=0)


def test_nothing_is_computed_from_two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, which holds no numbers. Rows of a GPU may be picked by indices of the processor."""
    layout, inputs, vocabulary = random_problem(7)
    some = np.zeros(3, dtype=np.int64), np.arange(3)
    for module in (full_vocabulary, screening):
        monkeypatch.setattr(module, "where_at_least", lambda *_: some)
    with Elsewhere() as elsewhere:
        there = replace(vocabulary, device=META)
        engine.map_layer(layout, inputs, there, ceiling=32)
    assert {what.split(":")[0] for what in elsewhere.mixed} <= {"index"}
    assert elsewhere.products["meta"] > 100 > elsewhere.products["cpu"]
