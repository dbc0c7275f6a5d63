"""What is drawn is what the atlas says, at the size asked for, and the same every time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, StepPatch
from PIL import Image

import headatlas as ha
from headatlas.atlas import Atlas
from headatlas.errors import HeadatlasError
from headatlas.figures import KINDS, alt_text, plot, save
from headatlas.figures.colours import DARK, LIGHT
from headatlas.figures.grids import category_grid
from headatlas.figures.page import round_ticks, text_width, wrap
from headatlas.figures.panels import cells_path
from headatlas.figures.plots import write_table
from headatlas.options import FigureKind
from tests.atlas.made import write_atlas
from tests.figures.planted import Plant, Spec, plant_atlas

SVG = "{http://www.w3.org/2000/svg}"
OF_THE_MAP: tuple[FigureKind, ...] = ("categories", "relations", "layers")
PANELS = ["All Categories", "Algorithmic", "Knowledge", "Linguistic", "Translation"]


def texts(figure: Figure) -> list[str]:
    """The words on a figure; titles without their number of heads."""
    return [re.sub(r",? ?n\xa0=\xa0[\d,]+$", "", text.get_text()) for text in figure.texts]


def painted(figure: Figure) -> np.ndarray:
    """[height, width, 3] the figure's pixels at 300 dpi."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def cell_colours(figure: Figure, ax: Axes, pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """[n_layers, n_heads] colour near the lower left corner of each cell, as #rrggbb; head 0 is lowest."""
    layers, heads = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    spots = np.stack([layers.ravel() - 0.28, heads.ravel() - 0.28], axis=1)
    x, y = ax.transData.transform(spots).T
    values = pixels[len(pixels) - 1 - y.astype(int), x.astype(int)]
    return np.array(["#{:02x}{:02x}{:02x}".format(*value) for value in values]).reshape(shape)


@pytest.mark.parametrize("width_mm", [60, 170])
def test_every_cell_has_the_colour_of_its_number_of_categories(atlas: Atlas, width_mm: float) -> None:
    figure = atlas.plot.categories(width_mm=width_mm)
    pixels = painted(figure)
    frame = atlas.categories()
    assert frame["n_categories"].nunique() > 3
    palette = np.array([LIGHT.blank, *LIGHT.levels(4)])
    for ax, panel in zip(figure.axes, PANELS, strict=True):
        drawn = cell_colours(figure, ax, pixels, (6, 4))
        for row in frame.itertuples():
            level = row.n_categories if panel == "All Categories" or panel in row.which else 0
            assert drawn[row.layer, row.head] == palette[level], (panel, row.layer, row.head)


def test_planted_heads_are_where_they_belong(planted: Atlas) -> None:
    figure = planted.plot.categories()
    pixels = painted(figure)
    drawn = [cell_colours(figure, ax, pixels, (12, 4)) for ax in figure.axes]
    light, medium, _, dark = LIGHT.levels(4)
    assert [panel[3, 1] for panel in drawn] == [dark] * 5
    assert [panel[5, 2] for panel in drawn] == [medium, LIGHT.blank, medium, LIGHT.blank, medium]
    assert [panel[7, 0] for panel in drawn] == [light, LIGHT.blank, LIGHT.blank, light, LIGHT.blank]
    assert (drawn[0] == LIGHT.blank).sum() == 10 * 4 - 3


def test_unmapped_layers_are_hatched_not_blank(planted: Atlas) -> None:
    figure = planted.plot.categories()
    assert "layer not mapped" in texts(figure)
    for ax in figure.axes:
        hatched = [patch.get_bbox().extents for patch in ax.patches if patch.get_hatch()]
        assert [list(box) for box in hatched] == [[8.5, -0.5, 10.5, 3.5]]
        ground = next(
            patch for patch in ax.patches if patch.get_facecolor() == mpl.colors.to_rgba(LIGHT.blank)
        )
        assert isinstance(ground, PathPatch)
        assert not ground.get_path().contains_points([[9, 1], [10, 1]]).any()


