"""Preferences by W_Q and W_K: a planted head is found, random ones have the nominal rate."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from transformers import LlamaConfig, MistralConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

import headatlas as ha
from headatlas.atlas import Atlas
from headatlas.atlas.evidence import Preferences
from headatlas.errors import HeadatlasError
from headatlas.evidence import attention_run as attention_module
from headatlas.evidence.attention_run import (
    DISTANCES,
    FOILS,
    KEYS,
    auroc,
    matched_words,
    permutation_p,
    ranks_within,
    within_windows,
)
from headatlas.mapping.run import map_heads
from headatlas.relations import TokenisedPair, TokenisedRelation
from tests.cli.conftest import invoke, parsed
from tests.evidence.conftest import Planted, run_attention
from tests.evidence.planted import HEADS, LAYER, template_file
from tests.mapping.checkpoints import FIRST_WORD, relation, tiny_model, word, word_tokenizer
from tests.mapping.planting import _SIZES, D_HEAD, VOCAB

COUNTRIES, LOOKS = 0, (1, 2)
N = 50


def some_relations() -> list[ha.relations.Relation]:
    """Relations over disjoint words, so that each lends the others matched words."""
    order = np.random.default_rng(0).permutation(np.arange(FIRST_WORD, VOCAB))
    parts = [order[at : at + N] for at in range(0, 4 * N, N)]
    targets = [word(int(t)) for t in order[4 * N : 4 * N + 40]]
    return [
        relation(f"part_{number}", [(word(int(s)), [targets[at % 40]]) for at, s in enumerate(part)])
        for number, part in enumerate(parts)
    ]


@torch.no_grad()
def looking_model() -> PreTrainedModel:
    """A random Qwen 2 with a head whose query asks, whatever the text, for a channel that only sources of the
    first relation have."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**_SIZES, num_key_value_heads=2)).eval()
    countries = [int(pair.source[1:]) for pair in some_relations()[COUNTRIES].pairs]
    model.model.embed_tokens.weight[countries, 0] = 1.0
    layer, head = LOOKS
    attention, slow = model.model.layers[layer].self_attn, D_HEAD // 2 - 1  # hardly turns within 16 positions
    query, key = head * D_HEAD, head // 2 * D_HEAD
    attention.q_proj.weight[query : query + D_HEAD] = 0
    attention.q_proj.bias[query : query + D_HEAD] = 0
    attention.q_proj.bias[query + slow] = 10
    attention.k_proj.weight[key : key + D_HEAD] = 0
    attention.k_proj.weight[key + slow, 0] = 1
    return model


def mapped_as(model: PreTrainedModel, folder: Path) -> Atlas:
    return map_heads(model, word_tokenizer(), relations=some_relations(), lens="maps", out=folder / "out")


def test_a_head_that_looks_for_a_kind_of_word_is_found(tmp_path: Path) -> None:
    model = looking_model()
    found = run_attention(
        mapped_as(model, tmp_path), model, word_tokenizer(), templates=template_file(tmp_path)
    )
    layer, head = LOOKS
    mine = found.data.sel(query="context", relation="part_0", layer=layer, head=head)
    assert float(mine["auroc"].min()) > 0.95 and float(mine["p"]) == 1e-4
    # Of the other relations' sources none has the channel.
    rest = found.data.sel(query="context", layer=layer, head=head).isel(relation=[1, 2, 3])
    assert float(rest["auroc"].mean()) < 0.6
    assert np.isnan(found.data["p"].sel(query="task")).all(), "there is no task template"


def test_random_heads_prefer_nothing(tmp_path: Path) -> None:
    model = tiny_model("llama", VOCAB)
    found = run_attention(
        mapped_as(model, tmp_path), model, word_tokenizer(), templates=template_file(tmp_path)
    )
    p = found.data["p"].sel(query="context").values
    assert p.size == 48 and found.left_out == {}
    assert (p < 0.05).mean() <= 0.15 and (p < 0.001).sum() == 0
    assert found.data["auroc"].sel(query="context").mean() == pytest.approx(0.5, abs=0.08)


