"""Figures of evidence and of behaviours: what coincides is said, and heads have names."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from headatlas.figures.evidence import Scatter, draw_curves, draw_scatters
from headatlas.options import Look

Signs = dict[str, NDArray[np.float64]]


def curves(added: list[float]) -> pd.DataFrame:
    steps = [0, 1, 2]
    parts = {"relation": [0.8, 0.4, 0.1], "added": added, "random": [0.8, 0.8, 0.75]}
    frames = [
        pd.DataFrame({"curve": name, "heads": steps, "accuracy": right, "low": right, "high": right})
        for name, right in parts.items()
    ]
    return pd.concat(frames, ignore_index=True)


def test_curves_that_coincide_are_one_and_the_legend_says_so() -> None:
    same, other = (
        draw_curves(curves(added), {}, 85.0, Look(), title="capital", caption="")
        for added in ([0.8, 0.4, 0.1], [0.8, 0.4, 0.3])
    )
    assert [len(figure.axes[0].lines) for figure in (same, other)] == [2, 3]
    words = [" ".join(text.get_text() for text in figure.texts) for figure in (same, other)]
    assert "heads in order of score; the same: in order of added" in words[0]
    assert "the same" not in words[1]


def scattered(static: Signs, dynamic: Signs) -> Axes:
    """The panel of one relation with these scores."""
    panel = Scatter("capital", "capital", static, dynamic)
    return draw_scatters([panel], 170.0, Look(), kind="context", tau=0.15, title="", caption="").axes[0]


def test_points_that_coincide_are_one_and_the_highest_heads_are_named() -> None:
    static, dynamic = np.zeros((10, 8)), np.zeros((10, 8))
    static[7, 3], dynamic[7, 3] = 0.81, 0.36
    static[2, 5], dynamic[2, 5] = 0.04, 0.01  # below the smallest score that counts
    nothing = np.zeros_like(static)
    ax = scattered(
        {"promotion": static, "suppression": nothing}, {"promotion": dynamic, "suppression": nothing}
    )
    drawn = {str(points.get_label()): points for points in ax.collections}
    assert [len(drawn[sign].get_offsets()) for sign in ("promotion", "suppression")] == [3, 1]
    sizes = drawn["promotion"].get_sizes()
    assert sizes[0] > sizes[1] == sizes[2], "78 heads at 0"
    assert [
        text.get_text() for text in ax.texts if "." in text.get_text() and "r" not in text.get_text()
    ] == ["7.3"]


def test_a_name_stands_on_no_point() -> None:
    rng = np.random.default_rng(0)
    scores = [rng.random((12, 8)) ** 2 for _ in range(2)]
    both = [dict.fromkeys(("promotion", "suppression"), each) for each in scores]
    ax = scattered(*both)
    ax.figure.draw_without_rendering()
    points = ax.transData.transform(
        np.concatenate([np.asarray(each.get_offsets()) for each in ax.collections])
    )
    names = [text for text in ax.texts if not text.get_text().startswith("r")]
    assert names
    for text in names:
        box = text.get_window_extent()
        assert not any(box.x0 + 2 < x < box.x1 - 2 and box.y0 + 4 < y < box.y1 - 4 for x, y in points), text
