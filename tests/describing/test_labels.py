"""Labels in an atlas: two kinds kept apart, stored beside each other, shown with their author."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import headatlas as ha
from headatlas.atlas import Atlas
from headatlas.atlas.labels import LABEL_COLUMNS, label_counts
from headatlas.describing.endpoint import Endpoint
from headatlas.describing.rules import ATTENTION_RULES
from headatlas.errors import HeadatlasError
from headatlas.progress import Progress
from tests.cli.conftest import Run, parsed, run
from tests.describing.made import HOSTILE, planted
from tests.describing.stub import completion, serving
from tests.describing.test_endpoint import honest
from tests.synthetic import make_atlas

__all__ = ["run"]
HEAD, SHAPE = (1, 2), (3, 4)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels") / "out"
    make_atlas(folder / "atlas.zarr", *SHAPE)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An atlas whose head 1.2 copies, in a folder of its own."""
    frame = planted({HEAD: lambda word: word}, *SHAPE)
    monkeypatch.setattr(Atlas, "salience", lambda _: frame.copy())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(made, tmp_path / "out"))


def measured(*rows: tuple[int, int, str, float, float]) -> pd.DataFrame:
    """Behaviours: layer, head, name, value, expected; all called."""
    names = ["layer", "head", "behaviour", "value", "expected"]
    frame = pd.DataFrame(list(rows), columns=names)
    return frame.assign(low=0.0, high=1.0, p=0.0, q=0.0001, called=True)


def test_labels_are_returned_and_stored(folder: Path, tmp_path: Path) -> None:
    atlas = Atlas.open(folder)
    assert atlas.labels().empty and list(atlas.labels().columns) == list(LABEL_COLUMNS)
    rows = ha.label(atlas, relations="core")
    assert list(rows.columns) == list(LABEL_COLUMNS) and len(rows) == 12
    head = rows[(rows["layer"] == 1) & (rows["head"] == 2)].iloc[0]
    assert (head["label"], head["kind"], head["author"]) == ("copies", "mappings", "headatlas rules 1")
    assert head["support"] == "30 of 30 mappings" and head["score"] == 1.0 and head["chance"] == 0.2
    assert head["se"] == pytest.approx(np.sqrt(0.16 / 15))
    others = rows.drop(index=head.name)
    assert (others["label"] == "unclear").all()
    assert set(others["support"].str.partition(":")[0]) <= {
        "no rule fits",
        "not shown to be better than chance",
    }
    pd.testing.assert_frame_equal(atlas.labels(), rows)
    assert "unclear: at or below chance + 2 standard errors" in atlas.labels().attrs["caption"]
    # A copy has them, and the table of relations has no other column.
    atlas.save(tmp_path / "copy")
    pd.testing.assert_frame_equal(Atlas.open(tmp_path / "copy").labels(), rows)
    assert not set(atlas.table().columns) & {"label", "support"}
    # In memory nothing is stored.
    pd.testing.assert_frame_equal(ha.label(atlas.load(), salience=atlas.salience(), relations="core"), rows)


def test_the_same_seed_gives_the_same_labels(folder: Path) -> None:
    atlas = Atlas.open(folder)
    first = ha.label(atlas, relations="core")
    pd.testing.assert_frame_equal(ha.label(atlas, relations="core"), first)
    assert (ha.label(atlas, relations="core", seed=1)["score"] != first["score"]).any()


def test_some_heads_leave_the_others(folder: Path) -> None:
    atlas = Atlas.open(folder)
    every = ha.label(atlas, relations="core")
    one = ha.label(atlas, relations="core", only=[HEAD])
    assert len(one) == 1 and len(atlas.labels()) == 12
    pd.testing.assert_frame_equal(atlas.labels(), every)
    # Labels that were made otherwise do not stand beside them, nor in their place.
    other = ha.label(atlas, relations="core", only=[HEAD], seed=1)
    assert len(other) == 1 and "not stored" in other.attrs["caption"]
    pd.testing.assert_frame_equal(atlas.labels(), every)
    with pytest.raises(HeadatlasError, match=r"no salient operations of a head 9\.9"):
        ha.label(atlas, only=[(9, 9)])