def test_the_nominal_rate() -> None:
    """Words of three kinds and different levels; labels within kinds mean nothing."""
    rng = np.random.default_rng(0)
    stratum = np.repeat([0, 1, 2], [12, 30, 18])
    is_source = np.concatenate([np.arange(n) < n // 3 for n in (12, 30, 18)])
    ranks = ranks_within(rng.normal(size=(2000, 60)) + 3 * stratum, stratum)
    p = permutation_p(ranks, is_source, stratum, seed=1, draws=999)
    for level in (0.01, 0.05, 0.2):
        assert (p <= level).mean() == pytest.approx(level, abs=3 * (level / 2000) ** 0.5)
    assert auroc(ranks, is_source, stratum).mean() == pytest.approx(0.5, abs=0.01)


def test_auroc_is_that_of_pairs_within_kinds() -> None:
    rng = np.random.default_rng(3)
    logits = rng.integers(0, 6, size=(4, 25)).astype(float)  # with ties
    stratum, is_source = rng.integers(0, 3, 25), rng.random(25) < 0.5
    found = auroc(ranks_within(logits, stratum), is_source, stratum)
    for row, value in zip(logits, found, strict=True):
        wins = [
            (row[a] > row[b]) + 0.5 * (row[a] == row[b])
            for a in np.flatnonzero(is_source)
            for b in np.flatnonzero(~is_source)
            if stratum[a] == stratum[b]
        ]
        assert value == pytest.approx(np.mean(wins))


def test_permutations_agree_with_the_exact_rank_sum_test() -> None:
    is_source, stratum = np.arange(14) < 5, np.zeros(14, dtype=np.int64)
    row = np.random.default_rng(5).normal(size=14) + 0.8 * is_source
    exact = stats.mannwhitneyu(row[is_source], row[~is_source], alternative="greater", method="exact").pvalue
    found = permutation_p(ranks_within(row[None], stratum), is_source, stratum, seed=0)
    assert found[0] == pytest.approx(exact, abs=4 * (exact / 9999) ** 0.5)


def test_matched_words_are_of_the_same_kind() -> None:
    """As many tokens, capital letter or none, the nearest id; no word of the relation or of its kin."""
    pairs = [(f"Land{at}" if at % 2 else f"land{at}", 100 + at) for at in range(40)]
    body = relation("lands", [(name, ["x"]) for name, _ in pairs])
    mine = TokenisedRelation(
        body,
        tuple(TokenisedPair(at, (token,), {7: "x"}, ("x",)) for at, (_, token) in enumerate(pairs)),
        {},
        "",
    )
    lent = {
        "kin": {**{name: (token,) for name, token in pairs[:10]}, "Kin": (101,)},
        "words": {f"word{at}": (200 + at,) for at in range(50)} | {"land2": (102,), "X": (103,)},
        "names": {f"Name{at}": (300 + at,) for at in range(20)} | {"Two": (104, 105)},
    }
    found = matched_words(mine, lent)
    assert found.problem is None and found.is_source.sum() == KEYS
    foils = {w for w, own in zip(found.words, found.is_source, strict=True) if not own}
    assert not {"Kin", "land2", "X", "Two"} & foils
    assert len(foils) <= FOILS * KEYS and {f"Name{at}" for at in range(20)} <= foils
    assert not {found.words[at] for at in np.flatnonzero(found.is_source)} & {
        pairs[at][0] for at in found.asked
    }
    for number in np.unique(found.stratum):
        assert len({found.words[at][0].isupper() for at in np.flatnonzero(found.stratum == number)}) == 1
    assert matched_words(mine, {"names": lent["names"]}).problem is None
    assert "matched words" in (matched_words(mine, {}).problem or "")


@pytest.fixture(scope="module")
def asked(examined: Planted, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    planted = examined.copied(tmp_path_factory.mktemp("asked") / "out")
    run_attention(planted.atlas, templates=planted.templates)
    return planted


def test_rows_are_of_called_heads(asked: Planted) -> None:
    frame = ha.evidence.attention(asked.atlas, templates=asked.templates)
    assert {(row.relation, row.layer, row.head) for row in frame.itertuples()} == {
        (name, LAYER, head) for name, head in HEADS.items()
    }
    assert frame["query_at"].tolist() == ["task", "task", "context", "context"]
    distances = [f"d{each}" for each in DISTANCES]
    np.testing.assert_allclose(frame["auroc"], frame[distances].mean(axis=1))
    assert (frame["q"] >= frame["p"]).all() and frame["as_high"].between(1 / 12, 1).all()
    measured = asked.atlas.table()[["relation", "layer", "head", "attention"]]
    both = frame.merge(measured, on=["relation", "layer", "head"], suffixes=("", "_table"))
    pd.testing.assert_series_equal(both["attention"], both["attention_table"], check_names=False)
    one = ha.evidence.attention(asked.atlas, templates=asked.templates, only=["first"])
    pd.testing.assert_frame_equal(one, frame[frame["relation"] == "first"].reset_index(drop=True))
    assert "before the softmax" in frame.attrs["caption"]


def test_it_is_stored_and_not_measured_again(asked: Planted, tmp_path: Path) -> None:
    with patch.object(attention_module, "watch", side_effect=AssertionError("measured again")):
        run_attention(asked.atlas, templates=asked.templates)
        with pytest.raises(AssertionError, match="measured again"):
            run_attention(asked.atlas, templates=template_file(tmp_path, context=["of {}"]))
    assert len(Preferences.all_in(asked.atlas.path)) == 1
    assert asked.atlas.evidence.provenance()["attention"][0]["context"] == ["a {}", "of a {}", "{} of"]


def test_the_command(asked: Planted) -> None:
    words = ("evidence", "attention", asked.folder, "--templates", asked.templates)
    shown = invoke(*words)
    assert "prefers: " in shown.stderr and "at 16" in shown.stdout
    assert {f"attention.{kind}" for kind in ("csv", "png", "svg", "pdf")} <= {
        path.name for path in (asked.folder / "evidence").iterdir()
    }
    drawn = (asked.folder / "evidence" / "attention.svg").read_text()
    assert drawn.count(">AUROC<") == 2, "both axes are named"
    found = parsed(invoke(*words, "--json", "--only", "second", "--no-figures"))
    assert {row["relation"] for row in found["rows"]} == {"second"} and found["skipped"] == {}
    assert invoke("info", asked.folder).stdout.count("evidence: attention") == 1
    invoke("plot", asked.folder, "--kind", "attention", "--which", "second", "-o", asked.folder / "a.png")


def test_a_family_that_is_not_read_is_skipped_in_a_sentence(tmp_path: Path) -> None:
    model = tiny_model("bloom", VOCAB)
    with pytest.raises(HeadatlasError, match="'BloomForCausalLM' models make attention is not read yet"):
        run_attention(mapped_as(model, tmp_path), model, word_tokenizer())


def test_positions_in_the_states_have_no_distance(tmp_path: Path) -> None:
    model = tiny_model("gpt2", VOCAB)
    atlas = mapped_as(model, tmp_path)
    found = run_attention(atlas, model, word_tokenizer(), templates=template_file(tmp_path))
    assert found.distances == [] and found.data["auroc"].shape[-1] == 1
    assert not [name for name in found.frame(atlas) if name.startswith("d1")]


def test_what_a_sliding_window_leaves_behind_is_not_compared() -> None:
    configs = [LlamaConfig(), *(MistralConfig(sliding_window=window) for window in (None, 512, 8))]
    assert [within_windows(each) for each in configs] == [*[(1, 2, 4, 8, 16)] * 3, (1, 2, 4)]
