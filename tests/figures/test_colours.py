"""The colours can be told apart without hue."""

from __future__ import annotations

import numpy as np
import pytest

from headatlas.figures.colours import BLANK, _to_lab, level_colours, luminance, score_colours

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


def contrast(first: str, second: str) -> float:
    """WCAG 2 contrast ratio, 1 to 21."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def seen(colour: str, blindness: str) -> np.ndarray:
    """Linear RGB as seen with a colour blindness."""
    rgb = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.clip(np.array(BLINDNESS[blindness]) @ linear, 0, 1)


@pytest.mark.parametrize("n", range(1, 9))
def test_levels_darken_in_clear_steps(n: int) -> None:
    steps = -np.diff([lightness(colour) for colour in (BLANK, *level_colours(n))])
    assert len(steps) == n
    assert (steps >= (15 if n <= 4 else 8)).all()


def test_four_levels_are_the_same_however_many_categories_there_are() -> None:
    assert [level_colours(n) for n in (1, 2, 3)] == [level_colours(4)[:n] for n in (1, 2, 3)]


def test_levels_are_blue_green_and_the_last_is_dark_green() -> None:
    for colour in level_colours(6):
        red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
        assert red < min(green, blue)
    assert lightness(level_colours(4)[-1]) < 25
    assert contrast(level_colours(4)[-1], BLANK) > 7


@pytest.mark.parametrize("suppression", [False, True])
def test_scores_darken_evenly(suppression: bool) -> None:
    shades = np.array([lightness(colour) for colour in score_colours(41, suppression=suppression)])
    steps = -np.diff(shades)
    assert steps.min() > 0.5 * steps.mean()
    assert steps.max() < 1.5 * steps.mean()


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_promotion_and_suppression_differ_for_the_colour_blind(blindness: str) -> None:
    for at in (10, 20, 30):
        ours, other = (seen(score_colours(41, suppression=sign)[at], blindness) for sign in (False, True))
        assert np.abs(ours - other).max() > 0.05


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_levels_keep_their_order_for_the_colour_blind(blindness: str) -> None:
    weights = np.array([0.2126, 0.7152, 0.0722])
    shades = [weights @ seen(colour, blindness) for colour in (BLANK, *level_colours(4))]
    assert (np.diff(shades) < 0).all()


def test_luminance_and_contrast_of_known_colours() -> None:
    assert luminance("#ffffff") == pytest.approx(1, abs=1e-6)
    assert contrast("#000000", "#ffffff") == pytest.approx(21, abs=1e-4)
    assert lightness("#777777") == pytest.approx(50.03, abs=0.05)
