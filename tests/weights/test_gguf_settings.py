"""Modules made of a GGUF file compute what the model does, also where transformers leaves something out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from headatlas.errors import HeadatlasError
from headatlas.weights import gguf_modules, load_modules, open_checkpoint
from tests.architectures.gguf_files import write_gguf

SIZES = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
BASE = 500_000.0
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": BASE, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
FACTORS = {"short_factor": [1.1, 1.5, 2.0], "long_factor": [3.0, 4.0, 5.0]}
LINEAR = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 20_000.0},
}
GEMMA = {"head_dim": 8, "sliding_window": 64, "query_pre_attn_scalar": 8, "pad_token_id": 0}


def model_of(kind: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SIZES | changes))
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.5 if parameter.ndim == 1 else 0.0, 0.3)
    return model


def llama3(writer: gguf.GGUFWriter) -> None:
    """As llama.cpp's converter writes it: what each frequency is divided by."""
    frequencies = 1 / BASE ** (np.arange(0, 8, 2) / 8)
    waves = 2 * np.pi / frequencies
    smooth = (32 / waves - 1.0) / (4.0 - 1.0)
    between = 1 / ((1 - smooth) / 8.0 + smooth)
    factors = np.where(waves < 32 / 4.0, 1.0, np.where(waves > 32 / 1.0, 8.0, between))
    writer.add_rope_freq_base(BASE)
    writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))


def longrope(writer: gguf.GGUFWriter) -> None:
    """Phi-3: factors for short and long texts, on three quarters of a head's dimensions."""
    writer.add_rope_scaling_orig_ctx_len(64)
    writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(2) / np.log(64))))
    for length in ("short", "long"):
        factors = np.array(FACTORS[f"{length}_factor"], dtype=np.float32)
        writer.add_tensor(f"rope_factors_{length}.weight", factors)


def of_gemma(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_freq_base(1e6)
    writer.add_float32("gemma3.rope.freq_base_swa", 20_000.0)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(8.0)


def yarn(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(32)


CASES: dict[str, tuple[str, dict[str, Any], Callable[[gguf.GGUFWriter], None]]] = {
    "Llama 3.1": ("llama", {"rope_parameters": LLAMA3}, llama3),
    "Phi-4-mini": (
        "phi3",
        {
            "pad_token_id": 0,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10_000.0,
                "partial_rotary_factor": 0.75,
                **FACTORS,
            },
            "original_max_position_embeddings": 64,
        },
        longrope,
    ),
    "Gemma 3, 4B and larger": (
        "gemma3_text",
        GEMMA | {"rope_parameters": LINEAR, "num_hidden_layers": 6},
        of_gemma,
    ),
    "Gemma 2, 27B": (
        "gemma2",
        GEMMA | {"head_dim": 12, "attn_logit_softcapping": 5.0},
        lambda writer: writer.add_attn_logit_softcapping(5.0),
    ),
    "StarCoder 2": (
        "starcoder2",
        {"rope_parameters": {"rope_type": "default", "rope_theta": BASE}},
        lambda writer: writer.add_rope_freq_base(BASE),
    ),
    "Qwen 2.5 with YaRN": (
        "qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
        yarn,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_modules_compute_what_the_model_does(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The number of layers tells Gemma 2 27B, and 46 of them take long.
    assert ("gemma2", 46) in gguf_modules._SCALED_BY_WIDTH
    monkeypatch.setattr(gguf_modules, "_SCALED_BY_WIDTH", {("gemma2", 2)})
    kind, changes, also = CASES[case]
    model = model_of(kind, **changes)
    write_gguf(model, tmp_path / "tiny.gguf", also=also)
    loaded = load_modules(open_checkpoint(tmp_path / "tiny.gguf"))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    ids = torch.arange(3, 15).unsqueeze(0)
    with torch.no_grad():
        wanted, found, left_out = (each(ids).logits for each in (model, loaded, plain))
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)
    assert not torch.allclose(left_out, wanted, rtol=0, atol=1e-3)  # else the case would show nothing


def test_numbers_without_a_place_in_the_modules_are_refused(tmp_path: Path) -> None:
    """transformers passes over tensors that its modules have no name for."""
    norm = {"blk.0.attn_q_norm.weight": np.ones(192, dtype=np.float32)}
    write_gguf(model_of("llama"), tmp_path / "tiny.gguf", beside=norm)
    with pytest.raises(
        HeadatlasError, match=r"a LlamaForCausalLM takes 18,720 numbers of the 18,912 in it.*use safetensors"
    ):
        load_modules(open_checkpoint(tmp_path / "tiny.gguf"))


def long_keys(writer: gguf.GGUFWriter) -> None:
    """Modules of this size are not made."""
    writer.kv_data[0].pop("llama.attention.key_length", None)
    writer.add_key_length(1 << 20)


@pytest.mark.parametrize(
    ("also", "problem"),
    [
        (long_keys, r"4 heads with keys of 1,048,576 numbers, and it holds queries of 32"),
        (lambda w: w.add_residual_scale(0.5), r"llama\.residual_scale = 0\.5"),
        (lambda w: w.add_attention_scale(0.5), r"llama\.attention\.scale = 0\.5"),
        (lambda w: w.add_attn_logit_softcapping(5.0), r"llama\.attn_logit_softcapping = 5\.0"),
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE), r"not read \(longrope\)"),
        (lambda w: w.add_string("llama.rope.freq_base", "x"), r"llama\.rope\.freq_base is no number"),
        (lambda w: w.add_tensor("rope_freqs.weight", np.ones(7, np.float32)), r"rope_freqs\.weight fits no"),
        (
            lambda w: w.add_tensor("rope_factors_short.weight", np.ones(4, np.float32)),
            r"no rope\.scaling\.original_context_length",
        ),
    ],
)
def test_what_is_not_known_is_refused(
    also: Callable[[gguf.GGUFWriter], None], problem: str, tmp_path: Path
) -> None:
    write_gguf(model_of("llama"), tmp_path / "tiny.gguf", also=also)
    with pytest.raises(HeadatlasError, match=rf"{problem}.*use safetensors"):
        load_modules(open_checkpoint(tmp_path / "tiny.gguf"))


def test_a_scale_that_says_nothing_new_is_no_reason_to_refuse(tmp_path: Path) -> None:
    write_gguf(model_of("llama"), tmp_path / "tiny.gguf", also=lambda w: w.add_attention_scale(8**-0.5))
    assert load_modules(open_checkpoint(tmp_path / "tiny.gguf")).config.head_dim == 8
