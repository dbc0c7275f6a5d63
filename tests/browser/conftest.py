from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from headatlas.report import write_report
from tests.browser.made import full_atlas, hostile_atlas
from tests.browser.showing import MISSING, WIDE, Shown, chromium, options, show

MAKERS = {"full": full_atlas, "hostile": hostile_atlas}
Opener = Callable[..., Shown]


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One browser for all tests of this folder; stopped with them, for its loop would be in others' way."""
    path = chromium()
    if path is None:
        pytest.skip(MISSING)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path)
        yield started
        started.close()


@pytest.fixture(scope="package")
def report(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The page of a made atlas, by its name in :data:`MAKERS`; written once."""
    folder = tmp_path_factory.mktemp("pages")

    @cache
    def written(name: str) -> Path:
        atlas = MAKERS[name](folder / f"{name}.zarr")
        return write_report(atlas, folder / f"{name}.html")

    return written


@pytest.fixture
def open_page(browser: Browser, report: Callable[[str], Path]) -> Iterator[Opener]:
    """Opens the page of a made atlas. Afterwards: it asked for nothing and complained of nothing."""
    opened = []

    def opener(
        name: str = "full",
        *,
        theme: str = "light",
        size: tuple[int, int] = WIDE,
        fragment: str = "",
        **other: Any,
    ) -> Shown:
        context = browser.new_context(**options(theme, size, **other))
        shown = show(context, report(name), fragment)
        if other.get("java_script_enabled", True):
            shown.settle()
        opened.append((context, shown))
        return shown

    yield opener
    for context, shown in opened:
        context.close()
        assert shown.asked == [], "the page asked for something"
        assert shown.faults == []
