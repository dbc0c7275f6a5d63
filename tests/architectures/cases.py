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

_GPT = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_FALCON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_kv_heads": 2,
    "new_decoder_architecture": False,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_ROUTED = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "n_shared_experts": 2,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.5,
}
_FIRST = {"first_k_dense_replace": 0}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 12,
}

_MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
_JAMBA = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "attn_layer_period": 2,
    "attn_layer_offset": 0,
    "mamba_d_state": 4,
    "mamba_dt_rank": 2,
    "use_mamba_kernels": False,
}
_LINEAR = {
    "layer_types": ["full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_ROPE = {"rope_type": "default", "rope_theta": 100.0}
_HALF = {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}}
_INDEXER = {"index_n_heads": 2, "index_head_dim": 8, "index_topk": 64, "head_dim": 4}
_KIMI = {
    "layer_types": ["full_attention", "linear_attention"],
    "num_local_experts": 8,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "rope_parameters": None,
}
_LFM3 = _HEAD | {"layer_types": ["full_attention", "conv"], "sliding_window": 4}
_NEMOTRON_H = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "ssm_state_size": 8,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "n_groups": 1,
    "chunk_size": 8,
    "n_routed_experts": 4,
    "moe_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 20,
    "use_mamba_kernels": False,
    "pad_token_id": None,
}
_DBRX = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "n_heads": 4,
    "n_layers": 2,
    "max_seq_len": 64,
    "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
}
# Their modules do not run in float64.
SINGLE = ("xglm",)

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
    "hyperclovax": ("hyperclovax", _GQA | {"attention_multiplier": 0.1}),
    "jais2": ("jais2", _HEAD),
    "ministral": ("ministral", _HEAD | {"sliding_window": 4}),
    "ministral3": ("ministral3", _HEAD | {"sliding_window": 4}),
    "nanochat": ("nanochat", _GQA),
    "nemotron": ("nemotron", _HEAD),
    "nemotron-gguf": ("nemotron", _GQA),
    "nemotron-biased": ("nemotron", _HEAD | {"attention_bias": True, "mlp_bias": True}),
    "olmo": ("olmo", _GQA),
    "olmo2": ("olmo2", _GQA),
    "olmo3": ("olmo3", _GQA | {"sliding_window": 4}),
    "phi3": ("phi3", _GQA),
    "qwen3": ("qwen3", _HEAD),
    "qwen3-gguf": ("qwen3", _GQA | {"head_dim": 128}),  # what transformers takes for granted in GGUF
    "qwen3-biased-tied": ("qwen3", _HEAD | {"attention_bias": True, "tie_word_embeddings": True}),
    "seed_oss": ("seed_oss", _HEAD),
    "seed_oss-out_bias": ("seed_oss", _HEAD | {"attention_out_bias": True}),
    "smollm3": ("smollm3", _GQA | {"no_rope_layer_interval": 2}),
    "stablelm": ("stablelm", _GQA | _HALF),
    "stablelm-qkv_bias": ("stablelm", _GQA | _HALF | {"use_qkv_bias": True}),
    "stablelm-parallel-qk_layernorm": (
        "stablelm",
        _GQA | _HALF | {"use_parallel_residual": True, "qk_layernorm": True},
    ),
    "starcoder2": ("starcoder2", _GQA),
    "starcoder2-unbiased": ("starcoder2", _GQA | {"use_bias": False, "tie_word_embeddings": False}),
    "vaultgemma": ("vaultgemma", _HEAD),
    # Mixtures of experts. The first layer is what the maps lens reads, so it has experts in the first case.
    "aria_text": ("aria_text", _GQA | {"moe_num_experts": 4, "moe_num_shared_experts": 2}),
    "deepseek_v2": (
        "deepseek_v2",
        _COMMON | _LATENT | _ROUTED | _FIRST | {"topk_method": "group_limited_greedy"},
    ),
    "deepseek_v2-greedy-dense-whole_queries": (
        "deepseek_v2",
        _COMMON | _LATENT | _ROUTED | {"first_k_dense_replace": 1, "q_lora_rank": None},
    ),
    "deepseek_v3": ("deepseek_v3", _COMMON | _LATENT | _ROUTED | _FIRST | {"attention_bias": True}),
    "deepseek_v3-gguf": ("deepseek_v3", _COMMON | _LATENT | _ROUTED | _FIRST),
    "deepseek_v3-dense": ("deepseek_v3", _COMMON | _LATENT | _ROUTED | {"first_k_dense_replace": 1}),
    "dots1": ("dots1", _HEAD | _ROUTED | _FIRST),
    "ernie4_5_moe": (
        "ernie4_5_moe",
        _GQA | {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24, "moe_layer_start_index": 0},
    ),
    "ernie4_5_moe-biased": (
        "ernie4_5_moe",
        _GQA | {"moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1, "use_bias": True},
    ),
    "exaone_moe": (
        "exaone_moe",
        _HEAD | _EXPERTS | {"first_k_dense_replace": 0, "num_shared_experts": 1, "sliding_window": 4},
    ),
    "flex_olmo": ("flex_olmo", _GQA | {"num_experts": 4, "num_experts_per_tok": 2}),
    "glm4_moe": ("glm4_moe", _HEAD | _ROUTED | _FIRST | {"use_qk_norm": True, "attention_bias": True}),
    "glm4_moe-dense": ("glm4_moe", _HEAD | _ROUTED | {"first_k_dense_replace": 1, "norm_topk_prob": False}),
    "gpt_oss": ("gpt_oss", _HEAD | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "granitemoe": ("granitemoe", _GQA | {"num_local_experts": 4, "residual_multiplier": 0.22}),
    "granitemoe_swa": ("granitemoe_swa", _GQA | {"num_local_experts": 4}),
    "granitemoeshared": (
        "granitemoeshared",
        _GQA | {"num_local_experts": 4, "shared_intermediate_size": 20, "residual_multiplier": 0.22},
    ),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", _HEAD | {"num_experts": 4, "moe_topk": 2}),
    "mellum": ("mellum", _HEAD | _EXPERTS),
    "minicpm3": ("minicpm3", _COMMON | _LATENT),
    "minimax_m2": ("minimax_m2", _HEAD | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral": ("mixtral", _GQA | {"num_local_experts": 4}),
    "olmoe": ("olmoe", _GQA | {"num_experts": 4, "num_experts_per_tok": 2}),
    "olmoe-normalised": (
        "olmoe",
        _GQA | {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True},
    ),
    "qwen2_moe": ("qwen2_moe", _GQA | _EXPERTS | {"shared_expert_intermediate_size": 20}),
    # transformers does not read these widths from a GGUF header.
    "qwen2_moe-gguf": (
        "qwen2_moe",
        _GQA | _EXPERTS | {"moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632},
    ),
    "qwen3_moe-gguf": (
        "qwen3_moe",
        _HEAD | _EXPERTS | {"moe_intermediate_size": 768, "norm_topk_prob": True},
    ),
    "qwen2_moe-dense": (
        "qwen2_moe",
        _GQA | _EXPERTS | {"mlp_only_layers": [0], "qkv_bias": False, "norm_topk_prob": True},
    ),
    "qwen3_moe": ("qwen3_moe", _HEAD | _EXPERTS | {"norm_topk_prob": True}),
    "qwen3_moe-dense": ("qwen3_moe", _HEAD | _EXPERTS | {"mlp_only_layers": [0]}),
    "solar_open": ("solar_open", _HEAD | _ROUTED),
    "youtu": ("youtu", _COMMON | _LATENT),
    # Other names and layouts.
    "apertus": ("apertus", _GQA),
    "biogpt": ("biogpt", _COMMON),
    "bloom": ("bloom", {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "codegen": ("codegen", _GPT | {"rotary_dim": 4}),
    "falcon": ("falcon", _FALCON | {"new_decoder_architecture": True}),
    "falcon-multi_query": ("falcon", _FALCON | {"multi_query": True}),
    "falcon-head_by_head-biased-sequential": (
        "falcon",
        _FALCON
        | {"multi_query": False, "bias": True, "parallel_attn": False, "alibi": True, "num_kv_heads": 4},
    ),
    "falcon-one_norm": (
        "falcon",
        _FALCON | {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1},
    ),
    "gpt_bigcode": ("gpt_bigcode", _GPT | {"multi_query": True}),
    "gpt_bigcode-head_by_head": ("gpt_bigcode", _GPT | {"multi_query": False}),
    "gpt_neo": (
        "gpt_neo",
        _COMMON | {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    ),
    "gpt_neox_japanese": ("gpt_neox_japanese", _COMMON | {"intermediate_multiple_size": 3}),
    "gptj": ("gptj", _GPT | {"rotary_dim": 4}),
    "mpt": ("mpt", {"vocab_size": VOCAB, "d_model": 32, "n_heads": 4, "n_layers": 2}),
    "opt": ("opt", _COMMON | {"ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 0}),
    "opt-unbiased": (
        "opt",
        _COMMON | {"ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 0, "enable_bias": False},
    ),
    "persimmon": ("persimmon", _COMMON),
    "xglm": (
        "xglm",
        {"vocab_size": VOCAB, "d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4},
    ),
    "afmoe": (
        "afmoe",
        _HEAD | _EXPERTS | {"num_dense_layers": 0, "num_shared_experts": 1, "route_scale": 1.5},
    ),
    "cohere2_moe": ("cohere2_moe", _HEAD | {"num_experts": 4, "num_experts_per_tok": 2}),
    "glm4_moe_lite": ("glm4_moe_lite", _COMMON | _LATENT | _ROUTED | _FIRST),
    # Hybrids: the first layer has attention, the second has not, but where both stand side by side.
    "bamba": ("bamba", _GQA | _MAMBA2 | {"attn_layer_indices": [0]}),
    "granitemoehybrid": (
        "granitemoehybrid",
        _GQA
        | _MAMBA2
        | {"layer_types": ["attention", "mamba"], "num_local_experts": 4, "shared_intermediate_size": 20},
    ),
    "granitemoehybrid-dense": (
        "granitemoehybrid",
        _GQA
        | _MAMBA2
        | {"layer_types": ["attention", "mamba"], "num_local_experts": 0, "shared_intermediate_size": 20},
    ),
    "jamba": (
        "jamba",
        _GQA | _JAMBA | {"expert_layer_period": 2, "expert_layer_offset": 0},
    ),
    "jamba-dense": ("jamba", _GQA | _JAMBA | {"expert_layer_period": 2, "expert_layer_offset": 1}),
    "lfm2": ("lfm2", _GQA | {"layer_types": ["full_attention", "conv"], "block_multiple_of": 16}),
    "qwen3_5": ("qwen3_5_text", _HEAD | _LINEAR),
    "qwen3_5_moe": (
        "qwen3_5_moe_text",
        _HEAD | _LINEAR | _EXPERTS | {"shared_expert_intermediate_size": 20},
    ),
    "qwen3_next": ("qwen3_next", _HEAD | _LINEAR | _EXPERTS | {"shared_expert_intermediate_size": 20}),
    # Attention and a mixer side by side, layers of one part each, recurrences.
    "falcon_h1": (
        "falcon_h1",
        _HEAD | _MAMBA2 | {"mamba_d_ssm": 64, "mlp_multipliers": [0.7, 1.0], "attention_in_multiplier": 0.8},
    ),
    "falcon_h1-biased": (
        "falcon_h1",
        _HEAD | _MAMBA2 | {"mamba_d_ssm": 64, "attention_bias": True, "mlp_bias": True},
    ),
    "kimi_linear": (
        "kimi_linear",
        _COMMON | _LATENT | _ROUTED | _KIMI | {"mlp_layer_types": ["sparse", "sparse"]},
    ),
    "lfm2_moe": (
        "lfm2_moe",
        _GQA | _EXPERTS | {"layer_types": ["full_attention", "conv"], "num_dense_layers": 0},
    ),
    "lfm2_moe-dense-uncorrected": (
        "lfm2_moe",
        _GQA
        | _EXPERTS
        | {"layer_types": ["full_attention", "conv"], "num_dense_layers": 1, "use_expert_bias": False},
    ),
    "lfm3": ("lfm3", _LFM3),
    "lfm3-plain": ("lfm3", _LFM3 | {"use_sandwich_norm": False, "use_attention_gate": False}),
    "nemotron_h": (
        "nemotron_h",
        _NEMOTRON_H | {"layers_block_type": ["full_attention", "linear_attention", "mlp", "moe"]},
    ),
    "olmo_hybrid": ("olmo_hybrid", _GQA | _LINEAR),
    "olmo_hybrid-linear_first": (
        "olmo_hybrid",
        _GQA | _LINEAR | {"layer_types": ["linear_attention", "full_attention"]},
    ),
    "recurrent_gemma": ("recurrent_gemma", _GQA | {"block_types": ["attention", "recurrent"]}),
    # More mixtures.
    "cohere_compass": (
        "cohere_compass_text",
        _HEAD | {"logit_scale": 0.25, "rope_parameters": {"full_attention": _ROPE}},
    ),
    "ctrl": (
        "ctrl",
        {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 48, "n_positions": 64},
    ),
    "dbrx": ("dbrx", _DBRX | {"attn_config": {"kv_n_heads": 2, "rope_theta": 100.0, "clip_qkv": 1000.0}}),
    "deepseek_v32": ("deepseek_v32", _COMMON | _LATENT | _ROUTED | _FIRST | _INDEXER),
    "glm_moe_dsa": (
        "glm_moe_dsa",
        _COMMON | _LATENT | _ROUTED | _INDEXER | {"mlp_layer_types": ["sparse", "dense"]},
    ),
    "hy_v3": (
        "hy_v3",
        _HEAD | _EXPERTS | {"num_shared_experts": 2, "mlp_layer_types": ["sparse", "dense"]},
    ),
    "llama4": (
        "llama4_text",
        _HEAD
        | {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_layers": [0], "intermediate_size_mlp": 40},
    ),
    "llama4-dense": (
        "llama4_text",
        _HEAD | {"num_local_experts": 4, "moe_layers": [1], "intermediate_size_mlp": 40},
    ),
    "phimoe": ("phimoe", _GQA | {"num_local_experts": 4, "router_jitter_noise": 0.2}),
    "phimoe-biased": (
        "phimoe",
        _GQA | {"num_local_experts": 4, "attention_bias": True, "lm_head_bias": True},
    ),
}
