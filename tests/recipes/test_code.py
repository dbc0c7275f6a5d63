"""The code, run on tiny models: it does what headatlas's own hooks do, and what the weights say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import headatlas as ha
from headatlas.architectures import Model
from headatlas.atlas import Atlas
from headatlas.evidence.ablation_run import _drawn
from headatlas.evidence.asking import ablated
from headatlas.options import AblationChoices
from tests.cli.conftest import Run, parsed, run  # noqa: F401 - a fixture
from tests.mapping.checkpoints import tiny_model
from tests.recipes.made import HEADS, IDS, atlas_of, logits, opened
from tests.recipes.made import run as run_code

OUTPUTS = {
    "llama": "model.layers.{}.self_attn.o_proj",
    "gpt2": "transformer.h.{}.attn.c_proj",
    "gemma3": "model.layers.{}.self_attn.o_proj",
    "gemma3-multimodal": "model.language_model.layers.{}.self_attn.o_proj",
    "gpt_neox": "gpt_neox.layers.{}.attention.dense",
}
HOSTILE = '"""\nimport os\'; $model \\ ${x} \u202e\x1b[31m\ud800 {layer}'


class Case:
    """A model of a family, its modules and an atlas that names it."""

    def __init__(self, name: str, folder: Path) -> None:
        tiny_model(name).save_pretrained(folder / "model")
        self.output = OUTPUTS[name]
        self.model: Model = opened(folder / "model")
        self.modules: PreTrainedModel = tiny_model(name)
        self.atlas: Atlas = atlas_of(self.model, folder)
        self.whole = logits(self.modules)

    def output_of(self, layer: int) -> Any:
        return self.modules.get_submodule(self.output.format(layer))

    def columns(self, layer: int, head: int) -> torch.Tensor:
        """The columns of W_O of a head, [d_model, d_head], as they are in the modules."""
        module, size = self.output_of(layer), self.model.dims.d_head
        weight = module.weight.T if type(module).__name__ == "Conv1D" else module.weight
        found: torch.Tensor = weight[:, head * size : (head + 1) * size]
        return found


