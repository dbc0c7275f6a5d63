"""Heads whose jobs were written into the weights are called, and no others; random models are not called."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch

import headatlas as ha
from headatlas.atlas import Atlas
from headatlas.looking.measuring import run_behaviour
from headatlas.mapping import prepared
from headatlas.mapping.prepared import PreparedMap
from headatlas.mapping.run import map_heads
from tests.looking.planted import PLANTED, planted_model, some_relation
from tests.mapping.checkpoints import save, tiny_model, word_tokenizer


def test_planted_heads_are_called_and_no_others(watched: Path, text: Path) -> None:
    frame = ha.behaviour(Atlas.open(watched), text=text)
    called = frame[frame["called"]]
    assert set(zip(called["behaviour"], called["layer"], called["head"], strict=True)) == PLANTED
    value = frame.set_index(["behaviour", "layer", "head"])["value"]
    assert all(value[at] > 0.9 for at in PLANTED if at[0] != "induction")
    # Even heads have the level of even heads, exactly.
    even = frame[(frame["layer"] == 1) & (frame["head"] == 2)]
    np.testing.assert_allclose(even["value"], even["expected"], rtol=2e-2, atol=1e-5)
    assert not (even["q"] < 0.01).any()


def test_what_a_row_says(watched: Path, text: Path) -> None:
    frame = ha.behaviour(Atlas.open(watched), text=text)
    assert list(frame.columns) == [
        *("layer", "head", "behaviour", "value", "expected", "low", "high", "p", "q", "called")
    ]
    assert ((frame["low"] <= frame["value"]) & (frame["value"] <= frame["high"])).all()
    described = frame["behaviour"].isin(["entropy", "distance", "distance_variance"])
    assert frame.loc[described, "q"].isna().all() and frame.loc[~described, "q"].notna().all()
    assert (frame["q"] >= frame["p"])[~described].all()
    assert not {"sink_parameter", "digits"} & set(frame["behaviour"])
    assert "60 sequences of words.txt" in frame.attrs["caption"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("seed", [0, 1])
def test_random_models_are_not_called(family: str, seed: int, text: Path, tmp_path: Path) -> None:
    model = tiny_model(family).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.08)
    frame = _watched(model, tmp_path, text)
    tested = frame[frame["q"].notna()]
    assert len(tested) > 100
    assert tested["called"].sum() <= 0.01 * len(tested)


def test_p_is_uniform_where_there_is_nothing(watched: Path) -> None:
    """Sequences of pure chance: the share of small p is the nominal one."""
    from headatlas.looking.measuring import compared

    rng = np.random.default_rng(0)
    values = rng.beta(2.0, 8.0, size=(60, 100, 100))
    found = compared("any", values, np.full(values.shape, 0.2))
    assert 0.04 < (found.p < 0.05).mean() < 0.06


def test_the_model_of_a_map_is_not_opened_again(watched: Path, text: Path, tmp_path: Path) -> None:
    opened: list[PreparedMap] = []
    model = save(planted_model(), tmp_path / "model")
    atlas = map_heads(
        model, relations=[some_relation()], lens="maps", out=tmp_path / "out", opened=opened.append
    )
    with patch.object(prepared, "open_checkpoint", side_effect=AssertionError("opened again")):
        found = run_behaviour(atlas, prepared=opened[0], text=text).frame()
    expected = ha.behaviour(Atlas.open(watched), text=text)
    pd.testing.assert_frame_equal(found, expected, check_like=True)


def _watched(model: torch.nn.Module, folder: Path, text: Path) -> object:
    atlas = map_heads(model, word_tokenizer(), relations=[some_relation()], lens="maps", out=folder / "out")
    return ha.behaviour(atlas, model, word_tokenizer(), text=text)
