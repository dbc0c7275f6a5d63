"""Write files so that nobody ever sees half of one, and say early when a place cannot be written."""

from __future__ import annotations

import errno
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
    """A temporary file beside ``path``, with its suffix, that takes its place when the block ends well.

    Raises:
        HeadatlasError: The file cannot be written; ``path`` is then what it was before.
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


def check_writable(folder: str | Path) -> None:
    """Make sure that files can be created in ``folder``, or that it can be created. Leaves no trace.

    Raises:
        HeadatlasError: It is an address or a file, or nothing can be written there.
    """
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
