"""Files on this machine: the cache that processes share, hashes, and JSON that lies beside weights.

A clone without Git LFS has a few lines of text in the place of any large file; those are known here as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headatlas.errors import HeadatlasError

CACHE_VARIABLE = "HEADATLAS_CACHE"
_BLOCK = 1 << 20


def cache_dir() -> Path:
    """The user cache of headatlas; the environment variable ``HEADATLAS_CACHE`` overrides it."""
    override = os.environ.get(CACHE_VARIABLE)
    if override:
        return Path(override).expanduser()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("headatlas"))


def make_folder(folder: Path) -> Path:
    """Create a folder of the cache.

    Raises:
        HeadatlasError: The folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HeadatlasError(
            f"The cache folder {folder} cannot be created ({error.strerror or error}); "
            f"set {CACHE_VARIABLE} to a folder you can write to."
        ) from error
    return folder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold ``path`` as a lock file, so that only one process fills a place of the cache at a time.

    Raises:
        HeadatlasError: The lock file cannot be created.
    """
    from filelock import FileLock

    make_folder(path.parent)
    lock = FileLock(path)
    try:
        lock.acquire()
    except OSError as error:
        raise HeadatlasError(
            f"The lock file {path} cannot be created ({error.strerror or error}); "
            f"set {CACHE_VARIABLE} to a folder you can write to."
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def filled_folder(final: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``final`` when the block ends well, and disappears when it does not.

    The rename is atomic, so nobody ever sees a half-filled ``final``. If another process has filled it in the
    meantime, its folder stays.
    """
    make_folder(final.parent)
    work = Path(tempfile.mkdtemp(prefix=".filling-", dir=final.parent))
    try:
        yield work
        work.chmod(0o755)
        try:
            work.replace(final)
        except OSError:
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def refuse_pointer(path: Path | str, first: bytes) -> None:
    """Make sure that a file is not a pointer of Git LFS, by its first bytes.

    Source: the specification of Git LFS, docs/spec.md: the first line begins with ``version``.

    Raises:
        HeadatlasError: It is one.
    """
    if first[:8] == b"version ":
        raise HeadatlasError(
            f"{path} is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull` there."
        )


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        HeadatlasError: The file cannot be read, is not UTF-8 JSON (with the line), or is not an object.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise HeadatlasError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise HeadatlasError(
            f"{path} is not UTF-8 text (byte {error.start}); fetch the file again."
        ) from error
    refuse_pointer(path, text[:8].encode())
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise HeadatlasError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}); correct it or fetch the file again."
        ) from error
    except (RecursionError, ValueError) as error:
        raise HeadatlasError(f"{path} is not usable JSON ({error}); fetch the file again.") from error
    if not isinstance(value, dict):
        raise HeadatlasError(
            f"{path} holds a JSON {type(value).__name__} where an object is needed; fetch the file again."
        )
    return value
