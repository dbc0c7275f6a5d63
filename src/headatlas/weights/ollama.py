"""Models in a local Ollama store: name -> manifest -> blob. Nothing is fetched.

A store is a folder with ``manifests/HOST/NAMESPACE/MODEL/TAG``, JSON files that list the parts of a model
with their media types, sizes and SHA-256 digests, and ``blobs/sha256-…``, the parts. The part of type
``application/vnd.ollama.image.model`` is a GGUF file. Source: ollama/ollama,
server/internal/manifest/manifest.go, and the part of its FAQ on where models are stored.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from pydantic import BaseModel, Field, StrictInt, ValidationError

from headatlas.errors import HeadatlasError
from headatlas.weights.checkpoints import open_gguf
from headatlas.weights.local_files import cache_dir, read_json_object, reading, sha256_of_file
from headatlas.weights.source import Checkpoint

MODELS_VARIABLE = "OLLAMA_MODELS"
_HOST, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_NAME = re.compile(
    rf"(?:(?:(?P<host>{_PART}(?::\d+)?)/)?(?P<namespace>{_PART})/)?(?P<model>{_PART})(?::(?P<tag>{_PART}))?",
    re.ASCII,
)
_TYPE = "application/vnd.ollama.image."
_MOST_BYTES = 4 << 20  # real manifests have some kilobytes
_LISTED = 12
_AGAIN = "fetch the model again with `ollama pull`"


class _Layer(BaseModel):
    """One part of a model."""

    mediaType: str  # noqa: N815 (the manifest's name)
    digest: str = Field(pattern=r"^sha256[:-][0-9a-f]{64}$")
    size: StrictInt

    @property
    def sha256(self) -> str:
        """64 hexadecimal digits."""
        return self.digest[-64:]


class _Manifest(BaseModel):
    """The parts of a model; None if it runs in Ollama's cloud."""

    layers: list[_Layer] | None


def open_ollama(request: str, spec: str) -> Checkpoint:
    """Open a model of the local store, having made sure that its file is what the manifest says.

    Args:
        request: ``[[HOST/]NAMESPACE/]MODEL[:TAG]``; what is left out is Ollama's own default.
        spec: What the user typed.

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
    manifest = store / "manifests" / host / namespace / match["model"] / (match["tag"] or _TAG)
    if not manifest.is_file():
        raise HeadatlasError(f"ollama:{request} is not in {store}; {_what_is_there(store, request)}")
    layers = _layers(manifest)
    layer = _model_layer(manifest, layers)
    blob = _blob(store, manifest, layer)
    _check_digest(blob, layer.sha256)
    checkpoint = open_gguf(blob, spec)
    notes = [*checkpoint.notes, *_licences(store, manifest, layers)]
    if _of_kind(layers, "projector"):
        notes.append("The part of the model that reads images, a file of its own, is left aside.")
    name, revision = _shown(store, manifest), layer.sha256[:12]
    return replace(checkpoint, name=name, revision=revision, notes=tuple(notes))


def _store() -> Path:
    """The folder that Ollama keeps models in."""
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


def _model_layer(manifest: Path, layers: Sequence[_Layer]) -> _Layer:
    """The layer that is the GGUF file."""
    found = _of_kind(layers, "model")
    if _of_kind(layers, "adapter"):
        problem = "the model is a base model and an adapter; merge them and give the result"
    elif _of_kind(layers, "tensor"):
        problem = "the model is stored tensor by tensor, not as GGUF; give the model it was made from"
    elif not layers:
        problem = (
            "it lists no files: this is a model that runs in Ollama's cloud, and its weights are not on this "
            "machine; give a model for which `ollama list` shows a size"
        )
    elif len(found) != 1:
        problem = f"it lists {len(found) or 'no'} model files where one is needed; give another model"
    else:
        return found[0]
    raise HeadatlasError(f"{manifest}: {problem}.")


def _layers(manifest: Path) -> Sequence[_Layer]:
    """The layers of a manifest."""
    if manifest.stat().st_size > _MOST_BYTES:
        raise HeadatlasError(f"{manifest} is no manifest, it is too large; {_AGAIN}.")
    try:
        return _Manifest.model_validate(read_json_object(manifest)).layers or ()
    except ValidationError as error:
        raise HeadatlasError(
            f"{manifest} does not list media type, digest and size of every layer; {_AGAIN}."
        ) from error


def _of_kind(layers: Sequence[_Layer], kind: str) -> list[_Layer]:
    return [layer for layer in layers if layer.mediaType == _TYPE + kind]


def _blob(store: Path, manifest: Path, layer: _Layer) -> Path:
    """The file of a layer, of the size the manifest says."""
    # Older versions wrote a colon, which not every file system takes.
    for blob in (store / "blobs" / f"sha256{separator}{layer.sha256}" for separator in "-:"):
        if blob.is_file():
            size = blob.stat().st_size
            if size != layer.size:
                raise HeadatlasError(
                    f"{blob} has {size:,} bytes, its manifest says {layer.size:,}; {_AGAIN}."
                )
            return blob
    raise HeadatlasError(
        f"{manifest} names the file sha256-{layer.sha256}, which is not in {store / 'blobs'}; {_AGAIN}."
    )


def _check_digest(blob: Path, digest: str) -> None:
    """Compare a file with its digest, once for every state of the file: the user cache remembers it."""
    with reading(blob):
        about = blob.stat()
        note = cache_dir() / "ollama" / f"{digest}-{about.st_size}-{about.st_mtime_ns}-{about.st_ino}"
        if note.is_file():
            return
        if sha256_of_file(blob) != digest:
            raise HeadatlasError(
                f"{blob} does not have the SHA-256 in its name, it is damaged; remove it and fetch the model "
                "again with `ollama pull`."
            )
    with suppress(OSError):  # a cache that cannot be written only costs time
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()


def _licences(store: Path, manifest: Path, layers: Sequence[_Layer]) -> Iterator[str]:
    """The first line of every licence text that comes with the model."""
    for layer in _of_kind(layers, "license"):
        blob = _blob(store, manifest, layer)
        with blob.open("rb") as stream:
            text = stream.read(1000).decode("utf-8", errors="replace")
        if first := text.strip().partition("\n")[0].strip():
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
