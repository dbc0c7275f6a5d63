"""Measure how the cost of a map grows with pairs, heads, d_model and vocabulary: CSV, JSON and a figure.

    python -m benchmarks.scaling OUT [--axis pairs --axis heads --axis d --axis vocabulary] [--small]

Pairs, up to 40,000, are made from the words of SmolLM2's tokenizer and asked of that model; heads are its
layers, more and more of them. d_model and vocabulary are those of random checkpoints with planted heads
(benchmarks.checkpoints). Every map runs in a process of its own. ``--small`` takes tiny sizes: it shows that
the benchmark runs, its numbers say nothing.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.checkpoints import SHAPES, Shape, write
from benchmarks.measuring import Measured, measure, median_run
from headatlas.architectures import open_model
from headatlas.relations.tokenising import MIN_SOURCES
from headatlas.weights import load_tokenizer, open_checkpoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MODEL = "smollm2-135m"
PAIRS_A_RELATION = 400
PAIRS = (2_500, 5_000, 10_000, 20_000, 40_000)
LAYERS = (1, 2, 4, 8, 16, 30)
WIDTHS = (256, 512, 1024, 2048, 4096)
VOCABULARIES = (8_000, 16_000, 32_000, 64_000, 128_000)
HEADS = Shape(1, 8, 2, 1024, 64, 2048, 32_000)
"""What stays the same while d_model or the vocabulary grows."""

SMALL_PAIRS, SMALL_LAYERS = (200, 400), (1, 2)
SMALL_WIDTHS, SMALL_VOCABULARIES = (64, 128), (2048, 4096)


@dataclass(frozen=True)
class Point:
    """One map.

    Attributes:
        axis: What grows.
        size: How large it is.
        seconds: The engine's, all layers.
        total_seconds: With reading, states, writing and calibration.
        peak_gb: Peak memory.
        products: Multiply-adds with vocabulary columns.
        rows: (head, source) rows that went through the vocabulary.
        hits: Ranks of pairs below the ceiling.
    """

    axis: str
    size: int
    seconds: float
    total_seconds: float
    peak_gb: float
    products: int
    rows: int
    hits: int

    @classmethod
    def of(cls, axis: str, size: int, measured: Measured) -> Point:
        return cls(
            axis,
            size,
            round(measured.engine_seconds, 3),
            round(measured.seconds, 3),
            round(measured.peak / 1e9, 3),
            measured.stats.products,
            measured.stats.rows,
            measured.hits,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for scaling.csv, scaling.json and scaling.png")
    parser.add_argument("--axis", action="append", choices=AXES)
    parser.add_argument("--model", default=MODEL, help="whose pairs and heads are counted")
    parser.add_argument("--layers", help="A-B: the layers that pairs are asked of (all)")
    parser.add_argument("--most", type=int, help="leave out larger sizes than this")
    parser.add_argument("--repeats", type=int, default=1, help="maps of each size; their median is kept")
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    points: list[Point] = []
    for axis in given.axis or AXES:
        with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
            for point in AXES[axis](given, Path(folder)):
                points.append(point)
                print(f"{axis} {point.size:,}: {point.seconds:.1f} s", flush=True)
                write_points(points, given.out)
    print_table(points)
    draw(points).savefig(given.out / "scaling.png", dpi=200)


# The axes -----------------------------------------------------------------------------------------


def _pairs(given: argparse.Namespace, folder: Path) -> Iterator[Point]:
    words = single_words(given.model)
    for size in _sizes(given, SMALL_PAIRS if given.small else PAIRS):
        relations = folder / f"relations-{size}"
        write_pairs(relations, words, size)
        yield _point(given, "pairs", size, folder, given.model, relations=relations, layers=given.layers)


def _heads(given: argparse.Namespace, folder: Path) -> Iterator[Point]:
    n_heads = open_model(open_checkpoint(given.model)).dims.n_heads
    for layers in SMALL_LAYERS if given.small else LAYERS:
        size = layers * n_heads
        if given.most is None or size <= given.most:
            yield _point(given, "heads", size, folder, given.model, layers=f"0-{layers - 1}")


def _widths(given: argparse.Namespace, folder: Path) -> Iterator[Point]:
    for size in _sizes(given, SMALL_WIDTHS if given.small else WIDTHS):
        yield _of_shape(given, replace(_base(given), d_model=size, d_mlp=2 * size), "d", size, folder)


def _vocabularies(given: argparse.Namespace, folder: Path) -> Iterator[Point]:
    for size in _sizes(given, SMALL_VOCABULARIES if given.small else VOCABULARIES):
        yield _of_shape(given, replace(_base(given), vocab=size), "vocabulary", size, folder)


AXES: dict[str, Callable[[argparse.Namespace, Path], Iterator[Point]]] = {
    "pairs": _pairs,
    "heads": _heads,
    "d": _widths,
    "vocabulary": _vocabularies,
}


def _sizes(given: argparse.Namespace, sizes: Sequence[int]) -> list[int]:
    return [size for size in sizes if given.most is None or size <= given.most]


def _base(given: argparse.Namespace) -> Shape:
    return SHAPES["tiny"] if given.small else HEADS


def _of_shape(given: argparse.Namespace, shape: Shape, axis: str, size: int, folder: Path) -> Point:
    checkpoint = folder / f"{axis}-{size}"
    write(checkpoint, shape)
    return _point(given, axis, size, folder, checkpoint, relations=checkpoint / "relations")


def _point(
    given: argparse.Namespace,
    axis: str,
    size: int,
    folder: Path,
    model: str | Path,
    *,
    relations: Path | None = None,
    layers: str | None = None,
) -> Point:
    asked = "core" if relations is None else str(relations)
    outs = [folder / f"map-{axis}-{size}-{repeat}" for repeat in range(given.repeats)]
    runs = [measure(model, out, relations=asked, lens="maps", layers=layers) for out in outs]
    return Point.of(axis, size, median_run(runs))


# Pairs --------------------------------------------------------------------------------------------


def single_words(model: str) -> list[str]:
    """Words of letters that are one token of a model's tokenizer in running text, in token order."""
    tokenizer = load_tokenizer(open_checkpoint(model))
    ids = sorted(tokenizer.get_vocab().values())
    texts = tokenizer.batch_decode([[token] for token in ids], clean_up_tokenization_spaces=False)
    # Most tokenizers put the space before a word into its token; a tokenizer of whole words has none.
    space = " " if any(text.startswith(" ") for text in texts) else ""
    words = [text.removeprefix(space) for text in texts if text.startswith(space)]
    return [word for word in words if re.fullmatch("[A-Za-z][A-Za-z0-9]+", word)]


