"""Check every route on a GPU against the processor and float64, and time it.

    python -m benchmarks.gpu MODEL [--shape FOLDER …] [--device cuda] [--steps rates,maps,…]

MODEL is a real model of a size that the processor maps in a minute or two (SmolLM2-135M). A FOLDER is one
that benchmarks.checkpoints wrote; it is mapped with both lenses. A step that fails says so, the others go on,
and the exit status is 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import headatlas as ha
from benchmarks.comparison import check, states_of
from headatlas.atlas import Atlas
from headatlas.lenses import lens_named
from headatlas.mapping.prepared import MapOptions, prepare_map
from headatlas.mapping.run import layer_inputs, map_heads
from headatlas.mapping.vocabulary import Vocabulary
from headatlas.options import Compute

SIDE = 8192
CHECKED_HEADS = 4
RANKS = ("promotion_rank", "suppression_rank", "control_rank", "cell_promotion_rank", "cell_suppression_rank")


def main() -> int:
    """Run the steps asked for; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--shape", action="append", default=[], type=Path, metavar="FOLDER")
    parser.add_argument("--layers", help="of the shapes: A-B, these only")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--steps", default="rates,maps,neutral,behaviour,inference,attention,ablation,salience,shapes"
    )
    given = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        run = Run(given.model, given.device, Path(folder))
        steps: dict[str, Callable[[], None]] = {
            "rates": run.rates,
            "maps": lambda: run.mapped("maps"),
            "neutral": lambda: run.mapped("neutral"),
            "behaviour": run.behaviour,
            "inference": run.inference,
            "attention": run.attention,
            "ablation": run.ablation,
            "salience": run.salience,
            "shapes": lambda: run.shapes(given.shape, given.layers),
        }
        for name in given.steps.split(","):
            print(f"\n== {name}", flush=True)
            try:
                steps[name]()
            except Exception:  # noqa: BLE001 - the steps are independent, and time on a GPU is short
                failed.append(name)
                traceback.print_exc()
    print(f"\nfailed: {', '.join(failed) or 'none'}")
    return int(bool(failed))


