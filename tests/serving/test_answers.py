"""Answers are those of the commands and of float64 arithmetic on every logit."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

import headatlas as ha
from headatlas.atlas.export import heading
from headatlas.errors import HeadatlasError
from headatlas.looking import one_text
from headatlas.mapping.machine import Machine
from headatlas.mapping.run import layer_inputs
from headatlas.options import Compute
from headatlas.progress import Stats, silent
from headatlas.relations import Relation
from headatlas.relations.readers import read_relation
from headatlas.serving import answering, run
from headatlas.serving.answering import Answers
from headatlas.serving.bodies import WordAsked
from headatlas.writing import opened as module
from headatlas.writing.words import ranked_heads
from tests.mapping.checkpoints import word
from tests.serving.conftest import held, told

PAIRS = [(word(40), word(60)), (word(41), word(61)), (word(7), word(8))]
TEXT = " ".join(word(at) for at in (40, 41, 7, 40, 41, 9, 60, 40))


def body(pairs: list[tuple[str, str]]) -> dict[str, object]:
    return {"pairs": [{"source": source, "target": target} for source, target in pairs]}


def test_pairs_are_answered_as_query_does(client: TestClient, gemma: Path) -> None:
    found = told(client.post("/api/pairs", json=body([*PAIRS, (word(42), "no such word")])))
    frame = ha.query(str(gemma), [*PAIRS, (word(42), "no such word")])
    assert found["rows"] == frame.to_dict("records")
    assert {name: found[name] for name in frame.attrs} == frame.attrs
    assert found["pairs"] == body(PAIRS)["pairs"]


@pytest.mark.parametrize("lens", ["gemma", "gpt2"])
def test_rows_straight_through_and_screened_have_the_same_ranks(
    lens: str, request: pytest.FixtureRequest
) -> None:
    opened = held(request.getfixturevalue(lens)).opened
    relation = Relation.from_pairs("query", PAIRS)
    stats = Stats()
    straight = ranked_heads(opened, relation, silent, stats)
    model = opened.prepared.model
    # Once a head and sign and source, and the state itself: no screening set, no second round.
    assert stats.rows == 2 * (model.dims.n_heads + 1) * len(PAIRS) * len(model.layers_with_heads)
    assert not stats.seconds
    with patch.object(module, "FEW_SOURCES", 0):
        screened = ranked_heads(opened, relation, silent, stats)
    assert "screening" in stats.seconds
    assert straight.to_dict("records") == screened.to_dict("records")


def test_a_word_through_every_head(client: TestClient, answers: Answers) -> None:
    found = told(client.post("/api/word", json={"word": word(40)}))
    assert len(found["rows"]) == answers.atlas.n_layers * answers.atlas.n_heads
    gains = [row["gain"] for row in found["rows"]]
    assert gains == sorted(gains, reverse=True) and gains[0] > gains[-1] > 0
    for row in found["rows"][:3]:
        asked = ha.ask(answers.atlas, row["layer"], row["head"], word(40), top=5)
        assert row["promoted"] == asked["promoted"][0] and row["suppressed"] == asked["suppressed"][0]
    itself = {
        (row["layer"], row["head"]): row
        for row in told(client.post("/api/pairs", json=body([(word(40), word(40))])))["rows"]
    }
    for row in found["rows"]:
        same = itself[row["layer"], row["head"]]
        assert [row["rank"]] == same["ranks"] and [row["suppression_rank"]] == same["suppression_ranks"]
        if row["rank"] is not None and row["rank"] < 5:
            assert row["promoted"][row["rank"]] == found["tokens"][-1]
    opened, row = answers.opened, found["rows"][0]
    with opened.states([(40,)], silent) as states:
        inputs = layer_inputs(opened.prepared, states, row["layer"])
    x, heads = inputs.states[0].double(), inputs.heads
    W_V = heads.W_V[inputs.dims.kv_head(row["head"])].double()
    gain = float((x @ W_V @ heads.W_O[row["head"]].double()).norm() / x.norm())
    assert row["gain"] == pytest.approx(gain, rel=1e-5)


def test_a_word_that_cannot_be_a_target_has_no_ranks(client: TestClient) -> None:
    one, several = (told(client.post("/api/word", json={"word": text})) for text in (word(40), "w40 w41"))
    assert one["can_be_target"] and not several["can_be_target"]
    assert {row[name] for row in several["rows"] for name in ("rank", "suppression_rank")} == {None}
    assert {row["rank"] for row in one["rows"]} != {None}
    assert several["caption"].endswith("no ranks: the tokenizer cannot use it as a target")


def test_a_text_is_seen_as_the_model_sees_it(client: TestClient, answers: Answers) -> None:
    found = told(client.post("/api/text", json={"text": TEXT}))
    model, modules = answers.model, answers.opened.modules
    ids = one_text.text_ids(model, TEXT)
    assert len(found["tokens"]) == len(ids)
    modules.set_attn_implementation("eager")
    captured: dict[int, torch.Tensor] = {}
    hooks = [
        modules.get_submodule(model.o_proj_module(layer)).register_forward_pre_hook(
            lambda _, args, layer=layer: captured.__setitem__(layer, args[0][0].double())
        )
        for layer in model.layers_with_heads
    ]
    with torch.no_grad():
        seen = modules(input_ids=torch.tensor([ids]), output_attentions=True)
    for hook in hooks:
        hook.remove()
    competing = np.flatnonzero(answers.opened.prepared.competing)
    U = model.unembed().double()[torch.from_numpy(competing)]
    d_head = model.dims.d_head
    for layer, head in ((0, 0), (2, 3)):
        one = told(client.post("/api/text/head", json={"text": TEXT, "layer": layer, "head": head}))
        expected = seen.attentions[layer][0, head]
        for query, row in enumerate(one["pattern"]):
            assert len(row) == query + 1
            np.testing.assert_allclose(row, expected[query, : query + 1], atol=6e-5)
        values = captured[layer][:, head * d_head : (head + 1) * d_head]
        written = values @ model.right_map(layer).apply(model.heads(layer).W_O[head].double())
        texts = answers.opened.texts(competing.tolist())
        for logits, told_ in zip((written @ U.T).numpy(), one["written"], strict=True):
            for name, sign in (("promoted", -1), ("suppressed", 1)):
                order = competing[np.argsort(sign * logits, kind="stable")[:5]]
                assert told_[name] == [texts[token] for token in order.tolist()]
        row = next(each for each in found["rows"] if (each["layer"], each["head"]) == (layer, head))
        assert row["first_position"] == pytest.approx(float(expected[1:, 0].mean()), abs=6e-5)
        allowed = expected.tril(-1)[:, 1:]
        assert row["weights"][0]["attention"] == pytest.approx(float(allowed.max()), abs=6e-5)
        for each in row["weights"]:
            assert each["query"] > each["key"] > 0
            assert each["attention"] == pytest.approx(float(expected[each["query"], each["key"]]), abs=6e-5)
    looked = told(client.post("/api/text/look", json={"text": TEXT, "query": 5}))["rows"]
    for each in looked[:4]:
        weights = seen.attentions[each["layer"]][0, each["head"], 5, :6]
        assert each["attention"] == pytest.approx(float(weights.max()), abs=6e-5)
        assert each["key"] == int(weights.argmax())
    pair = told(client.post("/api/text/look", json={"text": TEXT, "query": 5, "key": 2}))["rows"]
    assert {each["key"] for each in pair} == {2}
    best = pair[0]
    assert best["attention"] == pytest.approx(
        max(float(a[0, :, 5, 2].max()) for a in seen.attentions), abs=6e-5
    )


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("pairs", body(PAIRS)),
        ("word", {"word": word(40)}),
        ("text", {"text": TEXT}),
        ("text/head", {"text": TEXT, "layer": 0, "head": 0}),
        ("text/look", {"text": TEXT, "query": 2}),
        ("about", None),
    ],
)
def test_answers_begin_as_the_json_of_commands_does(
    client: TestClient, answers: Answers, path: str, asked: dict[str, object] | None
) -> None:
    address = f"/api/{path}"
    found = told(client.get(address) if asked is None else client.post(address, json=asked))
    expected = heading(answers.atlas)
    assert list(found)[:4] == list(expected) == ["model", "lens", "thresholds", "caption"]
    for name in ("model", "lens", "thresholds"):
        assert found[name] == expected[name]
    assert found["caption"].startswith(answers.atlas.model_name)


def test_a_text_goes_through_the_model_once(client: TestClient) -> None:
    runs = []
    real = answering.look_at

    def counted(*given: object) -> object:
        runs.append(given)
        return real(*given)  # type: ignore[arg-type]

    with patch.object(answering, "look_at", counted):
        text = f"{TEXT} {word(50)}"
        for path, more in (("", {}), ("/head", {"layer": 0, "head": 1}), ("/look", {"query": 3})):
            told(client.post(f"/api/text{path}", json={"text": text, **more}))
    assert len(runs) == 1


def test_pairs_become_a_relation_file(client: TestClient, tmp_path: Path) -> None:
    found = told(client.post("/api/relation", json=body(PAIRS) | {"name": "My Pairs"}))
    file = tmp_path / found["name"]
    file.write_text(found["text"], encoding="utf-8")
    relation = read_relation(file)
    assert relation.name == "my_pairs" and found["name"] == "my_pairs.json"
    assert [(pair.source, *pair.targets) for pair in relation.pairs] == PAIRS


def test_about(client: TestClient, answers: Answers) -> None:
    found = told(client.get("/api/about"))
    assert found["caption"] == answers.atlas.caption()
    assert found["most_tokens"] == one_text.most_tokens(answers.model)


@pytest.mark.parametrize(
    ("path", "asked", "said"),
    [
        ("pairs", body([(word(1), "no such word")]), "can use none of the pairs"),
        ("pairs", {"pairs": []}, "pairs is empty."),
        ("pairs", body([("a", "b")] * 65), "pairs has more than 64 entries."),
        (
            "pairs",
            {"pairs": [{"source": "a", "target": 1}]},
            "pairs.0.target must be a text.",
        ),
        ("pairs", body([("a\x1b", "b")]), "control or invalid character"),
        ("word", {"word": " "}, "the word is empty"),
        ("word", {"word": "x" * 201}, "word is longer than 200 characters."),
        ("word", {"word": "a", "path": "/etc/passwd"}, "path is no field of this question."),
        ("text", {"text": f"{word(40)} " * 600}, "tokens, and"),
        ("text/head", {"text": TEXT, "layer": 99, "head": 0}, "there is no head 99.0"),
        ("text/head", {"text": TEXT, "layer": 0, "head": 99}, "there is no head 0.99"),
        ("text/head", {"text": TEXT, "layer": -1, "head": 0}, "layer must be 0 or more."),
        ("text/look", {"text": TEXT, "query": 99}, "tokens, numbered from 0"),
        ("text/look", {"text": TEXT, "query": 1, "key": 2}, "not to later ones"),
        ("relation", body(PAIRS) | {"name": "…"}, "letters a–z and digits, and '…' has none"),
    ],
)
def test_what_cannot_be_asked_is_said_in_a_sentence(
    client: TestClient, path: str, asked: dict[str, object], said: str
) -> None:
    error = told(client.post(f"/api/{path}", json=asked), 400)["error"]
    assert said in error and "Traceback" not in error and error.endswith(".")


def test_a_client_that_leaves_ends_the_work(answers: Answers) -> None:
    class GoneError(Exception):
        pass

    steps = []

    def check() -> None:
        steps.append(1)
        if len(steps) == 3:
            raise GoneError

    with pytest.raises(GoneError):
        answers.answer("/api/word", WordAsked(word=word(40)), check)
    assert len(steps) == 3


def test_a_model_that_does_not_fit_is_refused(answers: Answers) -> None:
    small = Machine((torch.device("cpu"),), 1000)
    with (
        patch.object(run, "this_machine", lambda _: small),
        pytest.raises(HeadatlasError, match="keeps the whole model in memory and needs about"),
    ):
        run.check_fits(answers.opened.prepared, Compute())
