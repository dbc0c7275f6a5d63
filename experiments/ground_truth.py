"""Recovery of heads whose job is known, by lens: written into the weights, or proved by ablation.

    python -m experiments.ground_truth -o DIR [--seeds 2] [--only planted|trained]

Writes DIR/planted.csv and DIR/trained.csv (a row per model, lens, head and relation), DIR/training.csv,
DIR/tables.md and DIR/ground-truth.png. Everything is seeded and runs on the CPU.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import pandas as pd
import torch

from experiments.truth.planted import planted_cells
from experiments.truth.recovery import auroc, by_group
from experiments.truth.trained import CASES, VARIANTS, trained_cells

FIRST_MLP = (0.1, 0.5, 2.0)
NOISE = (0.0, 4.0, 8.0)
SHARES = (0.02, 0.05, 0.1, 0.2)


def main() -> None:
    """Run what is asked for and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", choices=["planted", "trained"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    if arguments.only != "trained":
        planted(arguments.seeds).to_csv(out / "planted.csv", index=False)
    if arguments.only != "planted":
        training, cells = trained(arguments.seeds)
        training.to_csv(out / "training.csv", index=False)
        cells.to_csv(out / "trained.csv", index=False)
    minutes = (time.perf_counter() - began) / 60
    print(f"{platform.machine()}, one thread, torch {torch.__version__}: {minutes:.0f} minutes")
    if all((out / name).is_file() for name in ("planted.csv", "trained.csv", "training.csv")):
        report(out)


def planted(seeds: int) -> pd.DataFrame:
    """Every setting of the dials."""
    parts = []
    for first_mlp in FIRST_MLP:
        for noise in NOISE:
            for seed in range(seeds):
                parts.append(planted_cells(first_mlp, noise, seed))
                print(f"planted: first MLP {first_mlp:g}, noise {noise:g}, seed {seed}", flush=True)
    return pd.concat(parts, ignore_index=True)


def trained(seeds: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every task, with all heads learning and with few."""
    runs, parts = [], []
    for case in CASES:
        for variant in VARIANTS:
            for seed in range(seeds):
                what, cells = trained_cells(case, variant, seed)
                print(what, flush=True)
                runs.append(what)
                parts.append(cells)
    return pd.DataFrame(runs), pd.concat(parts, ignore_index=True)


def report(out: Path) -> None:
    """Tables and the figure from the files in ``out``."""
    from experiments.truth.figure import draw

    planted_, trained_ = pd.read_csv(out / "planted.csv"), pd.read_csv(out / "trained.csv")
    text = "\n\n".join(
        [
            *planted_tables(planted_),
            markdown("Training", pd.read_csv(out / "training.csv")),
            *trained_tables(trained_),
        ]
    )
    (out / "tables.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    draw(planted_, trained_, out / "ground-truth.png")


def planted_tables(cells: pd.DataFrame) -> list[str]:
    """Recovery with the calibrated criterion and by the score alone; scores beside planted strengths."""
    groups = ["first_mlp", "noise", "lens"]
    tables = [
        markdown(
            f"Planted heads, called by {name}",
            by_group(cells, groups, score="score", called=column, truth="truth"),
        )
        for name, column in (("score and q", "called"), ("score alone", "called_tau"))
    ]
    clean = cells[cells["truth"] & (cells["noise"] == 0)]
    mean = clean.groupby(["first_mlp", "lens", "strength"], as_index=False)["score"].agg(
        ["mean", "min", "max"]
    )
    return [*tables, markdown("Scores of planted heads without noise", mean)]


def trained_tables(cells: pd.DataFrame) -> list[str]:
    """Recovery of the heads that write the answer, and of all that do a share of the work."""
    groups = ["task", "variant", "lens"]
    tables = [
        markdown(
            f"Trained models: heads that {verb}, ordered by {score}",
            by_group(cells, groups, score=score, called="called", truth=truth),
        )
        for verb, truth in (("write the answer", "writes"), ("do a share of the work", "works"))
        for score in ("score", "added")
    ]
    rows = [
        {**dict(zip(groups, key, strict=True)), "ordered by": score}
        | {f"{least:g}": auroc(part[score], part["total"] >= least) for least in SHARES}
        for key, part in cells.groupby(groups, sort=False)
        for score in ("score", "added")
    ]
    return [*tables, markdown("AUROC by the least accuracy that counts as a share", pd.DataFrame(rows))]


def markdown(title: str, table: pd.DataFrame) -> str:
    """A table for the documentation; two decimals, a dash where there is no number."""
    rows = [list(table.columns), ["---"] * table.shape[1]]
    rows += [[_cell(value) for value in row] for row in table.itertuples(index=False)]
    return f"**{title}**\n\n" + "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:.2f}"  # noqa: PLR0124 (NaN)
    return str(value)


if __name__ == "__main__":
    main()
