"""Models from the Hub, with a hub of our own on the loopback interface."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from headatlas.errors import HeadatlasError
from headatlas.weights import load_modules, load_tokenizer, open_checkpoint, remote
from headatlas.weights.remote import Patience
from headatlas.weights.safetensors_source import INDEX_NAME
from tests.weights import builders
from tests.weights.hub_server import SHA, Hub, serving


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """An empty hub, and a huggingface_hub that knows no other and has an empty cache."""
    with serving() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
        yield running
        huggingface_hub.close_session()


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_only_the_files_needed_are_fetched(
    hub: Hub, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unwanted = dict.fromkeys(
        ("pytorch_model.bin", "README.md", "onnx/model.onnx", "original/consolidated.safetensors",
         "consolidated.safetensors", "model.fp16.safetensors", "flax_model.msgpack", "modeling_own.py"),
        b"unwanted",
    )  # fmt: skip
    hub.repos["org/tiny"] = files_of(llama_folder) | unwanted
    checkpoint = open_checkpoint("org/tiny")
    assert (checkpoint.name, checkpoint.revision, checkpoint.spec) == ("tiny", SHA, "org/tiny")
    assert "config.json" in hub.fetched
    assert not set(hub.fetched) & {Path(name).name for name in unwanted}
    assert len(load_tokenizer(checkpoint).get_vocab()) == len(builders.vocabulary())

    before = list(hub.fetched)
    assert open_checkpoint("org/tiny@main").path == checkpoint.path
    assert hub.fetched == before
    hub.broken = True
    assert open_checkpoint("org/tiny").path == checkpoint.path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.repos.clear()
    assert open_checkpoint("org/tiny").path == checkpoint.path
    assert open_checkpoint(f"org/tiny@{SHA}").revision == SHA


def test_shards_are_taken_from_the_index(hub: Hub, sharded_folder: Path) -> None:
    shards = {file.name for file in sharded_folder.glob("*.safetensors")}
    hub.repos["org/big"] = files_of(sharded_folder) | {"consolidated.safetensors": b"a second copy"}
    assert len(open_checkpoint("org/big").source.infos()) > 10
    assert shards <= set(hub.fetched)
    assert "consolidated.safetensors" not in hub.fetched


def test_a_repository_with_weights_and_an_adapter(hub: Hub, llama_folder: Path) -> None:
    hub.repos["org/both"] = files_of(llama_folder) | {"adapter_config.json": b"{}"}
    for from_afar in (False, True):
        with pytest.raises(HeadatlasError, match=r"adapter that is not merged into it \(adapter_config"):
            open_checkpoint("org/both", remote=from_afar)


def test_a_repository_with_weights_twice(hub: Hub, llama_folder: Path, sharded_folder: Path) -> None:
    hub.repos["org/twice"] = files_of(sharded_folder) | files_of(llama_folder)
    (note,) = open_checkpoint("org/twice").notes
    assert note.endswith(f"shards of {INDEX_NAME}.")
    assert not any("-of-" in name for name in hub.fetched)


def test_a_repository_with_one_gguf(hub: Hub, tmp_path: Path) -> None:
    file = builders.qwen2_gguf(tmp_path / "tiny.gguf", builders.tiny_qwen2())
    hub.repos["org/tiny-gguf"] = {"tiny.gguf": file.read_bytes()}
    assert open_checkpoint("org/tiny-gguf").format == "gguf"
    for part in builders.qwen2_gguf(tmp_path / "s.gguf", builders.tiny_qwen2(), split=10).parent.glob("s-*"):
        hub.repos.setdefault("org/split", {"mmproj-s.gguf": b""})[part.name] = part.read_bytes()
    assert len(open_checkpoint("org/split").source.infos()) == 27
    hub.repos["org/many"] = {"a.gguf": b"", "b.gguf": b""}
    with pytest.raises(
        HeadatlasError,
        match=r"2 GGUF models \(a\.gguf, b\.gguf\); give the path of one.*`hf download ORG/NAME FILE`",
    ):
        open_checkpoint("org/many")


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"config.json": b"{}", "pytorch_model.bin": b""}, r"pickle.*save_pretrained\(FOLDER\)"),
        ({"config.json": b"{}", "README.md": b""}, r"holds no model\.safetensors"),
        ({"config.json": b"{}", "consolidated.safetensors": b""}, r"holds no model\.safetensors"),
        ({"model.safetensors": b""}, r"has no config\.json"),
        (
            {"config.json": b"{}", "adapter_config.json": b"{}", "adapter_model.safetensors": b""},
            "org/odd on the Hub holds an adapter, not a whole model, and does not name its base",
        ),
        (
            {"adapter_config.json": b'{"base_model_name_or_path": "org/base"}'},
            "org/odd on the Hub holds an adapter of 'org/base', not a whole model; give 'org/base'",
        ),
        (
            {"config.json": b"{}", "model.safetensors": b"junk"},
            "as cached from the Hub cannot be opened.*truncated",
        ),
        (
            {
                "config.json": b"{}",
                INDEX_NAME: json.dumps({"weight_map": {"a": "../b.safetensors"}}).encode(),
            },
            "not the name of",
        ),
    ],
)
def test_repositories_without_usable_weights(hub: Hub, files: dict[str, bytes], problem: str) -> None:
    hub.repos["org/odd"] = files
    with pytest.raises(HeadatlasError, match=problem):
        open_checkpoint("org/odd")


def test_a_gated_repository_says_how_to_log_in(hub: Hub, llama_folder: Path) -> None:
    hub.repos["org/gated"] = files_of(llama_folder)
    hub.gated.add("org/gated")
    with pytest.raises(HeadatlasError, match=r"org/gated is gated: accept its terms .* `hf auth login`"):
        open_checkpoint("org/gated")


def test_unknown_names_and_revisions(hub: Hub, llama_folder: Path) -> None:
    hub.repos["org/tiny"] = files_of(llama_folder)
    with pytest.raises(HeadatlasError, match="org/none is neither a folder here nor a model on the Hub"):
        open_checkpoint("org/none")
    with pytest.raises(HeadatlasError, match="org/tiny on the Hub has no revision 'v9'"):
        open_checkpoint("org/tiny@v9")
    with pytest.raises(HeadatlasError, match="not a name that the Hub accepts"):
        open_checkpoint("org/two..dots")


def test_offline_or_unreachable_and_not_in_the_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.broken = True
    with pytest.raises(HeadatlasError, match=r"org/tiny is not in the cache .* cannot be reached"):
        open_checkpoint("org/tiny")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HeadatlasError, match="cannot be reached"):
        open_checkpoint("org/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HeadatlasError, match="offline mode"):
        open_checkpoint("org/tiny@main")


@pytest.mark.parametrize("shards", [None, "16KB"])
def test_a_model_is_read_in_place(hub: Hub, tmp_path: Path, shards: str | None) -> None:
    folder = builders.save(builders.tiny_llama(), tmp_path / "m", shard_size=shards)
    hub.repos["org/tiny"] = files_of(folder)
    checkpoint, local = open_checkpoint("org/tiny@main", remote=True), open_checkpoint(folder)
    assert (checkpoint.name, checkpoint.revision, checkpoint.spec) == ("tiny", SHA, "org/tiny@main")
    assert load_tokenizer(checkpoint).get_vocab() == load_tokenizer(local).get_vocab()
    source, wanted = checkpoint.source, local.source
    assert source.infos().keys() == wanted.infos().keys()
    name = "model.layers.1.self_attn.v_proj.weight"
    for rows in (None, [3, 0, 3]):
        assert torch.equal(source.read(name, rows), wanted.read(name, rows))
    sent = sum(size for file, size in hub.sent.items() if file.endswith(".safetensors"))
    assert checkpoint.traffic is not None
    assert checkpoint.traffic.read == sent < checkpoint.traffic.total
    assert checkpoint.source.fingerprint() == open_checkpoint("org/tiny", remote=True).source.fingerprint()
    with pytest.raises(HeadatlasError, match="leave out `remote=True` to download it"):
        load_modules(checkpoint)


def test_reading_in_place_needs_the_hub(
    hub: Hub, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PATIENCE", Patience(attempts=2, first_pause=0.01))
    hub.repos["org/tiny"] = files_of(llama_folder)
    source = open_checkpoint("org/tiny", remote=True).source
    hub.repos["org/tiny"]["model.safetensors"] = b"short"
    with pytest.raises(HeadatlasError, match=r"model\.safetensors cannot be read: .*2 attempts"):
        source.read("model.norm.weight")
    hub.gated.add("org/tiny")
    with pytest.raises(HeadatlasError, match="answered 403"):
        source.read("model.norm.weight")
    hub.repos["org/gguf"] = {"config.json": b"{}", "a.gguf": b""}
    with pytest.raises(HeadatlasError, match="holds a GGUF file"):
        open_checkpoint("org/gguf", remote=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HeadatlasError, match="leave out `remote=True`"):
        open_checkpoint("org/tiny", remote=True)
