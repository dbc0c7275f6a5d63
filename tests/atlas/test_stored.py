"""Evidence in an atlas: replaced whole, read whole while others replace it, left out where it is damaged."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from headatlas import files
from headatlas.atlas import Atlas, stored
from headatlas.atlas.evidence import evidence_group
from headatlas.atlas.labels import LABEL_COLUMNS, Labels, stored_labels
from headatlas.atlas.stored import read_dataset, store_dataset
from headatlas.errors import HeadatlasError
from tests.synthetic import make_atlas, make_behaviours


def numbers(n: int) -> xr.Dataset:
    return xr.Dataset({"value": ("row", np.full(n, n, dtype=np.int64))})


@pytest.fixture
def place(tmp_path: Path) -> Path:
    path = tmp_path / "evidence" / "made-up"
    store_dataset(path, numbers(3), {"n": 3})
    return path


def test_what_is_stored_again_takes_the_place_of_the_older(place: Path) -> None:
    store_dataset(place, numbers(5), {"n": 5})
    data, provenance = read_dataset(place)
    assert data["value"].values.tolist() == [5] * 5 and provenance == {"n": 5}
    assert [each.name for each in place.parent.iterdir()] == [place.name]


def test_the_older_stays_until_the_new_one_is_there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    move = Path.replace

    def stopped(self: Path, target: Path) -> Path:
        if target == place and not self.name.endswith(".old"):  # between the two moves
            assert not place.exists()
            raise KeyboardInterrupt
        return move(self, target)

    monkeypatch.setattr(files.Path, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        store_dataset(place, numbers(5), {"n": 5})
    assert read_dataset(place)[1] == {"n": 3}
    assert [each.name for each in place.parent.iterdir()] == [place.name]


def test_a_folder_that_cannot_be_put_aside_is_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.Path, "replace", refused)
    with pytest.raises(HeadatlasError, match="copy the atlas into a folder that can be written"):
        store_dataset(place, numbers(5), {"n": 5})
    assert read_dataset(place)[1] == {"n": 3}


def test_another_process_may_be_first_in_between(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    move, others = Path.replace, iter([7])

    def beside(self: Path, target: Path) -> Path:
        if target == place:
            for n in others:
                store_dataset(place, numbers(n), {"n": n})
        return move(self, target)

    monkeypatch.setattr(files.Path, "replace", beside)
    store_dataset(place, numbers(5), {"n": 5})
    assert read_dataset(place)[1] == {"n": 5}
    assert [each.name for each in place.parent.iterdir()] == [place.name]


def test_it_is_read_again_if_it_was_replaced_while_it_was_read(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, others = stored.open_arrays, iter([5])

    def beside(where: Any) -> xr.Dataset:
        data = opened(where)
        for n in others:  # between the metadata and the numbers
            store_dataset(place, numbers(n), {"n": n})
        return data

    monkeypatch.setattr(stored, "open_arrays", beside)
    data, provenance = read_dataset(place)
    assert provenance == {"n": 5} and data["value"].values.tolist() == [5] * 5


def _store_often(path: Path, n: int) -> None:
    for _ in range(15):
        store_dataset(path, numbers(n), {"n": n})


def test_readers_beside_two_writers(place: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_store_often, args=(place, n)) for n in (5, 7)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        data, provenance = read_dataset(place)
        assert set(data["value"].values.tolist()) == {provenance["n"]}
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert [each.name for each in place.parent.iterdir()] == [place.name]


def test_damaged_evidence_costs_only_itself(tmp_path: Path) -> None:
    atlas = make_atlas(tmp_path / "atlas.zarr", 3, 4)
    assert atlas.path is not None
    group = evidence_group(atlas.path)
    make_behaviours(group, 3, 4, ["previous_token", "distance"], (1, 2))
    rows = xr.Dataset({name: ("row", np.arange(2)) for name in LABEL_COLUMNS[:-1]})  # lacks the last
    store_dataset(Labels.place(group, "someone"), rows, {"author": "someone"})
    with pytest.warns(UserWarning, match=r"labels-someone: is damaged \(it lacks kind\); remove this folder"):
        assert stored_labels(atlas.path).empty
    (group / "behaviour-shipped" / "zarr.json").write_text("{}")
    again = Atlas.open(atlas.path)
    with pytest.warns(UserWarning, match="is damaged"):
        assert again.behaviours().empty
    with pytest.warns(UserWarning, match="is damaged"):
        assert again.coverage().attrs["not_measured"] == ("behaviour", "description")
