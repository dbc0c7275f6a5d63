"""Evidence finds the heads whose jobs were written into the weights; it is stored, resumed, or refused."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock, patch

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel

from headatlas.atlas import Atlas
from headatlas.atlas.evidence import COLUMNS, CONTEXT, WITHOUT
from headatlas.atlas.layout import Layout
from headatlas.atlas.store import read_array
from headatlas.errors import HeadatlasError
from headatlas.evidence import ablation_run as ablation_module
from headatlas.evidence import inference_run as inference_module
from headatlas.evidence.ablation_run import steps_to
from headatlas.evidence.inference_run import InferenceTexts
from headatlas.evidence.opening import relations_of
from headatlas.evidence.statistics import agree, agreement, sampling, summarise_ablations
from headatlas.mapping import workers
from headatlas.mapping.plan import CONTEXT_TEXTS, TOKENS_AFTER
from headatlas.mapping.run import map_heads
from headatlas.options import AblationChoices
from headatlas.progress import Progress
from headatlas.relations import drawn
from headatlas.weights import load_modules, open_checkpoint
from tests.evidence.conftest import Planted, run_ablation, run_inference
from tests.evidence.planted import HEADS, LAYER, N, template_file
from tests.mapping.checkpoints import word_tokenizer
from tests.mapping.planting import VOCAB, random_model

NO_SHOTS = AblationChoices(shots=0)


def test_what_evidence_says_of_the_planted_heads(examined: Planted) -> None:
    called = examined.atlas.sel(called=True)
    assert {name: (LAYER, head) for name, head in HEADS.items()} == {
        row["relation"]: (row["layer"], row["head"]) for _, row in called.iterrows()
    }
    assert len(called) and len(called[called["confirmed_with_context"]]) == len(called)
    assert called["confirmed_by_ablation"].all()
    assert (called["context"] > 0.7).all() and (called["without_context"] > 0.7).all()
    # Two of three templates end with the source, and heads look there.
    assert (called["attention"] > 0.5).all()
    others = examined.atlas.table().query("not implements and not suppresses")
    assert others["confirmed_with_context"].isna().all() and others["confirmed_by_ablation"].isna().all()


def test_agreement_is_over_heads(examined: Planted) -> None:
    atlas = examined.atlas
    frame = agreement(atlas).set_index(["relation", "kind", "sign"])
    assert (frame.loc[("first", CONTEXT, "promotion"), "pearson"]) > 0.9
    assert (frame["n_heads"] == atlas.n_layers * atlas.n_heads).all()
    scores = [atlas.evidence.scores(name, WITHOUT, "promotion") for name in HEADS]
    each = [agree(*both)["pearson"] for both in scores if both is not None]
    assert frame.loc[("mean", WITHOUT, "promotion"), "pearson"] == pytest.approx(np.mean(each))
    static = atlas.top("first", 12).sort_values(["layer", "head"])["score"].to_numpy()
    np.testing.assert_allclose(scores[0][0].ravel(), static)  # every template could use every source


def test_ablation_kills_the_task_and_nothing_else(examined: Planted) -> None:
    frame = summarise_ablations(examined.atlas.evidence.ablations).set_index("relation")
    assert sorted(frame.index) == ["first", "second"]
    assert (frame["base"] > 0.9).all() and (frame["without_relation"] == 0).all()
    assert (frame["n_heads"] == 1).all() and (frame["area_low"] > 0.2).all()
    assert (frame["without_random_low"] > 0.5).all()
    assert frame["controls"].tolist() == ["second", "first"]
    assert (frame["without_control"] > 0.9).all()


def test_the_mean_in_place_of_a_head(examined: Planted, tmp_path: Path) -> None:
    """Other sources' answers are no answer; both methods stay beside each other in the atlas."""
    planted = examined.copied(tmp_path / "out")
    done = run_ablation(
        planted.atlas,
        only=["first"],
        templates=planted.templates,
        choices=AblationChoices(shots=0, method="mean"),
    ).done
    assert summarise_ablations(done)["without_relation"].item() <= 0.1
    kept = [(each.relation, each.method) for each in planted.atlas.evidence.ablations]
    assert kept == [("first", "mean"), ("first", "zero"), ("second", "zero")]


