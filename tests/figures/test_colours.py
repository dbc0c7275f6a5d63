"""The colours can be told apart without hue."""

from __future__ import annotations

from itertools import pairwise, product
from typing import get_args

import numpy as np
import pytest

from headatlas.figures.colours import LIGHT, Palette, _to_lab, luminance, palette_of
from headatlas.options import Colours, Look

# Machado, Oliveira & Fernandes (2009), severity 1, for linear RGB.
BLINDNESS = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def lightness(colour: str) -> float:
    """CIE L*: 0 black, 100 white; what a colour becomes when printed in grey."""
    return float(_to_lab(colour)[0])


def seen(colour: str, blindness: str | None) -> np.ndarray:
    """Linear RGB as seen with a colour blindness, or without."""
    rgb = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear if blindness is None else np.clip(np.array(BLINDNESS[blindness]) @ linear, 0, 1)


LOOKS = [Look(colours=colours, dark=dark) for colours in get_args(Colours) for dark in (False, True)]
LUMA = np.array([0.2126, 0.7152, 0.0722])


@pytest.fixture(params=LOOKS, ids=lambda look: f"{look.colours}{'-dark' * look.dark}")
def palette(request: pytest.FixtureRequest) -> Palette:
    return palette_of(request.param)


def contrast(first: str, second: str) -> float:
    """WCAG 2 contrast ratio of two colours, 1 to 21."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_one_category_stands_out_from_none_and_each_level_from_the_next(palette: Palette) -> None:
    """Contrasts by WCAG 2, which asks 3 of parts of graphics."""
    colours = (palette.blank, *palette.levels(4))
    assert contrast(colours[0], colours[1]) >= 2.95
    assert all(contrast(*pair) >= 1.6 for pair in pairwise(colours[1:]))
    assert contrast(colours[0], colours[-1]) > 13
    assert contrast(palette.paper, palette.ink) > 12
    assert contrast(palette.paper, palette.soft) >= 3


@pytest.mark.parametrize("n", [5, 6, 8])
def test_more_categories_have_smaller_steps(palette: Palette, n: int) -> None:
    colours = palette.levels(n)
    assert contrast(palette.blank, colours[0]) >= 2.95
    assert all(contrast(*pair) >= 1.2 for pair in pairwise(colours))


def test_four_levels_are_the_same_however_many_categories_there_are(palette: Palette) -> None:
    assert [palette.levels(n) for n in (1, 2, 3)] == [palette.levels(4)[:n] for n in (1, 2, 3)]


def test_levels_are_blue_green_and_the_last_is_dark_green() -> None:
    for colour in LIGHT.levels(6):
        red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
        assert red < min(green, blue)
    assert lightness(LIGHT.levels(4)[-1]) < 25


@pytest.mark.parametrize("blindness", [None, *BLINDNESS])
def test_levels_and_scores_keep_their_order_in_grey_and_for_the_colour_blind(
    palette: Palette, blindness: str | None
) -> None:
    """More is darker on white and brighter in the dark, in steps that stay clear."""
    for colours in (palette.levels(4), palette.scores(9), palette.scores(9, suppression=True)):
        ramp = (palette.blank, *colours) if len(colours) == 4 else colours
        shades = np.array([LUMA @ seen(colour, blindness) for colour in ramp])
        towards = np.diff(np.log(shades + 0.05)) * (1 if shades[0] < shades[-1] else -1)
        assert (towards > (0.4 if len(colours) == 4 else 0.05)).all(), (blindness, shades)


def test_a_score_that_is_called_can_be_seen(palette: Palette) -> None:
    """From the default τ on nearly as well as a category."""
    for suppression in (False, True):
        colours = palette.scores(41, suppression=suppression)
        assert contrast(colours[0], palette.blank) < 1.02
        assert contrast(palette.blank, colours[6]) > 2.6  # 0.15
        assert contrast(palette.blank, colours[2]) > 1.7  # 0.05


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_promotion_and_suppression_differ_for_the_colour_blind(blindness: str) -> None:
    for colours, at in product(("green", "blue"), (10, 20)):
        palette = palette_of(Look(colours=colours))  # type: ignore[arg-type]
        ours, other = (seen(palette.scores(41, suppression=sign)[at], blindness) for sign in (False, True))
        assert np.abs(ours - other).max() > 0.05, colours


def test_luminance_and_contrast_of_known_colours() -> None:
    assert luminance("#ffffff") == pytest.approx(1, abs=1e-6)
    assert contrast("#000000", "#ffffff") == pytest.approx(21, abs=1e-4)
    assert lightness("#777777") == pytest.approx(50.03, abs=0.05)