def test_panels_titles_axes_legend_and_caption(atlas: Atlas) -> None:
    figure = atlas.plot.categories()
    found = texts(figure)
    assert [text for text in found if text in PANELS] == PANELS
    assert (found.count("Layer"), found.count("Head")) == (5, 1)
    legend = ["1 category", "2 categories", "3 categories", "4 categories", "none"]
    assert [text for text in found if text in legend] == legend
    assert "layer not mapped" not in found
    assert atlas.caption() in " ".join(found).replace("\u00a0", " ")
    assert {text.get_fontsize() for text in figure.findobj(mpl.text.Text) if text.get_text()} == {7.0}


def test_users_categories_add_panels_and_extend_the_scale(users: Atlas) -> None:
    figure = users.plot.categories()
    found = texts(figure)
    assert [t for t in found if t in (*PANELS, "Chemistry of $x_1$", "Medicine")] == [
        *PANELS,
        "Chemistry of $x_1$",
        "Medicine",
    ]
    assert "6 categories" in found
    drawn = cell_colours(figure, figure.axes[0], painted(figure), (6, 4))
    assert drawn[1, 1] == LIGHT.levels(6)[4]
    assert [text.get_text() for text in figure.axes[-1].texts] == ["no relation\nscored"]


def test_an_empty_panel_says_of_how_many_heads(tmp_path: Path) -> None:
    plants = [Plant(1, 0, "country_to_capital")]
    atlas = plant_atlas(tmp_path / "a.zarr", plants, mapped=range(5))
    said = [[text.get_text() for text in ax.texts] for ax in atlas.plot.categories().axes]
    empty = ["0 of 20\nheads"]  # 5 of 6 layers are mapped, 4 heads each
    assert said == [[], empty, [], empty, empty]
    nothing_mapped = plant_atlas(tmp_path / "b.zarr", plants, mapped=())
    assert not any(ax.texts for ax in nothing_mapped.plot.categories().axes)


def test_titles_say_how_many_heads_a_panel_has(planted: Atlas) -> None:
    titles = [text.get_text().replace("\xa0", " ") for text in planted.plot.categories().texts]
    assert {"All Categories, n = 3", "Knowledge, n = 2", "Linguistic, n = 2"} <= set(titles)


@pytest.mark.parametrize("kind", OF_THE_MAP)
def test_the_look_of_a_figure(atlas: Atlas, tmp_path: Path, kind: str) -> None:
    draw = getattr(atlas.plot, kind)
    plain = draw()
    lettered = [text.get_text() for text in draw(letters=True).texts if text.get_weight() == "bold"]
    n_panels = len(plain.axes) // (2 if kind == "layers" else 1)
    assert [text for text in lettered if len(text) == 1] == list("abcdefghijklmnopqrst"[:n_panels])
    dark = draw(dark=True, colours="blue")
    assert mpl.colors.to_hex(dark.get_facecolor()) == DARK.paper
    assert {mpl.colors.to_hex(text.get_color()) for text in dark.texts} == {DARK.ink}
    with Image.open(save(draw(transparent=True, dpi=100), tmp_path / "a.png")) as image:
        assert image.info["dpi"] == pytest.approx((100, 100), abs=0.01)
        assert image.convert("RGBA").getpixel((0, 0))[3] == 0  # type: ignore[index]


def test_levels_that_no_head_has_can_leave_the_legend(planted: Atlas) -> None:
    found = texts(planted.plot.categories(used_levels=True))
    assert [text for text in found if "categor" in text][:3] == ["1 category", "2 categories", "4 categories"]


def test_looks_that_are_none(atlas: Atlas) -> None:
    with pytest.raises(HeadatlasError, match="`colours` is 'pink': use 'green', 'blue' or 'grey'"):
        atlas.plot.categories(colours="pink")
    with pytest.raises(HeadatlasError, match="`dpi` is 5: it must be a whole number from 30 to 2400"):
        atlas.plot.layers(dpi=5)


