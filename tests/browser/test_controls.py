"""Every control does what it says, held against what Python says of the same atlas."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Locator, TimeoutError, expect

from headatlas.atlas import Atlas
from tests.browser.conftest import Opener
from tests.browser.made import LABELLED, LOOKS, N_HEADS, N_LAYERS
from tests.browser.showing import Shown, wait_for

CAPITAL = "country → capital"
WATCHED = """() => {
  const seen = () => {
    const values = [...document.querySelectorAll("input, select")].map((each) => [each.value, each.checked]);
    return [location.hash, document.documentElement.outerHTML, values].join();
  };
  const before = seen();
  window.didSomething = () => window.saved || seen() !== before;
  window.saved = false;
  HTMLAnchorElement.prototype.click = () => { window.saved = true; };
}"""
"""All that can be seen, and what stands in fields. A file is saved by a link that is clicked."""


def n_heads(frame: Any) -> int:
    return len(frame[["layer", "head"]].drop_duplicates())


def counts(shown: Shown, n: int) -> None:
    """The large panel shows so many heads."""
    expect(shown.figure()).to_have_accessible_name(re.compile(rf" {n} heads?$"))


def slide(slider: Locator, value: float) -> None:
    """Drag a slider, as the browser reports it."""
    slider.evaluate(
        """(node, value) => {
          node.value = String(value);
          node.dispatchEvent(new Event("input", { bubbles: true }));
        }""",
        value,
    )


@pytest.mark.parametrize("tau", [0.05, 0.3, 1.0])
def test_tau(open_page: Opener, atlas: Atlas, tau: float) -> None:
    shown = open_page()
    counts(shown, n_heads(atlas.sel(called=True)))
    slide(shown.page.get_by_role("slider", name="Score ≥"), tau)
    counts(shown, n_heads(atlas.at(tau=tau).sel(called=True)))
    assert f"tau={tau:g}" in shown.fragment()


def test_k(open_page: Opener, atlas: Atlas) -> None:
    """Other k have no q here, so the score alone counts, and the page says so."""
    shown = open_page()
    k = shown.page.get_by_role("slider", name="Top k")
    slide(k, 3)
    counts(shown, n_heads(atlas.at(k=3, criterion="tau").sel(called=True)))
    expect(shown.page.get_by_text("so the score alone counts")).to_be_visible()
    copying = shown.page.get_by_role("spinbutton", name="k of copying")
    copying.fill("5")
    copying.press("Tab")
    counts(shown, n_heads(atlas.at(k=3, k_copy=5, criterion="tau").sel(called=True)))
    assert {"k=3", "k_copy=5"} <= set(shown.fragment().strip("#").split("&"))


def test_q(open_page: Opener, atlas: Atlas) -> None:
    shown = open_page()
    q = shown.page.get_by_role("slider", name="q ≤")
    q.press("End")
    counts(shown, n_heads(atlas.at(criterion="tau").sel(called=True)))
    assert shown.fragment() == "#q=any"
    q.press("Home")
    least = float(re.findall(r"q=([^&]+)", shown.fragment())[0])
    counts(shown, n_heads(atlas.at(q_max=least).sel(called=True)))


def test_effect(open_page: Opener, atlas: Atlas) -> None:
    shown = open_page()
    called = atlas.sel(called=True)
    effect = shown.page.get_by_role("radiogroup", name="Effect")
    for name, column in (("promotion", "implements"), ("suppression", "suppresses")):
        effect.get_by_role("radio", name=name).check()
        counts(shown, n_heads(called[called[column]]))
        assert shown.fragment() == f"#sign={name}"
    effect.get_by_role("radio", name="both").check()
    counts(shown, n_heads(called))
    assert shown.fragment() == ""


def test_relations_and_categories(open_page: Opener, atlas: Atlas) -> None:
    shown = open_page()
    page, called = shown.page, atlas.sel(called=True)
    page.locator("summary").filter(has_text="all relations").click()
    page.get_by_role("checkbox", name="all of Knowledge").check()
    counts(shown, n_heads(called[called["category"] == "Knowledge"]))
    page.get_by_role("checkbox", name="all of Knowledge").uncheck()
    page.get_by_role("checkbox", name=CAPITAL).check()
    expect(shown.figure()).to_have_accessible_name(re.compile(CAPITAL))
    assert shown.fragment() == "#relation=country_to_capital"
    expect(page.get_by_role("status").filter(has_text="rows that pass")).to_contain_text(CAPITAL)
    page.get_by_role("button", name="All relations").click()
    counts(shown, n_heads(called))
    page.get_by_role("checkbox", name=CAPITAL).press("Escape")
    expect(page.get_by_role("checkbox", name=CAPITAL)).to_be_hidden()


def test_reset(open_page: Opener, atlas: Atlas) -> None:
    shown = open_page(fragment=f"#tau=0.5&k=3&sign=promotion&head={LOOKS[0]}.{LOOKS[1]}&find=x&colour=score")
    reset = shown.page.get_by_role("button", name="Reset")
    reset.click()
    counts(shown, n_heads(atlas.sel(called=True)))
    expect(reset).to_be_disabled()
    expect(shown.page.get_by_role("searchbox")).to_have_value("")
    assert shown.fragment() == ""


@pytest.mark.parametrize(
    ("label", "where"), [("Colour by", "figure"), ("Across", "x"), ("Up", "y"), ("Colour", "c")]
)
def test_each_choice_shows_something_else(open_page: Opener, label: str, where: str) -> None:
    shown = open_page()
    chooser = shown.page.get_by_role("combobox", name=label, exact=True)
    drawing = shown.page.get_by_role("application")
    drawing = drawing.first if where == "figure" else drawing.last
    values = chooser.locator("option").evaluate_all("nodes => nodes.map((node) => node.value)")
    assert len(values) >= 3
    seen = {}
    for value in values:
        chooser.select_option(value)
        shown.settle()
        seen[value] = drawing.evaluate("node => node.parentElement.parentElement.outerHTML")
    # On this atlas all heads have the same size; two choices may also say the same in two ways.
    assert len(set(seen.values())) >= 0.8 * len(values)
    assert shown.fragment().startswith("#")


def test_a_head_is_chosen_by_the_mouse(open_page: Opener, atlas: Atlas) -> None:
    shown = open_page()
    page, card = shown.page, shown.card()
    for head in (LABELLED, LOOKS):
        page.mouse.move(*shown.place(*head, N_LAYERS, N_HEADS))
        page.mouse.click(*shown.place(*head, N_LAYERS, N_HEADS))
        expect(card).to_have_accessible_name("Head {}.{}".format(*head))
        assert shown.fragment() == "#head={}.{}".format(*head)
        for statement in atlas.head(*head).relations.query("implements or suppresses")["relation"]:
            title = atlas.relations.set_index("relation").loc[statement, "title"]
            expect(card).to_contain_text(str(title))
    expect(card).to_contain_text("looks at the previous token")
    page.get_by_role("button", name="Close the card").click()
    expect(card).to_have_accessible_name("Heads")
    assert shown.fragment() == ""


def test_a_layer_that_is_not_mapped_says_so(open_page: Opener) -> None:
    shown = open_page(fragment=f"#head={N_LAYERS - 1}.0")
    expect(shown.card()).to_contain_text("not been mapped")


def test_the_scatter_opens_heads(open_page: Opener) -> None:
    shown = open_page()
    plot = shown.page.get_by_role("application", name="two measures")
    plot.scroll_into_view_if_needed()
    place = plot.locator(".point").last.evaluate(
        """node => {
          const [, x, y] = /^M([\\d.]+) ([\\d.]+)a/.exec(node.getAttribute("d"));
          const box = node.ownerSVGElement.getBoundingClientRect();
          return [box.left + Number(x) + 3, box.top + Number(y)];
        }"""
    )
    shown.page.mouse.move(*place)
    shown.page.mouse.click(*place)
    expect(shown.card()).to_have_accessible_name(re.compile("^Head [0-9]"))


@pytest.mark.parametrize(
    ("text", "finds"),
    [
        ("2.1", "2.1"),
        ("L2H1", "2.1"),
        ("2", "2.3"),
        ("capital", CAPITAL),
        ("previous", "previous token"),
        ("capitals → countries", "capitals → countries"),
        ("größer", "größer"),
        ("s7", "s7 → t7"),
        ("no such thing", "holds “no such thing”"),
    ],
)
def test_searching(open_page: Opener, text: str, finds: str) -> None:
    shown = open_page()
    shown.page.get_by_role("searchbox").fill(text)
    found = shown.page.locator(".found")
    expect(found).to_contain_text(finds)
    if text == "L2H1":
        found.get_by_role("button", name="2.1").click()
        expect(shown.card()).to_have_accessible_name("Head 2.1")


def test_the_table(open_page: Opener, atlas: Atlas) -> None:
    shown = open_page()
    page = shown.page
    table = page.get_by_role("region", name="Table of heads")
    called = atlas.sel(called=True)
    best = f"{called['layer'].iloc[0]}.{called['head'].iloc[0]}"
    first = table.locator("tbody tr").first
    expect(first.get_by_role("button").first).to_have_text(best)
    for heading in table.get_by_role("columnheader").all():
        heading.get_by_role("button").click()
        expect(heading).to_have_attribute("aria-sort", re.compile("ending"))
        first_way = heading.get_attribute("aria-sort") or ""
        heading.get_by_role("button").click()
        other = {"ascending": "descending", "descending": "ascending"}[first_way]
        expect(heading).to_have_attribute("aria-sort", other)
    shown.settle()
    pages = page.get_by_role("navigation", name="Pages of the table")
    n_pages = -(-len(called) // 25)
    for name, at in (("Next", 2), ("Last", n_pages), ("Previous", n_pages - 1), ("First", 1)):
        pages.get_by_role("button", name=f"{name} page").click()
        expect(pages).to_contain_text(f"{25 * at - 24}–")
    page.get_by_label("also rows below").check()
    table_of_all = atlas.table()
    listed = table_of_all[(table_of_all["score"] > 0) | (table_of_all["suppression"] > 0)]
    expect(page.get_by_text(f"{len(listed)} rows, above and below")).to_be_visible()
    first.get_by_role("button").first.click()
    expect(shown.card()).to_have_accessible_name(re.compile("^Head "))
    relations = page.get_by_role("region", name="Table of relations")
    relations.get_by_role("row").filter(has_text=CAPITAL).get_by_role("button").first.click()
    assert shown.fragment() != ""


def test_the_figure_grows_and_shrinks(open_page: Opener) -> None:
    shown = open_page()
    width = shown.width()
    shown.page.get_by_role("button", name="Larger figure").click()
    assert shown.width() > 1.2 * width
    shown.page.get_by_role("button", name="Smaller figure").click()
    assert shown.width() == width


def already(control: str, fragment: str) -> bool:
    """Whether a link leads to the head that is open or to the relation that is shown."""
    head = re.search(r"Open head ([0-9.]+)", control)
    if head:
        return f"head={head[1]}" in fragment
    return "Show this relation" in control and "relation=" in fragment


def test_no_control_does_nothing(open_page: Opener) -> None:
    """Each button, field and fold, operated alone, changes something or saves a file."""
    shown = open_page(fragment=f"#head={LABELLED[0]}.{LABELLED[1]}")
    page = shown.page
    shown.settle()
    controls = "main button, main select, main input, main summary, header button, header summary"
    dead = []
    for at in range(page.locator(controls).count()):
        control = page.locator(controls).nth(at)
        if not control.is_visible() or control.is_disabled():
            continue
        name = control.evaluate("node => (node.closest('tbody tr:nth-child(n+3)') ? '' : node.outerHTML)")
        if (
            not name
            or already(name, page.evaluate("location.hash"))
            or control.evaluate("node => node.checked && node.name")
        ):
            continue
        page.evaluate(WATCHED)
        control.evaluate(
            """node => {
              const changed = (kind) => node.dispatchEvent(new Event(kind, { bubbles: true }));
              if (node.matches("select")) {
                node.selectedIndex = node.selectedIndex === 1 ? 2 : 1;
                changed("change");
              } else if (node.matches("input[type=range], input[type=number]")) {
                node.value = node.value === node.max ? node.min : node.max;
                changed("input");
                changed("change");
              } else if (node.matches("input[type=search]")) {
                node.value = "capital";
                changed("input");
              } else node.click();
            }"""
        )
        try:
            wait_for(page, "() => window.didSomething()")
        except TimeoutError:
            dead.append(name[:120])
        shown.settle()
    assert dead == []
