"""What a reader takes away: files, and an address that shows the same again."""

from __future__ import annotations

import csv
import struct
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from playwright.sync_api import expect

from headatlas.atlas import Atlas
from tests.browser.conftest import Opener
from tests.browser.made import LABELLED
from tests.browser.showing import Shown

SVG = "{http://www.w3.org/2000/svg}"


def save(shown: Shown, button: str, folder: Path) -> Path:
    """Press a button that saves a file, and keep the file."""
    with shown.page.expect_download() as waiting:
        shown.page.get_by_role("button", name=button).click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def test_the_table_as_csv(open_page: Opener, atlas: Atlas, tmp_path: Path) -> None:
    shown = open_page(fragment="#tau=0.2&sort=-score")
    path = save(shown, "Download CSV", tmp_path)
    assert path.name == "Synthetic-1M-heads.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    frame = atlas.at(tau=0.2).sel(called=True).set_index(["layer", "head", "relation"])
    keys = [(int(row["layer"]), int(row["head"]), row["relation"]) for row in rows]
    assert set(keys) == set(frame.index)
    assert len(keys) == len(frame)
    for column in ("score", "q", "suppression", "control", "added"):
        mine = [float(row[column]) for row in rows]
        np.testing.assert_allclose(mine, frame.loc[keys, column].to_numpy(), rtol=1e-3, atol=1e-9)
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)


def test_hostile_names_in_files(open_page: Opener, tmp_path: Path) -> None:
    shown = open_page("hostile", fragment="#tau=0&q=any&below=1")
    with save(shown, "Download CSV", tmp_path).open(newline="", encoding="utf-8") as file:
        table = list(csv.reader(file))
    assert len({len(row) for row in table}) == 1
    assert len(table) > 100
    assert not [field for row in table for field in row if field[:1] in ("=", "@", "+", "\t", "\r")]
    drawing = save(shown, "Save the figure as SVG", tmp_path)
    assert "/" not in drawing.name
    check_drawing(drawing)


def check_drawing(path: Path) -> tuple[Any, str]:
    """The root of a drawing that loads nothing and runs nothing, and its text."""
    root = ElementTree.parse(path).getroot()  # noqa: S314 - what the page under test has just written
    assert root.tag == f"{SVG}svg"
    for node in root.iter():
        assert node.tag.startswith(SVG)
        assert node.tag not in (f"{SVG}script", f"{SVG}foreignObject", f"{SVG}image", f"{SVG}use", f"{SVG}a")
        assert not [name for name in node.attrib if name.startswith("on") or "href" in name]
    return root, " ".join(root.itertext())


@pytest.mark.parametrize("what", ["figure", "scatter", "layers"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_drawings(open_page: Opener, tmp_path: Path, what: str, theme: str) -> None:
    shown = open_page(theme=theme)
    root, text = check_drawing(save(shown, f"Save the {what} as SVG", tmp_path))
    assert "layer" in text.lower()
    width, height = float(root.get("width")), float(root.get("height"))
    fills = {node.get("fill") for node in root.iter() if node.get("fill")}
    assert len(fills) >= 3
    head = save(shown, f"Save the {what} as PNG", tmp_path).read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:]) == (round(3 * width), round(3 * height))


def test_a_saved_figure_shows_the_same_heads(open_page: Opener, atlas: Atlas, tmp_path: Path) -> None:
    shown = open_page(fragment="#tau=0.3&category=Knowledge")
    n_heads = len(atlas.at(tau=0.3).sel(category="Knowledge", called=True).groupby(["layer", "head"]))
    expect(shown.figure()).to_have_accessible_name(
        f"Heads of Knowledge by number of categories {n_heads} heads"
    )
    _, text = check_drawing(save(shown, "Save the figure as SVG", tmp_path))
    assert f"{n_heads} heads" in text
    assert "Synthetic-1M" in text


@pytest.mark.parametrize(
    "fragment",
    [
        "#head=2.1",
        "#tau=0.3&relation=country_to_capital",
        "#category=Knowledge,Linguistic&k=3&k_copy=2&sign=suppression",
        "#q=any&colour=copying&x=effective_rank&y=explained&c=best&sort=q&below=1",
        "#find=s1",
        "#head=3.2&relation=country_to_capital,adjective_to_comparative&tau=0.05&q=0.05",
    ],
)
def test_an_address_shows_the_same_again(open_page: Opener, fragment: str) -> None:
    shown = open_page(fragment=fragment)
    assert set(shown.fragment()[1:].split("&")) == set(fragment[1:].split("&"))
    seen = shown.page.locator("main").inner_text()
    again = open_page()
    again.follow(fragment)
    assert again.page.locator("main").inner_text() == seen


@pytest.mark.parametrize(
    "fragment",
    [
        "#head=99.99&tau=7&k=-1&sign=%3Cscript%3E&relation=none&category=&q=NaN&sort=__proto__",
        "#__proto__=1&constructor=2&head=__proto__&toString=x",
        "#%E0%A4%A&head=%00&find=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E",
        "#x=__proto__&y=constructor&c=toString&colour=hasOwnProperty&tau=1e999&k=1.5",
    ],
)
def test_an_address_that_means_nothing_does_no_harm(open_page: Opener, fragment: str) -> None:
    shown = open_page(fragment=fragment)
    assert shown.page.locator("img, script[src]").count() == 0
    expect(shown.card()).to_have_accessible_name("Heads")
    shown.page.get_by_role("radio", name="promotion").check()
    assert "sign=promotion" in shown.fragment()


def test_going_back_and_forth(open_page: Opener) -> None:
    """A fragment typed into the address is followed without loading again."""
    shown = open_page(fragment="#head={}.{}".format(*LABELLED))
    expect(shown.card()).to_have_accessible_name("Head {}.{}".format(*LABELLED))
    shown.follow("#head=0.0&tau=0.02")
    expect(shown.card()).to_have_accessible_name("Head 0.0")
    shown.page.go_back()
    expect(shown.card()).to_have_accessible_name("Head {}.{}".format(*LABELLED))
