"""A checkpoint close to a known family but not equal is refused, or read as transformers runs it.

Mutations of a saved tiny model: tensors more, fewer, turned or renamed, and every switch and small number of
the config. What still opens must give the heads, norms and first MLP that its modules have.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from headatlas.architectures import Model, open_model
from headatlas.errors import HeadatlasError
from headatlas.weights import open_checkpoint

from .oracle import hold
from .tiny import checkpoint_of, tiny_model

FAMILIES = ["gemma3", "qwen3_moe"]
MORE = [
    "apertus", "aria_text", "biogpt", "cohere", "cohere2_moe", "ctrl", "deepseek_v2", "deepseek_v3",
    "dots1", "exaone_moe", "falcon", "falcon_h1", "gemma", "glm4_moe", "gpt_neox", "gpt_oss", "granitemoe",
    "jamba", "lfm2_moe", "llama", "llama4", "mellum", "nemotron", "olmo2", "olmo_hybrid", "opt", "phi",
    "phimoe", "stablelm", "starcoder2",
]  # fmt: skip
CASES = [*FAMILIES, *(pytest.param(case, marks=pytest.mark.exhaustive) for case in MORE)]


@pytest.fixture(scope="module", params=CASES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model(request.param).float().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return config


def never_read(folder: Path) -> tuple[str, ...]:
    """Beginnings of the names of mixers beside attention, which headatlas leaves to transformers."""
    config = config_of(folder)
    mixers = ("mamba", "linear_attn", "conv")
    layers = range(config.get("num_hidden_layers", 0))  # CTRL, which has none of them, calls it n_layer
    return tuple(f"model.layers.{layer}.{mixer}." for layer in layers for mixer in mixers)


def read(tensors: Mapping[str, torch.Tensor], config: dict[str, Any]) -> list[torch.Tensor]:
    """Everything headatlas takes from a checkpoint."""
    model: Model = open_model(checkpoint_of(dict(tensors), config))
    found = [model.unembed(), model.embed()]
    for layer in model.layers_with_heads:
        heads, right = model.heads(layer), model.right_map(layer)
        parts = (heads.W_V, heads.b_V, heads.W_O, right.post_gain, right.final_gain)
        found += [part for part in parts if part is not None]
    if model.mlp_modules(0):
        rows = torch.randn(5, model.dims.d_model, generator=torch.Generator().manual_seed(0))
        found.append(model.first_mlp(rows))
    return found


def refused_or_same(
    tensors: Mapping[str, torch.Tensor], config: dict[str, Any], expected: list[torch.Tensor]
) -> bool:
    """Whether a mutation is refused; if not, it must change nothing."""
    try:
        found = read(tensors, config)
    except HeadatlasError:
        return True
    assert len(found) == len(expected)
    assert all(torch.equal(left, right) for left, right in zip(found, expected, strict=True))
    return False


# Tensors ----------------------------------------------------------------------------------------------


def test_more_tensors_are_refused(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Another norm in a layer, and a bias wherever there is none."""
    config, one = config_of(folder), torch.ones(32)
    block = next(name for name in tensors if ".0." in name).partition(".0.")[0]
    more = [f"{block}.{layer}.{name}" for layer in (0, 1) for name in ("extra_norm.weight", "norm_3.weight")]
    more += [name.replace(".weight", ".bias") for name in tensors if name.endswith(".weight")]
    free = never_read(folder)
    for name in (name for name in more if name not in tensors and not name.startswith(free)):
        with pytest.raises(HeadatlasError, match="unknown tensors"):
            read({**tensors, name: one}, config)


def test_missing_and_renamed_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    config = config_of(folder)
    expected, free = read(tensors, config), never_read(folder)
    for name, tensor in tensors.items():
        fewer = {key: other for key, other in tensors.items() if key != name}
        refused_or_same(fewer, config, expected)
        renamed = refused_or_same({**fewer, f"{name}_renamed": tensor}, config, expected)
        assert renamed or name.startswith(free)


def test_turned_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Of what is read, any other layout has another shape; the rest changes nothing."""
    config = config_of(folder)
    expected = read(tensors, config)
    for name, tensor in tensors.items():
        if tensor.ndim > 1 and tensor.shape[-1] != tensor.shape[-2]:
            refused_or_same({**tensors, name: tensor.mT.contiguous()}, config, expected)
        refused_or_same(
            {**tensors, name: torch.atleast_1d(tensor).repeat_interleave(2, dim=0)}, config, expected
        )


# Config -----------------------------------------------------------------------------------------------


GONE = object()
"""In place of a value: the key is not there, and the default of the config class counts."""
ACTIVATIONS = ("relu", "gelu", "silu")


def mutated(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key gone, every switch the other way, every small number one more, half or twice, every number
    another, every activation another, every epsilon too large to be overlooked."""
    for key, value in config.items():
        yield key, GONE
        if isinstance(value, bool):
            yield key, not value
        elif isinstance(value, int) and not key.endswith("_id") and 0 < value < 200:
            yield key, value + 1
            yield key, max(1, value // 2)
            yield key, 2 * value
        elif isinstance(value, float):
            yield key, 0.3 if key.endswith(("eps", "epsilon")) else value / 2
        elif isinstance(value, str) and "act" in key:
            yield from ((key, other) for other in ACTIVATIONS if other != value)
        elif value is None and key.endswith(("eps", "epsilon")):
            yield key, 0.3


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    yield
    logging.set_verbosity(before)


def test_every_key_of_the_config(folder: Path, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config, opened = config_of(folder), 0
    for key, value in mutated(config):
        changed = {name: other for name, other in config.items() if name != key}
        changed |= {} if value is GONE else {key: value}
        (tmp_path / "config.json").write_text(json.dumps(changed), "utf-8")
        try:
            model = open_model(open_checkpoint(tmp_path))
        except HeadatlasError:
            continue
        modules = loaded(tmp_path)
        if modules is None:
            continue  # transformers refuses it as well
        try:
            modules(torch.arange(3, 9).unsqueeze(0))
        except (ValueError, RuntimeError, IndexError, TypeError):
            continue  # they do not run
        opened += 1
        try:
            hold(model, modules)
        except Exception as error:
            error.add_note(f"{key} gone" if value is GONE else f"{key} = {value!r}")
            raise
    assert opened


def loaded(folder: Path) -> PreTrainedModel | None:
    """The modules as transformers makes them; None where it makes none, or not with these tensors."""
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float64, output_loading_info=True
        )
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ):
        return None
    except StrictDataclassError:
        return None
    if report["missing_keys"] or report["mismatched_keys"] or report["unexpected_keys"]:
        return None
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    return model.eval()
