"""Hooks against direct computation, in every family: what heads read and write, the model without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from headatlas.architectures import Model, open_model
from headatlas.atlas.layout import build_layout, layouts_together
from headatlas.evidence import asking
from headatlas.evidence.asking import Questions, ablated, asking_takes
from headatlas.evidence.inference_run import layer_as_watched
from headatlas.evidence.recording import watch
from headatlas.evidence.texts import Text
from headatlas.lenses.forward import pre_hooks
from headatlas.mapping import engine
from headatlas.mapping.inputs import side_by_side
from headatlas.mapping.vocabulary import Vocabulary
from headatlas.weights import open_checkpoint
from tests.mapping import oracle
from tests.mapping.cases import random_relations
from tests.mapping.checkpoints import VOCAB, tiny_model, word_tokenizer

FAMILIES = ["llama", "llama-tied-biased-head_dim", "qwen2", "gemma3", "gpt2", "gpt_neox", "phi-grouped"]
TEXTS = [Text((1, 9, 10, 11, 12), 3), Text((1, 40, 41, 42, 43), 2), Text((1, 60, 61), 2)]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> tuple[Model, PreTrainedModel]:
    modules = tiny_model(request.param).eval()
    return open_model(open_checkpoint(modules, word_tokenizer())), modules


class Seen:
    """Everything that enters and leaves some modules in one forward pass."""

    def __init__(self, modules: PreTrainedModel, paths: list[str], ids: tuple[int, ...]) -> None:
        self.entering: dict[str, torch.Tensor] = {}
        self.leaving: dict[str, torch.Tensor] = {}
        handles = [modules.get_submodule(path).register_forward_hook(self._hook(path)) for path in paths]
        with torch.inference_mode():
            out = modules(input_ids=torch.tensor([ids]), output_attentions=True)
        for handle in handles:
            handle.remove()
        self.attention = [each[0] for each in out.attentions]
        self.logits = out.logits[0]

    def _hook(self, path: str) -> Any:
        def hook(_module: Any, args: tuple[torch.Tensor, ...], left: torch.Tensor) -> None:
            self.entering[path], self.leaving[path] = args[0][0], left[0]

        return hook


def test_what_is_watched(pair: tuple[Model, PreTrainedModel], tmp_path: Path) -> None:
    """Heads sum to the output projection's output, and are the attention's mixture of value vectors."""
    model, modules = pair
    implementation = modules.config._attn_implementation
    watched = watch(model, modules, TEXTS, tmp_path)
    assert modules.config._attn_implementation == implementation
    for layer in range(model.dims.n_layers):
        value, o_proj = model.value_input_module(layer), model.o_proj_module(layer)
        heads = model.heads(layer)
        bias = modules.get_submodule(o_proj).bias
        for at, text in enumerate(TEXTS):
            seen = Seen(modules, [value, o_proj], text.ids)
            outputs = watched.outputs(layer)[:, at]
            summed = torch.einsum("hd,hdm->m", outputs, heads.W_O) + (0.0 if bias is None else bias)
            torch.testing.assert_close(summed, seen.leaving[o_proj][-1], atol=2e-5, rtol=2e-4)
            torch.testing.assert_close(watched.states(layer)[at], seen.entering[value][text.source])
            weights = seen.attention[layer][:, -1]
            torch.testing.assert_close(watched.attention(layer)[:, at], weights[:, text.source])
            for head in range(model.dims.n_heads):
                group = model.dims.kv_head(head)
                values = seen.entering[value] @ heads.W_V[group]
                values = values if heads.b_V is None else values + heads.b_V[group]
                torch.testing.assert_close(outputs[head], weights[head] @ values, atol=2e-5, rtol=2e-4)


def test_without_any_head_of_a_layer_there_is_no_attention(pair: tuple[Model, PreTrainedModel]) -> None:
    model, modules = pair
    ids = torch.tensor([TEXTS[0].ids])
    for layer in range(model.dims.n_layers):
        o_proj = modules.get_submodule(model.o_proj_module(layer))
        every = [(layer, head) for head in range(model.dims.n_heads)]

        def no_attention(module: Any, _args: Any, left: torch.Tensor) -> torch.Tensor:
            nothing = torch.zeros_like(left)
            return nothing if module.bias is None else nothing + module.bias

        with torch.inference_mode():
            whole = modules(input_ids=ids).logits
            with ablated(model, modules, every):
                without = modules(input_ids=ids).logits
            handle = o_proj.register_forward_hook(no_attention)
            direct = modules(input_ids=ids).logits
            handle.remove()
            torch.testing.assert_close(modules(input_ids=ids).logits, whole, rtol=0, atol=0)
        torch.testing.assert_close(without, direct)
        assert not torch.allclose(without, whole, atol=1e-3)


def test_one_head_less(pair: tuple[Model, PreTrainedModel]) -> None:
    """Ablating a head takes its own contribution away and nothing else: zero, or its mean in its place."""
    model, modules = pair
    prompts = [text.ids for text in TEXTS]
    means = Questions(model, modules, prompts, "mean").means
    assert means is not None
    layer, head = 1, 2
    o_proj = model.o_proj_module(layer)
    per_prompt = [Seen(modules, [o_proj], ids).entering[o_proj] for ids in prompts]
    stacked = torch.cat(per_prompt).view(-1, model.dims.n_heads, model.dims.d_head)
    torch.testing.assert_close(means[layer], stacked.mean(dim=0), atol=1e-6, rtol=1e-5)
    before = Seen(modules, [o_proj], prompts[0])
    mine = before.entering[o_proj].view(-1, model.dims.n_heads, model.dims.d_head)[:, head]
    for instead in (None, means):
        with ablated(model, modules, [(layer, head)], instead):
            after = Seen(modules, [o_proj], prompts[0])
        put = 0.0 if instead is None else means[layer, head]
        change = (put - mine) @ model.heads(layer).W_O[head]
        torch.testing.assert_close(
            after.leaving[o_proj] - before.leaving[o_proj], change, atol=2e-5, rtol=1e-3
        )


def test_answers_are_those_of_whole_prompts(pair: tuple[Model, PreTrainedModel]) -> None:
    """Sharing what prompts begin with changes nothing, whether heads are ablated or not."""
    model, modules = pair
    shared = (1, 20, 21, 22, 23, 24)
    prompts = [(*shared, 30), (*shared, 31, 32), (*shared, 33), (*shared, 34, 35)]
    last = model.dims.n_layers - 1
    for some in (prompts, prompts[:1], [(1, 2), (3, 4)]):  # the last ones begin differently
        asked = Questions(model, modules, some)
        for heads in ([], [(0, 1), (2, 3)], [(1, 0)], [(last, 1), (last, 2)], []):
            with ablated(model, modules, heads), torch.inference_mode():
                wanted = [modules(input_ids=torch.tensor([ids])).logits[0, -1] for ids in some]
            for members, logits in asked.logits(heads):
                for at, row in zip(members, logits, strict=True):
                    torch.testing.assert_close(row, wanted[at], atol=2e-5, rtol=2e-4)
            assert asked.answers(heads).tolist() == [int(row.argmax()) for row in wanted]


def test_a_pass_begins_at_the_first_ablated_layer(
    pair: tuple[Model, PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens that go through the value projection of each layer: what comes before the heads is not run."""
    model, modules = pair
    prompts = [(1, 20, 21, 22, each) for each in (30, 31, 32)]
    tokens, passes = asking_takes(prompts)
    assert (tokens, passes) == (4 + 3, 2)
    seen = [0] * model.dims.n_layers

    def count(layer: int) -> Any:
        def hook(_module: Any, args: Any, kwargs: Any) -> None:
            entering = args[0] if args else kwargs["hidden_states"]
            seen[layer] += entering.shape[0] * entering.shape[1]

        return hook

    hooks = [(model.value_input_module(layer), count(layer)) for layer in range(model.dims.n_layers)]
    for kept, wanted in (
        (1 << 20, [0, 0, tokens]),
        (8 * model.dims.d_model * tokens, [0, 0, tokens]),
        (0, [7] * 3),
    ):
        monkeypatch.setattr(asking, "KEPT_BYTES", kept)
        asked = Questions(model, modules, prompts)
        asked.answers()
        seen[:] = [0] * len(seen)
        with pre_hooks(modules, hooks):
            asked.answers([(2, 0)])
        assert seen == wanted, kept
        assert asked.answers([(0, 1)]).shape == asked.answers().shape


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_watched_rows_are_ranked_like_the_oracle(family: str, tmp_path: Path) -> None:
    """With context every query head has rows of its own, though it shares its values' weights."""
    modules = tiny_model(family).eval()
    model = open_model(open_checkpoint(modules, word_tokenizer()))
    relations = random_relations(VOCAB, np.random.default_rng(0))
    layout = build_layout(relations)
    texts = [Text((1, 5, *source, 7), 1 + len(source)) for source in layout.sources]
    watched = watch(model, modules, texts, tmp_path)
    vocabulary = Vocabulary.competing(model.unembed(), np.ones(VOCAB, dtype=bool))
    both = layer_as_watched(model, watched, 1)
    # Each kind alone, and both as rows of one layout, as they are in a run.
    cases = [(layout, inputs) for inputs in both.values()]
    cases.append((layouts_together([layout, layout]), side_by_side(list(both.values()))))
    for axes, inputs in cases:
        fast = engine.map_layer(axes, inputs, vocabulary, ceiling=16)
        slow = oracle.brute_force_layer(axes, inputs, vocabulary, ceiling=16)
        for name in ("promotion", "suppression", "cell_promotion", "cell_suppression", "control"):
            np.testing.assert_array_equal(getattr(fast, name), getattr(slow, name), err_msg=name)
    outputs = both["context"]
    direct = watched.outputs(1)[3].double() @ model.right_map(1).apply(model.heads(1).W_O[3].double())
    torch.testing.assert_close(outputs.values(3) @ outputs.output(3), direct)
