"""The figure of recovery: planted heads by noise, trained heads by what ablation says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from experiments.truth.recovery import by_group
from headatlas.figures import save
from headatlas.figures.page import LINE, MARGIN, AtlasFigure, Key, Page, style, text_width

COLOURS = {"neutral": "#1f7674", "maps": "#cf8a45"}
MARKS = {"neutral": "o", "maps": "s"}
HEIGHT, GAP = 34.0, 5.0
BELOW = 1.2 + 2.2 * LINE


def draw(planted: pd.DataFrame, trained: pd.DataFrame, path: Path, width_mm: float = 170.0) -> Path:
    """Write the figure; the suffix says the format."""
    return save(figure(planted, trained, width_mm), path)


@style()
def figure(planted: pd.DataFrame, trained: pd.DataFrame, width_mm: float) -> AtlasFigure:
    """First row: recall and AUROC of planted heads. Second row: score against causal share, a dot a head."""
    found = by_group(planted, ["first_mlp", "noise", "lens"], score="score", called="called", truth="truth")
    text = (
        "Above: heads written into random models; the title says how long the first MLP's output is, in "
        "lengths of the embedding. Below: heads of tiny trained models; a point is a head and relation. What "
        "is due to a head is the accuracy lost without it, averaged over random sets of other heads taken "
        "away as well."
    )
    page = Page(width_mm, title="Recovery of heads whose job is known", description=text)
    left = MARGIN + LINE + text_width("0.5") + 2.2
    width = (page.width - MARGIN - left - 2 * GAP) / 3
    y = MARGIN
    for row in range(2):
        y += LINE + 0.6
        names = list(found["first_mlp"].unique()) if row == 0 else list(trained["task"].unique())
        for number, name in enumerate(names):
            x = left + number * (width + GAP)
            title = f"first MLP {name:g}" if row == 0 else str(name)
            page.text(x + width / 2, y - LINE - 0.6, title, ha="center")
            ax = page.axes(x, y, width, HEIGHT)
            if row == 0:
                _by_noise(ax, found[found["first_mlp"] == name])
                below = "Noise"
            else:
                _by_effect(ax, trained[trained["task"] == name])
                below = "Accuracy due to the head"
            page.text(x + width / 2, y + HEIGHT + 1.2 + 0.9 * LINE, below, ha="center")
            if number:
                ax.set_yticklabels([])
        what = "Recall, AUROC" if row == 0 else "Score"
        page.text(MARGIN, y + HEIGHT / 2 - 0.8 * LINE, what, rotation=90, va="center")
        y += HEIGHT + BELOW
        y = page.legend(left, y, page.width - left, _keys(row)) + 0.8 * LINE
    return page.finish(y, text)


def _by_noise(ax: Axes, rows: pd.DataFrame) -> None:
    for lens, part in rows.groupby("lens", sort=False):
        look: dict[str, Any] = {"color": COLOURS[str(lens)], "marker": MARKS[str(lens)], "markersize": 2.6}
        ax.plot(part["noise"], part["recall"], linewidth=1.0, **look)
        ax.plot(part["noise"], part["auroc"], linewidth=0.8, linestyle=(0, (3.0, 1.5)), **look)
    ax.set_ylim(-0.03, 1.06)
    ax.set_yticks([0.0, 0.5, 1.0], ["0", "0.5", "1"])
    ticks = sorted(rows["noise"].unique())
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def _by_effect(ax: Axes, rows: pd.DataFrame) -> None:
    for lens in ("maps", "neutral"):
        part = rows[rows["lens"] == lens]
        look = {"color": COLOURS[lens], "marker": MARKS[lens], "linewidths": 0.0, "alpha": 0.75}
        ax.scatter(part["total"], part["score"], s=5.0, zorder=2 if lens == "neutral" else 1, **look)
    ax.set_ylim(-0.03, 1.06)
    ax.set_yticks([0.0, 0.5, 1.0], ["0", "0.5", "1"])
    top = float(np.ceil(10 * max(0.1, rows["total"].max())) / 10)
    ax.set_xlim(-0.05 * top, 1.05 * top)
    ticks = [0.0, top / 2, top]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def _keys(row: int) -> list[Key]:
    if row == 1:
        return [Key(lens, {"facecolor": colour}) for lens, colour in COLOURS.items()]
    dashed = {"linewidth": 0.8, "linestyle": (0, (3.0, 1.5))}
    return [
        Key(
            f"{lens}, {what}",
            {"color": colour, **(dashed if what == "AUROC" else {"linewidth": 1.0})},
            line=True,
        )
        for lens, colour in COLOURS.items()
        for what in ("recall", "AUROC")
    ]
