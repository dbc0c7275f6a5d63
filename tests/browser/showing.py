"""A page in Chromium: opening it, and the watch that every test keeps on it."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import BrowserContext, ConsoleMessage, Dialog, Locator, Page, Request, Route

WIDE, NARROW = (1440, 900), (420, 800)
REST = 160
"""Milliseconds: longer than the page waits after a change before it draws what is under the figure."""
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = f"no Chromium: none of {', '.join(NAMES)} is on the path, and HEADATLAS_CHROMIUM names no other"


def chromium() -> str | None:
    """Path of an installed Chromium, or None."""
    own = os.environ.get("HEADATLAS_CHROMIUM")
    return own or next((found for name in NAMES if (found := shutil.which(name))), None)


@dataclass
class Shown:
    """An open page, what it asked for, and what it complained about.

    Attributes:
        page: The page.
        file: The address of the file that was opened.
        asked: Addresses of all requests other than for the file itself.
        faults: Errors, warnings and dialogs.
    """

    page: Page
    file: str
    asked: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def figure(self) -> Locator:
        """The large panel."""
        return self.page.get_by_role("application").first

    def card(self) -> Locator:
        """The place of a head's card; its name is the head's while one is open."""
        return self.page.get_by_role("region", name=re.compile("^Heads?( [0-9]+[.][0-9]+)?$"))

    def place(self, layer: int, head: int, n_layers: int, n_heads: int) -> tuple[float, float]:
        """The middle of a head in the large panel, in pixels of the window."""
        self.figure().scroll_into_view_if_needed()
        box = self.figure().locator(".plate").bounding_box()
        assert box is not None
        across, up = (layer + 0.5) / n_layers, 1 - (head + 0.5) / n_heads
        return box["x"] + across * box["width"], box["y"] + up * box["height"]

    def fragment(self) -> str:
        """The fragment of the address, with its #; empty if there is none."""
        self.settle()
        found: str = self.page.evaluate("location.hash")
        return found

    def texts(self) -> list[str]:
        """Every text node and attribute value of the document as it stands."""
        found: list[str] = self.page.evaluate(
            """() => {
              const texts = [];
              const walker = document.createTreeWalker(document.documentElement, NodeFilter.SHOW_ALL);
              for (let node = walker.nextNode(); node; node = walker.nextNode()) {
                if (node.nodeType === 3 && !["SCRIPT", "STYLE"].includes(node.parentNode.nodeName)) {
                  texts.push(node.data);
                }
                if (node.nodeType === 1) texts.push(...Array.from(node.attributes, (each) => each.value));
              }
              return texts;
            }"""
        )
        return found

    def open_all(self) -> None:
        """Open everything that folds, also what stands inside only then."""
        for _ in range(2):
            self.page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true })")
            self.settle()

    def settle(self) -> None:
        """Wait until all that was changed is drawn: the figure in the next frame, the rest a little later."""
        self.page.evaluate(
            """rest => new Promise((done) => {
              const later = () => setTimeout(done, rest);
              requestAnimationFrame(() => requestAnimationFrame(later));
            })""",
            REST,
        )


def show(context: BrowserContext, path: Path, fragment: str = "") -> Shown:
    """Open a file of the disk; nothing else can be reached."""
    page = context.new_page()
    shown = Shown(page, path.as_uri())

    def route(route: Route) -> None:
        if route.request.url.partition("#")[0] == shown.file:
            route.continue_()
        else:
            route.abort()

    def asked(request: Request) -> None:
        address = request.url.partition("#")[0]
        # An icon, a picture or a download that the page itself made; it leaves nothing.
        if address != shown.file and not address.startswith(("data:", "blob:")):
            shown.asked.append(request.url)

    def console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning", "assert"):
            shown.faults.append(f"{message.type}: {message.text}")

    def dialog(dialog: Dialog) -> None:
        shown.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    context.route("**/*", route)
    page.on("request", asked)
    page.on("console", console)
    page.on("dialog", dialog)
    page.on("pageerror", lambda error: shown.faults.append(f"error: {error}"))
    page.on("popup", lambda popup: shown.faults.append(f"popup: {popup.url}"))
    page.goto(shown.file + fragment)
    return shown


def options(theme: str, size: tuple[int, int], **other: Any) -> dict[str, Any]:
    """Arguments of a new context."""
    width, height = size
    return {
        "color_scheme": theme,
        "viewport": {"width": width, "height": height},
        "reduced_motion": "reduce",
        **other,
    }
