"""FP8 and MXFP4 safetensors are read as the numbers that transformers makes of them; the rest is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from headatlas.errors import HeadatlasError
from headatlas.weights import load_modules, open_checkpoint
from headatlas.weights.safetensors_source import SafetensorsSource
from tests.weights import builders

FP8 = torch.float8_e4m3fn
BLOCKS = {"quant_method": "fp8", "weight_block_size": [16, 16]}


def source_of(
    folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any] | None = None
) -> SafetensorsSource:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    source = SafetensorsSource([folder / "model.safetensors"])
    source.dequantise({} if config is None else {"quantization_config": config})
    return source


def random_fp8(*shape: int, dtype: torch.dtype = FP8) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def check(source: SafetensorsSource, name: str, expected: torch.Tensor) -> None:
    """Whole, by slice, by rows; the shape is known beforehand."""
    info = source.infos()[name]
    assert info.shape == tuple(expected.shape)
    found = source.read(name)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    n = len(expected)
    assert torch.equal(source.read(name, slice(1, n, 2)), expected[1:n:2])
    assert torch.equal(source.read(name, [n - 1, 0, 0]), expected[[n - 1, 0, 0]])
    assert torch.equal(source.read(name, [-1]), expected[[-1]])
    assert source.read(name, slice(2, 2)).shape == (0, *expected.shape[1:])


@pytest.mark.parametrize("scale_type", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu])
@pytest.mark.parametrize("shape", [(64, 48), (3, 32, 48)])
def test_block_scales_as_transformers_applies_them(
    tmp_path: Path, shape: tuple[int, ...], scale_type: torch.dtype
) -> None:
    weight = random_fp8(*shape)
    grid = (*shape[:-2], shape[-2] // 16, shape[-1] // 16)
    scale = torch.rand(grid, generator=torch.Generator().manual_seed(1)).add(0.1).to(scale_type)
    source = source_of(tmp_path, {"a.weight": weight, "a.weight_scale_inv": scale}, BLOCKS)
    assert set(source.infos()) == {"a.weight"}
    assert source.infos()["a.weight"].dtype == "F8_E4M3"
    assert source.infos()["a.weight"].nbytes == weight.nbytes + scale.nbytes
    check(source, "a.weight", Fp8Dequantize(None)._dequantize_one(weight, scale, torch.float32))


def test_scales_in_bytes_are_exponents(tmp_path: Path) -> None:
    weight = random_fp8(32, 64)
    scale = torch.randint(120, 130, (32, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    source = source_of(tmp_path, {"a.weight": weight, "a.weight_scale_inv": scale}, {"quant_method": "mxfp8"})
    check(source, "a.weight", Fp8Dequantize(None)._dequantize_one(weight, scale, torch.float32))


def test_a_last_block_may_be_smaller(tmp_path: Path) -> None:
    """DeepSeek-V3's down-projection to the latent has 576 rows: five blocks of 128, the last one half."""
    weight, scale = random_fp8(72, 40), torch.rand(5, 3) + 0.1
    source = source_of(tmp_path, {"a.weight": weight, "a.weight_scale_inv": scale}, BLOCKS)
    rows, columns = torch.arange(72) // 16, torch.arange(40) // 16
    check(source, "a.weight", weight.float() * scale[rows][:, columns])


@pytest.mark.parametrize("shape", [(6, 1), (6,), (1, 1), (1,), ()])
@pytest.mark.parametrize("suffix", ["_scale", "_scale_inv"])
def test_scales_of_rows_and_of_the_whole(tmp_path: Path, shape: tuple[int, ...], suffix: str) -> None:
    """compressed-tensors and fbgemm: one a row ("channel"), or one in all ("tensor")."""
    weight, scale = random_fp8(6, 10, dtype=torch.float8_e5m2), torch.rand(shape) + 0.1
    tensors = {
        "a.weight": weight,
        f"a.weight{suffix}": scale,
        "a.input_scale": torch.ones(1),
        "b.weight": torch.ones(2),
    }
    source = source_of(tmp_path, tensors, {"quant_method": "compressed-tensors", "format": "float-quantized"})
    assert set(source.infos()) == {"a.weight", "b.weight"}
    check(source, "a.weight", weight.float() * (scale.reshape(-1, 1) if scale.numel() > 1 else scale.item()))


