"""Figures of numbers that every head has, a panel each: where heads look, and what they write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from headatlas.atlas.behaviours import BEHAVIOURS, Behaviour, Looking, best_first
from headatlas.atlas.salience import Salience, stored_salience
from headatlas.figures import panels
from headatlas.figures.grids import Which, choose, needed
from headatlas.figures.page import AtlasFigure, Key, Page, Title
from headatlas.figures.panels import Cell
from headatlas.options import Look

if TYPE_CHECKING:
    from headatlas.atlas import Atlas

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

RANGES = "Where a title names a range, colours run evenly from its first number to its last."


@dataclass(frozen=True)
class Panel:
    """A panel of numbers."""

    title: Title
    value: Floats  # [n_layers, n_heads] from −1 to 1, the ends of the colour bar; NaN where there is none
    called: Bools  # [n_layers, n_heads] heads that are framed


def _panel(frame: pd.DataFrame, numbers: pd.Series, shape: tuple[int, int], title: Title) -> Panel:
    """Numbers of a frame's rows as a grid; those that its column ``called`` marks are outlined."""
    value, called = np.full(shape, np.nan), np.zeros(shape, dtype=bool)
    at = frame["layer"].to_numpy(), frame["head"].to_numpy()
    value[at] = numbers
    if "called" in frame:
        called[at] = frame["called"]
    return Panel(title, value, called)


def _evenly(frame: pd.DataFrame, name: str, least: float, shape: tuple[int, int], title: str) -> Panel:
    """Numbers without natural ends: from ``least`` to the largest, which the title names.

    The colour bar goes by the square root, so these are squared.
    """
    numbers, unit = frame[name], {"entropy": " nats", "distance": " tokens", "distance_variance": " tokens²"}
    largest = max(float(numbers.max()), least + 1e-9) if numbers.notna().any() else 1.0
    behaviour = frame["behaviour"].iloc[0] if "behaviour" in frame else ""
    note = f"{least:.3g} to {largest:.3g}{unit.get(behaviour, '')}"
    return _panel(frame, ((numbers - least) / (largest - least)) ** 2, shape, (title, note))


def draw_panels(
    page: Page,
    shown: Sequence[Panel],
    seen: Bools,
    caption: str,
    scale: Mapping[str, Sequence[str]],
    keys: Sequence[Key],
) -> AtlasFigure:
    """A panel [layer × head] each, with their colour bar; ``seen`` [n_layers]: layers that have numbers.

    Numbers below 0 have the colour of suppression and a minus sign.
    """
    palette, shape = page.palette, shown[0].value.shape

    def cells(ax: Axes, each: Panel, cell: Cell) -> None:
        panels.prepare_panel(ax, seen, shape[1], palette)
        below = panels.fill_signed(ax, each.value, palette)
        panels.separate(ax, shape, cell, palette)
        panels.minus(ax, below, cell, palette)
        panels.outline(ax, each.called, cell, palette)

    known = [*keys, *panels.not_mapped_keys(seen, palette)]
    return panels.draw_grids(
        page,
        shown,
        shape,
        caption,
        cells=cells,
        title=lambda each: each.title,
        legend=partial(panels.colour_bar, page, scale, known),
        smallest=25.0,
        flat=0.8,
    )


# Where heads look ---------------------------------------------------------------------------------------


def _looking(atlas: Atlas) -> Looking:
    return needed(Looking.shipped_in(atlas.place), "behaviour")


def behaviours_table(atlas: Atlas) -> pd.DataFrame:
    """One row per behaviour, layer and head, as :meth:`Atlas.behaviours` describes it."""
    return _looking(atlas).frame()