def test_evidence_is_read_with_other_thresholds(examined: Planted) -> None:
    """Dynamic ranks are stored, so k changes afterwards and confirmation follows the criterion."""
    loose, strict = (examined.atlas.at(k=k) for k in (30, 1))
    wide, narrow = (each.sel(relation="first").iloc[0]["context"] for each in (loose, strict))
    assert wide > narrow > 0
    never = examined.atlas.at(tau=0.99).sel(relation="first")
    assert not never["confirmed_with_context"].any()


def test_an_atlas_without_evidence_has_its_old_table(mapped: Planted) -> None:
    atlas = mapped.atlas
    assert not atlas.evidence
    assert not set(COLUMNS) & set(atlas.table().columns)
    assert agreement(atlas).empty


def test_nothing_is_measured_twice(examined: Planted, tmp_path: Path) -> None:
    planted = examined.copied(tmp_path / "out")
    with patch.object(inference_module, "watch", side_effect=AssertionError("watched again")):
        run_inference(planted.atlas, templates=planted.templates)
    with patch.object(ablation_module._Run, "_measured", side_effect=AssertionError("measured again")):
        again = run_ablation(planted.atlas, templates=planted.templates, choices=NO_SHOTS)
    assert len(again.done) == 2


class Killed(BaseException):
    """Stands for Ctrl-C."""


def same_ranks(ours: Atlas, theirs: Atlas) -> None:
    for name in ("promotion_rank", "suppression_rank", "cell_promotion_rank", "cell_suppression_rank"):
        ranks = [read_array(each.dataset, name) for each in (ours, theirs)]
        np.testing.assert_array_equal(*ranks, err_msg=name)


def test_a_killed_inference_goes_on(mapped: Planted, examined: Planted, tmp_path: Path) -> None:
    """All templates go layer by layer together: of the layers that are there none is ranked again."""
    planted = mapped.copied(tmp_path / "out")
    templates = ["a {}", "{} of"]
    real, calls = workers.map_layer, []

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) > 2:
            raise Killed
        return real(*args, **kwargs)

    with patch.object(workers, "map_layer", dying), pytest.raises(Killed):
        run_inference(planted.atlas, templates=templates)
    assert not planted.atlas.evidence.dynamics
    with patch.object(workers, "map_layer", side_effect=real) as counted:
        run_inference(planted.atlas, templates=templates)
    assert counted.call_count == 3 - 2
    whole = {each.template: each for each in examined.atlas.evidence.dynamics}
    for each in planted.atlas.evidence.dynamics:
        for kind in (CONTEXT, WITHOUT):
            same_ranks(each.of(kind), whole[each.template].of(kind))


def test_a_killed_ablation_goes_on(mapped: Planted, tmp_path: Path) -> None:
    planted = mapped.copied(tmp_path / "out")
    real, done = ablation_module._Run._measured, []

    def dying(self, name, *rest):
        if done:
            raise Killed
        done.append(name)
        return real(self, name, *rest)

    with patch.object(ablation_module._Run, "_measured", dying), pytest.raises(Killed):
        run_ablation(planted.atlas, templates=planted.templates, choices=NO_SHOTS)
    assert [each.relation for each in planted.atlas.evidence.ablations] == ["first"]
    with patch.object(ablation_module._Run, "_measured", autospec=True, side_effect=real) as counted:
        found = run_ablation(planted.atlas, templates=planted.templates, choices=NO_SHOTS)
    assert [call.args[1] for call in counted.call_args_list] == ["second"]
    assert [each.relation for each in found.done] == ["first", "second"]


def test_a_model_that_is_not_the_atlas_s(mapped: Planted) -> None:
    other = random_model("llama", seed=5)
    with pytest.raises(HeadatlasError, match="differs from the atlas's in weights"):
        run_inference(mapped.atlas, other, word_tokenizer(VOCAB), templates=mapped.templates)


