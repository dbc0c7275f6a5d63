"""A family that headatlas does not know: what it recognises, proposes, and refuses to guess."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from headatlas.architectures import family_check, open_model
from headatlas.architectures.family import find_family, parse_family
from headatlas.architectures.oracle import COMPARISONS
from headatlas.cli import app
from headatlas.errors import HeadatlasError
from headatlas.weights import open_checkpoint
from tests.architectures.gguf_files import write_gguf
from tests.architectures.tiny import tiny_model

WRONG_GAINS = {
    "part of every head in the logits", "attention in the residual stream", "final norm", "first MLP",
}  # fmt: skip
WRONG = """
like = "gemma3"
name = "wrong"
title = "Wrong"
[aliases]
architectures = ["Wrong"]
model_types = ["wrong"]
[safetensors]
"""
KNOWN = ["llama", "gemma3", "gemma3-multimodal", "qwen2_vl", "mistral3", "gpt2", "gpt_neox", "phi", "qwen2"]


def run(*args: str) -> Result:
    return CliRunner().invoke(app, args)


def saved(case: str, folder: Path) -> Path:
    tiny_model(case).float().save_pretrained(folder)
    return folder


def renamed(folder: Path, **config: object) -> Path:
    """The same checkpoint under an architecture that no family claims (but transformers builds)."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"architectures": ["NewForCausalLM"]} | config))
    return folder


@pytest.mark.parametrize(("case", "compared"), [("nemotron_h", False), ("falcon_h1", True)])
def test_a_first_mlp_that_is_not_there_is_not_said_to_agree(
    case: str, compared: bool, tmp_path: Path
) -> None:
    tiny_model(case).float().save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    outcomes = family_check.try_family(find_family(checkpoint)[0], checkpoint)
    assert not any(outcome.problem for outcome in outcomes)
    assert ("first MLP" in {outcome.part for outcome in outcomes}) is compared


@pytest.mark.parametrize("case", KNOWN)
def test_a_known_family_agrees_with_a_tiny_model_of_the_config(case: str, tmp_path: Path) -> None:
    found = family_check.examine(open_checkpoint(saved(case, tmp_path)))
    assert not found.proposal and found.not_run is None and found.accounting is None
    assert [each.part for each in found.outcomes] == list(COMPARISONS)
    assert not [each for each in found.outcomes if each.problem]
    assert not [each.name for each in found.tensors if each.role is None]


def test_of_gguf_the_tensors_are_explained(tmp_path: Path) -> None:
    write_gguf(tiny_model("gptj").float(), tmp_path / "tiny.gguf")
    shown = run("families", "check", str(tmp_path / "tiny.gguf"), "--json")
    result = json.loads(shown.stdout)
    assert shown.exit_code == 0 and result["accounting"] is None and result["unexplained"] == []
    assert result["oracle"] == [] and "needs safetensors" in result["oracle_not_run"]


@pytest.mark.parametrize("case", ["llama", "gpt_oss"])
def test_a_new_name_for_a_known_layout(case: str, tmp_path: Path) -> None:
    found = family_check.examine(open_checkpoint(renamed(saved(case, tmp_path))))
    assert found.not_run is None and found.accounting is None
    assert not [each for each in found.tensors if each.role is None]
    assert not [each for each in found.outcomes if each.problem]
    table = tomllib.loads(found.proposal)
    assert table["aliases"]["model_types"] == []  # a family has it already
    assert table["aliases"]["architectures"] == ["NewForCausalLM"]
    assert found.family.safetensors.value[0].stem.endswith("v_proj")


def test_a_wrong_offset_is_noticed(tmp_path: Path) -> None:
    """Names and shapes fit a Gemma without the offset; what the norms compute does not."""
    checkpoint = open_checkpoint(saved("gemma3", tmp_path))
    wrong = parse_family(WRONG + "gain_offset = 0.0\n", "wrong.toml")
    assert family_check.accounting(wrong, checkpoint) is None
    problems = {each.part for each in family_check.try_family(wrong, checkpoint) if each.problem}
    assert problems == WRONG_GAINS


