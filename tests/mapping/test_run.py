"""The run: layers, resuming, reading again, what it refuses, what it leaves on disk."""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from headatlas.atlas import Atlas, relation_scores
from headatlas.errors import HeadatlasError
from headatlas.evidence.opening import open_subject
from headatlas.mapping import plan
from headatlas.mapping.prepared import MapOptions, prepare_map, with_alternatives
from headatlas.mapping.run import map_heads
from headatlas.options import MANY_RELATIONS, Compute, Thresholds
from headatlas.progress import Progress, Stats
from headatlas.relations import (
    NOT_DRAWN,
    Pair,
    Relation,
    TokenisedRelation,
    core,
    resolve_relations,
    selection,
)
from tests.full_disk import file_size_limit
from tests.mapping.checkpoints import random_relations, save, tiny_model, word_tokenizer

RANKS = (
    *("promotion_rank", "suppression_rank", "control_rank"),
    *("cell_promotion_rank", "cell_suppression_rank"),
)
SCORES = ("promotion_score", "suppression_score", "control_score", "promotion_p", "suppression_p")
"""Of these an atlas keeps those that are stored, apart from its dataset."""
Map = Callable[..., Atlas]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return save(tiny_model("llama"), tmp_path_factory.mktemp("run") / "model")


@pytest.fixture(scope="module")
def relations() -> list[Relation]:
    return random_relations()


