"""The HTTP file system of fsspec, with every answer checked before its body is read.

fsspec sends the requests. What it does not look at is whether the answer is the range that was asked for, of
the file that was opened; that is done here, in the tracing hooks of its HTTP library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies

from headatlas.errors import HeadatlasError
from headatlas.storage.failures import UnusableAnswerError

if TYPE_CHECKING:
    from fsspec.asyn import AsyncFileSystem
    from yarl import URL

_CONTENT_RANGE = re.compile(r"\s*bytes\s+(\d+)-(\d+)/(\d+|\*)\s*", re.IGNORECASE)
_ASKED = re.compile(r"bytes=(\d+)-(\d+)")
_LONGEST_REQUEST = 600.0


class AnswerChecks:
    """Compares each answer to a range request with the request and with the file as it was opened."""

    def __init__(self) -> None:
        self._pinned: dict[str, tuple[int, str | None]] = {}

    def pin(self, url: URL, size: int, etag: str | None) -> None:
        """From now on, ``url`` must have this size and ETag."""
        self._pinned[_key(url)] = size, etag

    async def started(self, _session: Any, request: Any, sent: Any) -> None:
        """A request begins: remember what was asked, before any redirect."""
        request.asked = sent.headers.get("Range")
        request.key = _key(sent.url)

    async def redirected(self, _session: Any, _request: Any, sent: Any) -> None:
        """A redirect arrived: follow it only to the same scheme, or from http to https."""
        headers = sent.response.headers
        target = headers.get("Location") or headers.get("URI") or ""
        scheme = target.partition("://")[0].lower() if "://" in target else sent.url.scheme
        if scheme not in (sent.url.scheme, "https"):
            sent.response.close()
            raise UnusableAnswerError(f"the server redirects from {sent.url.scheme} to {scheme[:20]!r}")

    async def ended(self, _session: Any, request: Any, sent: Any) -> None:
        """The headers of the last answer arrived; its body has not been read."""
        if request.asked is None or sent.response.status >= 400:
            return
        problem = _problem(sent.response, request.asked, self._pinned.get(request.key))
        if problem is not None:
            sent.response.close()
            raise problem


def http_filesystem(timeout: float, encoded: bool) -> tuple[AsyncFileSystem, AnswerChecks]:
    """fsspec's file system for http and https, with the checks built in.

    Args:
        timeout: Seconds without a byte after which a request has failed.
        encoded: Whether addresses are percent-encoded already.

    Raises:
        HeadatlasError: aiohttp is not installed.
    """
    try:
        import aiohttp
        from fsspec.implementations.http import HTTPFileSystem
    except ImportError:
        raise HeadatlasError(
            "Reading a model over http needs the package aiohttp; install it with `pip install aiohttp`."
        ) from None
    checks = AnswerChecks()
    tracing = aiohttp.TraceConfig()
    tracing.on_request_start.append(checks.started)
    tracing.on_request_redirect.append(checks.redirected)
    tracing.on_request_end.append(checks.ended)
    system = HTTPFileSystem(
        encoded=encoded,
        skip_instance_cache=True,
        client_kwargs={
            # What a compressed answer would be a range of, nobody can say.
            "headers": {"Accept-Encoding": "identity"},
            "timeout": aiohttp.ClientTimeout(
                total=max(_LONGEST_REQUEST, timeout), sock_connect=timeout, sock_read=timeout
            ),
            "trace_configs": [tracing],
            # Asked for only where there is a proxy: it costs a thread hop per request to look for ~/.netrc.
            "trust_env": bool(getproxies()),
        },
    )
    return system, checks


def _key(url: URL) -> str:
    return str(url.with_user(None).with_fragment(None))


def _problem(answer: Any, asked: str, pinned: tuple[int, str | None] | None) -> UnusableAnswerError | None:
    """Why an answer below 400 cannot be used, or None."""
    wanted = _ASKED.fullmatch(asked)
    if wanted is None:
        raise ValueError(f"a range of an unknown form: {asked!r}")
    if answer.status != 206:
        return UnusableAnswerError(
            f"the server does not send parts of files (it answered {answer.status} instead of 206)"
        )
    if answer.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        return UnusableAnswerError("the server sends it compressed")
    wrong = _wrong_part(answer.headers, int(wanted[1]), int(wanted[2]))
    if wrong is not None:
        return UnusableAnswerError(wrong, transient=True)
    changed = None if pinned is None else _changed(answer.headers, *pinned)
    if changed is not None:
        return UnusableAnswerError(f"the file has changed since it was opened ({changed})")
    return None


def _wrong_part(headers: Mapping[str, str], first: int, last: int) -> str | None:
    """How the part that an answer announces differs from what was asked for."""
    found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    if found is None or (int(found[1]), int(found[2])) != (first, last):
        what = "a part without saying which" if found is None else f"{found[1]}-{found[2]}"
        return f"asked for bytes {first}-{last}, the server sends {what}"
    length = headers.get("Content-Length", "").strip()
    if length and length != str(last - first + 1):
        return f"asked for {last - first + 1} bytes, the server announces {length[:20]}"
    return None


def _changed(headers: Mapping[str, str], size: int, etag: str | None) -> str | None:
    """How the file behind an answer differs from the one that was opened."""
    found, got = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "")), headers.get("ETag")
    if found is not None and found[3] != "*" and int(found[3]) != size:
        return f"from {size:,} to {int(found[3]):,} bytes"
    return "it has another ETag" if etag and got and got != etag else None
