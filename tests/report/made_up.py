"""Atlases for the page's tests: odd names, many heads, nothing called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from headatlas.atlas import Atlas
from headatlas.atlas.behaviours import NAMES, Looking
from headatlas.atlas.evidence import evidence_group
from headatlas.atlas.layout import build_layout
from headatlas.atlas.salience import salience_path
from headatlas.atlas.store import AtlasWriter, create_store
from headatlas.atlas.stored import store_dataset
from headatlas.relations.relation import Pair, Relation, TokenisedPair, TokenisedRelation
from tests import synthetic
from tests.figures import planted

HOSTILE = "</script><img src=x onerror=alert(1)><!--{{script}}&amp;'\""


def relation(name: str, title: str, category: str) -> TokenisedRelation:
    """A relation of 40 sources and 20 targets, some of whose sources could not be used."""
    pairs = tuple(Pair(f"{title} {i}", (f"t{i % 20}",)) for i in range(40))
    usable = tuple(TokenisedPair(i, (100 + i,), (500 + i % 20,), (f"t{i % 20}",)) for i in range(40))
    whole = Relation(name, title, category, pairs)
    return TokenisedRelation(whole, usable, {f"because of {title}": (title, title)}, None)


def atlas_of(
    path: Path,
    relations: list[TokenisedRelation],
    model: str,
    layers: range,
    seed: int = 0,
    **provenance: Any,
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
        writer.write(layer, synthetic._layer(layout, 4, layer / 5, np.random.default_rng(layer + 100 * seed)))
    return Atlas.open(path)


def large_atlas(path: Path, n_layers: int, n_heads: int) -> Atlas:
    """An atlas of as many ranks a head as real maps have, with behaviours, labels and salience of every head.

    Its 300 pairs a relation, and which heads are called, are those of
    :func:`tests.figures.planted.large_atlas`.
    """
    atlas = planted.large_atlas(path, n_layers, n_heads, n_sources=300)
    rng = np.random.default_rng(0)
    _made_up_salience(path, n_layers, n_heads, rng)
    _made_up_looking(path, n_layers, n_heads, rng)
    # Opened again, for it remembers what evidence there was; the scores are those made up.
    again = Atlas.open(path)
    vars(again)["relation_scores"] = atlas.relation_scores
    return again


def _made_up_salience(path: Path, n_layers: int, n_heads: int, rng: np.random.Generator) -> None:
    """As many tokens a head as :mod:`headatlas.writing` stores, out of a large vocabulary."""
    tokens, shape, d_head = 50_000, (n_layers, n_heads), 128
    sizes = {"source": (30,), "promoted": (30, 5), "suppressed": (30, 5)}
    sizes |= dict.fromkeys(("reads", "writes"), (5, 2, 5))
    dims = {"source": ("order",), "promoted": ("order", "place"), "suppressed": ("order", "place")}
    dims |= dict.fromkeys(("reads", "writes"), ("direction", "end", "place"))
    # Few tokens are named often: a cubed uniform number.
    arrays = {
        name: (
            ("layer", "head", *dims[name]),
            (rng.random((*shape, *size)) ** 3 * tokens).astype(np.int32),
        )
        for name, size in sizes.items()
    }
    gain, values = rng.gamma(2, 3, (*shape, 30)), np.sort(rng.gamma(2, 3, (*shape, d_head)))[..., ::-1]
    empty = np.full(shape, "[]", dtype=np.dtypes.StringDType())
    numbers = ("effective_rank", "copying", "norm_share", "explained")
    data = {
        **arrays,
        "gain": (("layer", "head", "order"), gain),
        "singular_values": (("layer", "head", "d_head"), values),
        **{name: (("layer", "head"), rng.random(shape)) for name in numbers},
        **dict.fromkeys(("relations", "rest"), (("layer", "head"), empty)),
        "text": (("token",), np.array([f" word{i:x}" for i in range(tokens)], dtype=np.dtypes.StringDType())),
    }
    said = {"n": tokens, "choice": "made up", "undertrained": 0, "reference": True}
    dataset = xr.Dataset(data, coords={"token": np.arange(tokens)})
    store_dataset(salience_path(evidence_group(path)), dataset, {"tokens": said, "lens": "neutral"})


def _made_up_looking(path: Path, n_layers: int, n_heads: int, rng: np.random.Generator) -> None:
    shape = (len(NAMES), n_layers, n_heads)
    dims = ("behaviour", "layer", "head")
    data = {name: (dims, rng.beta(0.3, 4, shape)) for name in ("value", "expected", "low", "high", "p")}
    texts = {"texts": 1, "repeated": 1, "length": 1, "source": ""}
    dataset = xr.Dataset(
        {**data, "n_sequences": (("behaviour",), np.ones(len(NAMES), dtype=np.int64))},
        coords={"behaviour": np.array(NAMES, dtype=np.dtypes.StringDType())},
    )
    store_dataset(Looking.place(evidence_group(path)), dataset, {"texts": texts})
