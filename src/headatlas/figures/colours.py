"""The colours of the figures: few, told apart without hue, and in the same order when printed in grey.

Both scales run in CIELAB, so equal steps look equally large. They change hue within blue-green (many
categories, promotion) and orange-brown (suppression), a pair that every common form of colour blindness keeps
apart.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

BLANK = "#f5f7f6"
"""A mapped head that does nothing here: very pale, not white."""
INK = "#1a1a1a"
"""Text, axes and outlines."""
NOT_MAPPED = "#8c8c8c"
"""Hatching of layers that are not mapped, on white."""

_LEVELS = ("#9fd6ce", "#56aaa8", "#1f7674", "#083d2e")
_PROMOTION = (BLANK, "#9fd6ce", "#56aaa8", "#1f7674", "#083d2e")
_SUPPRESSION = (BLANK, "#f0c59a", "#cf8a45", "#9c5310", "#542500")

Floats = NDArray[np.float64]

_WHITE = np.array([0.95047, 1.0, 1.08883])
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_FROM_XYZ = np.linalg.inv(_TO_XYZ)


@cache
def level_colours(n: int) -> tuple[str, ...]:
    """Colours of 1, 2, … n categories, lightest first.

    Up to four categories have the same colours in every figure; a longer scale spreads the same ramp over n
    steps of equal lightness.
    """
    if n <= len(_LEVELS):
        return _LEVELS[:n]
    return _ramp(_LEVELS, n)


@cache
def score_colours(n: int, *, suppression: bool = False) -> tuple[str, ...]:
    """n colours from blank (score 0) to darkest (score 1)."""
    return _ramp(_SUPPRESSION if suppression else _PROMOTION, n)


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb`` (WCAG 2): 0 black, 1 white."""
    return float(_to_linear(_rgb(colour)) @ _TO_XYZ[1])


def _ramp(anchors: tuple[str, ...], n: int) -> tuple[str, ...]:
    """n colours along the anchors, evenly spaced in L*."""
    lab = np.array([_to_lab(colour) for colour in anchors])
    wanted = np.linspace(lab[0, 0], lab[-1, 0], n)
    # np.interp wants ascending abscissae; the ramps darken.
    points = [np.interp(wanted, lab[::-1, 0], lab[::-1, channel]) for channel in range(3)]
    return tuple(_from_lab(np.array(point)) for point in zip(*points, strict=True))


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
