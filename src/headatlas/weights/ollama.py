"""Models in a local Ollama store: name -> manifest -> blob. Nothing is fetched.

A store is a folder with ``manifests/HOST/NAMESPACE/MODEL/TAG``, JSON files that list the parts of a model
with their media types, sizes and SHA-256 digests, and ``blobs/sha256-…``, the parts. The part of type
``application/vnd.ollama.image.model`` is a GGUF file. Source: ollama/ollama,
server/internal/manifest/manifest.go, and the part of its FAQ on where models are stored.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from headatlas.errors import HeadatlasError
from headatlas.weights.local_files import cache_dir, read_json_object, sha256_of_file

MODELS_VARIABLE = "OLLAMA_MODELS"
_HOST, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_NAME = re.compile(
    rf"(?:(?:(?P<host>{_PART}(?::\d+)?)/)?(?P<namespace>{_PART})/)?(?P<model>{_PART})(?::(?P<tag>{_PART}))?",
    re.ASCII,
)
_DIGEST = re.compile(r"sha256[:-](?P<digits>[0-9a-f]{64})", re.ASCII)
_TYPE = "application/vnd.ollama.image."
_MOST_BYTES = 4 << 20  # real manifests have some kilobytes
_LISTED = 12


@dataclass(frozen=True)
class OllamaModel:
    """A model found in a store.

    Attributes:
        path: The GGUF file.
        name: As Ollama shows it, e.g. ``"llama3.2:1b"``.
        digest: SHA-256 of the file, 64 hexadecimal digits.
        notes: What the user should be told.
    """

    path: Path
    name: str
    digest: str
    notes: tuple[str, ...]


def open_ollama(request: str) -> OllamaModel:
    """Find a model in the local store and make sure that its file is what the manifest says.

    Args:
        request: ``[[HOST/]NAMESPACE/]MODEL[:TAG]``; what is left out is Ollama's own default.

    Raises:
        HeadatlasError: The store or the model is not there (the message lists what is), the manifest is
            broken, or the file has another size or digest.
    """
    match = _NAME.fullmatch(request)
    if match is None:
        raise HeadatlasError(
            f"ollama:{request[:100]} is not understood; write ollama:NAME or ollama:NAME:TAG, as "
            "`ollama list` shows it."
        )
    store = _store()
    host, namespace = match["host"] or _HOST, match["namespace"] or _NAMESPACE
    tag = match["tag"] or _TAG
    manifest = store / "manifests" / host / namespace / match["model"] / tag
    if manifest.is_file():
        return _model(store, manifest)
    raise HeadatlasError(f"ollama:{request} is not in {store}; {_what_is_there(store, request)}")


def _store() -> Path:
    """The folder that Ollama keeps models in.

    Raises:
        HeadatlasError: There is none.
    """
    override = os.environ.get(MODELS_VARIABLE)
    places = [Path(override).expanduser()] if override else _usual_places()
    for place in places:
        if (place / "manifests").is_dir():
            return place
    raise HeadatlasError(
        f"There is no store of Ollama in {' or '.join(map(str, places))}; fetch the model with `ollama pull` "
        f"or set {MODELS_VARIABLE} to the folder that holds manifests and blobs."
    )


def _usual_places() -> list[Path]:
    """The user's store, and that of the service which Ollama's installer sets up on Linux."""
    return [Path.home() / ".ollama" / "models", Path("/usr/share/ollama/.ollama/models")]


def _model(store: Path, manifest: Path) -> OllamaModel:
    layers = _layers(manifest)
    for kind, why in {
        "adapter": "is a base model and an adapter; merge them and give the result",
        "tensor": "is stored tensor by tensor, not as GGUF; give the model it was made from",
    }.items():
        if any(layer["mediaType"] == _TYPE + kind for layer in layers):
            raise HeadatlasError(f"{manifest}: the model {why}.")
    if not layers:
        raise HeadatlasError(
            f"{manifest} lists no files: this is a model that runs in Ollama's cloud, and its weights are "
            "not on this machine; give a model for which `ollama list` shows a size."
        )
    found = [layer for layer in layers if layer["mediaType"] == _TYPE + "model"]
    if len(found) != 1:
        raise HeadatlasError(
            f"{manifest} lists {len(found) or 'no'} model files where one is needed; give another model."
        )
    blob, digest = _blob(store, manifest, found[0])
    _check_digest(blob, digest)
    notes = list(_licences(store, manifest, layers))
    if any(layer["mediaType"] == _TYPE + "projector" for layer in layers):
        notes.append("The part of the model that reads images, a file of its own, is left aside.")
    return OllamaModel(blob, _shown(store, manifest), digest, tuple(notes))


def _layers(manifest: Path) -> list[dict[str, Any]]:
    """The layers of a manifest, each with a media type, a digest and a size; none of a model in the cloud.

    Raises:
        HeadatlasError: The manifest is no such list.
    """
    if manifest.stat().st_size > _MOST_BYTES:
        raise HeadatlasError(
            f"{manifest} is no manifest, it is too large; fetch the model again with `ollama pull`."
        )
    content = read_json_object(manifest)
    if "layers" in content and content["layers"] is None:
        return []
    layers = content.get("layers")
    if not isinstance(layers, list) or not all(map(_is_layer, layers)):
        raise HeadatlasError(
            f"{manifest} does not list media type, digest and size of every layer; "
            "fetch the model again with `ollama pull`."
        )
    return layers


def _is_layer(layer: object) -> bool:
    return (
        isinstance(layer, dict)
        and isinstance(layer.get("mediaType"), str)
        and isinstance(layer.get("digest"), str)
        and _DIGEST.fullmatch(layer["digest"]) is not None
        and type(layer.get("size")) is int
    )


def _blob(store: Path, manifest: Path, layer: dict[str, Any]) -> tuple[Path, str]:
    """The file of a layer, of the size the manifest says, and its digest."""
    match = _DIGEST.fullmatch(layer["digest"])
    assert match is not None  # noqa: S101 (_is_layer has seen to it)
    digest = match["digits"]
    # Older versions wrote a colon, which not every file system takes.
    for blob in (store / "blobs" / f"sha256-{digest}", store / "blobs" / f"sha256:{digest}"):
        if blob.is_file():
            size = blob.stat().st_size
            if size != layer["size"]:
                raise HeadatlasError(
                    f"{blob} has {size:,} bytes, its manifest says {layer['size']:,}; "
                    "fetch the model again with `ollama pull`."
                )
            return blob, digest
    raise HeadatlasError(
        f"{manifest} names the file sha256-{digest}, which is not in {store / 'blobs'}; "
        "fetch the model again with `ollama pull`."
    )


def _check_digest(blob: Path, digest: str) -> None:
    """Compare a file with its digest, once for every state of the file: the result is kept in the user cache.

    Raises:
        HeadatlasError: They differ, or the file cannot be read.
    """
    try:
        about = blob.stat()
        note = cache_dir() / "ollama" / f"{digest}-{about.st_size}-{about.st_mtime_ns}-{about.st_ino}"
        if note.is_file():
            return
        if sha256_of_file(blob) != digest:
            raise HeadatlasError(
                f"{blob} does not have the SHA-256 in its name, it is damaged; remove it and fetch the model "
                "again with `ollama pull`."
            )
    except OSError as error:
        raise HeadatlasError(f"{blob} cannot be read: {error.strerror or error}.") from error
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()
    except OSError:
        return  # a cache that cannot be written only costs time


def _licences(store: Path, manifest: Path, layers: list[dict[str, Any]]) -> Iterator[str]:
    """The first line of every licence text that comes with the model."""
    for layer in layers:
        if layer["mediaType"] == _TYPE + "license":
            blob, _ = _blob(store, manifest, layer)
            with blob.open("rb") as stream:
                text = stream.read(1000).decode("utf-8", errors="replace")
            first = next((line.strip() for line in text.splitlines() if line.strip()), "")
            if first:
                yield f"The model comes with the licence {first[:80]!r}, in {blob}."


def _what_is_there(store: Path, request: str) -> str:
    there = sorted(_shown(store, path) for path in _manifests(store))
    if not there:
        return "no model is; fetch it with `ollama pull`."
    near = get_close_matches(request, there, n=_LISTED, cutoff=0.4)
    listed = [*near, *(name for name in there if name not in near)]
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return f"there is {', '.join(listed[:_LISTED])}{more}."


def _manifests(store: Path) -> Iterator[Path]:
    """Every manifest of a store: HOST/NAMESPACE/MODEL/TAG."""
    return (path for path in (store / "manifests").glob("*/*/*/*") if path.is_file() and path.name[0] != ".")


def _shown(store: Path, manifest: Path) -> str:
    """A manifest's name as Ollama shows it, without its defaults."""
    host, namespace, model, tag = manifest.relative_to(store / "manifests").parts
    if host != _HOST:
        return f"{host}/{namespace}/{model}:{tag}"
    return f"{model}:{tag}" if namespace == _NAMESPACE else f"{namespace}/{model}:{tag}"
