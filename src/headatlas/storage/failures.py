"""What a failed request to a store means: whether to try again, and what a user may be told."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})
_ROOTS = (
    *(("aiohttp", "ClientError"), ("botocore.exceptions", "BotoCoreError")),
    *(("botocore.exceptions", "ClientError"), ("azure.core.exceptions", "AzureError")),
    *(("gcsfs.retry", "HttpError"), ("google.auth.exceptions", "GoogleAuthError")),
)
"""Errors that the libraries behind fsspec raise and that Python has no name for."""


class UnusableAnswerError(OSError):
    """An answer that must not be used.

    Attributes:
        reason: What is wrong, as part of a sentence.
        transient: Whether asking again may help.
    """

    def __init__(self, reason: str, *, transient: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.transient = transient


@dataclass(frozen=True)
class Verdict:
    """What a failed request means."""

    reason: str
    advice: str = "try again later"
    transient: bool = False
    missing: bool = False
    forbidden: bool = False
    wait: float = 0.0


def failures() -> tuple[type[Exception], ...]:
    """What file systems raise. Their libraries have roots of their own, and are there if they are in use."""
    kinds: list[type[Exception]] = [OSError, ValueError, RuntimeError]
    kinds += [getattr(sys.modules[module], name) for module, name in _ROOTS if module in sys.modules]
    if "huggingface_hub" in sys.modules:
        from huggingface_hub.errors import HfHubHTTPError

        kinds += [HfHubHTTPError, HfHubHTTPError.__bases__[0]]
    return tuple(kinds)


def judge(error: BaseException, timeout: float) -> Verdict:
    """Whether to try again, and what to tell. Never the error's own text, which may hold credentials.

    Args:
        error: What was raised.
        timeout: Seconds after which a request without an answer was given up.
    """
    if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, failures()):
        # fsspec says “not found” of every failed look-up over HTTP; the cause knows better.
        return judge(error.__cause__, timeout)
    if isinstance(error, UnusableAnswerError):
        return Verdict(error.reason, "download the model and give its folder", transient=error.transient)
    status = _status(error)
    if isinstance(error.__cause__, _garbled()):
        return Verdict("the server's answer is garbled", transient=True)
    return _of_status(status, error) if status is not None else _of_kind(error, timeout)


def _status(error: BaseException) -> int | None:
    """The HTTP status of an error, wherever its library keeps it."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore's
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return found if isinstance(found, int) else None
    places = ((error, "status"), (response, "status_code"), (error, "status_code"), (error, "code"))
    for holder, name in places:
        found = getattr(holder, name, None)
        if isinstance(found, int) and 100 <= found < 600:
            return found
    return None


def _garbled() -> tuple[type[Exception], ...]:
    """What is behind an error of aiohttp that carries status 400 though no server sent it."""
    if "aiohttp" not in sys.modules:
        return ()
    from aiohttp.http_exceptions import HttpProcessingError

    return (HttpProcessingError,)


def _of_kind(error: BaseException, timeout: float) -> Verdict:
    """The verdict on an error that carries no status."""
    kind = type(error).__name__
    verdict = Verdict(f"the connection failed ({kind})", transient=True)
    if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
        verdict = Verdict("there is no such file", "check the address", missing=True)
    elif isinstance(error, PermissionError):
        verdict = Verdict("access is refused", "check your rights and credentials", forbidden=True)
    elif isinstance(error, TimeoutError) or "Timeout" in kind:
        verdict = Verdict(f"no data for {timeout:g} s", transient=True)
    elif "Credential" in kind or "Auth" in kind:
        verdict = Verdict(f"access is refused ({kind})", "check your credentials", forbidden=True)
    elif isinstance(error, NotImplementedError):
        verdict = Verdict("storage of this kind cannot do that", "choose another place")
    elif "SSL" in kind or "Certificate" in kind:
        verdict = Verdict(f"no secure connection can be made ({kind})", "check the address")
    elif isinstance(error, (ValueError, RuntimeError)):
        verdict = Verdict(f"it cannot be asked for ({kind})", "check the address")
    return verdict


def _of_status(status: int, error: BaseException) -> Verdict:
    reason = f"the server answered {status}"
    if status in (404, 410):
        return Verdict(reason, "check the address", missing=True)
    if status in (401, 403):
        return Verdict(reason, "check the address and your credentials", forbidden=True)
    if status == 416:
        return Verdict("the file is shorter than it was when opened", "run the command again")
    return Verdict(reason, transient=status in _PASSING, wait=_retry_after(error))


def _retry_after(error: BaseException) -> float:
    """Seconds that the server asks to wait, or 0."""
    headers = getattr(error, "headers", None) or getattr(getattr(error, "response", None), "headers", None)
    asked = str(headers.get("Retry-After", "")) if headers is not None else ""
    return float(asked) if asked.isascii() and asked.isdigit() and len(asked) < 6 else 0.0
