"""Models in memory: mapped as the same weights from files are, and handed back as they came."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from headatlas.atlas import Atlas
from headatlas.errors import HeadatlasError
from headatlas.lenses import NeutralStates, StreamedStates
from headatlas.mapping.run import map_heads
from headatlas.weights import loading
from tests.mapping.checkpoints import random_relations, save, tiny_model, word_tokenizer
from tests.mapping.test_run import RANKS, assert_same

Prepare = Callable[[PreTrainedModel], Any]
# What torch says of itself when torch.compile is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def as_it_comes(model: PreTrainedModel) -> PreTrainedModel:
    return model


def training(model: PreTrainedModel) -> PreTrainedModel:
    """With dropout everywhere."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    return model.train()


def partly_training(model: PreTrainedModel) -> PreTrainedModel:
    model.train()
    model.base_model.eval()
    return model


def hooked(model: PreTrainedModel) -> PreTrainedModel:
    """With hooks that change what goes through, and one that would fail."""

    def louder(_module: nn.Module, _args: Any, out: Any) -> Any:
        return (out[0] * 3, *out[1:]) if isinstance(out, tuple) else out * 3

    def fail(*_: Any) -> None:
        raise RuntimeError("a user's hook ran")

    for module in model.base_model.children():
        module.register_forward_hook(louder)
    model.get_input_embeddings().register_forward_pre_hook(fail)
    return model


def with_gradients(model: PreTrainedModel) -> PreTrainedModel:
    model(input_ids=torch.tensor([[20, 21, 22]])).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    return model


def checkpointing(model: PreTrainedModel) -> PreTrainedModel:
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
    model.enable_input_require_grads()
    return model.train()


def eager(model: PreTrainedModel) -> PreTrainedModel:
    model.set_attn_implementation("eager")
    return model


def sdpa(model: PreTrainedModel) -> PreTrainedModel:
    model.set_attn_implementation("sdpa")
    return model


def flash(model: PreTrainedModel) -> PreTrainedModel:
    """Of which the package is not installed, as for a model that another machine has prepared."""
    model.config._attn_implementation_internal = "flash_attention_2"
    return model


def without_cache(model: PreTrainedModel) -> PreTrainedModel:
    model.config.use_cache = False
    model.config.output_hidden_states = True
    model.config.output_attentions = False
    return model


def compiled(model: PreTrainedModel) -> nn.Module:
    wrapped: nn.Module = torch.compile(model)
    return wrapped


def compiled_in_place(model: PreTrainedModel) -> PreTrainedModel:
    model.compile()
    return model


def compiled_layers(model: PreTrainedModel) -> PreTrainedModel:
    layers: Any = next(part for part in model.modules() if isinstance(part, nn.ModuleList))
    for at, layer in enumerate(layers):
        layers[at] = torch.compile(layer)
    return model


def parallel(model: PreTrainedModel) -> nn.Module:
    return nn.DataParallel(model)


def patched(model: PreTrainedModel) -> PreTrainedModel:
    """With a method of its own."""

    def forward(*_: Any, **__: Any) -> None:
        raise RuntimeError("a user's method ran")

    model.base_model.forward = forward
    return model


def bfloat16(model: PreTrainedModel) -> PreTrainedModel:
    return model.to(torch.bfloat16)


def float16(model: PreTrainedModel) -> PreTrainedModel:
    return model.to(torch.float16)


def float64(model: PreTrainedModel) -> PreTrainedModel:
    return model.to(torch.float64)


def mixed(model: PreTrainedModel) -> PreTrainedModel:
    """Norms stay in float32, as some keep them."""
    model.to(torch.bfloat16)
    for name, module in model.named_modules():
        if "norm" in name or "ln_" in name:
            module.float()
    return model


