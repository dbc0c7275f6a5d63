"""Every number of the description, counted again from the table of scores."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from headatlas.atlas import Atlas
from headatlas.figures import alt_text, describe
from tests.figures.planted import FOUR, Plant, Spec, plant_atlas
from tests.synthetic import make_atlas


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return make_atlas(tmp_path_factory.mktemp("describe") / "a.zarr", 12, 4, seed=3).at(tau=0.3)


def members(atlas: Atlas) -> dict[tuple[int, int], set[str]]:
    """Head → categories, from the table alone."""
    found: dict[tuple[int, int], set[str]] = {}
    for row in atlas.table().itertuples():
        promotes = row.score >= atlas.thresholds.tau and row.q <= atlas.thresholds.q_max
        suppresses = row.suppression >= atlas.thresholds.tau and row.suppression_q <= atlas.thresholds.q_max
        if promotes or suppresses:
            found.setdefault((row.layer, row.head), set()).add(row.category)
    return found


def test_counts_by_level_and_panel(larger: Atlas) -> None:
    text, found = describe(larger), members(larger)
    assert text.startswith(f"{len(found)} of 48 mapped heads (")
    levels = [len(categories) for categories in found.values()]
    for level in range(1, max(levels) + 1):
        noun = "category" if level == 1 else "categories"
        assert f"{levels.count(level)} in {level} {noun}" in text
    for name in larger.category_names:
        assert re.search(rf"{name} {sum(name in c for c in found.values())}\b", text)


def test_bands_hold_what_they_say(larger: Atlas) -> None:
    text, layers = describe(larger), [layer for layer, _ in members(larger)]
    said = re.search(r"Half of them \((?P<n>\d+)\) are in layers? (\d+)(?:–(\d+))?", text)
    assert said is not None
    first, last = int(said[2]), int(said[3] or said[2])
    assert sum(first <= layer <= last for layer in layers) == int(said["n"]) >= len(layers) / 2
    for start in range(12):
        shorter = range(start, start + last - first)
        assert sum(layer in shorter for layer in layers) < len(layers) / 2
    counts = np.bincount(layers)
    assert f"layer {counts.argmax()} has most, {counts.max()} of 4." in text


def test_quartiles_and_kruskal_wallis(larger: Atlas) -> None:
    text, found = describe(larger), members(larger)
    groups = {
        name: [layer for (layer, _), categories in sorted(found.items()) if name in categories]
        for name in larger.category_names
    }
    for name, layers in groups.items():
        low, middle, high = (f"{np.percentile(layers, at):g}" for at in (25, 50, 75))
        assert f"{name} {middle} ({low}–{high})" in text
    h, p = stats.kruskal(*groups.values())
    n = sum(map(len, groups.values()))
    assert f"H = {h:.1f}, p = {p:.2g}, ε² = {h / (n - 1):.2f}" in text
    assert "All sources are single tokens" in text


def test_best_heads_and_their_numbers(larger: Atlas) -> None:
    lines = describe(larger).splitlines()
    for name, rows in larger.table().groupby("relation"):
        best = rows.loc[rows["score"].idxmax()]
        title = larger.relations.set_index("relation").loc[name, "title"]
        at = f"{best['layer']}.{best['head']} {best['score']:.2f}"
        implement, suppress = int(rows["implements"].sum()), int(rows["suppresses"].sum())
        if implement + suppress == 0:
            nobody = next(line for line in lines if line.startswith("Done by no head (best score): "))
            assert f"{title} ({at}" in nobody
            continue
        line = next(line for line in lines if line.startswith(f"- {title}: "))
        interval = f"({best['low']:.2f}–{best['high']:.2f})"
        assert line.endswith(f": {at} {interval}, added {best['added']:.2f}; {implement} + {suppress}")


def test_heads_that_carry_most_come_first(larger: Atlas) -> None:
    found = members(larger)
    said = re.search(r"Carrying most: (\d+)\.(\d+) \((\d+) categor", describe(larger))
    assert said is not None
    assert len(found[int(said[1]), int(said[2])]) == int(said[3]) == max(map(len, found.values()))


def test_suppression_and_control_counts(planted: Atlas) -> None:
    text = describe(planted)
    assert "1 head suppresses a relation: 0 without implementing any, 1 beside others implemented." in text
    assert "Suppressing: 5.2 English → French (0.30)." in text
    assert (
        "Of 6 promoting head–relation pairs, 0 score no higher than the state alone, and 0 add less" in text
    )
    assert "Not mapped: 2 layers (9–10)" in text


def test_other_taus_are_counted(larger: Atlas) -> None:
    now, lower, higher = (len(members(larger.at(tau=tau))) for tau in (0.3, 0.2, 0.5))
    assert f"there would be {lower} heads at 0.2 and {higher} heads at 0.5 instead of {now}." in describe(
        larger
    )


def test_a_category_that_sits_later_is_said_to(tmp_path: Path) -> None:
    plants = [Plant(layer, head, "country_to_capital") for layer in (0, 1) for head in range(3)]
    plants += [Plant(layer, head, "verb_to_past_tense") for layer in (4, 5) for head in range(3)]
    text = describe(plant_atlas(tmp_path / "a.zarr", plants))
    assert "Linguistic heads sit later than Knowledge heads (rank-biserial r = 1.00, Holm p = " in text


@pytest.mark.parametrize("lens", ["neutral", "maps"])
def test_caveats_name_the_lens_and_the_criterion(tmp_path: Path, lens: str) -> None:
    atlas = plant_atlas(tmp_path / "a.zarr", [Plant(0, 0, "country_to_capital")], lens=lens)
    text = describe(atlas)
    assert ("not a reading of the weights alone" in text) == (lens == "neutral")
    assert ("come from weights alone" in text) == (lens == "maps")
    assert "if it attends" in text
    by_score = describe(atlas.at(criterion="tau"))
    assert "0 of 1 promoting head–relation pairs have q > 0.01" in by_score


def test_first_token_targets_are_named(planted: Atlas) -> None:
    provenance = planted.provenance | {"target_policy": "first-token"}
    text = describe(Atlas(planted.dataset, provenance, planted.thresholds))
    assert "count by their first token alone (target policy first-token)" in text
    assert "first-token" not in describe(planted)


def test_nothing_called_says_so_and_claims_nothing(nothing_called: Atlas) -> None:
    text = describe(nothing_called)
    assert "None of the 24 mapped heads implements or suppresses one of the 4 relations asked" in text
    nobody = next(line for line in text.splitlines() if line.startswith("Done by no head (best score): "))
    assert nobody.count("(0)") == 4
    assert "Kruskal" not in text
    assert "edian" not in text


@pytest.mark.parametrize(
    ("specs", "n_layers", "n_heads", "mapped", "said"),
    [
        (FOUR[:1], 1, 4, None, "1 layer × 4 heads"),
        (FOUR, 1, 1, None, "1 layer × 1 head"),
        (FOUR, 6, 4, [], "No layer has been mapped yet"),
        ([Spec("x → y", "Art", left_out="too few")], 6, 4, None, "No relation could be scored"),
        (FOUR[1:3], 6, 4, [2], "Not mapped: 5 layers (0–1, 3–5)"),
    ],
)
def test_odd_atlases(
    tmp_path: Path, specs: list[Spec], n_layers: int, n_heads: int, mapped: list[int] | None, said: str
) -> None:
    plants = [] if specs[0].left_out else [Plant(0, 0, specs[0].tokenised().relation.name)]
    atlas = plant_atlas(
        tmp_path / "a.zarr", plants, specs=specs, n_layers=n_layers, n_heads=n_heads, mapped=mapped
    )
    text = describe(atlas)
    assert said in text
    assert "nan" not in text.lower()
    for kind in ("categories", "relations", "layers"):
        assert len(alt_text(atlas, kind)) <= 600
        if kind != "relations" or not specs[0].left_out:
            getattr(atlas.plot, kind)()


def test_users_relations_left_out_are_named(users: Atlas) -> None:
    text = describe(users)
    assert "No relation of Medicine is scored." in text
    assert "drug → dose (3 usable sources, at least 30 needed)" in text
    assert "1.1 (5 categories, 5 relations)" in text


def test_alt_text_is_short_and_has_the_numbers(larger: Atlas) -> None:
    text = alt_text(larger)
    assert len(text) <= 600
    assert f"{len(members(larger))} of 48" in text
    assert larger.model_name in text
