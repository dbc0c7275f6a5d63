"""Atlases for the page's tests: odd names, many heads, nothing called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headatlas.atlas import Atlas
from headatlas.atlas.ablations import store_dataset
from headatlas.atlas.behaviours import NAMES, looking_path
from headatlas.atlas.evidence import evidence_group
from headatlas.atlas.layout import build_layout
from headatlas.atlas.relation_scores import Calibration, RelationScores
from headatlas.atlas.salience import salience_path
from headatlas.atlas.store import CELL_BEYOND, AtlasWriter, LayerRanks, create_store
from headatlas.relations.relation import Pair, Relation, TokenisedPair, TokenisedRelation
from headatlas.scoring.scores import RANK_BEYOND
from tests import synthetic

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

    Ranks are those of made-up relations of 300 pairs: three heads in four have few, one in four has many.
    """
    layout = build_layout(synthetic.tokenised_relations(300, 150, left_out=()))
    attributes = {
        "model": {"name": "Large", "dims": {"n_kv_heads": 8 if n_heads % 8 == 0 else n_heads}},
        "lens": {"name": "neutral"},
        "ceiling": 32,
        "thresholds": {},
        "mask": True,
    }
    create_store(path, layout, n_layers=n_layers, n_heads=n_heads, attributes=attributes)
    rng = np.random.default_rng(0)
    writer = AtlasWriter(path)
    # No cell is stored: calibrating that many heads takes minutes. p is made up below.
    cells = np.full((n_heads, layout.n_cells), CELL_BEYOND, dtype=np.uint8)
    for layer in range(n_layers):
        ranks = [_sparse_ranks(rng, (n_heads, layout.n_pairs), share) for share in (0.016, 0.004)]
        control = _sparse_ranks(rng, (1, layout.n_pairs), 0.03)[0]
        writer.write(layer, LayerRanks(ranks[0], ranks[1], control, cells, cells))
    _made_up_salience(path, n_layers, n_heads, rng)
    _made_up_looking(path, n_layers, n_heads, rng)
    atlas = Atlas.open(path)
    shape = (n_layers, n_heads)
    score = rng.beta(0.05, 3.0, shape) * (rng.random(shape) < 0.6)

    def null() -> Calibration:
        return Calibration(score, np.where(rng.random(shape) < 0.1, rng.random(shape) ** 9, 1.0))

    vars(atlas)["relation_scores"] = {
        entry.name: RelationScores(score, score, score[:, 0], score, null(), null())
        for entry in layout.relations
    }
    return atlas


def _sparse_ranks(rng: np.random.Generator, shape: tuple[int, int], share: float) -> NDArray[np.int16]:
    chance = share * rng.choice([0.2, 3.4], p=[0.75, 0.25], size=(shape[0], 1))
    return np.where(rng.random(shape) < chance, rng.integers(0, 32, shape), RANK_BEYOND).astype(np.int16)


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
    store_dataset(looking_path(evidence_group(path)), dataset, {"texts": texts})