@pytest.fixture(scope="module", params=OUTPUTS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp("recipes"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case("llama", tmp_path_factory.mktemp("llama"))


def test_silenced_is_ablated(case: Case) -> None:
    names = run_code(str(case.atlas.recipe(heads=HEADS)))
    for heads in (names["HEADS"], names["CONTROL"]):
        with ablated(case.model, case.modules, heads), torch.no_grad():
            expected = case.modules(input_ids=IDS).logits
        with names["silenced"](case.modules, heads):
            found = logits(case.modules)
        assert torch.equal(found, expected)
        assert (found - case.whole).abs().max() > 1e-3
    assert torch.equal(logits(case.modules), case.whole), "its hooks are gone"


def test_scaled_is_what_scaled_weights_give(case: Case) -> None:
    names = run_code(case.atlas.recipe(heads=HEADS, do="scale", factor=-1.5).code)
    with names["scaled"](case.modules):
        found = logits(case.modules)
    kept = {layer: case.output_of(layer).weight.detach().clone() for layer, _ in HEADS}
    with torch.no_grad():
        for head in HEADS:
            case.columns(*head).mul_(-1.5)
    expected = logits(case.modules)
    with torch.no_grad():
        for layer, weight in kept.items():
            case.output_of(layer).weight.copy_(weight)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - case.whole).abs().max() > 1e-3


def test_watched_heads_make_the_output(case: Case) -> None:
    """All heads of a layer, each times its columns of W_O, sum up to the module's output; nothing changes."""
    everyone = [(1, head) for head in range(case.model.dims.n_heads)]
    names = run_code(case.atlas.recipe(heads=everyone, do="watch").code)
    outputs: list[torch.Tensor] = []
    handle = case.output_of(1).register_forward_hook(lambda _m, _a, output: outputs.append(output))
    with names["watched"](case.modules) as found:
        watching = logits(case.modules)
        logits(case.modules)
    handle.remove()
    assert torch.equal(watching, case.whole)
    assert list(found) == everyone and all(len(passes) == 2 for passes in found.values())
    assert all(each.shape == (*IDS.shape, case.model.dims.d_head) for (each, _) in found.values())
    with torch.no_grad():
        total = sum(found[head][0] @ case.columns(*head).T for head in everyone)
        bias = case.output_of(1).bias
    torch.testing.assert_close(total if bias is None else total + bias, outputs[0], atol=1e-5, rtol=1e-5)


def test_hooks_go_when_a_layer_is_not_there(llama: Case) -> None:
    names = run_code(llama.atlas.recipe(heads=HEADS).code)
    with pytest.raises(ValueError, match=r"no module model\.layers\.9\.self_attn"):
        names["silenced"](llama.modules, [(1, 0), (9, 0)]).__enter__()
    assert torch.equal(logits(llama.modules), llama.whole)


@pytest.mark.parametrize("do", ["silence", "scale", "watch"])
def test_other_libraries_are_told_the_right_places(case: Case, do: str) -> None:
    """These are compiled, and not run: the libraries are not installed with headatlas."""
    factor = 0.5 if do == "scale" else None
    lens = case.atlas.recipe(heads=HEADS, form="transformer-lens", do=do, factor=factor)
    names = run_code(lens.code)
    assert names["HOOK"].format(layer=2) == "blocks.2.attn.hook_z" and names["HEADS"] == HEADS
    sight = run_code(case.atlas.recipe(heads=HEADS, form="nnsight", do=do, factor=factor).code)
    assert case.output.replace("{}", "{layer}") in sight["OUTPUTS"]
    for each in (names, sight):
        assert (each["N_HEADS"], each["D_HEAD"]) == (4, case.model.dims.d_head)
        assert {"silence": "silenced", "scale": "scaled", "watch": "watched"}[do] in each
        assert each.get("FACTOR") == factor


def test_the_control_is_the_first_draw_of_an_ablation(llama: Case) -> None:
    for seed in range(5):
        made = llama.atlas.recipe(heads=HEADS, control=seed)
        assert list(made.control) == _drawn(sorted(HEADS), 4, AblationChoices(draws=1, seed=seed))["random 0"]
    assert len({llama.atlas.recipe(heads=HEADS, control=seed).control for seed in range(20)}) == 3


def test_a_layer_without_enough_other_heads(llama: Case) -> None:
    made = llama.atlas.recipe(heads=[(0, 0), (0, 1), (0, 2), (1, 0)])
    assert made.control[0] == (0, 3) and len(made.control) == 2
    assert "fewer than HEADS" in made.code
    assert llama.atlas.recipe(heads=[(0, head) for head in range(4)]).control == ()


def test_heads_of_a_relation_are_those_called(llama: Case) -> None:
    atlas = llama.atlas.at(tau=0.02, criterion="tau")
    relation = next(name for name in atlas.relations["relation"] if len(atlas.heads(name)) > 2)
    made = ha.recipe(atlas, relation)
    assert list(made.heads) == atlas.heads(relation) == run_code(made.code)["HEADS"]
    assert relation in run_code(made.code)["WHY"] and "score ≥ 0.02" in run_code(made.code)["WHY"]


@pytest.mark.parametrize("form", ["transformers", "transformer-lens", "nnsight"])
def test_hostile_names_stay_text(llama: Case, form: str, tmp_path: Path) -> None:
    atlas = atlas_of(llama.model, tmp_path)
    atlas.provenance["model"] |= {"name": HOSTILE, "spec": HOSTILE}
    code = atlas.recipe(heads=HEADS, form=form, out=tmp_path / "recipe.py").code
    assert run_code(code)["MODEL"] == HOSTILE
    assert "which from_pretrained may not know; the weights were read from '" in code
    assert (tmp_path / "recipe.py").read_text(encoding="utf-8") == code
    assert "\u202e" not in code and "\x1b" not in code


def test_a_recipe_is_short_at_the_prompt(llama: Case) -> None:
    made = llama.atlas.recipe(heads=[(0, 1), (1, 2)])
    n = len(made.code.splitlines())
    assert (
        repr(made) == f"<Recipe for the heads 0.1, 1.2: {n} lines of Python in .code; print it to read them>"
    )
    assert str(made) == made.code


def test_code_is_made_without_torch(llama: Case, tmp_path: Path) -> None:
    llama.atlas.load().save(tmp_path)
    code = (
        "import sys, headatlas as ha\n"
        f"atlas = ha.open_atlas({str(tmp_path)!r})\n"
        "for form in ('transformers', 'transformer-lens', 'nnsight'):\n"
        "    assert len(atlas.recipe(heads=[(1, 2)], form=form).code) > 500\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({}, r"^say which heads: give `relation` or `heads`"),
        ({"relation": "copying", "heads": HEADS}, r"one of the two\.$"),
        ({"relation": "bogus"}, r"bogus"),
        ({"heads": []}, r"list of heads is empty"),
        ({"heads": [(1, 2), (1, 2)]}, r"head 1\.2 is named twice"),
        ({"heads": [(3, 0)]}, r"there is no head 3\.0: .* 3 layers and 4 heads"),
        ({"heads": [(0, -1)]}, r"there is no head 0\.-1"),
        ({"heads": ["1.2"]}, r"list of \(layer, head\)"),
        ({"heads": [(1.5, 2)]}, r"list of \(layer, head\)"),
        ({"heads": HEADS, "form": "jax"}, r"`form` is 'jax': use transformers, transformer-lens"),
        ({"heads": HEADS, "do": "amplify"}, r"`do` is 'amplify': use silence, scale, watch"),
        ({"heads": HEADS, "do": "scale"}, r"`do=scale` needs it"),
        ({"heads": HEADS, "factor": 2}, r"`factor` goes with `do=scale`"),
        ({"heads": HEADS, "do": "scale", "factor": float("nan")}, r"`factor` is nan: .* finite"),
        ({"heads": HEADS, "do": "scale", "factor": True}, r"`factor` is True"),
        ({"heads": HEADS, "control": -1}, r"`control` is -1: it is a seed"),
        ({"heads": HEADS, "model": "other"}, r"`model` goes with `form=checkpoint`"),
        ({"heads": HEADS, "form": "checkpoint"}, r"ends in \.safetensors with `out`"),
        ({"heads": HEADS, "form": "checkpoint", "out": "x.py"}, r"ends in \.safetensors with `out`"),
        ({"heads": HEADS, "form": "checkpoint", "do": "watch"}, r"weights watch nothing"),
        ({"relation": "copying", "tau": 1.0}, r"no head of this atlas implements copying"),
    ],
)
def test_what_makes_no_sense_is_said(llama: Case, choices: dict[str, Any], said: str) -> None:
    tau = choices.pop("tau", None) if "tau" in choices else None
    with pytest.raises(ha.HeadatlasError, match=said):
        llama.atlas.at(tau=tau).recipe(**choices)


