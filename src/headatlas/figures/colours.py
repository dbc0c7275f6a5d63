"""The colours of the figures: few, told apart without hue, and in the same order when printed in grey.

A scale is made from contrast: each colour has a given contrast (WCAG 2) with the ground of blank cells, in
equal ratios from one colour to the next, and takes its hue from a path through CIELAB. On white, more is
darker; in the dark, more is brighter. Blue-green or blue (promotion) and orange-brown (suppression) are kept
apart by every common form of colour blindness.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from headatlas.options import Look

Floats = NDArray[np.float64]

FIRST, LAST = 3.0, 14.0
"""Contrast of one category, and of four, with a blank cell. WCAG asks 3 of parts of graphics."""
STEPS = 40
"""Steps of a scale from 0 to 1: one is 0.025, finer than the eye reads from it."""

_HUES = {
    "green": ("#062a22", "#0b4a42", "#176763", "#1f8880", "#2fa394", "#5fbfae", "#a5e3d2", "#e9fff6"),
    "blue": ("#0a1c3a", "#123a73", "#1f5aa6", "#3d7fcb", "#6ea8e0", "#a9cdf0", "#e8f3ff"),
    "orange": ("#2e1400", "#542500", "#8a4308", "#b8661b", "#d98c3f", "#f0b878", "#fbe0c0", "#fff6ea"),
    "grey": ("#000000", "#ffffff"),
}
_WHITE = np.array([0.95047, 1.0, 1.08883])
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_FROM_XYZ = np.linalg.inv(_TO_XYZ)


@dataclass(frozen=True)
class Palette:
    """The colours of a figure."""

    hue: str = "green"  # of categories and promotion: the name of a path through CIELAB
    other: str = "orange"  # of suppression
    ink: str = "#1a1a1a"  # text, axes and outlines
    paper: str = "#ffffff"  # the ground of the figure, and lines between cells
    blank: str = "#f5f7f6"  # a mapped head that does nothing here: nearly the paper, not quite
    soft: str = "#8c8c8c"  # guide lines, and the hatching of layers that are not mapped

    def levels(self, n: int) -> tuple[str, ...]:
        """Colours of 1, 2, … n categories, the faintest first.

        Up to four categories have the same colours in every figure; a longer scale has smaller steps.
        """
        return _scale(self.hue, self.blank, tuple(np.geomspace(FIRST, LAST, max(n, 4))[:n].tolist()))

    def scores(self, n: int = STEPS + 1, *, suppression: bool = False) -> tuple[str, ...]:
        """n colours from blank (score 0) to the strongest (score 1), by the square root of the score."""
        contrasts = LAST ** np.sqrt(np.linspace(0.0, 1.0, n))
        return _scale(self.other if suppression else self.hue, self.blank, tuple(contrasts.tolist()))


LIGHT = Palette()
DARK = Palette(ink="#e8ecea", paper="#121716", blank="#1d2422", soft="#7d8784")


def palette_of(look: Look) -> Palette:
    """The colours that a look asks for."""
    ground = DARK if look.dark else LIGHT
    other = "grey" if look.colours == "grey" else "orange"
    return Palette(look.colours, other, ground.ink, ground.paper, ground.blank, ground.soft)


@cache
def _scale(hue: str, blank: str, contrasts: tuple[float, ...]) -> tuple[str, ...]:
    """Colours with these contrasts with blank: darker than a pale one, brighter than a dark one."""
    path = np.array([_to_lab(colour) for colour in _HUES[hue]])
    ground = luminance(blank) + 0.05
    wanted = ground / np.array(contrasts) if ground > 0.5 else ground * np.array(contrasts)
    luminances = np.maximum(wanted - 0.05, 0.0)
    lightness = np.where(
        luminances > (6 / 29) ** 3, 116 * np.cbrt(luminances) - 16, luminances * (29 / 3) ** 3
    )
    points = [lightness, *(np.interp(lightness, path[:, 0], path[:, channel]) for channel in (1, 2))]
    return tuple(_from_lab(np.array(point)) for point in zip(*points, strict=True))


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb`` (WCAG 2): 0 black, 1 white."""
    return float(_to_linear(_rgb(colour)) @ _TO_XYZ[1])


def _rgb(colour: str) -> Floats:
    return np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])


def _to_linear(rgb: Floats) -> Floats:
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def _to_lab(colour: str) -> Floats:
    ratio = (_TO_XYZ @ _to_linear(_rgb(colour))) / _WHITE
    x, y, z = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _from_lab(lab: Floats) -> str:
    y = (lab[0] + 16) / 116
    f = np.array([y + lab[1] / 500, y, y - lab[2] / 200])
    xyz = _WHITE * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    linear = np.clip(_FROM_XYZ @ xyz, 0.0, 1.0)
    rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return "#" + "".join(f"{round(float(value) * 255):02x}" for value in rgb)
