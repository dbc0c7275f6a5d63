"""Figures as they are printed: columns of 85 and 180 mm, models of every size, light and dark, in grey."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from headatlas.arrangement import structure
from headatlas.atlas import Atlas
from headatlas.figures.colours import luminance, palette_of
from headatlas.figures.grids import category_grid, relation_grids
from headatlas.figures.panels import CELL_FOR_LINES, separate
from headatlas.figures.structure import draw_structure
from headatlas.options import Look
from tests.figures.planted import Plant, large_atlas, plant_atlas
from tests.figures.test_colours import contrast
from tests.figures.test_figures import painted

SIZES = [(6, 4), (18, 4), (30, 9), (32, 32), (80, 64)]
COLUMNS = [85.0, 180.0]


@pytest.fixture(scope="module", params=SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return large_atlas(tmp_path_factory.mktemp("print") / "a.zarr", *request.param)


def pixels_of(figure: Figure, ax: Axes, places: np.ndarray) -> list[str]:
    """Colours of a figure at 300 dpi at places [n, 2] of axes."""
    drawn = painted(figure)
    x, y = ax.transData.transform(places).T
    values = drawn[len(drawn) - 1 - y.astype(int), x.astype(int)]
    return ["#{:02x}{:02x}{:02x}".format(*value) for value in values]


def test_the_large_atlas_has_strong_heads_and_weak_ones(model: Atlas) -> None:
    n = model.categories()["n_categories"]
    assert (n > 0).any() and (n > 1).any()
    table = model.table()
    assert table["score"].median() < 0.05 and table.loc[table["implements"], "score"].median() > 0.4
    if len(n) > 200:
        assert 0.1 < (n > 0).mean() < 0.2
        assert (n > 1).mean() > 0.05 and (n == 4).any()


@pytest.mark.parametrize("kind", ["categories", "relations", "layers"])
def test_no_text_is_cut_off_or_overlaps_another(model: Atlas, kind: str) -> None:
    which = {"which": "Knowledge"} if kind == "relations" else {}
    for width_mm in COLUMNS:
        letters = width_mm > 100
        figure = getattr(model.plot, kind)(width_mm=width_mm, letters=letters, dark=not letters, **which)
        assert misplaced(figure) == [] and uneven(figure) == []
        assert figure.get_figheight() * 25.4 < 247, "longer than a page"


@pytest.mark.parametrize("size", [(6, 4), (30, 9)])
def test_nor_in_the_figure_of_structure(size: tuple[int, int], tmp_path: Path) -> None:
    atlas = large_atlas(tmp_path / "a.zarr", *size)
    for width_mm in COLUMNS:
        figure = draw_structure(atlas, structure(atlas), width_mm, Look(letters=True, dark=width_mm > 100))
        assert misplaced(figure) == [] and uneven(figure) == []
        assert to_hex(figure.get_facecolor()) == palette_of(Look(dark=width_mm > 100)).paper


def misplaced(figure: Figure) -> list[str]:
    """Texts that leave the page, and pairs that overlap."""
    figure.draw_without_rendering()
    shown = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    boxes = [text.get_window_extent().padded(-1) for text in shown]
    width, height = figure.bbox.size
    found = [
        text.get_text()
        for text, box in zip(shown, boxes, strict=True)
        if min(box.x0, box.y0) < 0 or box.x1 > width or box.y1 > height
    ]
    return found + [
        f"{shown[i].get_text()} on {shown[j].get_text()}"
        for i in range(len(boxes))
        for j in range(i)
        if boxes[i].overlaps(boxes[j])
    ]


def uneven(figure: Figure) -> list[list[float]]:
    """Ticks of axes of layers, heads, shares and numbers that are not as far from each other."""
    ticks = [list(axis.get_ticklocs()) for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]
    return [each for each in ticks if len(set(np.diff(each).round(9))) > 1]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width_mm", COLUMNS)
def test_the_frame_of_a_called_head_is_seen_on_the_strongest_colour(
    tmp_path: Path, width_mm: float, dark: bool
) -> None:
    """From a cell's edge inwards: ink, paper, the colour; at the edges of the panel, too, and whole there."""
    plants = [Plant(*place, "country_to_capital", hits=40) for place in ((0, 0), (29, 8), (12, 4))]
    atlas = plant_atlas(tmp_path / "a.zarr", plants, n_layers=30, n_heads=9)
    figure = atlas.plot.relations(width_mm=width_mm, which="country_to_capital", dark=dark)
    palette, ax, dot = palette_of(Look(dark=dark)), figure.axes[0], 25.4 / 300
    box = ax.get_window_extent()
    cell = np.array([box.width / 30, box.height / 9])
    assert cell.min() * dot > CELL_FOR_LINES
    ink, paper, fill = palette.ink, palette.paper, palette.scores()[-1]
    assert min(contrast(ink, paper), contrast(paper, fill)) >= 3
    for plant in plants:
        middle = np.array([plant.layer, plant.head])
        assert pixels_of(figure, ax, middle[None]) == [fill]
        for side in ([-1, 0], [1, 0], [0, -1], [0, 1]):
            # Every pixel on the way from just outside the cell to its middle.
            steps = np.arange(cell[np.flatnonzero(side)[0]] / 2 + 1, 0, -1)
            way = middle + np.array(side) * steps[:, None] / cell
            seen = pixels_of(figure, ax, way)
            darkest = min(range(len(seen)), key=lambda at: contrast(seen[at], ink))
            assert contrast(seen[darkest], ink) < 1.3, (plant, side)
            inside = [contrast(each, paper) for each in seen[darkest:]]
            assert min(inside) < 1.5, (plant, side)