def test_labels_by_attention_are_a_kind_of_their_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atlas = ha.open_atlas(folder, tau=0.01, criterion="tau")
    copying = atlas.table()
    names = copying[copying["implements"] & copying["relation"].isin(["copying", "name_copying"])]
    copies = (int(names["layer"].iloc[0]), int(names["head"].iloc[0]))
    plain = next(
        at for at in np.ndindex(*SHAPE) if at not in set(zip(names["layer"], names["head"], strict=True))
    )
    rows = measured(
        (*copies, "induction", 0.4, 0.02),
        (*plain, "induction_repeated", 0.3, 0.02),
        (*plain, "first_position", 0.9, 0.1),
        (*HEAD, "first_position", 0.9, 0.1),
        (2, 3, "first_position", 0.3, 0.1),
        (0, 3, "previous_token", 0.5, 0.1),
        (0, 3, "self", 0.3, 0.1),
    )
    monkeypatch.setattr(Atlas, "behaviours", lambda _: rows)
    found = ha.label(atlas, relations="core")
    attention = found[found["kind"] == "attention"]
    said = {
        (row["layer"], row["head"]): row["label"].partition(":")[0] for row in attention.to_dict("records")
    }
    assert said == {copies: "induction", plain: "induction", HEAD: "sink", (0, 3): "previous token"}
    labels = dict(
        zip(zip(attention["layer"], attention["head"], strict=True), attention["label"], strict=True)
    )
    assert labels[copies].endswith("copies it") and not labels[plain].endswith("copies it")
    assert attention[["score", "chance", "se"]].isna().all().all()
    assert attention["support"].str.endswith("q < 0.001; tested by attention").all()
    # The head that copies has both, and is counted in both; nobody's label is made of the two.
    counts = label_counts(found)
    assert counts == {"heads": 12, "scored": 1, "attention": 4, "unclear": 12 - len({*said, HEAD})}


def test_every_attention_rule_names_a_behaviour() -> None:
    from headatlas.atlas.behaviours import BEHAVIOURS

    tested = {each.name for each in BEHAVIOURS if each.tested}
    assert {name for rule in ATTENTION_RULES for name in rule.behaviours} == tested


def test_a_model_is_judged_in_the_same_way(folder: Path) -> None:
    atlas = Atlas.open(folder)
    told: list[Progress] = []
    with serving(honest) as stub:
        rows = ha.label(
            atlas, relations="core", describe_with=stub.url, model_name="tiny", progress=told.append
        )
        n_asked = len(stub.asked)
        again = ha.label(atlas, relations="core", describe_with=stub.url, model_name="tiny")
        assert len(stub.asked) == n_asked, "what was answered is not asked again"
    pd.testing.assert_frame_equal(again, rows)
    pd.testing.assert_frame_equal(atlas.labels(), rows)
    assert told[0].note.startswith(f"{n_asked} questions to ") and n_asked == 12 * 16
    assert [each.done for each in told[1:]] == list(range(n_asked + 1))
    assert told[-1].note == f"{n_asked} requests sent; 0 descriptions not valid"
    host = stub.url.removeprefix("http://").removesuffix("/v1")
    own = rows[rows["author"] == f"{host}: tiny"]
    assert len(own) == 12 and len(rows) == 24
    named = own[own["label"] != "unclear"]
    assert list(zip(named["layer"], named["head"], strict=True)) == [HEAD]
    assert named["label"].item() == "Copies the source."
    assert named["support"].item() == "15 of 15 held-out mappings picked"
    unclear = own[own["label"] == "unclear"]["support"]
    assert unclear.str.startswith("not shown to be better than chance: Copies the source.,").all()


def test_a_model_that_stops_answering_keeps_what_it_said(folder: Path) -> None:
    atlas = Atlas.open(folder)

    def tires(body: dict[str, Any], at: int) -> Any:
        return honest(body, at) if at < 20 else (401, {}, b"")

    with serving(tires) as stub:
        with pytest.raises(HeadatlasError, match="status 401"):
            ha.label(atlas, relations="core", describe_with=stub.url, model_name="tiny")
        assert atlas.labels()["author"].value_counts().tolist() == [12, 1], "the one head that was done"
        assert len(stub.asked) == 21
        with pytest.raises(HeadatlasError, match="status 401"):
            ha.label(atlas, relations="core", describe_with=stub.url, model_name="tiny")
        assert len(stub.asked) == 22


