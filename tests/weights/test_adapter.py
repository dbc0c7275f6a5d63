"""Adapters of PEFT: merged they are W + scale * B @ A, beside a model they are never passed over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from headatlas.architectures import open_model
from headatlas.errors import HeadatlasError
from headatlas.weights import load_modules, open_checkpoint
from tests.mapping.checkpoints import tiny_model
from tests.weights import builders

Q, V, O = ("model.layers.1.self_attn." + name for name in ("q_proj", "v_proj", "o_proj"))  # noqa: E741
DOWN = "model.layers.0.mlp.down_proj"
CONFIG = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 10,
    "bias": "none",
    "base_model_name_or_path": "org/base",
}
NEW = {"use_dora": False, "lora_dropout": 0.1, "target_modules": ["v_proj"], "init_lora_weights": True}
Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]


def factors(base: Path, ranks: dict[str, int], *, transposed: bool = False) -> Factors:
    """Random A [r, in] and B [out, r] for some modules of a base."""
    generator = torch.Generator().manual_seed(5)
    stored = load_file(base / "model.safetensors")
    found = {}
    for module, rank in ranks.items():
        d_out, d_in = stored[f"{module}.weight"].shape[:: -1 if transposed else 1]
        found[module] = (
            torch.randn(rank, d_in, generator=generator),
            torch.randn(d_out, rank, generator=generator),
        )
    return found


def write(
    folder: Path,
    pairs: Factors,
    name: str = "base_model.model.{module}.lora_{side}.weight",
    also: dict[str, torch.Tensor] | None = None,
    **config: Any,
) -> Path:
    """An adapter as PEFT saves it."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    tensors = {
        name.format(module=module, side=side): tensor
        for module, both in pairs.items()
        for side, tensor in zip("AB", both, strict=True)
    }
    save_file(tensors | (also or {}), folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("config", "scale"),
    [(NEW, 2.5), ({"use_rslora": True}, 5)],
)
@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.{module}.lora_{side}.weight",
        "base_model.model.{module}.lora_{side}.default.weight",
        "{module}.lora_{side}.weight",
        "_orig_mod.base_model.model.{module}.lora_{side}.weight",
    ],
)
def test_every_weight_is_the_stored_one_plus_the_scaled_product(
    llama_folder: Path, tmp_path: Path, config: dict[str, Any], scale: float, name: str
) -> None:
    pairs = factors(llama_folder, dict.fromkeys((V, Q, DOWN), 4))
    checkpoint = open_checkpoint(llama_folder, adapter=write(tmp_path / "a", pairs, name, **config))
    stored = load_file(llama_folder / "model.safetensors")
    for module, (A, B) in pairs.items():
        stored[f"{module}.weight"] += scale * (B @ A)
    for tensor, wanted in stored.items():
        assert torch.allclose(checkpoint.source.read(tensor), wanted, rtol=1e-6, atol=1e-6)
        assert torch.allclose(checkpoint.source.stored(tensor), wanted, rtol=1e-6, atol=1e-6)
        for rows in (slice(3, 9), [4, 0, 4]):
            assert torch.allclose(checkpoint.source.read(tensor, rows), wanted[rows], rtol=1e-6, atol=1e-6)
    assert checkpoint.adapter is not None
    assert checkpoint.adapter.tensors == {f"{module}.weight" for module in pairs}


