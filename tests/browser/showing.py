"""A page in Chromium: opening it, and the watch that every test keeps on it."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import BrowserContext, ConsoleMessage, Dialog, Frame, Locator, Page, Request, Route

WIDE, NARROW = (1440, 900), (420, 800)
PATIENCE = 60_000
"""Milliseconds for what should take a few: the machine may be busy. Only what fails waits so long."""
THROTTLE = float(os.environ.get("HEADATLAS_THROTTLE", "1"))
"""How many times slower than it is the processor seems to the page; 20 finds what rests on time."""
DRAWN = """() => {
  const root = document.getElementById("atlas");
  return !root || root.dataset.drawn === "true";
}"""
"""Whether a page shows all of its state, as it says itself; true of a document that is none."""
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

    def width(self) -> float:
        """Of the large panel, in pixels."""
        self.settle()
        box = self.figure().bounding_box()
        assert box is not None
        return box["width"]

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
        opening = """() => Promise.all([...document.querySelectorAll("details:not([open])")].map((each) =>
          new Promise((opened) => {
            each.addEventListener("toggle", opened, { once: true });
            each.open = true;
          })))"""
        for _ in range(2):
            self.settle()
            self.page.evaluate(opening)

    def settle(self) -> None:
        """Wait until the page, in whichever frame, says that all that was changed is drawn."""
        for frame in self.page.frames:
            wait_for(frame, DRAWN)
        # A size that changed is told after a frame, and fitted in the next.
        self.page.evaluate(
            "async () => { for (let i = 0; i < 3; i += 1) await new Promise(requestAnimationFrame); }"
        )

    def follow(self, fragment: str) -> None:
        """Give the address another fragment, as a reader who types it, and wait until it is shown."""
        self.page.evaluate(
            """fragment => new Promise((done) => {
              addEventListener("hashchange", done, { once: true });
              location.hash = fragment;
            })""",
            fragment,
        )
        self.settle()


def wait_for(where: Page | Frame, condition: str, argument: object = None) -> None:
    """Wait until a condition, a function in JavaScript, holds."""
    where.wait_for_function(condition, arg=argument, timeout=PATIENCE)


def slow_down(page: Page) -> None:
    """Slow a page down by :data:`THROTTLE`."""
    if THROTTLE > 1:
        session = page.context.new_cdp_session(page)
        session.send("Emulation.setCPUThrottlingRate", {"rate": THROTTLE})


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
    slow_down(page)
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
