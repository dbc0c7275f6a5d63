"""The ground-truth benchmark: its statistics against references, and a small run of each half."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments.truth.ablating import banzhaf, kept_sets
from experiments.truth.figure import figure
from experiments.truth.planted import planted_cells
from experiments.truth.recovery import auroc, by_group, recovery
from experiments.truth.tasks import Induction, Lookup
from experiments.truth.trained import Case, trained_cells
from experiments.truth.training import Shape
from tests.mapping.checkpoints import FIRST_WORD


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=25))
def test_auroc_counts_pairs(cells: list[tuple[int, bool]]) -> None:
    yes, no = [score for score, true in cells if true], [score for score, true in cells if not true]
    wins = [(a > b) + 0.5 * (a == b) for a, b in product(yes, no)]
    found = auroc([score for score, _ in cells], [true for _, true in cells])
    assert np.isnan(found) if not wins else found == pytest.approx(np.mean(wins))


def test_precision_and_recall() -> None:
    cells = pd.DataFrame(
        {
            "score": [0.9, 0.5, 0.4, 0.1],
            "called": [True, True, True, False],
            "truth": [True, False, True, True],
        }
    )
    found = recovery(cells, "score", "called", "truth")
    assert (found["precision"], found["recall"], found["auroc"]) == pytest.approx((2 / 3, 2 / 3, 1 / 3))
    nothing = recovery(cells.assign(called=False), "score", "called", "truth")
    assert np.isnan(nothing["precision"]) and nothing["recall"] == 0


def test_banzhaf_values_are_mean_marginal_effects() -> None:
    rng = np.random.default_rng(0)
    kept = kept_sets(4, 16, seed=0)
    assert len({tuple(row) for row in kept.tolist()}) == 16
    value = {tuple(row): rng.random() for row in kept.tolist()}
    found = banzhaf(kept, np.array([[value[tuple(row)]] for row in kept.tolist()]))[:, 0]
    for head in range(4):
        without = [row for row in value if not row[head]]
        gains = [value[(*row[:head], True, *row[head + 1 :])] - value[row] for row in without]
        assert found[head] == pytest.approx(np.mean(gains))


def test_random_sets_come_with_their_opposites() -> None:
    kept = kept_sets(12, 64, seed=1)
    assert kept.shape == (64, 12)
    assert (kept[:32] ^ kept[32:]).all()


def test_tasks_ask_for_what_their_relations_say() -> None:
    generator = torch.Generator().manual_seed(0)
    induction = Induction(n_words=30, n_listed=6).batch(50, generator)
    for ids, answers in zip(induction.ids.tolist(), induction.answers.tolist(), strict=True):
        for at in (at for at, answer in enumerate(answers) if answer >= 0):
            before = ids[1:7].index(ids[at])
            assert at >= 7 and ids[1:7][before + 1] == answers[at]
    lookup = Lookup(n_keys=30, n_questions=2, n_fillers=8, length=5)
    values = lookup.value_ids()
    assert len(np.unique(values)) == 60
    batch = lookup.batch(50, generator)
    first_key = FIRST_WORD + 8
    for ids, answers, asked in zip(
        *(t.tolist() for t in (batch.ids, batch.answers, batch.asked)), strict=True
    ):
        keys = [token - first_key for token in ids if first_key <= token < first_key + 30]
        assert len(keys) == 1
        assert answers[-1] == values[asked[-1], keys[0]]
        assert set(answers[:-1]) == {-100}


def test_a_trained_lookup_head_is_proved_by_ablation_and_found_by_both_lenses() -> None:
    task = Lookup(n_keys=32, n_questions=1, n_fillers=8, length=5)
    shape = Shape(1, 4, 2, d_model=48, d_head=24, mlp=0)
    case = Case("lookup", task, shape, ((0, 1),), steps=150, n=96, n_sets=16)
    what, cells = trained_cells(case, "few", seed=0)
    assert what["accuracy"] > 0.95
    for lens in ("maps", "neutral"):
        part = cells[cells["lens"] == lens].set_index("head")
        # What one layer of attention writes goes to the answer directly.
        assert part["total"].to_numpy() == pytest.approx(part["direct"].to_numpy(), abs=1e-6)
        assert part["alone"].idxmax() == part["total"].idxmax() == part["score"].idxmax() == 1
        assert part.loc[1, "writes"] and part.loc[1, "called"]


@pytest.fixture(scope="module")
def planted() -> pd.DataFrame:
    torch.set_num_threads(1)
    return pd.concat([planted_cells(2.0, 0.0, seed=0), planted_cells(0.1, 4.0, seed=0)], ignore_index=True)


def test_planted_heads_are_called_and_decoys_are_not(planted: pd.DataFrame) -> None:
    easy = planted[planted["noise"] == 0]
    for _, part in easy.groupby("lens"):
        found = recovery(part, "score", "called", "truth")
        assert (found["precision"], found["recall"], found["true"]) == (1.0, 1.0, 20)
        decoys = part[(part["kind"] == "decoy") & (part["sign"] == "promotes")]
        assert len(decoys) == 8 and decoys["called_tau"].all() and not decoys["called"].any()


def test_scores_are_the_planted_strengths(planted: pd.DataFrame) -> None:
    plants = planted[(planted["noise"] == 0) & planted["truth"] & (planted["lens"] == "neutral")]
    assert plants["strength"].nunique() == 3
    np.testing.assert_allclose(plants["score"], plants["strength"], atol=0.06)


def test_maps_needs_a_large_first_mlp_and_neutral_does_not(planted: pd.DataFrame) -> None:
    hard = by_group(
        planted[planted["noise"] > 0], ["first_mlp", "lens"], score="score", called="called", truth="truth"
    ).set_index("lens")
    assert hard.loc["neutral", "recall"] == 1.0
    assert hard.loc["maps", "recall"] < 0.5
    assert hard.loc["maps", "auroc"] < 0.9 < hard.loc["neutral", "auroc"]


def test_the_figure_shows_both_halves(planted: pd.DataFrame) -> None:
    trained = pd.DataFrame(
        {"task": ["a", "a"], "lens": ["maps", "neutral"], "total": [0.1, 0.2], "score": [0.5, 1]}
    )
    drawn = figure(planted, trained, 120.0)
    assert len(drawn.axes) == 3
    words = [text.get_text() for text in drawn.texts]
    assert {"first MLP 2", "first MLP 0.1", "Noise", "Accuracy due to the head"} <= set(words)
