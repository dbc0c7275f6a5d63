"""Tiny checkpoints, GGUF files and wheels, written on the spot; nothing here needs a network."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("a", "n"), ("Ġ", "an"), ("i", "n")]
SPECIAL = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}  # those of Qwen2, whose class adds them


def vocabulary() -> list[str]:
    """Two special tokens, the 256 bytes, and what the merges make."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*SPECIAL.values(), *letters, *("".join(pair) for pair in MERGES)]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocab = {token: index for index, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=list(MERGES)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def tiny_llama(dtype: torch.dtype = torch.float32, tied: bool = False) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary()), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype).eval()


def save(model: PreTrainedModel, folder: Path, tokenizer: bool = True, shard_size: str | None = None) -> Path:
    if shard_size is None:
        model.save_pretrained(folder)
    else:
        model.save_pretrained(folder, max_shard_size=shard_size)
    if tokenizer:
        tiny_tokenizer().save_pretrained(folder)
    return folder


def write_gguf(
    path: Path,
    tensors: dict[str, tuple[np.ndarray, Kind]],
    metadata: dict[str, Any] | None = None,
    arch: str = "llama",
    split: int = 0,
) -> Path:
    """A GGUF file with tensors quantised to the given types, or its parts of so many tensors each."""
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split)
    for key, value in (metadata or {}).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_array(key, value)
    for name, (values, kind) in tensors.items():
        writer.add_tensor(name, gguf.quants.quantize(values.astype(np.float32), kind), raw_dtype=kind)
    return finish(writer, path)


def finish(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def stored_gguf(path: Path, **tensors: tuple[np.ndarray, Kind | None]) -> Path:
    """A GGUF file of arrays as they are, of the types given."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, (values, kind) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=kind)
    return finish(writer, path)


def tiny_qwen2() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(vocabulary()), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def qwen2_gguf(
    path: Path,
    model: PreTrainedModel,
    kind: Kind = Kind.F32,
    tokenizer: bool = True,
    split: int = 0,
    also: dict[str, tuple[np.ndarray, Kind]] | None = None,
    changed: dict[str, Any] | None = None,
) -> Path:
    """The model as llama.cpp would write it (Qwen2 permutes nothing), and further tensors.

    ``changed`` replaces keys of the header; None leaves one out.
    """
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    tensors = dict(also or {})
    for name, tensor in model.state_dict().items():
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        tensors[stored] = (tensor.numpy(), kind if tensor.ndim == 2 else Kind.F32)
    metadata: dict[str, Any] = {
        "general.name": "Tiny Qwen2",
        "general.license": "apache-2.0",
        "qwen2.block_count": config.num_hidden_layers,
        "qwen2.context_length": config.max_position_embeddings,
        "qwen2.embedding_length": config.hidden_size,
        "qwen2.feed_forward_length": config.intermediate_size,
        "qwen2.attention.head_count": config.num_attention_heads,
        "qwen2.attention.head_count_kv": config.num_key_value_heads,
        "qwen2.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "qwen2.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "qwen2.vocab_size": config.vocab_size,
    }
    if tokenizer:
        metadata |= {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "qwen2",
            "tokenizer.ggml.tokens": vocabulary(),
            "tokenizer.ggml.token_type": [3, 3] + [1] * (len(vocabulary()) - 2),
            "tokenizer.ggml.merges": [" ".join(pair) for pair in MERGES],
            "tokenizer.ggml.bos_token_id": 0,
            "tokenizer.ggml.eos_token_id": 1,
        }
    metadata |= changed or {}
    return write_gguf(path, tensors, {k: v for k, v in metadata.items() if v is not None}, "qwen2", split)


def make_wheel(
    folder: Path,
    name: str,
    version: str,
    files: dict[str, bytes],
    requires: tuple[str, ...] = (),
    licence: str | None = "Apache-2.0",
) -> Path:
    """A wheel that pip accepts, holding the given files in its package folder."""
    folder.mkdir(parents=True, exist_ok=True)
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    metadata += [f"License: {licence}"] if licence else []
    metadata += [f"Requires-Dist: {line}" for line in requires]
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in files.items():
            archive.writestr(f"{module}/{member}", content)
        archive.writestr(f"{info}/METADATA", "\n".join(metadata) + "\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path
