"""Atlases compared: the same relation in several, and two models of one shape head by head."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from headatlas.arrangement import compare
from headatlas.arrangement.comparison import (
    FEWEST_DISCORDANT,
    HeadChanges,
    _cells,
    head_changes,
    labels_of,
    mcnemar,
    paired_difference,
    permutation_spearman,
)
from headatlas.atlas import Atlas
from headatlas.errors import HeadatlasError
from headatlas.figures import save
from headatlas.figures.compare import SHAPES, describe_changes, draw_comparison
from headatlas.mapping.run import map_heads
from headatlas.options import Look
from tests.figures.planted import FOUR, Plant, Spec, plant_atlas
from tests.mapping.checkpoints import relation, word, word_tokenizer
from tests.mapping.planting import D_HEAD, VOCAB, opened, plant, random_model, random_pairs, states_of
from tests.synthetic import make_atlas


def test_best_head_depth_and_count_of_each_relation(tmp_path: Path) -> None:
    small = plant_atlas(
        tmp_path / "a.zarr", [Plant(2, 1, "country_to_capital", 30), Plant(4, 0, "country_to_capital", 20)]
    )
    large = plant_atlas(
        tmp_path / "b.zarr", [Plant(9, 3, "country_to_capital", 10)], n_layers=11, lens="maps", control=0.0
    )
    found = compare(small, large)
    assert found.labels == ("Planted (neutral)", "Planted (maps)")
    rows = found.table[found.table["relation"] == "country_to_capital"].to_dict("records")
    picked = [[row[name] for name in ("layer", "head", "depth", "score", "n_implementing")] for row in rows]
    assert picked == [[2, 1, 0.4, 0.75, 2], [9, 3, 0.9, 0.25, 1]]
    assert [row["median_depth"] for row in rows] == pytest.approx([0.6, 0.9])
    none = found.table[found.table["relation"] == "english_to_french"]
    assert none["n_implementing"].tolist() == [0, 0]
    assert none["median_depth"].isna().all()
    assert found.agreement[0].score is None  # four relations are too few


def test_relations_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    other = Spec("atom → number", "Chemistry")
    gone = Spec("country → capital", "Knowledge", left_out="3 usable sources, at least 30 needed")
    first = plant_atlas(tmp_path / "a.zarr", [], specs=(*FOUR, other))
    second = plant_atlas(tmp_path / "b.zarr", [], specs=(FOUR[0], gone, FOUR[2]))
    found = compare(first, second)
    assert set(found.table["relation"]) == {"word_to_first_letter", "verb_to_past_tense"}
    assert set(found.left_out) == {"country_to_capital", "english_to_french", "atom_to_number"}
    assert found.left_out["atom_to_number"] == "scored in 1 of 2 atlases"


def test_relations_of_one_name_with_other_pairs_are_not_compared(tmp_path: Path) -> None:
    first = plant_atlas(tmp_path / "a.zarr", [])
    second = make_atlas(tmp_path / "b.zarr", 4, 3)
    with pytest.raises(HeadatlasError, match="its pairs differ"):
        compare(first, second)


def test_one_atlas_is_no_comparison(tmp_path: Path) -> None:
    with pytest.raises(HeadatlasError, match="at least two"):
        compare(plant_atlas(tmp_path / "a.zarr", []))


def test_atlases_are_given_one_by_one_as_a_list_or_as_paths(tmp_path: Path) -> None:
    both = [
        plant_atlas(tmp_path / name / "atlas.zarr", [Plant(1, 0, "country_to_capital", hits=30)], lens=lens)
        for name, lens in (("a", "neutral"), ("b", "maps"))
    ]
    found = compare(*both)
    assert repr(found).startswith(f"Comparison of {found.labels[0]} and {found.labels[1]}: ")
    assert found.not_by_head in repr(found) and len(repr(found)) < 1000
    table = found.table
    for given in ([both], [tmp_path / "a", both[1]], [[str(tmp_path / "a"), tmp_path / "b"]]):
        assert compare(*given).table.equals(table)  # type: ignore[arg-type]
    with pytest.raises(HeadatlasError, match="no atlas"):
        compare(tmp_path / "a", tmp_path / "nothing")
    with pytest.raises(HeadatlasError, match="this is no atlas but of the type int"):
        compare(both[0], 5)  # type: ignore[arg-type]


@pytest.mark.parametrize("again", ["a.zarr", "link.zarr", "./a.zarr"])
def test_an_atlas_is_not_compared_with_itself(tmp_path: Path, again: str) -> None:
    first = plant_atlas(tmp_path / "a.zarr", [])
    (tmp_path / "link.zarr").symlink_to(tmp_path / "a.zarr")
    with pytest.raises(HeadatlasError, match=f"{again.removeprefix('./')}: the same atlas is given twice"):
        compare(first, plant_atlas(tmp_path / "b.zarr", []), Atlas.open(tmp_path / again))
    other_reading = compare(first, Atlas.open(tmp_path / again).at(k=5))
    assert other_reading.labels == ("Planted (neutral) #1", "Planted (neutral) #2")


def test_labels_differ(tmp_path: Path) -> None:
    one = make_atlas(tmp_path / "a.zarr", 2, 2)
    other = plant_atlas(tmp_path / "b.zarr", [])
    assert labels_of([one, other]) == ("Synthetic-1M", "Planted")
    assert labels_of([one, other, other]) == (
        "Synthetic-1M (neutral)",
        "Planted (neutral) #1",
        "Planted (neutral) #2",
    )
    in_folders = [plant_atlas(tmp_path / name / "atlas.zarr", []) for name in ("before", "after")]
    assert labels_of(in_folders) == ("Planted (before)", "Planted (after)")


def test_spearman_equals_scipys() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 6, 12).astype(float)
    y = x + rng.normal(0, 3, 12)
    value, p = permutation_spearman(x, y)
    expected = stats.spearmanr(x, y)
    assert value == pytest.approx(expected.statistic)
    assert p == pytest.approx(expected.pvalue, abs=0.02)
    assert permutation_spearman(x[:4], y[:4]) == (None, None)
    assert permutation_spearman(np.ones(9), np.arange(9.0)) == (None, None)


@pytest.fixture
def three(tmp_path: Path) -> list[Atlas]:
    return [make_atlas(tmp_path / f"{seed}.zarr", 4, 3, seed=seed) for seed in range(3)]


@pytest.mark.parametrize("width_mm", [60.0, 170.0])
def test_the_figure_has_every_relation_and_atlas(three: list[Atlas], width_mm: float, tmp_path: Path) -> None:
    found = compare(*three)
    figure = draw_comparison(found, width_mm, "relations", Look(letters=True))
    letters = [text.get_text() for text in figure.texts if text.get_weight() == "bold"]
    assert letters == ["a", "b"]
    assert figure.get_figwidth() * 25.4 == pytest.approx(width_mm)
    words = " ".join(text.get_text() for text in figure.texts).replace("\u00a0", " ")
    for label in found.labels:
        assert label in words or width_mm < 100
    assert "score ≥ 0.15" in words
    assert [len(ax.get_yticks()) for ax in figure.axes] == [19, 19]
    saved = save(figure, tmp_path / "figure.png")
    assert saved.stat().st_size > 0


def test_more_atlases_than_marks_are_refused(three: list[Atlas]) -> None:
    many = compare(*(three[0].at(tau=at / 100) for at in range(len(SHAPES) + 1)))
    with pytest.raises(HeadatlasError, match="at most 6"):
        draw_comparison(many, 170, "relations")


# Two models of one shape head by head: the paired test, the classes of change, the counts -----------


CAPITAL, PAST, FRENCH = "country_to_capital", "verb_to_past_tense", "english_to_french"


def counted(*numbers: int) -> list[np.ndarray[Any, Any]]:
    return [np.array([number]) for number in numbers]


@pytest.mark.parametrize(("b", "c"), [(0, 0), (3, 3), (0, 6), (12, 2), (1, 7), (40, 61)])
def test_mcnemar_is_the_exact_binomial_test(b: int, c: int) -> None:
    expected = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar(*counted(b, c))[0] == pytest.approx(expected)


def test_fewer_discordant_sources_could_not_tell() -> None:
    assert mcnemar(*counted(0, FEWEST_DISCORDANT - 1))[0] > 0.05
    assert mcnemar(*counted(0, FEWEST_DISCORDANT))[0] <= 0.05


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),  # Newcombe 1998, method 10: first less second
        ((20, 12, 2, 16), 0.0562, 0.3292),
        ((1, 1, 7, 12), -0.507, -0.026),  # Fagerland, Lydersen and Laake 2014
    ],
)
def test_the_interval_is_newcombes(table: tuple[int, int, int, int], low: float, high: float) -> None:
    both, only_first, only_second, _ = table
    d, minus_high, minus_low = paired_difference(*counted(both, only_first, only_second), sum(table))
    assert (-minus_low[0], -minus_high[0]) == pytest.approx((low, high), abs=6e-4)
    assert d[0] == (only_second - only_first) / sum(table)


def test_intervals_hold_the_difference() -> None:
    grid = np.array([t for t in np.ndindex(9, 9, 9) if sum(t) <= 8]).T
    d, low, high = paired_difference(*grid, 8)
    assert (low <= d).all() and (d <= high).all() and (low >= -1).all() and (high <= 1).all()
    assert (low[d == 0] <= 0).all() and (high[d == 0] >= 0).all()


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> HeadChanges:
    """a → b of 40 sources: lost and gained capital (moved), weaker past tense, unsure French, kept rest."""
    folder = tmp_path_factory.mktemp("changes")
    a = plant_atlas(
        folder / "a.zarr",
        [
            Plant(2, 1, CAPITAL, 30),
            Plant(3, 0, PAST, 40),
            Plant(4, 2, FRENCH, 7),
            Plant(1, 1, "word_to_first_letter", 20, sign="suppression"),
        ],
    )
    b = plant_atlas(
        folder / "b.zarr",
        [
            Plant(4, 1, CAPITAL, 28),
            Plant(3, 0, PAST, 20),
            Plant(4, 2, FRENCH, 5),
            Plant(1, 1, "word_to_first_letter", 20, sign="suppression"),
        ],
    )
    return compare(a, b).changes[0]


def test_classes_of_change(changed: HeadChanges) -> None:
    rows = changed.changes
    picked = rows[["layer", "head", "relation", "sign", "change", "called_in", "only_a", "only_b"]]
    assert picked.values.tolist() == [
        [2, 1, CAPITAL, "promotion", "lost", "a", 30, 0],
        [4, 1, CAPITAL, "promotion", "gained", "b", 0, 28],
        [3, 0, PAST, "promotion", "weaker", "both", 20, 0],
        [4, 2, FRENCH, "promotion", "", "a", 2, 0],
    ]
    assert rows["score_a"].tolist() == [0.75, 0.0, 1.0, 0.175]
    assert rows["score_b"].tolist() == [0.0, 0.7, 0.5, 0.125]
    assert "; 1 lost, 1 gained, 1 weaker, 0 stronger at q ≤ 0.01" in repr(changed)
    assert len(repr(changed).splitlines()) == 1
    assert rows["q"].isna().tolist() == [False, False, False, True]
    kept = changed.table[changed.table["called_in"] == "both"]
    assert set(kept["relation"]) == {PAST, "word_to_first_letter"}
    expected = stats.false_discovery_control(changed.table["p"][~changed.table["q"].isna()])
    assert changed.table["q"].dropna().tolist() == pytest.approx(expected.tolist())


def test_counts(changed: HeadChanges) -> None:
    n = changed.counts
    assert (n.cells, n.asked) == (6 * 4 * 4 * 2, 3)
    assert (n.called_a, n.called_b, n.called_both) == (4, 3, 2)
    # of each relation, sign and layer: called in a × called in b / 4 heads
    assert n.expected_both == 2 / 4
    assert (n.lost, n.gained, n.weaker, n.stronger, n.unsure, n.moves) == (1, 1, 1, 0, 1, 1)
    assert n.by_chance == pytest.approx(0.03)
    assert n.mean_difference == pytest.approx((-0.75 + 0.7 - 0.5 - 0.05 + 0.0) / 5)
    assert n.low is not None and n.high is not None and n.low < n.mean_difference < n.high
    relations = changed.relations.set_index("relation")
    assert relations["moved"].to_dict() == {
        PAST: False, CAPITAL: True, FRENCH: False, "word_to_first_letter": False
    }  # fmt: skip
    assert list(relations.index) == [PAST, CAPITAL, FRENCH, "word_to_first_letter"], "largest fall first"
    text = describe_changes(changed)
    assert "Lost: 1. Gained: 1." in text and "Moved from heads to others: country → capital." in text


def test_two_that_are_equal_are_said_to_be(tmp_path: Path) -> None:
    a, b = (make_atlas(tmp_path / f"{name}.zarr", 3, 2) for name in "ab")
    same = compare(a, b).changes[0]
    cells = f"{same.counts.cells:,}"
    assert describe_changes(same).endswith(
        f" Nothing differs: in each of {cells} cells both hit the same sources."
    )


def test_the_other_way_round_is_the_mirror_image(tmp_path: Path) -> None:
    a, b = (make_atlas(tmp_path / f"{seed}.zarr", 3, 2, seed=seed) for seed in (0, 1))
    there, back = compare(a, b).changes[0], compare(b, a).changes[0]
    n, m = there.counts, back.counts
    assert n.different > 5
    assert (n.lost, n.gained, n.weaker, n.stronger) == (m.gained, m.lost, m.stronger, m.weaker)
    assert there.table["difference"].tolist() == (-back.table["difference"]).tolist()
    assert there.table["low"].tolist() == pytest.approx((-back.table["high"]).tolist())
    assert there.table["q"].fillna(2).tolist() == back.table["q"].fillna(2).tolist()


def test_scores_are_those_of_the_atlases(tmp_path: Path) -> None:
    a, b = (make_atlas(tmp_path / f"{seed}.zarr", 3, 2, seed=seed) for seed in (0, 1))
    table = compare(a, b).changes[0].table
    for row in table.to_dict("records"):
        at = {"sign": row["sign"], "layer": row["layer"], "head": row["head"], "relation": row["relation"]}
        assert row["score_a"] == float(a.scores.sel(at)) and row["score_b"] == float(b.scores.sel(at))


def test_a_copy_has_no_changes(tmp_path: Path) -> None:
    first = make_atlas(tmp_path / "a" / "atlas.zarr", 4, 3)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    found = compare(first, Atlas.open(tmp_path / "b"))
    (step,) = found.changes
    assert len(step.changes) == 0 and step.counts.different == step.counts.unsure == step.counts.asked == 0
    assert step.counts.called_a == step.counts.called_both > 0 and step.counts.mean_difference == 0.0


def test_pairs_that_one_atlas_cannot_use_do_not_count(tmp_path: Path) -> None:
    a = plant_atlas(tmp_path / "a.zarr", [Plant(2, 1, CAPITAL, 30)])
    b = plant_atlas(tmp_path / "b.zarr", [Plant(2, 1, CAPITAL, 30)])
    source = b.dataset["pair_source"].values.copy()
    capital = np.flatnonzero(b.dataset["pair_relation"].values == 1)
    source[capital[:10]] = -1
    b.dataset["pair_source"] = ("pair", source)
    b.__dict__["relation_scores"] = a.relation_scores
    rows = head_changes(a, b, [CAPITAL]).table
    assert rows[["n_sources", "score_a", "score_b", "only_a"]].values.tolist() == [[30, 20 / 30, 20 / 30, 0]]


def test_a_null_keeps_its_level() -> None:
    """Of heads with equal scores no more than 5 % have p ≤ 0.05, also of those that are asked."""
    rng = np.random.default_rng(0)
    chance = rng.choice([0.05, 0.2, 0.5, 0.9], size=(40, 50, 1))
    in_a, in_b = (rng.random((40, 50, 60)) < chance for _ in range(2))
    none = np.zeros((40, 50), dtype=bool)
    cells = _cells(in_a, in_b, none, none, np.arange(40))
    asked = cells[cells["only_a"] + cells["only_b"] >= FEWEST_DISCORDANT]
    assert len(asked) > 1000
    assert (asked["p"] <= 0.05).mean() <= 0.05
    covered = (cells["low"] <= 0) & (cells["high"] >= 0)
    assert covered.mean() >= 0.94


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"n_heads": 5}, r"other numbers of layers and heads \(6 × 4, 6 × 5\)"),
        ({"lens": "maps"}, "differ in the lens"),
    ],
)
def test_others_are_not_compared_head_by_head(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    first = plant_atlas(tmp_path / "a.zarr", [Plant(2, 1, CAPITAL)])
    second = plant_atlas(tmp_path / "b.zarr", [Plant(2, 1, CAPITAL)], **change)
    found = compare(first, second)
    assert found.changes == ()
    assert len(found.table) == 8

    assert re.search(why, found.not_by_head)


def test_thresholds_and_families_must_agree(tmp_path: Path) -> None:
    first = plant_atlas(tmp_path / "a.zarr", [])
    second = plant_atlas(tmp_path / "b.zarr", [])
    assert "the thresholds" in compare(first, second.at(tau=0.3)).not_by_head
    first.provenance["model"]["family"], second.provenance["model"]["family"] = "llama", "gpt2"
    assert "different families (llama, gpt2)" in compare(first, second).not_by_head


def test_layers_must_be_mapped_in_both(tmp_path: Path) -> None:
    first = plant_atlas(tmp_path / "a.zarr", [], mapped=[0, 1, 2])
    assert "no layer" in compare(first, plant_atlas(tmp_path / "b.zarr", [], mapped=[4])).not_by_head
    part = compare(first, plant_atlas(tmp_path / "c.zarr", [Plant(2, 1, CAPITAL)], mapped=[2, 3])).changes[0]
    assert part.mapped.tolist() == [False, False, True, False, False, False]
    assert part.table[["layer", "head"]].values.tolist() == [[2, 1]]
    assert part.counts.cells == 1 * 4 * 4 * 2


def test_labels_name_files_and_revisions(tmp_path: Path) -> None:
    atlases = [plant_atlas(tmp_path / f"{name}.zarr", []) for name in "ab"]
    for atlas, name in zip(atlases, ("Q8", "Q4"), strict=True):
        atlas.provenance["model"]["spec"] = f"/models/{name}.gguf"
    assert labels_of(atlases) == ("Q8.gguf", "Q4.gguf")
    for atlas, name in zip(atlases, ("step1", "step2"), strict=True):
        atlas.provenance["model"]["revision"] = name
    assert labels_of(atlases) == ("Planted (step1)", "Planted (step2)")


def test_each_atlas_is_compared_with_the_next(tmp_path: Path) -> None:
    plants = [[Plant(2, 1, CAPITAL, 30)], [], [Plant(2, 1, CAPITAL, 25)]]
    atlases = [plant_atlas(tmp_path / f"{at}.zarr", each) for at, each in enumerate(plants)]
    steps = compare(*atlases).changes
    assert [(step.counts.lost, step.counts.gained) for step in steps] == [(1, 0), (0, 1)]
    assert steps[0].b == steps[1].a


# Models -------------------------------------------------------------------------------------------------


def mapped(model: Any) -> Atlas:
    sources, targets = random_pairs()
    pairs = [(word(s), [word(t)]) for s, t in zip(sources, targets, strict=True)]
    return map_heads(model, word_tokenizer(VOCAB), lens="maps", relations=[relation("planted", pairs)])


def test_a_head_whose_output_is_zeroed_is_exactly_what_is_lost(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model = random_model("llama")
    sources, targets = random_pairs()
    rows = opened(model).unembed()[targets]
    x = states_of(model, "maps", sources, tmp_path).layer(1).x
    plant(model, "llama", 1, 2, x, rows / rows.norm(dim=1, keepdim=True), "maps")
    before = mapped(model)
    with torch.no_grad():
        model.get_submodule("model.layers.1.self_attn.o_proj").weight[:, 2 * D_HEAD : 3 * D_HEAD] = 0.0
    (step,) = compare(before, mapped(model)).changes
    picked = step.changes[["layer", "head", "relation", "sign", "change"]]
    assert picked.values.tolist() == [[1, 2, "planted", "promotion", "lost"]]
    assert step.counts.asked == 1


def test_random_models_lose_and_gain_nothing() -> None:
    torch.set_num_threads(1)
    (step,) = compare(*(mapped(random_model("llama", seed)) for seed in (0, 1))).changes
    assert step.counts.lost == step.counts.gained == step.counts.called_a == 0
    assert step.counts.different <= step.counts.asked * 0.05
