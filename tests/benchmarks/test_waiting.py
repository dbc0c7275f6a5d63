"""The floor counts what an ideal run multiplies, and the rows that it cannot leave out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import checkpoints, floor, waiting
from headatlas.lenses import lens_named
from headatlas.mapping.machine import Rates
from headatlas.mapping.prepared import MapOptions, prepare_map
from headatlas.mapping.run import map_heads
from headatlas.progress import Stats

WORK = floor.Work(
    layers=2,
    heads=4,
    kv_heads=2,
    d_model=64,
    d_head=16,
    d_ff=160,
    vocab=1000,
    stored=10_000,
    sources=30,
    tokens=0,
    hits=(0, 1, 10, 30, 0, 0, 0, 0),
)


def test_multiply_adds_and_bytes_of_each_stage() -> None:
    reading, states, values, vocabulary = floor.stages(WORK)
    assert (reading.read, reading.products) == (10_000, 0)
    assert states.products == 30 * 3 * 64 * 160
    assert values.products == 2 * 2 * 30 * 64 * 16
    # 1 and 10 rows against U itself; 30 of one head through d_head, with W_O·U made once.
    assert vocabulary.products == 1000 * (64 * 1 + 64 * 10 + 16 * (64 + 30))
    assert WORK.block == 2 * 64 * 16 * 4 + 2 * 64 * 16 * 2 + 3 * 64 * 160


def test_a_stage_takes_the_slower_of_memory_and_products() -> None:
    rates = Rates(float32=2e6, bfloat16=8e6, memory=1e3)
    assert floor.Stage("a", 10_000, 1, "float32").seconds(rates) == 10
    assert floor.Stage("a", 0, 3_000_000, "float32").seconds(rates) == 3
    assert floor.Stage("a", 0, 4_000_000, "bfloat16").seconds(rates) == 1
    assert floor.seconds(WORK, rates) == sum(each.seconds(rates) for each in floor.stages(WORK))
    assert (floor.powers(3.26e11), floor.powers(480)) == ("3.3 · 10¹¹", "4.8 · 10²")
    assert [row[0] for row in floor.table(WORK, rates)] == [
        "reading",
        "states",
        "values",
        "vocabulary",
        "all",
    ]


def test_rows_that_were_hit_are_those_the_engine_counted(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "tiny", checkpoints.SHAPES["tiny"])
    stats, relations = Stats(), tmp_path / "tiny" / "relations"
    atlas = map_heads(tmp_path / "tiny", lens="maps", relations=relations, stats=stats, out=tmp_path / "out")
    prepared = prepare_map(tmp_path / "tiny", None, relations, MapOptions(lens_named("maps")))
    hits = np.array(waiting.hit_rows(prepared, atlas))
    work = waiting.work_of(prepared, atlas)
    assert len(hits) == 2 * 4 and 0 < hits.max() <= len(prepared.layout.sources)
    # The engine counts a row once for each sign.
    assert hits.sum() <= stats.hit_rows <= 2 * hits.sum()
    assert list(work.hits) == hits.tolist() and work.d_ff == checkpoints.SHAPES["tiny"].d_mlp


@pytest.mark.parametrize("args", [["--version"], ["relations", "list"], [waiting.MISTYPED]])
def test_a_command_is_measured_in_its_own_process(args: list[str]) -> None:
    found = waiting.run(args)
    assert found.processor > 0 and found.peak > 1 << 20 and found.told["moments"] == {}


def test_a_command_that_fails_ends_the_benchmark(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"heads .* failed"):
        waiting.run(["heads", str(tmp_path)])
