"""Time `evidence inference` on a model: processor seconds of each stage, and the work done.

    python -m benchmarks.evidence smollm2-135m [--only RELATION,…] [--sources N|all]
    python -m benchmarks.checkpoints shapes/0.5b --shape 0.5b
    python -m benchmarks.evidence shapes/0.5b

Evidence needs an atlas, of which only the axes matter here: the first layer is mapped with the lens ``maps``.
A folder that benchmarks.checkpoints wrote is asked its own relations in four texts of its own words, which
have as many tokens as the shipped ones have with most tokenizers.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.checkpoints import INDEX
from headatlas.evidence.inference_run import InferenceTexts, run_inference
from headatlas.evidence.opening import examined
from headatlas.mapping.run import map_heads
from headatlas.progress import Progress, Stats
from headatlas.relations import resolve_relations
from tests.mapping.checkpoints import FIRST_WORD, word

AROUND = ((5, 0), (4, 4), (3, 2), (4, 3))
"""Tokens before and after the source in each text."""


class Stages:
    """Takes the steps of a run, and keeps the processor seconds of each stage.

    Attributes:
        seconds: Stage → seconds.
        said: What the run said beforehand.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.said = ""
        self._stage, self._since = "open", time.process_time()

    def __call__(self, event: Progress) -> None:
        now = time.process_time()
        if event.stage == "estimate":
            self.said = event.note
        self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._since
        self._since = now
        if event.stage != "estimate":
            self._stage = "scores" if event.stage == "heads" and event.done == event.total else event.stage

    def end(self) -> None:
        """Close the last stage."""
        self(Progress("open", 0, 0))


def main(arguments: Sequence[str] | None = None) -> None:
    """Map what is needed, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="a model, or a folder that benchmarks.checkpoints wrote")
    parser.add_argument("--only", help="relations, with commas; all of them (of a model: core) by default")
    parser.add_argument("--sources", default=None, help="a relation: a number, or all; 50 by default")
    given = parser.parse_args(arguments)
    made = (Path(given.model) / INDEX).is_file()
    asked = resolve_relations(str(Path(given.model) / "relations")) if made else resolve_relations("core")
    names = given.only.split(",") if given.only else [each.name for each in asked]
    sources = given.sources if given.sources in (None, "all") else int(given.sources)
    stages, stats = Stages(), Stats()
    with tempfile.TemporaryDirectory(prefix="headatlas-") as folder:
        atlas = map_heads(
            given.model,
            relations=[each for each in asked if each.name in names],
            lens="maps",
            layers="0",
            out=folder,
        )
        began = time.perf_counter()
        stages = Stages()
        with examined(atlas, progress=stages) as subject:
            run_inference(subject, InferenceTexts.of(_texts() if made else None, sources=sources), stats)
        stages.end()
    print(stages.said)
    print(
        f"{time.perf_counter() - began:.1f} s by the clock, {sum(stages.seconds.values()):.1f} s of processor"
    )
    for stage, seconds in stages.seconds.items():
        print(f"{stage:>8} {seconds:8.1f} s")
    print(
        f"{stats.products / 1e9:,.0f} billion multiply-adds with vocabulary columns; rows through the "
        f"vocabulary {stats.rows:,}, with a rank below the ceiling {stats.hit_rows:,}"
    )
    print(f"in it, summed: {', '.join(f'{name} {value:.1f} s' for name, value in stats.seconds.items())}")


def _texts() -> list[str]:
    words = iter(word(FIRST_WORD + at) for at in range(sum(map(sum, AROUND))))
    return [
        " ".join([*(next(words) for _ in range(before)), "{}", *(next(words) for _ in range(after))])
        for before, after in AROUND
    ]


if __name__ == "__main__":
    main()