def draw_behaviours(
    atlas: Atlas, width_mm: float, which: Which, look: Look, *, found: Looking | None = None
) -> AtlasFigure:
    """A panel a behaviour, coloured by value; heads that are called outlined, and counted in the titles.

    Shares of attention have one scale, from none to all of it; entropy, distance and its variance have one
    each, up to the largest value. ``found`` is that of the shipped texts by default.
    """
    found = found or _looking(atlas)
    frame, shape = found.frame(), (atlas.n_layers, atlas.n_heads)
    rows = {str(name): part for name, part in frame.groupby("behaviour")}
    there = {each.name: each for each in BEHAVIOURS if each.name in rows}
    shown = [there[name] for name in choose(which, list(there), "behaviour")]
    words = "; ".join(_called(rows[each.name], each) for each in shown if each.tested)
    description = f"Heatmaps of layer by head, one a behaviour, coloured by attention. {words}."
    title = f"Where the heads of {atlas.model_name} look"
    page = Page(width_mm, look, title=title, description=description)
    ranges = "" if all(_is_share(each) for each in shown) else f" {RANGES}"
    return draw_panels(
        page,
        [_behaviour(rows[each.name], each, shape) for each in shown],
        np.isin(np.arange(shape[0]), frame["layer"]),
        f"Colour: share of the head's attention.{ranges} n: heads that are called. "
        f"{atlas.model_name}; {found.caption()}",
        {"share of attention": page.palette.scores()},
        [Key("called: more than expected", {"facecolor": page.palette.scores(5)[2]}, outlined=True)],
    )


def _is_share(each: Behaviour) -> bool:
    return each.name not in ("entropy", "distance", "distance_variance")


def _behaviour(rows: pd.DataFrame, each: Behaviour, shape: tuple[int, int]) -> Panel:
    if not _is_share(each):
        return _evenly(rows, "value", 0.0, shape, each.title)
    return _panel(
        rows, rows["value"], shape, (each.title, f"n = {rows['called'].sum()}" if each.tested else "")
    )


def _called(rows: pd.DataFrame, each: Behaviour) -> str:
    """Heads called, and the strongest one, in words."""
    best = best_first(rows).to_dict("records")[0]
    most = f"{best['layer']}.{best['head']} ({best['value']:.2f})"
    return f"{each.title}: {rows['called'].sum()} called, most {most}"


# What heads write ---------------------------------------------------------------------------------------

MEASURES = {
    "explained": "Share explained",
    "copying": "Copying",
    "effective_rank": "Effective rank",
    "norm_share": "Norm share",
}


def _salience(atlas: Atlas) -> Salience:
    return needed(stored_salience(atlas.place), "salience")


def salience_table(atlas: Atlas) -> pd.DataFrame:
    """One row per head: layer, head and a column a measure."""
    return _salience(atlas).by_head()[["layer", "head", *MEASURES]]


def draw_salience(
    atlas: Atlas, width_mm: float, which: Which, look: Look, *, found: Salience | None = None
) -> AtlasFigure:
    """A panel a measure: share explained, copying, effective rank, and share of the layer's norm.

    Share explained and copying have one scale, from 0 to 1 and below 0; effective rank goes from the smallest
    to the largest there is, the share of the norm from 0 to the largest. ``found`` is what is stored in the
    atlas by default.
    """
    found = found or _salience(atlas)
    frame, shape = found.by_head(), (atlas.n_layers, atlas.n_heads)
    shown = choose(which, list(MEASURES), "measure")
    words = "; ".join(_extent(frame, name) for name in shown if frame[name].notna().any())
    description = f"Heatmaps of layer by head, one a measure, coloured by value. {words}."
    title = f"What the heads of {atlas.model_name} write"
    page = Page(width_mm, look, title=title, description=description)
    reading, scale = "Colour: value.", {"value": page.palette.scores()}
    if "copying" in shown:
        reading = "Colour: value; minus sign: below 0."
        scale = {"below 0": page.palette.scores(suppression=True), **scale}
    if {"effective_rank", "norm_share"} & set(shown):
        reading = f"{reading} {RANGES}"
    return draw_panels(
        page,
        [_measure(frame, name, shape) for name in shown],
        np.isin(np.arange(shape[0]), frame["layer"]),
        f"{reading} {atlas.model_name}; {found.caption()}",
        scale,
        [],
    )


def _measure(frame: pd.DataFrame, name: str, shape: tuple[int, int]) -> Panel:
    if name in ("explained", "copying"):
        return _panel(frame, frame[name], shape, (MEASURES[name], ""))
    least = float(frame[name].min()) if name == "effective_rank" and frame[name].notna().any() else 0.0
    return _evenly(frame, name, least, shape, MEASURES[name])


def _extent(frame: pd.DataFrame, name: str) -> str:
    """The range of a measure, and the head that has the most of it, in words."""
    numbers = frame[name]
    best = frame.iloc[int(np.nanargmax(numbers.to_numpy()))]
    most = f"{int(best['layer'])}.{int(best['head'])}"
    return f"{MEASURES[name]}: {numbers.min():.2f} to {numbers.max():.2f}, most {most}"
