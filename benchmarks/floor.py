"""The floor of a map: what an ideal run reads and multiplies, and how long that takes here at least.

    python -m benchmarks.floor

An ideal run reads every stored byte that the lens needs once, makes each source state once, projects each
source into the value space of each key/value group, and sends through the vocabulary only rows that hold a
rank below the ceiling, each through d_model or, for all rows of a head, through d_head, whichever is less.
How it knows these rows is left open, so no real run is ideal. A stage takes the larger of its bytes at the
rate of memory and its multiply-adds at the rate of products, all cores at work and no byte waited for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from headatlas.mapping.machine import Rates


@dataclass(frozen=True)
class Work:
    """Sizes of a map.

    Attributes:
        layers, heads, kv_heads, d_model, d_head, d_ff, vocab: Of the model; all layers have heads, MLPs are
            gated.
        stored: Bytes of stored weights that the lens needs.
        sources: Distinct sources.
        tokens: Positions that go through all blocks; 0 for a lens of weights only.
        hits: For every head the rows (sources) with a rank below the ceiling.
    """

    layers: int
    heads: int
    kv_heads: int
    d_model: int
    d_head: int
    d_ff: int
    vocab: int
    stored: int
    sources: int
    tokens: int
    hits: Sequence[int]

    @property
    def block(self) -> int:
        """Weights of a block: query, output, key and value projections and a gated MLP."""
        attention = 2 * self.d_model * self.d_head * (self.heads + self.kv_heads)
        return attention + 3 * self.d_model * self.d_ff


@dataclass(frozen=True)
class Stage:
    """A stage of an ideal run.

    Attributes:
        name: What it does.
        read: Bytes.
        products: Multiply-adds.
        arithmetic: In which type it may multiply: states are defined by float32, ranks may be proposed by
            bfloat16.
    """

    name: str
    read: int
    products: int
    arithmetic: Literal["float32", "bfloat16"]

    def seconds(self, rates: Rates) -> float:
        """At least, at this speed; a multiply-add is two operations."""
        fastest = rates.float32 if self.arithmetic == "float32" else max(rates.float32, rates.bfloat16)
        return max(self.read / rates.memory, 2 * self.products / fastest)


def stages(work: Work) -> tuple[Stage, Stage, Stage, Stage]:
    """The stages of an ideal run: reading, states, values, vocabulary."""
    states = work.tokens * work.layers * work.block or work.sources * 3 * work.d_model * work.d_ff
    values = work.layers * work.kv_heads * work.sources * work.d_model * work.d_head
    return (
        Stage("reading", work.stored, 0, "float32"),
        Stage("states", 0, states, "float32"),
        Stage("values", 0, values, "bfloat16"),
        Stage("vocabulary", 0, sum(_of_head(work, rows) for rows in work.hits), "bfloat16"),
    )


def _of_head(work: Work, rows: int) -> int:
    """Multiply-adds of a head's rows with U, or with W_O·U made once for the head."""
    direct = rows * work.d_model * work.vocab
    return min(direct, (work.d_model + rows) * work.d_head * work.vocab)


def seconds(work: Work, rates: Rates) -> float:
    """Seconds of an ideal run, at least."""
    return sum(stage.seconds(rates) for stage in stages(work))


def table(work: Work, rates: Rates, ours: Iterable[str] = ()) -> list[list[str]]:
    """A row a stage and one of them all; what ours took, where it is given, in the same order."""
    rows = [
        [
            each.name,
            f"{each.read / 1e9:.2f} GB" if each.read else "",
            powers(each.products) if each.products else "",
            f"{each.seconds(rates):.2f} s",
        ]
        for each in stages(work)
    ]
    total = sum(each.products for each in stages(work))
    rows.append(["all", f"{work.stored / 1e9:.2f} GB", powers(total), f"{seconds(work, rates):.2f} s"])
    taken = list(ours)
    return [[*row, taken[at]] for at, row in enumerate(rows)] if taken else rows


def powers(number: float) -> str:
    """``3.3 · 10¹¹``."""
    digits, _, exponent = f"{number:.1e}".partition("e")
    return f"{digits} · 10{str(int(exponent)).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def spread(rows: int, layers: int, heads: int) -> list[int]:
    """Rows dealt out evenly to heads, where only their number is known."""
    each, more = divmod(rows, layers * heads)
    return [each + (at < more) for at in range(layers * heads)]


RECORDED = {
    "8B, `maps`": (
        Work(32, 32, 8, 4096, 128, 14336, 128256, 3_800_000_000, 3000, 0, spread(18_903, 32, 32)),
        ("17 s", "6 s", "", "199 s", "215 s"),
    ),
    "8B, `neutral` layer by layer": (
        Work(32, 32, 8, 4096, 128, 14336, 128256, 16_100_000_000, 2000, 2000, spread(22_968, 32, 32)),
        ("5 s", "333 s", "", "346 s, beside the states", "356 s"),
    ),
    "70B's shape, 3 layers, `maps`": (
        Work(3, 64, 8, 8192, 128, 28672, 128256, 6_100_000_000, 3000, 0, spread(4_574, 3, 64)),
        ("19 s", "28 s", "", "136 s", "184 s"),
    ),
}
"""Large shapes with the rows that were hit and the times that were taken (docs/engine.md, Large shapes)."""
COLUMNS = ("stage", "read", "multiply-adds", "floor", "taken")


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as Markdown, the first column to the left, the others to the right."""
    lines = [columns, ["---", *("--:" for _ in columns[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Print the floor of the recorded shapes at this machine's speed."""
    from headatlas.devices import pick_device
    from headatlas.mapping.machine import rates

    speed = rates(pick_device("cpu"))
    print(said(speed))
    for name, (work, ours) in RECORDED.items():
        print(f"\n{name}\n\n{markdown(COLUMNS, table(work, speed, ours))}")


def said(speed: Rates) -> str:
    """Measured rates in words."""
    return (
        f"{speed.float32 / 2e9:.0f} · 10⁹ float32 and {speed.bfloat16 / 2e9:.0f} · 10⁹ bfloat16 "
        f"multiply-adds and {speed.memory / 1e9:.0f} GB of memory traffic a second"
    )


if __name__ == "__main__":
    main()
