"""Who is answered: hosts, origins, tokens, sizes, clients that leave, and requests that mean nothing."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from headatlas.errors import HeadatlasError
from headatlas.serving import guard
from headatlas.serving.answering import Answers
from headatlas.serving.app import WAITING, make_app
from headatlas.serving.bodies import QUESTIONS, PairsAnswer, Told, openapi
from headatlas.serving.guard import BODY_BYTES, Access, Guard
from headatlas.serving.run import LEAST_TOKEN, access_for
from tests.mapping.checkpoints import word
from tests.serving.conftest import client_of, told

ASKED = {"word": word(40)}
TOKEN = "a0" * 12
EVERYWHERE = "0.0.0.0"  # noqa: S104 - that is what is tested


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("127.0.0.1:8000", True),
        ("localhost:8000", True),
        ("LOCALHOST", True),
        ("[::1]:9000", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost@evil.example", False),
        ("192.168.0.1", False),
        ("localhost:no", False),
        ("[::1", False),
        ("", False),
    ],
)
def test_hosts(client: TestClient, host: str, answered: bool) -> None:
    for path in ("/", "/api/about", "/nothing"):
        response = client.get(path, headers={"host": host})
        assert (response.status_code == 403) is not answered
    response = client.post("/api/relation", json={"name": "a", "pairs": []}, headers={"host": host})
    assert response.status_code == (400 if answered else 403)


@pytest.mark.parametrize(
    ("headers", "answered"),
    [
        ({}, True),
        ({"origin": "http://127.0.0.1:8000"}, True),
        ({"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}, True),
        ({"origin": "http://127.0.0.1:9999"}, False),
        ({"origin": "https://evil.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": "http://[::1"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site"}, False),
    ],
)
def test_origins(client: TestClient, headers: dict[str, str], answered: bool) -> None:
    response = client.post("/api/word", json=ASKED, headers=headers)
    assert response.status_code == (200 if answered else 403)


def test_other_addresses_want_a_token(answers: Answers) -> None:
    app = make_app("<p>page</p>", answers, Access(EVERYWHERE, TOKEN))
    client = client_of(app)
    for response in (client.get("/"), client.get("/api/about"), client.post("/api/word", json=ASKED)):
        assert told(response, 401)["error"].startswith("this server wants its token")
    for shown in (TOKEN[:-1], TOKEN + "0", "é", ""):
        assert client.get("/", params={"token": shown}).status_code == 401
        header = {b"authorization": f"Bearer {shown}".encode()}
        assert client.get("/api/about", headers=header).status_code == 401
    assert client.get("/api/about", params={"token": TOKEN}).status_code == 401
    assert client.get("/api/about", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    moved = client.get("/", params={"token": TOKEN}, follow_redirects=False)
    cookie = moved.headers["set-cookie"]
    assert (moved.status_code, moved.headers["location"]) == (303, "/")
    assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower()
    assert client.get("/").text == "<p>page</p>"
    assert client.post("/api/word", json=ASKED).status_code == 200
    client.cookies.clear()
    assert client.get("/").status_code == 401
    assert client_of(app, host="10.0.0.7:8000").get("/").status_code == 401
    assert client_of(app, host="evil.example").get("/", params={"token": TOKEN}).status_code == 403


def test_where_a_token_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADATLAS_TOKEN", raising=False)
    assert access_for("127.0.0.1").token is None
    made = access_for(EVERYWHERE).token
    assert made is not None and len(made) >= 32 and made != access_for(EVERYWHERE).token
    monkeypatch.setenv("HEADATLAS_TOKEN", TOKEN)
    assert access_for("127.0.0.1").token == access_for(EVERYWHERE).token == TOKEN
    monkeypatch.setenv("HEADATLAS_TOKEN", "a" * (LEAST_TOKEN - 1))
    with pytest.raises(HeadatlasError, match="HEADATLAS_TOKEN must have at least"):
        access_for("127.0.0.1")


def test_the_page_may_ask_its_server_alone(client: TestClient) -> None:
    response = client.get("/")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', response.text)
    assert policy is not None and "connect-src 'self'" in policy[1] and "default-src 'none'" in policy[1]
    assert "from_live" in response.text
    for name, value in guard.HEADERS.items():
        assert response.headers[name] == value


def test_sizes_and_types(client: TestClient) -> None:
    large = json.dumps({"text": "x" * BODY_BYTES}).encode()
    for content in (large, iter([large[:1000], large[1000:]])):
        response = client.post("/api/text", content=content, headers={"content-type": "application/json"})
        assert "at most" in told(response, 413)["error"]
    assert told(client.post("/api/text", content=b"text=x"), 415)
    for content in (b"", b"{", b"\xff", b"[" * 5000, b'{"text": NaN}', b'"text"'):
        response = client.post("/api/text", content=content, headers={"content-type": "application/json"})
        assert "error" in told(response, 400)
    assert told(client.get("/api/text"), 405) and told(client.put("/"), 405)
    for path in ("/../../etc/passwd", "/%2e%2e/etc/passwd", "/api/", "/atlas.zarr", "/api/text/../../etc"):
        assert told(client.get(path), 404)


def test_nothing_is_stored(client: TestClient, gemma: Path) -> None:
    def files() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in sorted(gemma.parent.rglob("*"))}

    before = files()
    for path, asked in (("word", ASKED), ("text", {"text": f"{word(40)} {word(41)}"})):
        told(client.post(f"/api/{path}", json=asked))
    assert files() == before


# Several clients, by the messages of ASGI: a test client waits for each answer ------------------------


class Slow:
    """Answers that wait until they are told to go on, and count what is in work."""

    def __init__(self) -> None:
        self.go, self.begun, self.left = threading.Event(), threading.Event(), threading.Event()
        self.at_once = self.most = 0

    def answer(self, _path: str, _body: object, check: Any) -> Told:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        self.begun.set()
        try:
            while not self.go.wait(0.005):
                try:
                    check()
                except BaseException:
                    self.left.set()
                    raise
            return PairsAnswer(
                model="", lens="", thresholds={}, caption="", k=1, ceiling=1, pairs=[], dropped={}, rows=[]
            )
        finally:
            self.at_once -= 1


class Client:
    """One request, and what comes back."""

    def __init__(self, app: Guard, body: bytes | None = json.dumps(ASKED).encode()) -> None:
        self.app, self.body = app, body
        self.sent: list[dict[str, Any]] = []
        self.gone = anyio.Event()
        self._asked = False

    async def run(self) -> None:
        scope = {
            **{"type": "http", "method": "POST", "path": "/api/word", "query_string": b"", "root_path": ""},
            **{"http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 8000)},
            "headers": [(b"host", b"127.0.0.1:8000"), (b"content-type", b"application/json")],
        }
        await self.app(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        if not self._asked and self.body is not None:
            self._asked = True
            return {"type": "http.request", "body": self.body}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])


async def until(true: Any) -> None:
    with anyio.fail_after(20):
        while not true():
            await anyio.sleep(0.005)


def slow_app() -> tuple[Slow, Guard]:
    slow = Slow()
    return slow, make_app("", slow, Access("127.0.0.1", None))  # type: ignore[arg-type]


def test_one_question_at_a_time_and_a_bounded_queue() -> None:
    slow, app = slow_app()

    async def ask() -> list[int]:
        clients = [Client(app) for _ in range(WAITING + 3)]
        async with anyio.create_task_group() as group:
            for each in clients:
                group.start_soon(each.run)
            await until(lambda: sum(bool(each.sent) for each in clients) == 2)
            slow.go.set()
        return sorted(each.status for each in clients)

    assert anyio.run(ask) == [200] * (WAITING + 1) + [503] * 2
    assert slow.most == 1


def test_a_client_that_leaves_stops_the_work_and_the_next_is_answered() -> None:
    slow, app = slow_app()

    async def ask() -> int:
        first, second = Client(app), Client(app)
        async with anyio.create_task_group() as group:
            group.start_soon(first.run)
            await until(slow.begun.is_set)
            group.start_soon(second.run)
            first.gone.set()
            await until(slow.left.is_set)
            slow.go.set()
        return second.status

    assert anyio.run(ask) == 200


def test_a_client_that_leaves_the_queue_is_not_worked_for() -> None:
    slow, app = slow_app()

    async def ask() -> None:
        first, second = Client(app), Client(app)
        async with anyio.create_task_group() as group:
            group.start_soon(first.run)
            await until(slow.begun.is_set)
            second.gone.set()
            await second.run()
            slow.go.set()

    anyio.run(ask)
    assert not slow.left.is_set()


def test_slow_clients_are_given_up() -> None:
    slow, app = slow_app()
    slow.go.set()

    class Deaf(Client):
        async def _send(self, _: Any) -> None:
            await anyio.sleep(60)

    async def ask() -> int:
        silent = Client(app, body=None)
        with patch.object(guard, "READ_SECONDS", 0.05):
            await silent.run()
        with patch.object(guard, "SEND_SECONDS", 0.05), anyio.fail_after(20):
            await Deaf(app).run()
        return silent.status

    assert anyio.run(ask) == 408


def test_a_defect_is_not_shown(app: Guard) -> None:
    class Broken:
        def answer(self, *_: object) -> Told:
            raise ZeroDivisionError("secret")

    client = client_of(make_app("", Broken(), Access("127.0.0.1", None)))  # type: ignore[arg-type]
    response = client.post("/api/word", json=ASKED)
    assert "defect" in told(response, 500)["error"]
    assert "secret" not in response.text and "Traceback" not in response.text
    assert response.headers["x-content-type-options"] == "nosniff"


# The description, and what it does not describe -------------------------------------------------------


def test_the_api_is_described(client: TestClient) -> None:
    found = client.get("/openapi.json").json()
    assert found == json.loads(json.dumps(openapi()))
    assert set(found["paths"]) == {*QUESTIONS, "/api/about"}
    names = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(found))
    assert set(names) <= set(found["components"]["schemas"])


words = st.one_of(st.text(max_size=12), st.integers(0, 90).map(word))
texts = st.one_of(st.text(max_size=40), st.lists(st.integers(0, 90).map(word), max_size=8).map(" ".join))
pairs = st.lists(st.fixed_dictionaries({"source": words, "target": words}), max_size=4)
places = st.one_of(st.integers(-2, 6), st.integers())
FIELDS = {
    "/api/pairs": st.fixed_dictionaries({"pairs": pairs}),
    "/api/word": st.fixed_dictionaries({"word": words}),
    "/api/text": st.fixed_dictionaries({"text": texts}),
    "/api/text/head": st.fixed_dictionaries({"text": texts, "layer": places, "head": places}),
    "/api/text/look": st.fixed_dictionaries({"text": texts, "query": places}, optional={"key": places}),
    "/api/relation": st.fixed_dictionaries({"name": words, "pairs": pairs}),
}
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("path", QUESTIONS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_asked_is_answered_or_refused(path: str, client: TestClient, data: st.DataObject) -> None:
    asked = data.draw(st.one_of(FIELDS[path], FIELDS[path], anything))
    content = json.dumps(asked).encode()
    response = client.post(path, content=content, headers={"content-type": "application/json"})
    if response.status_code == 200:
        QUESTIONS[path][1].model_validate_json(response.content)
    else:
        assert set(told(response, 400)) == {"error"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=60),
    path=st.sampled_from([*QUESTIONS, "/", "/openapi.json", "/x"]),
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]),
)
def test_noise_is_refused(client: TestClient, content: bytes, path: str, method: str) -> None:
    response = client.request(method, path, content=content, headers={"content-type": "application/json"})
    assert response.status_code in (200, 400, 404, 405)
    assert response.status_code != 200 or method == "GET"
