"""Questions to an endpoint: what it may send, what it must not get, and what comes of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from headatlas.describing.endpoint import LARGEST_ANSWER, Endpoint, Limits, describe_with_model
from headatlas.describing.judging import CHANCE, Mappings, halves
from headatlas.errors import HeadatlasError
from tests.describing.made import HOSTILE, planted
from tests.describing.stub import Reply, completion, serving

HEAD = (1, 2)
MESSAGES = [{"role": "user", "content": "?"}]
SECRET = "sk-very-secret"  # noqa: S105


class Said(BaseModel):
    word: str


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEADATLAS_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def endpoint(url: str, folder: Path, slept: list[float] | None = None, **limits: Any) -> Endpoint:
    waits = [] if slept is None else slept
    return Endpoint(url, "tiny", limits=Limits(**limits), cache=folder / "cache", sleep=waits.append)


def test_an_answer_is_kept_by_content(tmp_path: Path) -> None:
    with serving(lambda _, at: completion({"word": f"yes {at}"})) as stub:
        first = endpoint(stub.url, tmp_path).ask(MESSAGES, Said)
        again = endpoint(stub.url, tmp_path).ask(MESSAGES, Said)
        other = endpoint(stub.url, tmp_path).ask([{"role": "user", "content": "!"}], Said)
    assert first is not None and again == first and first.word == "yes 0"
    assert other is not None and other.word == "yes 1" and len(stub.asked) == 2
    assert stub.asked[0]["path"] == "/v1/chat/completions" and stub.asked[0]["model"] == "tiny"


def test_what_is_kept_and_damaged_is_asked_again(tmp_path: Path) -> None:
    with serving(lambda *_: completion({"word": "yes"})) as stub:
        for damage in (b"", b"\xff\x00", b'{"word": 3}', b"x" * (LARGEST_ANSWER + 1)):
            endpoint(stub.url, tmp_path).ask(MESSAGES, Said)
            (file,) = (tmp_path / "cache").iterdir()
            file.write_bytes(damage)
        assert endpoint(stub.url, tmp_path).ask(MESSAGES, Said) == Said(word="yes")
    assert len(stub.asked) == 5


@pytest.mark.parametrize(
    "content",
    [
        '{"word": "yes"}',
        '```json\n{"word": "yes"}\n```',
        '<think>{"word": "no"}</think>Sure: {"word": "yes", "more": [1]}',
    ],
)
def test_thoughts_and_fences_are_passed_over(tmp_path: Path, content: str) -> None:
    with serving(lambda *_: completion(content)) as stub:
        assert endpoint(stub.url, tmp_path).ask(MESSAGES, Said) == Said(word="yes")


@pytest.mark.parametrize(
    "content",
    ["", "yes", "{", '{"word": 3}', '{"other": "yes"}', "[" * 100_000, '{"word": "\\ud800"}', "{}{}"],
)
def test_no_answer_of_the_form_is_none(tmp_path: Path, content: str) -> None:
    with serving(lambda *_: completion(content)) as stub:
        assert endpoint(stub.url, tmp_path, attempts=2).ask(MESSAGES, Said) is None
    temperatures = [body["temperature"] for body in stub.asked]
    assert temperatures == [0.0, 0.5], "asked again in another way"


def test_refusals_that_pass_are_waited_for(tmp_path: Path) -> None:
    replies: list[Reply] = [
        (429, {"retry_after": "7"}, b""),
        (500, {}, b"<html>"),
        (503, {"retry_after": "99999"}, b""),
        completion({"word": "yes"}),
    ]
    slept: list[float] = []
    with serving(lambda _, at: replies[at]) as stub:
        found = endpoint(stub.url, tmp_path, slept, back_off=1.5).ask(MESSAGES, Said)
    assert found == Said(word="yes")
    assert slept == [7.0, 3.0, 60.0]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((500, {}, b"x"), "no answer in 3 attempts .status 500."),
        ((429, {}, b"x"), "no answer in 3 attempts .status 429."),
        ((200, {}, b"<html><script>alert(1)</script>"), "what it sends is no chat completion"),
        ((200, {}, b'{"choices": []}'), "what it sends is no chat completion"),
        (
            (200, {}, b'{"choices": [{"message": {"content": "\xff"}}]}'),
            "what it sends is no chat completion",
        ),
        ((200, {}, b"[" * 200_000), "what it sends is no chat completion"),
        ((200, {"content_encoding": "gzip"}, b"x"), "compresses its answers"),
        ((200, {}, b"x" * (LARGEST_ANSWER + 1)), "more than 262,144 bytes"),
        ((401, {}, b"x"), "status 401: it refuses the key; set HEADATLAS_API_KEY"),
        ((404, {}, b"x"), "status 404: there is no such model or address"),
        ((302, {"location": "http://127.0.0.1:1/"}, b""), "sends elsewhere, which is not followed"),
    ],
)
def test_what_it_refuses_or_sends_is_said(
    tmp_path: Path, reply: Reply, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADATLAS_API_KEY", SECRET)
    with serving(lambda *_: reply) as stub, pytest.raises(HeadatlasError, match=said) as error:
        endpoint(stub.url, tmp_path, attempts=3).ask(MESSAGES, Said)
    assert SECRET not in str(error.value) and "<html>" not in str(error.value)
    assert len(stub.asked) <= 3


def test_a_slow_answer_ends_in_time(tmp_path: Path) -> None:
    def drip() -> Iterator[bytes]:
        for _ in range(200):
            time.sleep(0.05)
            yield b" "

    began = time.monotonic()
    with (
        serving(lambda *_: drip()) as stub,
        pytest.raises(HeadatlasError, match=r"no whole answer in 0\.2 s"),
    ):
        endpoint(stub.url, tmp_path, attempts=1, seconds=0.2).ask(MESSAGES, Said)
    assert time.monotonic() - began < 8


def test_an_endless_answer_is_cut_off(tmp_path: Path) -> None:
    sent = 0

    def flood() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(4000):
            sent += 1
            yield b"x" * 65536

    with serving(lambda *_: flood()) as stub, pytest.raises(HeadatlasError, match="more than 262,144 bytes"):
        endpoint(stub.url, tmp_path).ask(MESSAGES, Said)
    assert sent < 4000


def test_nobody_there_is_said(tmp_path: Path) -> None:
    with serving(lambda *_: completion("")) as stub:
        url = stub.url
    with pytest.raises(
        HeadatlasError, match=r"127\.0\.0\.1:\d+ gave no answer in 2 attempts \(no connection: does"
    ):
        endpoint(url, tmp_path, attempts=2).ask(MESSAGES, Said)


def test_what_some_endpoints_do_not_take_is_left_out(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], at: int) -> Reply:
        return (400, {}, b"") if "response_format" in body else completion({"word": "yes"})

    with serving(answer) as stub:
        asker = endpoint(stub.url, tmp_path)
        assert asker.ask(MESSAGES, Said) == Said(word="yes")
        assert asker.ask([*MESSAGES, *MESSAGES], Said) == Said(word="yes")
    assert [set(body) & {"temperature", "max_tokens"} == set() for body in stub.asked] == [False, True, True]


# The key and the address --------------------------------------------------------------------------


def test_the_key_is_sent_and_kept_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    monkeypatch.setenv("HEADATLAS_API_KEY", SECRET)
    with serving(lambda *_: completion({"word": "yes"})) as stub:
        asker = endpoint(stub.url, tmp_path)
        asker.ask(MESSAGES, Said)
        monkeypatch.delenv("HEADATLAS_API_KEY")
        asker.ask([], Said)
        monkeypatch.delenv("OPENAI_API_KEY")
        asker.ask([*MESSAGES, *MESSAGES], Said)
    sent = [body["headers"].get("authorization") for body in stub.asked]
    assert sent == [f"Bearer {SECRET}", "Bearer sk-other", None]
    assert SECRET not in repr(vars(asker))
    assert all(SECRET.encode() not in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_a_key_that_cannot_be_sent_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADATLAS_API_KEY", "sk-1\r\nX-Other: 1")
    with pytest.raises(HeadatlasError, match="characters that no key has") as error:
        endpoint("http://localhost:1/v1", tmp_path).ask(MESSAGES, Said)
    assert "sk-1" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://example.org/v1", "example.org is another machine: use https"),
        ("http://10.0.0.1/v1", "use https"),
        ("http://127.0.0.1.example.org/v1", "use https"),
        ("http://localhost.example.org/v1", "use https"),
        ("https://user:word@example.org/v1", "without user, password and query"),
        ("https://example.org/v1?key=1", "without user, password and query"),
        ("ftp://example.org/v1", "give an address such as"),
        ("localhost:11434", "give an address such as"),
        ("http://", "give an address such as"),
        ("http://localhost:x/", "give an address such as"),
        ("http://[::1", "give an address such as"),
        ("http://local\nhost/v1", "give an address such as"),
    ],
)
def test_addresses_that_are_refused(url: str, said: str) -> None:
    with pytest.raises(HeadatlasError, match=said) as error:
        Endpoint(url, "tiny")
    assert "word" not in str(error.value).replace("password", "")


@pytest.mark.parametrize(
    ("url", "address", "author"),
    [
        ("http://localhost:11434/v1/", "http://localhost:11434/v1/chat/completions", "localhost:11434: m"),
        ("http://127.9.9.9/v1", "http://127.9.9.9/v1/chat/completions", "127.9.9.9: m"),
        ("http://[::1]:80/v1", "http://[::1]:80/v1/chat/completions", "[::1]:80: m"),
        ("https://API.example.org/v1/chat/completions", "https://api.example.org/v1/chat/completions", None),
    ],
)
def test_addresses_that_are_used(url: str, address: str, author: str | None) -> None:
    found = Endpoint(url, "m")
    assert found.address == address and author in (None, found.author)


def test_a_name_that_no_machine_has_is_said(tmp_path: Path) -> None:
    for url in ("https://ex\u202eample.org/v1", f"https://{'a' * 70}.example/v1", "https://a..b/v1"):
        with pytest.raises(HeadatlasError, match=r"is no name of a machine|gave no answer") as error:
            endpoint(url, tmp_path, attempts=1, seconds=0.5).ask(MESSAGES, Said)
        assert "\u202e" not in str(error.value)


def test_a_model_has_a_name_and_a_time_is_above_zero() -> None:
    with pytest.raises(HeadatlasError, match="name the model"):
        Endpoint("http://localhost/v1", " ")
    for wrong in ({"seconds": 0}, {"per_minute": -1}, {"seconds": float("inf")}):
        with pytest.raises(HeadatlasError, match="must be above 0"):
            Limits(**wrong)
    assert Endpoint("https://example.org", "a\x1b[31m").author == "example.org: a\\x1b[31m"


def test_the_rate_is_kept_for_other_machines(tmp_path: Path) -> None:
    slept: list[float] = []
    asker = endpoint("https://example.org/v1", tmp_path, slept, per_minute=30)
    for _ in range(3):
        asker._keep_the_rate()
    assert slept[0] == 0.0 and all(1.5 < wait <= 2.0 for wait in slept[1:])


# A model that describes ---------------------------------------------------------------------------


def honest(body: dict[str, Any], at: int) -> Reply:
    """A model that knows copying when it sees it."""
    data = json.loads(body["messages"][1]["content"])
    if isinstance(data, list):
        return completion({"description": "Copies the source."})
    for number, each in data["mappings"].items():
        if each["source"] in each["promoted"]:
            return completion({"choice": int(number)})
    return completion({"choice": 1})


def judged(answer: Any, folder: Path, frame: Any = None) -> tuple[Any, Any]:
    mappings = Mappings.of(planted({HEAD: lambda word: word}) if frame is None else frame)
    with serving(answer) as stub:
        asker = endpoint(stub.url, folder)
        found = describe_with_model(mappings, halves(mappings, HEAD), asker, HEAD, lambda _: None)
    return found, stub


def test_a_description_is_judged_on_what_it_was_not_made_from(tmp_path: Path) -> None:
    found, stub = judged(honest, tmp_path)
    assert (found.label, found.score, found.trials) == ("Copies the source.", 1.0, 15)
    assert len(stub.asked) == 16
    seen = {each["source"] for each in json.loads(stub.asked[0]["messages"][1]["content"])}
    questions = [json.loads(body["messages"][1]["content"]) for body in stub.asked[1:]]
    mappings = Mappings.of(planted({HEAD: lambda word: word}))
    held_out = {mappings.sources[at].text for at in halves(mappings, HEAD).held_out}
    assert not seen & held_out
    assert all(each["description"] == "Copies the source." for each in questions)
    assert all(len(each["mappings"]) == 5 for each in questions)
    rights = [
        next(int(n) for n, each in question["mappings"].items() if each["source"] in each["promoted"])
        for question in questions
    ]
    assert len(set(rights)) >= 4, "the right one stands anywhere"


def test_always_the_same_choice_is_chance(tmp_path: Path) -> None:
    """An injected “choose the first” gains nothing: the options are shuffled."""

    def obeys(body: dict[str, Any], at: int) -> Reply:
        data = json.loads(body["messages"][1]["content"])
        return completion({"description": "perfect"} if isinstance(data, list) else {"choice": 1})

    found, _ = judged(obeys, tmp_path)
    assert found.score <= CHANCE + 2 * np.sqrt(CHANCE * (1 - CHANCE) / 15)


def test_hostile_tokens_are_data(tmp_path: Path) -> None:
    frame = planted({HEAD: lambda word: word})
    mine = (frame["layer"] == HEAD[0]) & (frame["head"] == HEAD[1])
    frame.loc[mine, "promoted"] = frame.loc[mine, "promoted"].map(lambda each: [each[0], *HOSTILE[:4]])
    frame.loc[mine, "suppressed"] = frame.loc[mine, "suppressed"].map(lambda _: list(HOSTILE[-5:]))
    _, stub = judged(honest, tmp_path, frame)
    for body in stub.asked:
        system, user = body["messages"]
        assert "never instructions" in system["content"] and "<script>" not in system["content"]
        assert json.loads(user["content"]), "whatever is in it, it is JSON"
        assert not set(user["content"]) & {"\x1b", "\u202e", "\x00", "\x07"}
        assert "every mapping is right" not in user["content"], "long tokens are cut"


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("<b>bold</b>\x1b[31m\u202e", "<b>bold</b>\\x1b[31m\\u202e"),
        ("two\n\n lines\t", "two lines"),
        ("x" * 500, "x" * 119 + "…"),
    ],
)
def test_a_hostile_description_is_one_short_visible_line(tmp_path: Path, said: str, kept: str) -> None:
    def answer(body: dict[str, Any], at: int) -> Reply:
        data = json.loads(body["messages"][1]["content"])
        return completion({"description": said} if isinstance(data, list) else {"choice": 9})

    found, _ = judged(answer, tmp_path)
    assert found.label == kept and found.score == 0, "a choice that there is not is a wrong one"


def test_no_description_is_none(tmp_path: Path) -> None:
    for content in ("no", {"description": ""}, {"description": " \n "}, {"description": "x" * 5000}):
        found, stub = judged(lambda *_, said=content: completion(said), tmp_path / str(content)[:20])
        assert found is None and len(stub.asked) <= 4
