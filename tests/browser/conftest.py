from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from headatlas.atlas import Atlas
from headatlas.report import write_comparison, write_report
from tests.browser.made import full_atlas, hostile_atlas
from tests.browser.showing import MISSING, PATIENCE, WIDE, Shown, chromium, options, show
from tests.synthetic import make_atlas

MAKERS = {"full": full_atlas, "hostile": hostile_atlas}
COMPARED = {
    "changed": (partial(make_atlas, seed=1), full_atlas),
    "revisions": (*(partial(make_atlas, seed=seed) for seed in (1, 2)), full_atlas),
    "other shape": (partial(make_atlas, n_layers=5, n_heads=3), full_atlas),
    "hostile pair": (partial(hostile_atlas, seed=1), hostile_atlas),
}
"""Atlases compared, on the page of the last."""
Opener = Callable[..., Shown]


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One browser for all tests of this folder; stopped with them, for its loop would be in others' way."""
    path = chromium()
    if path is None:
        pytest.skip(MISSING)
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path)
        yield started
        started.close()


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Atlas, Path]]:
    """A made atlas by its name in :data:`MAKERS` or :data:`COMPARED`, and its page; made once."""
    folder = tmp_path_factory.mktemp("pages")

    @cache
    def make(name: str) -> tuple[Atlas, Path]:
        if name in COMPARED:
            atlases = [maker(folder / f"{name} {at}.zarr") for at, maker in enumerate(COMPARED[name])]
            return atlases[-1], write_comparison(atlases, folder / f"{name}.html")
        atlas = MAKERS[name](folder / f"{name}.zarr")
        return atlas, write_report(atlas, folder / f"{name}.html")

    return make


@pytest.fixture
def atlas(made: Callable[[str], tuple[Atlas, Path]]) -> Atlas:
    """The atlas of the page that opens by default."""
    return made("full")[0]


@pytest.fixture
def open_page(browser: Browser, made: Callable[[str], tuple[Atlas, Path]]) -> Iterator[Opener]:
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
        context.set_default_timeout(PATIENCE)
        shown = show(context, made(name)[1], fragment)
        opened.append((context, shown))
        if other.get("java_script_enabled", True):
            expect(shown.figure()).to_be_visible()
            shown.settle()
        return shown

    yield opener
    for context, shown in opened:
        context.close()
        assert shown.asked == [], "the page asked for something"
        assert shown.faults == []