def test_neighbouring_heads_stay_apart_in_a_column(planted: Atlas) -> None:
    """Between two cells of a level there is paper, at the width of a journal's column."""
    figure = planted.plot.categories(width_mm=85)
    pixels, ax = painted(figure), figure.axes[0]
    y = ax.transData.transform([(0.25, head + 0.5) for head in range(3)])[:, 1]
    x = int(ax.transData.transform((0.25, 0.0))[0])
    between = pixels[len(pixels) - 1 - y.astype(int), x]
    inside = pixels[len(pixels) - 1 - int(ax.transData.transform((0.25, 0.25))[1]), x]
    assert (between.astype(int).sum(axis=1) > inside.astype(int).sum()).all()


def test_nothing_called_is_a_blank_figure(nothing_called: Atlas) -> None:
    figure = nothing_called.plot.categories()
    assert [[text.get_text() for text in ax.texts] for ax in figure.axes] == 5 * [["0 of 24\nheads"]]
    for ax in figure.axes:
        ax.texts[0].remove()
    pixels = painted(figure)
    for ax in figure.axes:
        assert (cell_colours(figure, ax, pixels, (6, 4)) == LIGHT.blank).all()
    assert painted(nothing_called.plot.relations()).any()
    assert painted(nothing_called.plot.layers()).any()


@pytest.mark.parametrize(
    ("n", "length", "expected"),
    [
        (9, 22, [0, 2, 4, 6, 8]),
        (9, 10, [0, 4, 8]),
        (30, 28, [0, 10, 20]),
        (30, 53, [0, 5, 10, 15, 20, 25]),
        (32, 28, [0, 10, 20, 30]),
        (80, 28, [0, 20, 40, 60]),
        (10, 2, [0]),
        (1, 28, [0]),
    ],
)
def test_ticks_are_few_round_and_evenly_spaced(n: int, length: float, expected: list[int]) -> None:
    assert round_ticks(n, length, text_width(str(n - 1))) == expected


def test_ticks_of_both_axes_start_at_zero(planted: Atlas) -> None:
    for ax in planted.plot.categories().axes:
        assert ax.get_xticks()[0] == 0
        assert list(ax.get_yticks()) == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", OF_THE_MAP)
@pytest.mark.parametrize("width_mm", [30.0, 85.0, 333.3])
@pytest.mark.filterwarnings("ignore:.* more than a page")
def test_width_is_exact_and_nothing_leaves_the_page(
    users: Atlas, tmp_path: Path, kind: str, width_mm: float
) -> None:
    figure = getattr(users.plot, kind)(width_mm=width_mm)
    pixels = painted(figure)
    page = figure.bbox
    for text in figure.findobj(mpl.text.Text):
        if text.get_text() and text.get_visible():
            box = text.get_window_extent()
            assert box.x0 >= -1 and box.x1 <= page.x1 + 1, text
            assert box.y0 >= -1 and box.y1 <= page.y1 + 1, text
    assert pixels.shape[1] == int(width_mm / 25.4 * 300)
    save(figure, tmp_path / "a.svg")
    root = ElementTree.parse(tmp_path / "a.svg").getroot()  # noqa: S314 (our own file)
    assert float(root.attrib["width"].removesuffix("pt")) / 72 * 25.4 == pytest.approx(width_mm, abs=0.001)
    pdf = save(figure, tmp_path / "a.pdf").read_bytes()
    box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ", pdf)
    assert box is not None
    assert float(box[1]) / 72 * 25.4 == pytest.approx(width_mm, abs=0.001)


@pytest.mark.parametrize("kind", OF_THE_MAP)
def test_no_text_overlaps_another(users: Atlas, kind: str) -> None:
    figure = getattr(users.plot, kind)()
    painted(figure)
    shown = [t for t in figure.findobj(mpl.text.Text) if t.get_text().strip() and t.get_visible()]
    boxes = [text.get_window_extent().padded(-1) for text in shown]
    clashes = [
        (shown[i].get_text(), shown[j].get_text())
        for i in range(len(boxes))
        for j in range(i)
        if boxes[i].overlaps(boxes[j]) and shown[i].axes is not shown[j].axes
    ]
    assert clashes == []


