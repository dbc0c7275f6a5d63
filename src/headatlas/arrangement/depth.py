"""How deep each category's heads sit, whether categories differ, and the same on single-token sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from headatlas.arrangement.bands import DepthTest, Ints, compare, quartiles

if TYPE_CHECKING:
    from headatlas.atlas import Atlas


def layers_by_category(atlas: Atlas, heads: pd.DataFrame) -> dict[str, Ints]:
    """Category → layers of its heads.

    Args:
        heads: What ``atlas.categories()`` gave.
    """
    return {
        name: heads["layer"].to_numpy(dtype=np.int64)[
            np.array([name in which for which in heads["which"]], bool)
        ]
        for name in atlas.category_names
    }


@dataclass(frozen=True)
class CategoryDepth:
    """Where the heads of one category sit: their layers, ascending, and the quartiles."""

    category: str
    layers: tuple[int, ...]
    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Depth:
    """Categories that have heads, and their comparison (None where there is nothing to compare)."""

    categories: tuple[CategoryDepth, ...]
    comparison: DepthTest | None


def depth_by_category(atlas: Atlas) -> Depth:
    """Layers of each category's heads, promoting or suppressing, and Kruskal–Wallis over the categories."""
    groups = layers_by_category(atlas, atlas.categories())
    groups = {name: np.sort(layers) for name, layers in groups.items() if len(layers)}
    rows = [
        CategoryDepth(name, tuple(int(layer) for layer in layers), *quartiles(layers))
        for name, layers in groups.items()
    ]
    return Depth(tuple(rows), compare(groups))
