"""The benchmarks of large shapes, run on a tiny one: what was planted is found and the truth compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from benchmarks import checkpoints, map_shape, scaling
from benchmarks.comparison import check, ranks
from headatlas.architectures import open_model
from headatlas.atlas import Atlas
from headatlas.lenses import MapsStates, lens_named
from headatlas.mapping.prepared import MapOptions, prepare_map
from headatlas.mapping.run import layer_inputs, map_heads
from headatlas.mapping.vocabulary import Vocabulary
from headatlas.relations import resolve_relations
from headatlas.weights import open_checkpoint
from tests.mapping import oracle
from tests.mapping.cases import random_problem

TINY = checkpoints.SHAPES["tiny"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes") / "tiny"
    checkpoints.write(folder, TINY)
    return folder


@pytest.fixture(scope="module")
def mapped(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    out = tmp_path_factory.mktemp("mapped") / "out"
    return map_heads(tiny, out=out, lens="maps", relations=tiny / "relations")


# Llama-3.1-8B has 8.03 billion parameters; a layer of 70B has 855.7 million.
@pytest.mark.parametrize(
    ("name", "parameters"), [("8b", 8_030_261_248), ("70b", 2 * 128_256 * 8192 + 8192 + 3 * 855_654_400)]
)
def test_a_large_shape_is_exact(
    name: str, parameters: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted without making it: the tensors are made on the device that holds no numbers."""
    shape = checkpoints.SHAPES[name]

    def sized(_: checkpoints._Weights, name: str, rows: int, columns: int, size: float) -> torch.Tensor:
        return torch.empty(rows, columns, dtype=torch.bfloat16, device="meta")

    monkeypatch.setattr(checkpoints._Weights, "_normal", sized)
    monkeypatch.setattr(checkpoints._Weights, "_cheap", sized)
    weights = checkpoints._Weights(shape, 0, False, [], [])
    tensors = [tensor for shard in weights.shards() for tensor in shard.values()]
    assert sum(tensor.numel() for tensor in tensors) == parameters
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}


def test_a_checkpoint_is_sharded_and_opens(tiny: Path) -> None:
    index = json.loads((tiny / checkpoints.INDEX).read_text())
    assert set(index["weight_map"].values()) == {file.name for file in tiny.glob("*.safetensors")}
    model = open_model(open_checkpoint(tiny))
    assert model.dims.n_layers == TINY.layers
    assert model.dims.n_kv_heads == TINY.kv_heads
    with safe_open(tiny / index["weight_map"]["lm_head.weight"], framework="pt") as file:
        assert file.get_slice("lm_head.weight").get_dtype() == "BF16"
    relations = resolve_relations(tiny / "relations")
    assert len(relations) == 20
    assert len({pair.source for relation in relations for pair in relation.pairs}) == TINY.sources


def test_the_same_seed_gives_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "same", TINY)
    checkpoints.write(tmp_path / "other", TINY, seed=1)
    for file in sorted(tiny.glob("*.safetensors")):
        assert (tmp_path / "same" / file.name).read_bytes() == file.read_bytes()
        assert (tmp_path / "other" / file.name).read_bytes() != file.read_bytes()


def test_mlps_after_the_first_can_be_zero(tmp_path: Path, tiny: Path) -> None:
    checkpoints.write(tmp_path / "zero", TINY, zero_mlp=True)
    read = open_checkpoint(tmp_path / "zero").source.read
    assert not read("model.layers.1.mlp.up_proj.weight").any()
    assert read("model.layers.0.mlp.up_proj.weight").any()
    name = "model.layers.1.self_attn.o_proj.weight"
    assert torch.equal(read(name), open_checkpoint(tiny).source.read(name))


def test_planted_heads_are_found_and_nothing_else(tiny: Path, mapped: Atlas) -> None:
    planted = checkpoints.planted_in(tiny)
    assert {head.verb for head in planted} == {"implements", "suppresses"}
    assert {head.layer for head in planted} == {0, 1}
    wanted = {(head.layer, head.head, head.relation, head.verb) for head in planted}
    assert map_shape.called(mapped) == wanted


