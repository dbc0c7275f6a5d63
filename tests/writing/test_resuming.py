"""A stopped run goes on where it was, and ends with what an unbroken one finds."""

from __future__ import annotations

import shutil
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

import headatlas as ha
from headatlas.atlas import Atlas
from headatlas.errors import HeadatlasError
from headatlas.evidence.opening import reopened
from headatlas.lenses import NEUTRAL_PREFIXES, NeutralParts, NeutralStates, StreamedStates, neutral
from headatlas.lenses.saved_states import claim
from headatlas.writing import run
from headatlas.writing.operations import Operations
from headatlas.writing.tokens import default_most
from tests.writing.conftest import mapped


@pytest.fixture(scope="session")
def fresh_neutral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mapped(tmp_path_factory.mktemp("fresh"), "gemma3", "neutral")


@pytest.fixture
def out(fresh_neutral: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fresh_neutral, tmp_path / "out"))


class StoppedError(Exception):
    """Stands for whatever ends a process."""


def equal(one: Path, other: Path) -> bool:
    frames = [
        (atlas.salience(), atlas.spectrum(), atlas.explained()) for atlas in map(Atlas.open, (one, other))
    ]
    return all(a.astype(str).equals(b.astype(str)) for a, b in zip(*frames, strict=True))


@pytest.mark.parametrize("streamed", [False, True])
def test_a_stopped_run_goes_on(streamed: bool, out: Path, written_neutral: Path) -> None:
    """Stopped at the second layer: the states and layers before are not made again."""
    layers: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    when = "first"

    def counted(self: Operations, *given: object) -> object:
        if when == "first" and layers[when] == 1:
            raise StoppedError
        layers[when] += 1
        return found(self, *given)

    def read(*args: object, **kwargs: object) -> object:
        rows[when] += 1
        return collect(*args, **kwargs)

    found, collect = Operations.layer, neutral.Collector.take_x
    with (
        patch.object(Operations, "layer", counted),
        patch.object(neutral.Collector, "take_x", read),
        patch.object(run, "streams_within", lambda *_: streamed),
    ):
        with pytest.raises(StoppedError):
            ha.salience(Atlas.open(out), tokens="all")
        assert (out / run.WORK_NAME).is_dir()
        when = "second"
        ha.salience(Atlas.open(out), tokens="all")
    n_layers = Atlas.open(out).n_layers
    assert layers["first"] == 1 and layers["second"] == n_layers - 1
    # All layers had gone through together; or two of three, and the last needs no prefix.
    assert n_layers == 3 and rows["second"] == streamed * len(NEUTRAL_PREFIXES)
    assert not (out / run.WORK_NAME).exists()
    assert equal(out, written_neutral)


def test_parts_are_made_once_and_hold_the_states_of_the_lens(out: Path, tmp_path: Path) -> None:
    prepared, _ = reopened(Atlas.open(out))
    torch.set_num_threads(1)  # one part after the other
    sources = [(token,) for token in np.flatnonzero(prepared.competing).tolist()]
    whole = NeutralStates.compute(prepared.model, sources, NEUTRAL_PREFIXES, tmp_path / "a", identity="")
    sent: list[int] = []

    def stopping(*args: object) -> Iterator[int]:
        sent.append(len(args[3]))  # type: ignore[arg-type]
        if len(sent) == 2 * len(NEUTRAL_PREFIXES) + 1:
            raise StoppedError
        return forward(*args)  # type: ignore[arg-type]

    forward = neutral._shared
    told: list[tuple[int, int]] = []
    with patch.object(neutral, "PART", 37), patch.object(neutral, "_shared", stopping):
        claim(tmp_path / "b", "these")

        def parts() -> NeutralParts:
            return NeutralParts.compute(
                prepared.model,
                sources,
                NEUTRAL_PREFIXES,
                tmp_path / "b",
                progress=lambda *done: told.append(done),
            )

        with pytest.raises(StoppedError):
            parts()
        made = parts()
        assert sum(sent) - sent[2 * len(NEUTRAL_PREFIXES)] == len(NEUTRAL_PREFIXES) * len(sources)
        n = len(sent)
        again = parts()
        assert len(sent) == n
    total = len(NEUTRAL_PREFIXES) * len(sources)
    assert [done for done, _ in told] == sorted({done for done, _ in told}) and told[-1] == (total, total)
    for layer in range(prepared.model.dims.n_layers):
        expected = whole.layer(layer).x
        for states in (made, again):
            found = states.layer(layer)
            np.testing.assert_allclose(found.x, expected, rtol=1e-5, atol=1e-6)
            assert len(found.control) == 0


