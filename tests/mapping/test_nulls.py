"""Where there is nothing to find, nothing is called."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headatlas.mapping.run import map_heads
from headatlas.options import Thresholds
from tests.mapping.checkpoints import relation, word, word_tokenizer
from tests.mapping.planting import FAMILIES, N_SOURCES, VOCAB, opened, plant, random_model, states_of

RUNS = 16
SOURCES = list(range(60, 60 + N_SOURCES))
LETTERS = list(range(20, 32))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_random_models_have_no_called_heads() -> None:
    """q ≤ 0.01 allows any call at all in one of a hundred models without structure."""
    with_calls = 0
    for seed in range(RUNS):
        family = list(FAMILIES)[seed % len(FAMILIES)]
        generator = torch.Generator().manual_seed(seed)
        drawn = (torch.randint(10, VOCAB, (4, N_SOURCES), generator=generator)).tolist()
        sources = (torch.randperm(VOCAB - 10, generator=generator)[:N_SOURCES] + 10).tolist()
        relations = [
            relation(f"random_{i}", [(word(s), [word(t)]) for s, t in zip(sources, targets, strict=True)])
            for i, targets in enumerate(drawn)
        ]
        few = [drawn[0][i % 4] for i in range(N_SOURCES)]
        relations.append(
            relation("few_targets", [(word(s), [word(t)]) for s, t in zip(sources, few, strict=True)])
        )
        lens = ("maps", "neutral")[seed // 2 % 2]
        atlas = map_heads(random_model(family, seed), word_tokenizer(VOCAB), lens=lens, relations=relations)
        with_calls += bool(len(atlas.sel(called=True)))
        assert (atlas.table()["score"] > 0.05).any(), "some heads do score, by chance"
    assert with_calls <= 1


@pytest.mark.parametrize("lens", ["maps", "neutral"])
def test_a_zero_head_scores_nothing(lens: str) -> None:
    model = random_model("llama")
    with torch.no_grad():
        model.get_submodule("model.layers.1.self_attn.o_proj").weight[:, 40:80] = 0
    pairs = [(word(s), [word(s + 100), word(s + 101)]) for s in SOURCES]
    atlas = map_heads(
        model,
        word_tokenizer(VOCAB),
        lens=lens,
        relations=[relation("any", pairs)],
        thresholds=Thresholds(k=32),
    )
    found = atlas.table().query("layer == 1 and head == 1")
    assert found[["score", "suppression", "added"]].values.tolist() == [[0.0, 0.0, 0.0]]
    assert (atlas.table()["score"] > 0).sum() > 6


@pytest.mark.parametrize("lens", ["maps", "neutral"])
def test_a_head_that_always_promotes_the_same_letters_is_not_called(lens: str, tmp_path: Path) -> None:
    """Most words begin with one of eight letters; a head that promotes these whatever it reads scores."""
    common = LETTERS[:8]
    letter_of = [LETTERS[(5 * i) % 12] if i % 4 == 3 else common[(3 * i) % 8] for i in range(N_SOURCES)]
    model = random_model("llama")
    rows = opened(model).unembed()
    x = states_of(model, lens, SOURCES, tmp_path / "states").layer(1).x
    always = (rows[common] / rows[common].norm(dim=1, keepdim=True)).sum(dim=0)
    plant(model, "llama", 1, 0, x, always.expand(N_SOURCES, -1), lens)
    pairs = [(word(s), [word(t)]) for s, t in zip(SOURCES, letter_of, strict=True)]
    atlas = map_heads(
        model, word_tokenizer(VOCAB), lens=lens, relations=[relation("word_to_first_letter", pairs)]
    )
    head = atlas.table().query("layer == 1 and head == 0")
    assert head["score"].item() > 0.7 and head["chance"].item() == pytest.approx(head["score"].item())
    assert head["q"].item() > 0.5 and not head["implements"].item()
    assert not len(atlas.sel(called=True))
    by_score = atlas.at(criterion="tau").sel(called=True)
    assert by_score[["layer", "head"]].values.tolist()[0] == [1, 0], "the paper's criterion does call it"
