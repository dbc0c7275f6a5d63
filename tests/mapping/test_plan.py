"""The plan: sizes, bytes and notes, from headers alone; and the speed of the machine, measured once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from headatlas.atlas.relation_scores import SIGNS
from headatlas.errors import HeadatlasError
from headatlas.evidence.texts import LENGTH, shipped_texts
from headatlas.lenses import NeutralStates, lens_named
from headatlas.lenses.forward import CPU
from headatlas.looking.sequences import BLOCKS, PER_BLOCK
from headatlas.mapping import bounds, machine
from headatlas.mapping import plan as plans
from headatlas.mapping.machine import Machine, Rates
from headatlas.mapping.plan import Memory, plan
from headatlas.mapping.prepared import MapOptions, open_for, prepare_map
from headatlas.mapping.run import map_heads
from headatlas.mapping.vocabulary import Vocabulary
from headatlas.relations import drawn
from headatlas.weights import safetensors_source
from tests.mapping.checkpoints import (
    VOCAB,
    random_relations,
    relation,
    save,
    tiny_model,
    word,
    word_tokenizer,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_model("llama"), tmp_path_factory.mktemp("plan") / "tiny")


def test_a_plan_says_what_a_map_reads(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> None:
        pytest.fail("a plan reads headers only")

    monkeypatch.setattr(safetensors_source.SafetensorsSource, "read", read)
    relations = random_relations()
    neutral = plan(model, relations=relations)
    assert (neutral.model, neutral.family, neutral.format, neutral.lens) == (
        *("tiny", "llama", "safetensors"),
        "neutral",
    )
    assert (neutral.n_layers, neutral.n_heads, neutral.n_kv_heads) == (3, 4, 2)
    assert (neutral.d_model, neutral.d_head, neutral.vocab) == (32, 8, VOCAB)
    assert neutral.n_relations == 4
    assert neutral.n_sources == len({pair.source for item in relations for pair in item.pairs})
    parameters = sum(p.numel() for p in tiny_model("llama").parameters())
    assert neutral.parameters == parameters and neutral.bytes_to_read == 4 * parameters
    assert any("must fit in memory" in note for note in neutral.notes)
    maps = plan(model, relations=relations, lens="maps")
    assert maps.bytes_to_read < neutral.bytes_to_read
    assert not any("must fit in memory" in note for note in maps.notes)
    told = [any("measures where heads look" in note for note in each.notes) for each in (neutral, maps)]
    assert told == [True, False]
    json.dumps(neutral.to_dict(), allow_nan=False)


def test_the_texts_that_heads_are_watched_on_are_as_long_as_planned() -> None:
    assert (len(shipped_texts()) + PER_BLOCK * len(BLOCKS)) * LENGTH == plans.WATCHED_TOKENS


def test_larger_questions_need_more(model: Path) -> None:
    small, large = (plan(model, relations=items) for items in (random_relations()[3:], random_relations()))
    assert large.n_sources > small.n_sources and large.memory_bytes > small.memory_bytes
    assert large.seconds_least >= small.seconds_least > 0
    assert large.seconds_most >= small.seconds_most > small.seconds_least


def test_a_sample_of_sources_needs_less(model: Path) -> None:
    relations = random_relations()
    whole, part, all_of_them = (plan(model, relations=relations, sources=n) for n in (None, 30, 40))
    drawn_words = {w for r in relations for w in drawn([pair.source for pair in r.pairs], 30)}
    assert part.n_sources == len(drawn_words) < whole.n_sources == all_of_them.n_sources
    assert part.memory_bytes < whole.memory_bytes
    assert not any("sample" in note for note in whole.notes)
    assert any("at most 30 of its sources, a sample" in note for note in part.notes)
    for wrong in (29, True, "some", 30.0):
        with pytest.raises(HeadatlasError, match=f"`sources` is {wrong!r}: it must be a whole number"):
            plan(model, relations=relations, sources=wrong)


def test_time_follows_from_the_measured_speed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """32 dimensions, 3 × 4 heads, a vocabulary of 300; rates so low that every part shows."""
    relations = random_relations()
    parameters = sum(p.numel() for p in tiny_model("llama").parameters())
    sources = len({pair.source for item in relations for pair in item.pairs})
    logits, steps = 2 * 12 * sources * VOCAB * 32, 12 * sources * 32
    forward = 2 * (parameters - VOCAB * 32) * sources * 4

    def planned(lens: str, *speed: float) -> tuple[float, float]:
        monkeypatch.setattr(plans, "rates", lambda _: Rates(*speed))
        found = plan(model, relations=relations, lens=lens)
        assert any(f"{speed[0] / 1e9:.3g} (float32)" in note for note in found.notes)
        return found.seconds_least, found.seconds_most

    maps = 2 + logits / 54 / 1e5 + 90 * steps / 1e6, 10 + logits / 18 / 1e5 + 520 * steps / 1e6
    assert planned("maps", 1e5, 1.9e5, 1e6) == pytest.approx(maps, abs=0.1)
    halved = 2 + logits / 54 / 4e5 + 90 * steps / 1e6, 10 + logits / 18 / 4e5 + 520 * steps / 1e6
    assert planned("maps", 1e5, 4e5, 1e6) == pytest.approx(halved, abs=0.1), "bfloat16 pays"
    neutral = (
        2 + logits / 37 / 1e5 + 90 * steps / 1e6 + 1.1 * forward / 1e5,
        10 + logits / 13 / 1e5 + 520 * steps / 1e6 + 1.8 * forward / 0.8e5,
    )
    assert planned("neutral", 1e5, 1e5, 1e6) == pytest.approx(neutral, abs=0.1)
    slower = planned("neutral", 0.5e5, 0.5e5, 0.5e6)
    assert slower == pytest.approx((2 * neutral[0] - 2, 2 * neutral[1] - 10), abs=0.1)


def test_a_loaded_model_has_a_plan() -> None:
    found = plan(tiny_model("gpt2"), word_tokenizer(), relations=random_relations())
    assert (found.family, found.format, found.n_kv_heads) == ("gpt2", "module", 4)


def test_a_missing_tokenizer_is_said_beforehand(tmp_path: Path) -> None:
    folder = save(tiny_model("llama"), tmp_path / "bare")
    said = "holds no tokenizer"
    assert not [note for note in plan(folder, relations=random_relations()).notes if said in note]
    for file in folder.glob("*token*"):
        file.unlink()
    assert [note for note in plan(folder, relations=random_relations()).notes if said in note]


def test_a_plan_leaves_out_and_refuses_what_a_map_does(model: Path, tmp_path: Path) -> None:
    small = relation("small", [(word(at), [word(at + 9)]) for at in range(20, 23)])
    why = "3 usable sources, at least 30 needed"
    assert f"left out: small ({why})" in plan(model, relations=[*random_relations(), small]).notes
    assert not any("left out" in note for note in plan(model, relations=random_relations()).notes)
    for refuses in (plan, map_heads):
        with pytest.raises(HeadatlasError, match=rf"no relation can be used .*\(small: {why}\)"):
            refuses(model, relations=[small])
    first = relation("first", [(word(at), [f"{word(at)} {word(at + 1)}"]) for at in range(20, 55)])
    assert plan(model, relations=[first], target_policy="first-token").n_relations == 1
    with pytest.raises(HeadatlasError, match="0 usable sources"):
        plan(model, relations=[first])


def test_what_cannot_be_planned_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(HeadatlasError, match="there is no lens"):
        plan(model, lens="none")
    with pytest.raises(HeadatlasError, match="nowhere"):
        plan(tmp_path / "nowhere")
    with pytest.raises(HeadatlasError, match=r"missing\.csv"):
        plan(model, relations=tmp_path / "missing.csv")


def test_memory_counts_what_a_map_holds(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts of the estimate that have a size against the arrays themselves, each stage alone."""
    for name in ("LIBRARY_BYTES", "TOKENIZER_BYTES", "KEPT_BYTES", "WORKING_BYTES"):
        monkeypatch.setattr(plans, name, 0)
    monkeypatch.setattr(plans, "batch_tokens", lambda *_: 0)
    relations, neutral = random_relations(), lens_named("neutral")
    opened = open_for(neutral, model, None, remote=False)
    prepared = prepare_map(model, None, relations, MapOptions(neutral))
    n_sources = len(prepared.layout.sources)

    data = map_heads(model, relations=relations).dataset
    stored = sum(data[f"{kind}{sign}_rank"].nbytes for kind in ("", "cell_") for sign in SIGNS)
    a_head = plans._ranks_of_a_head(relations, None)
    assert stored <= 3 * 4 * a_head <= 1.5 * stored
    machine, memory = Machine((CPU,), 1 << 40), Memory(opened, neutral, n_sources)
    assert memory.needed(machine, ranks=1 << 20) == 3 * 4 << 20

    weights = sum(each.nbytes for each in opened.modules().parameters())
    states = NeutralStates.compute(
        prepared.model, prepared.layout.sources, neutral.prefixes, model.parent / "states", identity="test"
    )
    layers = [states.layer(layer) for layer in range(3)]
    forward = weights + sum(each.x.nbytes + each.control.nbytes for each in layers)
    assert forward <= memory.forward <= 2 * forward

    vocabulary = Vocabulary.read(opened.unembed, prepared.competing)
    held = vocabulary.rows.nbytes + vocabulary.bfloat16.nbytes
    held += layers[0].x.nbytes + layers[0].control.nbytes
    assert held <= memory.held


