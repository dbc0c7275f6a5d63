"""The figures of a comparison: colours of changed heads, lines over models, and which figure is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import PathPatch

from headatlas.arrangement import compare
from headatlas.arrangement.comparison import Comparison
from headatlas.atlas import Atlas
from headatlas.errors import HeadatlasError
from headatlas.figures import save
from headatlas.figures.colours import luminance, palette_of
from headatlas.figures.compare import (
    change_grids,
    comparison_data,
    comparison_kind,
    describe_trajectory,
    draw_comparison,
    relation_lines,
)
from headatlas.figures.grids import ALL
from headatlas.options import Look
from tests.figures.planted import Plant, plant_atlas
from tests.figures.test_colours import contrast
from tests.synthetic import make_atlas

CAPITAL, PAST, FRENCH, LETTER = (
    *("country_to_capital", "verb_to_past_tense", "english_to_french", "word_to_first_letter"),
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Head 2.1 loses two relations and gains one, 4.1 gains capital (moved), 3.0 is weaker, 1.3 the same."""
    folder = tmp_path_factory.mktemp("changed")
    kept = Plant(1, 3, FRENCH, 30)
    a = [Plant(2, 1, CAPITAL, 30), Plant(2, 1, PAST, 30), Plant(3, 0, PAST, 40), kept]
    b = [Plant(2, 1, LETTER, 30), Plant(4, 1, CAPITAL, 30), Plant(3, 0, PAST, 20), kept]
    return compare(plant_atlas(folder / "a.zarr", a), plant_atlas(folder / "b.zarr", b))


def test_grids_hold_what_changed(found: Comparison) -> None:
    grids = change_grids(found.changes[0])
    assert list(grids) == [ALL, "Algorithmic", "Knowledge", "Linguistic", "Translation"]
    every = grids[ALL]
    assert (every.lost[2, 1], every.gained[2, 1], every.gained[4, 1], every.weaker[3, 0]) == (2, 1, 1, 1)
    assert (every.down[2, 1], every.up[2, 1], every.up[4, 1], every.down[3, 0]) == (3, 2, 2, 1)
    assert every.lost.sum() == 2 and every.gained.sum() == 2 and every.called[1, 3] == 1
    assert np.argwhere(every.moved).tolist() == [[2, 1], [4, 1]]
    assert grids["Linguistic"].lost.sum() == 1 and not grids["Linguistic"].moved.any()


@pytest.mark.parametrize("look", [Look(), Look(dark=True), Look(colours="grey"), Look(letters=True)])
def test_the_figure_of_heads(found: Comparison, look: Look, tmp_path: Path) -> None:
    figure = draw_comparison(found, 170, look=look)
    assert len(figure.axes) == 5 and figure.get_figwidth() * 25.4 == pytest.approx(170)
    words = " ".join(text.get_text() for text in figure.texts).replace("\u00a0", " ")
    for part in (
        "2 lost, 2",
        "2 relations lost",
        "1 relation gained",
        "of a relation that moved",
        "q ≤ 0.01",
    ):
        assert part in words
    palette = palette_of(look)
    falling, rising = palette.scores(6, suppression=True), palette.scores(6)
    drawn = {to_hex(patch.get_facecolor()) for patch in figure.axes[0].findobj(PathPatch)}
    # lost 2 and gained 1 in one cell; gained 1; weaker; the dot of the head that is the same
    assert {falling[4], rising[3], falling[1], palette.soft} <= drawn
    saved = save(figure, tmp_path / "figure.png")
    assert saved.stat().st_size > 0
    assert "Lost: 2. Gained: 2." in figure.description


@pytest.mark.parametrize("dark", [False, True])
def test_falling_and_rising_are_alike_in_grey_and_told_apart_by_the_bar(dark: bool) -> None:
    palette = palette_of(Look(dark=dark))
    falling, rising = palette.scores(6, suppression=True), palette.scores(6)
    for down, up in zip(falling[1:], rising[1:], strict=True):
        assert luminance(down) == pytest.approx(luminance(up), abs=0.02)
        assert contrast(down, palette.blank) >= 3.0


def test_a_large_model_of_which_nothing_changed(tmp_path: Path) -> None:
    a, b = (
        plant_atlas(tmp_path / f"{name}.zarr", [], n_layers=80, n_heads=64, mapped=[0, 79]) for name in "ab"
    )
    figure = draw_comparison(compare(a, b), 170)
    words = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert words == ["no head\ncalled"] * 5
    assert "No head implements" in figure.description


def test_the_figure_follows_what_is_compared(found: Comparison, tmp_path: Path) -> None:
    three = compare(*(make_atlas(tmp_path / f"{seed}.zarr", 3, 2, seed=seed) for seed in range(3)))
    other = compare(make_atlas(tmp_path / "x.zarr", 3, 2), make_atlas(tmp_path / "y.zarr", 4, 2))
    assert [comparison_kind(each, None) for each in (found, three, other)] == [
        *("heads", "trajectory", "relations")
    ]
    assert comparison_kind(found, "relations") == "relations"
    with pytest.raises(HeadatlasError, match="`kind=heads` shows two models"):
        comparison_kind(three, "heads")
    with pytest.raises(HeadatlasError, match="other numbers of layers"):
        comparison_kind(other, "heads")
    assert {"change", "a", "b", "score_a"} <= set(comparison_data(found))
    assert comparison_data(three) is three.table


def test_lines_over_models(tmp_path: Path) -> None:
    plants = [[Plant(2, 1, CAPITAL, 30)], [Plant(2, 1, CAPITAL, 20), Plant(3, 1, CAPITAL, 10)], []]
    atlases: list[Atlas] = [plant_atlas(tmp_path / f"{at}.zarr", each) for at, each in enumerate(plants)]
    found = compare(*atlases)
    (line,) = relation_lines(found)
    assert line["score"].tolist() == [0.75, 0.5, 0.0] and line["n_implementing"].tolist() == [1, 2, 0]
    figure = draw_comparison(found, 170, look=Look(dark=True))
    assert len(figure.axes) == 2
    words = " ".join(text.get_text() for text in figure.texts).replace("\u00a0", " ")
    assert "3 relations that no model implements: not shown" in words
    many = compare(*(make_atlas(tmp_path / f"m{seed}.zarr", 6, 4, seed=seed) for seed in range(3)))
    ends = [ax.get_position().x1 for ax in draw_comparison(many, 170).axes]
    assert max(ends) > 0.97, "panels of few models fill the page"
    assert found.labels[2] in words
    assert "1 head × relation in 1; " in describe_trajectory(found)
    with pytest.raises(HeadatlasError, match="no line to draw"):
        draw_comparison(_empty(tmp_path), 170, "trajectory")


def _empty(folder: Path) -> Comparison:
    return compare(*(plant_atlas(folder / f"empty{at}.zarr", []) for at in range(2)))
