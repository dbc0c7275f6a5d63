"""The neutral lens holds what the Hugging Face modules compute on plain rows, for every family."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from headatlas.architectures import Model, open_model
from headatlas.architectures import model as model_module
from headatlas.errors import HeadatlasError
from headatlas.lenses import NEUTRAL_PREFIXES, NeutralStates, StreamedStates, forward, neutral
from headatlas.lenses.forward import Step, beginnings, prefix_ids, shared_steps
from headatlas.lenses.saved_states import discard_states
from headatlas.weights import open_checkpoint
from tests.architectures.tiny import MODELS
from tests.lenses.oracles import direct_logits, neutral_states
from tests.mapping.checkpoints import save, tiny_model, word_tokenizer

SOURCES = [(20,), (21,), (30, 31), (40, 41, 42, 43, 44, 45), (22,), (20, 30), (23,), (24,)]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def opened(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None = None) -> Model:
    return open_model(open_checkpoint(model, tokenizer or word_tokenizer()))


def compute(
    model: Model,
    folder: Path,
    sources: Sequence[tuple[int, ...]] = SOURCES,
    prefixes: Sequence[str] = NEUTRAL_PREFIXES,
    identity: str = "this model",
) -> NeutralStates:
    return NeutralStates.compute(model, sources, prefixes, folder, identity=identity)


@pytest.mark.parametrize("case", MODELS)
def test_states_are_those_of_plain_forward_passes(case: str, tmp_path: Path) -> None:
    model = tiny_model(case)
    ours = opened(model)
    states = compute(ours, tmp_path / "states")
    prefixes = [[1, 5], [1, 4], [1, 6], [1, 7]]
    assert [prefix_ids(word_tokenizer(), prefix) for prefix in NEUTRAL_PREFIXES] == prefixes
    x, control = neutral_states(ours, model, SOURCES, prefixes)
    for layer in range(ours.dims.n_layers):
        found = states.layer(layer)
        assert found.x.dtype == found.control.dtype == torch.float32
        torch.testing.assert_close(found.x, x[layer].float(), **CLOSE)
        torch.testing.assert_close(found.control, control[layer].float(), **CLOSE)


@pytest.mark.parametrize("case", MODELS)
def test_a_heads_logits_are_its_direct_contribution(case: str, tmp_path: Path) -> None:
    """One prefix, one source: (x·W_V + b_V)·W_O → R → U is what the head's value there adds to the logits."""
    model = tiny_model(case).double()
    ours = opened(model)
    source = (30, 31)
    states = compute(ours, tmp_path / "states", [source], ["The"])
    unembed = ours.unembed().double()
    for layer in range(ours.dims.n_layers):
        expected = direct_logits(ours, model, [1, 4, *source], layer)
        heads, right, x = ours.heads(layer), ours.right_map(layer), states.layer(layer).x.double()
        for head in range(ours.dims.n_heads):
            group = ours.dims.kv_head(head)
            value = x @ heads.W_V[group].double()
            if heads.b_V is not None:
                value = value + heads.b_V[group].double()
            logits = (right.apply(value @ heads.W_O[head].double()) @ unembed.T)[0]
            torch.testing.assert_close(
                logits / logits.norm(), expected[head] / expected[head].norm(), check_dtype=False, **CLOSE
            )


def test_batches_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = opened(tiny_model("gemma3"))
    together = compute(ours, tmp_path / "a")
    monkeypatch.setattr(forward, "ACTIVATIONS", 1)
    alone = compute(ours, tmp_path / "b")
    for layer in range(ours.dims.n_layers):
        torch.testing.assert_close(together.layer(layer).x, alone.layer(layer).x, **CLOSE)
        torch.testing.assert_close(together.layer(layer).control, alone.layer(layer).control, **CLOSE)


ALIKE = [(20,), (20, 21), (20, 21, 22), (20, 21, 23), (21,), (30, 31), (20, 22), (21, 20)]
"""Nine beginnings; sixteen tokens."""