@pytest.fixture(scope="module")
def whole(model: Path, relations: list[Relation], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished map, not to be changed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    map_heads(model, relations=relations, out=out)
    return out


@pytest.fixture
def mapped(model: Path, relations: list[Relation]) -> Map:
    """`map_heads` of that model and those relations unless told otherwise."""

    def call(model: Any = model, tokenizer: Any = None, **options: Any) -> Atlas:
        return map_heads(model, tokenizer, **({"relations": relations} | options))

    return call


def assert_same(left: Atlas, right: Atlas, names: tuple[str, ...] = RANKS + SCORES) -> None:
    for name in names:
        found, expected = (
            (each.dataset if name in RANKS else each._stored)[name].values for each in (left, right)
        )
        np.testing.assert_array_equal(found, expected, err_msg=name, strict=True)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Layers and resuming ----------------------------------------------------------------------------------


def test_layers_in_parts_are_the_whole(mapped: Map, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    part = mapped(out=out, layers="0-1")
    assert part.layers_done.tolist() == [True, True, False]
    assert (part.dataset["promotion_rank"].values[2] == -3).all()
    assert set(part.table()["layer"]) == {0, 1} and (out / "states").is_dir()
    again = Stats()
    mapped(out=out, layers="1", stats=again)
    assert again.products == 0
    assert_same(mapped(out=out), Atlas.open(whole))
    assert [path.name for path in out.iterdir()] == ["atlas.zarr"]


def test_ctrl_c_keeps_finished_layers(mapped: Map, whole: Path, tmp_path: Path) -> None:
    def stop(told: Progress) -> None:
        if told.stage == "heads" and told.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mapped(out=tmp_path, progress=stop)
    assert Atlas.open(tmp_path).layers_done.tolist() == [True, True, False]
    told: list[Progress] = []
    assert_same(mapped(out=tmp_path, progress=told.append), Atlas.open(whole))
    assert [p.note for p in told if p.stage == "heads"] == ["", "layer 2 done", ""]
    assert "states" not in {p.stage for p in told}, "saved states are reused"


def test_ctrl_c_while_states_are_made_leaves_nothing_half(mapped: Map, whole: Path, tmp_path: Path) -> None:
    def stop(told: Progress) -> None:
        if told.stage == "states" and told.done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mapped(out=tmp_path, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["atlas.zarr"]
    assert_same(mapped(out=tmp_path), Atlas.open(whole))


def test_lost_states_are_made_again(mapped: Map, whole: Path, tmp_path: Path) -> None:
    mapped(out=tmp_path, layers="0")
    (tmp_path / "states" / "x_002.npy").write_bytes(b"")
    assert_same(mapped(out=tmp_path), Atlas.open(whole))


# Reading a finished atlas again -----------------------------------------------------------------------


def test_other_numbers_are_stored_without_computing_anything(
    mapped: Map, whole: Path, tmp_path: Path
) -> None:
    mapped(out=tmp_path)
    stats = Stats()
    changed = mapped(out=tmp_path, thresholds=Thresholds(3, 2, 0.4, 0.2, "tau"), stats=stats)
    assert stats.products == stats.rows == 0
    found = Atlas.open(tmp_path).thresholds
    assert found == changed.thresholds
    assert found == Thresholds(3, 2, 0.4, 0.2, "tau")
    assert_same(changed, Atlas.open(whole), RANKS)
    expected = Atlas.open(whole).at(k=3, k_copy=2)
    stored = changed._stored["promotion_score"].values
    for at, name in enumerate(changed.included["relation"]):
        np.testing.assert_array_equal(stored[..., at], expected.relation_scores[name].score)
    assert_same(mapped(out=tmp_path), Atlas.open(whole))


def test_what_is_returned_is_what_is_on_disk(mapped: Map, tmp_path: Path) -> None:
    returned = mapped(out=tmp_path, thresholds=Thresholds(k=5))
    opened = Atlas.open(tmp_path)
    assert returned.path == opened.path == tmp_path / "atlas.zarr"
    assert returned.provenance == opened.provenance and returned.thresholds.k == 5
    assert returned.table().equals(opened.table())


# Where the model comes from, and where the atlas goes --------------------------------------------------


def test_without_a_folder_nothing_stays_on_disk(
    mapped: Map, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    atlas = mapped()
    assert atlas.path is None and not list(tmp_path.iterdir())
    assert_same(atlas, Atlas.open(whole), RANKS)
    assert atlas.table().equals(Atlas.open(whole).table())
    assert len(atlas.at(k=2).table()) == len(atlas.table())


def test_only_what_stays_is_scored_on_single_tokens(
    mapped: Map, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Atlas] = []
    monkeypatch.setattr(relation_scores, "all_single", lambda _: False)
    monkeypatch.setattr(relation_scores, "_single_token_scores", lambda atlas: calls.append(atlas) or {})
    atlas = mapped()
    assert not calls, "a map in memory would throw them away"
    atlas.save(tmp_path / "saved")
    mapped(out=tmp_path / "mapped")
    assert [each.path for each in calls] == [tmp_path / name / "atlas.zarr" for name in ("saved", "mapped")]


@pytest.mark.parametrize("lens", ["neutral", "maps"])
def test_a_loaded_model_gives_the_atlas_of_its_files(
    lens: str, mapped: Map, model: Path, tmp_path: Path
) -> None:
    modules = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in modules.state_dict().items()}
    loaded = mapped(modules, word_tokenizer(), lens=lens)
    from_files = mapped(lens=lens)
    assert_same(loaded, from_files, RANKS)
    assert loaded.table().equals(from_files.table())
    for name, tensor in modules.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_provenance_says_what_was_done(mapped: Map, model: Path, whole: Path) -> None:
    provenance = Atlas.open(whole).provenance
    assert provenance["model"]["spec"] == str(model) and provenance["model"]["family"] == "llama"
    assert provenance["model"]["weights_hash"].startswith("sha256:")
    assert provenance["model"]["self_check"].startswith("layer 0: values of all")
    assert provenance["lens"]["name"] == "neutral" and len(provenance["lens"]["prefixes"]) == 4
    assert provenance["masked_ids"] == [0, 1, 2, 3]
    assert list(provenance["relations"]) == ["one_to_one", "several", "few", "copy"]
    paper = mapped(lens="maps", mask=False).provenance
    assert paper["lens"]["name"] == "maps" and paper["masked_ids"] == []
    json.dumps(provenance, allow_nan=False)


def test_a_sample_of_sources_is_said_and_is_part_of_the_hash(
    mapped: Map, relations: list[Relation], whole: Path, tmp_path: Path
) -> None:
    atlas = mapped(out=tmp_path, sources=35)
    full = Atlas.open(whole)
    sizes = {row["relation"]: row["n_sources"] for row in full.relations.to_dict("records")}
    sizes = {name: (n, min(n, 35)) for name, n in sizes.items()}
    assert any(n > 35 for n, _ in sizes.values()) and any(n <= 35 for n, _ in sizes.values())
    for row in atlas.relations.to_dict("records"):
        n, kept = sizes[row["relation"]]
        assert row["n_sources"] == kept and len(row["dropped"].get(NOT_DRAWN, ())) == n - kept
        same = atlas.provenance["relations"][row["relation"]] == full.provenance["relations"][row["relation"]]
        assert same == (n == kept)
    assert atlas.provenance["sources"] == 35 and "at most 35 sources a relation" in atlas.caption()
    assert full.provenance["sources"] is None and "sources" not in full.caption()
    # A sampled source has the ranks that it has in the whole.
    used = atlas.dataset["pair_source"].values >= 0
    np.testing.assert_array_equal(
        atlas.dataset["promotion_rank"].values[..., used], full.dataset["promotion_rank"].values[..., used]
    )


def test_a_library_is_sampled_and_the_atlas_says_so(
    model: Path, relations: list[Relation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "SAMPLE", 30)
    many = [replace(relations[0], name=str(at), title=str(at)) for at in range(MANY_RELATIONS + 1)]
    for asked, sources, most in ((many[1:], None, None), (many, None, 30), (many, "all", None)):
        prepared = prepare_map(model, None, asked, MapOptions(sources=sources))
        assert prepared.provenance["sources"] == most
        # Samples of the same words are the same words.
        assert len(prepared.layout.sources) == min(len(relations[0].pairs), most or 10**6)


def test_evidence_opens_a_sample_as_it_was_mapped(mapped: Map, tmp_path: Path) -> None:
    atlas = mapped(out=tmp_path, sources=35)
    subject = open_subject(atlas)
    assert [each.sha256 for each in subject.relations] == list(atlas.provenance["relations"].values())
    assert [len(each.pairs) for each in subject.relations] == atlas.relations["n_sources"].tolist()


def test_a_word_that_several_relations_ask_of_is_one_row(model: Path, relations: list[Relation]) -> None:
    same = [replace(relations[0], name=name, title=name) for name in ("again", "and_again")]
    alone, together = (
        prepare_map(model, None, asked, MapOptions()).layout for asked in (relations, [*relations, *same])
    )
    assert together.sources == alone.sources
    assert len(together.own_row) == len(alone.own_row) + 2 * (alone.blocks[0].own.stop)


def seen_by(*unusable: str) -> Callable[[Relation], TokenisedRelation]:
    def seen(relation: Relation) -> TokenisedRelation:
        return TokenisedRelation(relation, (), {}, "why" if relation.name in unusable else None)

    return seen


def test_what_core_leaves_out_is_replaced_where_something_stands_in() -> None:
    found, replaced = with_alternatives(core(), seen_by("year_to_following", "copying"))
    names = [each.name for each in core()]
    at = names.index("year_to_following") + 1
    assert [each.relation.name for each in found] == [*names[:at], "item_to_successor", *names[at:]]
    assert replaced == {"year_to_following": "item_to_successor"}
    assert found[at].relation is resolve_relations("item_to_successor")[0]


@pytest.mark.parametrize(
    ("asked", "unusable"),
    [
        ("core", ()),
        ("core", ("year_to_following", "item_to_successor")),
        ("core,item_to_successor", ("year_to_following",)),
        ("all", ("year_to_following",)),
        ("year_to_following,copying", ("year_to_following",)),
    ],
)
def test_nothing_is_replaced_otherwise(asked: str, unusable: tuple[str, ...]) -> None:
    relations = resolve_relations(asked)
    found, replaced = with_alternatives(relations, seen_by(*unusable))
    assert tuple(each.relation for each in found) == relations and replaced == {}


# What is refused, with nothing lost -------------------------------------------------------------------


def other_model(model: Path, place: Path) -> Path:
    other = tiny_model("llama")
    with torch.no_grad():
        other.get_submodule("model.layers.2.self_attn.v_proj").weight[0, 0] += 1
    return save(other, place / "other")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lens": "maps"}, "lens"),
        ({"relations": "fewer"}, "relations"),
        ({"ceiling": 33}, "ceiling"),
        ({"target_policy": "first-token"}, "target policy"),
        ({"sources": 30}, "relations, most sources (None, not 30)"),
        ({"mask": False}, "masked token ids"),
        ({"model": "other"}, "weights"),
        ({"tokenizer": "other words"}, "tokenizer"),
        ({"tokenizer": "cut differently"}, "tokens of the relations"),
    ],
)
def test_another_map_into_the_same_folder(
    change: dict[str, Any], named: str, mapped: Map, model: Path, relations: list[Relation], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    mapped(out=out, layers="0-1")
    before = everything(out)
    if change.get("relations") == "fewer":
        change = {"relations": relations[:2]}
    if change.get("model") == "other":
        change = {"model": other_model(model, tmp_path)}
    if change.get("tokenizer") == "other words":
        change = {"tokenizer": word_tokenizer(299)}
    if change.get("tokenizer") == "cut differently":
        tokenizer = word_tokenizer()
        tokenizer.backend_tokenizer.normalizer = replaced("w20", "w21")
        change = {"tokenizer": tokenizer}
    with pytest.raises(HeadatlasError) as caught:
        mapped(out=out, **change)
    message = str(caught.value)
    assert (
        str(out / "atlas.zarr") in message and f"differs in {named}" in message and "`force=True`" in message
    )
    assert everything(out) == before
    mapped(out=out)


def test_force_starts_over_only_when_all_that_was_given_is_right(
    mapped: Map, relations: list[Relation], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    mapped(out=out)
    before = everything(out)
    for wrong in ({"layers": "7"}, {"lens": "logit"}, {"model": "./none"}, {"relations": "./none"}):
        with pytest.raises(HeadatlasError):
            mapped(out=out, force=True, **wrong)
        assert everything(out) == before
    again = Stats()
    mapped(out=out, force=True, layers="0", stats=again)
    assert again.products > 0 and Atlas.open(out).layers_done.tolist() == [True, False, False]


def test_an_atlas_is_no_folder_to_map_into(mapped: Map, tmp_path: Path) -> None:
    mapped(out=tmp_path)
    before = everything(tmp_path)
    for force in (False, True):
        with pytest.raises(HeadatlasError, match=r"this is an atlas itself; give the folder"):
            mapped(out=tmp_path / "atlas.zarr", force=force)
    assert everything(tmp_path) == before


def test_a_folder_called_like_an_atlas_is_started_over_too(mapped: Map, tmp_path: Path) -> None:
    for force in (False, True):
        assert mapped(out=tmp_path / "mine.zarr", force=force).layers_done.all()


def replaced(old: str, new: str) -> Any:
    from tokenizers import normalizers

    return normalizers.Replace(old, new)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"thresholds": Thresholds(k=33)}, r"`k` is 33, above the ceiling 32"),
        ({"thresholds": Thresholds(k_copy=40)}, r"`k_copy` is 40, above the ceiling 32"),
        ({"ceiling": 251}, r"`ceiling` is 251: it must lie between 1 and 250"),
        ({"ceiling": 0}, r"`ceiling` is 0"),
        ({"lens": "logit"}, r"`lens`: there is no lens 'logit'"),
        ({"target_policy": "all"}, r"`target_policy`: there is no policy 'all'"),
        ({"sources": 29}, r"`sources` is 29: it must be a whole number of at least 30"),
        ({"sources": 50.0}, r"`sources` is 50.0: it must be a whole number"),
        ({"layers": "2-3"}, r"`layers` is '2-3': the model has layers 0 to 2"),
        ({"layers": "2-1"}, r"`layers` is '2-1': 1 comes before 2; write 1-2"),
        ({"layers": "all"}, r"`layers` is 'all': write A-B"),
        ({"layers": "-1"}, r"`layers` is '-1': write A-B"),
        ({"layers": (0, 1.5)}, r"`layers` is \(0, 1\.5\): give A-B"),
        ({"layers": []}, r"`layers` is \[\]: that is no layer"),
        (
            {"thresholds": {"k": 3}},
            r"`thresholds` is of the type dict: give a Thresholds, .*\(k=10\)",
        ),
        ({"compute": "cuda"}, r"`compute` is of the type str: give a Compute, .*\(device='auto'\)"),
        ({"progress": "yes"}, r"`progress` is 'yes': give True, or a function"),
        ({"relations": []}, r"no relations were given"),
        ({"relations": 3}, r"relations is a number; give 'core'"),
        ({"relations": ["core", None]}, r"relations\[1\] is nothing; give"),
        ({"relations": ["a.csv"]}, r"a\.csv: no such file or folder"),
    ],
)
def test_options_out_of_range(given: dict[str, Any], message: str, mapped: Map, tmp_path: Path) -> None:
    with pytest.raises(HeadatlasError, match=message):
        mapped(out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_relations_of_one_name_are_refused(mapped: Map, relations: list[Relation]) -> None:
    with pytest.raises(HeadatlasError, match=r"the name 'few' comes from relations\[2\] too; rename"):
        mapped(relations=[*relations, replace(relations[2], category="Other")])


def test_relations_that_cannot_be_used_are_named(mapped: Map, relations: list[Relation]) -> None:
    short = Relation("short", "short", "User", tuple(Pair(f"w{i}", (f"w{i + 50}",)) for i in range(20, 40)))
    atlas = mapped(relations=[short, relations[0]])
    assert atlas.left_out == {"short": "20 usable sources, at least 30 needed"}
    assert "left out: short" in atlas.caption()
    with pytest.raises(HeadatlasError, match=r"no relation can be used.*short: 20 usable sources"):
        mapped(relations=[short])


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/headatlas"])
def test_a_folder_that_cannot_be_written(place: str, mapped: Map, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(HeadatlasError, match=r"(is a file|cannot be written).*`out`"):
        mapped(out=tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("damage", ["empty", "no metadata", "cut metadata", "array lost", "a file"])
def test_a_half_written_atlas_is_named_and_left_alone(damage: str, mapped: Map, tmp_path: Path) -> None:
    path = tmp_path / "atlas.zarr"
    if damage == "a file":
        path.write_text("mine")
    elif damage == "empty":
        path.mkdir()
    else:
        mapped(out=tmp_path, layers="0")
        if damage == "array lost":
            (path / "promotion_rank" / "zarr.json").unlink()
        elif damage == "no metadata":
            (path / "zarr.json").unlink()
        else:
            (path / "zarr.json").write_bytes((path / "zarr.json").read_bytes()[:100])
    before = everything(tmp_path)
    with pytest.raises(HeadatlasError, match=r"atlas\.zarr: .*"):
        mapped(out=tmp_path)
    assert everything(tmp_path) == before


def test_a_foreign_folder_called_states_is_left_alone(mapped: Map, tmp_path: Path) -> None:
    (tmp_path / "states").mkdir()
    (tmp_path / "states" / "alabama.txt").write_text("mine")
    with pytest.raises(HeadatlasError, match=r"states: cannot be written .*else than source states"):
        mapped(out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["states"]
    mapped(out=tmp_path / "other", layers=0)
    mapped(out=tmp_path, lens="maps")
    with pytest.raises(HeadatlasError, match=r"states: cannot be written"):
        mapped(out=tmp_path, force=True)
    assert Atlas.open(tmp_path).layers_done.all()
    assert mapped(out=tmp_path / "maps", lens="maps").layers_done.all()
    assert (tmp_path / "states" / "alabama.txt").read_text() == "mine"


def test_weights_that_are_not_finite_are_refused(mapped: Map, tmp_path: Path) -> None:
    broken = tiny_model("llama")
    with torch.no_grad():
        broken.get_submodule("model.layers.1.self_attn.o_proj").weight[3, 3] = torch.nan
    folder = save(broken, tmp_path / "broken")
    with pytest.raises(HeadatlasError, match=r"layers\.1\.self_attn\.o_proj\.weight' holds .* not finite"):
        mapped(folder, lens="maps", out=tmp_path / "out")
    assert Atlas.open(tmp_path / "out").layers_done.tolist() == [True, False, False]


def test_a_full_disk_is_said_and_loses_no_layer(
    mapped: Map, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped(out=tmp_path, layers="0")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        from zarr.storage import _local

        patch.setattr(_local, "_put", full)
        with pytest.raises(HeadatlasError, match=r"cannot be written \(No space left on device\)"):
            mapped(out=tmp_path)
    assert Atlas.open(tmp_path).layers_done.tolist() == [True, False, False]
    assert_same(mapped(out=tmp_path), Atlas.open(whole))


@pytest.mark.parametrize(("n_bytes", "what"), [(0, "atlas.zarr"), (1200, "atlas.zarr"), (3000, "states")])
def test_files_that_the_system_refuses_to_write_are_said(
    mapped: Map, whole: Path, tmp_path: Path, n_bytes: int, what: str
) -> None:
    """The larger the limit, the farther the run comes; the next one goes on."""
    with (
        file_size_limit(n_bytes),
        pytest.raises(HeadatlasError, match=rf"{what}: cannot be written \(.*(another|room)"),
    ):
        mapped(out=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == ({"atlas.zarr"} if what == "states" else set())
    assert_same(mapped(out=tmp_path), Atlas.open(whole))


def test_a_model_too_large_for_the_machine_is_said(mapped: Map, monkeypatch: pytest.MonkeyPatch) -> None:
    least = property(lambda memory: 1 if memory.lens.weights_only else 10**15)
    monkeypatch.setattr(plan.Memory, "least", least)
    with pytest.raises(HeadatlasError, match=r"by layer and needs about 1000000.0 GB .*; use `lens=maps`"):
        mapped()
    with pytest.raises(
        HeadatlasError, match=r"whole model and .* GB; leave out `stream=False`, or use `lens"
    ):
        mapped(compute=Compute(stream=False))
    with pytest.raises(HeadatlasError, match=r"whole model and .* GB; use `lens=maps`"):
        mapped(tiny_model("llama"), word_tokenizer())
    assert mapped(lens="maps").layers_done.all()


def test_too_little_memory_leaves_nothing_behind_and_deletes_nothing(mapped: Map, tmp_path: Path) -> None:
    little, out = Compute(max_memory="2MB"), tmp_path / "out"
    for lens in ("neutral", "maps"):
        with pytest.raises(HeadatlasError, match=r"memory, `max_memory` allows 0\.0 GB"):
            mapped(out=out, lens=lens, compute=little)
        assert not out.exists()
    mapped(out=out, layers=0)
    before = everything(out)
    for force in (False, True):
        with pytest.raises(HeadatlasError, match="`max_memory` allows"):
            mapped(out=out, compute=little, force=force)
        assert everything(out) == before


@pytest.mark.parametrize(
    ("layers", "done"),
    [
        ("1", [1]),
        ("0-1", [0, 1]),
        (2, [2]),
        (range(1, 3), [1, 2]),
        (slice(None, None, 2), [0, 2]),
        ([2, 0, 2], [0, 2]),
        (np.array([1]), [1]),
    ],
)
def test_layers_in_any_form(mapped: Map, whole: Path, layers: Any, done: list[int]) -> None:
    part = mapped(layers=layers, lens="neutral")
    assert np.flatnonzero(part.layers_done).tolist() == done
    full = Atlas.open(whole).dataset["promotion_rank"].values
    np.testing.assert_array_equal(part.dataset["promotion_rank"].values[done], full[done])


def test_progress_is_shown_when_it_is_asked_for(mapped: Map, capsys: pytest.CaptureFixture[str]) -> None:
    mapped(lens="maps", layers=0, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("opening ") and lines[-1].startswith("layers mapped: 1 of 1")
    mapped(lens="maps", layers=0, progress=False)
    mapped(lens="maps", layers=0)
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


def test_plain_pairs_are_relations(mapped: Map, relations: list[Relation]) -> None:
    name, pairs = relations[0].name, [(pair.source, list(pair.targets)) for pair in relations[0].pairs]
    given = mapped(relations=[(name, pairs)], lens="maps")
    expected = mapped(relations=[relations[0]], lens="maps")
    np.testing.assert_array_equal(given.dataset["promotion_rank"], expected.dataset["promotion_rank"])
    assert given.relations["relation"].tolist() == [name] and (given.scores > 0).any()


def test_an_atlas_made_in_memory_is_saved_and_mapped_further(
    mapped: Map, whole: Path, tmp_path: Path
) -> None:
    atlas = mapped(layers=[0, 2], thresholds=Thresholds(k=7))
    assert atlas.save(tmp_path / "mine") == tmp_path / "mine" / "atlas.zarr"
    told: list[Progress] = []
    further = mapped(out=tmp_path / "mine", progress=told.append)
    assert [p.note for p in told if p.stage == "heads"] == ["", "layer 1 done", ""]
    assert_same(further, Atlas.open(whole))


def test_the_defaults_of_the_function_are_those_of_the_options() -> None:
    parameters = inspect.signature(map_heads).parameters
    found = MapOptions()
    for name in ("thresholds", "mask", "ceiling", "target_policy"):
        assert getattr(found, name) == parameters[name].default
    assert found.lens.name == parameters["lens"].default == "neutral"
