"""A place for files: a folder of this machine, or a prefix in a store that fsspec reaches."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeAlias

from headatlas.errors import HeadatlasError
from headatlas.storage import patience
from headatlas.storage.addresses import is_url, shown
from headatlas.storage.patience import StorageError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_LOCAL = ("file", "local")
_SQUEEZED = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:/(?!/)")


class StoragePath:
    """An object in a store, or all objects under a prefix, with words of :class:`pathlib.Path`.

    A store replaces objects whole, so nobody ever reads half of one; it knows no renaming and no locks. As
    text (``str``) it holds no credentials. Requests that fail for reasons that may pass are made again.
    """

    def __init__(self, url: str) -> None:
        scheme, _, rest = url.partition("://")
        self._scheme, self._rest = scheme.lower(), rest.rstrip("/")

    @property
    def url(self) -> str:
        """The whole address; may hold credentials."""
        return f"{self._scheme}://{self._rest}"

    def __str__(self) -> str:
        return shown(self.url)

    def __repr__(self) -> str:
        return f"StoragePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoragePath) and other.url == self.url

    def __hash__(self) -> int:
        return hash(self.url)

    def __truediv__(self, name: str) -> StoragePath:
        return StoragePath(f"{self.url}/{name}" if self._rest else f"{self.url}{name}")

    @property
    def name(self) -> str:
        return self._rest.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    def with_suffix(self, suffix: str) -> StoragePath:
        return self.parent / PurePosixPath(self.name).with_suffix(suffix).name

    @property
    def parent(self) -> StoragePath:
        """The prefix it is in; the topmost is its own."""
        before, slash, _ = self._rest.rpartition("/")
        return StoragePath(f"{self._scheme}://{before}") if slash else self

    # What is there -----------------------------------------------------------------------------------

    def read_bytes(self) -> bytes:
        """The object's content.

        Raises:
            FileNotFoundError: There is no such object.
            StorageError: It cannot be read.
        """
        return bytes(self._do("cat_file", "cannot be read"))

    def exists(self) -> bool:
        """Whether there is an object of this name, or under it.

        Raises:
            StorageError: The store does not say.
        """
        try:
            self._do("info", "cannot be reached")
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Whether there are objects under this prefix.

        Raises:
            StorageError: The store does not say.
        """
        try:
            return bool(self._do("info", "cannot be reached")["type"] == "directory")
        except FileNotFoundError:
            return False

    def files(self) -> list[StoragePath]:
        """All objects under the prefix.

        Raises:
            StorageError: The store does not say.
        """
        _, path = self.system()
        root = path.rstrip("/") + "/"
        try:
            found = self._do("find", "cannot be listed")
        except FileNotFoundError:
            return []
        return [self / str(each).removeprefix(root) for each in found if each != path]

    # Changing it -------------------------------------------------------------------------------------

    def write_bytes(self, data: bytes) -> None:
        """Write the object; one that is there is replaced.

        Raises:
            StorageError: It cannot be written.
        """
        self._written("pipe_file", data)

    def create(self, data: bytes) -> bool:
        """Write the object unless there is one; whether it was written.

        Of several that create it at a time, one succeeds where the store refuses the others, as those of
        Amazon and Google do. Elsewhere the last one stays: read the object back, and act on what is there.

        Raises:
            StorageError: It cannot be written.
        """
        from fsspec.asyn import AsyncFileSystem

        system, _ = self.system()
        writes = system._pipe_file if isinstance(system, AsyncFileSystem) else system.pipe_file
        if "mode" not in inspect.signature(writes).parameters:
            self._written("pipe_file", data)
            return True
        try:
            self._written("pipe_file", data, mode="create")
        except FileExistsError:
            return False
        return True

    def write_all(self, files: Mapping[str, bytes]) -> None:
        """Write objects under the prefix, several at a time, in any order.

        Raises:
            StorageError: One cannot be written; others may have been.
        """
        system, path = self.system()
        whole = {f"{path.rstrip('/')}/{name}": data for name, data in files.items()}
        self._patiently("cannot be written", partial(system.pipe, whole))

    def unlink(self) -> None:
        """Delete the object, if it is there.

        Raises:
            StorageError: It cannot be deleted.
        """
        try:
            self._do("rm_file", "cannot be deleted")
        except FileNotFoundError:
            return

    # Asking ------------------------------------------------------------------------------------------

    def system(self) -> tuple[AbstractFileSystem, str]:
        """The file system and the path in it.

        Raises:
            HeadatlasError: fsspec knows no such scheme, a package is missing, or it cannot be set up.
        """
        import fsspec

        try:
            system, path = fsspec.url_to_fs(self.url)
        except ImportError as error:
            raise HeadatlasError(f"{self}: a package is missing ({error}).") from None
        except (ValueError, OSError, TypeError, RuntimeError) as error:
            raise HeadatlasError(
                f"{self} cannot be opened by fsspec ({type(error).__name__}); check that {self._scheme}:// "
                "is a scheme it knows and that access to it is set up."
            ) from None
        return system, path

    def _written(self, verb: str, *arguments: Any, **options: Any) -> None:
        try:
            self._do(verb, "cannot be written", *arguments, **options)
        except FileNotFoundError:
            missing = "there is no such bucket or folder"
            raise StorageError(str(self), "cannot be written", missing, "check the address") from None

    def _do(self, verb: str, what: str, *arguments: Any, **options: Any) -> Any:
        system, path = self.system()
        # What other processes have done since the last listing must be seen.
        system.invalidate_cache()
        return self._patiently(what, partial(_call, system, verb, path, *arguments, **options))

    def _patiently(self, what: str, ask: Any) -> Any:
        return patience.patiently(str(self), what, ask)


Place: TypeAlias = Path | StoragePath


def place(given: str | Path | StoragePath) -> Place:
    """A path, or an address of fsspec (``s3://bucket/folder``), as a place; ``file://`` is a path, too.

    Raises:
        HeadatlasError: It is an address that cannot be one of a folder or file.
    """
    if isinstance(given, StoragePath):
        return given
    text = str(given)
    if isinstance(given, Path):
        if _SQUEEZED.match(text) and not Path(given.parts[0]).exists():
            raise HeadatlasError(f"{given}: give an address (scheme://…) as text; a Path merges its slashes.")
        return given
    if "::" in text and "://" in text:
        raise HeadatlasError(
            f"{shown(text.rpartition('::')[2])}: a chain of file systems (::) is not followed; "
            "give the address of a folder."
        )
    if not is_url(text):
        return Path(text)
    scheme, _, rest = text.partition("://")
    if "?" in rest or "#" in rest:
        raise HeadatlasError(
            f"{shown(text)}: the address of a folder or file to write has no query (?…) or fragment (#…); "
            "give credentials in the way the store's own tools take them."
        )
    if not rest.strip("/"):
        raise HeadatlasError(f"{shown(text)} names no folder; give one, such as {scheme}://bucket/folder.")
    if scheme.lower() in _LOCAL:
        from fsspec.implementations.local import LocalFileSystem

        return Path(LocalFileSystem._strip_protocol(text))
    return StoragePath(text)


def _call(system: AbstractFileSystem, verb: str, path: str, *arguments: Any, **options: Any) -> Any:
    """A method of a file system, by name; those that are asynchronous inside are given up when they stall."""
    from fsspec.asyn import AsyncFileSystem, sync

    if isinstance(system, AsyncFileSystem):
        method = getattr(system, f"_{verb}")
        return sync(system.loop, method, path, *arguments, timeout=patience.PATIENCE.timeout, **options)
    return getattr(system, verb)(path, *arguments, **options)
