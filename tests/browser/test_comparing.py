"""The page of several atlases says of each head what `compare` says of it."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect

from headatlas.arrangement import compare
from headatlas.arrangement.comparison import HeadChanges
from headatlas.atlas import Atlas
from tests.browser.conftest import Opener
from tests.browser.showing import NARROW, WIDE
from tests.browser.test_access import faults
from tests.browser.test_controls import counts, slide
from tests.browser.test_opening import UNSEEN
from tests.browser.test_saving import check_drawing, save

CAPITAL = "country_to_capital"


@pytest.fixture
def changes(made: Callable[[str], tuple[Atlas, Path]]) -> HeadChanges:
    """What changed, in Python's words."""
    after, page = made("changed")
    return compare(Atlas.open(page.with_name("changed 0.zarr")), after).changes[0]


def test_the_figure_shows_what_changed(open_page: Opener, changes: HeadChanges) -> None:
    shown = open_page("changed")
    page, rows = shown.page, changes.table
    heads = {kind: set(zip(*(rows[rows["change"] == kind][part] for part in ("layer", "head")), strict=True))
             for kind in ("lost", "gained")}  # fmt: skip
    legend = page.get_by_role("list", name="Colours: what changed in a head")
    for words, n in (
        ("gained a relation", len(heads["gained"] - heads["lost"])),
        ("lost a relation", len(heads["lost"] - heads["gained"])),
        ("lost one and gained another", len(heads["lost"] & heads["gained"])),
    ):
        expect(legend).to_contain_text(re.compile(rf"{words} {n} heads?"))
    expect(page.get_by_role("banner")).to_contain_text(
        f"{changes.counts.lost} lost, {changes.counts.gained} gained"
    )
    called = rows[(rows["called_in"] != "") | (rows["change"] != "")]
    counts(shown, len(called[["layer", "head"]].drop_duplicates()))
    # A slider moves the page's own reading, not the comparison; relations and effect narrow it.
    slide(page.get_by_role("slider", name="Score ≥"), 0.9)
    counts(shown, len(called[["layer", "head"]].drop_duplicates()))
    page.get_by_role("radio", name="suppression").check()
    narrowed = called[called["sign"] == "suppression"]
    counts(shown, len(narrowed[["layer", "head"]].drop_duplicates()))
    expect(page.get_by_text(re.compile("The sliders above do not change it"))).to_be_visible()


def test_the_card_has_both_scores_and_the_test(open_page: Opener, changes: HeadChanges) -> None:
    row = changes.changes.iloc[0]
    shown = open_page("changed", fragment=f"#head={row['layer']}.{row['head']}")
    card = shown.card()
    title = dict(changes.relations[["relation", "title"]].to_numpy())[row["relation"]]
    line = card.get_by_role("listitem").filter(has_text=title).filter(has_text=re.compile(f"{row['change']}"))
    expect(line.first).to_contain_text(f"a {row['score_a']:.3f} → b {row['score_b']:.3f}")
    expect(line.first).to_contain_text("p < 0.001, q < 0.001" if row["q"] < 0.001 else f"q {row['q']:.3f}")


def test_the_table_and_its_csv(open_page: Opener, changes: HeadChanges, tmp_path: Path) -> None:
    shown = open_page("changed", fragment="#csort=difference")
    page, rows = shown.page, changes.table
    changed = rows[rows["change"] != ""]
    section = page.get_by_role("region", name="What changed from")
    expect(section.get_by_role("status")).to_have_text(f"{len(changed)} changes")
    with save(shown, "Download CSV of changes", tmp_path).open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    frame = changed.set_index(["layer", "head", "relation", "sign"])
    keys = [(int(each["layer"]), int(each["head"]), each["relation"], each["sign"]) for each in found]
    assert set(keys) == set(frame.index) and len(keys) == len(frame)
    for column in ("score_a", "score_b", "difference", "low", "high", "p", "q", "only_a", "only_b"):
        mine = [float(each[column]) for each in found]
        np.testing.assert_allclose(mine, frame.loc[keys, column].to_numpy(float), rtol=1e-4, atol=1e-4)
    assert [each["change"] for each in found] == frame.loc[keys, "change"].tolist()
    assert [float(each["difference"]) for each in found] == sorted(
        float(each["difference"]) for each in found
    )
    section.get_by_label("also what is not shown to differ").check()
    expect(section.get_by_role("status")).to_have_text(f"{len(rows)} cells")
    page.get_by_role("searchbox").fill("lost capital")
    lost = changed[(changed["change"] == "lost") & changed["relation"].str.contains("capital")]
    expect(section.get_by_role("status")).to_have_text(re.compile(f"^{len(lost)} cells?, “lost capital”$"))
    heading = section.get_by_role("columnheader", name="Head")
    heading.get_by_role("button").press("Enter")
    expect(heading).to_have_attribute("aria-sort", "ascending")
    fragment = set(shown.fragment().strip("#").split("&"))
    assert fragment == {"csort=head", "kept=1", "find=lost%20capital"}
    if len(lost):
        section.get_by_role("button", name=re.compile("^Open head")).first.click()
        expect(shown.card()).to_have_accessible_name(re.compile("^Head [0-9]"))


