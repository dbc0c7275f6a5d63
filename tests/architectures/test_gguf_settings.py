"""The modules of a GGUF file compute what the model computes that the file was made from.

Every number of these configs that a header can say differs from the default of its config class, so that one
which is left out shows in the logits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from headatlas.errors import HeadatlasError
from headatlas.weights import gguf_modules, load_modules, open_checkpoint

from .cases import CASES, VOCAB
from .gguf_files import write_gguf
from .tiny import tiny_model

_GQA = CASES["arcee"][1]
_HEAD = _GQA | {"head_dim": 12}
_PHI = _GQA | {"num_attention_heads": 2}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
_FACTORS = [1.0, 1.5, 2.0, 4.0, 8.0, 9.0]


def _rope(**more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 321.0} | more}


_BASE = {"rope.freq_base": 321.0}


def _llama3() -> np.ndarray:
    """What each frequency is divided by, as llama.cpp's converter writes it into one tensor."""
    waves = 2 * np.pi * 321.0 ** (np.arange(0, 12, 2) / 12)
    smooth = (32 / waves - 1.0) / (4.0 - 1.0)
    between = 1 / ((1 - smooth) / 8.0 + smooth)
    divisors = np.where(waves < 32 / 4.0, 1.0, np.where(waves > 32 / 1.0, 8.0, between))
    return np.asarray(divisors, dtype=np.float32)


_LONG = {
    "rope_type": "longrope",
    "short_factor": _FACTORS,
    "long_factor": _FACTORS[::-1],
    "factor": 2.0,
    "attention_factor": 1.2,
    "original_max_position_embeddings": 32,
}
_GEMMA = {"query_pre_attn_scalar": 12, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0}