def test_a_model_too_large_for_memory_is_refused_before_it_is_loaded(mapped: Planted) -> None:
    with (
        patch("headatlas.evidence.opening.this_machine", return_value=Mock(memory=10**6)),
        patch("headatlas.evidence.ablation_run.running", side_effect=AssertionError("loaded")),
        pytest.raises(HeadatlasError, match=r"loads the whole model and needs about \d+ GB of memory"),
    ):
        run_ablation(mapped.atlas, templates=mapped.templates)


def test_an_atlas_in_memory_cannot_hold_evidence(mapped: Planted) -> None:
    atlas = mapped.atlas
    with pytest.raises(HeadatlasError, match=r"into a folder .* or copy the atlas"):
        run_inference(Atlas(atlas.dataset, atlas.provenance, atlas.thresholds))


@pytest.mark.parametrize(
    ("task", "choices", "why"),
    [
        ("of {} ,", NO_SHOTS, r"base accuracy is 0\.\d\d, at least 0.2 needed"),
        (
            "of {},",
            NO_SHOTS,
            r"0 pairs can be asked, at least 20 needed: source is cut differently in the text \(35\)",
        ),
        (
            "The {}",
            AblationChoices(shots=20),
            r"15 pairs can be asked, at least 20 needed; examples are not asked, see `shots`",
        ),
    ],
)
def test_relations_that_cannot_be_ablated_are_listed(
    mapped: Planted, tmp_path: Path, task: str, choices: AblationChoices, why: str
) -> None:
    planted = mapped.copied(tmp_path / "out")
    file = template_file(tmp_path, tasks={"first": task})
    found = run_ablation(planted.atlas, only=["first"], templates=file, choices=choices)
    assert not found.done
    assert re.match(why, found.skipped["first"])


def test_relations_without_template_or_heads_are_listed(mapped: Planted, tmp_path: Path) -> None:
    planted = mapped.copied(tmp_path / "out")
    file = template_file(tmp_path, tasks={"first": "The {}"})
    atlas = planted.atlas.at(tau=1.0, q_max=0.0)
    found = run_ablation(atlas, templates=file, choices=NO_SHOTS)
    assert found.skipped == {
        "first": "the atlas calls no head for it",
        "second": "there is no task template for it; give one with `templates`",
    }
    misspelt = template_file(tmp_path, tasks={"frist": "The {}"})
    found = run_ablation(planted.atlas, templates=misspelt, choices=NO_SHOTS)
    assert not found.done
    assert found.skipped["frist"] == "a template is given for it, but the atlas has no such relation"


def test_of_several_runs_of_a_template_the_one_of_most_relations_is_read(
    examined: Planted, tmp_path: Path
) -> None:
    """q is over a run's relations, so the answer must not depend on which run comes last."""
    planted = examined.copied(tmp_path / "out")
    parts = [run_inference(planted.atlas, only=[name], templates=["a {}"])[0].context.path for name in HEADS]
    evidence = planted.atlas.evidence
    runs = {each.context.path for each in evidence.dynamics}
    assert len(runs) == 5 and runs >= set(parts)
    for name in HEADS:
        read = evidence.templates_of(name)
        assert len(read) == 3 and all(set(each.context.relation_scores) == set(HEADS) for each in read)


def test_a_head_is_confirmed_if_any_of_its_tasks_confirms_it(examined: Planted) -> None:
    """Another task may have the smaller q and be no better than a random head."""
    evidence = examined.atlas.evidence
    tests = evidence.single_heads
    row = tests[tests["relation"] == "first"].iloc[0]
    other = {**row, "shots": 5, "q": row["q"] / 2, "loss": 0.5, "loss_random": 0.6, "confirmed": False}
    evidence.__dict__["single_heads"] = pd.concat([tests, pd.DataFrame([other])], ignore_index=True)
    table = evidence.table
    shown = table[(table["relation"] == "first") & table["loss_alone"].notna()].iloc[0]
    assert bool(shown["confirmed_by_ablation"]) and shown["loss_alone"] == row["loss"]


