"""Attention logits from W_Q and W_K against the attention that Hugging Face's eager modules compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from headatlas.architectures import Model, open_model
from headatlas.architectures.family import families
from headatlas.architectures.oracle import recorded
from headatlas.errors import HeadatlasError
from headatlas.weights import open_checkpoint

from .gguf_files import write_gguf
from .tiny import ALL, marked, tiny_model

READ = (
    *("afmoe", "apertus", "arcee", "aria_text", "bamba", "biogpt", "cohere", "cohere2", "ctrl", "cwm"),
    *("dots1", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe", "falcon", "flex_olmo", "flint"),
    *("gemma", "gemma2", "gemma3", "glm", "glm4", "glm4_moe", "gpt2", "gpt_bigcode", "gpt_neo"),
    *("gpt_neox", "gpt_neox_japanese", "gpt_oss", "granite", "granitemoe", "granitemoehybrid"),
    *("granitemoeshared", "helium", "hy_v3", "hyperclovax", "jais2", "jamba", "lfm2", "lfm2_moe"),
    *("lfm3", "llama", "mellum", "minimax_m2", "ministral", "mistral3", "mixtral", "nemotron"),
    *("nemotron_h", "olmo", "olmo2", "olmo3", "olmo_hybrid", "olmoe", "opt", "persimmon", "phi"),
    *("phi3", "phimoe", "qwen2", "qwen2_moe", "qwen2_vl", "qwen3", "qwen3_moe", "seed_oss", "smollm3"),
    *("solar_open", "stablelm", "starcoder2", "vaultgemma", "xglm"),
)
"""Families whose queries and keys are read."""
REFUSED = {
    "falcon-head_by_head-biased-sequential": "alibi = True",
    "stablelm-parallel-qk_layernorm": "qk_layernorm = True",
}
"""Cases of these families that attend in another way, and what the refusal says."""
CASES = [case for case in ALL if case.partition("-")[0] in (*READ, "mistral") and case not in REFUSED]
GGUF = (
    "llama", "qwen3", "gemma2", "gemma3", "gpt_neox", "phi", "gpt2", "falcon", "nemotron-gguf",
    "qwen2_moe-gguf", "qwen3_moe-gguf", "stablelm", "starcoder2",
)  # fmt: skip
TOKENS = 7
SEEN = 1e-4
"""Attention below this is masked, or too small for a ratio in float32."""


def test_the_families_are_those_that_say_it() -> None:
    assert {family.name for family in families() if family.safetensors.queries} == set(READ)


@pytest.mark.parametrize("case", marked(CASES))
def test_ratios_of_attention(case: str, tmp_path: Path) -> None:
    model = tiny_model(case)
    model.save_pretrained(tmp_path)
    hold_ratios(open_model(open_checkpoint(tmp_path)), model)


@pytest.mark.parametrize("case", GGUF)
def test_ratios_of_attention_from_gguf(case: str, tmp_path: Path) -> None:
    """GGUF has other names, rows in another order, and gains with the 1 added."""
    model = tiny_model(case)
    write_gguf(model, path := tmp_path / "model.gguf")
    hold_ratios(open_model(open_checkpoint(path)), model)


def hold_ratios(opened: Model, model: PreTrainedModel) -> None:
    """log(A[q, k] / A[q, k']) is the difference of our logits, for every head, query and visible keys."""
    rule = opened.attention_rule(model)
    if turning := rule.turning & {*opened.layers_with_heads}:  # one pair turns alike in either form
        assert rule._angles(min(turning), 1)[0].shape[-1] > 1
    ids = torch.randint(3, 40, (2, TOKENS), generator=torch.Generator().manual_seed(1))
    paths = {layer: opened.value_input_module(layer) for layer in opened.layers_with_heads}
    with recorded(model, list(paths.values())) as (entering, _):
        given = model(ids, output_attentions=True).attentions
    attention = dict(zip(paths, (each for each in given if each is not None), strict=True))
    compared = 0
    for layer, path in paths.items():
        heads = opened.queries(layer)
        for row in range(len(ids)):
            x = entering[path][row]
            queries, keys = heads.queries(x), heads.keys(x)
            at = torch.arange(TOKENS)
            ours = torch.full(attention[layer][row].shape, float("nan"), dtype=torch.float64)
            for distance in range(TOKENS):
                found = rule.logits(layer, heads, queries, keys, distance)
                ours[:, at[distance:], at[: TOKENS - distance]] = found[
                    :, at[distance:], at[: TOKENS - distance]
                ]
            theirs = attention[layer][row].double()
            seen = theirs > SEEN
            difference = torch.where(seen, ours - theirs.log(), torch.nan)
            difference -= difference.nanmean(dim=-1, keepdim=True)
            several = seen.sum(dim=-1) > 1
            assert float(difference[several].nan_to_num().abs().max()) < 1e-4
            compared += int(seen[several].sum())
    assert compared > 200


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_attends_otherwise_is_refused(case: str, tmp_path: Path) -> None:
    model = tiny_model(case)
    model.save_pretrained(tmp_path)
    opened = open_model(open_checkpoint(tmp_path))
    with pytest.raises(HeadatlasError, match=f"attention with {REFUSED[case]} is not read yet"):
        opened.attention_rule(model)


def test_a_family_that_is_not_read_says_so(tmp_path: Path) -> None:
    tiny_model("bloom").save_pretrained(tmp_path)
    with pytest.raises(HeadatlasError, match="'BloomForCausalLM' models make attention is not read yet"):
        open_model(open_checkpoint(tmp_path)).queries(0)


def test_a_config_that_changes_the_rule_is_refused(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    model.config.scale_attn_by_inverse_layer_idx = True
    model.save_pretrained(tmp_path)
    opened = open_model(open_checkpoint(tmp_path))
    with pytest.raises(
        HeadatlasError, match="attention with scale_attn_by_inverse_layer_idx = True is not read"
    ):
        opened.attention_rule(model)
