"""An atlas in object storage: whatever fails or is killed, a layer is complete or not done."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import fsspec
import numpy as np
import pytest
import xarray as xr
import zarr

from headatlas.atlas import Atlas
from headatlas.atlas.derived import store_scores
from headatlas.atlas.layout import Layout, build_layout
from headatlas.atlas.publishing import CLAIM
from headatlas.atlas.removing import remove_atlas
from headatlas.atlas.store import AtlasWriter, LayerRanks, atlas_path, create_store, is_made, read_store
from headatlas.errors import HeadatlasError
from headatlas.storage import Place
from headatlas.storage.zarr_store import zarr_store
from tests.atlas.made import provenance, tokenised
from tests.atlas.test_store import HEADS, assert_holds, some_ranks
from tests.storage.bucket import Before, keys, objects
from tests.synthetic import make_atlas

SetBefore = Callable[[Before | None], None]
ROOT = "somewhere/out/atlas.zarr/zarr.json"


class KilledError(Exception):
    """Nothing is done after it, as after a SIGKILL."""


@pytest.fixture
def layout() -> Layout:
    return build_layout([tokenised("a", [[1, 2], [], [3, -1], [4]]), tokenised("b", [[5], [6], [7]])])


@pytest.fixture
def path(store: str) -> Place:
    return atlas_path(store)


def make(path: Place, layout: Layout, **changes: object) -> None:
    create_store(path, layout, n_layers=4, n_heads=HEADS, attributes=provenance(**changes))


def killed_at(number: int, verb: str) -> Before:
    """The request of this number, of this kind, is not made, and none after it."""
    seen: list[str] = []

    def before(asked: str, key: str) -> None:
        seen.append(asked)
        if seen.count(verb) >= number:
            raise KilledError

    return before


@pytest.mark.parametrize("protocol", ["bucket", "memory"])
def test_what_is_written_is_read(protocol: str, store: str, layout: Layout, tmp_path: Path) -> None:
    """The same as in a folder, object by file, and xarray opens it as it is."""
    url = store if protocol == "bucket" else f"memory://{tmp_path.name}/out"
    for where in (atlas_path(url), tmp_path / "out" / "atlas.zarr"):
        make(where, layout)
        AtlasWriter(where).write(2, some_ranks(layout, 2))
        assert_holds(where, 2, some_ranks(layout, 2))
        assert AtlasWriter(where).done().tolist() == [False, False, True, False]
    here, there = Atlas.open(tmp_path / "out"), Atlas.open(url)
    assert here.provenance == there.provenance and here.dataset.identical(there.dataset)
    assert xr.open_zarr(f"{url}/atlas.zarr", consolidated=False).load().identical(here.dataset)
    assert str(there.path) == f"{url}/atlas.zarr" and Atlas.open(f"{url}/atlas.zarr").path == there.path


def test_a_file_address_is_a_folder(layout: Layout, tmp_path: Path) -> None:
    make_atlas(tmp_path / "atlas.zarr", 2, 2)
    assert Atlas.open(f"file://{tmp_path}").path == tmp_path / "atlas.zarr"
    assert remove_atlas(f"file://{tmp_path}") and not list(tmp_path.iterdir())


def test_requests_that_fail_are_made_again(path: Place, layout: Layout, before: SetBefore) -> None:
    failed: set[tuple[str, str]] = set()

    def fails_once(verb: str, key: str) -> None:
        if (verb, key) not in failed:
            failed.add((verb, key))
            raise ConnectionResetError("503 Slow Down")

    before(fails_once)
    make(path, layout)
    AtlasWriter(path).write(0, some_ranks(layout, 0))
    assert_holds(path, 0, some_ranks(layout, 0))
    assert {verb for verb, _ in failed} >= {"put", "get", "list"} and len(failed) > 60


@pytest.mark.parametrize("part", ["promotion_rank", "cell_suppression_rank", "layer_done"])
def test_a_layer_that_cannot_be_written_is_not_done(
    part: str, path: Place, layout: Layout, before: SetBefore
) -> None:
    make(path, layout)
    writer = AtlasWriter(path)
    writer.write(0, some_ranks(layout, 0))

    def fails(verb: str, key: str) -> None:
        if verb == "put" and f"/{part}/" in key:
            raise TimeoutError("bucket://me:secret@somewhere")

    before(fails)
    with pytest.raises(HeadatlasError) as caught:
        writer.write(1, some_ranks(layout, 1))
    assert str(caught.value) == (
        "bucket://somewhere/out/atlas.zarr: cannot be written (no data for 1 s, 3 attempts); layer 1 is not "
        "saved, finished layers are: run the same command again."
    )
    before(None)
    assert AtlasWriter(path).done().tolist() == [True, False, False, False]
    writer.write(1, some_ranks(layout, 3))
    assert_holds(path, 1, some_ranks(layout, 3))


@pytest.mark.parametrize("at", range(1, 7))
def test_a_layer_of_a_killed_writer_is_done_again(
    at: int, path: Place, layout: Layout, before: SetBefore
) -> None:
    """KilledError before any of the five arrays or the flag."""
    make(path, layout)
    before(killed_at(at, "put"))
    with pytest.raises(KilledError):
        AtlasWriter(path).write(1, some_ranks(layout, 1))
    before(None)
    assert not AtlasWriter(path).done().any()
    assert len([key for key in keys() if "/c/1" in key]) == at - 1
    empty = LayerRanks(*(np.full_like(getattr(some_ranks(layout, 2), f.name), 0) for f in fields(LayerRanks)))
    AtlasWriter(path).write(1, empty)
    assert_holds(path, 1, empty)


def test_reading_that_fails_is_no_damage(path: Place, layout: Layout, before: SetBefore) -> None:
    """The advice is not to delete the atlas."""
    make(path, layout)
    AtlasWriter(path).write(0, some_ranks(layout, 0))
    atlas = Atlas.open(path)

    def fails(verb: str, key: str) -> None:
        raise ConnectionResetError

    before(fails)
    for read in (
        lambda: atlas.relation_scores,
        lambda: Atlas.open(path),
        lambda: AtlasWriter(path),
        lambda: is_made(path),
    ):
        with pytest.raises(HeadatlasError, match=r"cannot be (read|listed|reached).*; try again later\.$"):
            read()


# Several that make it ------------------------------------------------------------------------------


def test_making_it_stopped_anywhere_is_finished_by_the_next(
    store: str, path: Place, layout: Layout, before: SetBefore
) -> None:
    make(path, layout)
    whole = objects()
    assert remove_atlas(store) and not objects()
    # Before the claim, before the first object, in the middle, and before the root that ends it.
    for at in (1, 2, 3, len(whole) // 2, len(whole)):
        before(killed_at(at, "put"))
        with pytest.raises(KilledError):
            make(path, layout)
        before(None)
        assert not is_made(path)
        if at > 1:
            with pytest.raises(HeadatlasError, match="is being made, or was left when it was; run the map"):
                Atlas.open(store)
        assert len(objects()) >= min(1, at - 1)
    make(path, layout)
    assert is_made(path) and objects() == whole


def test_one_that_comes_late_changes_nothing(path: Place, layout: Layout, before: SetBefore) -> None:
    """It has claimed the place and then waits; others make the atlas and map a layer."""
    waiting, go_on = threading.Event(), threading.Event()
    held: list[object] = []

    def waits(verb: str, key: str) -> float | None:
        task = asyncio.current_task()
        if verb == "put" and key != ROOT and not held:
            held.append(task)
            waiting.set()
        return 0.01 if held == [task] and not go_on.is_set() else None

    before(waits)
    late = threading.Thread(target=make, args=(path, layout))
    late.start()
    assert waiting.wait(5)
    assert not is_made(path)
    make(path, layout)
    AtlasWriter(path).write(1, some_ranks(layout, 1))
    zarr.open_group(zarr_store(path), mode="r+").attrs["scores_of"] = "k 10"
    there = objects()
    assert late.is_alive()
    go_on.set()
    late.join()
    assert objects() == there
    assert_holds(path, 1, some_ranks(layout, 1))


@pytest.mark.parametrize("attempt", range(3))
def test_many_at_once(attempt: int, path: Place, layout: Layout) -> None:
    """Processes of a job array that start together, each of which then maps a layer."""
    failed: list[BaseException] = []
    begin = threading.Barrier(4)

    def work(layer: int) -> None:
        try:
            begin.wait()
            make(path, layout)
            AtlasWriter(path).write(layer, some_ranks(layout, layer))
        except BaseException as error:  # noqa: BLE001 -- shown by the assertion
            failed.append(error)

    threads = [threading.Thread(target=work, args=(layer,)) for layer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert AtlasWriter(path).done().all()
    for layer in range(4):
        assert_holds(path, layer, some_ranks(layout, layer))


def test_another_map_is_told(path: Place, layout: Layout, before: SetBefore) -> None:
    """Of other axes: it writes nothing. Of the same axes: it gets the claim's provenance, and finds out."""
    other = build_layout([tokenised("a", [[1], [2], [3]])])
    before(killed_at(5, "put"))
    with pytest.raises(KilledError):
        make(path, layout)
    before(None)
    there = objects()
    with pytest.raises(
        HeadatlasError, match=r"another map, .* is being made there .* or start over with --force"
    ):
        make(path, other)
    assert objects() == there
    make(path, layout, ceiling=16)
    assert read_store(path)[1] == provenance()
    make(path, other)
    assert read_store(path)[1] == provenance(), "who comes later compares, as with any atlas"