# Case → (model type, config, what llama.cpp's converter writes into the header beside the sizes, tensors).
FILES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, np.ndarray]]] = {
    "llama": ("llama", _HEAD | _rope() | {"rms_norm_eps": 1e-2}, _BASE, {}),
    "llama-linear": (
        "llama",
        _HEAD | _rope(rope_type="linear", factor=4.0),
        _BASE | {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        {},
    ),
    "llama-yarn": (
        "llama",
        _HEAD | _rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=16),
        _BASE
        | {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 16,
        },
        {},
    ),
    "llama-llama3": (
        "llama",
        _HEAD
        | _rope(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
        _BASE,
        {"rope_freqs.weight": _llama3()},
    ),
    "llama-biased": ("llama", _HEAD | _rope() | {"attention_bias": True, "mlp_bias": True}, _BASE, {}),
    "qwen2": ("qwen2", _GQA | _rope() | {"rms_norm_eps": 1e-2}, _BASE, {}),
    "qwen3": ("qwen3", _HEAD | _rope(), _BASE, {}),
    "qwen2_moe": (
        "qwen2_moe",
        _GQA | _EXPERTS | _rope() | {"shared_expert_intermediate_size": 20},
        _BASE,
        {},
    ),
    "qwen2_moe-normalised": (
        "qwen2_moe",
        _GQA | _EXPERTS | _rope() | {"shared_expert_intermediate_size": 20, "norm_topk_prob": True},
        _BASE | {"expert_weights_norm": True},
        {},
    ),
    "qwen3_moe": ("qwen3_moe", _HEAD | _EXPERTS | _rope() | {"norm_topk_prob": True}, _BASE, {}),
    "qwen3_moe-not_normalised": (
        "qwen3_moe",
        _HEAD | _EXPERTS | _rope() | {"norm_topk_prob": False},
        _BASE | {"expert_weights_norm": False},
        {},
    ),
    "minimax_m2": (
        "minimax_m2",
        _GQA
        | {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 3}
        | _rope(partial_rotary_factor=0.5),
        _BASE | {"rope.dimension_count": 8},
        {},
    ),
    "gemma2": (
        "gemma2",
        _HEAD | _GEMMA | _rope() | {"sliding_window": 3},
        _BASE
        | {
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 2.0,
            "attention.sliding_window": 3,
        },
        {},
    ),
    "gemma2-scaled_by_width": (
        "gemma2",
        _HEAD | _GEMMA | _rope() | {"query_pre_attn_scalar": 8, "num_hidden_layers": 1, "sliding_window": 3},
        _BASE
        | {
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 2.0,
            "attention.sliding_window": 3,
        },
        {},
    ),
    "gemma3": (
        "gemma3_text",
        _HEAD
        | {"query_pre_attn_scalar": 12, "sliding_window": 3, "num_hidden_layers": 6}
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 321.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 123.0},
            }
        },
        _BASE
        | {
            "rope.freq_base_swa": 123.0,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
            "attention.sliding_window": 3,
        },
        {},
    ),
    "phi3": (
        "phi3",
        _PHI
        | _rope(**_LONG, partial_rotary_factor=0.75)
        | {"sliding_window": 3, "original_max_position_embeddings": 32},
        _BASE
        | {
            "rope.dimension_count": 12,
            "rope.scaling.attn_factor": 1.2,
            "rope.scaling.original_context_length": 32,
            "attention.sliding_window": 3,
        },
        {
            "rope_factors_short.weight": np.array(_FACTORS, dtype=np.float32),
            "rope_factors_long.weight": np.array(_FACTORS[::-1], dtype=np.float32),
        },
    ),
    "starcoder2": (
        "starcoder2",
        _GQA | _rope() | {"sliding_window": 3, "norm_epsilon": 1e-2},
        _BASE | {"attention.sliding_window": 3},
        {},
    ),
    "nemotron": (
        "nemotron",
        _GQA | {"norm_eps": 1e-2, "head_dim": 16} | _rope(partial_rotary_factor=0.25),
        _BASE | {"rope.dimension_count": 4},
        {},
    ),
    "stablelm": (
        "stablelm",
        _GQA | {"layer_norm_eps": 1e-2} | _rope(partial_rotary_factor=0.5),
        _BASE | {"rope.dimension_count": 4},
        {},
    ),
    "falcon": (
        "falcon",
        CASES["falcon-multi_query"][1] | _rope() | {"layer_norm_epsilon": 1e-2, "ffn_hidden_size": 40},
        _BASE,
        {},
    ),
    "bloom": ("bloom", CASES["bloom"][1] | {"layer_norm_epsilon": 1e-2}, {}, {}),
    "bloom-untied": ("bloom", CASES["bloom"][1] | {"tie_word_embeddings": False}, {}, {}),
    "gpt2": (
        "gpt2",
        CASES["codegen"][1] | {"n_inner": 40, "layer_norm_epsilon": 1e-2},
        {},
        {},
    ),
}


def _written(case: str, path: Path) -> PreTrainedModel:
    """The model of a case, in float32, and its file."""
    kind, changes, header, beside = FILES[case]
    config = AutoConfig.for_model(kind, **changes)
    torch.manual_seed(sum(map(ord, case)))
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.3 if parameter.ndim == 1 else 0.0, 0.3)
        for name, buffer in model.named_buffers():
            if name.endswith("correction_bias"):
                buffer.normal_(0.0, 0.2)
    write_gguf(model, path, header=header, beside=beside)
    return model.eval()


