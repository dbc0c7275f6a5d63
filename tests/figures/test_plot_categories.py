"""The categories figure of a table that was made elsewhere, and what the figures' keywords do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import headatlas as ha
from headatlas.atlas import Atlas
from headatlas.errors import HeadatlasError
from headatlas.figures import save
from headatlas.figures.colours import LIGHT
from tests.figures.test_figures import PANELS, cell_colours, painted, texts

TABLE = pd.DataFrame(
    {
        "layer": [3, 3, 5, 5, 0],
        "head": [0, 0, 2, 2, 1],
        "category": ["Copying", "Induction", "Induction", "Induction", "Names"],
        "score": [0.5, 0.2, 0.9, 0.9, 0.1],
    }
)


def panels(figure: Figure, shape: tuple[int, int]) -> list[np.ndarray]:
    pixels = painted(figure)
    return [cell_colours(figure, ax, pixels, shape) for ax in figure.axes]


def test_the_cells_are_those_of_the_table() -> None:
    figure = ha.plot_categories(TABLE, shape=(6, 4), caption="my own probes")
    found = texts(figure)
    names = ["All Categories", "Copying", "Induction", "Names"]
    assert [text for text in found if text in names] == names, "categories in the order of their first row"
    assert "my own probes" in found
    drawn = panels(figure, (6, 4))
    one, two = LIGHT.levels(3)[:2]
    everything = np.full((6, 4), LIGHT.blank)
    everything[3, 0], everything[5, 2], everything[0, 1] = two, one, one
    assert drawn[0].tolist() == everything.tolist()
    copying, induction = np.full((6, 4), LIGHT.blank), np.full((6, 4), LIGHT.blank)
    copying[3, 0] = induction[3, 0] = two
    induction[5, 2] = one
    assert drawn[1].tolist() == copying.tolist() and drawn[2].tolist() == induction.tolist()


def test_the_shape_is_that_of_the_table_unless_given() -> None:
    ax = ha.plot_categories(TABLE).axes[0]
    assert (ax.get_xlim(), ax.get_ylim()) == ((-0.5, 5.5), (-0.5, 2.5))
    wide = ha.plot_categories(TABLE, shape=(12, 8)).axes[0]
    assert (wide.get_xlim(), wide.get_ylim()) == ((-0.5, 11.5), (-0.5, 7.5))


def test_the_table_of_an_atlas_gives_its_figure(atlas: Atlas) -> None:
    rows = atlas.sel(called=True)
    rows = rows.sort_values("category", kind="stable")
    ours = panels(ha.plot_categories(rows, shape=(6, 4)), (6, 4))
    theirs = panels(atlas.plot.categories(), (6, 4))
    assert len(ours) == len(theirs) == len(PANELS)
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine.tolist() == expected.tolist()


def test_panels_and_width_are_chosen(tmp_path: Path) -> None:
    figure = ha.plot_categories(TABLE, which="Induction", width_mm=80, title="Probes")
    assert [text for text in texts(figure) if text in ("All Categories", "Induction")] == ["Induction"]
    assert figure.get_figwidth() * 25.4 == pytest.approx(80)
    save(figure, tmp_path / "a.svg")
    assert "Probes" in (tmp_path / "a.svg").read_text()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            lambda table: table.drop(columns="head"),
            {},
            "the table lacks head; its columns are layer, category",
        ),
        (lambda table: table[["score"]], {}, "the table lacks layer, head, category"),
        (lambda table: table.assign(layer=[0.5, 1, 2, 3, 4]), {}, "no whole number, counted from 0"),
        (lambda table: table.assign(layer=[-1, 1, 2, 3, 4]), {}, "no whole number, counted from 0"),
        (lambda table: table.assign(head="two"), {}, "no whole number, counted from 0"),
        (lambda table: table, {"shape": (5, 4)}, "no whole number of 5 layers of 4 heads"),
        (lambda table: table, {"which": "Bogus"}, "Bogus"),
        (lambda table: table, {"width_mm": 5}, "`width_mm` is 5 mm"),
    ],
)
def test_tables_that_cannot_be_drawn(change: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(HeadatlasError, match=message):
        ha.plot_categories(change(TABLE), **options)