def test_best_scores_before_and_after(
    open_page: Opener, made: Callable[[str], tuple[Atlas, Path]], tmp_path: Path
) -> None:
    """The measures that a comparison adds are each atlas's own best scores."""
    after, path = made("changed")
    before = Atlas.open(path.with_name("changed 0.zarr"))
    shown = open_page("changed", fragment="#colour=difference&x=before&y=after&c=change&head=2.1")
    expect(shown.page.get_by_role("heading", name="Heads by difference of the best score")).to_be_visible()
    best = [atlas.table()[["score", "suppression"]].max(axis=1).groupby(
        [atlas.table()["layer"], atlas.table()["head"]]).max() for atlas in (before, after)]  # fmt: skip
    common = best[0].index.intersection(best[1].index)
    difference = (best[1] - best[0]).loc[common]
    shown.figure().focus()
    shown.page.mouse.move(*shown.place(2, 1, 6, 4))
    tooltip = shown.page.locator(".tooltip")
    expect(tooltip).to_contain_text(f"difference of the best score: {round(difference[2, 1], 4):g}")
    _, text = check_drawing(save(shown, "Save the figure as SVG", tmp_path))
    assert "lower" in text and "higher" in text


def test_revisions_are_steps(open_page: Opener) -> None:
    shown = open_page("revisions")
    page = shown.page
    title = page.get_by_role("heading", name="What changed from")
    expect(title).to_contain_text("#2 (a) to")
    page.get_by_role("combobox", name="From … to").select_option("1")
    expect(title).to_contain_text("#1 (a) to")
    expect(page.get_by_role("heading", name="Heads by change from")).to_contain_text("#1 to")
    assert shown.fragment() == "#step=1"
    table = page.get_by_role("region", name="Relations of all atlases")
    row = table.get_by_role("row").filter(has_text="country → capital")
    expect(row.get_by_role("img").first).to_have_accessible_name(
        re.compile(r"score of the best head: atlas 1: .*, atlas 2: .*, atlas 3: ")
    )
    row.get_by_role("button", name="country → capital").click()
    assert set(shown.fragment().strip("#").split("&")) == {"step=1", f"relation={CAPITAL}"}


def test_other_shapes_are_compared_by_relation(
    open_page: Opener, made: Callable[[str], tuple[Atlas, Path]]
) -> None:
    after, path = made("other shape")
    found = compare(Atlas.open(path.with_name("other shape 0.zarr")), after)
    shown = open_page("other shape")
    page = shown.page
    expect(page.get_by_text("other numbers of layers and heads (5 × 3, 6 × 4)")).to_be_visible()
    expect(page.get_by_role("heading", name="What changed from")).to_have_count(0)
    table = page.get_by_role("region", name="Relations of all atlases")
    rows = found.table[found.table["relation"] == CAPITAL]
    line = table.get_by_role("row").filter(has_text="country → capital")
    for _, best in rows.iterrows():
        expect(line).to_contain_text(f"{best['layer']}.{best['head']} {best['score']:.3f}")
        expect(line).to_contain_text(re.compile(rf"{best['n_implementing']} heads?"))
    # A head of the other model is no head of this page.
    expect(line.get_by_role("button", name="Open head")).to_have_count(1)


@pytest.mark.parametrize("name", ["revisions", "other shape", "hostile pair"])
@pytest.mark.parametrize(("size", "theme"), [(WIDE, "light"), (NARROW, "dark")], ids=["wide", "narrow"])
def test_axe_finds_nothing(open_page: Opener, name: str, size: tuple[int, int], theme: str) -> None:
    shown = open_page(name, size=size, theme=theme, fragment="#head=2.1&kept=1&colour=change")
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= size[0]
    shown.open_all()
    assert faults(shown) == []
    if name == "hostile pair":
        assert shown.page.locator("img:not([role]), iframe, script[src]").count() == 0
        assert [text for text in shown.texts() if UNSEEN.search(text)] == []


def test_hostile_names_in_the_csv_of_changes(open_page: Opener, tmp_path: Path) -> None:
    shown = open_page("hostile pair", fragment="#kept=1")
    path = save(shown, "Download CSV of changes", tmp_path)
    assert "/" not in path.name
    with path.open(newline="", encoding="utf-8") as file:
        table = list(csv.reader(file))
    assert len(table) > 20 and len({len(row) for row in table}) == 1
    texts = [field for row in table for field in row if not re.fullmatch(r"-?[\d.e+-]*", field)]
    assert not [field for field in texts if field[:1] in ("=", "@", "+", "-", "\t", "\r")]