def write_pairs(folder: Path, words: Sequence[str], n_pairs: int) -> None:
    """Relations of up to 400 pairs each over a tokenizer's words, always the same for the same words.

    Six kinds in turn, so that some heads do something: the word itself, capitalised, its plural, its last
    letter, the next word of the vocabulary, any two words. A kind goes on where its last relation stopped;
    when it has used all words it begins again. Kinds for which the words do not suffice are left out.
    """
    folder.mkdir(parents=True)
    known = set(words)
    rng = np.random.default_rng(0)
    order = rng.permutation(words).tolist()
    after = dict(zip(words, [*words[1:], words[0]], strict=True))
    kinds: dict[str, tuple[list[str], Callable[[str], list[str]]]] = {
        "itself": (order, lambda word: [word]),
        "capitalised": (
            [word for word in order if word[0].islower() and word.capitalize() in known],
            lambda word: [word.capitalize()],
        ),
        "plural": ([word for word in order if word + "s" in known], lambda word: [word + "s"]),
        "last_letter": ([word for word in order if word[-1].isalpha()], lambda word: [word[-1].lower()]),
        "next": (order, lambda word: [after[word]]),
        "any": (order, lambda _: rng.choice(words, 2, replace=False).tolist()),
    }
    usable = [name for name, (pool, _) in kinds.items() if len(pool) >= MIN_SOURCES]
    # The kinds begin at different words, so that most sources are distinct as long as there are enough.
    at = {name: len(kinds[name][0]) * number // len(usable) for number, name in enumerate(usable)}
    left, number = n_pairs, 0
    while left > 0:
        name = usable[number % len(usable)]
        pool, targets = kinds[name]
        size = min(left, PAIRS_A_RELATION, len(pool))
        sources = [pool[(at[name] + offset) % len(pool)] for offset in range(size)]
        at[name] += size
        with (folder / f"{name}_{number:03d}.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(["source", "target"])
            table.writerows([source, "|".join(targets(source))] for source in sources)
        left -= size
        number += 1


# What is written ----------------------------------------------------------------------------------


def write_points(points: Sequence[Point], folder: Path) -> None:
    """scaling.csv and scaling.json."""
    rows = [asdict(point) for point in points]
    (folder / "scaling.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    with (folder / "scaling.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """b of the least-squares fit y = a·x^b in logarithms; nan with fewer than two different sizes."""
    if len(set(x)) < 2 or min(*x, *y) <= 0:
        return float("nan")
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def print_table(points: Sequence[Point]) -> None:
    """The points, and below each axis how time, rows and multiply-adds grow with it."""
    head = f"{'axis':<12}{'size':>9}{'engine s':>10}{'total s':>9}{'peak GB':>9}"
    print(f"\n{head}{'multiply-adds':>15}{'rows':>12}{'hits':>10}")
    for axis in dict.fromkeys(point.axis for point in points):
        mine = [point for point in points if point.axis == axis]
        for p in mine:
            print(
                f"{axis:<12}{p.size:>9,}{p.seconds:>10.2f}{p.total_seconds:>9.1f}{p.peak_gb:>9.2f}"
                f"{p.products:>15.3g}{p.rows:>12,}{p.hits:>10,}"
            )
        size, seconds = [p.size for p in mine], [p.seconds for p in mine]
        rows = [p.rows for p in mine]
        fits = {
            "seconds ~ size": exponent(size, seconds),
            "rows ~ size": exponent(size, rows),
            "multiply-adds ~ size": exponent(size, [p.products for p in mine]),
        }
        if max(rows) >= 2 * min(rows):  # where they hardly change, nothing can be fitted to them
            fits["seconds ~ rows"] = exponent(rows, seconds)
        print(f"{'':<12}exponents: " + ", ".join(f"{what}^{power:.2f}" for what, power in fits.items()))


def draw(points: Sequence[Point]) -> Figure:
    """Two panels an axis: seconds, and what survived screening, against its size; lines of slope one."""
    from matplotlib.figure import Figure

    axes = list(dict.fromkeys(point.axis for point in points))
    figure = Figure(figsize=(2.4 * len(axes) + 1, 5), layout="constrained")
    grid = figure.subplots(2, len(axes), squeeze=False, sharey="row", sharex="col")
    for (above, below), axis in zip(grid.T, axes, strict=True):
        mine = sorted((point for point in points if point.axis == axis), key=lambda point: point.size)
        size = [point.size for point in mine]
        seconds, rows = [point.seconds for point in mine], [point.rows for point in mine]
        above.set_title(f"{axis}\nseconds ~ size^{exponent(size, seconds):.2f}", fontsize=8)
        below.set_title(f"rows ~ size^{exponent(size, rows):.2f}", fontsize=8)
        _lines(above, size, {"engine": seconds, "whole map": [point.total_seconds for point in mine]})
        _lines(below, size, {"rows through U": rows, "ranks below the ceiling": [p.hits for p in mine]})
        below.set_xlabel("d_model" if axis == "d" else axis, fontsize=8)
    grid[0, 0].set_ylabel("seconds", fontsize=8)
    grid[1, 0].set_ylabel("number", fontsize=8)
    for row in grid:
        row[0].legend(fontsize=6, frameon=False)
    return figure


def _lines(panel: Axes, size: Sequence[int], lines: Mapping[str, Sequence[float]]) -> None:
    """Lines over sizes in logarithms, the first with a line of slope one from its first point."""
    first = next(iter(lines.values()))
    panel.plot(
        size, [first[0] * each / size[0] for each in size], "--", color="black", linewidth=0.8, label="linear"
    )
    for (label, values), (style, colour) in zip(
        lines.items(), (("o-", "#1b6e4a"), ("s:", "#7f7f7f")), strict=True
    ):
        panel.plot(size, values, style, color=colour, markersize=4, label=label)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.minorticks_off()
    panel.set_xticks(size, [f"{each:,}" for each in size], rotation=45, fontsize=7)
    panel.tick_params(labelsize=7)
    panel.grid(axis="y", linewidth=0.3)


if __name__ == "__main__":
    main(sys.argv[1:])