def test_png_is_300_dpi_and_describes_itself(atlas: Atlas, tmp_path: Path) -> None:
    path = save(atlas.plot.categories(), tmp_path / "a.png")
    with Image.open(path) as image:
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)
        assert image.info["Description"] == alt_text(atlas)


def test_svg_holds_text_and_its_description(atlas: Atlas, tmp_path: Path) -> None:
    path = save(atlas.plot.categories(), tmp_path / "a.svg")
    root = ElementTree.parse(path).getroot()  # noqa: S314 (our own file)
    assert root.findtext(f"{SVG}desc") == alt_text(atlas)
    assert "Synthetic-1M" in root.findtext(f"{SVG}title", "")
    assert root.attrib["role"] == "img"
    written = " ".join("".join(node.itertext()) for node in root.iter(f"{SVG}text"))
    assert "All Categories" in written
    assert "score ≥ 0.15" in written.replace("\u00a0", " ")
    assert not list(root.iter(f"{SVG}image"))


def test_pdf_embeds_its_font_and_no_image(atlas: Atlas, tmp_path: Path) -> None:
    data = save(atlas.plot.relations(), tmp_path / "a.pdf").read_bytes()
    assert b"/Subtype /Type0" in data or b"/FontFile2" in data
    assert b"/Subtype /Image" not in data
    assert b"CreationDate" not in data
    assert len(data) < 200_000


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_same_figure_gives_the_same_bytes(planted: Atlas, tmp_path: Path, suffix: str) -> None:
    one, two = (save(planted.plot.relations(width_mm=120), tmp_path / f"{n}.{suffix}") for n in "ab")
    assert one.read_bytes() == two.read_bytes()


def test_the_same_bytes_in_another_process(planted: Atlas, tmp_path: Path) -> None:
    code = (
        "import sys; from headatlas.atlas import Atlas; from headatlas.figures import plot\n"
        "[plot(Atlas.open(sys.argv[1]), 'categories', sys.argv[2] + s) for s in ('.pdf', '.svg')]"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", code, str(planted.path), str(tmp_path / seed)],
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
    for suffix in (".pdf", ".svg"):
        assert (tmp_path / f"1{suffix}").read_bytes() == (tmp_path / f"2{suffix}").read_bytes()


def test_users_style_does_not_leak_in_or_out(planted: Atlas, tmp_path: Path) -> None:
    plain = save(planted.plot.categories(), tmp_path / "plain.svg").read_bytes()
    with mpl.rc_context(
        {"font.size": 20, "savefig.bbox": "tight", "svg.fonttype": "path", "axes.grid": True}
    ):
        before = dict(mpl.rcParams)
        assert save(planted.plot.categories(), tmp_path / "styled.svg").read_bytes() == plain
        assert dict(mpl.rcParams) == before


def test_pyplot_is_never_imported(planted: Atlas) -> None:
    code = (
        "import sys, headatlas, headatlas.figures\n"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('matplotlib', 'torch')]\n"
        "from headatlas.atlas import Atlas\n"
        "Atlas.open(sys.argv[1]).plot.layers()\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(planted.path)], check=True)


def test_relation_panels_show_score_sign_and_calls(planted: Atlas) -> None:
    figure = planted.plot.relations()
    found = texts(figure)
    order = ["word → first letter", "country → capital", "verb → past tense", "English → French"]
    assert [text for text in found if text in order] == order
    assert {"promotion score", "suppression score", "suppresses it"} <= set(found)
    pixels = painted(figure)
    capital = cell_colours(figure, figure.axes[1], pixels, (12, 4))
    assert capital[5, 2] == LIGHT.scores()[30]  # 30 of 40 sources: 0.75
    french = cell_colours(figure, figure.axes[3], pixels, (12, 4))
    assert french[5, 2] == LIGHT.scores(suppression=True)[12]  # 12 of 40 sources: 0.3
    assert french[3, 1] == LIGHT.scores()[20]


def test_layers_stack_equals_shares(planted: Atlas) -> None:
    table = planted.plot.data("layers")
    every = table[table["panel"] == "All Categories"].set_index("layer")
    assert every.loc[3, "share_4"] == every.loc[5, "share_2"] == every.loc[7, "share_1"] == 0.25
    assert every["share"].sum() == 0.75
    assert list(every.index) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 11]
    assert (table["control"] == 0.25).all()
    figure = planted.plot.layers()
    stack = next(patch for patch in figure.axes[0].patches if patch.get_label() == "2 categories")
    assert isinstance(stack, PathPatch)
    heights = {round(x): y for x, y in np.asarray(stack.get_path().vertices) if y > 0}
    assert set(heights.values()) == {0.25}
    steps = next(patch for patch in figure.axes[1].patches if isinstance(patch, StepPatch))
    assert not figure.axes[0].lines, "an axis has one meaning"
    control = np.asarray(steps.get_data().values)
    assert np.isnan(control[9:11]).all()
    assert (control[:9] == 0.25).all()


