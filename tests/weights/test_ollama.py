"""Models in an Ollama store that was made up on the spot."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headatlas.architectures import open_model
from headatlas.architectures.oracle import self_check
from headatlas.errors import HeadatlasError
from headatlas.weights import load_modules, load_tokenizer, open_checkpoint
from tests.weights import builders

TYPE = "application/vnd.ollama.image."


class Store:
    """A store that models are put into."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "manifests").mkdir(parents=True)
        (folder / "blobs").mkdir()

    def blob(self, content: bytes, kind: str, separator: str = "-") -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (self.folder / "blobs" / f"sha256{separator}{digest}").write_bytes(content)
        return {"mediaType": TYPE + kind, "digest": f"sha256:{digest}", "size": len(content)}

    def manifest(self, place: str, content: object) -> Path:
        path = self.folder / "manifests" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def add(self, place: str, *layers: dict[str, Any]) -> Path:
        return self.manifest(place, {"schemaVersion": 2, "config": {}, "layers": list(layers)})


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "models"))
    return Store(tmp_path / "models")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return builders.qwen2_gguf(file, builders.tiny_qwen2(), Kind.Q8_0).read_bytes()


LIBRARY = "registry.ollama.ai/library"


@pytest.mark.parametrize(
    ("place", "spec", "name"),
    [
        (f"{LIBRARY}/tiny/latest", "tiny", "tiny:latest"),
        (f"{LIBRARY}/tiny/latest", "tiny:latest", "tiny:latest"),
        (f"{LIBRARY}/tiny/0.5b-q8_0", "library/tiny:0.5b-q8_0", "tiny:0.5b-q8_0"),
        ("registry.ollama.ai/someone/tiny/v1", "someone/tiny:v1", "someone/tiny:v1"),
        ("hf.co/org/Tiny-GGUF/Q8_0", "hf.co/org/Tiny-GGUF:Q8_0", "hf.co/org/Tiny-GGUF:Q8_0"),
    ],
)
def test_a_model_is_found_by_the_name_that_ollama_shows(
    store: Store, model: bytes, place: str, spec: str, name: str
) -> None:
    layer = store.blob(model, "model")
    store.add(
        place, layer, store.blob(b"\n  Apache License\nVersion 2.0", "license"), store.blob(b"{}", "params")
    )
    checkpoint = open_checkpoint(f"ollama:{spec}")
    assert (checkpoint.format, checkpoint.name, checkpoint.spec) == ("gguf", name, f"ollama:{spec}")
    assert checkpoint.revision == layer["digest"][7:19]
    assert any("'Apache License'" in note for note in checkpoint.notes)


def test_tokenizer_and_modules_come_out_of_the_blob(store: Store, model: bytes) -> None:
    store.add(f"{LIBRARY}/tiny/latest", store.blob(model, "model", ":"))  # as older versions named blobs
    checkpoint = open_checkpoint("ollama:tiny")
    assert load_tokenizer(checkpoint).get_vocab() == builders.tiny_tokenizer().get_vocab()
    assert load_modules(checkpoint).config.num_hidden_layers == 2


def test_what_reads_images_is_left_aside(store: Store, tmp_path: Path) -> None:
    """Inside the file, as Ollama's own converter writes it, or in a file of its own."""
    tiny, kind = builders.tiny_qwen2(), Kind.F32
    names = ("v.blk.0.attn_q.weight", "v.patch_embedding.weight", "mm.mm_input_projection.weight")
    tower = {name: (np.ones((4, 32)), kind) for name in names}
    whole = builders.qwen2_gguf(tmp_path / "whole.gguf", tiny, also=tower).read_bytes()
    text = builders.qwen2_gguf(tmp_path / "text.gguf", tiny).read_bytes()
    store.add(f"{LIBRARY}/whole/latest", store.blob(whole, "model"))
    store.add(f"{LIBRARY}/apart/latest", store.blob(text, "model"), store.blob(b"GGUF", "projector"))
    inside, apart = (open_model(open_checkpoint(f"ollama:{name}")) for name in ("whole", "apart"))
    told = "3 tensors that read images or sound (mm.*, v.*) are left aside; the heads are those of the text"
    assert inside.checkpoint.notes[-1] == f"{told} model."
    assert "reads images, a file of its own, is left aside" in apart.checkpoint.notes[-1]
    assert torch.equal(inside.heads(1).W_V, apart.heads(1).W_V)
    ids = torch.tensor([[5, 9, 3]])
    with torch.no_grad():
        wanted, found = (each(ids).logits for each in (tiny, load_modules(inside.checkpoint)))
    torch.testing.assert_close(found, wanted)
    assert self_check(inside).startswith("layer 0")


def test_unknown_names_list_what_is_there(store: Store, model: bytes) -> None:
    with pytest.raises(
        HeadatlasError, match=r"ollama:llama3 is not in .*; no model is; fetch it with `ollama pull`"
    ):
        open_checkpoint("ollama:llama3")
    for place in (
        f"{LIBRARY}/llama3.2/1b",
        f"{LIBRARY}/qwen/latest",
        "registry.ollama.ai/me/own/latest",
        "hf.co/a/b/Q4",
    ):
        store.add(place, store.blob(model, "model"))
    with pytest.raises(
        HeadatlasError, match=r"there is llama3\.2:1b, hf\.co/a/b:Q4, me/own:latest, qwen:latest\."
    ):
        open_checkpoint("ollama:llama3.2")
    for number in range(20):
        store.add(f"{LIBRARY}/m{number}/latest", store.blob(model, "model"))
    with pytest.raises(HeadatlasError, match=r"and 12 more\."):
        open_checkpoint("ollama:llama3.2")


