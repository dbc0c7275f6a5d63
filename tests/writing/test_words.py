"""Words of one's own: exact answers, a planted head, safe text, and one sentence for what is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

import headatlas as ha
from headatlas.atlas import Atlas
from headatlas.errors import HeadatlasError
from headatlas.evidence.opening import asked_again
from headatlas.lenses import NEUTRAL_PREFIXES, MapsStates, NeutralStates, States
from headatlas.mapping.prepared import PreparedMap
from headatlas.mapping.run import layer_inputs
from headatlas.mapping.vocabulary import Vocabulary
from headatlas.relations import Relation
from headatlas.scoring.scores import RANK_BEYOND, source_hits
from headatlas.writing import opened as open_module
from headatlas.writing import words as module
from tests.cli.conftest import parsed
from tests.mapping.checkpoints import relation, word, word_tokenizer
from tests.mapping.oracle import brute_force_layer
from tests.mapping.planting import VOCAB, opened, plant, random_model, random_pairs, states_of
from tests.writing.test_showing import invoke

LENSES = {"maps": "fresh_maps", "neutral": "written_neutral"}
SOURCES = [(40,), (41,), (7,)]
SEVERAL = (50, 51)
"""A source of two tokens."""


def states(prepared: PreparedMap, sources: list[tuple[int, ...]], folder: Path) -> States:
    if prepared.options.lens.weights_only:
        return MapsStates(prepared.model, sources)
    return NeutralStates.compute(prepared.model, sources, NEUTRAL_PREFIXES, folder, identity="")


def written(tokens: tuple[int, ...]) -> str:
    return " ".join(map(word, tokens))


@pytest.mark.parametrize("lens", LENSES)
@pytest.mark.parametrize("top", [3, 40])
def test_lists_are_those_of_every_logit_in_float64(
    lens: str, top: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    atlas = Atlas.open(request.getfixturevalue(LENSES[lens]))
    prepared = asked_again(atlas)
    sources = [*SOURCES, SEVERAL] if lens == "neutral" else SOURCES
    seen = states(prepared, sources, tmp_path / "s")
    competing = np.flatnonzero(prepared.competing)
    U = prepared.model.unembed().double()[torch.from_numpy(competing)]
    for layer, head in ((0, 0), (1, 3), (2, 2)):
        found = ha.ask(atlas, layer, head, map(written, sources), top=top)
        inputs = layer_inputs(prepared, seen, layer)
        logits = (inputs.values(inputs.dims.kv_head(head)) @ inputs.output(head) @ U.T).numpy()
        for row, of, tokens in zip(found.to_dict("records"), logits, sources, strict=True):
            assert (row["source"], row["tokens"]) == (written(tokens), [f" {word(t)}" for t in tokens])
            for name, sign in (("promoted", -1), ("suppressed", 1)):
                wanted = competing[np.argsort(sign * of, kind="stable")[:top]].tolist()
                assert row[f"{name}_ids"] == wanted
                assert row[name] == [f" {word(token)}" for token in wanted]


@pytest.mark.parametrize("lens", LENSES)
def test_ranks_of_pairs_are_those_of_every_logit_in_float64(
    lens: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    atlas = Atlas.open(request.getfixturevalue(LENSES[lens]))
    pairs = [
        (word(40), word(60)),
        (word(41), [word(61), word(62)]),
        (word(42), "no such word"),
        (word(7), word(8)),
    ]
    found = ha.query(atlas, pairs)
    prepared = asked_again(atlas, relation=Relation.from_pairs("query", pairs))
    layout = prepared.layout
    seen = states(prepared, list(layout.sources), tmp_path / "s")
    vocabulary = Vocabulary.read(prepared.model.unembed, prepared.competing)
    own = layout.own_pair
    usable = ((40, 60), (41, 61), (41, 62), (7, 8))
    assert found.attrs["pairs"] == [{"source": word(s), "target": word(t)} for s, t in usable]
    assert found.attrs["dropped"] == {"no target is a single token": [word(42)]}

    def listed(ranks: NDArray[np.int16]) -> list[int | None]:
        return [None if rank == RANK_BEYOND else rank for rank in ranks[own].tolist()]

    for layer in range(atlas.n_layers):
        inputs = layer_inputs(prepared, seen, layer)
        expected = brute_force_layer(layout, inputs, vocabulary, ceiling=250)
        rows = found[found["layer"] == layer].sort_values("head")
        assert rows["ranks"].tolist() == list(map(listed, expected.promotion))
        assert rows["suppression_ranks"].tolist() == list(map(listed, expected.suppression))
        for column, ranks in (
            ("score", expected.promotion),
            ("suppression", expected.suppression),
            ("control", expected.control),
        ):
            hits = source_hits(ranks[..., own], layout.pair_source[own], 3, atlas.thresholds.k).mean(axis=-1)
            np.testing.assert_array_equal(rows[column], hits)
    best = found[["score", "suppression"]].max(axis=1).tolist()
    assert best == sorted(best, reverse=True)
    assert (found["sign"] == "suppression").any() and (found["sign"] == "promotion").any()


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, list[int], list[int]]:
    """Head 2.1 sends each of 35 sources to a target of its own."""
    model = random_model("gpt_neox")
    sources, targets = random_pairs()
    rows = opened(model).unembed()[targets]
    x = states_of(model, "neutral", sources, tmp_path_factory.mktemp("planted") / "s").layer(2).x
    plant(model, "gpt_neox", 2, 1, x, rows / rows.norm(dim=1, keepdim=True), "neutral")
    return model, sources, targets


def test_a_planted_head_is_found_and_answers(
    planted: tuple[PreTrainedModel, list[int], list[int]],
) -> None:
    model, sources, targets = planted
    pairs = [(word(s), word(t)) for s, t in zip(sources, targets, strict=True)]
    found = ha.query(model, pairs[:4], tokenizer=word_tokenizer(VOCAB))
    first = found.iloc[0]
    assert (first["layer"], first["head"], first["sign"], first["score"]) == (2, 1, "promotion", 1.0)
    assert first["ranks"] == [0, 0, 0, 0]
    assert found.attrs["lens"] == "neutral" and "prove little" in found.attrs["caption"]
    asked = relation("planted", [(s, [t]) for s, t in pairs])
    atlas = ha.map_heads(model, word_tokenizer(VOCAB), relations=asked)
    told = ha.ask(atlas, 2, 1, [pairs[0][0], word(targets[0])], model, word_tokenizer(VOCAB), top=1)
    assert told["promoted_ids"][0] == [targets[0]]
    wanted = {"relation": "planted", "target": pairs[0][1], "rank": 0, "suppression_rank": None}
    assert told["wanted"].tolist() == [[wanted], []]


def test_a_head_of_zeros_writes_nothing(
    planted: tuple[PreTrainedModel, list[int], list[int]], fresh: Path, tmp_path: Path
) -> None:
    atlas = Atlas.open(fresh)
    real = module.layer_inputs

    def silent(*given: object) -> object:
        inputs = real(*given)  # type: ignore[arg-type]
        inputs.heads.W_O[1] = 0
        return inputs

    with patch.object(module, "layer_inputs", silent):
        assert ha.ask(atlas, 1, 1, word(40))[["promoted_ids", "suppressed"]].values.tolist() == [[[], []]]
        assert ha.ask(atlas, 1, 0, word(40))["promoted_ids"].map(len).item() == 10


def test_the_commands(fresh_maps: Path) -> None:
    atlas = Atlas.open(fresh_maps)
    source, target = atlas.pairs(1, 2, "one_to_one").iloc[0][["source", "target"]]
    frame = ha.ask(atlas, 1, 2, [source, word(7)])
    result = invoke("ask", fresh_maps, "1.2", source, word(7), "--json")
    body = parsed(result)
    assert {"model", "lens", "thresholds", "caption", "rows"} <= set(body) and body["ceiling"] == 32
    assert body["rows"] == frame.to_dict("records")
    assert f"{target} wanted: rank " in invoke("ask", fresh_maps, "1.2", source).stdout
    pairs = [f"{source}={target}", f"{word(7)}={word(8)}"]
    body = parsed(invoke("query", fresh_maps, *pairs, "--top", 3, "--json"))
    assert {"model", "lens", "thresholds", "caption", "rows"} <= set(body) and len(body["rows"]) == 3
    assert body["lens"] == "maps"
    assert [f"{each['source']}={each['target']}" for each in body["pairs"]] == pairs
    result = invoke("query", fresh_maps, *pairs)
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["head", "sign", "score", "suppression", "control", *pairs]
    every = parsed(invoke("query", fresh_maps, *pairs, "--top", 99, "--json"))
    assert len(lines) == 1 + len(every["rows"])
    assert len(every["rows"]) + every["without_rank"] == atlas.n_layers * atlas.n_heads
    assert all(set(row["ranks"] + row["suppression_ranks"]) != {None} for row in every["rows"])
    assert "there is no calibration and no q" in result.stderr
    by_model = parsed(invoke("query", fresh_maps.parent / "model", *pairs, "--json"))
    assert by_model["lens"] == "neutral" and "prove little" in by_model["caption"]


def test_hostile_words_are_shown_safely(fresh_maps: Path) -> None:
    bad = " \x1b[31m\u202eevil\n"
    with patch.object(open_module, "token_texts", lambda _tokenizer, named: [bad] * len(named)):
        printed = invoke("ask", fresh_maps, "1.2", word(7)).stdout
        assert r"\x1b[31m\u202eevil\n" in printed and not {"\x1b", "\u202e"} & set(printed)
        rows = parsed(invoke("ask", fresh_maps, "1.2", word(7), "--json"))["rows"]
        assert rows[0]["promoted"] == [bad] * 10
    for args in (("ask", fresh_maps, "1.2", "a\x1b[31m"), ("query", fresh_maps, "a\x1b[31m=b", "c=d\u202e")):
        said = invoke(*args, code=2).stderr
        assert not {"\x1b", "\u202e"} & set(said) and said.startswith("error: ")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("ask", "9.9", "x"), "there is no head 9.9"),
        (("ask", "1.2", "nonsense"), "'nonsense' cannot be asked with the lens maps: source has an unknown"),
        (("ask", "1.2", "w40 w41"), "'w40 w41' cannot be asked with the lens maps: source is several tokens"),
        (("ask", "1.2", " "), "the word is empty"),
        (("ask", "1.2", "w40", "--top", "0"), "--top is 0: it must lie between 1 and 1000"),
        (("query", "w40"), "'w40' is no pair; write it SOURCE=TARGET"),
        (("query", "w40="), "'w40=' is no pair"),
        (("query", "w40=no w41"), "can use none of the pairs (w40: no target is a single token)"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(args: tuple[str, ...], said: str, fresh_maps: Path) -> None:
    error = invoke(args[0], fresh_maps, *args[1:], code=2).stderr
    line = error.splitlines()[-1]
    assert line.startswith("error: ") and said in line and "Traceback" not in error


def test_another_model_is_refused(fresh: Path, written_neutral: Path) -> None:
    other = written_neutral.parent / "model"
    for command, *rest in (("ask", "1.2", "w40"), ("query", "w40=w41")):
        assert (
            "differs from the atlas's in weights"
            in invoke(command, fresh, *rest, "--model", other, code=2).stderr
        )
    shutil.rmtree(fresh / "atlas.zarr")
    assert "error: " in invoke("query", fresh, "w40=w41", code=2).stderr
    with pytest.raises(HeadatlasError, match="`model` is the model of an atlas"):
        ha.query(other, [("w40", "w41")], model=other)
    with pytest.raises(HeadatlasError, match="`words` is empty"):
        ha.ask(Atlas.open(written_neutral), 0, 0, [])


def test_nothing_is_stored(fresh: Path) -> None:
    def files() -> pd.Series:
        return pd.Series({str(path): path.stat().st_mtime_ns for path in sorted(fresh.rglob("*"))})

    before = files()
    ha.ask(Atlas.open(fresh), 0, 0, word(40))
    ha.query(fresh, [(word(40), word(41))])
    pd.testing.assert_series_equal(files(), before)