def test_data_is_what_the_atlas_says(atlas: Atlas, tmp_path: Path) -> None:
    table = atlas.plot.data("categories")
    written = write_table(table, tmp_path / "c.csv")
    assert pd.read_csv(written).shape == table.shape
    assert len(table) == 24
    assert (table[PANELS[1:]].sum(axis=1) == table["n_categories"]).all()
    scores = atlas.plot.data("relations")
    assert len(scores) == 24 * 19
    assert (scores["shown"] < 0).equals(scores["suppression"] > scores["score"])


@pytest.mark.parametrize(
    ("panels", "titles"),
    [
        ("category", ["A", "B"]),
        ("subcategory", ["A: Code", "Letters", "B: Code", "B"]),
        ("relation", ["first", "second", "same", "third", "fourth", "last"]),
    ],
)
def test_panels_split_and_keep_the_colour(tmp_path: Path, panels: Any, titles: list[str]) -> None:
    """A head's level is its number of categories in every panel, however they are split."""
    specs = (
        Spec("first", "A", subcategory="Code"),
        Spec("third", "B", subcategory="Code"),
        Spec("second", "A", subcategory="Letters"),
        Spec("same", "A", subcategory="Letters"),
        Spec("fourth", "B"),
        Spec("last", "B"),
    )
    plants = [Plant(0, 0, name) for name in ("first", "same", "third")]
    atlas = plant_atlas(tmp_path / "atlas.zarr", plants, n_layers=1, n_heads=1, specs=specs)
    grid = category_grid(atlas, panels)
    assert list(grid.panels) == ["All Categories", *titles]
    member = {"A", "A: Code", "B: Code", "Letters", "first", "same", "third"}
    member |= {"B"} if panels == "category" else set()
    assert {panel: int(grid.shown(panel)[0, 0]) for panel in grid.panels} == {
        panel: 2 if panel in member | {"All Categories"} else 0 for panel in grid.panels
    }
    assert grid.n_levels == 2
    assert sum(grid.n_relations[panel] for panel in titles) == grid.n_relations["All Categories"] == 6
    figure = atlas.plot.categories(panels=panels)
    assert len(figure.axes) == len(titles) + 1
    table = atlas.plot.data("categories", panels)
    assert list(table)[3:-1] == titles and table["n_categories"].tolist() == [2]
    assert [int(table[title].iloc[0]) for title in titles] == [int(title in member) for title in titles]
    written = plot(atlas, "categories", tmp_path / "c.svg", 100, panels=panels)
    assert (f"one for each {panels}" in written.read_text()) == (panels != "category")


def test_relations_of_one_title_are_named(tmp_path: Path) -> None:
    relations = [spec.tokenised() for spec in (Spec("same", "A"), Spec("Same", "B"), Spec("other", "B"))]
    renamed = replace(relations[1].relation, name="also", title="same")
    relations[1] = replace(relations[1], relation=renamed)
    atlas = write_atlas(tmp_path / "atlas.zarr", relations, {})
    assert list(category_grid(atlas, "relation").member) == ["same", "also", "other"]


