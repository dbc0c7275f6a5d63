"""A server on this machine that answers chat completions as it is told, also badly."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], bytes]


def completion(content: Any, status: int = 200, **headers: str) -> Reply:
    """A well-formed completion whose text is `content`, as JSON unless it is text already."""
    text = content if isinstance(content, str) else json.dumps(content)
    body = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    return status, headers, json.dumps(body).encode()


@dataclass
class Stub:
    """What was asked, and the address.

    Attributes:
        url: Base address.
        asked: Bodies of all requests, with their headers under ``"headers"``.
    """

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def serving(answer: Callable[[dict[str, Any], int], Reply | Iterator[bytes]]) -> Iterator[Stub]:
    """Serve until the block ends.

    Args:
        answer: Request body and its number → status, headers and body; or pieces of a raw answer.
    """
    stub = Stub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            body |= {"headers": {name.lower(): value for name, value in self.headers.items()}}
            stub.asked.append(body | {"path": self.path})
            reply = answer(body, len(stub.asked) - 1)
            try:
                if isinstance(reply, tuple):
                    status, headers, data = reply
                    self.send_response(status)
                    for name, value in {"content-length": str(len(data)), **headers}.items():
                        self.send_header(name.replace("_", "-"), value)
                    self.end_headers()
                    self.wfile.write(data)
                else:
                    self.send_response(200)
                    self.end_headers()
                    for piece in reply:
                        self.wfile.write(piece)
                        self.wfile.flush()
            except OSError:
                pass  # the client has hung up, as it should

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