def own_class(model: PreTrainedModel) -> PreTrainedModel:
    class Own(type(model)):  # type: ignore[misc]
        def forward(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("a user's method ran")

    model.__class__ = Own
    return model


CASES: list[Prepare] = [
    as_it_comes, training, partly_training, hooked, with_gradients, checkpointing, eager, sdpa, flash,
    without_cache, compiled, compiled_in_place, compiled_layers, parallel, patched, bfloat16, float16,
    float64, mixed, own_class,
]  # fmt: skip


def seen(module: nn.Module) -> dict[str, Any]:
    """All that must not change, by what it is."""
    parts = dict(module.named_modules())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    configs = {path: part.config for path, part in parts.items() if hasattr(part, "config")}
    return {
        "modules": {path: id(part) for path, part in parts.items()},
        "mode": {path: part.training for path, part in parts.items()},
        "hooks": {path: [dict(getattr(part, name)) for name in hooks] for path, part in parts.items()},
        "own": {path: sorted(vars(part)) for path, part in parts.items()},
        "configs": {path: copy.deepcopy(vars(config)) for path, config in configs.items()},
        "forward": {path: vars(part).get("forward") for path, part in parts.items()},
        "checkpointing": {path: vars(part).get("gradient_checkpointing") for path, part in parts.items()},
        "compiled": {path: part._compiled_call_impl for path, part in parts.items()},
        "parameters": {name: id(each) for name, each in module.named_parameters(remove_duplicate=False)},
        "learns": {name: each.requires_grad for name, each in module.named_parameters()},
        "storage": {name: each.data_ptr() for name, each in module.named_parameters()},
    }


def numbers(module: nn.Module) -> dict[str, torch.Tensor]:
    """Bits of all parameters, buffers and gradients."""
    every = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    grads = {f"{name}.grad": each.grad for name, each in module.named_parameters() if each.grad is not None}
    return {name: each.detach().clone() for name, each in {**every, **grads}.items()}


TIED = [(training, "gpt2"), (hooked, "gpt2"), (with_gradients, "gpt2"), (bfloat16, "gemma3")]
"""Families that tie the unembedding to the embedding."""


@pytest.mark.parametrize(
    ("prepare", "family"),
    [*((prepare, "llama") for prepare in CASES), *TIED],
    ids=lambda each: getattr(each, "__name__", each),
)
def test_a_model_in_memory(prepare: Prepare, family: str, tmp_path: Path) -> None:
    plain = tiny_model(family)
    if prepare in (bfloat16, float16, float64, mixed):
        prepare(plain)
    folder = save(plain, tmp_path / "model")
    model = prepare(copy.deepcopy(plain))
    before, values, drawn = seen(model), numbers(model), torch.get_rng_state()
    relations = random_relations()
    found = map_heads(model, word_tokenizer(), relations=relations)
    assert seen(model) == before
    assert torch.equal(torch.get_rng_state(), drawn)
    after = numbers(model)
    assert after.keys() == values.keys()
    for name, tensor in after.items():
        assert tensor.dtype == values[name].dtype and torch.equal(tensor, values[name]), name
    assert_same(found, map_heads(folder, relations=relations), RANKS)
    assert found.provenance["model"]["self_check"].startswith("layer 0: values of all")


def test_what_is_wrapped_is_the_same_model(tmp_path: Path) -> None:
    """Its atlas can be filled by either."""
    plain, relations = tiny_model("llama"), random_relations()
    map_heads(plain, word_tokenizer(), relations=relations, out=tmp_path, layers="0")
    for layer, prepare in enumerate((compiled, compiled_layers), 1):
        model = prepare(copy.deepcopy(plain))
        map_heads(model, word_tokenizer(), relations=relations, out=tmp_path, layers=str(layer))
    assert Atlas.open(tmp_path).layers_done.all()


@pytest.mark.parametrize("route", ["loaded", "in memory", "layer by layer"])
@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_dropout_is_never_active(case: str, route: str, tmp_path: Path) -> None:
    """Not even where the config has it in attention and everywhere else."""
    from headatlas.architectures import open_model
    from headatlas.weights import open_checkpoint

    def states(model: PreTrainedModel, name: str) -> list[np.ndarray[Any, Any]]:
        given = (model,) if route == "loaded" else (save(model, tmp_path / name),)
        ours = open_model(open_checkpoint(*given, word_tokenizer()))
        make: Any = StreamedStates if route == "layer by layer" else NeutralStates.compute
        made = make(ours, [(20,), (30, 31)], ["The"], tmp_path / f"{name} states", identity="")
        return [made.layer(layer).x.numpy() for layer in range(ours.dims.n_layers)]

    plain = tiny_model(case)
    dropping = type(plain)(copy.deepcopy(plain.config))
    for key in ("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop"):
        if hasattr(plain.config, key):
            setattr(dropping.config, key, 0.9)
    dropping = type(plain)(dropping.config)
    dropping.load_state_dict(plain.state_dict())
    dropping.train()
    for found, expected in zip(states(dropping, "a"), states(plain, "b"), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: setattr(m.config, "intermediate_size", 24), r"implies|wants in"),
        (lambda m: m.to("meta"), r"has no data|fully into memory"),
        (lambda m: nn.utils.parametrizations.weight_norm(m.model.layers[1].self_attn.q_proj), r"missing"),
        (lambda m: m.model.layers.pop(-1), r"missing"),
    ],
    ids=["config", "no data", "parametrised", "fewer layers"],
)
def test_what_is_not_its_config_says_is_refused(spoil: Callable[[Any], Any], message: str) -> None:
    model = tiny_model("llama")
    spoil(model)
    with pytest.raises(HeadatlasError, match=message):
        map_heads(model, word_tokenizer(), relations=random_relations())


def test_a_model_spread_over_devices_is_mapped_by_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """As accelerate dispatches it; tensors are read one by one, from wherever they are."""
    model, relations = tiny_model("llama"), random_relations()
    expected = map_heads(model, word_tokenizer(), relations=relations, lens="maps")
    two = {torch.device("cuda", 0), torch.device("cuda", 1)}
    monkeypatch.setattr(loading, "devices_of", lambda _: set(two))
    found = map_heads(model, word_tokenizer(), relations=relations, lens="maps")
    assert_same(found, expected, RANKS)
    assert "spread over 2 devices" in found.provenance["model"]["self_check"]
    with pytest.raises(HeadatlasError, match=r"spread over 2 devices; move it to one, or use `lens=maps`"):
        map_heads(model, word_tokenizer(), relations=relations)