def test_other_panels_are_refused(atlas: Atlas, tmp_path: Path) -> None:
    with pytest.raises(HeadatlasError, match="`panels` is 'letter': choose from category, subcategory"):
        atlas.plot.categories(panels="letter")  # type: ignore[arg-type]
    with pytest.raises(HeadatlasError, match="`panels=relation` is for the figure of the categories, not"):
        plot(atlas, "layers", tmp_path / "c.svg", panels="relation")


def test_which_chooses_panels(atlas: Atlas) -> None:
    assert len(atlas.plot.categories(which="knowledge").axes) == 1
    assert len(atlas.plot.layers(which=["Translation", "All Categories"]).axes) == 2 * 2
    assert len(atlas.plot.relations(which="Knowledge").axes) == 5
    assert len(atlas.plot.relations(which=["country_to_capital", "word → antonym"]).axes) == 2
    with pytest.raises(HeadatlasError, match="no panel 'Art'; choose from All Categories, Algorithmic"):
        atlas.plot.categories(which="Art")


def test_a_panel_is_named_by_a_part_that_no_other_has(atlas: Atlas) -> None:
    """As a relation is in every other command."""
    for kind, which, n, title in (
        ("categories", "know", 1, "Knowledge"),
        ("relations", "capital", 1, "country → capital"),
        ("relations", ["Capital", "translation"], 3, "country → capital"),
    ):
        figure = atlas.plot(kind, which=which)
        assert len(figure.axes) == n and title in texts(figure)
    with pytest.raises(HeadatlasError, match="'country'; did you mean country_to_capital or country_to_lan"):
        atlas.plot.relations(which="country")
    with pytest.raises(HeadatlasError, match=r"category 'kapital'; did you mean country_to_capital.*\?"):
        atlas.plot.relations(which="kapital")
    with pytest.raises(HeadatlasError, match="'xyz'; choose from "):
        atlas.plot.relations(which="xyz")
    with pytest.raises(HeadatlasError, match="nothing asked for as panel; choose from "):
        atlas.plot.categories(which=[])


def test_an_option_that_there_is_not_is_refused_by_what_there_is(atlas: Atlas) -> None:
    for ax in (None, Figure().subplots()):
        with pytest.raises(
            TypeError, match=r"^atlas\.plot\(\) got .* 'colour'; it takes ax, width_mm, which,"
        ):
            atlas.plot.categories(ax=ax, colour="blue")
    table = pd.DataFrame({"layer": [0], "head": [0], "category": ["A"]})
    with pytest.raises(TypeError, match=r"^plot_categories\(\) got .* 'theme'; it takes width_mm, .*, dark,"):
        ha.plot_categories(table, theme="dark")


@pytest.mark.parametrize("kind", OF_THE_MAP)
def test_a_panel_in_the_users_axes(atlas: Atlas, kind: str) -> None:
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    which = "country_to_capital" if kind == "relations" else "Knowledge"
    assert getattr(atlas.plot, kind)(ax=left, which=which) is left, (
        "as matplotlib's and pandas's functions do"
    )
    assert left.get_title() == ("country → capital" if kind == "relations" else "Knowledge")
    assert left.get_xlabel() == "Layer"
    assert atlas.model_name in left.texts[-1].get_text()
    assert not right.patches
    painted(figure)
    caption, axis_name = left.texts[-1].get_window_extent(), left.xaxis.label.get_window_extent()
    assert caption.y1 < axis_name.y0
    if kind != "relations":
        labels = [text.get_text() for text in left.legend().get_texts()]
        assert labels[:4] == ["1 category", "2 categories", "3 categories", "4 categories"]


