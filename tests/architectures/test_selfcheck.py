"""The look at a real checkpoint's first block: it runs, it is cheap, and it notices a wrong family file."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

from headatlas.architectures import LayerHeads, Model, open_model
from headatlas.architectures.oracle import VARIABLE, self_check
from headatlas.errors import HeadatlasError
from headatlas.mapping import prepared
from headatlas.weights import open_checkpoint
from tests.architectures.gguf_files import write_gguf
from tests.architectures.tiny import tiny_model
from tests.weights.test_quantized import quantised_llama

RAN = r"layer 0: values of all 4 heads and output of head 2 as \w+ of transformers computes them"
FAMILIES = [
    "llama", "qwen2", "gemma3", "gemma3-multimodal", "qwen2_vl", "mistral3", "gpt2", "gpt_neox",
    "phi-grouped",
]  # fmt: skip


def saved(case: str, folder: Path) -> Model:
    tiny_model(case).float().save_pretrained(folder)
    return open_model(open_checkpoint(folder))


@pytest.mark.parametrize("case", FAMILIES)
def test_safetensors_and_loaded_models(case: str, tmp_path: Path) -> None:
    for model in (saved(case, tmp_path), open_model(open_checkpoint(tiny_model(case).float()))):
        assert re.fullmatch(RAN, self_check(model))


@pytest.mark.parametrize("case", ["llama", "qwen2", "gemma3", "gpt2", "gpt_neox", "phi"])
def test_gguf(case: str, tmp_path: Path) -> None:
    """As transformers converts the file; Phi and GPT-NeoX it does not convert."""
    write_gguf(tiny_model(case).float(), tmp_path / "tiny.gguf")
    told = self_check(open_model(open_checkpoint(tmp_path / "tiny.gguf")))
    if case in ("phi", "gpt_neox"):
        assert told.startswith("not run (") and "transformers cannot convert GGUF files" in told
    else:
        assert told.startswith("layer 0: values of all 4 heads")


def test_packed_weights(tmp_path: Path) -> None:
    assert self_check(open_model(open_checkpoint(quantised_llama(tmp_path / "tiny")))).startswith("layer 0")


@pytest.mark.parametrize("form", ["safetensors", "loaded"])
@pytest.mark.parametrize("part", ["values", "output"])
def test_a_wrong_reading_is_an_error(
    form: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads in another order are as many numbers of the same shape."""
    model = saved("llama", tmp_path)
    model = model if form == "safetensors" else open_model(open_checkpoint(tiny_model("llama").float()))
    heads = model.heads(0)
    monkeypatch.setattr(model, "heads", lambda _: _flipped(heads, part))
    with pytest.raises(
        HeadatlasError, match=rf"the {part} of head 0\.\d, where transformers has .* is not mapped"
    ):
        self_check(model)
    monkeypatch.setenv(VARIABLE, "0")
    assert self_check(model) == "not run (HEADATLAS_SELF_CHECK is set)"


def _flipped(heads: LayerHeads, part: str) -> LayerHeads:
    if part == "values":
        return replace(heads, W_V=heads.W_V.flip(0))
    return replace(heads, W_O=heads.W_O.flip(0))


def test_it_reads_no_more_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = saved("llama", tmp_path)
    monkeypatch.setattr("headatlas.architectures.oracle.MOST_BYTES", 1000)
    assert self_check(model) == "not run (it would read 0.0 GB)"


def test_only_the_first_block_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = saved("llama", tmp_path)
    source = model.checkpoint.source
    names: list[str] = []
    usual = source.read
    monkeypatch.setattr(source, "read", lambda name, rows=None: names.append(name) or usual(name, rows))
    self_check(model)
    assert names and not [name for name in names if "layers.1" in name or "mlp" in name or "embed" in name]


def test_a_check_that_passed_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("HEADATLAS_CACHE", str(tmp_path / "cache"))
    model = saved("llama", tmp_path)
    with patch.object(prepared, "self_check", wraps=self_check) as checked:
        said = [prepared.checked_once(model, weights_hash) for weights_hash in ("a", "a", "b", "b")]
        assert checked.call_count == 2 and len(set(said)) == 1 and re.fullmatch(RAN, said[0])
        other = open_model(open_checkpoint(tmp_path))
        other.family = other.family.model_copy(update={"name": "another"})
        assert prepared.checked_once(other, "a") == said[0] and checked.call_count == 3
        monkeypatch.setenv(VARIABLE, "1")
        prepared.checked_once(model, "a")
        assert checked.call_count == 4
        monkeypatch.delenv(VARIABLE)
        loaded = open_model(open_checkpoint(tiny_model("llama").float()))
        prepared.checked_once(loaded, "a")
        assert checked.call_count == 5
    for why in ("not run (a reason)", HeadatlasError("they differ")):
        with patch.object(prepared, "self_check", side_effect=[why, why]) as checked:
            for _ in range(2):
                with suppress(HeadatlasError):
                    prepared.checked_once(model, "c")
            assert checked.call_count == 2
