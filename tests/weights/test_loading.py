"""Tokenizers, modules, loaded models and hashes."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Kind
from transformers.modeling_gguf_pytorch_utils import read_field

from headatlas.errors import HeadatlasError
from headatlas.weights import (
    Checkpoint,
    gguf_modules,
    load_modules,
    load_tokenizer,
    open_checkpoint,
    tokenizer_hash,
)
from headatlas.weights.gguf_source import GgufSource
from tests.weights import builders

TEXT = " the year 1987 and\n naïve"


def same_modules(checkpoint: Checkpoint, model: transformers.PreTrainedModel) -> None:
    loaded = load_modules(checkpoint)
    ids = torch.tensor([[0, 5, 9, 200]])
    assert not loaded.training
    assert loaded.dtype == torch.float32
    assert torch.allclose(loaded(ids).logits, model(ids).logits, atol=1e-5)


def test_a_folder_loads_as_it_was_saved(llama_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = open_checkpoint(llama_folder)
    same_modules(checkpoint, builders.tiny_llama())
    expected = builders.tiny_tokenizer()(TEXT).input_ids
    assert load_tokenizer(checkpoint)(TEXT)["input_ids"] == expected
    assert capsys.readouterr() == ("", "")


def test_shards_and_odd_names_load_too(llama_folder: Path, sharded_folder: Path, tmp_path: Path) -> None:
    same_modules(open_checkpoint(sharded_folder), builders.tiny_llama())
    odd = tmp_path / "odd"
    odd.mkdir()
    shutil.copy(llama_folder / "model.safetensors", odd / "mine.safetensors")
    shutil.copy(llama_folder / "config.json", odd)
    same_modules(open_checkpoint(odd / "mine.safetensors"), builders.tiny_llama())
    with pytest.raises(HeadatlasError, match="holds no tokenizer"):
        load_tokenizer(open_checkpoint(odd))


def test_a_folder_without_its_tokenizer_json(llama_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama_folder, folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(HeadatlasError, match=r"holds no tokenizer; put the model's tokenizer\.json there"):
        load_tokenizer(open_checkpoint(folder))


@pytest.mark.parametrize(
    "change",
    [
        {"attention_dropout": "x"},
        {"rope_parameters": 5},
        {"pad_token_id": 10**9},
        {"rope_parameters": {"rope_type": "none such"}},
        {"hidden_act": "none such"},
    ],
)
def test_what_transformers_refuses_in_a_config(llama_folder: Path, tmp_path: Path, change: object) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(HeadatlasError, match=r"model cannot be loaded by transformers: .+; check or fetch"):
        load_modules(open_checkpoint(folder))


def test_tied_and_half_precision(tmp_path: Path) -> None:
    model = builders.tiny_llama(torch.bfloat16, tied=True)
    checkpoint = open_checkpoint(builders.save(model, tmp_path / "tied"))
    assert "lm_head.weight" not in checkpoint.source.infos()
    same_modules(checkpoint, model.float())
    assert load_modules(checkpoint, torch.bfloat16).dtype == torch.bfloat16


def test_a_length_that_is_no_number(llama_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama_folder, tmp_path / "model"))
    (folder / "tokenizer_config.json").write_text('{"model_max_length": "many"}')
    with pytest.raises(
        HeadatlasError, match=r"tokenizer_config\.json: model_max_length is 'many', not a number"
    ):
        load_tokenizer(open_checkpoint(folder))


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_pointers_of_git_lfs_say_what_they_are(llama_folder: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama_folder, folder)
    (folder / name).write_text(POINTER)
    with pytest.raises(
        HeadatlasError, match=rf"{name} is a pointer of Git LFS, .*fetch it with `git lfs pull`"
    ):
        load_tokenizer(open_checkpoint(folder))


def test_a_gguf_that_is_a_pointer(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_text(POINTER)
    with pytest.raises(HeadatlasError, match=r"a\.gguf is a pointer of Git LFS"):
        open_checkpoint(tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"tokenizer.ggml.merges": None}, r"its tokenizer \(gpt2\) lacks tokenizer\.ggml\.merges, so that"),
        (
            {"tokenizer.ggml.model": "llama", "tokenizer.ggml.merges": None},
            r"\(llama\) lacks tokenizer\.ggml\.scores and tokenizer\.ggml\.merges",
        ),
        ({"tokenizer.ggml.model": "rwkv"}, "cannot be loaded by transformers: .*'rwkv'"),
        ({"tokenizer.ggml.bos_token_id": 99999}, "cannot be loaded by transformers: list index out of range"),
    ],
)
def test_gguf_tokenizers_that_are_not_whole(tmp_path: Path, changed: dict[str, Any], problem: str) -> None:
    model = builders.tiny_qwen2()
    checkpoint = open_checkpoint(builders.qwen2_gguf(tmp_path / "t.gguf", model, changed=changed))
    with pytest.raises(HeadatlasError, match=problem):
        load_tokenizer(checkpoint)
    own = builders.tiny_tokenizer()
    assert load_tokenizer(open_checkpoint(checkpoint.path, own)) is own


@pytest.mark.parametrize("kind", ["adapter", "imatrix", "mmproj"])
def test_a_gguf_that_is_no_model(tmp_path: Path, kind: str) -> None:
    file = builders.qwen2_gguf(tmp_path / "t.gguf", builders.tiny_qwen2(), changed={"general.type": kind})
    with pytest.raises(
        HeadatlasError, match=rf"t\.gguf is no model: by its header \(general.type\) it is '{kind}'"
    ):
        open_checkpoint(file)
    model = builders.qwen2_gguf(tmp_path / "m.gguf", builders.tiny_qwen2(), changed={"general.type": "model"})
    assert open_checkpoint(model).architecture == "qwen2"


@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q8_0])
def test_gguf_modules_hold_what_the_source_reads(
    tmp_path: Path, kind: Kind, capsys: pytest.CaptureFixture[str]
) -> None:
    model = builders.tiny_qwen2()
    checkpoint = open_checkpoint(builders.qwen2_gguf(tmp_path / "tiny.gguf", model, kind))
    if kind == Kind.F32:
        same_modules(checkpoint, model)
    loaded = load_modules(checkpoint)
    for name, stored in (("v_proj", "attn_v"), ("o_proj", "attn_output")):
        weight = loaded.get_parameter(f"model.layers.1.self_attn.{name}.weight")
        assert torch.equal(weight, checkpoint.source.read(f"blk.1.{stored}.weight"))
    assert torch.equal(loaded.get_input_embeddings().weight, checkpoint.source.read("token_embd.weight"))
    assert capsys.readouterr() == ("", "")


def test_transformers_is_shown_what_its_own_reader_finds(tmp_path: Path) -> None:
    settings = {
        "qwen2.a": True,
        "qwen2.b": 0.5,
        "qwen2.c": [1, 2],
        "qwen2.d": [0.5],
        "qwen2.e": [True, False],
    }
    file = builders.qwen2_gguf(tmp_path / "tiny.gguf", builders.tiny_qwen2(), Kind.Q8_0, changed=settings)
    usual = gguf.GGUFReader(file)
    with gguf_modules.shown_to_transformers(GgufSource(file), lambda name: "blk" in name):
        shown = gguf.GGUFReader(file)
    assert gguf.GGUFReader is type(usual)
    assert settings.keys() < shown.fields.keys() < usual.fields.keys()
    for key in shown.fields:
        assert read_field(shown, key) == read_field(usual, key)
    wanted = [tensor for tensor in usual.tensors if "blk" in tensor.name]
    assert len(shown.tensors) == len(wanted) > 20
    for ours, theirs in zip(shown.tensors, wanted, strict=True):
        assert (ours.name, ours.tensor_type, ours.shape) == (
            theirs.name,
            theirs.tensor_type,
            list(theirs.shape),
        )
        assert np.array_equal(*(gguf.dequantize(each.data, each.tensor_type) for each in (ours, theirs)))


def test_gguf_loads_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HEADATLAS_CACHE", str(tmp_path / "file"))
    checkpoint = open_checkpoint(builders.qwen2_gguf(tmp_path / "tiny.gguf", builders.tiny_qwen2()))
    assert len(load_tokenizer(checkpoint).get_vocab()) == len(builders.vocabulary())


def test_a_split_gguf_is_one_model(tmp_path: Path) -> None:
    """Opened by any part; tokenizer, modules and tensors are those of the whole."""
    model = builders.tiny_qwen2()
    builders.qwen2_gguf(tmp_path / "tiny.gguf", model, split=10)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert [part.name for part in parts] == [f"tiny-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert "output.weight" not in open_checkpoint(tmp_path).source.header.tensors  # type: ignore[attr-defined]
    for spec in (*parts, tmp_path):
        checkpoint = open_checkpoint(spec)
        assert checkpoint.path == parts[0]
        assert len(checkpoint.source.infos()) == len(model.state_dict())
    same_modules(checkpoint, model)
    assert len(load_tokenizer(checkpoint).get_vocab()) == len(builders.vocabulary())


def test_gguf_without_tokenizer_or_unknown(tmp_path: Path) -> None:
    model = builders.tiny_qwen2()
    bare = open_checkpoint(builders.qwen2_gguf(tmp_path / "bare.gguf", model, tokenizer=False))
    with pytest.raises(HeadatlasError, match="holds no tokenizer"):
        load_tokenizer(bare)
    alien = builders.write_gguf(
        tmp_path / "a.gguf", {"w": (torch.ones(2, 32).numpy(), Kind.F32)}, arch="alien"
    )
    with pytest.raises(HeadatlasError, match=r"cannot convert GGUF files of this architecture \(alien\)"):
        load_modules(open_checkpoint(alien))
    sizes = {"llama.block_count": 1, "llama.embedding_length": 32}
    without = builders.write_gguf(tmp_path / "b.gguf", {"w": (torch.ones(2, 32).numpy(), Kind.F32)}, sizes)
    with pytest.raises(HeadatlasError, match=r"header has no llama\.feed_forward_length, without which"):
        load_modules(open_checkpoint(without))


def test_the_settings_of_transformers_are_put_back(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars = importlib.import_module("huggingface_hub.utils.tqdm")
    monkeypatch.setattr(bars, "HF_HUB_DISABLE_PROGRESS_BARS", True)  # as the environment variable does
    huggingface_hub.utils.disable_progress_bars()
    transformers.utils.logging.set_verbosity_info()
    load_tokenizer(open_checkpoint(llama_folder))
    assert transformers.utils.logging.get_verbosity() == transformers.logging.INFO
    assert transformers.utils.logging.is_progress_bar_enabled()
    assert huggingface_hub.utils.are_progress_bars_disabled()
    transformers.utils.logging.set_verbosity_warning()


def test_missing_tensors_are_never_made_up(llama_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(llama_folder, tmp_path / "more")
    config = json.loads((tmp_path / "more/config.json").read_text())
    (tmp_path / "more/config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(HeadatlasError, match=r"lacks 'model\.layers\.2.*more tensors"):
        load_modules(open_checkpoint(tmp_path / "more"))
    (tmp_path / "more/config.json").write_text(json.dumps(config | {"intermediate_size": 50}))
    with pytest.raises(HeadatlasError, match=r"wrong shape|cannot be loaded"):
        load_modules(open_checkpoint(tmp_path / "more"))


def test_code_of_a_model_folder_never_runs(llama_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "custom"
    shutil.copytree(llama_folder, folder)
    (folder / "modeling_evil.py").write_text("raise SystemExit('ran')")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "modeling_evil.C", "AutoModelForCausalLM": "modeling_evil.M"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(HeadatlasError, match="never runs code"):
        load_modules(open_checkpoint(folder))


def test_a_loaded_model_is_read_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = builders.tiny_llama(torch.bfloat16, tied=True), builders.tiny_tokenizer()
    checkpoint = open_checkpoint(model, tokenizer)
    assert (checkpoint.format, checkpoint.path, checkpoint.architecture) == (
        "module",
        None,
        "LlamaForCausalLM",
    )
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(checkpoint.source.infos())
    assert load_tokenizer(checkpoint) is tokenizer
    read = checkpoint.source.read("model.norm.weight")
    assert read.dtype == torch.float32
    read.zero_()
    assert torch.equal(checkpoint.source.read("model.norm.weight"), torch.ones(32))
    embedding = checkpoint.source.read("lm_head.weight")
    assert torch.equal(checkpoint.source.read("model.embed_tokens.weight", [3, 1]), embedding[[3, 1]])
    with pytest.raises(HeadatlasError, match="no tensor 'x'"):
        checkpoint.source.read("x")
    with pytest.raises(HeadatlasError, match="came without its tokenizer"):
        load_tokenizer(open_checkpoint(model))
    assert (
        open_checkpoint(builders.tiny_llama(torch.float64)).source.read("lm_head.weight").dtype
        == torch.float64
    )


class OwnLlama(transformers.LlamaForCausalLM):
    """A user's subclass."""