def test_a_template_in_which_no_source_is_itself(mapped: Planted, tmp_path: Path) -> None:
    planted = mapped.copied(tmp_path / "out")
    with pytest.raises(HeadatlasError, match="cuts too many sources differently there"):
        run_inference(planted.atlas, templates=["a{}"])


def test_several_layers_missing(mapped: Planted, tmp_path: Path) -> None:
    """Of an atlas that is not whole, what is mapped is compared."""
    folder = tmp_path / "out"
    map_heads(mapped.model, relations=relations_of(mapped.atlas), out=folder, layers="1-2")
    found = run_inference(Atlas.open(folder), templates=["a {}"])
    frame = agreement(Atlas.open(folder), found)
    assert (frame["n_heads"] == 8).all()
    assert len(Atlas.open(folder).table()) == 2 * 8
    shutil.rmtree(folder)


def test_steps() -> None:
    assert [steps_to(n) for n in (1, 2, 5, 8, 32)] == [
        [1],
        [1, 2],
        [1, 2, 4, 5],
        [1, 2, 4, 8],
        [1, 2, 4, 8, 16, 32],
    ]


def test_random_heads_are_drawn_from_the_others(examined: Planted) -> None:
    for each in examined.atlas.evidence.ablations:
        for draw in range(5):
            assert not set(each.heads(f"random {draw}")) & set(each.heads())
        assert each.provenance["template"] == "The {}" and each.provenance["lens"]["name"] == "neutral"


def test_an_atlas_of_a_loaded_model_needs_it_again(tmp_path: Path, mapped: Planted) -> None:
    model = load_modules(open_checkpoint(mapped.model))
    relations = relations_of(mapped.atlas)
    atlas = map_heads(model, word_tokenizer(VOCAB), relations=relations, out=tmp_path, layers="2")
    with pytest.raises(HeadatlasError, match="made from a model in memory"):
        run_inference(atlas, templates=["a {}"])
    found = run_inference(atlas, model, word_tokenizer(VOCAB), templates=["a {}"], only=["first"])
    assert list(found[0].context.relation_scores) == ["first"]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Tokens that go through the model's body, calls of the engine and rows given to it."""
    found: Counter[str] = Counter()
    real_map, real_running = workers.map_layer, inference_module.running

    def count_map(layout: Layout, *args: object, **kwargs: object) -> object:
        found["layers"] += 1
        found["rows"] += len(layout.sources)
        return real_map(layout, *args, **kwargs)

    def count_tokens(_: object, __: object, kwargs: dict[str, torch.Tensor]) -> None:
        found["tokens"] += kwargs["input_ids"].numel()

    @contextmanager
    def running(*args: object) -> Iterator[PreTrainedModel]:
        with real_running(*args) as modules:
            handle = modules.base_model.register_forward_pre_hook(count_tokens, with_kwargs=True)
            yield modules
            handle.remove()

    monkeypatch.setattr(workers, "map_layer", count_map)
    monkeypatch.setattr(inference_module, "running", running)
    return found


def test_templates_share_passes_and_rows(mapped: Planted, counted: Counter[str], tmp_path: Path) -> None:
    """What texts begin with goes through once; a layer is ranked once for all templates and kinds."""
    planted = mapped.copied(tmp_path / "out")
    templates = ["a of {}", "a of {} of", "a of {} of a"]
    run_inference(planted.atlas, templates=templates)
    n = 2 * N
    # "<s>", "a", "of" once; every source once, though three templates hold it; then what follows it.
    assert counted["tokens"] == 3 + n * (1 + 1 + 1)
    # With context every text is a row; without, the templates begin alike and each source is a row once.
    assert counted["layers"] == 3 and counted["rows"] == 3 * (3 * n + n)
    dynamics = {each.template: each for each in planted.atlas.evidence.dynamics}
    same_ranks(dynamics[templates[0]].without, dynamics[templates[2]].without)
    alone = mapped.copied(tmp_path / "alone")
    for template in templates[1:]:
        run_inference(alone.atlas, templates=[template])
    for each in alone.atlas.evidence.dynamics:
        for kind in (CONTEXT, WITHOUT):
            same_ranks(each.of(kind), dynamics[each.template].of(kind))