@pytest.mark.parametrize("root", [None, b"", b"[]", b'{"attributes": {"title": "weather"}}'])
def test_objects_of_something_else_are_left_alone(
    root: bytes | None, store: str, path: Place, layout: Layout
) -> None:
    system, inside = fsspec.url_to_fs(f"{store}/atlas.zarr")
    system.pipe_file(f"{inside}/layer_done/c/0", b"mine")
    if root is not None:
        system.pipe_file(f"{inside}/zarr.json", root)
    there = objects()
    for attempt in (lambda: make(path, layout), lambda: remove_atlas(store)):
        with pytest.raises(HeadatlasError, match=r"not an atlas|but no atlas"):
            attempt()
    assert objects() == there


# Scores and removal --------------------------------------------------------------------------------


def test_scores_of_two_processes_are_never_mixed(store: str, before: SetBefore) -> None:
    """Whichever of the objects come from the one that read with another k."""
    path = atlas_path(store)
    atlas = make_atlas(path, 2, 2)
    store_scores(atlas)
    ours = objects()
    assert Atlas.open(store)._stored.attrs["scores_of"]
    store_scores(atlas.at(k=3))
    theirs = objects()
    differing = sorted(key for key in ours if ours[key] != theirs[key])
    assert len(differing) > 5
    expected = {name: scores.score for name, scores in atlas.relation_scores.items()}
    system, _ = fsspec.url_to_fs(store)
    for key in differing:
        if key == ROOT:
            continue
        for name, data in ours.items():
            system.pipe_file(name, theirs[key] if name == key else data)
        found = Atlas.open(store).relation_scores
        for name, score in expected.items():
            np.testing.assert_array_equal(found[name].score, score)


