"""Files on this machine: the cache that processes share, hashes, and JSON that lies beside weights.

A clone without Git LFS has a few lines of text in the place of any large file; those are known here as well.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headatlas.errors import HeadatlasError

CACHE_VARIABLE = "HEADATLAS_CACHE"
FULL_LIMIT = 2 << 30
"""Files of up to so many bytes together are hashed whole."""
_WINDOWS, _WINDOW = 256, 1 << 20


def cache_dir() -> Path:
    """The user cache of headatlas; the environment variable ``HEADATLAS_CACHE`` overrides it."""
    override = os.environ.get(CACHE_VARIABLE)
    if override:
        return Path(override).expanduser()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("headatlas"))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold ``path`` as a lock file, so that only one process fills a place of the cache at a time."""
    from filelock import FileLock

    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise HeadatlasError(
            f"{path} in the cache cannot be created ({error.strerror or error}); "
            f"set {CACHE_VARIABLE} to a folder you can write to."
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say of which file it is that the system refuses to read (HeadatlasError)."""
    try:
        yield
    except OSError as error:
        raise HeadatlasError(f"{path} cannot be read: {error.strerror or error}.") from error


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_files(files: Sequence[Path]) -> str:
    """SHA-256 of the lines ``<sha256>  <name>``, as ``sha256sum`` prints them."""
    digest = hashlib.sha256()
    for file in files:
        with reading(file):
            digest.update(f"{sha256_of_file(file)}  {file.name}\n".encode())
    return digest.hexdigest()


def fingerprint_of_files(files: Sequence[Path]) -> str:
    """A hash that identifies weights on disk; see :func:`headatlas.weights.source.fingerprint`."""
    with reading(files[0].parent):
        sizes = [file.stat().st_size for file in files]
        if sum(sizes) > FULL_LIMIT:
            return f"sampled-sha256:{_sampled(files, sizes)}"
        if len(files) == 1:
            return f"sha256:{sha256_of_file(files[0])}"
    return f"sha256:{sha256_of_files(files)}"


def _sampled(files: Sequence[Path], sizes: Sequence[int]) -> str:
    windows = max(2, _WINDOWS // len(files))
    digest = hashlib.sha256()
    for file, size in zip(files, sizes, strict=True):
        digest.update(f"{file.name}\0{size}\0".encode())
        last = max(0, size - _WINDOW)
        with file.open("rb") as stream:
            for place in range(windows):
                stream.seek(last * place // (windows - 1))
                digest.update(stream.read(_WINDOW))
    return digest.hexdigest()


def refuse_pointer(path: Path | str, first: bytes) -> None:
    """Refuse a pointer of Git LFS, by the first bytes of a file.

    Source: the specification of Git LFS, docs/spec.md: the first line begins with ``version``.
    """
    if first[:8] == b"version ":
        raise HeadatlasError(
            f"{path} is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull` there."
        )


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    with reading(path):
        content = path.read_bytes()
    refuse_pointer(path, content)
    try:
        value = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        problem = f" is not UTF-8 text (byte {error.start})"
    except json.JSONDecodeError as error:
        problem = f", line {error.lineno}: not valid JSON ({error.msg})"
    except (RecursionError, ValueError) as error:
        problem = f" is not usable JSON ({error})"
    else:
        if isinstance(value, dict):
            return value
        problem = f" holds a JSON {type(value).__name__} where an object is needed"
    raise HeadatlasError(f"{path}{problem}; correct it or fetch the file again.")
