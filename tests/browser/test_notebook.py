"""The page inside a notebook's output cell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Browser, expect

from headatlas.atlas import Atlas
from tests.browser.made import LABELLED
from tests.browser.showing import PATIENCE, options, show

CELL = (900, 700)
"""As wide as a cell in JupyterLab: the card is under the figure."""


def test_a_card_opens_in_its_frame(
    browser: Browser, made: Callable[[str], tuple[Atlas, Path]], tmp_path: Path
) -> None:
    cell = made("hostile")[0].head(*LABELLED).explore()._repr_html_()
    notebook = tmp_path / "notebook.html"
    above = '<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><div style="height:400px">'
    notebook.write_text(f"{above}</div>{cell}", encoding="utf-8", errors="replace")
    context = browser.new_context(**options("dark", CELL))
    context.set_default_timeout(PATIENCE)
    shown = show(context, notebook)
    frame = shown.page.frame_locator("iframe")
    heading = frame.get_by_role("heading", name=f"Head {LABELLED[0]}.{LABELLED[1]}")
    expect(heading).to_be_visible()
    shown.settle()
    inside = shown.page.frames[1]
    place = heading.evaluate("node => node.getBoundingClientRect().top")
    assert 0 <= place < inside.evaluate("innerHeight") / 2, "the card is in view"
    assert shown.page.evaluate("scrollY") == 0, "and the notebook stays where it was"
    title = frame.get_by_role("heading", name="Heads by number of categories")
    before = title.inner_text()
    frame.get_by_label("Score ≥").press("End")
    expect(title).not_to_have_text(before)
    with shown.page.expect_download() as saved:
        frame.get_by_role("button", name="CSV").first.click()
    assert saved.value.suggested_filename.endswith(".csv")
    assert inside.evaluate("location.href") == "about:srcdoc" and shown.page.title() != "hit"
    context.close()
    assert (shown.asked, shown.faults) == ([], [])
