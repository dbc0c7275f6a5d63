"""A head written into the weights scores 1.0 on its relation and is the only head called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from headatlas.arrangement.model_structure import single_token_atlas
from headatlas.mapping.run import map_heads
from headatlas.options import FLOOR, Thresholds
from headatlas.outputs import write_outputs
from tests.mapping.checkpoints import FIRST_WORD, relation, word, word_tokenizer
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


def test_a_head_that_hits_single_token_sources_alone(tmp_path: Path) -> None:
    """2 of 110 sources are below the floor, 2 of the 36 of one token are not: the outputs are all written."""
    model = random_model("llama")
    generator = torch.Generator().manual_seed(0)
    tokens = (torch.randperm(VOCAB - FIRST_WORD, generator=generator) + FIRST_WORD).tolist()
    single, targets, decoy = tokens[:36], tokens[36:146], tokens[146]
    rows = opened(model).unembed()[[*targets[:2], *[decoy] * 34]]
    x = states_of(model, "neutral", single, tmp_path / "states").layer(2).x
    plant(model, "llama", 2, HEAD, x, rows / rows.norm(dim=1, keepdim=True), "neutral")
    double = [f"{word(a)} {word(b)}" for a, b in zip(tokens[146:220], tokens[220:] * 2, strict=False)]
    sources = [*(word(token) for token in single), *double]
    pairs = [(source, [word(target)]) for source, target in zip(sources, targets, strict=True)]
    atlas = map_heads(
        model,
        word_tokenizer(VOCAB),
        relations=[relation("planted", pairs)],
        thresholds=Thresholds(k=1),
        ceiling=1,
        out=tmp_path,
    )
    part = single_token_atlas(atlas)
    row, kept = (
        each.table().query(f"layer == 2 and head == {HEAD}").to_dict("records")[0] for each in (atlas, part)
    )
    assert (row["n_sources"], kept["n_sources"]) == (110, 36)
    assert row["score"] == 2 / 110 < FLOOR
    assert kept["score"] == 2 / 36 > FLOOR
    assert kept["p"] == 1.0 and np.isnan(kept["chance"])
    called = atlas.at(tau=0.015, criterion="tau")
    written = {path.name for path in write_outputs(called, tmp_path)}
    assert {"description.txt", "report.html", "categories.pdf"} < written
    assert "On sources of one token alone (36 of 110" in (tmp_path / "description.txt").read_text()
