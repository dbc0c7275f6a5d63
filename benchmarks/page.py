"""Open the page in Chromium and print how soon it answers and how evenly it follows a hand.

    python -m benchmarks.page [--shape 30x9] [--atlas DIR] [--repeats 5] [--frames 90]

Without arguments: made-up atlases of 270, 1,024 and 5,120 heads, each with 20 relations of 300 pairs,
behaviour and salience of every head. The page is opened in a fresh context each time, from the disk.

* interactive: from the start of loading until everything is drawn and every control answers.
* τ, k: a slider moves in every frame, as a drag does; heads: the pointer is on another head in every frame,
  with its tooltip. A time is that from one frame to the next, so style, layout and painting are in it. A
  screen of 60 Hz gives 16.7 ms at best.
* work: processor time of the page's thread, in brackets: of opening it, and per frame. Other work on the
  machine delays frames, but hardly changes this.
* at rest: the same without doing anything, which shows what the machine and the browser give.

Medians of the repeats. Chromium draws without a GPU here.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, sync_playwright

from headatlas.atlas import Atlas
from headatlas.report import write_report
from tests.browser.showing import MISSING, WIDE, chromium
from tests.report.made_up import large_atlas

SHAPES = ("30x9", "32x32", "80x64")
ACTIONS = ("at rest", "τ", "k", "heads")
READY = "() => performance.getEntriesByName('headatlas-ready')[0]?.startTime ?? null"
FRAMES = """async ([action, frames]) => {
  const sliders = [...document.querySelectorAll(".slider")];
  const named = (text) => sliders.find((node) => node.textContent.includes(text)).querySelector("input");
  const plate = document.querySelector("svg.heatmap .plate");
  const box = plate.getBoundingClientRect();
  const slide = (slider, from, to) => (part) => {
    slider.value = String(from + (to - from) * (part < 0.5 ? 2 * part : 2 - 2 * part));
    slider.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const point = (part) => {
    const clientX = box.left + box.width * ((7 * part) % 1);
    const clientY = box.top + box.height * (0.1 + 0.8 * part);
    const options = { clientX, clientY, bubbles: true, pointerType: "mouse" };
    plate.ownerSVGElement.dispatchEvent(new PointerEvent("pointermove", options));
  };
  const moves = {
    "at rest": () => {},
    τ: slide(named("Score"), 0.02, 0.6),
    k: slide(named("Top k"), 1, 32),
    heads: point,
  };
  const times = [];
  const frame = () => new Promise(requestAnimationFrame);
  let last = await frame();
  for (let at = 0; at < frames; at += 1) {
    moves[action](at / frames);
    const now = await frame();
    times.push(now - last);
    last = now;
  }
  return times;
}"""


@dataclass(frozen=True)
class Speed:
    """One opening of a page, in milliseconds.

    Attributes:
        interactive: Until it answers.
        opening: Work until then.
        frames: Between frames, of each action.
        work: Work per frame, of each action.
    """

    interactive: float
    opening: float
    frames: dict[str, list[float]]
    work: dict[str, float]


def measure(browser: Browser, page_file: Path, n_frames: int) -> Speed:
    """Open a page once and operate it."""
    context = browser.new_context(viewport={"width": WIDE[0], "height": WIDE[1]})
    try:
        page = context.new_page()
        devtools = context.new_cdp_session(page)
        devtools.send("Performance.enable", {"timeDomain": "threadTicks"})

        def worked() -> float:
            metrics = devtools.send("Performance.getMetrics")["metrics"]
            return 1000 * float(next(each["value"] for each in metrics if each["name"] == "TaskDuration"))

        page.goto(page_file.as_uri())
        page.wait_for_function(f"({READY})() !== null")
        interactive, opening = float(page.evaluate(READY)), worked()
        frames, work = {}, {}
        for action in ACTIONS:
            before = worked()
            frames[action] = page.evaluate(FRAMES, [action, n_frames])
            work[action] = (worked() - before) / n_frames
        return Speed(interactive, opening, frames, work)
    finally:
        context.close()


def atlases(shapes: list[str], folders: list[Path], scratch: Path) -> Iterator[tuple[str, Atlas]]:
    """Atlases to measure with their names, made one by one."""
    for folder in folders:
        atlas = Atlas.open(folder)
        yield f"{atlas.model_name}, {atlas.n_layers} × {atlas.n_heads}", atlas
    for shape in shapes:
        n_layers, n_heads = (int(part) for part in shape.split("x"))
        yield f"{n_layers} × {n_heads}", large_atlas(scratch / f"{shape}.zarr", n_layers, n_heads)


def row(name: str, n_heads: int, size: int, speeds: list[Speed]) -> str:
    """A line of the table: medians of all openings."""
    cells = [name, f"{n_heads:,}", f"{size / 1e6:.2f} MB"]
    middle = statistics.median
    opening = middle(speed.opening for speed in speeds)
    cells.append(f"{middle(speed.interactive for speed in speeds):.0f} ({opening:.0f})")
    for action in ACTIONS:
        of_each = [np.percentile(speed.frames[action], [50, 95, 100]) for speed in speeds]
        times = " / ".join(f"{value:.0f}" for value in np.median(of_each, axis=0))
        cells.append(f"{times} ({middle(speed.work[action] for speed in speeds):.1f})")
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shape", action="append", help=f"layers x heads; {', '.join(SHAPES)} if none is given"
    )
    parser.add_argument("--atlas", action="append", type=Path, default=[], help="a folder with an atlas")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--frames", type=int, default=90)
    chosen = parser.parse_args()
    path = chromium()
    if path is None:
        print(f"error: {MISSING}", file=sys.stderr)
        return 2
    shapes = chosen.shape or ([] if chosen.atlas else list(SHAPES))
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        print(f"Chromium {browser.version}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        print("Milliseconds; frames: median / 95th percentile / longest; in brackets: work")
        print(f"| atlas | heads | page | interactive | {' | '.join(ACTIONS)} |")
        print(f"|---|---|---|---|{'---|' * len(ACTIONS)}")
        for name, atlas in atlases(shapes, chosen.atlas, Path(scratch)):
            page_file = write_report(atlas, Path(scratch) / "page.html")
            speeds = [measure(browser, page_file, chosen.frames) for _ in range(chosen.repeats)]
            n_heads = atlas.n_layers * atlas.n_heads
            print(row(name, n_heads, page_file.stat().st_size, speeds), flush=True)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