def test_small_layers_leave_freed_memory_behind(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, machine = open_for(lens_named("maps"), model, None, remote=False), Machine((CPU,), 1 << 40)
    memory = Memory(opened, lens_named("maps"), 100)
    small = memory.needed(machine)
    monkeypatch.setattr(plans, "WORTH_TRIMMING", 0)
    assert small - memory.needed(machine) == plans.KEPT_BYTES


def test_memory_is_not_underestimated(model: Path) -> None:
    """Weights, states of all layers and U must at least fit."""
    found = plan(model, relations=random_relations())
    states = found.n_layers * found.n_sources * found.d_model * 4 * 2
    assert found.memory_bytes > 4 * found.parameters + states


# The speed of the machine: measured once, times the cores in use ------------------------------------


def test_cores_multiply_and_share_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "measured", lambda _: Rates(1.0, 29.0, 5.0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert machine.rates(CPU) == Rates(6.0, 6 * 29.0, 5.0)
    assert machine.rates(torch.device("cuda", 0)) == Rates(1.0, 29.0, 5.0)


def test_a_measurement_is_of_this_machine_and_made_once() -> None:
    torch.set_num_threads(2)
    machine.measured.cache_clear()
    found = machine.measured(CPU)
    assert torch.get_num_threads() == 2
    assert all(rate > 1e6 for rate in (found.float32, found.bfloat16, found.memory))
    assert machine.measured(CPU) is found


@pytest.mark.parametrize(("half", "pays"), [(1.9, False), (2.1, True)])
def test_bounds_are_made_of_what_multiplies_faster(
    half: float, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "rates", lambda _: Rates(1.0, half, 1.0))
    assert bounds.bfloat16_pays(CPU) is pays
    assert bounds.bfloat16_pays(torch.device("cuda", 0)) and not bounds.bfloat16_pays(torch.device("mps"))