def test_ranks_in_parts_are_the_oracles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.comparison.COLUMNS", 97)
    layout, inputs, vocabulary = random_problem(3)
    outputs = inputs.values(0) @ inputs.output(0)
    expected = oracle._all_targets(outputs, layout, vocabulary, 32)
    for found, wanted in zip(
        ranks(outputs, vocabulary.columns(layout.targets), vocabulary, 32), expected, strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "name",
    ["promotion_rank", "suppression_rank", "control_rank", "cell_promotion_rank", "cell_suppression_rank"],
)
def test_the_comparison_sees_one_wrong_rank(tiny: Path, mapped: Atlas, name: str) -> None:
    prepared = prepare_map(tiny, None, tiny / "relations", MapOptions(lens_named("maps")))
    head = checkpoints.planted_in(tiny)[0]
    inputs = layer_inputs(prepared, MapsStates(prepared.model, prepared.layout.sources), head.layer)
    vocabulary = Vocabulary.competing(prepared.model.unembed(), prepared.competing)
    rows = np.arange(0, TINY.sources, 3)
    asked = (prepared, inputs, vocabulary)
    assert check(*asked, mapped, head.layer, head.head, rows) > TINY.sources
    wrong = mapped.dataset.load().copy(deep=True)
    at = (head.layer,) if name == "control_rank" else (head.layer, head.head)
    first = wrong[name].values[at]
    first[0] = 5 if first[0] != 5 else 6
    with pytest.raises(AssertionError):
        check(*asked, Atlas(wrong, mapped.provenance, mapped.thresholds), head.layer, head.head, rows)


@pytest.mark.parametrize("lens", ["maps", "neutral"])
def test_the_benchmark_runs_from_end_to_end(
    tiny: Path, lens: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the process that maps
    stream = ["--stream", "--prefixes", "1"] if lens == "neutral" else []
    map_shape.main([str(tiny), "--lens", lens, *stream, "--check-sources", "600"])
    printed = capsys.readouterr().out
    n = len(checkpoints.planted_in(tiny))
    assert f"planted heads called {n} of {n} (recall 1.000)" in printed
    assert "(precision 1.000)" in printed
    assert ("lens neutral (prefixes: 1), layers 0 to 1, 600 sources" in printed) is (lens == "neutral")
    assert "equal float64 arithmetic's" in printed
    assert "× faster" in printed


def test_what_is_missing_or_there_already_is_said(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for module, arguments, text in (
        (map_shape, [str(tmp_path)], "python -m benchmarks.checkpoints"),
        (map_shape, [str(tiny), "--out", str(tmp_path)], "choose another"),
        (checkpoints, [str(tiny)], "holds a checkpoint already"),
    ):
        with pytest.raises(SystemExit) as stopped:
            module.main(arguments)
        assert stopped.value.code == 2
        assert text in " ".join(capsys.readouterr().err.split())


def test_pairs_are_as_many_as_asked_and_always_the_same(tmp_path: Path) -> None:
    words = [*(f"w{i}" for i in range(500)), *("cat", "Cat", "cats"), *(f"{c}at" for c in "bfhmprs")]
    for folder in ("one", "two"):
        scaling.write_pairs(tmp_path / folder, words, 1000)
    one, two = resolve_relations(tmp_path / "one"), resolve_relations(tmp_path / "two")
    assert [relation.pairs for relation in one] == [relation.pairs for relation in two]
    assert sum(len(relation.pairs) for relation in one) == 1000
    assert any(relation.copying for relation in one)


def test_exponents_are_those_of_power_laws() -> None:
    sizes = [1.0, 2.0, 5.0, 9.0]
    assert scaling.exponent(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    assert np.isnan(scaling.exponent([2.0, 2.0], [1.0, 3.0]))


def test_growth_is_measured_written_and_drawn(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scaling.main([str(tmp_path), "--small", "--axis", "pairs", "--most", "200", "--model", str(tiny)])
    points = json.loads((tmp_path / "scaling.json").read_text())
    assert [point["size"] for point in points] == [200]
    assert all(point["rows"] > 0 and point["products"] > 0 for point in points)
    assert len((tmp_path / "scaling.csv").read_text().splitlines()) == 2
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    assert "exponents: seconds ~ size^" in capsys.readouterr().out
