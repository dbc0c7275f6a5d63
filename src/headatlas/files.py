"""Atomic writes of files and folders, and an early check that a place can be written."""

from __future__ import annotations

import errno
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from headatlas.addresses import output_path
from headatlas.errors import HeadatlasError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Atomic write: yields a temporary path with the suffix of `path`, renames it over `path` on success.

    Where it cannot be written, ``path`` is what it was before.
    """
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        remedy = "make room" if error.errno in _NO_ROOM else "choose another `out`"
        raise HeadatlasError(f"{path}: cannot be written ({error.strerror or error}); {remedy}.") from error
    finally:
        # Where a folder on the way is a file, there is nothing to remove, and the error above says so.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Atomic creation of a folder: yields a temporary path beside `path`, renames it to `path` on success.

    A folder that is there already is an OSError, or with ``replace`` deleted first, on success.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if replace:
            shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(folder: str | Path) -> None:
    """Make sure that files can be created in ``folder``, or that it can be created. Leaves no trace."""
    folder = output_path(folder)
    nearest = folder.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise HeadatlasError(f"{folder}: {nearest} is a file, not a folder; choose another `out`.")
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise HeadatlasError(
            f"{folder}: cannot be written ({error.strerror or error}); choose another `out`."
        ) from error