class Run:
    """The steps, and the atlases that later steps read."""

    def __init__(self, model: str, device: str, folder: Path) -> None:
        self.model, self.device, self.folder = model, device, folder

    def rates(self) -> None:
        """The device's own rates: products of square matrices and copying."""
        device = torch.device(self.device)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "processor"
        print(f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads")
        side = SIDE if device.type == "cuda" else 1024
        for dtype in (torch.bfloat16, torch.float32):
            a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
            print(f"{dtype}: {2 * side**3 / self._each(lambda a=a, b=b: a @ b) / 1e12:.3g} TFLOP/s")
        a = torch.empty(side, side, device=device)
        print(f"copying: {2 * a.nbytes / self._each(a.clone) / 1e12:.3g} TB/s (read and written)")

    def mapped(self, lens: str) -> None:
        """A real model on both devices: seconds, ranks that differ, heads checked in float64."""
        atlases = {}
        for name, device in (("cpu", "cpu"), ("first", self.device), ("second", self.device)):
            with self._timed(f"map, lens {lens}, {device} ({name})"):
                atlases[name] = map_heads(
                    self.model, lens=lens, out=self.folder / f"{lens}-{name}", compute=Compute(device)
                )
        for other in ("first", "second"):
            differing = sum(
                int((atlases["cpu"].dataset[rank].values != atlases[other].dataset[rank].values).sum())
                for rank in RANKS
            )
            total = sum(atlases["cpu"].dataset[rank].size for rank in RANKS)
            print(f"ranks that differ between cpu and {self.device} ({other}): {differing:,} of {total:,}")
        called = {name: _called(atlas) for name, atlas in atlases.items()}
        print(f"called: {len(called['cpu'])}; other on the device: {len(called['cpu'] ^ called['second'])}")
        if lens == "maps":
            self._check(lens, atlases["second"])

    def behaviour(self) -> None:
        """Where heads look, on both devices."""
        self._both("behaviour", ha.behaviour)

    def inference(self) -> None:
        """Scores in running texts: all relations and the shipped templates, as the command takes them."""
        self._both("evidence inference", ha.evidence.inference)

    def attention(self) -> None:
        """What queries prefer, of all called heads and relations."""
        self._both("evidence attention", ha.evidence.attention)

    def ablation(self) -> None:
        """What the model loses without the heads of a relation, and without heads of one's own choice."""
        only = ["country_to_capital"]
        self._both(
            f"evidence ablation, {only[0]}",
            lambda atlas, **where: ha.evidence.ablation(atlas, only=only, **where),
        )
        self._both(
            "evidence ablation, 23.4 and 24.5",
            lambda atlas, **where: ha.evidence.ablation(atlas, heads=[(23, 4), (24, 5)], only=only, **where),
        )

    def salience(self) -> None:
        """What heads write, on both devices; lists of rough states may differ where tokens are screened."""
        for lens in ("maps", "neutral"):
            if (self.folder / f"{lens}-cpu").is_dir():
                self._both(f"salience, lens {lens}", ha.salience, lens)

    def _both(self, what: str, measure: Callable[..., pd.DataFrame], lens: str = "maps") -> None:
        """Measure on both devices, each with its atlas: seconds, and how far numbers and words differ."""
        frames = []
        for name, device in (("cpu", "cpu"), ("second", self.device)):
            atlas = Atlas.open(self.folder / f"{lens}-{name}")
            with self._timed(f"{what}, {device}"):
                frames.append(measure(atlas, model=self.model, compute=Compute(device)))
        one, other = (frame.select_dtypes("number").to_numpy(float) for frame in frames)
        words = [frame.select_dtypes(exclude="number").astype(str).to_numpy() for frame in frames]
        off = np.where(np.isnan(one) & np.isnan(other), 0, np.nan_to_num(np.abs(one - other), nan=np.inf))
        print(
            f"{(off > 0).sum():,} of {off.size:,} numbers differ, by {off.max(initial=0):.2g} at most; "
            f"{(words[0] != words[1]).sum():,} of {words[0].size:,} other entries differ",
            flush=True,
        )

    def shapes(self, folders: list[Path], layers: str | None) -> None:
        """Checkpoints of known shapes end to end, as benchmarks.map_shape prints it."""
        for folder in folders:
            for lens in ("maps", "neutral"):
                print(f"\n-- {folder}, {lens}", flush=True)
                command = [sys.executable, "-m", "benchmarks.map_shape", str(folder), "--lens", lens]
                command += ["--device", self.device, *(["--layers", layers] if layers else [])]
                subprocess.run(command, check=True)

    def _check(self, lens: str, atlas: Atlas) -> None:
        prepared = prepare_map(self.model, None, "core", MapOptions(lens_named(lens)))
        states = states_of(prepared, self.folder)
        vocabulary = Vocabulary.competing(prepared.model.unembed(), prepared.competing)
        dims, rows = prepared.model.dims, np.arange(len(prepared.layout.sources))
        compared = 0
        for number in np.linspace(0, dims.n_layers * dims.n_heads - 1, CHECKED_HEADS).astype(int):
            layer, head = divmod(int(number), dims.n_heads)
            inputs = layer_inputs(prepared, states, layer)
            compared += check(prepared, inputs, vocabulary, atlas, layer, head, rows)
        print(f"{compared:,} ranks and cells of {CHECKED_HEADS} heads equal float64 arithmetic's")

    def _each(self, work: Callable[[], object], times: int = 10) -> float:
        for _ in range(3):
            work()
        self._finish()
        start = time.perf_counter()
        for _ in range(times):
            work()
        self._finish()
        return (time.perf_counter() - start) / times

    def _finish(self) -> None:
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize()

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        cuda = torch.device(self.device).type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        yield
        peak = f", {torch.cuda.max_memory_allocated() / 1e9:.2f} GB of the device" if cuda else ""
        print(f"{what}: {time.perf_counter() - start:.1f} s{peak}", flush=True)


def _called(atlas: Atlas) -> set[tuple[int, int, str]]:
    table = atlas.sel(called=True)
    return {
        (int(layer), int(head), str(relation))
        for layer, head, relation in table[["layer", "head", "relation"]].itertuples(index=False)
    }


if __name__ == "__main__":
    sys.exit(main())