@pytest.mark.parametrize("spec", ["", "a b", "../x", "a/b/c/d", "x:", "x:..", "/x", "a//b", "x:y:z", "é"])
def test_names_that_are_none(store: Store, spec: str) -> None:
    with pytest.raises(HeadatlasError, match="is not understood; write ollama:NAME"):
        open_checkpoint(f"ollama:{spec}")


def test_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "none"))
    with pytest.raises(HeadatlasError, match=r"no store of Ollama in .*none; fetch .* set OLLAMA_MODELS"):
        open_checkpoint("ollama:tiny")
    monkeypatch.delenv("OLLAMA_MODELS")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(HeadatlasError, match=r"\.ollama/models or /usr/share/ollama/\.ollama/models; fetch"):
        open_checkpoint("ollama:tiny")


def test_a_damaged_blob_is_noticed(store: Store, model: bytes, private_cache: Path) -> None:
    layer = store.blob(model, "model")
    store.add(f"{LIBRARY}/tiny/latest", layer)
    blob = store.folder / "blobs" / layer["digest"].replace(":", "-")
    open_checkpoint("ollama:tiny")
    assert len(list((private_cache / "ollama").iterdir())) == 1  # read once, and remembered
    blob.write_bytes(model[:-1] + bytes([model[-1] ^ 1]))
    with pytest.raises(HeadatlasError, match=r"does not have the SHA-256 in its name, it is damaged"):
        open_checkpoint("ollama:tiny")
    blob.write_bytes(model[:-1])
    with pytest.raises(
        HeadatlasError, match=rf"has {len(model) - 1:,} bytes, its manifest says {len(model):,}"
    ):
        open_checkpoint("ollama:tiny")
    blob.unlink()
    with pytest.raises(HeadatlasError, match=r"names the file sha256-.*, which is not in"):
        open_checkpoint("ollama:tiny")


def test_the_digest_is_checked_without_a_cache(
    store: Store, model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HEADATLAS_CACHE", str(tmp_path / "file"))
    store.add(f"{LIBRARY}/tiny/latest", store.blob(model, "model"))
    assert open_checkpoint("ollama:tiny").format == "gguf"


def test_models_that_are_no_single_gguf(store: Store, model: bytes) -> None:
    whole = store.blob(model, "model")
    store.add(f"{LIBRARY}/adapted/latest", whole, store.blob(b"x", "adapter"))
    store.add(f"{LIBRARY}/tensors/latest", store.blob(b"x", "tensor"))
    store.add(f"{LIBRARY}/cloud/latest")
    store.manifest(f"{LIBRARY}/null/latest", {"schemaVersion": 2, "config": {}, "layers": None})
    store.add(f"{LIBRARY}/parts/latest", store.blob(b"x", "license"))
    store.add(f"{LIBRARY}/two/latest", whole, whole)
    store.add(f"{LIBRARY}/text/latest", store.blob(b"no GGUF at all, but long enough for a header", "model"))
    for name, problem in {
        "adapted": "is a base model and an adapter",
        "tensors": "is stored tensor by tensor",
        "cloud": "lists no files: this is a model that runs in Ollama's cloud, and its weights are not",
        "null": "runs in Ollama's cloud",
        "parts": "lists no model files where one is needed",
        "two": "lists 2 model files",
        "text": "not a GGUF file",
    }.items():
        with pytest.raises(HeadatlasError, match=problem):
            open_checkpoint(f"ollama:{name}")


LAYER = {"mediaType": TYPE + "model", "digest": "sha256:" + "0" * 64, "size": 3}


@pytest.mark.parametrize(
    ("manifest", "problem"),
    [
        ("", "not valid JSON"),
        ("[]", "holds a JSON list"),
        ({}, "does not list media type"),
        ({"layers": "x"}, "does not list media type"),
        ({"layers": [LAYER | {"digest": "sha256:../../etc/passwd"}]}, "does not list media type"),
        ({"layers": [LAYER | {"size": "3"}]}, "does not list media type"),
        ({"layers": [LAYER | {"size": True}]}, "does not list media type"),
        ({"layers": [LAYER]}, "which is not in"),
    ],
)
def test_broken_manifests(store: Store, manifest: object, problem: str) -> None:
    store.manifest(f"{LIBRARY}/tiny/latest", manifest)
    with pytest.raises(HeadatlasError, match=problem):
        open_checkpoint("ollama:tiny")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["layers", *LAYER]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layers=st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(LAYER, JSON)) | JSON, max_size=3),
    other=JSON,
)
def test_no_manifest_gives_anything_but_one_clear_error(store: Store, layers: object, other: object) -> None:
    for content in ({"layers": layers}, other):
        path = store.manifest(f"{LIBRARY}/tiny/latest", content)
        with pytest.raises(HeadatlasError) as caught:
            open_checkpoint("ollama:tiny")
        assert str(path) in str(caught.value)
