"""Atlases in which every score is planted, so that each number of a figure can be told beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from headatlas.atlas import Atlas
from headatlas.atlas.layout import build_layout
from headatlas.atlas.relation_scores import Calibration, RelationScores
from headatlas.atlas.store import CELL_BEYOND, AtlasWriter, LayerRanks, create_store
from headatlas.options import FLOOR
from headatlas.relations.relation import Pair, Relation, TokenisedPair, TokenisedRelation
from headatlas.scoring.scores import RANK_BEYOND, RANK_UNUSABLE
from tests.synthetic import tokenised_relations

N_SOURCES = 40


@dataclass(frozen=True)
class Plant:
    """A head that hits this many of a relation's sources, from ``first`` on, and none of any other."""

    layer: int
    head: int
    relation: str
    hits: int = N_SOURCES
    sign: Literal["promotion", "suppression"] = "promotion"
    first: int = 0

    @property
    def sources(self) -> range:
        return range(self.first, self.first + self.hits)


@dataclass(frozen=True)
class Spec:
    """A relation: its title serves as its name; ``multi`` of its sources (the first ones) have two tokens."""

    title: str
    category: str
    multi: int = 0
    left_out: str | None = None
    subcategory: str = ""

    def tokenised(self) -> TokenisedRelation:
        pairs = tuple(Pair(f"s{i}", (f"t{i}",)) for i in range(N_SOURCES))
        usable = tuple(
            TokenisedPair(i, (100 + i, 7) if i < self.multi else (100 + i,), (500 + i,), (f"t{i}",))
            for i in range(N_SOURCES)
        )
        name = self.title.lower().replace(" → ", "_to_").replace(" ", "_")
        relation = Relation(name, self.title, self.category, pairs, subcategory=self.subcategory)
        return TokenisedRelation(relation, () if self.left_out else usable, {}, self.left_out)


FOUR = (
    Spec("word → first letter", "Algorithmic"),
    Spec("country → capital", "Knowledge"),
    Spec("verb → past tense", "Linguistic"),
    Spec("English → French", "Translation"),
)


def plant_atlas(
    path: Path,
    plants: Sequence[Plant],
    *,
    n_layers: int = 6,
    n_heads: int = 4,
    specs: Sequence[Spec] = FOUR,
    mapped: Sequence[int] | None = None,
    control: float = 0.25,
    lens: str = "neutral",
) -> Atlas:
    """An atlas with the planted heads; in every layer the state alone hits a share ``control`` of the sources
    (the last ones)."""
    tokenised = [spec.tokenised() for spec in specs]
    layout = build_layout(tokenised)
    provenance: dict[str, Any] = {
        "model": {"name": "Planted", "spec": "planted", "revision": None},
        "lens": {"name": lens, "prefixes": ["\n", "The", ","] if lens == "neutral" else []},
        "ceiling": 32,
        "target_policy": "single",
        "thresholds": {},
        "mask": True,
    }
    create_store(path, layout, n_layers=n_layers, n_heads=n_heads, attributes=provenance)
    names = [item.relation.name for item in tokenised]
    source = layout.pair_source
    usable = np.where(source < 0, RANK_UNUSABLE, RANK_BEYOND).astype(np.int16)
    writer = AtlasWriter(path)
    for layer in range(n_layers) if mapped is None else mapped:
        ranks = {sign: np.tile(usable, (n_heads, 1)) for sign in ("promotion", "suppression")}
        cells = {
            sign: np.full((n_heads, layout.n_cells), CELL_BEYOND, dtype=np.uint8)
            for sign in ("promotion", "suppression")
        }
        for plant in (p for p in plants if p.layer == layer):
            at = names.index(plant.relation)
            hit = (layout.pair_relation == at) & np.isin(source, plant.sources)
            ranks[plant.sign][plant.head, hit] = 0
            if plant.hits < FLOOR * N_SOURCES:
                continue  # the engine stores no cells of these
            block = next(b for b in layout.blocks if b.relation == at)
            square = np.full((len(block.sources), len(block.targets)), CELL_BEYOND, dtype=np.uint8)
            for i, s in enumerate(block.sources):
                if s in plant.sources:
                    square[i, np.searchsorted(block.targets, 500 + s)] = 0
            cells[plant.sign][plant.head, block.cells] = square.ravel()
        state = np.where((source >= round((1 - control) * N_SOURCES)), 0, usable).astype(np.int16)
        writer.write(
            layer,
            LayerRanks(
                ranks["promotion"], ranks["suppression"], state, cells["promotion"], cells["suppression"]
            ),
        )
    return Atlas.open(path)


