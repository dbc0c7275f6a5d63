"""Ask a store again when what failed may pass, and say in one sentence when it does not."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from headatlas.errors import HeadatlasError
from headatlas.storage.failures import failures, judge

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long to wait and how often to try.

    Attributes:
        attempts: Tries in all.
        first_pause: Seconds before the second try; doubled each time.
        longest_pause: Most seconds between two tries, whatever a server asks for.
        timeout: Seconds without a byte after which a try has failed.
    """

    attempts: int = 6
    first_pause: float = 0.5
    longest_pause: float = 30.0
    timeout: float = 30.0


PATIENCE = Patience(attempts=5, timeout=120.0)
"""For places that are written to; the libraries behind fsspec have patience of their own as well."""


class StorageError(HeadatlasError, OSError):
    """A store that does not do what it is asked, in a sentence without credentials.

    It is an OSError too, with the reason alone as ``strerror``: who writes files says what that means.
    """

    def __init__(self, label: str, what: str, reason: str, advice: str) -> None:
        super().__init__(f"{label}: {what} ({reason}); {advice}.")
        self.strerror = reason
        self._sentence = f"{label}: {what} ({reason}); {advice}."

    def __str__(self) -> str:
        return self._sentence


def patiently(label: str, what: str, ask: Callable[[], T]) -> T:
    """Do `ask`, several times if need be; it must not matter whether a failed one was done all the same.

    Args:
        label: What is asked for, as it may be shown.
        what: What failed, for example ``"cannot be read"``.
        ask: The request.

    Raises:
        FileNotFoundError: There is no such object.
        StorageError: It failed for good.
    """
    for pause in _pauses():
        try:
            return ask()
        except failures() as error:
            _judged(label, what, error, last=pause is None)
        time.sleep(pause or 0.0)
    raise AssertionError("the last failure raises")


async def patiently_async(label: str, what: str, ask: Callable[[], Awaitable[T]]) -> T:
    """The same where an event loop runs; a request that stalls is given up and made again."""
    for pause in _pauses():
        try:
            return await asyncio.wait_for(ask(), PATIENCE.timeout)
        except failures() as error:
            _judged(label, what, error, last=pause is None)
        await asyncio.sleep(pause or 0.0)
    raise AssertionError("the last failure raises")


def _pauses() -> Iterator[float | None]:
    """Seconds to wait after each try; None after the last."""
    pause = PATIENCE.first_pause
    for _ in range(PATIENCE.attempts - 1):
        yield min(pause, PATIENCE.longest_pause) * random.uniform(0.75, 1.25)  # noqa: S311 -- no secret
        pause *= 2
    yield None


def _judged(label: str, what: str, error: Exception, *, last: bool) -> None:
    """Return if it is worth another try."""
    if isinstance(error, StorageError):
        raise error
    if isinstance(error, FileExistsError):
        raise FileExistsError(f"{label} exists") from None
    verdict = judge(error, PATIENCE.timeout)
    # The error itself is never chained: its text may hold the address with its credentials.
    if verdict.missing:
        raise FileNotFoundError(f"{label} is not there") from None
    if last or not verdict.transient:
        tried = f", {PATIENCE.attempts} attempts" if verdict.transient else ""
        raise StorageError(label, what, f"{verdict.reason}{tried}", verdict.advice) from None
