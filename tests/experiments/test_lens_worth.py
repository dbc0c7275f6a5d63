"""The parts of the benchmark of lenses against direct computation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import headatlas as ha
from experiments.worth_ablation import first_heads
from experiments.worth_agreement import given, over_heads, thirds
from experiments.worth_gap import LENGTH, attention_inputs
from experiments.worth_scores import Bench, choose_words
from experiments.worth_variants import input_norm, mean_states, neutral_parts, without_heads
from headatlas.architectures import Model, open_model
from headatlas.evidence.recording import watch
from headatlas.evidence.texts import Template, Text
from headatlas.lenses.forward import running
from headatlas.weights import open_checkpoint
from tests.mapping.checkpoints import random_relations, tiny_model, word_tokenizer

TEMPLATES = [Template("of ", ""), Template("a ", " of")]


@pytest.fixture(params=["llama", "gemma3"])
def model(request: pytest.FixtureRequest) -> tuple[Model, PreTrainedModel]:
    torch.set_num_threads(1)
    modules = tiny_model(request.param).eval()
    return open_model(open_checkpoint(modules, word_tokenizer())), modules


def bench_of(model: Model, folder: Path) -> Bench:
    return Bench(model, choose_words(model, random_relations(several_tokens=False), TEMPLATES, 1000), folder)


def test_scores_are_those_of_a_map(model: tuple[Model, PreTrainedModel], tmp_path: Path) -> None:
    opened, modules = model
    bench = bench_of(opened, tmp_path)
    with running(opened) as run:
        found = bench.of_states("neutral", mean_states(neutral_parts(bench, run)), right=True)
    atlas = ha.map_heads(modules, word_tokenizer(), relations=random_relations(several_tokens=False))
    assert found.max() > 0
    for at, name in enumerate(bench.words.names):
        np.testing.assert_allclose(found[0, :, :, at], atlas.relation_scores[name].score)
        np.testing.assert_allclose(found[1, :, :, at], atlas.relation_scores[name].suppression)


def test_heads_at_zero_leave_the_mlps(model: tuple[Model, PreTrainedModel], tmp_path: Path) -> None:
    opened, _ = model
    bench = bench_of(opened, tmp_path)
    ids = torch.tensor([source[0] for source in bench.words.sources])
    with running(opened) as run:
        seen, first, second = without_heads(bench, run, bench.words.sources)
        norms = [input_norm(opened, run, layer) for layer in range(2)]
        embedded = run.base_model.get_input_embeddings()(ids)
        block = run.get_submodule(opened.block_module(0))
        gemma = hasattr(block, "pre_feedforward_layernorm")
        before = block.pre_feedforward_layernorm if gemma else block.post_attention_layernorm
        after = block.post_feedforward_layernorm if gemma else torch.nn.Identity()
        expected = embedded + after(block.mlp(before(embedded)))
        torch.testing.assert_close(first, embedded)
        torch.testing.assert_close(second, expected)
        torch.testing.assert_close(seen.states(0), norms[0](first))
        torch.testing.assert_close(seen.states(1), norms[1](second))


def test_predicted_attention_is_the_models(model: tuple[Model, PreTrainedModel], tmp_path: Path) -> None:
    """From the states of a real text, at their places, come its own attention and head outputs."""
    opened, modules = model
    modules.config.sliding_window = 2 * LENGTH  # made-up texts are shorter than any real window
    ids = torch.randint(10, 300, (LENGTH,), generator=torch.Generator().manual_seed(0)).tolist()
    with running(opened) as run:
        # What enters the value projection at position p, p = 0 … 7: the same text, watched at each place.
        seen = watch(opened, run, [Text(tuple(ids), place) for place in range(LENGTH)], tmp_path)
        for layer, attention in enumerate(attention_inputs(opened, run)):
            states = seen.states(layer)
            query = attention.queries(states[-1:], LENGTH - 1) * attention.module.scaling
            keys = torch.cat([attention.keys(states[at : at + 1], at) for at in range(LENGTH)], dim=1)
            weights = (query @ keys.transpose(1, 2)).softmax(dim=-1)
            torch.testing.assert_close(weights[:, 0], seen.attention(layer), atol=1e-5, rtol=1e-4)
            outputs = (weights @ attention.values(states))[:, 0]
            torch.testing.assert_close(outputs, seen.outputs(layer)[:, 0], atol=1e-5, rtol=1e-4)


def test_partial_correlation_is_that_of_residuals() -> None:
    rng = np.random.default_rng(0)
    score = rng.random((5, 4, 2))
    predictor = score * rng.random(score.shape)
    outcome = predictor + 0.1 * rng.random(score.shape)
    found = given(over_heads(predictor, outcome), over_heads(score, outcome), over_heads(predictor, score))
    for at in range(2):
        x, y, z = (each[..., at].ravel() for each in (predictor, outcome, score))
        left = [each - np.polyval(np.polyfit(z, each, 1), z) for each in (x, y)]
        assert found[at] == pytest.approx(np.corrcoef(*left)[0, 1])


def test_what_says_nothing_counts_as_zero() -> None:
    rng = np.random.default_rng(0)
    dynamic = rng.random((3, 2, 2))
    dynamic[..., 1] = 0.5
    found = over_heads(np.zeros((3, 2, 2)), dynamic)
    assert found[0] == 0.0 and np.isnan(found[1])


def test_first_heads_and_thirds() -> None:
    scores = np.array([[0.1, 0.5], [0.5, 0.9]])
    assert first_heads(scores, 3) == [(1, 1), (0, 1), (1, 0)]
    assert thirds(30) == [slice(0, 10), slice(10, 20), slice(20, 30)]