def test_parts_side_by_side_are_those_one_after_another(out: Path, tmp_path: Path) -> None:
    """Each thread has modules of its own, whose tensors are the model's."""
    prepared, _ = reopened(Atlas.open(out))
    sources = [(token,) for token in np.flatnonzero(prepared.competing).tolist()]
    states, threads = [], Counter[int]()

    def noted(*args: Any) -> Iterator[int]:
        threads[torch.get_num_threads()] += 1
        return forward(*args)

    forward = neutral._shared
    for cores in (1, 2):
        torch.set_num_threads(cores)
        claim(folder := tmp_path / str(cores), "these")
        with patch.object(neutral, "PART", 37), patch.object(neutral, "_shared", noted):
            states.append(NeutralParts.compute(prepared.model, sources, NEUTRAL_PREFIXES, folder))
    assert threads == {1: 2 * len(NEUTRAL_PREFIXES) * -(-len(sources) // 37)}
    for layer in range(prepared.model.dims.n_layers):
        one, two = (each.layer(layer).x for each in states)
        assert len(one) == len(sources) and torch.equal(one, two)


def test_parts_go_as_deep_as_they_are_needed(out: Path, tmp_path: Path) -> None:
    """Rows that go through for each layer are those of the sources that need it; none ends before layer 1.

    Prefixes go through once, not once a part.
    """
    prepared, _ = reopened(Atlas.open(out))
    sources = [(token,) for token in np.flatnonzero(prepared.competing)[:30].tolist()]
    deepest = [2] * 5 + [1] * 10 + [0] * 15
    rows: Counter[int] = Counter()

    def counted(self: neutral.Collector, layer: int, state: torch.Tensor) -> None:
        rows[layer] += len(self._ends)
        take(self, layer, state)

    take = neutral.Collector.take_x
    claim(tmp_path / "parts", "these")
    with (
        patch.object(neutral.Collector, "take_x", counted),
        patch.object(neutral, "_prefix_cache", wraps=neutral._prefix_cache) as prefixes,
    ):
        made = NeutralParts.compute(
            prepared.model, sources, NEUTRAL_PREFIXES, tmp_path / "parts", deepest=deepest
        )
    n = len(NEUTRAL_PREFIXES)
    assert prefixes.call_count == n
    assert [rows[layer] for layer in range(3)] == [30 * n, 30 * n, 5 * n]
    assert [len(made.layer(layer).x) for layer in range(3)] == [30, 30, 5]


@pytest.mark.parametrize("lens", ["maps", "neutral"])
def test_layers_side_by_side_are_those_one_after_another(
    lens: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Two at a time; states that layers share are multiplied with U once."""
    fresh, written = (request.getfixturevalue(f"{name}_{lens}") for name in ("fresh", "written"))
    out = Path(shutil.copytree(fresh, tmp_path / "two"))
    multiplied: list[int] = []
    at_work: Counter[int] = Counter()

    def counted(self: Operations, *given: Any) -> Any:
        multiplied.append(1)
        return multiply(self, *given)

    def noted(self: Operations, *given: Any) -> Any:
        at_work[torch.get_num_threads()] += 1
        return work(self, *given)

    multiply, work = Operations._correlation_of, Operations.layer
    torch.set_num_threads(2)
    with (
        patch.object(Operations, "_correlation_of", counted),
        patch.object(Operations, "layer", noted),
    ):
        ha.salience(Atlas.open(out), tokens="all")
    assert torch.get_num_threads() == 2
    n_layers = Atlas.open(out).n_layers
    assert len(multiplied) == (2 if lens == "maps" else n_layers) and at_work == {1: n_layers}
    assert equal(out, written)


def test_streamed_layers_go_one_by_one_on_all_cores(out: Path) -> None:
    threads: list[tuple[int, int]] = []

    def noted(self: StreamedStates, layer: int) -> Any:
        threads.append((layer, torch.get_num_threads()))
        return passed(self, layer)

    passed = StreamedStates.layer
    torch.set_num_threads(2)
    with (
        patch.object(StreamedStates, "layer", noted),
        patch.object(run, "streams_within", lambda *_: True),
    ):
        ha.salience(Atlas.open(out), tokens="all")
    assert threads == [(layer, 2) for layer in range(Atlas.open(out).n_layers)]


def test_states_of_another_question_are_not_taken_up(out: Path, written_neutral: Path) -> None:
    work = out / run.WORK_NAME
    claim(work, "another")
    np.savez(work / "operations_000.npz", nonsense=np.zeros(3))
    ha.salience(Atlas.open(out), tokens="all")
    assert equal(out, written_neutral) and not work.exists()


def test_what_somebody_else_put_there_stays(out: Path) -> None:
    work = out / run.WORK_NAME
    work.mkdir()
    (work / "mine.txt").write_text("mine")
    with pytest.raises(HeadatlasError, match="holds something else"):
        ha.salience(Atlas.open(out), tokens="all")
    assert (work / "mine.txt").read_text() == "mine"


MEASURE = {
    "salience": lambda atlas: ha.salience(atlas, tokens="all"),
    "behaviour": ha.behaviour,
    "inference": ha.evidence.inference,
    "attention": ha.evidence.attention,
    "heads": lambda atlas: ha.evidence.ablation(atlas, heads=[(0, 0)]),
}
OPENING = ("writing.run", "looking.measuring", "evidence.opening")


@pytest.mark.parametrize("what", MEASURE)
def test_where_nothing_can_be_written_nothing_is_measured(what: str, out: Path) -> None:
    refused = patch("tempfile.TemporaryFile", side_effect=PermissionError(13, "Permission denied"))
    no_model = patch("torch.nn.Module.__call__", side_effect=AssertionError("the model runs"))
    atlas = Atlas.open(out)
    prepared = reopened(atlas)  # what opening checks with modules has been checked
    again = [patch(f"headatlas.{where}.reopened", return_value=prepared) for where in OPENING]
    said = pytest.raises(HeadatlasError, match=r"evidence: cannot be written .*copy the atlas")
    with refused, no_model, again[0], again[1], again[2], said:
        MEASURE[what](atlas)


def test_a_model_that_is_given_is_looked_at_though_all_is_stored(written_neutral: Path) -> None:
    atlas = Atlas.open(written_neutral)
    with patch.object(run, "_computed", side_effect=AssertionError("computed again")):
        assert len(ha.salience(atlas, atlas.provenance["model"]["spec"])) == len(atlas.salience())
        with pytest.raises(HeadatlasError, match="nowhere"):
            ha.salience(atlas, "./nowhere")


def test_labels_on_other_operations_than_are_stored_are_said_to_be(
    written_neutral: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(written_neutral, tmp_path / "labelled"))
    with warnings.catch_warnings(record=True) as before:
        ha.label(Atlas.open(out), relations="core")
        assert len(Atlas.open(out).labels()) and not before
    ha.salience(Atlas.open(out), most=40)
    with pytest.warns(
        UserWarning, match="judged on other salient operations than are stored now; `headatlas l"
    ):
        assert len(Atlas.open(out).labels())
    ha.label(Atlas.open(out), relations="core")
    with warnings.catch_warnings(record=True) as after:
        Atlas.open(out).labels()
    assert not after


def test_a_run_that_was_overtaken_takes_what_the_other_stored(out: Path, written_neutral: Path) -> None:
    def overtaken(*_: object) -> object:
        stored = written_neutral / "atlas.zarr" / "evidence" / "salience"
        shutil.copytree(stored, out / "atlas.zarr" / "evidence" / "salience")
        raise FileNotFoundError

    with patch.object(NeutralParts, "layer", overtaken):
        ha.salience(Atlas.open(out), tokens="all")
    assert equal(out, written_neutral)


def test_the_first_tokens_only(out: Path) -> None:
    atlas = Atlas.open(out)
    frame = ha.salience(atlas, tokens="all", most=40)
    prepared, _ = reopened(atlas)
    assert set(frame["source_id"]) <= set(np.flatnonzero(prepared.competing)[:40].tolist())
    left = int(prepared.competing.sum()) - 40
    assert f"among 40 tokens (all, the first of {40 + left}" in frame.attrs["caption"]
    with patch.object(run, "reopened", side_effect=AssertionError("computed again")):
        assert ha.salience(Atlas.open(out)).equals(frame) and ha.salience(Atlas.open(out), most=40).equals(
            frame
        )
    assert (
        len(ha.salience(Atlas.open(out), most=50, tokens="all"))
        and "among 50" in Atlas.open(out).salience().attrs["caption"]
    )
    with patch.object(run, "source_tokens", side_effect=RuntimeError) as asked, pytest.raises(RuntimeError):
        ha.salience(Atlas.open(out), most=60)
    assert asked.call_args.args[3:] == ("all", 60)  # the choice that is stored
    with pytest.raises(HeadatlasError, match="`most` is 0"):
        ha.salience(atlas, most=0)


def test_large_models_get_fewer_tokens(out: Path) -> None:
    prepared, _ = reopened(Atlas.open(out))
    lens, model = prepared.options.lens, prepared.model

    def most(parameters: float) -> int | None:
        with patch.object(type(model), "n_block_parameters", parameters / model.dims.n_layers):
            return default_most(model, lens)

    assert (most(1e8), most(6.98e9), most(7e10)) == (20_000, 1790, 1000)
    assert default_most(model, ha.lenses.LENSES["maps"]) is None


def test_streamed_and_in_parts_are_asked_alike(out: Path) -> None:
    """What needs less memory than the states of all tokens decides whether the model is loaded whole."""
    asked: list[tuple[int, bool | None]] = []

    def streams(_model: object, _lens: object, sources: int, stream: bool | None, _machine: object) -> bool:
        asked.append((sources, stream))
        return True

    with (
        patch.object(run, "streams_within", streams),
        patch.object(neutral, "PART", 10),
        patch.object(run, "StreamedStates", wraps=StreamedStates) as made,
    ):
        ha.salience(Atlas.open(out), tokens="all", most=40)
    assert asked == [(10, None), (40, True)] and made.call_count == 1
