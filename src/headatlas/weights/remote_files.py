"""Files that are not on disk: their size, and parts of them, through any file system of fsspec.

Every read returns exactly the bytes asked for, of the file as it was when opened, or ends in one sentence.
What may pass (server errors, stalls, broken connections, short bodies) is tried again with growing pauses.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar

from headatlas.errors import HeadatlasError
from headatlas.storage import shown
from headatlas.storage.failures import UnusableAnswerError, failures, judge
from headatlas.storage.patience import Patience
from headatlas.weights.remote_http import AnswerChecks, http_filesystem
from headatlas.weights.remote_url import HTTP

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

T = TypeVar("T")
U = TypeVar("U")


PATIENCE = Patience()
PARALLEL = 8
"""Requests under way at a time, where the file system allows several."""


@dataclass(frozen=True)
class RemoteFile:
    """One file as it was when it was opened.

    Attributes:
        address: For the file system; may hold credentials.
        label: For people.
        size: Bytes.
        content_mark: What its store says identifies the content (ETag, a hash), or None.
        change_mark: What differs when the file has been written again, as far as the store tells.
    """

    address: str
    label: str
    size: int
    content_mark: str | None
    change_mark: str


class RemoteStore:
    """A file system of fsspec, asked with patience.

    Attributes:
        parallel: Requests that may be under way at a time.
    """

    def __init__(
        self,
        system: AbstractFileSystem,
        checks: AnswerChecks | None = None,
        *,
        parallel: int = 1,
        fixed: bool = False,
        info_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Wrap a file system.

        Args:
            system: The file system.
            checks: Its answer checks, for HTTP.
            parallel: How many threads may use it.
            fixed: Whether files behind an address cannot change (a commit).
            info_options: Passed to the file system when a file is looked up.
        """
        self.parallel = parallel
        self._system = system
        self._checks = checks
        self._fixed = fixed
        self._info_options = dict(info_options or {})
        self._patience = PATIENCE
        self._giving_up = Event()

    @classmethod
    def at(cls, address: str) -> RemoteStore:
        """The file system that an address belongs to.

        Raises:
            HeadatlasError: fsspec knows no such scheme, a package is missing, or it cannot be set up.
        """
        import fsspec
        from fsspec.asyn import AsyncFileSystem

        scheme = address.partition("://")[0].lower()
        if scheme in HTTP:
            system, checks = http_filesystem(PATIENCE.timeout, encoded="%" in address)
            return cls(system, checks, parallel=PARALLEL)
        try:
            other, _ = fsspec.url_to_fs(address)
        except ImportError as error:
            raise HeadatlasError(f"{shown(address)}: a package is missing ({error}).") from None
        except (ValueError, OSError, TypeError, RuntimeError) as error:
            raise HeadatlasError(
                f"{shown(address)} cannot be opened by fsspec ({type(error).__name__}); "
                f"check that {scheme}:// is a scheme it knows and that access to it is set up."
            ) from None
        # Others may hand out one file object to all who open a file, so they are asked one by one.
        return cls(other, parallel=PARALLEL if isinstance(other, AsyncFileSystem) else 1)

    def find(self, address: str, *, forbidden_is_missing: bool = False) -> RemoteFile | None:
        """Look a file up; None if there is none.

        Args:
            address: Of the file.
            forbidden_is_missing: Whether “forbidden” counts as “not there”: object stores answer so for
                files that do not exist when the folder may not be listed.

        Raises:
            HeadatlasError: The store cannot be asked, or does not say how large the file is.
        """
        label = shown(address)

        def ask() -> dict[str, Any]:
            try:
                found: dict[str, Any] = self._system.info(address, **self._info_options)
            except failures() as error:
                verdict = judge(error, PATIENCE.timeout)
                if verdict.missing or (forbidden_is_missing and verdict.forbidden):
                    return {}
                raise
            return found

        info = self._patiently(label, ask)
        if not info or info.get("type") == "directory":
            return None
        size = info.get("size")
        if not isinstance(size, int) or size < 0:
            raise HeadatlasError(
                f"{label}: the server does not say how large it is, so parts of it cannot be read; download "
                "the model and give its folder."
            )
        mark = _content_mark(info)
        if self._checks is not None:
            url = self._system.encode_url(address)
            self._checks.pin(url, size, info.get("ETag"))
        return RemoteFile(address, label, size, mark, mark or _change_mark(info))

    def read(self, file: RemoteFile, start: int, end: int) -> bytes:
        """Bytes ``start`` to ``end`` (excluded) of a file.

        Raises:
            HeadatlasError: They cannot be had, after all tries.
        """
        if not 0 <= start <= end <= file.size:
            raise ValueError(f"bytes {start} to {end} of a file of {file.size}")
        if start == end:
            return b""

        def ask() -> bytes:
            body = self._fetch(file.address, start, end)
            if len(body) != end - start:
                raise UnusableAnswerError(f"asked for {end - start} bytes, got {len(body)}", transient=True)
            return body

        return self._patiently(file.label, ask)

    def check_unchanged(self, file: RemoteFile) -> None:
        """Make sure that a file is still the one that was opened; over HTTP every answer was checked.

        Raises:
            HeadatlasError: It has changed or gone.
        """
        if self._fixed or self._checks is not None:
            return
        now = self.find(file.address)
        if now is None or (now.size, now.change_mark) != (file.size, file.change_mark):
            raise HeadatlasError(f"{file.label} has changed since it was opened; run the command again.")

    def map(self, work: Callable[[T], U], items: Iterable[T]) -> list[U]:
        """``work`` on every item, several at a time where that is safe; the first error ends it."""
        tasks = list(items)
        if self.parallel == 1 or len(tasks) < 2:
            return [work(item) for item in tasks]
        with ThreadPoolExecutor(min(self.parallel, len(tasks))) as pool:
            futures = [pool.submit(work, item) for item in tasks]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            except BaseException:
                # Those still under way are not worth more tries, and Ctrl-C should not wait for them.
                self._giving_up.set()
                raise
            finally:
                pool.shutdown(cancel_futures=True)
                self._giving_up.clear()
        return [future.result() for future in futures]

    def _fetch(self, address: str, start: int, end: int) -> bytes:
        from fsspec.asyn import AsyncFileSystem

        if isinstance(self._system, AsyncFileSystem):
            return bytes(self._system.cat_file(address, start=start, end=end))
        # Without a cache, which would read ahead what nobody asked for.
        with self._system.open(address, "rb", cache_type="none") as stream:
            stream.seek(start)
            return bytes(stream.read(end - start))

    def _patiently(self, label: str, ask: Callable[[], T]) -> T:
        pause = self._patience.first_pause
        for attempt in range(1, self._patience.attempts + 1):
            try:
                return ask()
            except failures() as error:
                verdict = judge(error, PATIENCE.timeout)
                # The error itself is not chained: its text may hold the address with its credentials.
                if not verdict.transient or attempt == self._patience.attempts or self._giving_up.is_set():
                    tried = f" ({attempt} attempts)" if attempt > 1 else ""
                    message = f"{label} cannot be read: {verdict.reason}{tried}; {verdict.advice}."
                    raise HeadatlasError(message) from None
                needed = max(pause * random.uniform(0.75, 1.25), verdict.wait)  # noqa: S311 -- no secret
            self._giving_up.wait(min(needed, self._patience.longest_pause))
            pause *= 2
        raise AssertionError("the loop returns or raises")


def _content_mark(info: dict[str, Any]) -> str | None:
    lfs = info.get("lfs")
    if lfs:
        return str(lfs["sha256"])
    for key in ("ETag", "etag", "blob_id", "md5Hash", "content_md5", "Content-MD5"):
        if info.get(key):
            return str(info[key])
    return None


def _change_mark(info: dict[str, Any]) -> str:
    keys = ("Last-Modified", "LastModified", "last_modified", "updated", "mtime", "ino", "created")
    return " ".join(str(info[key]) for key in keys if info.get(key))