def test_a_removal_stopped_anywhere_leaves_no_layer_that_counts(
    store: str, path: Place, layout: Layout, before: SetBefore
) -> None:
    system, inside = fsspec.url_to_fs(store)
    make(path, layout)
    for layer in range(2):
        AtlasWriter(path).write(layer, some_ranks(layout, layer))
    system.pipe_file(f"{inside}/notes.txt", b"mine")
    n_objects = len(objects())
    for _ in range(n_objects - 1):
        before(killed_at(2, "delete"))
        with pytest.raises(KilledError):
            remove_atlas(store)
        before(None)
        left = keys()
        if any("promotion_rank/zarr.json" in key for key in left) and len(left) <= n_objects - 3:
            assert not any("layer_done/c" in key for key in left)
        if len(left) == 2:
            break
    assert keys() == {ROOT, f"{inside}/notes.txt"}
    assert remove_atlas(store) and keys() == {f"{inside}/notes.txt"}
    assert not remove_atlas(store)


def test_an_unfinished_atlas_can_be_removed(
    store: str, path: Place, layout: Layout, before: SetBefore
) -> None:
    before(killed_at(5, "put"))
    with pytest.raises(KilledError):
        make(path, layout)
    before(None)
    assert CLAIM in json.loads(objects()[ROOT])["attributes"]
    assert remove_atlas(store) and not keys()


def test_zarr_says_where_it_is_without_credentials(store: str, layout: Layout) -> None:
    url = store.replace("bucket://", "bucket://me:secret@")
    make(atlas_path(url), layout)
    atlas = Atlas.open(url)
    opened = zarr_store(atlas_path(url))
    said = [str(atlas.path), repr(atlas.path), atlas.dataset.encoding["source"], str(opened), repr(opened)]
    assert "secret" not in " ".join(said) + repr(atlas.provenance)
    assert not any(b"secret" in data for data in objects().values())
