"""Writes tiny models as GGUF, with the changes that llama.cpp's converters make to names and tensors.

Names come from gguf's own name map, not from headatlas's family files, so that the two can disagree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import PreTrainedModel

# Model type → the name that GGUF has for it.
ARCHITECTURES = {
    "arcee": "arcee",
    "bloom": "bloom",
    "cohere": "command-r",
    "cohere2": "cohere2",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "ernie4_5": "ernie4_5",
    "exaone4": "exaone4",
    "falcon": "falcon",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gpt2": "gpt2",
    "gpt_bigcode": "starcoder",
    "gpt_neox": "gptneox",
    "gpt_oss": "gpt-oss",
    "gptj": "gptj",
    "granite": "granite",
    "hunyuan_v1_dense": "hunyuan-dense",
    "llama": "llama",
    "minimax_m2": "minimax-m2",
    "ministral3": "mistral3",
    "mistral": "llama",
    "mixtral": "llama",
    "mpt": "mpt",
    "nemotron": "nemotron",
    "olmo": "olmo",
    "olmo2": "olmo2",
    "olmoe": "olmoe",
    "phi": "phi2",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen2_moe": "qwen2moe",
    "qwen2_vl_text": "qwen2vl",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "seed_oss": "seed_oss",
    "smollm3": "smollm3",
    "stablelm": "stablelm",
    "starcoder2": "starcoder2",
}
_ROTATED = ("llama", "mistral", "mixtral", "granite", "ministral3", "arcee", "olmo", "smollm3", "ernie4_5")
_GAIN_LESS_ONE = ("gemma", "gemma2", "gemma3_text", "nemotron")


def quantise(model: PreTrainedModel, quantisation: str) -> None:
    """Replace every matrix by what is left of it after quantising its rows."""
    kind = gguf.GGMLQuantizationType[quantisation]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if _is_quantised(parameter.shape):
                # GPT-2's matrices are transposed before they are quantised.
                turned = ".c_" in name and model.config.model_type == "gpt2"
                rows = (parameter.T if turned else parameter).float().contiguous().numpy()
                left = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(rows, kind), kind))
                parameter.copy_(left.T if turned else left)


def _is_quantised(shape: Sequence[int]) -> bool:
    return len(shape) >= 2 and all(size % 32 == 0 for size in shape[-2:])


def write_gguf(
    model: PreTrainedModel,
    path: Path,
    form: str = "",
    quantisation: str = "F32",
    header: Mapping[str, Any] | None = None,
    beside: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write a model; ``header`` has more keys of its architecture, ``beside`` tensors.

    Forms: ``fused`` stacks separate projections, as early Phi-2 files have them; ``split`` keeps keys and
    values from a latent apart, as newer DeepSeek files do.
    """
    config = model.config.get_text_config()
    name = ARCHITECTURES[config.model_type]
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    writer = gguf.GGUFWriter(path, name)
    _write_config(writer, config)
    for key, value in (header or {}).items():
        add = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
        }
        add.get(type(value), writer.add_array)(f"{name}.{key}", value)
    for key, array in (beside or {}).items():
        writer.add_tensor(key, array)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tensors = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    tensors = {name.replace(".language_model.", "."): tensor for name, tensor in tensors.items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    if form == "split":
        tensors = dict(_apart(tensors, config))
    if form == "fused":
        tensors = _fused(tensors, config.num_hidden_layers)
    for whole, array in tensors.items():
        for name, part in _parts(whole, array, config):
            if name.endswith("e_score_correction_bias"):
                layer = name.split(".layers.")[1].split(".")[0]
                writer.add_tensor(f"blk.{layer}.exp_probs_b.bias", part)
                continue
            if name.startswith("model.visual."):  # Ollama keeps a tower beside the language model
                writer.add_tensor(f"v.{name.removeprefix('model.visual.')}", part)
                continue
            stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert stored is not None, name
            kind = gguf.GGMLQuantizationType[quantisation if _is_quantised(part.shape) else "F32"]
            rows = np.ascontiguousarray(_converted(name, part, config))
            if kind == gguf.GGMLQuantizationType.F32:
                writer.add_tensor(stored, rows)
            else:
                writer.add_tensor(stored, gguf.quants.quantize(rows, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _parts(name: str, array: np.ndarray, config: Any) -> Iterator[tuple[str, np.ndarray]]:
    """What one tensor of the modules becomes: gate and up of experts are apart in GGUF."""
    if config.model_type == "bloom":
        name = name.removeprefix("transformer.")
    stem = name.removesuffix("_bias")
    end = ".bias" if stem != name else ".weight"
    if stem.endswith("experts.gate_up_proj"):
        if config.model_type == "gpt_oss":
            array = array if end == ".bias" else array.swapaxes(1, 2)
            halves = [array[:, 0::2], array[:, 1::2]]
        else:
            halves = np.split(array, 2, axis=1)
        for part, half in zip(("gate", "up"), halves, strict=True):
            yield stem.replace("gate_up", part) + end, half
    elif name.endswith(".sinks"):
        yield f"{name}.weight", array
    elif name.endswith("shared_expert_gate.weight"):
        yield name, array[0]  # llama.cpp keeps it as a vector
    elif stem.endswith("experts.down_proj"):
        transposed = config.model_type == "gpt_oss" and end == ".weight"
        yield stem + end, array.swapaxes(1, 2) if transposed else array
    else:
        yield name, array


def _write_config(writer: gguf.GGUFWriter, config: Any) -> None:
    heads, kind = config.num_attention_heads, config.model_type
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(getattr(config, "max_position_embeddings", 64))
    writer.add_embedding_length(config.hidden_size)
    sizes = [getattr(config, key, None) for key in ("intermediate_size", "n_inner", "ffn_hidden_size")]
    writer.add_feed_forward_length(next(filter(None, sizes), 4 * config.hidden_size))
    writer.add_head_count(heads)
    if kind != "gpt2":
        writer.add_vocab_size(config.vocab_size)
    if (groups := _groups(config)) is not None:
        writer.add_head_count_kv(groups)
    if hasattr(config, "kv_lora_rank"):
        writer.add_kv_lora_rank(config.kv_lora_rank)
        writer.add_value_length(config.v_head_dim)
    elif (d_head := getattr(config, "head_dim", None)) is not None and kind != "falcon":
        writer.add_key_length(d_head)
        writer.add_value_length(d_head)
        if ARCHITECTURES[kind] in ("llama", "minimax-m2"):
            writer.add_rope_dimension_count(d_head)
    if kind in ("stablelm", "phi3"):
        share = config.rope_parameters.get("partial_rotary_factor", 1.0)
        writer.add_rope_dimension_count(int(share * config.hidden_size // heads))
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        keys = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
        eps = next((getattr(config, key) for key in keys if hasattr(config, key)), 1e-5)
        writer.add_layer_norm_eps(eps)
    _write_experts(writer, config)
    # transformers takes the size of GPT-2's vocabulary from the tokenizer's list.
    writer.add_tokenizer_model("gpt2")
    writer.add_pad_token_id(0)
    writer.add_token_list([f"<{index}>" for index in range(config.vocab_size)])


def _groups(config: Any) -> int | None:
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    key = "num_kv_heads" if config.model_type == "falcon" else "num_key_value_heads"
    groups: int | None = getattr(config, key, None)
    return None if config.model_type == "gpt_bigcode" else groups


def _write_experts(writer: gguf.GGUFWriter, config: Any) -> None:
    names = ("num_experts", "num_local_experts")
    if (count := next((getattr(config, name) for name in names if hasattr(config, name)), None)) is None:
        return
    writer.add_expert_count(count)
    writer.add_expert_used_count(config.num_experts_per_tok)
    if config.model_type == "deepseek_v3":
        writer.add_expert_weights_norm(config.norm_topk_prob)
    if hasattr(config, "n_group"):
        writer.add_expert_shared_count(config.n_shared_experts)
        writer.add_expert_weights_scale(config.routed_scaling_factor)
        writer.add_expert_group_count(config.n_group)
        writer.add_expert_group_used_count(config.topk_group)
    if config.model_type in ("minimax_m2", "deepseek_v3"):
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    width = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    if config.model_type not in ("mixtral", "olmoe"):
        writer.add_expert_feed_forward_length(width)
    if (shared := getattr(config, "shared_expert_intermediate_size", None)) is not None:
        writer.add_expert_shared_feed_forward_length(shared)


def _converted(name: str, array: np.ndarray, config: Any) -> np.ndarray:
    """One tensor as the converter of its family leaves it."""
    heads, kind = config.num_attention_heads, config.model_type
    if kind in _ROTATED and ".q_proj." in name:
        return _permuted(array, heads)
    if kind in _ROTATED and ".k_proj." in name:
        return _permuted(array, config.num_key_value_heads)
    if kind in _GAIN_LESS_ONE and name.endswith("norm.weight"):
        return array + np.float32(1)
    if kind == "gpt2" and array.ndim == 2 and (".c_" in name):
        return array.T
    if ".query_key_value." in name and (groups := _interleaved_groups(config)):
        # By group (queries, key, value) → all queries, all keys, all values.
        parts = array.reshape(groups, heads // groups + 2, -1, *array.shape[1:])
        split = [parts[:, :-2], parts[:, -2], parts[:, -1]]
        return np.concatenate([part.reshape(-1, *array.shape[1:]) for part in split])
    return array


def _interleaved_groups(config: Any) -> int | None:
    """Groups that the fused projection goes through one by one; None where it does not."""
    if config.model_type in ("gpt_neox", "bloom"):
        return int(config.num_attention_heads)
    if config.model_type != "falcon" or (config.multi_query and not config.new_decoder_architecture):
        return None
    return int(config.num_kv_heads)


def _permuted(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from two halves (Hugging Face's rotary form) to pairs (llama.cpp's)."""
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def _apart(tensors: dict[str, np.ndarray], config: Any) -> Iterator[tuple[str, np.ndarray]]:
    """With keys and values of each head apart, the keys transposed."""
    for name, array in tensors.items():
        if "kv_b_proj" not in name:
            yield name, array
            continue
        by_head = array.reshape(config.num_attention_heads, -1, array.shape[-1])
        keys, values = np.split(by_head, [config.qk_nope_head_dim], axis=1)
        yield name.replace("kv_b_proj", "k_b_proj"), keys.swapaxes(1, 2)
        yield name.replace("kv_b_proj", "v_b_proj"), values


def _fused(tensors: dict[str, np.ndarray], n_layers: int) -> dict[str, np.ndarray]:
    tensors = dict(tensors)
    for layer in range(n_layers):
        for kind in ("weight", "bias"):
            stem = f"model.layers.{layer}.self_attn."
            parts = [tensors.pop(f"{stem}{p}_proj.{kind}") for p in "qkv"]
            tensors[f"transformer.h.{layer}.mixer.Wqkv.{kind}"] = np.concatenate(parts)
    return tensors
