"""Whole maps of tiny models of every family, from disk: every stored rank is the float64 oracle's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from headatlas.atlas import Atlas
from headatlas.atlas.store import LayerRanks
from headatlas.lenses import MapsStates, NeutralStates, States
from headatlas.mapping import oracle
from headatlas.mapping.job import Job, options, prepare
from headatlas.mapping.run import map_heads
from headatlas.mapping.states import layer_inputs
from headatlas.mapping.vocabulary import Vocabulary
from tests.architectures.tiny import MODELS
from tests.mapping.checkpoints import random_relations, save, tiny_model

VOCAB = 200


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("models")
    return {case: save(tiny_model(case, VOCAB), place / case, VOCAB) for case in MODELS}


@pytest.mark.parametrize("lens", ["neutral", "maps"])
@pytest.mark.parametrize("case", MODELS)
def test_ranks_are_the_oracles(case: str, lens: str, folders: dict[str, Path], tmp_path: Path) -> None:
    relations = random_relations(VOCAB, several_tokens=lens == "neutral")
    atlas = map_heads(folders[case], lens=lens, relations=relations, out=tmp_path / "out")
    assert list(atlas.included["relation"]) == ["one_to_one", "several", "few", "copy"]
    assert atlas.provenance["model"]["family"] in case.replace("mistral", "llama")
    job = prepare(folders[case], None, relations, options(lens=lens))
    states: States
    if lens == "maps":
        states = MapsStates(job.model, job.questions.sources)
    else:
        states = NeutralStates.compute(
            job.model, job.questions.sources, job.options.lens.prefixes, tmp_path / "states", identity=""
        )
    assert_equal_to_oracle(atlas, job, states, range(3))
    promotion = atlas.dataset["promotion_rank"].values
    assert (promotion >= 0).any() and (promotion == -1).any() and (promotion != -3).all()


def assert_equal_to_oracle(atlas: Atlas, job: Job, states: States, layers: range) -> None:
    """The stored ranks of some layers equal brute force in float64."""
    vocabulary = Vocabulary.competing(job.model.unembed(), job.competing)
    for layer in layers:
        expected = oracle.map_layer(
            job.questions, layer_inputs(job, states, layer), vocabulary, ceiling=job.options.ceiling
        )
        assert_layer(atlas, layer, expected)


def assert_layer(atlas: Atlas, layer: int, expected: LayerRanks) -> None:
    for stored, attribute in (
        ("promotion_rank", "promotion"),
        ("suppression_rank", "suppression"),
        ("control_rank", "control"),
        ("cell_promotion_rank", "cell_promotion"),
        ("cell_suppression_rank", "cell_suppression"),
    ):
        np.testing.assert_array_equal(
            atlas.dataset[stored].values[layer], getattr(expected, attribute), err_msg=f"{stored} of {layer}"
        )