def test_no_stripes_where_cells_are_nearly_square(tmp_path: Path) -> None:
    """Lines between cells go both ways or, where cells are long, along them."""
    palette, figure = palette_of(Look(dark=True)), Figure()
    for cell, n_lines in (((1.0, 1.0), 2), ((0.67, 0.5), 0), ((0.3, 2.7), 1), ((0.7, 2.7), 2)):
        ax = figure.add_subplot()
        separate(ax, (80, 64), cell, palette)
        assert len(ax.patches) == n_lines, cell


def test_the_legend_of_structure_shows_marks_as_they_are_drawn(tmp_path: Path) -> None:
    atlas = large_atlas(tmp_path / "a.zarr", 6, 4)
    figure = draw_structure(atlas, structure(atlas), 170)
    shown = {line.get_marker() for line in figure.findobj(Line2D)}
    assert "|" in shown, "the median is an upright stroke on its bar"


@pytest.mark.parametrize("dark", [False, True])
def test_a_single_cell_of_one_category_stands_out_as_printed(model: Atlas, dark: bool) -> None:
    """Measured on the pixels, in the narrow column: contrasts with a blank cell beside it, in grey."""
    figure = model.plot.categories(width_mm=85, dark=dark)
    count = category_grid(model).count
    wanted = [np.argwhere(count == level)[:1] for level in range(5)]
    levels = [level for level, place in enumerate(wanted) if len(place)]
    seen = pixels_of(figure, figure.axes[0], np.concatenate(wanted))
    assert seen == [
        [palette_of(Look(dark=dark)).blank, *palette_of(Look(dark=dark)).levels(4)][at] for at in levels
    ]
    assert all(contrast(seen[0], each) >= 2.95 for each in seen[1:])
    shades = [luminance(each) for each in seen]
    assert all((low < high) == dark for low, high in pairwise(shades))


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width_mm", COLUMNS)
def test_suppression_is_told_from_promotion_in_grey(model: Atlas, width_mm: float, dark: bool) -> None:
    """The middle of a cell of suppression is paper, that of promotion is not; their colours are alike."""
    figure = model.plot.relations(width_mm=width_mm, which="country_to_capital", dark=dark)
    grid = next(each for each in relation_grids(model) if each.relation == "country_to_capital")
    down, up = np.argwhere(grid.shown < -0.02), np.argwhere((grid.shown > 0.02) & ~grid.suppresses)
    paper = palette_of(Look(dark=dark)).paper
    seen = pixels_of(figure, figure.axes[0], np.concatenate([down, up]))
    assert len(seen)
    in_the_middle = np.array([contrast(each, paper) for each in seen])
    assert (in_the_middle[: len(down)] < 1.3).all()
    assert (in_the_middle[len(down) :] > 1.5).all()


def test_a_mark_of_evidence_stands_beside_the_sign(tmp_path: Path) -> None:
    from headatlas.figures.panels import marks, minus

    palette, shape = palette_of(Look()), (4, 3)
    for cell in ((1.2, 2.0), (1.0, 1.0), (1.6, 5.5)):
        figure = Figure(figsize=(4 * cell[0] / 25.4, 3 * cell[1] / 25.4), dpi=300)
        ax = figure.add_axes((0.0, 0.0, 1.0, 1.0), xlim=(-0.5, 3.5), ylim=(-0.5, 2.5))
        everywhere = np.ones(shape, dtype=bool)
        minus(ax, everywhere, cell, palette, lower=everywhere)
        marks(ax, "refuted", everywhere, cell, palette, raised=everywhere)
        (points,), (signs,) = ax.lines, ax.artists or [ax.patches[0]]
        half = points.get_markersize() / 72 * 25.4 / cell[1] / 2
        lowest_mark = np.asarray(points.get_ydata()).min() - half
        highest_sign = np.asarray(signs.get_path().vertices)[:5, 1].max()
        assert highest_sign <= lowest_mark, cell


def test_not_confirmed_is_told_from_not_asked(tmp_path: Path) -> None:
    atlas = plant_atlas(tmp_path / "a.zarr", [Plant(2, 1, "country_to_capital")])
    grid = relation_grids(atlas)[1]
    assert not any(mask.any() for mask in grid.marks.values()), "nothing was asked, so nothing is marked"
    row = {"layer": 2, "head": 1, "relation": "country_to_capital"}
    said = {"confirmed_with_context": False, "confirmed_by_ablation": None}
    asked = SimpleNamespace(damaged=(), table=pd.DataFrame([{**row, **said}]))
    vars(atlas)["evidence"] = asked
    assert [name for name, mask in relation_grids(atlas)[1].marks.items() if mask[2, 1]] == ["refuted"]


def test_the_scale_of_changes_keeps_its_steps() -> None:
    for look in (Look(), Look(dark=True)):
        palette = palette_of(look)
        for suppression in (False, True):
            scale = palette.scores(6, suppression=suppression)
            chosen = [*scale[:2], *scale[3:]]
            assert all(contrast(*pair) >= 1.2 for pair in pairwise(chosen)), to_hex(chosen[1])