def test_url_and_model_belong_together(folder: Path) -> None:
    for given in ({"describe_with": "http://localhost/v1"}, {"model_name": "tiny"}):
        with pytest.raises(HeadatlasError, match="belong together"):
            ha.label(Atlas.open(folder), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["per_minute", "seconds"])
def test_what_is_about_an_endpoint_needs_one(folder: Path, name: str) -> None:
    with pytest.raises(HeadatlasError, match=rf"`{name}` is about an endpoint: give `describe_with`"):
        ha.label(Atlas.open(folder), **{name: 5})
    assert Atlas.open(folder).labels().empty


# The command --------------------------------------------------------------------------------------


def test_the_command_shows_what_is_clear(run: Run, folder: Path) -> None:
    result = run("label", folder, "--relations", "core")
    lines = result.stdout.splitlines()
    assert lines[0].split()[:3] == ["head", "label", "support"] and len(lines) == 2
    said = "1.2 copies 30 of 30 mappings 1.00 0.20 0.10 mappings headatlas rules 1"
    assert " ".join(lines[1].split()) == said
    assert (
        "headatlas rules 1: 12 heads; 1 with a scored label, 0 with a label by attention, 11 with neither"
        in result.stderr
    )
    assert len(run("label", folder, "--relations", "core", "--all").stdout.splitlines()) == 13
    found = run("heads", folder, "--label", "copies").stdout.splitlines()
    assert "1.2 label copies headatlas rules 1" in [" ".join(line.split()) for line in found]


def test_json_has_all_heads(run: Run, folder: Path) -> None:
    body = parsed(run("label", folder, "--relations", "core", "--json"))
    assert set(body) == {"model", "lens", "thresholds", "caption", "rows", "about"}
    assert len(body["rows"]) == 12 and list(body["rows"][0]) == list(LABEL_COLUMNS)


def test_the_command_says_what_is_wrong(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def error(*args: object) -> str:
        return run("label", folder, *args, code=2).stderr

    assert error("--describe-with", "http://localhost/v1").startswith(
        "error: --describe-with and --model-name"
    )
    assert "--describe-with: example.org is another machine: use https" in error(
        "--describe-with", "http://example.org/v1", "--model-name", "x"
    )
    assert "--per-minute is 0.0: it must be above 0" in error(
        "--describe-with", "https://example.org/v1", "--model-name", "x", "--per-minute", "0"
    )
    assert "'1,2' is no head" in error("--only", "1;2").replace("1;2", "1,2")
    monkeypatch.setattr(Atlas, "salience", lambda _: planted({}, 1, 2)[:0])
    assert f"headatlas salience {folder}" in error()


def test_hostile_descriptions_and_models_are_shown_safely(run: Run, folder: Path) -> None:
    name = "bad\x1b]0;title\x07\u202e"

    def spoofs(body: dict[str, Any], at: int) -> Any:
        data = json.loads(body["messages"][1]["content"])
        if isinstance(data, list):
            return completion({"description": "\x1b[2J\u202egpj <b onload=x>=1+1\x9b"})
        return honest(body, at)

    with serving(spoofs) as stub:
        given = ("label", folder, "--relations", "core", "--describe-with", stub.url, "--model-name", name)
        texts = [run(*given).output, run(*given, "--json").output]
    for text in texts:
        assert not set(text) & {"\x1b", "\x07", "\u202e", "\x9b"}
        assert "gpj <b onload=x>" in text
    assert "\\x1b[2J\\u202egpj" in texts[0]


def test_hostile_tokens_cost_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = planted({HEAD: lambda word: word}, *SHAPE)
    rng = np.random.default_rng(0)
    for side in ("promoted", "suppressed"):
        frame[side] = [[*each[:1], *map(str, rng.choice(HOSTILE, 4))] for each in frame[side]]
    frame["source"] = pd.Series(
        [HOSTILE[at % len(HOSTILE)] if at < 120 else each for at, each in enumerate(frame["source"])],
        dtype=object,
    )
    rows = ha.label(Atlas.open(folder), salience=frame, relations="core")
    assert rows[(rows["layer"] == 1) & (rows["head"] == 2)]["label"].item() == "copies"
    assert Atlas.open(folder).labels().equals(rows)


def test_an_endpoint_is_only_there_if_it_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(Endpoint, "ask", none)
    assert len(ha.label(Atlas.open(folder), relations="core")) == 12