def test_a_rank_that_is_not_the_files(llama_folder: Path, tmp_path: Path) -> None:
    wrong = write(tmp_path / "b", factors(llama_folder, {V: 3}), r=4)
    with pytest.raises(HeadatlasError, match=r"r is 4, but .*v_proj.* has 3 rows"):
        open_checkpoint(llama_folder, adapter=wrong)


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_weights_of_gpt2_are_stored_input_first(tmp_path: Path, prefix: str) -> None:
    base = builders.save(tiny_model("gpt2"), tmp_path / "base", tokenizer=False)
    file = base / "model.safetensors"
    if not prefix:  # as the first published files have it
        save_file(
            {name.removeprefix("transformer."): t for name, t in load_file(file).items()},
            file,
            {"format": "pt"},
        )
    ranks = {f"{prefix}h.0.attn.c_attn": 4, f"{prefix}h.1.attn.c_proj": 4, f"{prefix}h.1.mlp.c_fc": 4}
    pairs = factors(base, ranks, transposed=True)
    named = {f"transformer.{module.removeprefix(prefix)}": both for module, both in pairs.items()}
    checkpoint = open_checkpoint(base, adapter=write(tmp_path / "a", named, fan_in_fan_out=True))
    stored = load_file(file)
    for module, (A, B) in pairs.items():
        wanted = stored[f"{module}.weight"] + 2.5 * (B @ A).T
        assert torch.allclose(checkpoint.source.read(f"{module}.weight"), wanted, rtol=1e-6, atol=1e-6)
        part = checkpoint.source.read(f"{module}.weight", [5, 1])
        assert torch.allclose(part, wanted[[5, 1]], rtol=1e-6, atol=1e-6)
    open_model(checkpoint)
    with pytest.raises(
        HeadatlasError, match=r"fan_in_fan_out is false, but the base stores '.*c_proj.*input f"
    ):
        open_checkpoint(base, adapter=write(tmp_path / "b", named))


@pytest.mark.parametrize("shards", [None, "16KB"])
def test_modules_hold_the_merged_weights(tmp_path: Path, shards: str | None) -> None:
    model = builders.tiny_llama(torch.bfloat16)
    single = builders.save(model, tmp_path / "single")
    base = builders.save(model, tmp_path / "base", shard_size=shards)
    pairs = factors(single, {V: 4, DOWN: 4})
    checkpoint = open_checkpoint(base, adapter=write(tmp_path / "a", pairs))
    wanted = model.float()
    with torch.no_grad():
        for module, (A, B) in pairs.items():
            wanted.get_parameter(f"{module}.weight").add_(2.5 * (B @ A))
    loaded = load_modules(checkpoint)
    for name, tensor in wanted.state_dict().items():
        assert torch.allclose(loaded.state_dict()[name], tensor, rtol=1e-6, atol=1e-6)


def test_what_is_said_of_it(llama_folder: Path, tmp_path: Path) -> None:
    adapter = write(tmp_path / "mine", factors(llama_folder, {V: 4}))
    plain, merged = open_checkpoint(llama_folder), open_checkpoint(llama_folder, adapter=adapter)
    assert merged.name == "tiny-llama + mine"
    assert merged.notes == (
        "The adapter mine (LoRA) is merged into tiny-llama (1 of 21 tensors); it says that its base is "
        "'org/base'.",
    )
    assert merged.source.fingerprint().startswith("adapted-sha256:")
    other = write(tmp_path / "other", factors(llama_folder, {V: 4}), lora_alpha=11)
    another, again = (open_checkpoint(llama_folder, adapter=each) for each in (other, str(adapter)))
    assert len({each.source.fingerprint() for each in (plain, merged, another)}) == 3
    assert again.source.fingerprint() == merged.source.fingerprint()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ({"peft_type": None}, "peft_type is None"),
    ({"use_dora": True}, "use_dora is True, which is more than a plain LoRA"),
    ({"bias": "lora_only"}, "bias is lora_only"),
    ({"lora_bias": True}, "lora_bias is True"),
    ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
    ({"target_parameters": ["experts"]}, "target_parameters"),
    ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ({"something_new": {"a": 1}}, "something_new is"),
    (
        {"init_lora_weights": "pissa_niter_16"},
        "init_lora_weights is 'pissa_niter_16', which is not merged",
    ),
    ({"alpha_pattern": {"v_proj": 2}}, "alpha_pattern is .*more than a plain LoRA"),
    ({"rank_pattern": {"v_proj": 2}}, "rank_pattern is .*more than a plain LoRA"),
    ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
    ({"use_rslora": "yes"}, "use_rslora is 'yes'"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out is true, but the base stores .* output first"),
]


