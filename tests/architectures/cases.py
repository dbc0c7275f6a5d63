"""Every tiny model of the oracle tests: a transformers model type and what its config changes.

The first case of a family runs in every test run, the others with the marker ``exhaustive``.
"""

from __future__ import annotations

from typing import Any

VOCAB = 50

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_GQA = _COMMON | {"num_key_value_heads": 2}
_HEAD = _GQA | {"head_dim": 12}

# Case → (model type, config). A case is called after its family, then what is special.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "arcee": ("arcee", _GQA),
    "cohere": ("cohere", _GQA | {"logit_scale": 0.25, "tie_word_embeddings": True}),
    "cohere-qk_norm": ("cohere", _GQA | {"use_qk_norm": True, "attention_bias": True}),
    "cohere2": ("cohere2", _HEAD | {"logit_scale": 0.25, "sliding_window": 4}),
    "cwm": ("cwm", _HEAD | {"sliding_window": 4}),
    "ernie4_5": ("ernie4_5", _HEAD),
    "ernie4_5-biased": ("ernie4_5", _HEAD | {"use_bias": True, "tie_word_embeddings": False}),
    "exaone4": ("exaone4", _HEAD | {"sliding_window": 4, "sliding_window_pattern": 2}),
    "flint": ("flint", _HEAD),
    "gemma": ("gemma", _HEAD | {"tie_word_embeddings": True}),
    "gemma2": ("gemma2", _HEAD | {"sliding_window": 4, "query_pre_attn_scalar": 12}),
    "gemma2-untied": ("gemma2", _HEAD | {"tie_word_embeddings": False, "attention_bias": True}),
    "glm": ("glm", _HEAD | {"attention_bias": True}),
    "glm4": ("glm4", _HEAD | {"attention_bias": True}),
    "granite": (
        "granite",
        _GQA
        | {
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.1,
            "logits_scaling": 8.0,
        },
    ),
    "granite_swa": ("granite_swa", _GQA | {"residual_multiplier": 0.22}),
    "helium": ("helium", _GQA | {"head_dim": 8}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", _HEAD),
    "hyperclovax": ("hyperclovax", _GQA),
    "jais2": ("jais2", _HEAD),
    "ministral": ("ministral", _HEAD | {"sliding_window": 4}),
    "ministral3": ("ministral3", _HEAD | {"sliding_window": 4}),
    "nanochat": ("nanochat", _GQA),
    "nemotron": ("nemotron", _HEAD),
    "nemotron-biased": ("nemotron", _HEAD | {"attention_bias": True, "mlp_bias": True}),
    "olmo": ("olmo", _GQA),
    "olmo2": ("olmo2", _GQA),
    "olmo3": ("olmo3", _GQA | {"sliding_window": 4}),
    "phi3": ("phi3", _GQA),
    "qwen3": ("qwen3", _HEAD),
    "qwen3-biased-tied": ("qwen3", _HEAD | {"attention_bias": True, "tie_word_embeddings": True}),
    "seed_oss": ("seed_oss", _HEAD),
    "seed_oss-out_bias": ("seed_oss", _HEAD | {"attention_out_bias": True}),
    "smollm3": ("smollm3", _GQA),
    "stablelm": ("stablelm", _GQA),
    "stablelm-qkv_bias": ("stablelm", _GQA | {"use_qkv_bias": True}),
    "starcoder2": ("starcoder2", _GQA),
    "starcoder2-unbiased": ("starcoder2", _GQA | {"use_bias": False, "tie_word_embeddings": False}),
    "vaultgemma": ("vaultgemma", _HEAD),
}
