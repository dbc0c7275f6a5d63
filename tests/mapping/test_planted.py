"""A head written into the weights scores 1.0 on its relation and is the only head called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from headatlas.mapping.run import map_heads
from tests.mapping.checkpoints import relation, word, word_tokenizer
from tests.mapping.planting import FAMILIES, VOCAB, opened, plant, random_model, random_pairs, states_of

HEAD = 2
"""Its neighbour, head 3, reads the same values in families with value groups of two."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("verb", ["implements", "suppresses"])
@pytest.mark.parametrize("lens", ["maps", "neutral"])
@pytest.mark.parametrize(("family", "layer"), [(family, at) for family in FAMILIES for at in (0, 2)])
def test_the_planted_head_is_the_only_one_called(
    family: str, layer: int, lens: str, verb: str, tmp_path: Path
) -> None:
    model = random_model(family)
    sources, targets = random_pairs()
    rows = opened(model).unembed()[targets]
    rows = rows / rows.norm(dim=1, keepdim=True)
    x = states_of(model, lens, sources, tmp_path / "states").layer(layer).x
    plant(model, family, layer, HEAD, x, rows if verb == "implements" else -rows, lens)
    shuffled = np.random.default_rng(1).permutation(targets).tolist()
    relations = [
        relation("planted", [(word(s), [word(t)]) for s, t in zip(sources, targets, strict=True)]),
        relation("shuffled", [(word(s), [word(t)]) for s, t in zip(sources, shuffled, strict=True)]),
    ]
    atlas = map_heads(model, word_tokenizer(VOCAB), lens=lens, relations=relations)
    called = atlas.sel(called=True)
    assert called[["layer", "head", "relation"]].values.tolist() == [[layer, HEAD, "planted"]]
    assert called[["implements", "suppresses"]].values.tolist() == [
        [verb == "implements", verb == "suppresses"]
    ]
    column = {"implements": "score", "suppresses": "suppression"}[verb]
    assert called[column].item() == 1.0
    assert called[column.replace("score", "q") if verb == "implements" else "suppression_q"].item() < 1e-4
    neighbour = atlas.table().query(f"layer == {layer} and head == {HEAD + 1} and relation == 'planted'")
    assert neighbour[column].item() < 0.15
