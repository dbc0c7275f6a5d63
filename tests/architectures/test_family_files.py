"""Family files: mistakes are refused, names are claimed once, and what is said of them is what tests show."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from headatlas.architectures import families, supported
from headatlas.architectures.family import oracles, parse_family, unsupported
from headatlas.errors import HeadatlasError

from .proven import FILE, proven

LLAMA = (resources.files("headatlas.architectures") / "families" / "llama.toml").read_text("utf-8")


def test_all_families_are_there() -> None:
    names = [family.name for family in families()]
    assert names == sorted(names)
    assert {"gemma3", "gpt2", "gpt_neox", "llama", "phi", "qwen2"} <= set(names)
    assert "MistralForCausalLM" in supported()
    assert {"gemma3", "gpt2", "gptneox", "llama", "phi2", "qwen2"} <= set(supported(gguf=True))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('norm = "rms"', 'norm = "rms"\ncolour = "red"', "colour: Extra inputs"),
        ('norm = "rms"', 'norm = "batch"', "norm: Input should be 'rms' or 'layer'"),
        ('layout = "linear"', 'layout = "diagonal"', "layout: Input should be"),
        ('bias = "mlp_bias"', 'bias = "mpl_bias"', "neither"),
        ('name = "llama"', 'name = "lama"', "file and name must agree"),
        ("[aliases]", "[aliases", "not valid TOML"),
        ("[modules]", "[paths]", "modules: Field required"),
        ("{block}self_attn.v_proj", "{}v_proj", "'{}v_proj' cannot be filled in; in braces may stand block,"),
        ("{block}self_attn.v_proj", "{bock}v_proj", "'{bock}v_proj' cannot be filled in"),
        ("{block}self_attn.v_proj", "{block.x}v_proj", "'{block.x}v_proj' cannot be filled in"),
        ("{block}self_attn.v_proj", "{block", "'{block' cannot be filled in"),
    ],
)
def test_mistakes_in_a_family_file_are_refused(old: str, new: str, words: str) -> None:
    assert old in LLAMA
    with pytest.raises(HeadatlasError, match=re.escape(words)):
        parse_family(LLAMA.replace(old, new), "llama.toml")


def test_an_alias_belongs_to_one_family() -> None:
    aliases = [family.aliases for family in families()]
    for names in (
        [name for each in aliases for name in each.architectures + each.model_types],
        [name for each in aliases for name in each.gguf],
    ):
        assert len(names) == len(set(names))


QWEN3 = (resources.files("headatlas.architectures") / "families" / "qwen3.toml").read_text("utf-8")


def test_a_family_takes_over_what_it_does_not_say() -> None:
    llama, qwen3 = parse_family(LLAMA, "llama.toml"), parse_family(QWEN3, "qwen3.toml")
    assert qwen3.safetensors.embed == llama.safetensors.embed
    assert qwen3.safetensors.config.d_mlp == llama.safetensors.config.d_mlp
    assert qwen3.safetensors.config.d_head != llama.safetensors.config.d_head
    assert qwen3.aliases.architectures == ("Qwen3ForCausalLM",)


def test_the_gguf_section_comes_along_only_with_a_name() -> None:
    alone = parse_family(QWEN3.replace('gguf = ["qwen3"]', ""), "qwen3.toml")
    assert alone.gguf is None


@pytest.mark.parametrize("base", ["qwen3", "nothing", "../llama"])
def test_a_family_is_like_another_one(base: str) -> None:
    with pytest.raises(HeadatlasError, match="is no other family"):
        parse_family(QWEN3.replace('like = "llama"', f'like = "{base}"'), "qwen3.toml")


# What is said about families is what the tests show; what transformers builds is supported or refused ---


PAGE = Path(__file__).parents[2] / "docs" / "families.md"


def test_the_list_of_oracles_is_the_tests_own() -> None:
    assert json.loads(FILE.read_text("utf-8")) == proven(), "run python -m tests.architectures.proven"


def test_every_family_passes_an_oracle_in_each_of_its_formats() -> None:
    for family in families():
        proof = oracles(family)
        assert proof.safetensors, family.name
        assert bool(proof.gguf) == (family.gguf is not None), family.name


def test_every_causal_language_model_of_transformers_is_supported_or_refused_with_a_reason() -> None:
    known: set[Any] = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    assert not known - set(supported()) - set(unsupported())
    assert not set(unsupported()) & set(supported())


def test_the_page_of_families_is_up_to_date() -> None:
    from .families_page import page

    assert PAGE.read_text("utf-8") == page(), "run python -m tests.architectures.families_page"
