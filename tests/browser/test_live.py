"""The page of `headatlas serve`: questions in its box, and the heads of the answers."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.showing import PATIENCE, WIDE, Shown, options, slow_down
from tests.browser.test_access import faults
from tests.mapping.checkpoints import word
from tests.writing.conftest import mapped


@pytest.fixture
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a server of a small random model listens."""
    folder = mapped(tmp_path_factory.mktemp("live") / "gemma3", "gemma3", "neutral")
    command = [sys.executable, "-W", "ignore", "-m", "headatlas", "serve", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


def test_questions_are_answered_on_the_page(browser: Browser, address: str) -> None:
    context = browser.new_context(**options("light", WIDE))
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    shown = Shown(page, address)
    page.on("pageerror", lambda error: shown.faults.append(str(error)))
    page.on("console", lambda said: shown.faults.append(said.text) if said.type != "log" else None)
    page.on("request", lambda one: shown.asked.append(one.url))
    slow_down(page)
    page.goto(address)
    asking = page.get_by_role("region", name="Ask")
    box = asking.get_by_role("textbox")
    title = page.get_by_role("heading", name=re.compile("^Heads by "))
    shown.settle()
    usual = title.inner_text()

    box.fill(f"{word(40)} → {word(60)}, {word(41)} ->")
    box.press("Enter")
    expect(asking.get_by_role("status")).to_have_text("A pair has two sides: France → Paris.")

    box.fill(f"{word(40)} → {word(60)}")
    box.press("Enter")
    heads = asking.get_by_role("button", name=re.compile("^Open head "))
    expect(title).to_have_text(re.compile("^Heads by score of the question"))
    with page.expect_download() as saved:
        asking.get_by_role("button", name="Save as relation").click()
    assert saved.value.suggested_filename.endswith((".csv", ".json"))

    box.fill(word(40))
    asking.get_by_role("button", name="Ask").click()
    expect(title).to_have_text(re.compile("^Heads by gain of"))
    name = str(heads.first.get_attribute("aria-label")).removeprefix("Open head ")
    heads.first.click()
    expect(page.get_by_role("heading", name=f"Head {name}", exact=True)).to_be_visible()
    assert faults(shown) == []

    box.fill(" ".join(map(word, range(40, 48))))
    asking.get_by_role("button", name="Ask").click()
    expect(asking.get_by_role("status")).to_have_text(re.compile("in this one text"))
    expect(title).to_have_text(re.compile("^Heads by attention"))
    heads.first.click()
    asking.get_by_role("button", name="Clear").click()
    expect(title).to_have_text(usual)
    context.close()
    assert shown.faults == []
    assert [each for each in shown.asked if not each.startswith((address, "blob:", "data:"))] == []
