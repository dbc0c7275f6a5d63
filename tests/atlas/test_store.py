"""The atlas on disk: what is written is read, a layer is complete or not done, and what is wrong is named."""

from __future__ import annotations

import errno
import json
import shutil
import threading
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

from headatlas.atlas import Atlas, store
from headatlas.atlas.layout import Layout, build_layout
from headatlas.atlas.relation_scores import store_scores
from headatlas.atlas.store import CELL_BEYOND, AtlasWriter, LayerRanks, atlas_path, create_store, read_store
from headatlas.errors import HeadatlasError
from headatlas.scoring.scores import RANK_MISSING
from tests.atlas.made import provenance, tokenised, write_atlas
from tests.synthetic import make_atlas

HEADS = 3


@pytest.fixture
def layout() -> Layout:
    return build_layout(
        [tokenised("a", [[1, 2], [], [3, -1], [4]]), tokenised("b", [[5], [6], [7]], left_out="why")]
    )


@pytest.fixture
def path(tmp_path: Path, layout: Layout) -> Path:
    where = tmp_path / "out" / "atlas.zarr"
    create_store(where, layout, n_layers=4, n_heads=HEADS, attributes=provenance())
    return where


def some_ranks(layout: Layout, seed: int) -> LayerRanks:
    rng = np.random.default_rng(seed)
    pairs, cells = (HEADS, layout.n_pairs), (HEADS, layout.n_cells)
    return LayerRanks(
        rng.integers(-2, 32, pairs).astype(np.int16),
        rng.integers(-2, 32, pairs).astype(np.int16),
        rng.integers(-2, 32, layout.n_pairs).astype(np.int16),
        rng.integers(0, 33, cells).astype(np.uint8),
        rng.integers(0, 33, cells).astype(np.uint8),
    )


def assert_holds(path: Path, layer: int, ranks: LayerRanks) -> None:
    data, _ = read_store(path)
    for field, name in zip(fields(LayerRanks), store._LAYER_ARRAYS, strict=True):
        written = getattr(ranks, field.name)
        np.testing.assert_array_equal(data[name][layer].values, written, err_msg=name)
        assert data[name].dtype == written.dtype


def test_what_is_written_is_read(path: Path, layout: Layout) -> None:
    writer = AtlasWriter(path)
    ranks = {layer: some_ranks(layout, layer) for layer in (2, 0)}
    for layer, each in ranks.items():
        writer.write(layer, each)
    assert writer.done().tolist() == [True, False, True, False]
    for layer, each in ranks.items():
        assert_holds(path, layer, each)
    data, found = read_store(path)
    assert found == provenance()
    assert data["source"].values.tolist() == [source for source, _ in layout.pair_words]
    assert data["target"].values.tolist() == [target for _, target in layout.pair_words]
    np.testing.assert_array_equal(data["pair_source"], layout.pair_source)
    np.testing.assert_array_equal(data["pair_target_id"], layout.pair_target_id)
    np.testing.assert_array_equal(data["pair_source_tokens"], layout.pair_source_length)
    assert data["left_out"].values.tolist() == ["", "why"]


def test_layers_not_mapped_are_coded_so(path: Path, layout: Layout) -> None:
    AtlasWriter(path).write(1, some_ranks(layout, 1))
    data, _ = read_store(path)
    missing = data.isel(layer=[0, 2, 3])
    for name in ("promotion_rank", "suppression_rank", "control_rank"):
        assert (missing[name] == RANK_MISSING).all()
        assert data[name].attrs["flag_meanings"].split() == ["beyond_ceiling", "not_usable", "not_mapped"]
        assert list(data[name].attrs["flag_values"]) == [-1, -2, -3]
    assert (missing["cell_promotion_rank"] == CELL_BEYOND).all()
    assert data["layer_done"].values.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("kept", range(5))
