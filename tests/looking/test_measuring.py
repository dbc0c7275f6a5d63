"""What is summed up is what the modules attend to; the expected level is what its definition says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import headatlas as ha
from headatlas.architectures import Model, open_model
from headatlas.evidence.texts import LENGTH
from headatlas.looking.measuring import (
    SHARES,
    SPREAD,
    Sums,
    compared,
    elsewhere,
    findings,
    measure_attention,
    other_blocks,
    text_weights,
    uniform,
)
from headatlas.looking.sequences import Sequences, sequences_for
from headatlas.mapping.run import map_heads
from headatlas.weights import open_checkpoint
from tests.looking.planted import some_relation
from tests.mapping.checkpoints import VOCAB, tiny_model, word_tokenizer

FAMILIES = ["llama", "qwen2", "gemma3", "gpt2", "gpt_neox", "gpt_oss", "lfm2", "jamba"]
EVERY = np.ones(VOCAB, dtype=bool)


def opened(family: str) -> tuple[Model, Any]:
    modules = tiny_model(family).eval()
    return open_model(open_checkpoint(modules, word_tokenizer())), modules


def summed(model: Model, modules: Any, text: Path, folder: Path) -> tuple[Sequences, Any, Sums]:
    sequences = sequences_for(model, EVERY, text)
    weights = text_weights(model, sequences)
    kept = folder / "kept.npz"
    return sequences, weights, measure_attention(model, modules, sequences, weights, kept, lambda *_: None)


def attentions(modules: Any, ids: np.ndarray) -> np.ndarray:
    """[layer, head, query, key] of one sequence, as the modules give them."""
    modules.set_attn_implementation("eager")
    with torch.inference_mode():
        seen = modules(input_ids=torch.tensor(ids[None]), output_attentions=True).attentions
    return np.stack([each[0].double().numpy() for each in seen if each is not None])


@pytest.mark.parametrize("family", FAMILIES)
def test_sums_are_of_the_modules_own_attention(family: str, text: Path, tmp_path: Path) -> None:
    model, modules = opened(family)
    implementation = modules.config._attn_implementation
    sequences, weights, sums = summed(model, modules, text, tmp_path)
    assert modules.config._attn_implementation == implementation
    assert sums.done == len(sequences.texts) + len(sequences.repeated)
    whole = np.stack([attentions(modules, ids) for ids in sequences.texts])
    np.testing.assert_allclose(sums.attention, whole.sum(axis=0), rtol=1e-4, atol=1e-5)
    shares = np.einsum("nbqk,nlhqk->nblh", weights.astype(np.float64), whole)
    np.testing.assert_allclose(sums.shares, shares, rtol=1e-4, atol=1e-6)
    rest = 1 - whole[:, :, :, 1:].sum(axis=-1)
    assert (rest.mean() > 0.01) == (family == "gpt_oss")
    np.testing.assert_allclose(
        sums.spread[:, SPREAD.index("sink_parameter")], rest.mean(axis=-1), rtol=1e-3, atol=1e-5
    )
    at = len(sequences.repeated) // 2
    block, row = int(sequences.blocks[at]), attentions(modules, sequences.repeated[at])
    ids = sequences.repeated[at].tolist()
    mine = [row[:, :, q, ids.index(ids[q]) + 1] for q in range(len(ids) - block, len(ids))]
    number = np.unique(sequences.blocks).tolist().index(block)
    np.testing.assert_allclose(sums.repeated[at, number], np.mean(mine, axis=0), rtol=1e-4, atol=1e-6)


def test_distance_and_entropy(text: Path, tmp_path: Path) -> None:
    model, modules = opened("gpt_oss")
    sequences, _, sums = summed(model, modules, text, tmp_path)
    row = attentions(modules, sequences.texts[3])[1, 2]
    entropy, distance, variance = [], [], []
    for query in range(1, len(row)):
        whole = np.append(row[query, : query + 1], 1 - row[query].sum())
        entropy.append(stats.entropy(whole))
        share, away = row[query, : query + 1] / row[query].sum(), query - np.arange(query + 1)
        distance.append(share @ away)
        variance.append(share @ (away - distance[-1]) ** 2)
    for name, rows in (("entropy", entropy), ("distance", distance), ("distance_variance", variance)):
        assert sums.spread[3, SPREAD.index(name), 1, 2] == pytest.approx(np.mean(rows), rel=1e-3)


def test_expected_is_what_other_texts_get_there(text: Path, tmp_path: Path) -> None:
    model, modules = opened("llama")
    sequences, weights, sums = summed(model, modules, text, tmp_path)
    whole = np.stack([attentions(modules, ids) for ids in sequences.texts])
    at = SHARES.index("induction")
    found = elsewhere(sums.shares[:, at].astype(float), weights[:, at], sums.attention, len(whole))
    for number in (0, 7):
        others = np.delete(whole, number, axis=0).mean(axis=0)
        wanted = np.einsum("qk,lhqk->lh", weights[number, at].astype(float), others)
        np.testing.assert_allclose(found[number], wanted, rtol=1e-4, atol=1e-6)
    values, expected = other_blocks(sums, sequences)
    rows = {
        int(b): sums.repeated[sequences.blocks != b, n] for n, b in enumerate(np.unique(sequences.blocks))
    }
    np.testing.assert_allclose(expected[0], rows[int(sequences.blocks[0])].mean(axis=0), rtol=1e-6)
    assert values.shape == expected.shape == (25, 3, model.dims.n_heads)


def test_an_even_head_sees_what_a_window_lets_it(text: Path, tmp_path: Path) -> None:
    modules = tiny_model("gemma3")
    window = modules.config.sliding_window
    assert window < LENGTH and "sliding_attention" in modules.config.layer_types
    model = open_model(open_checkpoint(modules.eval(), word_tokenizer()))
    sequences, weights, sums = summed(model, modules, text, tmp_path)
    even = uniform(sums.attention)
    seen = {"sliding_attention": window, "full_attention": LENGTH}
    for layer, kind in enumerate(modules.config.layer_types):
        assert (even[layer] > 0).sum(axis=-1).max() == seen[kind]
    found = {each.name: each for each in findings(sums, weights, sequences)}
    sliding = modules.config.layer_types.index("sliding_attention")
    visible = np.minimum(np.arange(1, LENGTH) + 1, window)
    assert found["self"].expected[sliding, 0] == pytest.approx(np.mean(1 / visible))
    assert found["entropy"].expected[sliding, 0] == pytest.approx(np.mean(np.log(visible)))


def test_sums_that_are_not_whole_are_not_used(text: Path, tmp_path: Path) -> None:
    model, _ = opened("llama")
    sequences = sequences_for(model, EVERY, text)
    whole = Sums.empty(sequences, 3, model.dims.n_heads)
    whole.done = 7
    whole.save(tmp_path / "whole.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:5000])
    (tmp_path / "other.npz").write_bytes(b"no archive")
    done = {}
    for name in ("whole", "cut", "other", "missing"):
        sums = Sums.empty(sequences, 3, model.dims.n_heads)
        sums.load(tmp_path / f"{name}.npz")
        done[name] = sums.done
    smaller = Sums.empty(sequences, 2, model.dims.n_heads)
    smaller.load(tmp_path / "whole.npz")
    assert done == {"whole": 7, "cut": 0, "other": 0, "missing": 0} and smaller.done == 0


def test_a_comparison_is_a_paired_t_test() -> None:
    rng = np.random.default_rng(1)
    values, expected = rng.random((30, 2, 3)), rng.random((30, 2, 3))
    found = compared("any", values, expected)
    wanted = stats.ttest_rel(values, expected, alternative="greater")
    np.testing.assert_allclose(found.p, wanted.pvalue)
    interval = stats.ttest_1samp(values, 0).confidence_interval()
    np.testing.assert_allclose(found.low, interval.low)
    np.testing.assert_allclose(found.high, interval.high)
    same = compared("any", np.ones((30, 1, 2)), np.array([[[1.0, 0.5]]] * 30))
    assert same.p.tolist() == [[1.0, 0.0]]  # no difference, and always the same one


@pytest.mark.parametrize("family", ["gpt_oss", "jamba"])
def test_rows_of_special_models(family: str, text: Path, tmp_path: Path) -> None:
    modules = tiny_model(family)
    modules.train()
    before = {name: value.clone() for name, value in modules.state_dict().items()}
    atlas = map_heads(
        modules, word_tokenizer(), relations=[some_relation()], lens="maps", out=tmp_path / "out"
    )
    frame = ha.behaviour(atlas, modules, word_tokenizer(), text=text)
    assert ("sink_parameter" in set(frame["behaviour"])) == (family == "gpt_oss")
    assert set(frame["layer"]) == set(range(atlas.n_layers)) - set(atlas.layers_without_heads)
    assert (len(atlas.layers_without_heads) > 0) == (family == "jamba")
    # A model in memory comes back as it was.
    assert modules.training
    assert all(torch.equal(value, before[name]) for name, value in modules.state_dict().items())