def test_templates_of_a_large_model_go_in_groups(
    mapped: Planted, counted: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = mapped.copied(tmp_path / "out")
    monkeypatch.setattr(inference_module, "RECORDED_BYTES", 1)
    found = run_inference(planted.atlas, templates=["a {}", "{} of"])
    assert counted["layers"] == 2 * 3 and len(found) == 2


def test_a_sample_of_sources(mapped: Planted, counted: Counter[str], tmp_path: Path) -> None:
    """The same words whatever else is asked; all sources, where they were asked too, are what is read."""
    planted = mapped.copied(tmp_path / "out")
    told: list[Progress] = []
    found = run_inference(planted.atlas, templates=["a {}"], sources=30, progress=told.append)
    assert counted["rows"] == 3 * 2 * 60 and counted["tokens"] == 2 + 60
    [said] = [each.note for each in told if each.stage == "estimate"]
    assert said.startswith("60 texts, 62 tokens through the model, 120 rows a head to rank: ")
    names = planted.atlas.relations["relation"]
    frame = agreement(planted.atlas, found)
    assert (frame["n_sources"] == 30).all()
    assert sampling(found) == (
        "of relations with more than 30 sources a sample was asked, by which a score of a half is known to "
        "± 0.17 (95 %)"
    )
    used = read_array(found[0].context.dataset, "pair_source") >= 0
    words = read_array(found[0].context.dataset, "source")
    of = read_array(found[0].context.dataset, "pair_relation")
    for at in range(len(names)):
        assert set(words[used & (of == at)]) == set(drawn(words[of == at], 30))
    whole = run_inference(planted.atlas, templates=["a {}"], sources="all")
    assert sampling(whole) == ""
    ranks = [read_array(each[0].context.dataset, "promotion_rank") for each in (found, whole)]
    np.testing.assert_array_equal(ranks[0][..., used], ranks[1][..., used])
    assert [planted.atlas.evidence.sources_of(name) for name in names] == [N, N]
    for wrong in (29, "some"):
        with pytest.raises(HeadatlasError, match=f"`sources` is {wrong!r}"):
            run_inference(planted.atlas, templates=["a {}"], sources=wrong)  # type: ignore[arg-type]


def test_only_what_is_needed_is_asked(mapped: Planted, tmp_path: Path) -> None:
    """A relation without called heads asks the model nothing; what the whole model answers is stored."""
    planted = mapped.copied(tmp_path / "out")
    real = ablation_module.Questions.answers
    whole: list[int] = []

    def counting(self: object, without: Sequence[int] = ()) -> object:
        whole.append(not without)
        return real(self, without)

    with patch.object(ablation_module.Questions, "answers", counting):
        never = planted.atlas.at(tau=1.0, q_max=0.0)
        run_ablation(never, templates=planted.templates, choices=NO_SHOTS)
        assert not whole
        run_ablation(planted.atlas, only=["first"], templates=planted.templates, choices=NO_SHOTS)
        # The task, that of the one control, and both once more where blocks' outputs are kept.
        assert sum(whole) == 4
        whole.clear()
        told: list[Progress] = []
        asked = {"templates": planted.templates, "choices": NO_SHOTS, "progress": told.append}
        run_ablation(planted.atlas, only=["second"], **asked)
        [said] = [each.note for each in told if each.stage == "estimate"]
        # Of 35 prompts "<s> The {}": twice whole, 1 head in 9 orders, and 1 head alone; the control's once.
        assert said.startswith(f"tasks to ablate: 1; at most {(12 + 1) * (2 + N)} tokens through the model: ")
        assert sum(whole) == 2, "the answers of the whole model are there"


def test_the_plan_knows_the_shipped_templates() -> None:
    templates = InferenceTexts.of(None).templates or ()
    assert len(templates) == CONTEXT_TEXTS
    assert np.mean([len(each.after.split()) for each in templates]) == TOKENS_AFTER
