"""The page opens by itself, in both themes and any width, and names of others stay text."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Opener
from tests.browser.made import LABELLED, N_HEADS, N_LAYERS
from tests.browser.showing import NARROW, WIDE

UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Control characters, marks that turn the direction of writing, halves of characters."""


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_opens_in_the_theme_of_the_system(open_page: Opener, theme: str, size: tuple[int, int]) -> None:
    page = open_page(theme=theme, size=size).page
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile("^Synthetic-1M"))
    ground, ink = page.evaluate(
        """() => {
          const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
          const style = getComputedStyle(document.body);
          return [style.backgroundColor, style.color].map((colour) => {
            paint.fillStyle = colour;
            paint.fillRect(0, 0, 1, 1);
            return paint.getImageData(0, 0, 1, 1).data.slice(0, 3).reduce((sum, part) => sum + part, 0) / 765;
          });
        }"""
    )
    assert (ground > 0.8 and ink < 0.3) if theme == "light" else (ground < 0.2 and ink > 0.7)
    # Nothing sticks out: wide tables scroll within themselves.
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_controls_stand_on_one_line(open_page: Opener) -> None:
    page = open_page(size=(1400, 900)).page
    names = page.locator(".controls").locator(".label, .control > label, .labels-line label")
    boxes = [box for each in names.all() if (box := each.bounding_box())]
    middles = [box["y"] + box["height"] / 2 for box in boxes]
    assert len(boxes) == 8 and max(middles) - min(middles) < 2, "their names"
    find, reset = page.locator(".find input"), page.get_by_role("button", name="Reset all")
    tops = [box["y"] for each in (find, reset) if (box := each.bounding_box())]
    assert abs(tops[0] - tops[1]) < 1
    # What the field is for is not cut off.
    assert find.evaluate(
        """node => {
          const paint = document.createElement("canvas").getContext("2d");
          paint.font = getComputedStyle(node).font;
          return paint.measureText(node.placeholder).width + 22 < node.clientWidth;
        }"""
    )


def test_the_theme_can_be_changed(open_page: Opener) -> None:
    shown = open_page(theme="light")
    page = shown.page
    body = page.locator("body")
    before = body.evaluate("node => getComputedStyle(node).backgroundColor")
    page.get_by_role("button", name="Dark").click()
    expect(body).not_to_have_css("background-color", before)
    assert shown.fragment() == "#scheme=dark"
    shown.follow("scheme=light")
    expect(body).to_have_css("background-color", before)
    shown.follow("scheme=dark")
    page.get_by_role("button", name="Light").click()
    expect(body).to_have_css("background-color", before)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_names_of_others_stay_text(open_page: Opener, theme: str) -> None:
    shown = open_page("hostile", theme=theme)
    page = shown.page
    title = page.title()
    x, y = shown.place(*LABELLED, N_LAYERS, N_HEADS)
    page.mouse.click(x, y)
    expect(shown.card().get_by_role("heading", name=f"Head {LABELLED[0]}.{LABELLED[1]}")).to_be_visible()
    expect(shown.card()).to_contain_text("</script><img src=x")
    page.get_by_role("searchbox").fill("<")
    page.get_by_label("also rows below").check()
    shown.open_all()
    assert page.title() == title != "hit"
    assert page.locator("img, iframe, object, embed, form, base, script[src]").count() == 0
    assert page.locator("script").count() == 2
    assert page.evaluate("Object.keys(Object.prototype).length") == 0
    texts = shown.texts()
    assert any("</script><img src=x" in text for text in texts), "the name is shown as it is"
    assert any(r"\u202e" in text for text in texts), "and what cannot be seen as an escape"
    assert [text for text in texts if UNSEEN.search(text)] == []
    addresses = page.eval_on_selector_all("[href]", "nodes => nodes.map((node) => node.getAttribute('href'))")
    assert {each.partition(":")[0] if ":" in each else each[:1] for each in addresses} <= {
        "data",
        "#",
        "blob",
    }


def test_it_says_what_it_is_without_scripts(open_page: Opener) -> None:
    page = open_page(java_script_enabled=False).page
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile("^Synthetic-1M"))
    expect(page.locator("body")).to_contain_text("need JavaScript", use_inner_text=True)
