"""What opening refuses, each time in one sentence that says where, what was found and what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from headatlas.architectures import open_model
from headatlas.architectures.mlp import of_torch
from headatlas.errors import HeadatlasError
from headatlas.weights import Checkpoint, open_checkpoint

from .gguf_files import write_gguf
from .tiny import DictSource, checkpoint_of, tiny_model

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def parts() -> tuple[Tensors, dict[str, Any]]:
    """Tensors and config of a small Llama."""
    model = tiny_model("llama")
    config = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    return dict(model.state_dict()), config


def refused(tensors: Tensors, config: dict[str, Any], architecture: str | None = None) -> str:
    with pytest.raises(HeadatlasError) as caught:
        open_model(checkpoint_of(tensors, config, architecture))
    return str(caught.value)


def test_unsupported_architecture_says_why_and_what_is_near(parts: tuple[Tensors, dict[str, Any]]) -> None:
    message = refused(*parts, architecture="MambaForCausalLM")
    assert "'MambaForCausalLM' is not supported, because it has no attention heads;" in message
    assert "see headatlas families list" in message
    assert "among them LlamaForCausalLM" in refused(*parts, architecture="LlamasForCausalLM")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("part", "read"),
    [
        ("lm_head", lambda model: model.unembed()),
        ("model.embed_tokens", lambda model: model.embed([0, 7])),
        ("model.norm", lambda model: model.right_map(1)),
        ("model.layers.0.mlp.up_proj", lambda model: model.first_mlp(torch.ones(1, 32))),
        ("model.layers.2.self_attn.o_proj", lambda model: model.heads(2)),
    ],
)
def test_numbers_that_are_not_finite_are_no_weights(
    parts: tuple[Tensors, dict[str, Any]], part: str, read: Callable[[Any], object], bad: float
) -> None:
    """As float16 has them after an overflow. A row of U that is not a number would never compete."""
    tensors, config = parts
    tensor = tensors[f"{part}.weight"].clone()
    tensor.view(-1)[7 * tensor.shape[-1] if tensor.ndim > 1 else 7] = bad
    model = open_model(checkpoint_of(tensors | {f"{part}.weight": tensor}, config))
    with pytest.raises(HeadatlasError, match=rf"tensor '{part}.weight' holds numbers that are not finite"):
        read(model)


def test_hugging_face_names_are_not_gguf_names(parts: tuple[Tensors, dict[str, Any]]) -> None:
    assert "not supported" in refused(*parts, architecture="gptneox")


@pytest.mark.parametrize(
    ("gone", "change", "words"),
    [
        ("model.layers.2.self_attn.v_proj.weight", {}, "missing: model.layers.2.self_attn.v_proj.weight"),
        # Which only a forward pass needs: transformers would fill it with random numbers.
        ("model.layers.1.self_attn.q_proj.weight", {}, "missing: model.layers.1.self_attn.q_proj.weight"),
        ("lm_head.weight", {}, "missing: lm_head.weight"),
        ("", {"attention_bias": True}, "model.layers.0.self_attn.v_proj.bias"),
        ("", {"num_hidden_layers": 2}, "unknown tensors: model.layers.2."),
        ("", {"num_hidden_layers": 4}, "missing: model.layers.3."),
    ],
)
def test_tensors_that_are_needed_are_named(
    parts: tuple[Tensors, dict[str, Any]], gone: str, change: dict[str, Any], words: str
) -> None:
    tensors, config = parts
    tensors.pop(gone, None)
    assert words in refused(tensors, config | change)


def test_a_tied_model_needs_no_unembedding(parts: tuple[Tensors, dict[str, Any]]) -> None:
    tensors, config = parts
    del tensors["lm_head.weight"]
    assert open_model(checkpoint_of(tensors, config | {"tie_word_embeddings": True}))


def test_up_to_five_unknown_tensors_are_named(parts: tuple[Tensors, dict[str, Any]]) -> None:
    tensors, config = parts
    for index in range(7):
        tensors[f"extra.{index}"] = torch.zeros(1)
    message = refused(tensors, config)
    assert "unknown tensors: extra.0, extra.1, extra.2, extra.3, extra.4 and 2 more" in message
    assert "tiny.safetensors" in message


def test_a_bias_the_config_does_not_announce_is_unknown(parts: tuple[Tensors, dict[str, Any]]) -> None:
    tensors, config = parts
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(32)
    assert "unknown tensors: model.layers.0.self_attn.q_proj.bias" in refused(tensors, config)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"num_key_value_heads": 4}, "v_proj.weight"),
        ({"head_dim": 16}, "v_proj.weight"),
        ({"intermediate_size": 64}, "mlp.gate_proj.weight"),
        ({"vocab_size": 51}, "embed_tokens.weight"),
        ({"hidden_size": 64}, "embed_tokens.weight"),
    ],
)
def test_shapes_that_contradict_the_config(
    parts: tuple[Tensors, dict[str, Any]], change: dict[str, Any], name: str
) -> None:
    tensors, config = parts
    message = refused(tensors, config | change)
    assert name in message
    assert "has shape [" in message
    assert "implies [" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3 key/value heads"),
        (
            {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": None},
            "no multiple of n_heads = 5",
        ),
        ({"num_hidden_layers": None}, "no 'num_hidden_layers'"),
        ({"num_hidden_layers": "3"}, "must be a positive whole number"),
        ({"num_attention_heads": 0}, "must be a positive whole number"),
        ({"tie_word_embeddings": "yes"}, "must be true or false"),
        ({"rms_norm_eps": -1.0}, "must be a small positive number"),
        ({"hidden_act": 3}, "must be a name"),
    ],
)
def test_config_that_makes_no_sense(
    parts: tuple[Tensors, dict[str, Any]], change: dict[str, Any], words: str
) -> None:
    tensors, config = parts
    assert words in refused(tensors, config | change)


def test_unknown_activation_is_named(parts: tuple[Tensors, dict[str, Any]]) -> None:
    tensors, config = parts
    opened = open_model(checkpoint_of(tensors, config | {"hidden_act": "sillu"}))
    with pytest.raises(HeadatlasError, match="unknown activation 'sillu'"):
        opened.first_mlp(torch.zeros(1, 32))


@pytest.fixture
def gguf(tmp_path: Path) -> Checkpoint:
    """A small Llama as a GGUF file."""
    write_gguf(tiny_model("llama"), tmp_path / "tiny.gguf")
    return open_checkpoint(tmp_path / "tiny.gguf")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "mamba"}, "'mamba' is not supported; supported are"),
        ({"architecture": "LlamaForCausalLM"}, "not supported"),
        ({"config": {}}, "no 'llama.block_count' (n_layers)"),
    ],
)
def test_gguf_headers_that_make_no_sense(gguf: Checkpoint, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(HeadatlasError, match=re.escape(words)):
        open_model(replace(gguf, **changes))


def test_opening_reads_no_tensor(
    parts: tuple[Tensors, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_args: object) -> torch.Tensor:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(DictSource, "read", read)
    assert open_model(checkpoint_of(*parts)).dims.n_heads == 4


def test_unknown_layer(parts: tuple[Tensors, dict[str, Any]]) -> None:
    opened = open_model(checkpoint_of(*parts))
    with pytest.raises(IndexError):
        opened.heads(3)
    with pytest.raises(IndexError):
        opened.right_map(-1)


RELATIVES = [
    # A family's tensors under the name of a close relative.
    ("qwen3", "LlamaForCausalLM", "unknown tensors: model.layers.0.self_attn.k_norm.weight"),
    ("olmo2", "LlamaForCausalLM", "missing: model.layers.0.input_layernorm.weight"),
    ("gemma2", "GemmaForCausalLM", "unknown tensors: model.layers.0.post_feedforward_layernorm.weight"),
    ("gemma2", "VaultGemmaForCausalLM", "unknown tensors: model.layers.0.post_attention_layernorm.weight"),
    ("qwen2", "LlamaForCausalLM", "unknown tensors: model.layers.0.self_attn.k_proj.bias"),
    ("llama", "Qwen3ForCausalLM", "missing: model.layers.0.self_attn.q_norm.weight"),
    ("glm4", "GlmForCausalLM", "unknown tensors: model.layers.0.post_mlp_layernorm.weight"),
    ("qwen3_moe", "Qwen3ForCausalLM", "missing: model.layers.0.mlp.gate_proj.weight"),
    ("qwen2_moe", "Qwen3MoeForCausalLM", "missing: model.layers.0.self_attn.q_norm.weight"),
    ("dots1", "Glm4MoeForCausalLM", "unknown tensors: model.layers.0.self_attn.k_norm.weight"),
    ("granite_swa", "GraniteForCausalLM", "unknown tensors: model.layers.0.self_attn.sinks"),
    ("deepseek_v3", "DeepseekV2ForCausalLM", "unknown tensors: model.layers.0.mlp.gate.e_score"),
    ("cohere2", "LlamaForCausalLM", "missing: model.layers.0.post_attention_layernorm.weight"),
    ("falcon", "BloomForCausalLM", "missing: transformer.word_embeddings_layernorm.weight"),
    ("jamba", "BambaForCausalLM", "missing: model.layers.0.feed_forward.gate_proj.weight"),
]


@pytest.mark.parametrize(("case", "architecture", "words"), RELATIVES)
def test_a_close_relative_is_refused(case: str, architecture: str, words: str, tmp_path: Path) -> None:
    tiny_model(case).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    config = {key: value for key, value in checkpoint.config.items() if key != "model_type"}
    with pytest.raises(HeadatlasError, match=re.escape(words)):
        open_model(replace(checkpoint, architecture=architecture, config=config))


@pytest.mark.parametrize("model_type", ["gemma", "diffllama", "granite"])
def test_a_model_type_of_other_modules_is_refused(
    parts: tuple[Tensors, dict[str, Any]], model_type: str
) -> None:
    """All have Llama's tensors; heads would be read as Llama's, and states come from other modules."""
    tensors, config = parts
    words = f"names the architecture 'LlamaForCausalLM', but the model type '{model_type}'"
    with pytest.raises(HeadatlasError, match=words):
        open_model(checkpoint_of(tensors, config | {"model_type": model_type}))
    assert open_model(checkpoint_of(tensors, config | {"model_type": "mistral"})).family.name == "llama"


def test_modules_must_have_a_place_for_what_is_read(tmp_path: Path) -> None:
    """transformers passes over a stored bias of a mixer without a word if the config knows of none."""
    tiny_model("bamba").float().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"mamba_conv_bias": False}), "utf-8")
    opened = open_model(open_checkpoint(tmp_path))
    with pytest.raises(HeadatlasError, match=r"holds 'model\.layers\.1\.mamba\.conv1d\.bias', for which"):
        opened.modules()


@pytest.mark.parametrize(
    ("case", "change", "words"),
    [
        ("opt", {"do_layer_norm_before": False}, "norms the residual stream after each block"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "takes the residual stream after"),
        (
            "stablelm",
            {"use_parallel_residual": True},
            "unknown tensors: model.layers.0.post_attention_layernorm",
        ),
        ("mixtral", {"num_local_experts": 5}, "missing: model.layers.0.block_sparse_moe.experts.4.w1.weight"),
        ("mixtral", {"num_local_experts": 3}, "unknown tensors: model.layers.0.block_sparse_moe.experts.3."),
        ("deepseek_v3", {"kv_lora_rank": 16}, "kv_b_proj.weight' has shape [80, 20]"),
    ],
)
def test_variants_that_are_not_what_they_seem(
    case: str, change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    tiny_model(case).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(HeadatlasError, match=re.escape(words)):
        open_model(replace(checkpoint, config={**checkpoint.config, **change}))


def test_what_w_v_leaves_out_is_said(tmp_path: Path) -> None:
    tiny_model("olmo").save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert open_model(checkpoint).checkpoint.notes == ()
    clipped = replace(checkpoint, config={**checkpoint.config, "clip_qkv": 8.0})
    assert "clips values at ±clip_qkv" in open_model(clipped).checkpoint.notes[0]


def test_layers_for_further_tokens_are_left_alone(tmp_path: Path) -> None:
    tiny_model("deepseek_v3").save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    tensors = {name: checkpoint.source.read(name) for name in checkpoint.source.infos()}
    more = {name.replace("layers.1.", "layers.2."): tensor for name, tensor in tensors.items()}
    extended = replace(checkpoint, source=DictSource(tensors | more))
    said, unsaid = ({**checkpoint.config, "num_nextn_predict_layers": count} for count in (1, 0))
    assert open_model(replace(extended, config=said)).dims.n_layers == 2
    with pytest.raises(HeadatlasError, match=re.escape("unknown tensors: model.layers.2.")):
        open_model(replace(extended, config=unsaid))


def test_a_layer_without_heads_says_so(tmp_path: Path) -> None:
    tiny_model("lfm2").save_pretrained(tmp_path)
    opened = open_model(open_checkpoint(tmp_path))
    assert opened.layers_with_heads == (0,) and not opened.every_layer_has_heads
    with pytest.raises(HeadatlasError, match="layer 1 has no attention heads; heads are in layers 0"):
        opened.heads(1)


@pytest.mark.parametrize("name", ["silu", "relu", "gelu", "gelu_pytorch_tanh"])
def test_activations_of_torch_are_those_of_transformers(name: str) -> None:
    from transformers.activations import ACT2FN

    rows, ours = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)), of_torch(name)
    assert ours is not None and torch.equal(ours(rows), ACT2FN[name](rows))
    assert of_torch("gelu_new") is None