def test_a_layer_cut_short_is_not_done_and_can_be_done_again(
    path: Path, layout: Layout, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after any of the five arrays, the flag is not there."""
    written: list[str] = []
    whole = AtlasWriter._array

    def stopping(self: AtlasWriter, name: str) -> Any:
        if len(written) == kept + 1:
            raise KeyboardInterrupt
        written.append(name)
        return whole(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(AtlasWriter, "_array", stopping)
        with pytest.raises(KeyboardInterrupt):
            AtlasWriter(path).write(1, some_ranks(layout, 1))
    assert "layer_done" not in written
    writer = AtlasWriter(path)
    assert not writer.done().any()
    empty = LayerRanks(*(np.full_like(getattr(some_ranks(layout, 2), f.name), 0) for f in fields(LayerRanks)))
    writer.write(1, empty)
    assert_holds(path, 1, empty)
    assert Atlas.open(path).layers_done.tolist() == [False, True, False, False]


def test_two_writers_of_different_layers(path: Path, layout: Layout) -> None:
    ranks = [some_ranks(layout, layer) for layer in range(4)]

    def work(layers: tuple[int, ...]) -> None:
        writer = AtlasWriter(path)
        for layer in layers:
            writer.write(layer, ranks[layer])

    threads = [threading.Thread(target=work, args=(layers,)) for layers in ((0, 2), (1, 3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert AtlasWriter(path).done().all()
    for layer, each in enumerate(ranks):
        assert_holds(path, layer, each)


def test_one_flag_at_a_time(path: Path, layout: Layout) -> None:
    writer = AtlasWriter(path)
    writer.write(1, some_ranks(layout, 1))
    assert [writer.is_done(layer) for layer in range(len(writer.done()))] == writer.done().tolist()
    assert writer.is_done(1)


def test_arrays_are_opened_once(path: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    open_array = zarr.Group.__getitem__

    def counted(self: zarr.Group, name: str) -> Any:
        opened.append(name)
        return open_array(self, name)

    monkeypatch.setattr(zarr.Group, "__getitem__", counted)
    writer = AtlasWriter(path)
    for layer in (0, 1):
        writer.write(layer, some_ranks(layout, layer))
        writer.is_done(layer)
    assert len(opened) == len(set(opened)) == 6


def test_every_layer_has_its_own_chunk(path: Path) -> None:
    group = zarr.open_group(path, mode="r")
    for name in (*store._LAYER_ARRAYS, "layer_done"):
        array = group[name]
        assert isinstance(array, zarr.Array)
        assert array.chunks == (1, *array.shape[1:])


def test_xarray_opens_it_without_headatlas(path: Path, layout: Layout) -> None:
    AtlasWriter(path).write(0, some_ranks(layout, 0))
    data = xr.open_zarr(path, consolidated=False).load()
    assert data["promotion_rank"].dims == ("layer", "head", "pair")
    assert data["promotion_rank"].dtype == np.int16
    assert data["relation"].values.tolist() == ["a", "b"]
    with warnings.catch_warnings():
        # xarray's advice to consolidate the metadata, which a growing atlas cannot.
        warnings.filterwarnings("ignore", "Failed to open Zarr store with consolidated", RuntimeWarning)
        assert data.identical(xr.open_zarr(path).load())


def test_nothing_in_it_is_pickled(path: Path, layout: Layout) -> None:
    AtlasWriter(path).write(0, some_ranks(layout, 0))
    for file in path.rglob("zarr.json"):
        body = json.loads(file.read_text())
        assert "pickle" not in file.read_text()
        assert body["node_type"] == "group" or body["data_type"] in (
            *("bool", "int16", "int32", "int64", "uint8", "float64", "string"),
        )


def test_a_path_is_the_folder_or_the_store(path: Path) -> None:
    assert atlas_path(path) == atlas_path(path.parent) == path
    assert atlas_path("no/such") == Path("no/such/atlas.zarr")
    assert Atlas.open(str(path.parent)).path == path


def test_an_atlas_of_left_out_relations_alone(tmp_path: Path) -> None:
    only = build_layout([tokenised("b", [[5], [6]], left_out="why")])
    create_store(tmp_path / "a.zarr", only, n_layers=2, n_heads=1, attributes=provenance())
    pairs = np.full((1, 2), -2, dtype=np.int16)
    nothing = np.zeros((1, 0), dtype=np.uint8)
    AtlasWriter(tmp_path / "a.zarr").write(0, LayerRanks(pairs, pairs, pairs[0], nothing, nothing))
    atlas = Atlas.open(tmp_path / "a.zarr")
    assert atlas.table().empty and atlas.sel(called=True).empty and atlas.relation_scores == {}
    assert atlas.categories()["n_categories"].tolist() == [0]
    assert "left out: b" in atlas.caption()


# What can be wrong --------------------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(HeadatlasError) as caught:
        Atlas.open(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the attributes of the store; its provenance as an object."""
    body = json.loads((path / "zarr.json").read_text())
    attributes = body["attributes"]
    attributes["provenance"] = json.loads(attributes["provenance"])
    change(attributes)
    attributes["provenance"] = json.dumps(attributes.get("provenance"))
    (path / "zarr.json").write_text(json.dumps(body))


def test_no_atlas(tmp_path: Path) -> None:
    assert "there is no atlas here" in refused(tmp_path / "missing.zarr")
    with pytest.raises(
        HeadatlasError, match="there is no atlas here; make one with `headatlas map MODEL -o DIR`"
    ):
        Atlas.open(tmp_path)
    (tmp_path / "empty.zarr").mkdir()
    assert "not a complete headatlas atlas" in refused(tmp_path / "empty.zarr")
    zarr.open_group(tmp_path / "other.zarr", mode="w")
    assert "not a complete headatlas atlas" in refused(tmp_path / "other.zarr")


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_broken_metadata(path: Path, text: str) -> None:
    (path / "zarr.json").write_text(text)
    assert "remove the folder and map again" in refused(path)


def test_a_group_of_something_else_is_not_to_be_removed(path: Path) -> None:
    (path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    message = refused(path)
    assert "its attributes lack headatlas_schema" in message and "remove" not in message


@pytest.mark.parametrize("version", [0, 2, 99, "2.1", None])
@pytest.mark.parametrize("gone", [(), ("provenance",)])
def test_another_schema(path: Path, version: object, gone: tuple[str, ...]) -> None:
    """Whatever else differs: what this version needs may not be there."""
    edit(path, lambda attributes: attributes.update(headatlas_schema=version))
    if gone:
        body = json.loads((path / "zarr.json").read_text())
        del body["attributes"]["provenance"]
        (path / "zarr.json").write_text(json.dumps(body))
        (path / "promotion_rank" / "zarr.json").write_text('{"zarr_format": 4}')
    message = refused(path)
    assert f"the atlas has schema {version}, this headatlas reads 1" in message
    assert "use the headatlas version that made it" in message and "remove" not in message


def test_what_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    """A link that leads to itself is an error of the file system, for root as well."""
    make_atlas(tmp_path / "atlas.zarr", 2, 2)
    chunk = tmp_path / "atlas.zarr" / "promotion_rank" / "c" / "1" / "0" / "0"
    kept = chunk.read_bytes()
    chunk.unlink()
    chunk.symlink_to(chunk)
    message = r"atlas\.zarr: promotion_rank cannot be read \(Too many levels.*it may be sound"
    with pytest.raises(HeadatlasError, match=message):
        _ = Atlas.open(tmp_path).scores
    chunk.unlink()
    chunk.write_bytes(kept)
    _ = Atlas.open(tmp_path).scores
    root = tmp_path / "atlas.zarr" / "zarr.json"
    root.unlink()
    root.symlink_to(root)
    assert "cannot be read (Too many levels" in refused(tmp_path / "atlas.zarr")


@pytest.mark.parametrize("name", store._REQUIRED)
def test_a_missing_array_is_named(path: Path, name: str) -> None:
    shutil.rmtree(path / name)
    assert name in refused(path)


@pytest.mark.parametrize("field", ["model", "lens", "ceiling", "thresholds", "mask"])
def test_missing_provenance_is_named(path: Path, field: str) -> None:
    edit(path, lambda attributes: attributes["provenance"].pop(field))
    assert f"lacks provenance {field!r}" in refused(path)


@pytest.mark.parametrize("value", [None, [], 3, "text"])
def test_provenance_of_another_kind(path: Path, value: object) -> None:
    edit(path, lambda attributes: attributes.update(provenance=value))
    assert "map again" in refused(path)


def test_thresholds_of_a_later_version(path: Path) -> None:
    edit(path, lambda attributes: attributes["provenance"]["thresholds"].update(alpha=1))
    assert "thresholds cannot be read" in refused(path) and "alpha" in refused(path)


@pytest.mark.parametrize("stored", [True, False])
def test_a_damaged_chunk_is_named(tmp_path: Path, stored: bool) -> None:
    atlas = make_atlas(tmp_path / "atlas.zarr", 2, 2)
    if stored:
        store_scores(atlas)
    name = "promotion_score" if stored else "promotion_rank"
    for chunk in (tmp_path / "atlas.zarr" / name / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(chunk.read_bytes()[:9])
    with pytest.raises(HeadatlasError, match=f"atlas.zarr: {name} is damaged"):
        _ = Atlas.open(tmp_path).scores


@pytest.mark.parametrize("name", ["promotion_rank", "suppression_rank", "control_rank"])
def test_ranks_that_are_gone_are_not_taken_for_ranks_beyond_the_ceiling(tmp_path: Path, name: str) -> None:
    make_atlas(tmp_path / "atlas.zarr", 2, 2)
    shutil.rmtree(tmp_path / "atlas.zarr" / name / "c" / "1")
    with pytest.raises(HeadatlasError, match=f"atlas.zarr: {name} is damaged"):
        _ = Atlas.open(tmp_path).scores


def test_calibration_cells_that_are_gone_are_noticed(tmp_path: Path) -> None:
    make_atlas(tmp_path / "atlas.zarr", 2, 2)
    shutil.rmtree(tmp_path / "atlas.zarr" / "cell_promotion_rank" / "c" / "1")
    with pytest.raises(HeadatlasError, match=r"atlas\.zarr: cell_promotion_rank is damaged"):
        _ = Atlas.open(tmp_path).scores


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", 3),
        ("model", {"name": None}),
        ("lens", {}),
        ("lens", {"name": "neutral", "prefixes": 5}),
        ("ceiling", "a"),
        ("thresholds", 3),
    ],
)
def test_provenance_edited_into_something_else(tmp_path: Path, name: str, value: object) -> None:
    make_atlas(tmp_path / "atlas.zarr", 2, 2)
    group = zarr.open_group(tmp_path / "atlas.zarr", mode="r+")
    found = json.loads(str(group.attrs["provenance"]))
    group.attrs["provenance"] = json.dumps(found | {name: value})
    with pytest.raises(HeadatlasError, match=f"provenance '{name}.*is not what headatlas writes"):
        Atlas.open(tmp_path)


@pytest.mark.parametrize("inside", ["atlas.zarr", "deeper/atlas.zarr"])
def test_a_place_where_nothing_can_be_written(tmp_path: Path, layout: Layout, inside: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(HeadatlasError, match=r"file.*cannot be written .*choose another `out`"):
        create_store(tmp_path / "file" / inside, layout, n_layers=1, n_heads=1, attributes=provenance())
    assert (tmp_path / "file").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_atlas_that_is_there_is_not_replaced(path: Path, layout: Layout) -> None:
    ranks = some_ranks(layout, 0)
    AtlasWriter(path).write(0, ranks)
    with pytest.raises(HeadatlasError, match="cannot be written"):
        create_store(path, layout, n_layers=4, n_heads=HEADS, attributes=provenance())
    assert_holds(path, 0, ranks)
    assert [p.name for p in path.parent.iterdir()] == ["atlas.zarr"]


def test_an_interrupted_creation_leaves_nothing(
    tmp_path: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(zarr.Group, "create_array", stop)
    with pytest.raises(KeyboardInterrupt):
        create_store(tmp_path / "a.zarr", layout, n_layers=1, n_heads=1, attributes=provenance())
    assert list(tmp_path.iterdir()) == []


def test_writing_where_there_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(HeadatlasError, match=r"a\.zarr: cannot be written"):
        AtlasWriter(tmp_path / "a.zarr")


def full_disk(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_costs_one_layer(path: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = AtlasWriter(path)
    first = some_ranks(layout, 0)
    writer.write(0, first)
    with monkeypatch.context() as patch:
        patch.setattr(zarr.Array, "__setitem__", full_disk)
        with pytest.raises(
            HeadatlasError, match=r"No space left.*layer 1 is not saved.*run the same command again"
        ):
            writer.write(1, some_ranks(layout, 1))
    assert writer.done().tolist() == [True, False, False, False]
    assert_holds(path, 0, first)


# Stored scores ------------------------------------------------------------------------------------


def test_stored_scores_are_those_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = make_atlas(tmp_path / "atlas.zarr", 3, 2, layers=range(2))
    store_scores(computed)
    monkeypatch.setattr("headatlas.atlas.atlas.score_relation", None)
    stored = Atlas.open(tmp_path)
    assert stored.table().equals(computed.table())
    tighter = stored.at(tau=0.3, criterion="tau")
    assert tighter.table().equals(computed.at(tau=0.3, criterion="tau").table())


def test_scores_of_other_layers_or_another_k_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "atlas.zarr"
    whole = make_atlas(tmp_path / "whole.zarr", 3, 2)
    store_scores(make_atlas(path, 3, 2, layers=range(2)))
    other = Atlas.open(path).at(k=3).table()
    expected = whole.at(k=3).table()
    # q and what follows from it depend on all layers there are; everything else does not.
    of_all = ["q", "suppression_q", "implements", "suppresses"]
    assert other.drop(columns=of_all).equals(
        expected[expected["layer"] < 2].drop(columns=of_all).reset_index(drop=True)
    )
    data, _ = read_store(tmp_path / "whole.zarr")
    AtlasWriter(path).write(2, _layer_of(data, 2))
    assert Atlas.open(path).table().equals(whole.table())


def _layer_of(data: xr.Dataset, layer: int) -> LayerRanks:
    return LayerRanks(*(data[name][layer].values for name in store._LAYER_ARRAYS))


def test_an_older_view_does_not_replace_newer_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes end at about the same time: the one that saw fewer layers comes last."""
    path = tmp_path / "atlas.zarr"
    expected = make_atlas(tmp_path / "whole.zarr", 3, 2).table()
    older = make_atlas(path, 3, 2, layers=range(2))
    assert not older.layers_done.all()
    data, _ = read_store(tmp_path / "whole.zarr")
    AtlasWriter(path).write(2, _layer_of(data, 2))
    store_scores(Atlas.open(path))
    store_scores(older)
    monkeypatch.setattr("headatlas.atlas.atlas.score_relation", None)
    assert Atlas.open(path).table().equals(expected)


@pytest.mark.parametrize(
    "name", ["promotion_score", "added_score", "promotion_chance", "suppression_p", "control_score"]
)
def test_arrays_that_disagree_are_computed_again(tmp_path: Path, name: str) -> None:
    path = tmp_path / "atlas.zarr"
    atlas = make_atlas(path, 3, 2)
    store_scores(atlas)
    array = zarr.open_group(path, mode="r+")[name]
    assert isinstance(array, zarr.Array)
    array[2] = np.nan
    assert Atlas.open(path).table().equals(atlas.table())


def test_scores_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atlas = make_atlas(tmp_path / "atlas.zarr", 2, 2)
    with monkeypatch.context() as patch:
        patch.setattr(zarr.Array, "__setitem__", full_disk)
        with pytest.raises(
            HeadatlasError, match=r"cannot be written .No space left.*scores are not saved, ranks are"
        ):
            store_scores(atlas)
    assert Atlas.open(tmp_path).table().equals(atlas.table())


def test_an_atlas_in_memory_has_no_store(tmp_path: Path) -> None:
    atlas = make_atlas(tmp_path / "atlas.zarr", 1, 1)
    with pytest.raises(ValueError, match="no store"):
        store_scores(Atlas(atlas.dataset, atlas.provenance, atlas.thresholds))


def test_a_subcategory_is_kept(tmp_path: Path) -> None:
    fine, coarse = tokenised("fine", [[1]] * 3, category="C"), tokenised("coarse", [[1]] * 3, category="D")
    fine = replace(fine, relation=replace(fine.relation, subcategory="S"))
    atlas = write_atlas(tmp_path / "atlas.zarr", [fine, coarse], {})
    assert atlas.relations["subcategory"].tolist() == ["S", "D"]
