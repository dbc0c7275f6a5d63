"""A file server on the loopback interface that answers byte ranges, and misbehaves when told to."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Server:
    """What is served, how it goes wrong, and what was asked.

    Attributes:
        files: Content by path, e.g. ``"model/config.json"``.
        faults: For a path, the faults of its next range requests, in order; one is used up by each.
        always: For a path, a fault of every GET.
        heads: For a path, a fault of every HEAD (and of the GET that fsspec tries after it).
        etags: Whether ETags are sent.
        redirects: Path → address that it redirects to.
        sent: Bytes of bodies sent, by path.
        ranges: (path, first, last) of every range answered.
        authorised: The Authorization headers seen.
        port: Where it listens.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    always: dict[str, str] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    etags: bool = True
    redirects: dict[str, str] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    ranges: list[tuple[str, int, int]] = field(default_factory=list)
    authorised: set[str] = field(default_factory=set)
    port: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def serve(self, folder: Path, name: str = "model") -> str:
        """Serve the files of a folder; returns its address."""
        self.files |= {f"{name}/{p.name}": p.read_bytes() for p in folder.iterdir() if p.is_file()}
        return f"{self.url}/{name}"

    def next_fault(self, path: str) -> str:
        with self.lock:
            queue = self.faults.get(path)
            return queue.pop(0) if queue else self.always.get(path, "")

    def count(self, path: str, n_bytes: int) -> None:
        with self.lock:
            self.sent[path] = self.sent.get(path, 0) + n_bytes


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet; in two, each answer would take a delayed acknowledgement
    server: Any

    @property
    def state(self) -> Server:
        state: Server = self.server.state
        return state

    def log_message(self, *_: Any) -> None:
        """Silence."""

    def do_HEAD(self) -> None:
        self.answer("HEAD")

    def do_GET(self) -> None:
        self.answer("GET")

    def answer(self, method: str) -> None:
        path = self.path.partition("?")[0].strip("/")
        state, asked = self.state, self.headers.get("Range")
        with state.lock:
            state.authorised.add(self.headers.get("Authorization", ""))
        fault = state.next_fault(path) if asked else state.heads.get(path, "")
        body = state.files.get(path)
        if fault in ("stall", "reset"):
            state.stop.wait(2 if fault == "stall" else 0)
            self.close_connection = True
        elif path in state.redirects:
            self.send(302, {"Location": state.redirects[path]}, b"")
        elif fault.startswith("redirect-"):
            self.send(302, {"Location": f"{fault.partition('-')[2]}://127.0.0.1/{path}"}, b"")
        elif fault.isdigit() or body is None:
            self.send(int(fault) if fault.isdigit() else 404, {"Retry-After": "0"}, b"sorry")
        else:
            headers = {"ETag": f'"{hashlib.md5(body).hexdigest()}"'} if state.etags else {}  # noqa: S324
            if method == "HEAD" or asked is None:
                self.send(200, headers, body, quiet=method == "HEAD")
            else:
                self.part(path, body, asked, headers, fault)

    def part(self, path: str, body: bytes, asked: str, headers: dict[str, str], fault: str) -> None:
        """One range, or what the fault makes of it."""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
        assert wanted is not None, asked
        first, last = int(wanted[1]), int(wanted[2])
        part, total = body[first : last + 1], len(body)
        if fault == "ignores-range":
            return self.send(200, headers, body)
        if fault == "other-range":
            first, last = first + 1, last + 1
            part = (body + b"\0")[first : last + 1]
        if fault == "other-size":
            total += 8
        if fault == "other-etag":
            headers = {"ETag": '"another"'}
        if fault == "compressed":
            headers = headers | {"Content-Encoding": "gzip"}
        if fault != "no-content-range":
            headers = headers | {"Content-Range": f"bytes {first}-{last}/{total}"}
        announced = len(part) + {"longer-announced": 4, "shorter-announced": -4}.get(fault, 0)
        if fault == "truncated":
            part = part[: len(part) // 2]
        self.state.count(path, len(part))
        with self.state.lock:
            self.state.ranges.append((path, first, last))
        return self.send(206, headers, part, announced=announced)

    def send(
        self,
        status: int,
        headers: dict[str, str],
        body: bytes,
        *,
        quiet: bool = False,
        announced: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if announced is None else announced))
        self.end_headers()
        if not quiet and self.command != "HEAD":
            self.wfile.write(body)
        if announced is not None and announced != len(body):
            self.close_connection = True


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # several connections come at once; dropped ones are tried again after seconds

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


@contextmanager
def serving() -> Iterator[Server]:
    """A running server."""
    server = _Quiet(("127.0.0.1", 0), _Handler)
    state = Server(port=server.server_address[1])
    server.state = state  # type: ignore[attr-defined] # how http.server hands things to its handlers
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.stop.set()
        server.shutdown()
        server.server_close()
        thread.join()
