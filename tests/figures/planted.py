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


def large_atlas(path: Path, n_layers: int, n_heads: int, *, strong: float = 0.15) -> Atlas:
    """An atlas of the core relations in which about this share of the heads are called, many for several
    categories; the others score a little. Scores are made up, for calibrating so many heads takes minutes."""
    layout = build_layout(tokenised_relations(left_out=()))
    attributes: dict[str, Any] = {
        "model": {"name": "Large"},
        "lens": {"name": "neutral"},
        "ceiling": 32,
        "thresholds": {},
        "mask": True,
    }
    create_store(path, layout, n_layers=n_layers, n_heads=n_heads, attributes=attributes)
    writer = AtlasWriter(path)
    ranks = np.full((n_heads, layout.n_pairs), RANK_BEYOND, dtype=np.int16)
    cells = np.full((n_heads, layout.n_cells), CELL_BEYOND, dtype=np.uint8)
    for layer in range(n_layers):
        writer.write(layer, LayerRanks(ranks, ranks, ranks[0], cells, cells))
    atlas = Atlas.open(path)
    names = [relation.name for relation in layout.relations]
    vars(atlas)["relation_scores"] = strong_scores(names, n_layers, n_heads, strong)
    return atlas


def strong_scores(
    relations: Sequence[str], n_layers: int, n_heads: int, strong: float
) -> dict[str, RelationScores]:
    """Scores in which a share ``strong`` of the heads, most of them in later layers, do one relation in
    eight of those asked, and now and then suppress one."""
    rng = np.random.default_rng(0)
    shape = (n_layers, n_heads)
    depth = np.linspace(0.2, 1.8, n_layers)[:, None] if n_layers > 1 else 1.0
    doing = rng.random(shape) < strong * depth

    def sign(share: float) -> tuple[np.ndarray, Calibration]:
        does = doing & (rng.random(shape) < share)
        weak = 0.14 * rng.beta(0.1, 3.0, shape)
        score = np.where(does, rng.uniform(0.2, 0.95, shape), weak)
        return score, Calibration(np.full(shape, 0.02), np.where(does, 1e-9, 1.0))

    made = {}
    for name in relations:
        (score, promotes), (suppression, suppresses) = sign(0.125), sign(0.03)
        control = 0.5 * np.linspace(0.0, 1.0, n_layers) * rng.random()
        made[name] = RelationScores(score, suppression, control, 0.8 * score, promotes, suppresses)
    return made
