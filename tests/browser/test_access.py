"""The page can be used with the keyboard alone, and axe-core finds no fault in it."""

from __future__ import annotations

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.browser.conftest import Opener
from tests.browser.made import LABELLED, LOOKS, N_HEADS, N_LAYERS
from tests.browser.showing import NARROW, WIDE, Shown

HEAD = f"#head={LABELLED[0]}.{LABELLED[1]}"
FOCUSED = """() => {
  const node = document.activeElement;
  if (!node || node === document.body) return null;
  const { outlineStyle, outlineWidth, boxShadow } = getComputedStyle(node);
  const box = node.getBoundingClientRect();
  const seen = box.width > 0 && box.height > 0 && box.bottom > 0 && box.top < innerHeight && box.right > 0;
  const ring = (outlineStyle !== "none" && parseFloat(outlineWidth) >= 1) || boxShadow !== "none";
  node.dataset.reached = "1";
  return { seen, ring, name: node.outerHTML.slice(0, 120) };
}"""
MISSED = """() => [...document.querySelectorAll("a[href], button, input, select, summary, [tabindex]")]
  .filter((each) => each.checkVisibility() && !each.disabled && each.tabIndex >= 0 && !each.dataset.reached)
  .filter((each) => each.type !== "radio" || each.checked)
  .map((each) => each.outerHTML.slice(0, 120))"""


def faults(shown: Shown) -> list[str]:
    """Rules that axe-core finds broken, with the first element of each."""
    violations = Axe().run(shown.page).response["violations"]
    return [f"{each['id']} ({len(each['nodes'])}): {each['nodes'][0]['html'][:200]}" for each in violations]


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(open_page: Opener, theme: str, size: tuple[int, int]) -> None:
    shown = open_page(
        theme=theme, size=size, fragment=f"{HEAD}&relation=country_to_capital&find=s1&k=3&c=best"
    )
    expect(shown.card()).to_have_accessible_name(re.compile("^Head 2"))
    shown.open_all()
    assert faults(shown) == []


def test_axe_finds_nothing_as_it_opens(open_page: Opener) -> None:
    assert faults(open_page()) == []
    assert faults(open_page("hostile", theme="dark", fragment="#colour=copying")) == []


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_tab_reaches_everything_and_shows_where_it_is(open_page: Opener, size: tuple[int, int]) -> None:
    shown = open_page(size=size, fragment=HEAD)
    page = shown.page
    expect(shown.card()).to_have_accessible_name(re.compile("^Head 2"))
    hidden, bare = [], []
    n_steps = 0
    page.keyboard.press("Tab")
    while (at := page.evaluate(FOCUSED)) is not None:
        hidden += [at["name"]] * (not at["seen"])
        bare += [at["name"]] * (not at["ring"])
        page.keyboard.press("Tab")
        n_steps += 1
        assert n_steps < 500, "the focus is caught"
    assert n_steps > 50
    assert page.evaluate(MISSED) == []
    assert hidden == [], "the focus is where nobody sees it"
    assert bare == [], "the focus cannot be seen"


def test_a_head_is_chosen_and_left_by_keys(open_page: Opener) -> None:
    shown = open_page()
    page, card = shown.page, shown.card()
    shown.figure().focus()
    page.keyboard.press("Home")
    for _ in range(LOOKS[0]):
        page.keyboard.press("ArrowRight")
    for _ in range(N_HEADS):
        page.keyboard.press("ArrowDown")
    for _ in range(LOOKS[1]):
        page.keyboard.press("ArrowUp")
    expect(page.get_by_role("status").filter(has_text="Head {}.{}".format(*LOOKS))).to_be_attached()
    page.keyboard.press("Enter")
    expect(card).to_have_accessible_name("Head {}.{}".format(*LOOKS))
    expect(card.get_by_role("heading", level=2)).to_be_focused()
    page.keyboard.press("Escape")
    expect(card).to_have_accessible_name("Heads")
    expect(shown.figure()).to_be_focused()
    page.keyboard.press("PageDown")
    page.keyboard.press(" ")
    expect(card).to_have_accessible_name(re.compile("^Head [0-9]"))


def test_controls_follow_keys(open_page: Opener) -> None:
    shown = open_page()
    page = shown.page
    for name, fragment in (("Score ≥", "tau=0.16"), ("Top k", "k=11")):
        slider = page.get_by_role("slider", name=name)
        slider.press("ArrowRight")
        assert fragment in shown.fragment()
    effect = page.get_by_role("radio", name="both")
    effect.press("ArrowRight")
    assert "sign=promotion" in shown.fragment()
    page.locator("summary").filter(has_text="all relations").press("Enter")
    page.get_by_role("checkbox", name="country → capital").press(" ")
    assert "relation=country_to_capital" in shown.fragment()
    page.get_by_role("columnheader", name="Score").get_by_role("button").press("Enter")
    assert "sort=-score" in shown.fragment()
    plot = page.get_by_role("application", name="two measures")
    plot.press("End")
    plot.press("Enter")
    expect(shown.card()).to_have_accessible_name(re.compile("^Head [0-9]"))


def test_what_is_pressed_keeps_the_focus(open_page: Opener) -> None:
    """A button that has nothing more to do must not drop the reader at the top of the page."""
    shown = open_page(fragment="#tau=0&relation=country_to_capital&below=1")
    page = shown.page
    page.locator("summary").filter(has_text="country → capital").press("Enter")
    for name in ("All relations", "Last page", "First page", "Reset all"):
        page.get_by_role("button", name=name).press("Enter")
        shown.settle()
        assert page.evaluate("document.activeElement !== document.body"), name


def test_a_head_is_chosen_by_a_finger(open_page: Opener) -> None:
    shown = open_page(size=NARROW, has_touch=True, is_mobile=True)
    shown.page.touchscreen.tap(*shown.place(*LABELLED, N_LAYERS, N_HEADS))
    expect(shown.card()).to_have_accessible_name("Head {}.{}".format(*LABELLED))
    expect(shown.card().get_by_role("heading", level=2)).to_be_in_viewport()