def test_an_atlas_that_does_not_say_what_its_model_is(llama: Case, tmp_path: Path) -> None:
    atlas = atlas_of(llama.model, tmp_path)
    atlas.provenance["model"] |= {"family": "bogus"}
    with pytest.raises(ha.HeadatlasError, match=r"no model family that this version knows \('bogus'\)"):
        atlas.recipe(heads=HEADS)


def test_the_command(llama: Case, tmp_path: Path, run: Run) -> None:  # noqa: F811
    llama.atlas.load().save(tmp_path)
    printed = run("recipe", tmp_path, "--heads", "2.1,1.0", "--heads", "1.3").stdout
    assert printed == llama.atlas.recipe(heads=HEADS).code
    made = parsed(run("recipe", tmp_path, "--heads", "2.1", "--as", "nnsight", "--json"))
    assert made["rows"] == [{"layer": 2, "head": 1}] and len(made["control_heads"]) == 1
    assert "CONTROL" in run_code(made["code"])
    result = run("recipe", tmp_path, "--heads", "2.1", "-o", tmp_path / "out.py")
    assert not result.stdout and result.stderr == f"written: {tmp_path / 'out.py'}\n"
    assert run_code((tmp_path / "out.py").read_text(encoding="utf-8"))["HEADS"] == [(2, 1)]
    for args, said in (
        (["--heads", "9.1"], "error: there is no head 9.1"),
        (["--heads", ","], "error: --heads names nothing"),
        ([], "error: say which heads: give --relation or --heads, one"),
        (["--heads", "1.1", "--do", "scale"], "error: --factor goes with --do scale"),
        (["--heads", "1.1", "--as", "checkpoint"], "error: --as checkpoint writes a file"),
        (["--heads", "1.1", "-o", "s3://bucket/x.py"], "error: s3://bucket/x.py: nothing is written to"),
    ):
        error = run("recipe", tmp_path, *args, code=2).stderr
        assert error.startswith(said) and error.count("\n") == 1