@pytest.mark.parametrize("at_a_time", [1, 3, 4, 2048])
def test_what_sources_begin_with_goes_through_once(
    at_a_time: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens that enter a block are counted; the last one works on the prefixes and not beyond its values."""
    model = tiny_model("gemma3")
    ours = opened(model)
    entering: Counter[str] = Counter()
    for path in ("layers.0", "layers.2", "layers.2.mlp"):

        def note(_module: Any, args: tuple[Any, ...], path: str = path) -> None:
            entering[path] += args[0].shape[0] * args[0].shape[1]

        model.get_submodule(f"model.{path}").register_forward_pre_hook(note)
    monkeypatch.setattr(neutral, "batch_tokens", lambda *_: at_a_time)
    monkeypatch.setattr(ours, "modules", model.eval)
    found = compute(ours, tmp_path / "states", ALIKE)
    prefixes = [[1, 5], [1, 4], [1, 6], [1, 7]]
    assert beginnings(ALIKE)[:3] == [(20,), (21,), (30,)] and len(beginnings(ALIKE)) == 9
    assert entering == {"layers.0": 4 * (2 + 9), "layers.2": 4 * (2 + 9), "layers.2.mlp": 4 * 2}
    x, control = neutral_states(ours, model, ALIKE, prefixes)
    for layer in range(ours.dims.n_layers):
        torch.testing.assert_close(found.layer(layer).x, x[layer].float(), **CLOSE)
        torch.testing.assert_close(found.layer(layer).control, control[layer].float(), **CLOSE)


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5).map(tuple), min_size=1, max_size=30),
    st.integers(1, 20),
)
def test_steps_hold_every_beginning_once_and_every_source(
    sources: list[tuple[int, ...]], tokens: int
) -> None:
    """Followed from parent to child, the ids of each row are the beginning that it stands for."""
    known, places, members = beginnings(sources), [], []

    def follow(steps: Iterable[Step], before: list[tuple[int, ...]]) -> None:
        for step in steps:
            rows = [(*before[parent], token) for parent, token in zip(step.parents, step.ids, strict=True)]
            assert len(rows) * len(rows[0]) <= max(tokens, len(rows[0])) and step.past == len(rows[0]) - 1
            assert rows == [known[place] for place in step.places]
            assert [rows[row] for row in step.rows] == [sources[at] for at in step.members]
            places.extend(step.places)
            members.extend(step.members)
            follow(step.then, [rows[row] for row in step.going_on])

    follow(shared_steps(sources, tokens), [()])
    assert sorted(places) == list(range(len(known))) and sorted(members) == list(range(len(sources)))


@pytest.mark.parametrize(
    ("template", "first"),
    [("$A", []), ("<s> $A", [1]), ("$A </s>", []), ("<s> $A </s>", [1]), ("</s> $A", [2])],
)
def test_a_prefix_follows_what_the_tokenizer_puts_first(template: str, first: list[int]) -> None:
    tokenizer = word_tokenizer(template=template)
    assert prefix_ids(tokenizer, "The") == [*first, 4]
    assert prefix_ids(tokenizer, " of") == [*first, 7]


def test_states_are_reused_for_the_same_question_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = opened(tiny_model("llama"))
    calls = []
    load = ours.modules
    monkeypatch.setattr(ours, "modules", lambda: calls.append(1) or load())
    for change, runs in [
        ({}, 1),
        ({}, 1),
        ({"sources": SOURCES[:-1]}, 2),
        ({"sources": SOURCES[:-1]}, 2),
        ({"prefixes": ["The"]}, 3),
        ({"identity": "another model"}, 4),
        ({}, 5),
    ]:
        states = compute(ours, tmp_path / "states", **change)
        assert len(calls) == runs
        assert len(states.layer(0).x) == len(change.get("sources", SOURCES))


@pytest.mark.parametrize("damage", ["lost", "truncated", "empty", "no npy", "other shape", "index"])
def test_damaged_states_are_computed_again(damage: str, tmp_path: Path) -> None:
    ours, folder = opened(tiny_model("llama")), tmp_path / "states"
    before = compute(ours, folder).layer(1)
    file = folder / "x_001.npy"
    if damage == "lost":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-40])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "no npy":
        file.write_bytes(b"rubbish")
    elif damage == "other shape":
        np.save(file, np.zeros((2, 2), np.float32))
    else:
        (folder / "states.json").write_text("[]")
    after = compute(ours, folder).layer(1)
    torch.testing.assert_close(after.x, before.x, rtol=0, atol=0)
    torch.testing.assert_close(after.control, before.control, rtol=0, atol=0)


def test_a_model_in_training_mode_is_read_without_dropout_and_handed_back_as_it_was(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    expected = compute(opened(model), tmp_path / "a").layer(2).x
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train()
    found = compute(opened(model), tmp_path / "b").layer(2).x
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_model_of_half_precision_is_read_in_float32(tmp_path: Path) -> None:
    """As the same weights are when they come from a file."""
    half = tiny_model("llama").to(torch.bfloat16)
    expected = compute(opened(tiny_model("llama").to(torch.bfloat16).float()), tmp_path / "a").layer(2).x
    torch.testing.assert_close(compute(opened(half), tmp_path / "b").layer(2).x, expected, rtol=0, atol=0)
    assert half.dtype == torch.bfloat16


def test_a_foreign_folder_of_that_name_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "states"
    folder.mkdir()
    (folder / "alabama.txt").write_text("mine")
    with pytest.raises(HeadatlasError, match=r"states: cannot be written \(Directory not empty\)"):
        compute(opened(tiny_model("llama")), folder)
    discard_states(folder)
    assert (folder / "alabama.txt").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_prefix_without_tokens_needs_something_before_it(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(template="$A")
    assert prefix_ids(tokenizer, " ") == []
    with pytest.raises(HeadatlasError, match=r"no token of the neutral prefix ' '.*use `lens=maps`"):
        compute(opened(tiny_model("llama"), tokenizer), tmp_path / "states", prefixes=["The", " "])
    compute(opened(tiny_model("llama")), tmp_path / "states", prefixes=["The", " "])


def test_the_same_states_made_by_another_process_meanwhile_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That process may be reading them: they are not replaced under its hands."""
    ours, folder = opened(tiny_model("llama")), tmp_path / "states"
    original = neutral._forward

    def overtaken(*args: Any, **options: Any) -> None:
        monkeypatch.undo()
        compute(ours, folder)
        (folder / "made by the other").touch()
        original(*args, **options)

    monkeypatch.setattr(neutral, "_forward", overtaken)
    compute(ours, folder)
    assert (folder / "made by the other").exists()
    assert list(tmp_path.iterdir()) == [folder]


def test_leftovers_of_killed_processes_are_discarded_with_the_states(tmp_path: Path) -> None:
    compute(opened(tiny_model("llama")), tmp_path / "states")
    for name in (".states.0123abcd", ".states.mine"):
        (tmp_path / name).mkdir()
    discard_states(tmp_path / "states")
    assert [path.name for path in tmp_path.iterdir()] == [".states.mine"]


def test_states_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_submodule("model.layers.1.mlp.down_proj").weight[0] = 3e38
    with pytest.raises(HeadatlasError, match=r"the states of layer 2 are not finite"):
        compute(opened(model), tmp_path / "states")
    assert not (tmp_path / "states" / "states.json").exists()


# Of tensors that only the forward pass reads; attention makes finite states of the first two.
BROKEN = {
    "model.layers.1.self_attn.q_proj.weight": torch.nan,
    "model.layers.1.self_attn.k_proj.weight": torch.nan,
    "model.layers.1.input_layernorm.weight": torch.inf,
    "model.layers.2.mlp.up_proj.weight": -torch.inf,
    "model.norm.weight": torch.nan,
}


@pytest.mark.parametrize("route", ["loaded", "in memory", "layer by layer"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_tensor_that_is_not_finite_is_named(name: str, route: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_parameter(name).view(-1)[5] = BROKEN[name]
    where = "The loaded LlamaForCausalLM"
    if route != "loaded":
        where = "model.safetensors"
        ours = open_model(open_checkpoint(save(model, tmp_path / "model")))
    else:
        ours = opened(model)
    with pytest.raises(HeadatlasError, match=rf"{where}: tensor '{name}' holds numbers that are not finite"):
        if route == "layer by layer":
            states = StreamedStates(ours, SOURCES, ["The"], tmp_path / "states", identity="")
            for layer in range(ours.dims.n_layers):
                states.layer(layer)
            ours.right_map(0)
        else:
            compute(ours, tmp_path / "states")
    assert not (tmp_path / "states" / "x_002.npy").exists() or name == "model.norm.weight"


def test_of_experts_the_stored_tensor_is_named(tmp_path: Path) -> None:
    """Modules have all experts in one tensor."""
    folder = save(tiny_model("mixtral"), tmp_path / "model")
    file, name = folder / "model.safetensors", "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    tensors = load_file(file)
    tensors[name][1, 1] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    ours = open_model(open_checkpoint(folder))
    with pytest.raises(HeadatlasError, match=rf"tensor '{re.escape(name)}' holds numbers"):
        compute(ours, tmp_path / "a")
    states = StreamedStates(ours, SOURCES, ["The"], tmp_path / "b", identity="")
    states.layer(0)
    with pytest.raises(HeadatlasError, match=rf"tensor '{re.escape(name)}' holds numbers"):
        states.layer(1)


@pytest.mark.parametrize("route", ["loaded", "in memory", "layer by layer"])
@pytest.mark.parametrize("case", ["llama", "gemma3"])
def test_every_number_is_looked_at_once(
    case: str, route: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the states, and by what the engine reads afterwards: heads, right map, U (tied in Gemma)."""
    model, looked, look = tiny_model(case), [0], model_module._is_finite

    def counting(tensor: torch.Tensor) -> bool:
        looked[0] += tensor.numel()
        return look(tensor)

    monkeypatch.setattr(model_module, "_is_finite", counting)
    ours = (
        opened(model) if route == "loaded" else open_model(open_checkpoint(save(model, tmp_path / "model")))
    )
    rows = 0
    if route == "layer by layer":
        states: Any = StreamedStates(ours, SOURCES, ["The"], tmp_path / "states", identity="")
        # Of E the rows of these tokens; all of it where U is stored in it.
        tokens = {1, 4, *(token for source in SOURCES for token in source)}
        rows = len(tokens) * ours.dims.d_model
        rows -= 0 if case == "gemma3" else ours.dims.vocab_size * ours.dims.d_model
    else:
        states = compute(ours, tmp_path / "states")
    for layer in range(ours.dims.n_layers):
        states.layer(layer)
        ours.heads(layer)
        ours.right_map(layer)
    ours.unembed()
    if (case, route) == ("gemma3", "loaded"):  # a module in memory shows E by a second name, too
        rows += ours.dims.vocab_size * ours.dims.d_model
    assert looked[0] == ours.n_parameters + rows


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(HeadatlasError, match=r"file.*cannot be written"):
        compute(opened(tiny_model("llama")), tmp_path / "file" / "states")
    assert (tmp_path / "file").read_text() == "in the way"


def test_progress_counts_rows(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    NeutralStates.compute(
        opened(tiny_model("llama")),
        SOURCES,
        ["The", ","],
        tmp_path / "states",
        identity="",
        progress=lambda done, total: told.append((done, total)),
    )
    assert told[-1] == (16, 16)
    assert sorted(told) == told
