"""The server: opens the model once, listens, says where, and ends at Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from headatlas.atlas import Atlas
from headatlas.errors import HeadatlasError
from headatlas.evidence.opening import asked_again
from headatlas.lenses import lens_named
from headatlas.mapping.machine import this_machine
from headatlas.mapping.plan import Memory
from headatlas.mapping.prepared import PreparedMap
from headatlas.options import Compute
from headatlas.progress import Progress, Report
from headatlas.report import report_html
from headatlas.serving.answering import Answers
from headatlas.serving.app import make_app
from headatlas.serving.bodies import MOST_PAIRS
from headatlas.serving.guard import LOOPBACK, Access
from headatlas.weights import need_on_disk
from headatlas.writing.opened import OpenModel

if TYPE_CHECKING:
    from headatlas.serving.guard import Guard

TOKEN_VARIABLE = "HEADATLAS_TOKEN"  # noqa: S105 - its name
LEAST_TOKEN = 16
CONNECTIONS = 64
IDLE_SECONDS = 5
HEADER_SECONDS = 10.0
"""In which the first request of a connection must have begun."""
HEADER_BYTES = 16 << 10


class _Impatient(H11Protocol):
    """Closes connections whose first request does not come; uvicorn itself waits for ever."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _give_up(self) -> None:
        begun: Any = self.cycle  # None until the first request
        if begun is None and not self.transport.is_closing():
            self.transport.close()


def access_for(host: str) -> Access:
    """Who may ask at an address: the token comes from the environment, or is made for all but loopback."""
    given = os.environ.get(TOKEN_VARIABLE)
    if given is not None and (len(given) < LEAST_TOKEN or not given.isascii() or not given.isalnum()):
        raise HeadatlasError(
            f"{TOKEN_VARIABLE} must have at least {LEAST_TOKEN} letters and digits (a–z, A–Z, 0–9)."
        )
    return Access(host, given or (None if host in LOOPBACK else secrets.token_hex(24)))


def open_answers(atlas: Atlas, model: str | None, tokenizer: Any, compute: Compute, tell: Report) -> Answers:
    """Open the model of an atlas, by default as the atlas names it, and keep all of it that answers need.

    A loaded model needs its tokenizer.
    """
    tell(Progress("open", 0, 0, atlas.model_name))
    prepared = asked_again(atlas, model, tokenizer)
    need_on_disk(prepared.model.checkpoint, "`headatlas serve`")
    check_fits(prepared, compute)
    opened = OpenModel(prepared, compute)
    opened.hold(tell)
    return Answers(atlas, opened)


def check_fits(prepared: PreparedMap, compute: Compute) -> None:
    """Refuse a model that cannot be held, before it is loaded."""
    machine = this_machine(compute)
    # The modules in float32, and beside them the heads of all layers.
    dims = prepared.model.dims
    heads = 4 * dims.d_model * dims.d_head * (dims.n_heads + dims.n_kv_heads)
    held = heads * len(prepared.model.layers_with_heads)
    need = Memory(prepared.model, lens_named("neutral"), MOST_PAIRS).least + held
    if need > machine.memory:
        whose = "`max_memory` allows" if machine.limited else "this machine has"
        raise HeadatlasError(
            f"{prepared.model.checkpoint.spec}: serving keeps the whole model in memory and needs about "
            f"{need / 1e9:.1f} GB, {whose} {machine.memory / 1e9:.1f} GB; use a machine with more, or "
            "`headatlas query` and `headatlas ask`, which read a model layer by layer."
        )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 is a free one."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with ExitStack() as stack:
            listening = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            if os.name == "posix":  # elsewhere it lets two servers have one port
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            stack.pop_all()
    except OSError as error:
        raise HeadatlasError(
            f"{host}, port {port}: cannot be listened at ({error.strerror or error}); choose another `port` "
            "or `host`."
        ) from error
    return listening


def address_of(listening: socket.socket, access: Access) -> str:
    """The address to open in a browser, with the token if there is one."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 - what the user asked for
        host = socket.gethostname()
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + ("" if access.token is None else f"?token={access.token}")


def application(atlas: Atlas, answers: Answers, access: Access) -> Guard:
    """The application that serves an atlas: its page with a live part, and the API."""
    return make_app(report_html(atlas, live=True), answers, access)


def serve_until_stopped(app: Guard, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Answer at a bound socket until Ctrl-C and close it; ``ready`` is called once requests are answered."""
    config = uvicorn.Config(
        app,
        http=_Impatient,
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=2,
        limit_concurrency=CONNECTIONS,
        h11_max_incomplete_event_size=HEADER_BYTES,
    )
    server = uvicorn.Server(config)

    async def run() -> None:
        serving = asyncio.ensure_future(server.serve(sockets=[listening]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        if server.started:
            ready()
        await serving

    with suppress(KeyboardInterrupt):
        asyncio.run(run())
