"""Where there is nothing to find, calls stay within the nominal rate; planted heads alone are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from headatlas.architectures import Dims, LayerHeads
from headatlas.atlas import Atlas, store
from headatlas.atlas.layout import Layout, build_layout
from headatlas.atlas.store import LayerRanks, create_store, read_store
from headatlas.mapping.engine import map_layer
from headatlas.mapping.vocabulary import Vocabulary
from headatlas.options import Thresholds
from tests.atlas.made import layer_from_squares, provenance, tokenised
from tests.mapping.cases import layer_inputs, random_problem, relation

RUNS = 200
HEADS, N, IDS = 16, 30, 24


def not_beyond(calls: list[bool], nominal: float) -> bool:
    """Whether the share of runs with a call is within what chance allows around the nominal rate."""
    return bool(stats.binomtest(sum(calls), len(calls), nominal, alternative="greater").pvalue > 0.001)


def filled(empty: xr.Dataset, ranks: LayerRanks) -> Atlas:
    """An atlas in memory of one layer, mapped."""
    arrays = {
        name: (empty[name].dims, getattr(ranks, field.name)[None])
        for field, name in zip(fields(LayerRanks), store._LAYER_ARRAYS, strict=True)
    }
    done = ("layer", np.ones(1, dtype=np.uint8))
    return Atlas(empty.assign({**arrays, "layer_done": done}), provenance(), Thresholds())


def empty_dataset(path: Path, layout: Layout, n_heads: int) -> xr.Dataset:
    create_store(path, layout, n_layers=1, n_heads=n_heads, attributes=provenance())
    return read_store(path)[0].load()


def ranks_of(logits: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.argsort(np.argsort(-logits, axis=-1), axis=-1)


def noise(rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.standard_normal((HEADS, N, IDS))


def favourites(rng: np.random.Generator) -> NDArray[np.float64]:
    return noise(rng) + 4 * rng.standard_normal((HEADS, 1, IDS))


def groups(rng: np.random.Generator) -> NDArray[np.float64]:
    """Sources of one group get the same words: hits come in bunches."""
    centres = 3 * rng.standard_normal((HEADS, 3, IDS))
    return noise(rng) + centres[:, rng.integers(0, 3, N)]


def low_rank(rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.standard_normal((HEADS, N, 2)) @ rng.standard_normal((HEADS, 2, IDS))


KINDS: tuple[Callable[[np.random.Generator], NDArray[np.float64]], ...] = (
    noise,
    favourites,
    groups,
    low_rank,
)


def test_simulated_atlases_call_nothing_beyond_the_nominal_rate(tmp_path: Path) -> None:
    """Heads with structure of their own; which source has which targets is dealt at random."""
    rng = np.random.default_rng(0)
    relations = [
        tokenised("one_to_one", [[i % IDS] for i in range(N)]),
        tokenised("few_targets", [[i % 4] for i in range(N)]),
        tokenised("several_targets", [[i % IDS, (5 * i + 1) % IDS] for i in range(N)]),
    ]
    layout = build_layout(relations)
    empty = empty_dataset(tmp_path / "a.zarr", layout, HEADS)
    any_call: dict[float, list[bool]] = {0.01: [], 0.05: [], 0.2: []}
    by_score = 0
    for run in range(RUNS):
        logits = KINDS[run % len(KINDS)](rng)[:, rng.permutation(N)]
        # All ids are ranked among 24 words: k = 3 leaves hits to chance.
        squares = np.stack([ranks_of(logits), ranks_of(-logits)])
        atlas = filled(empty, layer_from_squares(layout, squares)).at(k=3)
        table = atlas.table()
        smallest = table[["q", "suppression_q"]].min(axis=None)
        by_score += int((table["score"] >= 0.15).sum())
        for level, found in any_call.items():
            found.append(bool(smallest <= level))
    assert by_score > RUNS, "the score alone calls many of these heads"
    for level, found in any_call.items():
        assert not_beyond(found, level), (level, sum(found))


@pytest.mark.parametrize("norm", ["layer", "sandwich", "none"])
def test_random_weights_call_nothing_beyond_the_nominal_rate(norm: str, tmp_path: Path) -> None:
    dims = Dims(1, 4, 2, 24, 6, 300)
    calls, hits = [], 0
    for seed in range(15):
        layout, inputs, vocabulary = random_problem(seed, vocab=300, norm=norm, dims=dims)
        ranks = map_layer(layout, inputs, vocabulary, ceiling=32)
        atlas = filled(empty_dataset(tmp_path / f"{seed}.zarr", layout, dims.n_heads), ranks)
        table = atlas.at(k=32, k_copy=32).table()
        hits += int((table["score"] >= 0.03).sum())
        calls.append(bool((table[["q", "suppression_q"]] <= 0.01).any(axis=None)))
    assert hits > 100, "there was something to call"
    assert not_beyond(calls, 0.01), sum(calls)


def test_planted_heads_alone_are_called_and_shuffled_targets_never(tmp_path: Path) -> None:
    """One head writes the targets, another their negation; 20 more relations have the targets shuffled."""
    rng = np.random.default_rng(3)
    n, d, vocab = 40, 64, 600
    sources, targets = rng.permutation(vocab)[:n].tolist(), rng.permutation(vocab)[:n].tolist()
    right = [(s, (t,)) for s, t in zip(sources, targets, strict=True)]
    relations = [relation("right", right)]
    for i in range(20):
        shuffled = rng.permutation(targets).tolist()
        relations.append(
            relation(f"shuffled_{i}", [(s, (t,)) for s, t in zip(sources, shuffled, strict=True)])
        )
    layout = build_layout(relations)
    competing = np.ones(vocab, dtype=bool)
    unembed = torch.from_numpy(rng.standard_normal((vocab, d)).astype(np.float32))
    dims = Dims(1, 3, 1, d, d, vocab)
    inputs = layer_inputs(n, dims=dims, seed=0, norm="none", bias=False)
    rows = [layout.sources.index((s,)) for s in sources]
    planted = torch.linalg.lstsq(inputs.states[rows], unembed[targets]).solution
    W_O = torch.stack([planted, -planted, inputs.heads.W_O[2]])
    heads = LayerHeads(torch.eye(d)[None], None, W_O)
    ranks = map_layer(
        layout, replace(inputs, heads=heads), Vocabulary.competing(unembed, competing), ceiling=32
    )
    atlas = filled(empty_dataset(tmp_path / "a.zarr", layout, 3), ranks)
    table = atlas.table().set_index(["relation", "head"])
    assert table.loc[("right", 0), "score"] == 1.0
    assert table.loc[("right", 1), "suppression"] == 1.0
    for head, q, called in ((0, "q", "implements"), (1, "suppression_q", "suppresses")):
        assert table.index[table[q] <= 0.01].tolist() == [("right", head)]
        assert table.index[table[called]].tolist() == [("right", head)]
