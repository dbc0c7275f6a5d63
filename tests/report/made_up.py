"""Atlases for the page's tests: odd names, many heads, nothing called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headatlas.atlas import Atlas
from headatlas.atlas.atlas import TABLE_COLUMNS
from headatlas.atlas.layout import build_layout
from headatlas.atlas.store import AtlasWriter, create_store
from headatlas.relations.relation import Pair, Relation, TokenisedPair, TokenisedRelation
from tests import synthetic

HOSTILE = "</script><img src=x onerror=alert(1)><!--{{script}}&amp;'\""


def relation(name: str, title: str, category: str) -> TokenisedRelation:
    """A relation of 40 sources and 20 targets, some of whose sources could not be used."""
    pairs = tuple(Pair(f"{title} {i}", (f"t{i % 20}",)) for i in range(40))
    usable = tuple(TokenisedPair(i, (100 + i,), (500 + i % 20,), (f"t{i % 20}",)) for i in range(40))
    whole = Relation(name, title, category, pairs)
    return TokenisedRelation(whole, usable, {f"because of {title}": (title, title)}, None)


def atlas_of(
    path: Path, relations: list[TokenisedRelation], model: str, layers: range, **provenance: Any
) -> Atlas:
    """An atlas of six layers × four heads, of which `layers` are mapped."""
    layout = build_layout(relations)
    attributes = {
        "model": {"name": model},
        "lens": {"name": "maps"},
        "ceiling": 32,
        "mask": True,
        "thresholds": {"tau": 0.155, "criterion": "tau"},
        **provenance,
    }
    create_store(path, layout, n_layers=6, n_heads=4, attributes=attributes)
    writer = AtlasWriter(path)
    for layer in layers:
        writer.write(layer, synthetic._layer(layout, 4, layer / 5, np.random.default_rng(layer)))
    return Atlas.open(path)


def large_atlas(path: Path, n_layers: int, n_heads: int) -> Atlas:
    """An atlas whose every cell has hits, the worst case for the size of the page; its table is made up."""
    layout = build_layout(synthetic.tokenised_relations(left_out=()))
    attributes = {
        "model": {"name": "Large"},
        "lens": {"name": "neutral"},
        "ceiling": 32,
        "thresholds": {},
        "mask": True,
    }
    create_store(path, layout, n_layers=n_layers, n_heads=n_heads, attributes=attributes)
    atlas = Atlas.open(path)
    rng = np.random.default_rng(0)
    layer, head = (grid.ravel() for grid in np.meshgrid(np.arange(n_layers), np.arange(n_heads)))
    parts = []
    for entry in layout.relations:
        size = len(layer)
        frame = pd.DataFrame(np.nan, index=range(size), columns=list(TABLE_COLUMNS))
        frame = frame.assign(layer=layer, head=head, relation=entry.name, category=entry.category)
        for column in ("score", "suppression", "control", "added"):
            frame[column] = rng.integers(1, 41, size) / 40
        parts.append(frame.assign(n_sources=40, q=rng.random(size) ** 9, suppression_q=rng.random(size) ** 9))
    # Both are computed once and kept; ranks of that many heads would take a minute to score.
    vars(atlas)["without_evidence"] = vars(atlas)["_table"] = pd.concat(parts, ignore_index=True)
    vars(atlas)["layers_done"] = np.ones(n_layers, dtype=bool)
    return atlas
