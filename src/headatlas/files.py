"""Files on this machine: written whole or not at all, hashed, read as JSON; and the cache of all processes.

A clone without Git LFS has a few lines of text in the place of any large file; those are known here as well.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from headatlas.addresses import output_path
from headatlas.errors import HeadatlasError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def unwritten(path: Path, error: OSError, otherwise: str, full: str = "make room") -> HeadatlasError:
    """The error for a path that cannot be written, with what to do where there is room or none."""
    remedy = full if error.errno in _NO_ROOM else otherwise
    return HeadatlasError(f"{path}: cannot be written ({error.strerror or error}); {remedy}.")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Atomic write: yields a temporary path with the suffix of `path`, renames it over `path` on success.

    Where it cannot be written, ``path`` is what it was before. Of a link, what it points to is written.
    """
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # a folder is said below
            raise HeadatlasError(f"{path}: is a device or a pipe, not a file; choose another `out`.")
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise unwritten(path, error, "choose another `out`") from error
    finally:
        # Where a folder on the way is a file, there is nothing to remove, and the error above says so.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Atomic creation of a folder: yields a temporary path beside `path`, renames it to `path` on success.

    A folder that is there already is an OSError, or with ``replace`` deleted once the new one is there.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    aside = temporary.with_name(f"{temporary.name}.old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        while not _moved(temporary, path, aside if replace else None):
            shutil.rmtree(aside)
    finally:
        if aside.exists() and not path.exists():
            aside.replace(path)
        for left in (temporary, aside):
            shutil.rmtree(left, ignore_errors=True)


def _moved(new: Path, path: Path, aside: Path | None) -> bool:
    """Move a folder to ``path``, what is there ``aside``; False where another process was first again."""
    if aside is not None:
        with suppress(FileNotFoundError):
            path.replace(aside)
    try:
        new.replace(path)
    except OSError:
        if aside is None or not (aside.is_dir() and path.is_dir()):
            raise
        return False
    return True


def check_writable(folder: str | Path, otherwise: str = "choose another `out`") -> None:
    """Make sure that files can be created in ``folder``, or that it can be created. Leaves no trace.

    The refusal says what to do ``otherwise``.
    """
    folder = output_path(folder)
    nearest = folder.absolute()
    try:
        while not nearest.exists():
            nearest = nearest.parent
        if not nearest.is_dir():
            raise HeadatlasError(f"{folder}: {nearest} is a file, not a folder; {otherwise}.")
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise unwritten(folder, error, otherwise) from error


def lock(descriptor: int, *, alone: bool, wait: bool = True) -> bool:
    """Lock an open folder, ``alone`` or beside others; False if others keep it and this does not ``wait``.

    The lock is on the folder itself: nothing is left behind, and a killed process holds nothing. Where a file
    system knows no locks, this says True.
    """
    with suppress(ImportError, OSError):
        from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock

        try:
            flock(descriptor, (LOCK_EX if alone else LOCK_SH) | (0 if wait else LOCK_NB))
        except BlockingIOError:
            return False
    return True


@contextmanager
def writing_in(folder: Path, first: Callable[[], object] | None = None) -> Iterator[None]:
    """Let other processes know that this one writes in ``folder``, as it lets them.

    ``first`` is done before, and only where no other process is there (HeadatlasError).
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if first is not None:
            if not lock(descriptor, alone=True, wait=False):
                raise HeadatlasError(
                    f"{folder}: another process is writing to the atlas there, so it is not deleted; wait "
                    "until that is done, or choose another `out`."
                )
            first()
        lock(descriptor, alone=False)
        yield
    finally:
        os.close(descriptor)


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
    """A hash that identifies weights on disk; see :class:`~headatlas.weights.source.TensorSource`."""
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
