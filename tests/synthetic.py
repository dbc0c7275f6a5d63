"""Synthetic atlases: plausible ranks without a model, for tests and for looking at figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from headatlas.atlas import Atlas
from headatlas.atlas.behaviours import Looking
from headatlas.atlas.layout import Layout, build_layout
from headatlas.atlas.store import CELL_BEYOND, AtlasWriter, LayerRanks, create_store
from headatlas.atlas.stored import store_dataset
from headatlas.relations.relation import Pair, Relation, TokenisedPair, TokenisedRelation
from headatlas.scoring.scores import RANK_BEYOND, RANK_UNUSABLE

RELATIONS = {
    "Algorithmic": [
        "copying",
        "name copying",
        "word → first letter",
        "word → last letter",
        "year → following",
    ],
    "Knowledge": [
        "country → capital",
        "country → language",
        "object → superclass",
        "product → company",
        "work → location",
    ],
    "Linguistic": [
        "adjective → comparative",
        "adjective → superlative",
        "noun → pronoun",
        "verb → past tense",
        "word → antonym",
        "word → compound",
        "word → homophone",
        "word → synonym",
    ],
    "Translation": ["English → French", "English → Spanish"],
}


def slug(title: str) -> str:
    return title.lower().replace(" → ", "_to_").replace(" ", "_")


def tokenised_relations(
    n_sources: int = 40, n_targets: int = 20, left_out: tuple[str, ...] = ("year → following",)
) -> list[TokenisedRelation]:
    """The core relations' names with made-up pairs; those named in ``left_out`` are left out."""
    out = []
    for category, titles in RELATIONS.items():
        for title in titles:
            pairs = tuple(Pair(f"s{i}", (f"t{i % n_targets}",)) for i in range(n_sources))
            relation = Relation(slug(title), title, category, pairs, copying="copying" in title)
            usable = tuple(
                TokenisedPair(i, (100 + i,), (500 + i % n_targets,), (f"t{i % n_targets}",))
                for i in range(n_sources)
            )
            why = "0 usable sources, at least 30 needed" if title in left_out else None
            out.append(
                TokenisedRelation(relation, () if why else usable, {"source is several tokens": ()}, why)
            )
    return out


def _layer(layout: Layout, n_heads: int, depth: float, rng: np.random.Generator) -> LayerRanks:
    shape = (n_heads, layout.n_pairs)
    unusable = layout.pair_source < 0
    ranks = {sign: np.full(shape, RANK_BEYOND, dtype=np.int16) for sign in ("promotion", "suppression")}
    cells = {
        sign: np.full((n_heads, layout.n_cells), CELL_BEYOND, dtype=np.uint8)
        for sign in ("promotion", "suppression")
    }
    control = np.where(rng.random(layout.n_pairs) < 0.3 * depth, 0, RANK_BEYOND).astype(np.int16)
    for head in range(n_heads):
        for block in layout.blocks:
            strength = rng.beta(0.25, 2.5) * (1.3 if 0.5 < depth < 0.95 else 0.5)
            sign = "suppression" if rng.random() < 0.15 else "promotion"
            pairs = np.flatnonzero((layout.pair_relation == block.relation) & ~unusable)
            hit = rng.random(len(pairs)) < strength
            rank = rng.integers(0, 8, len(pairs))
            ranks[sign][head, pairs[hit]] = rank[hit]
            square = np.full((len(block.sources), len(block.targets)), CELL_BEYOND, dtype=np.uint8)
            column = np.searchsorted(block.targets, layout.pair_target_id[pairs])
            square[layout.pair_source[pairs][hit], column[hit]] = rank[hit]
            cells[sign][head, block.cells] = square.ravel()
    for value in ranks.values():
        value[:, unusable] = RANK_UNUSABLE
    control[unusable] = RANK_UNUSABLE
    return LayerRanks(
        ranks["promotion"], ranks["suppression"], control, cells["promotion"], cells["suppression"]
    )


def make_atlas(
    path: Path, n_layers: int = 6, n_heads: int = 4, *, seed: int = 0, layers: range | None = None
) -> Atlas:
    """An atlas of made-up ranks at ``path`` (a ``.zarr`` folder)."""
    layout = build_layout(tokenised_relations())
    provenance = {
        "model": {"name": "Synthetic-1M", "spec": "synthetic", "revision": None, "weights_hash": "sha256:0"},
        "lens": {"name": "neutral", "prefixes": ["\n", "The"]},
        "tokenizer_hash": "sha256:1",
        "ceiling": 32,
        "masked_ids": [0, 1],
        "target_policy": "single",
        "thresholds": {},
        "mask": True,
        "versions": {"headatlas": "0"},
    }
    create_store(path, layout, n_layers=n_layers, n_heads=n_heads, attributes=provenance)
    writer = AtlasWriter(path)
    for layer in layers if layers is not None else range(n_layers):
        rng = np.random.default_rng([seed, layer])
        writer.write(layer, _layer(layout, n_heads, layer / max(1, n_layers - 1), rng))
    return Atlas.open(path)


def make_behaviours(
    group: Path, n_layers: int, n_heads: int, names: Sequence[str], looks: tuple[int, int]
) -> None:
    """Store measured attention: one head is called for the first name; ``distance`` is not tested."""
    shape = (len(names), n_layers, n_heads)
    value, p = np.full(shape, 0.2), np.full(shape, 0.5)
    value[0][looks], p[0][looks] = 0.9, 1e-9
    untested = names.index("distance")
    value[untested], p[untested] = 3.0, np.nan
    arrays = {
        "value": value,
        "expected": np.full(shape, 0.2),
        "low": value - 0.1,
        "high": value + 0.1,
        "p": p,
    }
    data = xr.Dataset(
        {name: (("behaviour", "layer", "head"), array) for name, array in arrays.items()}
        | {"n_sequences": ("behaviour", np.full(len(names), 9))},
        coords={"behaviour": np.array(names, dtype=np.dtypes.StringDType())},
    )
    texts = {"source": "", "texts": 9, "repeated": 1, "length": 64}
    store_dataset(Looking.place(group), data, {"texts": texts, "digest": "x"})
