"""Who may ask: the host asked for, where a request comes from, the token, sizes and times."""

from __future__ import annotations

import ipaddress
import secrets
import socket
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

import anyio
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
BODY_BYTES = 256 << 10
READ_SECONDS = 10.0
"""In which a body must have come."""
SEND_SECONDS = 30.0
"""In which a client must take each part of an answer."""
HEADERS = {
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


@dataclass(frozen=True)
class Access:
    """Who may ask."""

    host: str  # the address that is listened at
    token: str | None  # what every request must show; None: nothing, which a loopback address alone may have

    def knows(self, host: str | None) -> bool:
        """Whether a request for this host (its Host header) is meant for us.

        A page elsewhere can have its own name point at this machine (DNS rebinding); it cannot so choose the
        names of loopback, and at other addresses an IP address needs no name.
        """
        name = _name(host)
        if name is None:
            return False
        if name in LOOPBACK:
            return True
        if self.host in LOOPBACK:
            return False
        return _is_ip(name) or name in {self.host.lower(), socket.gethostname().lower()}

    def admits(self, shown: str | None) -> bool:
        """Whether a token shown is ours, in a time that does not tell how much of it is right."""
        if self.token is None:
            return True
        return shown is not None and secrets.compare_digest(shown.encode(), self.token.encode())


def _name(host: str | None) -> str | None:
    """The name in a Host header, without port; None if it is not one."""
    if not host or any(char in host for char in "/@?#\\ "):
        return None
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
        return parts.hostname
    except ValueError:
        return None


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class BodyError(Exception):
    """A body that is not read to its end: the status of the answer, and a sentence."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status, self.said = status, said


def problem(status: int, said: str, **headers: str) -> JSONResponse:
    """An answer that says in a sentence what is wrong."""
    return JSONResponse({"error": said}, status_code=status, headers=headers)


class Guard:
    """Stands before an app: refuses what may not ask, and puts headers of safety on every answer."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused = self._refused(scope, headers)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                safe = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    safe[name] = value
            with anyio.move_on_after(SEND_SECONDS) as waited:
                await send(message)
            if waited.cancelled_caught:
                raise BodyError(408, "the answer was not taken")

        try:
            await (refused or self.app)(scope, receive, guarded)
        except BodyError:
            return  # an answer that is not complete: the server closes the connection

    def _refused(self, scope: Scope, headers: Headers) -> Response | None:
        access, host = self.access, headers.get("host")
        if not access.knows(host):
            return problem(403, "this server is not asked by that name; use the address it printed.")
        if scope["method"] not in ("GET", "HEAD"):
            origin, site = headers.get("origin"), headers.get("sec-fetch-site")
            if not _same_site(origin, str(host)) or site not in (None, "same-origin", "none"):
                return problem(403, "questions from other sites are not answered.")
        if access.token is None:
            return None
        query = QueryParams(scope["query_string"])
        if scope["path"] == "/" and "token" in query and access.admits(query["token"]):
            # The address loses the token at once; the browser keeps it where scripts cannot read it.
            moved = RedirectResponse("/", status_code=303)
            moved.set_cookie(cookie_name(scope), access.token, httponly=True, samesite="strict", path="/")
            return moved
        if access.admits(_shown(scope, headers)):
            return None
        return problem(
            401, "this server wants its token; open the address it printed.", **{"www-authenticate": "Bearer"}
        )


def _same_site(origin: str | None, host: str) -> bool:
    """Whether a question comes from a page of this server, or from no page."""
    try:
        return origin is None or urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:  # no address
        return False


def cookie_name(scope: Scope) -> str:
    """The cookie that holds the token; cookies of one host are shared by its ports."""
    return f"headatlas_{(scope.get('server') or ('', 0))[1]}"


def _shown(scope: Scope, headers: Headers) -> str | None:
    """The token that a request shows, in its header or its cookie."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return token.strip()
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(cookie_name(scope))
    except CookieError:
        return None
    return None if found is None else found.value


async def whole_body(headers: Headers, receive: Receive) -> bytes:
    """The body of a request; a BodyError where it is no JSON, too large, too slow, or the client has gone."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise BodyError(415, "send application/json.")
    length = headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit() or int(length[:12]) > BODY_BYTES:
        raise BodyError(413, f"a question has at most {BODY_BYTES >> 10} KiB.")
    body = b""
    with anyio.move_on_after(READ_SECONDS):
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise BodyError(400, "the client has gone.")
            body += bytes(message.get("body", b""))
            if len(body) > BODY_BYTES:
                raise BodyError(413, f"a question has at most {BODY_BYTES >> 10} KiB.")
            if not message.get("more_body"):
                return body
    raise BodyError(408, f"the question did not come within {READ_SECONDS:.0f} seconds.")