@pytest.mark.parametrize("kind", OF_THE_MAP)
def test_every_keyword_is_obeyed_or_refused(atlas: Atlas, kind: str) -> None:
    which = "country_to_capital" if kind == "relations" else "Knowledge"
    draw = getattr(atlas.plot, kind)
    whole, without = draw(), draw(caption=False)
    assert atlas.caption() in " ".join(texts(whole)).replace("\u00a0", " ")
    assert not any(atlas.model_name in text or "score ≥" in text for text in texts(without))
    assert without.get_figheight() < whole.get_figheight(), "and no room is left for it"
    axes = Figure().subplots()
    draw(ax=axes, which=which, caption=False)
    assert not any(atlas.model_name in text.get_text() for text in axes.texts)
    for name, value in (("letters", True), ("dpi", 72), ("transparent", True), ("used_levels", True)):
        with pytest.raises(HeadatlasError, match=f"`{name}`: the axes given with `ax`"):
            draw(ax=axes, which=which, **{name: value})
    with pytest.raises(
        HeadatlasError, match="`width_mm`: the axes given with `ax` are part of a figure of yours"
    ):
        draw(ax=axes, which=which, width_mm=170)


@pytest.mark.parametrize("width_mm", [29.9, 1000.1, float("nan"), -5])
def test_impossible_widths(atlas: Atlas, width_mm: float) -> None:
    with pytest.raises(HeadatlasError, match="30 to 1000 mm"):
        atlas.plot.categories(width_mm=width_mm)


def test_every_figure_that_can_be_asked_for_is_in_the_table(atlas: Atlas) -> None:
    assert tuple(KINDS) == get_args(FigureKind)
    for kind in KINDS:
        if kind not in OF_THE_MAP:
            for asked in (atlas.plot, atlas.plot.data):
                with pytest.raises(HeadatlasError, match=r"this atlas holds nothing .*; run `headatlas "):
                    asked(kind)
            with pytest.raises(HeadatlasError, match=f"`ax` is for figures of the map; {kind} has a figure"):
                atlas.plot(kind, ax=Figure().subplots())


def test_a_figure_that_fits_no_page_is_drawn_with_a_warning(atlas: Atlas) -> None:
    with pytest.warns(UserWarning, match=r"the relations figure is \d+ mm high, more than a page") as said:
        figure = atlas.plot(kind="relations", width_mm=85)
    assert f" {figure.get_figheight() * 25.4:.0f} mm high" in str(said[0].message)
    assert "choose panels with `which` (`headatlas plot`)" in str(said[0].message)


def test_unknown_formats_kinds_and_places(atlas: Atlas, tmp_path: Path) -> None:
    with pytest.raises(HeadatlasError, match=r"suffix is \.jpg; a figure can be \.png, \.svg or \.pdf"):
        plot(atlas, "categories", tmp_path / "a.jpg")
    with pytest.raises(HeadatlasError, match="no figure 'cats'; choose from categories, relations, layers"):
        plot(atlas, "cats", tmp_path / "a.png")  # type: ignore[arg-type]
    (tmp_path / "a.png").mkdir()
    with pytest.raises(HeadatlasError, match="cannot be written"):
        plot(atlas, "layers", tmp_path / "a.png", 60)


def test_paths_cover_exactly_their_cells() -> None:
    rng = np.random.default_rng(1)
    mask = rng.random((7, 5)) < 0.5
    centres = np.stack(np.meshgrid(np.arange(7), np.arange(5), indexing="ij"), axis=-1).reshape(-1, 2)
    assert (cells_path(mask).contains_points(centres).reshape(7, 5) == mask).all()


def test_wrap_keeps_relations_together_and_breaks_long_words() -> None:
    assert wrap("score ≥ 0.15 and q ≤ 0.01", 12, measure=len) == [
        "score\u00a0≥\u00a00.15",
        "and q\u00a0≤\u00a00.01",
    ]
    assert wrap("bars: 95 % over sources", 9, measure=len) == ["bars:", "95\u00a0% over", "sources"]
    assert wrap("abcdefgh ij", 3, measure=len) == ["abc", "def", "gh", "ij"]