def test_a_missed_norm_after_attention_is_noticed(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(saved("gemma3", tmp_path))
    part = 'post_attention_norm = false\nother = [{ stem = "{block}self_attn.q_norm" }, '
    part += '{ stem = "{block}self_attn.k_norm" }, { stem = "{block}post_feedforward_layernorm" }, '
    part += '{ stem = "{block}post_attention_layernorm" }]\n'
    wrong = parse_family(WRONG + part, "wrong.toml")
    outcomes = {each.part: each.problem for each in family_check.try_family(wrong, checkpoint)}
    assert (
        "has 1 norms on the attention's output, the file says none"
        in outcomes["part of every head in the logits"]
    )


def test_a_tensor_that_no_family_knows_stays_unexplained(tmp_path: Path) -> None:
    folder = renamed(saved("llama", tmp_path))
    tensors = load_file(folder / "model.safetensors")
    tensors |= {f"model.layers.{n}.self_attn.mystery.weight": torch.ones(4) for n in range(3)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = family_check.examine(open_checkpoint(folder))
    mystery = "model.layers.{layer}.self_attn.mystery.weight"
    assert [each.name for each in found.tensors if each.role is None] == [mystery]
    assert found.closest == "llama" and f"# Not explained: {mystery}" in found.proposal
    assert "unknown tensors: model.layers.0.self_attn.mystery.weight" in str(found.accounting)
    written = found.proposal + '[safetensors]\nother = [{ stem = "{block}self_attn.mystery" }]\n'
    completed = family_check.examine(open_checkpoint(folder), parse_family(written, "llama_new.toml"))
    assert completed.accounting is None and not [each for each in completed.tensors if each.role is None]


def test_nothing_known_at_all(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architectures": ["NewForCausalLM"]}')
    with pytest.raises(HeadatlasError, match="no tensor has a name that any family knows"):
        family_check.examine(open_checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"num_hidden_layers": 10**15}, "speaks of 1,000,000,000,000,000 layers, but only"),
        ({"num_hidden_layers": 2}, "unknown tensors"),
        ({"hidden_size": 10**18}, "the config implies"),
        ({"num_attention_heads": 0}, "must be a positive whole number"),
    ],
)
def test_counts_of_a_config_are_not_believed(tmp_path: Path, change: dict[str, int], problem: str) -> None:
    folder = saved("llama", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(HeadatlasError, match=problem):
        open_model(open_checkpoint(folder))


def test_the_command(tmp_path: Path) -> None:
    folder = renamed(saved("llama", tmp_path / "tiny"))
    written = tmp_path / "my_family.toml"
    result = run("families", "check", str(folder), "--write", str(written))
    assert result.exit_code == 0
    assert "model.layers.{layer}.self_attn.v_proj.weight" in result.stdout and "value.beside" in result.stdout
    assert "accounting: every tensor is used or declared ignored" in result.stderr
    assert "tiny model, values of every head: agrees" in result.stderr
    assert tomllib.loads(written.read_text())["name"] == "my_family"
    again = run("families", "check", str(folder), "--write", str(written))
    assert again.exit_code == 2 and "is there already" in again.stderr
    own = run("families", "check", str(folder), "--family", str(written), "--json")
    assert own.exit_code == 0
    told = json.loads(own.stdout)
    assert told["family"] == "my_family" and told["accounting"] is None and len(told["oracle"]) == 7
    named = {each["name"]: each["is"] for each in told["tensors"]}
    assert named["model.layers.{layer}.post_attention_layernorm.weight"] == "mlp.norm"
    written.write_text(written.read_text() + '[safetensors]\nother = [{ stem = "{block}nothing" }]\n')
    wrong = run("families", "check", str(folder), "--family", str(written), "--json")
    assert wrong.exit_code == 1
    assert "tensors missing: model.layers.0.nothing.weight" in json.loads(wrong.stdout)["accounting"]
    known = run(
        "families", "check", str(saved("llama", tmp_path / "known")), "--write", str(tmp_path / "x.toml")
    )
    assert known.exit_code == 2 and "nothing to propose" in known.stderr