def test_mxfp4_as_transformers_unpacks_it(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 10, 2, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(110, 140, (3, 10, 2), dtype=torch.uint8, generator=generator)
    source = source_of(
        tmp_path,
        {"m.down_proj_blocks": blocks, "m.down_proj_scales": scales, "m.down_proj_bias": torch.ones(3)},
    )
    assert set(source.infos()) == {"m.down_proj", "m.down_proj_bias"}
    assert source.infos()["m.down_proj"].dtype == "MXFP4"
    check(source, "m.down_proj", convert_moe_packed_tensors(blocks, scales, dtype=torch.float32))


def quantised_llama(folder: Path) -> Path:
    """A tiny Llama whose projections are FP8 in blocks of 16."""
    builders.save(builders.tiny_llama(), folder)
    tensors = builders.tiny_llama().state_dict()
    for name in [name for name in tensors if "proj" in name]:
        rows, columns = (math.ceil(size / 16) for size in tensors[name].shape)
        tensors[f"{name}_scale_inv"] = torch.rand(rows, columns) + 0.1
        tensors[name] = tensors[name].to(FP8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": BLOCKS}))
    return folder


def test_modules_hold_the_numbers_that_are_read(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(quantised_llama(tmp_path / "tiny"))
    loaded = load_modules(checkpoint)
    reference = AutoModelForCausalLM.from_pretrained(str(tmp_path / "tiny"), dtype=torch.float32)
    for name, parameter in reference.named_parameters():
        assert torch.equal(checkpoint.source.read(name), parameter)
        assert torch.equal(loaded.get_parameter(name), parameter)
    assert checkpoint.source.fingerprint().startswith("sha256:")


def test_gpt_oss_as_it_is_published(tmp_path: Path) -> None:
    """Experts in MXFP4, the rest plain: modules from unpacked tensors equal those that transformers loads."""
    torch.manual_seed(0)
    model = GptOssForCausalLM(
        GptOssConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, num_local_experts=2, num_experts_per_tok=1, pad_token_id=None,
            layer_types=["full_attention"],
        )
    )  # fmt: skip
    model.save_pretrained(tmp_path)
    tensors = model.state_dict()
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, d_in, d_out = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (experts, d_out, d_in // 32, 16), dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(118, 124, (experts, d_out, d_in // 32), dtype=torch.uint8)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "mxfp4"}})
    )
    checkpoint = open_checkpoint(tmp_path)
    loaded = load_modules(checkpoint)
    assert set(loaded.state_dict()) == set(checkpoint.source.infos())
    for name, parameter in loaded.named_parameters():
        assert torch.equal(checkpoint.source.read(name), parameter)
    reference = AutoModelForCausalLM.from_pretrained(str(tmp_path), dtype=torch.float32)
    ids = torch.tensor([[1, 5, 9]])
    torch.testing.assert_close(loaded(ids).logits, reference(ids).logits)


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


INT = torch.int32
REFUSED: list[tuple[dict[str, Any], dict[str, torch.Tensor], str]] = [
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, {"a.qweight": ones(2, dtype=INT)}, "gptq"),
    ({}, {"a.qweight": ones(2, dtype=INT), "a.qzeros": ones(2, dtype=INT)}, "GPTQ or AWQ"),
    ({"quantization_config": {"quant_method": "awq"}}, {"a.qweight": ones(2, dtype=INT)}, "awq"),
    (
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"a.weight": ones(2, 1, dtype=torch.uint8), "a.weight.absmax": ones(1)},
        r"bitsandbytes.*\.dequantize\(\)\.save_pretrained",
    ),
    (
        {"quantization_config": {"quant_method": "bitnet", "quantization_mode": "online"}},
        {"a.weight": ones(2)},
        "quantised in the forward pass .bitnet",
    ),
    (
        {"quantization_config": {"quant_method": "torchao"}},
        {"a.weight": ones(2, dtype=torch.int8)},
        "torchao",
    ),
    (
        {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}},
        {"a.weight_packed": ones(2, 1, dtype=INT), "a.weight_scale": ones(2, 1)},
        "compressed-tensors",
    ),
    (
        {"quantization": {"group_size": 64, "bits": 4}},
        {"a.weight": ones(2, 1, dtype=torch.uint32), "a.scales": ones(2, 1), "a.biases": ones(2, 1)},
        r"mlx.*mlx_lm\.convert --dequantize",
    ),
    (
        {"quantization_config": {"quant_method": "compressed-tensors", "format": "int-quantized"}},
        {"a.weight": ones(2, 2, dtype=torch.int8), "a.weight_scale": ones(2, 1)},
        r"quantised \(compressed-tensors\)",
    ),
    ({}, {"a.weight": random_fp8(4, 4)}, r"quantised \('a\.weight' is F8_E4M3\)"),
    (
        {"quantization_config": {"quant_method": "compressed-tensors", "transform_config": {"R1": 1}}},
        {"a.weight": random_fp8(2, 2), "a.weight_scale": ones(2, 1)},
        "transform_config",
    ),
    ({}, {"a.weight": random_fp8(6, 4), "a.weight_scale": ones(4, 3)}, "do not fit the tensor 'a.weight'"),
    (
        {},
        {"a.weight": random_fp8(6, 4), "a.weight_scale": ones(6, 1), "a.weight_scale_inv": ones(6, 1)},
        "two scales",
    ),
    (
        {},
        {"x_blocks": ones(1, 2, 1, 8, dtype=torch.uint8), "x_scales": ones(1, 2, 1, dtype=torch.uint8)},
        "do not fit",
    ),
]


@pytest.mark.parametrize(("config", "tensors", "problem"), REFUSED)
def test_what_is_not_read_says_what_to_do(
    tmp_path: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], problem: str
) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]} | config))
    with pytest.raises(HeadatlasError, match=problem):
        open_checkpoint(tmp_path)


def test_settings_left_over_from_a_quantised_model_do_not_keep_plain_weights_from_running(
    tmp_path: Path,
) -> None:
    model = builders.tiny_llama()
    builders.save(model, tmp_path)
    file = tmp_path / "config.json"
    left = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    file.write_text(json.dumps(json.loads(file.read_text()) | left))
    ids = torch.tensor([[3, 5]])
    with torch.no_grad():
        assert torch.equal(load_modules(open_checkpoint(tmp_path))(ids).logits, model(ids).logits)


def test_masks_in_bytes_and_leftover_settings_are_no_quantisation(tmp_path: Path) -> None:
    tensors = {"h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8), "w": torch.ones(2)}
    assert set(source_of(tmp_path, tensors, {"quant_method": "mxfp4"}).infos()) == set(tensors)
    assert set(source_of(tmp_path, {"w": torch.ones(2)}, {"quant_method": "gptq"}).infos()) == {"w"}
