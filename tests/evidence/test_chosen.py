"""Heads of one's own choice taken out: losses are the model's, random heads are of the same layers."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

import headatlas as ha
from headatlas.atlas import Atlas
from headatlas.atlas.evidence import HeadsAblation
from headatlas.errors import HeadatlasError
from headatlas.evidence import ablation_run as chosen_module
from headatlas.evidence.statistics import summarise_heads
from headatlas.evidence.texts import LENGTH, Template, make_task, running_texts
from headatlas.options import AblationChoices
from headatlas.weights import load_modules, open_checkpoint
from tests.cli.conftest import invoke, parsed
from tests.evidence.conftest import Planted, run_chosen
from tests.evidence.planted import HEADS, LAYER
from tests.mapping.checkpoints import word_tokenizer
from tests.mapping.planting import D_HEAD
from tests.mapping.planting import HEADS as N_HEADS

NO_SHOTS = AblationChoices(shots=0, draws=3)


@pytest.fixture(scope="module")
def without(mapped: Planted, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """The planted model's atlas, with the first planted head taken out."""
    planted = mapped.copied(tmp_path_factory.mktemp("without") / "out")
    run_chosen(
        planted.atlas,
        heads=[(LAYER, HEADS["first"])],
        only=["first", "second"],
        templates=planted.templates,
        choices=NO_SHOTS,
    )
    return planted


def test_its_task_is_lost_and_nothing_else(without: Planted) -> None:
    (found,) = HeadsAblation.all_in(without.atlas.path)
    frame = summarise_heads(found).set_index("on")
    assert list(frame.index) == ["text", "first", "second"]
    first, second = frame.loc["first"], frame.loc["second"]
    assert first["accuracy"] > 0.9 and first["accuracy_without"] == 0 and first["excess_low"] > 1
    assert first["difference_low"] < first["difference"] < first["difference_high"]
    assert second["accuracy_without"] > 0.9 > second["accuracy_random"], "one of three draws is its head"
    assert frame.loc["text", ["accuracy", "accuracy_without", "accuracy_random"]].isna().all()
    assert abs(first["excess"] - (first["difference"] - first["random"])) < 1e-9


def test_losses_are_those_of_the_modules(without: Planted) -> None:
    """Ablated: the head's columns of the output projection are zero. Losses are transformers' own."""
    (found,) = HeadsAblation.all_in(without.atlas.path)
    model = load_modules(open_checkpoint(without.model), torch.float32, {})
    words = word_tokenizer()
    texts = torch.tensor(running_texts(words))
    assert texts.shape[1] == LENGTH and (texts[:, 0] == words.bos_token_id).all()
    task = make_task(
        next(each for each in _relations(without) if each.relation.name == "first"),
        words,
        Template("The ", ""),
        shots=0,
        sources=64,
    )
    output = model.get_submodule(f"model.layers.{LAYER}.self_attn.o_proj")
    for condition in (0, 1):
        if condition:
            first = HEADS["first"] * D_HEAD
            output.weight.data[:, first : first + D_HEAD] = 0
        with torch.no_grad():
            ours = [float(model(row[None], labels=row[None]).loss) for row in texts[:5]]
            answers = [
                -float(model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[sorted(right)].logsumexp(0))
                for ids, right in zip(task.prompts[:5], task.accepted[:5], strict=True)
            ]
        np.testing.assert_allclose(found.of("loss", "text")[condition, :5], ours, rtol=1e-4)
        np.testing.assert_allclose(found.of("loss", "first")[condition, :5], answers, rtol=1e-4, atol=1e-4)


def _relations(planted: Planted) -> tuple[ha.relations.TokenisedRelation, ...]:
    from headatlas.evidence.opening import open_subject

    return open_subject(planted.atlas).relations


def test_random_heads_are_of_the_same_layers(mapped: Planted, without: Planted) -> None:
    (found,) = HeadsAblation.all_in(without.atlas.path)
    assert found.heads == [(LAYER, HEADS["first"])] and len(found.draws) == 3
    heads = [(0, 1), (LAYER, 0), (LAYER, 3)]
    drawn = chosen_module._drawn(heads, N_HEADS, AblationChoices(draws=50))
    assert len(drawn) == 3 * 1 and all(set(draw).isdisjoint(heads) for draw in drawn.values())
    assert all([layer for layer, _ in draw] == [0, LAYER, LAYER] for draw in drawn.values())
    assert len({tuple(draw) for draw in drawn.values()}) == len(drawn)
    everything = [(1, head) for head in range(N_HEADS)]
    assert chosen_module._drawn(everything, N_HEADS, AblationChoices()) == {}


def test_a_whole_layer_has_no_random_heads(mapped: Planted, tmp_path: Path) -> None:
    atlas = mapped.copied(tmp_path / "out").atlas
    frame = ha.evidence.ablation(
        atlas, heads=[(1, head) for head in range(N_HEADS)], templates=mapped.templates, method="mean"
    )
    assert frame["on"].tolist() == ["text"] and frame["difference"].notna().all()
    assert frame[["random", "random_low", "excess", "excess_low"]].isna().all(axis=None)


def test_it_is_stored_and_not_measured_again(without: Planted) -> None:
    again = {"heads": [(LAYER, HEADS["first"])], "templates": without.templates, "draws": 3, "shots": 0}
    with patch.object(chosen_module, "_losses", side_effect=AssertionError("measured again")):
        frame = ha.evidence.ablation(without.atlas, only=["first", "second"], **again)
        assert len(frame) == 3 and frame.attrs["skipped"] == {}
        with pytest.raises(AssertionError, match="measured again"):
            ha.evidence.ablation(without.atlas, only=["first"], **again)
    assert [each["heads"] for each in without.atlas.evidence.provenance()["heads"]] == [["2.0"]]


def test_the_command(without: Planted) -> None:
    words = ("evidence", "ablation", without.folder, "--ablate-heads", "2.0", "--only", "first,second")
    words = (*words, "--shots", 0, "--draws", 3, "--templates", without.templates)
    shown = invoke(*words)
    assert "without 2.0 (output 0), beside 3 draws" in shown.stderr and "beyond random" in shown.stdout
    assert (without.folder / "evidence" / "without-2.0.csv").is_file()
    found = parsed(invoke(*words, "--json"))
    assert found["heads"] == [{"layer": 2, "head": 0}] and [row["on"] for row in found["rows"]] == [
        "text",
        "first",
        "second",
    ]
    assert "evidence: heads" in invoke("info", without.folder).stdout


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("9.0", "there is no head 9.0"),
        ("2-0", "'2-0' is no head; write it LAYER.HEAD"),
        ("2.0,2.0", "head 2.0 is named twice"),
        (",", "--ablate-heads names nothing"),
    ],
)
def test_heads_that_cannot_be_ablated(without: Planted, given: str, said: str) -> None:
    assert said in invoke("evidence", "ablation", without.folder, "--ablate-heads", given, code=2).stderr


def test_no_head_is_named(mapped: Planted) -> None:
    with pytest.raises(HeadatlasError, match="the list of heads is empty"):
        ha.evidence.ablation(Atlas.open(mapped.folder), heads=[])
