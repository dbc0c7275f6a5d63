"""Family files: what is in them is checked, and no name is claimed twice."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from headatlas.architectures import families, supported
from headatlas.architectures.family import parse_family
from headatlas.errors import HeadatlasError

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
