"""The application: a page, a description of the API, and questions answered one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from headatlas.errors import HeadatlasError
from headatlas.serving.answering import Answers
from headatlas.serving.bodies import QUESTIONS, Told, openapi
from headatlas.serving.guard import Access, BodyError, Guard, problem, whole_body

WAITING = 8
"""Questions that wait for the one in work; more are refused."""


WRONG = {
    "json_invalid": "is not JSON",
    "missing": "is missing",
    "extra_forbidden": "is no field of this question",
    "string_type": "must be a text",
    "string_unicode": "is not Unicode",
    "string_too_short": "is empty",
    "string_too_long": "is longer than {max_length:,} characters",
    "too_short": "is empty",
    "too_long": "has more than {max_length} entries",
    "list_type": "must be a list",
    "model_type": "must be an object with named fields",
    "int_type": "must be a whole number",
    "greater_than_equal": "must be {ge} or more",
    "less_than": "must be less than {lt:,}",
}
"""Words for a field, by pydantic's name for what is wrong with it."""


class LeftError(Exception):
    """Nobody waits for the answer any more."""


Work = Callable[[Callable[[], None]], Told]


class Turns:
    """One question at a time, and a short queue of others."""

    def __init__(self) -> None:
        self._one = anyio.Lock()
        self._here = 0

    async def take(self, request: Request, work: Work) -> Told | Exception | None:
        """Work in a thread once it is our turn; None where the client leaves, which ends the work.

        The client of the request, whose body has been read, is watched. ``work`` is given a function to call
        between steps, which raises once the client has left. Where too many wait, a BodyError says so.
        """
        if self._here > WAITING:
            raise BodyError(503, "too many questions are waiting; ask again later.")
        self._here += 1
        left = threading.Event()
        found: list[Told | Exception | None] = []

        async def watch(scope: anyio.CancelScope) -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            left.set()
            scope.cancel()

        try:
            async with anyio.create_task_group() as group:
                group.start_soon(watch, group.cancel_scope)
                async with self._one:
                    # The thread is waited for even if the client leaves: the model has one at a time.
                    found.append(await anyio.to_thread.run_sync(_outcome, work, left))
                group.cancel_scope.cancel()
        finally:
            self._here -= 1
        return None if left.is_set() else found[0]


def _outcome(work: Work, left: threading.Event) -> Told | Exception | None:
    """The answer, or why there is none; exceptions would leave a group of tasks as a group."""

    def check() -> None:
        if left.is_set():
            raise LeftError

    try:
        check()
        return work(check)
    except LeftError:
        return None
    except Exception as error:  # noqa: BLE001 - raised again by who asked
        return error


def make_app(page: str, answers: Answers, access: Access) -> Guard:
    """The application: the HTML of a page, what is answered, and who may ask."""
    turns, described = Turns(), openapi()

    async def show(_: Request) -> Response:
        return HTMLResponse(page)

    async def describe(_: Request) -> Response:
        return JSONResponse(described)

    async def about(_: Request) -> Response:
        return _json(answers.about())

    async def answer(request: Request) -> Response:
        path = request.scope["path"]
        try:
            raw = await whole_body(request.headers, request.receive)
            body = QUESTIONS[path][0].model_validate_json(raw)
            found = await turns.take(request, lambda check: answers.answer(path, body, check))
        except ValidationError as error:
            return problem(400, _sentence(error))
        except BodyError as error:
            return problem(error.status, error.said)
        if isinstance(found, HeadatlasError):
            return problem(400, str(found))
        if isinstance(found, Exception):
            raise found
        return Response(status_code=204) if found is None else _json(found)

    routes = [
        Route("/", show),
        Route("/openapi.json", describe),
        Route("/api/about", about),
        *(Route(path, answer, methods=["POST"]) for path in QUESTIONS),
    ]
    handlers: dict[Any, Any] = {HTTPException: _refuse, Exception: _fail}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), access)


def _json(told: Told) -> Response:
    return Response(told.model_dump_json(), media_type="application/json")


def _sentence(error: ValidationError) -> str:
    """The first thing that is wrong with a body."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(each)[:40] for each in first["loc"][:6]) or "the body"
    said = WRONG.get(first["type"], "cannot be read")
    return f"{where} {said.format(**first.get('ctx', {}))}."


async def _refuse(_: Request, error: Exception) -> Response:
    known = isinstance(error, HTTPException)
    status = error.status_code if known else 500  # type: ignore[attr-defined]
    said = {404: "there is nothing at this address.", 405: "this address is not asked in that way."}
    headers = dict(getattr(error, "headers", None) or {})
    return problem(status, said.get(status, "this cannot be answered."), **headers)


async def _fail(_: Request, __: Exception) -> Response:
    return problem(500, "this is a defect of headatlas; the terminal of the server shows where.")
