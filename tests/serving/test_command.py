"""The command: one process that opens, says where it listens, answers over a socket, and ends at Ctrl-C."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from headatlas.errors import HeadatlasError
from headatlas.report.page import LIVE, MODULES, bundle
from headatlas.serving.guard import Access
from headatlas.serving.run import address_of, listen
from tests.mapping.checkpoints import word
from tests.report.test_javascript import NODE, node
from tests.report.test_page import FOLDER
from tests.writing.test_showing import invoke

needs_node = pytest.mark.skipif(
    NODE is None, reason="node, which runs the page's JavaScript, is not installed"
)


def test_a_server_from_start_to_ctrl_c(gemma: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "headatlas", "serve", str(gemma)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            address = process.stdout.readline().strip()
            where = urlsplit(address)
            assert where.hostname == "127.0.0.1" and where.port and not where.query
            with httpx2.Client(base_url=address, timeout=60) as client:
                assert client.get("/").text.startswith("<!doctype html>")
                asked = {"pairs": [{"source": word(40), "target": word(60)}]}
                assert len(client.post("/api/pairs", json=asked).json()["rows"][0]["ranks"]) == 1
                assert client.get("/", headers={"host": "evil.example"}).status_code == 403
                assert "server" not in client.get("/").headers
            with socket.create_connection(("127.0.0.1", where.port), timeout=30) as line:
                line.sendall(b"GET /" + b"x" * 70_000)
                assert b" 400 " in line.recv(1000)
        finally:
            process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(timeout=60) == 0
    assert "Traceback" not in said and said.endswith("stopped; nothing was stored\n")


def test_an_address_that_is_taken(gemma: Path) -> None:
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(HeadatlasError, match="cannot be listened at"):
            listen("127.0.0.1", port)
        assert address_of(taken, Access("127.0.0.1", None)) == f"http://127.0.0.1:{port}/"
        assert address_of(taken, Access("127.0.0.1", "t")) == f"http://127.0.0.1:{port}/?token=t"
        error = invoke("serve", gemma, "--port", port, code=2).stderr
    assert "cannot be listened at" in error and "--port" in error and "Traceback" not in error


def evaluated(script: str) -> str:
    """What a script beside the page's modules prints."""
    done = subprocess.run(
        [str(NODE), "--input-type=module", "-e", script],
        cwd=FOLDER / "js",
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


@needs_node
@pytest.mark.parametrize(
    ("typed", "question"),
    [
        ("", None),
        ("France → Paris", ["/api/pairs", {"pairs": [{"source": "France", "target": "Paris"}]}]),
        (
            "New York=Albany, Italy -> Rome\n",
            [
                "/api/pairs",
                {
                    "pairs": [
                        {"source": "New York", "target": "Albany"},
                        {"source": "Italy", "target": "Rome"},
                    ]
                },
            ],
        ),
        (" Lima ", ["/api/word", {"word": "Lima"}]),
        ("a = b, and a text", ["/api/text", {"text": "a = b, and a text"}]),
        ("=x", ["/api/word", {"word": "=x"}]),
        ("->", ["/api/word", {"word": "->"}]),
        ("France → Paris, Spain ->", {"wrong": "A pair has two sides: France → Paris."}),
    ],
)
def test_what_is_typed_on_the_page(typed: str, question: object) -> None:
    script = (
        'import { parseQuestion } from "./questions.mjs";'
        f"const q = parseQuestion({json.dumps(typed)});"
        "console.log(JSON.stringify(q && (q.path ? [q.path, q.body] : q)));"
    )
    assert json.loads(evaluated(script)) == question


@needs_node
def test_hidden_characters_are_shown_as_escapes() -> None:
    script = (
        'import { visible, weightStep } from "./questions.mjs";'
        r'console.log(JSON.stringify([visible("a\n\x1b\u202eb\u200d"), [0, 0.02, 0.5, 1].map(weightStep)]));'
    )
    assert json.loads(evaluated(script)) == ["a\\n\\u{1b}\\u{202e}b\u200d", [0, 1, 3, 4]]


@needs_node
def test_the_script_of_the_page_is_well_formed(tmp_path: Path) -> None:
    (tmp_path / "bundle.mjs").write_text(bundle((*MODULES, *LIVE)), encoding="utf-8")
    node("--check", str(tmp_path / "bundle.mjs"))
