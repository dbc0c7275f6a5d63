"""On another device, and in hybrid models: where the work is done, and layers without heads."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from headatlas.architectures import open_model
from headatlas.atlas import Atlas
from headatlas.errors import HeadatlasError
from headatlas.evidence import opening
from headatlas.evidence.asking import Questions, ablated
from headatlas.evidence.recording import watch
from headatlas.evidence.statistics import agreement
from headatlas.evidence.texts import Text
from headatlas.lenses import forward
from headatlas.lenses.forward import running
from headatlas.mapping.run import map_heads
from headatlas.options import AblationChoices
from headatlas.weights import open_checkpoint
from tests.evidence.conftest import Planted, run_ablation, run_inference
from tests.evidence.planted import template_file
from tests.lenses.test_devices import META, Elsewhere
from tests.mapping.checkpoints import relation, save, tiny_model, word, word_tokenizer

TEXTS = [Text((1, 9, 10, 11), 2), Text((1, 40, 41), 2)]
PROMPTS = [(1, 20, 21, 30), (1, 20, 21, 31, 32)]


def test_the_model_works_where_it_was_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Watching, means, ablation and answers: every product on the device, nothing mixed."""
    model = open_model(open_checkpoint(save(tiny_model("llama"), tmp_path / "model")))
    monkeypatch.setitem(forward.MOST_TOKENS, "meta", 1000)
    (tmp_path / "seen").mkdir()
    # transformers looks at a number to see whether rows are packed; the meta device has none.
    packed = patch("transformers.masking_utils.find_packed_sequence_indices", return_value=None)
    with packed, Elsewhere() as elsewhere, running(model, META) as modules:
        watch(model, modules, TEXTS, tmp_path / "seen")
        asked = Questions(model, modules, PROMPTS, "mean")
        assert asked.answers().shape == (2,)
        assert asked.answers([(1, 2)]).shape == (2,)
    assert elsewhere.products["meta"] and not elsewhere.products["cpu"] and not elsewhere.mixed


def test_a_model_too_large_for_a_gpu_is_refused_before_it_is_loaded(mapped: Planted) -> None:
    with (
        patch.object(opening, "pick_device", return_value=torch.device("cuda", 0)),
        patch.object(opening, "free_memory", return_value=10**9),
        patch("headatlas.evidence.ablation_run.running", side_effect=AssertionError("loaded")),
        pytest.raises(
            HeadatlasError, match=r"on cuda:0 and needs about 2 GB there, 1 GB are free; use `device=cpu`"
        ),
    ):
        run_ablation(mapped.atlas, templates=mapped.templates)


@pytest.mark.parametrize("family", ["lfm2", "jamba"])
def test_a_hybrid_model(family: str, tmp_path: Path) -> None:
    """Layers without heads are passed over; sharing a prefix would not be exact there."""
    model = tiny_model(family).eval()
    relations = [
        relation(name, [(word(20 + at), [word(first + at)]) for at in range(35)], category="Knowledge")
        for name, first in (("one", 60), ("two", 120))
    ]
    atlas = map_heads(model, word_tokenizer(), relations=relations, out=tmp_path / "out")
    assert atlas.layers_without_heads
    found = run_inference(atlas, model, word_tokenizer(), templates=["The {}"])
    atlas = Atlas.open(tmp_path / "out")
    assert len(atlas.evidence.dynamics) == 1
    n_heads = (atlas.n_layers - len(atlas.layers_without_heads)) * atlas.n_heads
    assert (agreement(atlas, found)["n_heads"] == n_heads).all()
    loose = atlas.at(tau=0.0, criterion="tau")
    assert not loose.sel(called=True).empty
    with patch("headatlas.evidence.ablation_run.MIN_BASE", 0.0):
        done = run_ablation(
            loose,
            model,
            word_tokenizer(),
            only=["one"],
            templates=template_file(tmp_path, tasks={"one": "The {}"}),
            choices=AblationChoices(shots=2, max_heads=1, method="mean"),
        )
    assert [each.relation for each in done.done] == ["one"] or "calls no head" in done.skipped["one"]


def test_answers_of_a_hybrid_model_are_those_of_whole_prompts() -> None:
    modules = tiny_model("lfm2").eval()
    model = open_model(open_checkpoint(modules, word_tokenizer()))
    layer = model.layers_with_heads[-1]
    prompts = [(1, 20, 21, 22, 23, 24, each) for each in (30, 31, 32)]
    asked = Questions(model, modules, prompts)
    for heads in ([], [(layer, 0), (layer, 1)]):
        with ablated(model, modules, heads), torch.inference_mode():
            wanted = [int(modules(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) for ids in prompts]
        np.testing.assert_array_equal(asked.answers(heads), wanted)