def test_loaded_models_that_cannot_be_read() -> None:
    model = builders.tiny_llama()
    checkpoint = open_checkpoint(model)
    model.to("meta")
    with pytest.raises(HeadatlasError, match="has no data"):
        checkpoint.source.read("model.norm.weight")
    with pytest.raises(HeadatlasError, match="has no data"):
        checkpoint.source.fingerprint()
    integers = builders.tiny_llama()
    integers.lm_head.weight = torch.nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(HeadatlasError, match=r"'lm_head\.weight' .* torch\.int8"):
        open_checkpoint(integers).source.read("lm_head.weight")
    with pytest.raises(HeadatlasError, match="A Linear is no model"):
        open_checkpoint(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    assert open_checkpoint(OwnLlama(model.config)).architecture == "LlamaForCausalLM"


def test_a_tokenizer_of_ones_own_is_used(llama_folder: Path) -> None:
    tokenizer = builders.tiny_tokenizer()
    assert load_tokenizer(open_checkpoint(str(llama_folder), tokenizer)) is tokenizer


def test_fingerprints_identify_the_weights(
    llama_folder: Path, sharded_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    single = open_checkpoint(llama_folder)
    content = (llama_folder / "model.safetensors").read_bytes()
    assert single.source.fingerprint() == f"sha256:{hashlib.sha256(content).hexdigest()}"
    shards = open_checkpoint(sharded_folder).source.fingerprint()
    assert shards.startswith("sha256:")
    assert shards != single.source.fingerprint()
    monkeypatch.setattr("headatlas.files.FULL_LIMIT", 1000)
    sampled = open_checkpoint(sharded_folder).source.fingerprint()
    assert sampled.startswith("sampled-sha256:")
    assert sampled == open_checkpoint(sharded_folder).source.fingerprint()
    shard = max(sharded_folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    assert open_checkpoint(sharded_folder).source.fingerprint() != sampled


def test_fingerprint_of_a_module_follows_its_values() -> None:
    model = builders.tiny_llama()
    before = open_checkpoint(model).source.fingerprint()
    assert before.startswith("sampled-sha256:")
    assert open_checkpoint(builders.tiny_llama()).source.fingerprint() == before
    with torch.no_grad():
        model.get_parameter("model.layers.1.self_attn.v_proj.weight")[0, 0] += 1
    assert open_checkpoint(model).source.fingerprint() != before


def test_tokenizer_hash_follows_vocabulary_and_special_tokens() -> None:
    tokenizer, other = builders.tiny_tokenizer(), builders.tiny_tokenizer()
    assert tokenizer_hash(tokenizer) == tokenizer_hash(other)
    other.add_tokens(["new"])
    assert tokenizer_hash(tokenizer) != tokenizer_hash(other)
    special = builders.tiny_tokenizer()
    special.pad_token = "A"  # noqa: S105
    assert tokenizer_hash(tokenizer) != tokenizer_hash(special)