def large_atlas(
    path: Path, n_layers: int, n_heads: int, *, n_sources: int = 40, strong: float = 0.15
) -> Atlas:
    """An atlas of the core relations in which about this share of the heads are called, most of them in later
    layers and many for several categories; the others score a little.

    Scores are those of the ranks. p is made up, for calibrating so many heads takes minutes.
    """
    layout = build_layout(tokenised_relations(n_sources, n_sources // 2, left_out=()))
    attributes: dict[str, Any] = {
        "model": {"name": "Large", "dims": {"n_kv_heads": 8 if n_heads % 8 == 0 else n_heads}},
        "lens": {"name": "neutral"},
        "ceiling": 32,
        "thresholds": {},
        "mask": True,
    }
    create_store(path, layout, n_layers=n_layers, n_heads=n_heads, attributes=attributes)
    rng, writer = np.random.default_rng(0), AtlasWriter(path)
    n_relations, of_pair = len(layout.relations), layout.pair_relation
    doing = rng.random((n_layers, n_heads, 1)) < strong * np.linspace(0.2, 1.8, n_layers)[:, None, None]
    doing[-1, -1] = True  # in small models, too
    k = np.array([1 if "copying" in entry.name else 10 for entry in layout.relations])
    relation = (of_pair[:, None] == np.arange(n_relations)).astype(np.float32)
    does, share = [], []
    for chance, background in ((0.125, 0.016), (0.03, 0.004)):
        called = doing & (rng.random((n_layers, n_heads, n_relations)) < chance)
        does.append(called)
        share.append(np.where(called, rng.uniform(0.2, 0.95, called.shape), 0.0))
        scatter = rng.choice([0.2, 3.4], p=[0.75, 0.25], size=(n_layers, n_heads, 1))
        share[-1] = np.maximum(share[-1], background * scatter)
    cells = np.full((n_heads, layout.n_cells), CELL_BEYOND, dtype=np.uint8)
    scores = []
    for layer in range(n_layers):
        ranks = [
            _ranks(rng, share[sign][layer][:, of_pair], does[sign][layer][:, of_pair]) for sign in (0, 1)
        ]
        control = _ranks(rng, np.full((1, layout.n_pairs), 0.3 * layer / n_layers), np.array(False))[0]
        writer.write(layer, LayerRanks(ranks[0], ranks[1], control, cells, cells))
        hits = [(each >= 0) & (each < k[of_pair]) for each in (*ranks, control)]
        scores.append([(each @ relation) / n_sources for each in (*hits, hits[0] & ~hits[2])])
    atlas = Atlas.open(path)
    vars(atlas)["relation_scores"] = {
        entry.name: RelationScores(
            *(np.stack([layer[which][..., at] for layer in scores]) for which in range(4)),
            *(
                Calibration(np.zeros(called.shape[:2]), np.where(called[..., at], 1e-9, 1.0))
                for called in does
            ),
        )
        for at, entry in enumerate(layout.relations)
    }
    return atlas


def _ranks(rng: np.random.Generator, share: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Ranks below the ceiling for this share of the pairs: 0 in the heads called, or anything."""
    found = np.where(first, 0, rng.integers(0, 32, share.shape))
    return np.where(rng.random(share.shape) < share, found, RANK_BEYOND).astype(np.int16)
