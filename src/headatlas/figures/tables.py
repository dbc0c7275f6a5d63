"""The plotted numbers as tables, to be written beside a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from headatlas.figures.grids import Panels, category_grid

if TYPE_CHECKING:
    from headatlas.atlas import Atlas


def categories_table(atlas: Atlas, panels: Panels = "category") -> pd.DataFrame:
    """One row per mapped head: layer, head, n_categories (its colour), one 0/1 column per panel, and
    relations, the relations it promotes or suppresses, joined with ``;``."""
    frame = atlas.categories()
    table = frame[["layer", "head", "n_categories"]].astype(int)
    for name, member in category_grid(atlas, panels).member.items():
        table[name] = member[frame["layer"], frame["head"]].astype(int)
    table["relations"] = np.array([";".join(names) for names in frame["relations"]], dtype=object)
    return table


def relations_table(atlas: Atlas) -> pd.DataFrame:
    """One row per mapped head × scored relation: layer, head, relation, category, score, suppression, shown
    (the plotted number: the score, or minus the suppression where that is larger), implements, suppresses."""
    table = atlas.table()[["layer", "head", "relation", "category", "score", "suppression"]].copy()
    score, suppression = (table[name].to_numpy(dtype=float) for name in ("score", "suppression"))
    table["shown"] = np.where(suppression > score, -suppression, score)
    for name in ("implements", "suppresses"):
        table[name] = atlas.table()[name].to_numpy(dtype=bool)
    return table


def layers_table(atlas: Atlas) -> pd.DataFrame:
    """One row per panel and mapped layer: panel, layer, n_heads, heads (how many belong to the panel), share,
    share_1 … share_n (of all heads of the layer: those of the panel with so many categories), control (mean
    score of the states alone over the panel's relations)."""
    grid = category_grid(atlas)
    parts = []
    layers = np.flatnonzero(grid.mapped)
    for panel in grid.panels:
        shown = grid.shown(panel)[layers]
        n_heads = shown.shape[1]
        heads = (shown > 0).sum(axis=1)
        levels = {
            f"share_{level}": (shown == level).sum(axis=1) / n_heads for level in range(1, grid.n_levels + 1)
        }
        parts.append(
            pd.DataFrame(
                {
                    "panel": panel,
                    "layer": layers,
                    "n_heads": n_heads,
                    "heads": heads,
                    "share": heads / n_heads,
                    **levels,
                    "control": grid.control[panel][layers],
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


TABLES = {"categories": categories_table, "relations": relations_table, "layers": layers_table}
