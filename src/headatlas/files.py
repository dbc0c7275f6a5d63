"""Write files so that nobody ever sees half of one, and say early when a place cannot be written."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from headatlas.errors import HeadatlasError
from headatlas.storage import Place, StoragePath, place


@contextmanager
def replacing(path: Place) -> Iterator[Path]:
    """A temporary file with the suffix of ``path`` that takes its place when the block ends well.

    It is beside ``path``, or on this machine if that is in object storage.

    Raises:
        HeadatlasError: The file cannot be written; ``path`` is then what it was before.
    """
    if isinstance(path, StoragePath):
        with tempfile.TemporaryDirectory(prefix="headatlas-") as folder:
            made = Path(folder) / path.name
            yield made
            path.write_bytes(made.read_bytes())
        return
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise HeadatlasError(
            f"{path}: cannot be written ({error.strerror or error}); choose another `out`."
        ) from error
    finally:
        # Where a folder on the way is a file, there is nothing to remove, and the error above says so.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_writable(folder: str | Place) -> None:
    """Make sure that files can be created in ``folder``, or that it can be created. Leaves no trace.

    Raises:
        HeadatlasError: It is a file, or nothing can be written there.
    """
    folder = place(folder)
    if isinstance(folder, StoragePath):
        probe = folder / f".headatlas-{uuid.uuid4().hex[:8]}"
        probe.write_bytes(b"")
        probe.unlink()
        return
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