@pytest.mark.parametrize(("config", "problem"), REFUSED)
def test_more_than_a_plain_lora_is_refused_by_name(
    llama_folder: Path, tmp_path: Path, config: dict[str, Any], problem: str
) -> None:
    adapter = write(tmp_path / "a", factors(llama_folder, {V: 4, O: 4}), **config)
    with pytest.raises(HeadatlasError, match=problem) as caught:
        open_checkpoint(llama_folder, adapter=adapter)
    assert str(adapter) in str(caught.value)


@pytest.mark.parametrize(
    ("also", "problem"),
    [
        ({"base_model.model.lm_head.weight": (9, 9)}, r"'base_model\.model\.lm_head\.weight' is no A or B"),
        ({f"base_model.model.{V}.lora_magnitude_vector": (9,)}, "lora_magnitude_vector' is no A or B"),
        ({f"base_model.model.{V}.lora_B.bias": (9,)}, r"lora_B\.bias' is no A or B"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": (4, 9)}, "lora_embedding_A' is no A or B"),
        ({f"base_model.model.{O}.lora_A.weight": (4, 32)}, "has no partner"),
        (
            {f"base_model.model.{O}.lora_A.weight": (4, 32), f"base_model.model.{O}.lora_B.weight": (32, 5)},
            "has 4 rows and .* 5 columns",
        ),
        (
            {f"base_model.model.{O}.lora_A.weight": (4, 30), f"base_model.model.{O}.lora_B.weight": (32, 4)},
            r"make a matrix of 32 by 30, but .* the shape \[32, 32\]",
        ),
        (
            {"base_model.model.x.lora_A.weight": (4, 32), "base_model.model.x.lora_B.weight": (32, 4)},
            r"'base_model\.model\.x\.lora_A\.weight' belongs to no weight of the base",
        ),
        ({f"base_model.model.{V}.lora_A.other.weight": (4, 32)}, "is there for several adapters"),
        ({f"{V}.lora_A.weight": (4, 32), f"{V}.lora_B.weight": (16, 4)}, "is there for several adapters"),
    ],
)
def test_tensors_that_fit_nothing_are_refused_by_name(
    llama_folder: Path, tmp_path: Path, also: dict[str, tuple[int, ...]], problem: str
) -> None:
    tensors = {name: torch.zeros(shape) for name, shape in also.items()}
    adapter = write(tmp_path / "a", factors(llama_folder, {V: 4}), also=tensors)
    with pytest.raises(HeadatlasError, match=problem):
        open_checkpoint(llama_folder, adapter=adapter)


def test_numbers_that_are_not_finite_name_the_adapter(llama_folder: Path, tmp_path: Path) -> None:
    pairs = factors(llama_folder, {V: 4})
    pairs[V][0][2, 3] = float("nan")
    checkpoint = open_checkpoint(llama_folder, adapter=write(tmp_path / "a", pairs))
    with pytest.raises(HeadatlasError, match=r"adapter_model\.safetensors: tensor .*lora_A.* not finite"):
        checkpoint.source.read(f"{V}.weight")
    assert bool(torch.isfinite(checkpoint.source.read(f"{Q}.weight")).all())


@pytest.fixture
def beside(llama_folder: Path, tmp_path: Path) -> Path:
    """A folder with base weights and an adapter."""
    shutil.copytree(llama_folder, tmp_path / "both")
    return write(tmp_path / "both", factors(llama_folder, {V: 4}))


@pytest.mark.parametrize("gone", ["", "adapter_model.safetensors", "adapter_config.json"])
@pytest.mark.parametrize("given", ["", "model.safetensors"])
def test_an_adapter_beside_the_weights_is_never_passed_over(beside: Path, gone: str, given: str) -> None:
    if gone:
        (beside / gone).unlink()
    with pytest.raises(
        HeadatlasError, match=r"adapter that is not merged .*give `adapter` .*both to map the two tog"
    ):
        open_checkpoint(beside / given)


def test_an_adapter_beside_the_weights_is_merged_when_asked_for(beside: Path) -> None:
    checkpoint = open_checkpoint(beside, adapter=beside)
    A, B = factors(beside, {V: 4})[V]
    wanted = load_file(beside / "model.safetensors")[f"{V}.weight"] + 2.5 * (B @ A)
    assert torch.allclose(checkpoint.source.read(f"{V}.weight"), wanted, rtol=1e-6)
    assert torch.equal(
        load_modules(checkpoint).get_parameter(f"{V}.weight"), checkpoint.source.read(f"{V}.weight")
    )


def test_an_adapter_among_the_weights(beside: Path) -> None:
    file = beside / "model.safetensors"
    save_file(load_file(file) | load_file(beside / "adapter_model.safetensors"), file)
    for adapter in (None, beside):
        with pytest.raises(
            HeadatlasError, match=r"lora_A\.weight': an adapter is in the model and not merged"
        ):
            open_checkpoint(beside, adapter=adapter)


def test_an_adapter_alone_names_its_base(llama_folder: Path, tmp_path: Path) -> None:
    adapter = write(tmp_path / "a", factors(llama_folder, {V: 4}))
    for given in (adapter, adapter / "adapter_model.safetensors"):
        with pytest.raises(
            HeadatlasError, match="an adapter of 'org/base', not a whole model; give 'org/base'"
        ):
            open_checkpoint(given)
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(HeadatlasError, match="does not name its base"):
        open_checkpoint(adapter / "adapter_model.safetensors")


def test_where_nothing_can_be_merged(llama_folder: Path, tmp_path: Path) -> None:
    adapter = write(tmp_path / "a", factors(llama_folder, {V: 4}))
    gguf = builders.qwen2_gguf(tmp_path / "tiny.gguf", builders.tiny_qwen2())
    with pytest.raises(HeadatlasError, match=r"merged into safetensors, and .*tiny\.gguf is a GGUF file"):
        open_checkpoint(gguf, adapter=adapter)
    with pytest.raises(HeadatlasError, match="is a loaded model"):
        open_checkpoint(builders.tiny_llama(), adapter=adapter)
    with pytest.raises(
        HeadatlasError, match=r"`adapter` org/mine: there is no adapter_config\.json.*hf download"
    ):
        open_checkpoint(llama_folder, adapter="org/mine")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(HeadatlasError, match=r"holds no adapter_model\.safetensors; save the adapter again"):
        open_checkpoint(llama_folder, adapter=adapter)


class PeftModel(torch.nn.Module):
    """What PEFT wraps a model in, by its name."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.base_model = model


@pytest.mark.parametrize(
    ("wrap", "problem"),
    [
        (PeftModel, r"A PeftModel is no model .*give what PEFT's merge_and_unload\(\) makes of a copy"),
        (lambda _: 3, "A int is no model .*give a path, a name or a PreTrainedModel"),
    ],
)
def test_wrapped_models_say_how_to_get_at_the_model(wrap: Callable[[Any], Any], problem: str) -> None:
    model = builders.tiny_llama()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wrapped = wrap(model)
    with pytest.raises(HeadatlasError, match=problem):
        open_checkpoint(wrapped, builders.tiny_tokenizer())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_parts_of_a_loaded_model_that_are_wrapped() -> None:
    model: Any = builders.tiny_llama()
    projection = model.model.layers[0].self_attn
    inner, projection.q_proj = projection.q_proj, torch.nn.Module()
    projection.q_proj.base_layer = inner
    with pytest.raises(HeadatlasError, match=r"q_proj\.base_layer\.weight': an adapter is in the model"):
        open_checkpoint(model, builders.tiny_tokenizer())


@pytest.mark.parametrize(
    ("prefix", "problem"),
    [
        ("_orig_mod.", "a compiled part was put into the model; .*saved with its save_pretrained"),
        (
            "module.",
            r"all names begin with 'module\.', which parallel training .*saved with its save_pretrained",
        ),
        ("base_model.model.", "an adapter is in the model"),
    ],
)
def test_names_of_saved_wrappers(llama_folder: Path, tmp_path: Path, prefix: str, problem: str) -> None:
    shutil.copytree(llama_folder, tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    save_file({f"{prefix}{name}": tensor for name, tensor in load_file(file).items()}, file)
    with pytest.raises(HeadatlasError, match=problem):
        open_checkpoint(tmp_path / "m")