@pytest.mark.parametrize("case", sorted(FILES))
def test_modules_compute_the_same_logits(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The number of layers tells Gemma 2 27B, and 46 of them take long.
    assert ("gemma2", 46) in gguf_modules._SCALED_BY_WIDTH
    monkeypatch.setattr(gguf_modules, "_SCALED_BY_WIDTH", {("gemma2", 1)})
    model = _written(case, tmp_path / "tiny.gguf")
    loaded = load_modules(open_checkpoint(tmp_path / "tiny.gguf"))
    ids = torch.randint(3, VOCAB, (2, 40), generator=torch.Generator().manual_seed(0))
    for rows in (ids, ids[:, :8]):  # beyond the window and the length of training, and not
        with torch.no_grad():
            torch.testing.assert_close(loaded(rows).logits, model(rows).logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("case", "header", "says"),
    [
        ("llama", {"attention.clamp_kqv": 8.0}, "attention.clamp_kqv = 8.0"),
        ("llama", {"expert_count": 4}, "expert_count = 4"),
        ("llama", {"logit_scale": 0.5}, "logit_scale = 0.5"),
        ("llama", {"rope.dimension_count_swa": 4}, "rope.dimension_count_swa"),
        ("llama", {"rope.scaling.yarn_log_multiplier": 0.1}, "yarn_log_multiplier"),
        ("qwen2", {"rope.dimension_count": 4}, "rope.*4"),
        ("qwen3_moe", {"expert_weights_scale": 2.5}, "expert_weights_scale = 2.5"),
        ("qwen3_moe", {"expert_gating_func": 2}, "expert_gating_func = 2"),
        ("starcoder2", {"attention.key_length": 16}, "16"),
        ("starcoder2", {"attention.key_length": 1 << 20}, r"4 heads with keys of 1,048,576 numbers"),
        ("llama", {"residual_scale": 0.5}, r"llama\.residual_scale = 0\.5"),
        ("llama", {"attention.scale": 0.5}, r"llama\.attention\.scale = 0\.5"),
        ("llama", {"attn_logit_softcapping": 5.0}, r"llama\.attn_logit_softcapping = 5\.0"),
        ("llama", {"rope.scaling.type": "longrope"}, r"not read \(longrope\)"),
        ("llama", {"rope.freq_base": "x"}, r"llama\.rope\.freq_base is no number"),
    ],
)
def test_what_the_modules_cannot_be_told_is_refused(
    case: str, header: dict[str, Any], says: str, tmp_path: Path
) -> None:
    kind, changes, usual, _ = FILES[case]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **changes))
    write_gguf(model, tmp_path / "tiny.gguf", header=usual | header)
    with pytest.raises(HeadatlasError, match=rf"{says}.*use safetensors"):
        load_modules(open_checkpoint(tmp_path / "tiny.gguf"))


@pytest.mark.parametrize(
    ("name", "size", "says"),
    [
        ("rope_freqs.weight", 7, r"rope_freqs\.weight fits no module"),
        ("rope_factors_short.weight", 6, r"no rope\.scaling\.original_context_length"),
        # transformers passes over tensors that its modules have no name for.
        ("blk.0.attn_q_norm.weight", 192, r"a LlamaForCausalLM takes [\d,]+ numbers of the [\d,]+ in it"),
    ],
)
def test_tensors_without_a_place_are_refused(name: str, size: int, says: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **FILES["llama"][1]))
    write_gguf(model, tmp_path / "tiny.gguf", header=_BASE, beside={name: np.ones(size, dtype=np.float32)})
    with pytest.raises(HeadatlasError, match=rf"{says}.*use safetensors"):
        load_modules(open_checkpoint(tmp_path / "tiny.gguf"))


def test_a_scale_that_says_nothing_new_is_no_reason_to_refuse(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **FILES["llama"][1]))
    write_gguf(model, tmp_path / "tiny.gguf", header=_BASE | {"attention.scale": 12**-0.5})
    assert load_modules(open_checkpoint(tmp_path / "tiny.gguf")).config.head_dim == 12


@pytest.mark.parametrize("case", ["gpt_oss", "cohere", "mixtral"])
def test_architectures_without_a_conversion_are_refused(case: str, tmp_path: Path) -> None:
    write_gguf(tiny_model(case), tmp_path / "tiny.gguf")
    with pytest.raises(HeadatlasError, match=r"(transformers|transformers' modules).*use safetensors"):
        load_modules(open_checkpoint(tmp_path / "tiny.gguf"))
