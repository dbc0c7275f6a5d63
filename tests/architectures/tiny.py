"""Tiny random models of every family, made from Hugging Face configs: no network, no real weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from headatlas.weights.source import Checkpoint, TensorInfo

from .cases import CASES, SINGLE, VOCAB

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 1024,  # transformers does not read the size from a GGUF header
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _gemma3_text(**changes: Any) -> Gemma3TextConfig:
    sizes = _COMMON | {"num_key_value_heads": 2, "head_dim": 12, "sliding_window": 4, "pad_token_id": 0}
    return Gemma3TextConfig(**(sizes | {"query_pre_attn_scalar": 12} | changes))


def _gemma3_multimodal() -> Gemma3ForConditionalGeneration:
    text = _gemma3_text().to_dict()
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return Gemma3ForConditionalGeneration(config)


def _qwen2_vl() -> Qwen2VLForConditionalGeneration:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}
    text = _COMMON | {"num_key_value_heads": 2, "rope_parameters": rope}
    vision = {"embed_dim": 16, "hidden_size": 32, "depth": 1, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision))


def _mistral3() -> Mistral3ForConditionalGeneration:
    text = _COMMON | {"num_key_value_heads": 2, "head_dim": 12, "model_type": "mistral"}
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    config = Mistral3Config(text_config=text, vision_config=vision, tie_word_embeddings=False)
    return Mistral3ForConditionalGeneration(config)


# Every legal variation that changes which tensors there are or how they are laid out.
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_COMMON, num_key_value_heads=2)),
    "llama-tied-biased-head_dim": lambda: LlamaForCausalLM(
        LlamaConfig(
            **_COMMON,
            num_key_value_heads=1,
            head_dim=12,
            tie_word_embeddings=True,
            attention_bias=True,
            mlp_bias=True,
            hidden_act="gelu",
            rms_norm_eps=1e-2,
        )
    ),
    "mistral": lambda: MistralForCausalLM(
        MistralConfig(**_COMMON, num_key_value_heads=2, head_dim=12, sliding_window=4)
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_COMMON, num_key_value_heads=2)),
    "qwen2-tied-head_dim": lambda: Qwen2ForCausalLM(
        Qwen2Config(**_COMMON, num_key_value_heads=2, head_dim=12, tie_word_embeddings=True)
    ),
    "gemma3": lambda: Gemma3ForCausalLM(_gemma3_text()),
    "qwen2-tied": lambda: Qwen2ForCausalLM(
        Qwen2Config(**_COMMON, num_key_value_heads=2, tie_word_embeddings=True)
    ),
    "gemma3-untied": lambda: Gemma3ForCausalLM(_gemma3_text(tie_word_embeddings=False)),
    "gemma3-untied-biased": lambda: Gemma3ForCausalLM(
        _gemma3_text(tie_word_embeddings=False, attention_bias=True, num_key_value_heads=4)
    ),
    "gemma3-multimodal": _gemma3_multimodal,
    "qwen2_vl": _qwen2_vl,
    "mistral3": _mistral3,
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**_GPT2)),
    "gpt2-untied-n_inner": lambda: GPT2LMHeadModel(
        GPT2Config(**_GPT2, n_inner=40, tie_word_embeddings=False, activation_function="relu")
    ),
    "gpt2-untied": lambda: GPT2LMHeadModel(GPT2Config(**_GPT2, tie_word_embeddings=False)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_COMMON, rotary_pct=0.5)),
    "gpt_neox-sequential-tied-unbiased": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(
            **_COMMON,
            rotary_pct=0.5,
            use_parallel_residual=False,
            attention_bias=False,
            tie_word_embeddings=True,
        )
    ),
    "phi": lambda: PhiForCausalLM(PhiConfig(**_COMMON)),
    "phi-grouped": lambda: PhiForCausalLM(PhiConfig(**_COMMON, num_key_value_heads=2)),
    "phi-grouped-qk_layernorm": lambda: PhiForCausalLM(
        PhiConfig(**_COMMON, num_key_value_heads=2, qk_layernorm=True)
    ),
}


def _from_config(kind: str, changes: dict[str, Any]) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **changes))
    return model


ALL = MODELS | {case: functools.partial(_from_config, *of) for case, of in CASES.items()}
"""Also the cases that are written down as data."""


def tiny_model(case: str) -> PreTrainedModel:
    """A random model in float64, ready for hooks.

    Fresh modules have norms of ones and biases of zeros, which hide mistakes: all parameters are redrawn, in
    float32, so that a file in float32 holds the same model.
    """
    torch.manual_seed(sum(map(ord, case)))
    model = ALL[case]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.3 if parameter.ndim == 1 else 0.0, 0.4 if parameter.ndim == 1 else 0.25)
        _open_gates(model, case)
        for name, buffer in model.named_buffers():
            if name.endswith(("correction_bias", "expert_bias")):  # zeros would hide that they are read
                buffer.normal_(0.0, 0.2)
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")  # the faster one knows no float64
    return (model if case in SINGLE else model.double()).eval()


def _open_gates(model: PreTrainedModel, case: str) -> None:
    """Make every gate on a head's output one half; see ``GATED``."""
    name = case.partition("-")[0]
    for path, parameter in model.named_parameters():
        if name == "afmoe" and "self_attn.gate_proj" in path:
            parameter.zero_()
        if name in ("qwen3_next", "qwen3_5", "qwen3_5_moe") and "self_attn.q_proj" in path:
            # Head by head: its query, then its gate.
            heads = parameter.view(model.config.num_attention_heads, 2, -1, *parameter.shape[1:])
            heads[:, 1] = 0


def marked(cases: Iterable[str]) -> list[Any]:
    """The cases in order, as parameters of a test; variants run with the marker ``exhaustive`` only."""
    return [
        pytest.param(case, marks=[] if "-" not in case or "-gguf" in case else [pytest.mark.exhaustive])
        for case in sorted(cases)
    ]


@dataclass
class DictSource:
    """Tensors in a dict, as a tensor source."""

    tensors: dict[str, torch.Tensor]

    def infos(self) -> Mapping[str, TensorInfo]:
        return {
            name: TensorInfo(name, tuple(tensor.shape), str(tensor.dtype), tensor.nbytes, "tiny.safetensors")
            for name, tensor in self.tensors.items()
        }

    def read(self, name: str, rows: slice | Sequence[int] | None = None) -> torch.Tensor:
        tensor = self.tensors[name]
        return tensor if rows is None else tensor[rows]


def checkpoint_of(
    tensors: dict[str, torch.Tensor], config: dict[str, Any], architecture: str | None = None
) -> Checkpoint:
    """A safetensors-like checkpoint in memory."""
    return Checkpoint(
        spec="tiny",
        name="tiny",
        format="safetensors",
        path=None,
        revision=None,
        architecture=architecture or config["architectures"][0],
        config=config,
        source=DictSource(tensors),
    )


def module(model: nn.Module, path: str) -> Any:
    """A module by its dotted path; Any, for its attributes are the point."""
    return model.get_submodule(path)
