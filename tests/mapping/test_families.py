"""Whole maps of tiny models of every family, from disk: every stored rank is the float64 oracle's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from headatlas.atlas import Atlas, store
from headatlas.atlas.store import LayerRanks
from headatlas.errors import HeadatlasError
from headatlas.lenses import MapsStates, NeutralStates, States, lens_named
from headatlas.mapping.prepared import MapOptions, PreparedMap, prepare_map
from headatlas.mapping.run import layer_inputs, map_heads
from headatlas.mapping.vocabulary import Vocabulary
from tests.architectures.tiny import ALL, MODELS
from tests.mapping import oracle
from tests.mapping.checkpoints import random_relations, save, tiny_model

VOCAB = 200


# One of each piece that stands beside the layouts; the others with the marker ``exhaustive``.
PIECES = ("bloom", "deepseek_v3", "falcon", "gpt_oss", "jamba", "lfm2", "mixtral", "olmo2", "qwen3_next")
CHOSEN = [
    pytest.param(case, marks=[] if case in MODELS or case in PIECES else [pytest.mark.exhaustive])
    for case in ALL
]


NO_FIRST_MLP = {"nemotron_h"}
"""Their first block has none, which the lens maps reads."""


class _Folders(dict[str, Path]):
    """Case → its folder, made when it is asked for."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        self._place = place

    def __missing__(self, case: str) -> Path:
        self[case] = save(tiny_model(case, VOCAB), self._place / case, VOCAB)
        return self[case]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("models")
    return _Folders(place)


@pytest.mark.parametrize("lens", ["neutral", "maps"])
@pytest.mark.parametrize("case", CHOSEN)
def test_ranks_are_the_oracles(case: str, lens: str, folders: dict[str, Path], tmp_path: Path) -> None:
    relations = random_relations(VOCAB, several_tokens=lens == "neutral")
    if lens == "maps" and case in NO_FIRST_MLP:
        with pytest.raises(HeadatlasError, match="the first block has no MLP"):
            map_heads(folders[case], lens=lens, relations=relations)
        return
    atlas = map_heads(folders[case], lens=lens, relations=relations, out=tmp_path / "out")
    assert list(atlas.included["relation"]) == ["one_to_one", "several", "few", "copy"]
    family = atlas.provenance["model"]["family"]
    assert family in case or (family == "llama" and "mistral" in case)
    prepared = prepare_map(folders[case], None, relations, MapOptions(lens_named(lens)))
    states: States
    if lens == "maps":
        states = MapsStates(prepared.model, prepared.layout.sources)
    else:
        states = NeutralStates.compute(
            prepared.model,
            prepared.layout.sources,
            prepared.options.lens.prefixes,
            tmp_path / "states",
            identity="",
        )
    layers = prepared.model.layers_with_heads
    assert atlas.layers_done.nonzero()[0].tolist() == list(layers)
    assert_equal_to_oracle(atlas, prepared, states, layers)
    promotion = atlas.dataset["promotion_rank"].values[list(layers)]
    assert (promotion >= 0).any() and (promotion == -1).any() and (promotion != -3).all()


def assert_equal_to_oracle(
    atlas: Atlas, prepared: PreparedMap, states: States, layers: Sequence[int]
) -> None:
    """The stored ranks of some layers equal brute force in float64."""
    vocabulary = Vocabulary.competing(prepared.model.unembed(), prepared.competing)
    for layer in layers:
        expected = oracle.brute_force_layer(
            prepared.layout,
            layer_inputs(prepared, states, layer),
            vocabulary,
            ceiling=prepared.options.ceiling,
        )
        assert_layer(atlas, layer, expected)


def assert_layer(atlas: Atlas, layer: int, expected: LayerRanks) -> None:
    for stored, (attribute, *_) in store._LAYER_ARRAYS.items():
        np.testing.assert_array_equal(
            atlas.dataset[stored].values[layer], getattr(expected, attribute), err_msg=f"{stored} of {layer}"
        )
