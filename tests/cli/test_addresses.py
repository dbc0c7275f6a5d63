"""An atlas at an address is read like one in a folder; nothing is written to an address."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from fsspec.implementations.memory import MemoryFileSystem

from headatlas.addresses import output_path, shown
from headatlas.atlas import Atlas
from headatlas.atlas.evidence import (
    TASK,
    Ablation,
    HeadsAblation,
    Preferences,
    evidence_group,
    store_attention,
)
from headatlas.atlas.export import export_table
from headatlas.atlas.labels import BY_MAPPINGS, LABEL_COLUMNS, store_labels
from headatlas.atlas.store import strings
from headatlas.atlas.stored import SHIPPED, Stored, store_dataset
from headatlas.errors import HeadatlasError
from headatlas.files import check_writable
from headatlas.mapping.run import map_heads
from tests.cli.conftest import Run, parsed
from tests.evidence.test_statistics import made_up
from tests.synthetic import make_atlas, make_behaviours

ADDRESS = "memory://me:secret@somewhere/out"
PRINTED = "memory://somewhere/out/atlas.zarr"


@pytest.fixture
def there(shared_folder: Path) -> str:
    """The address of a copy, with credentials."""
    fsspec.filesystem("memory").put(f"{shared_folder}/", f"{ADDRESS}/", recursive=True)
    return ADDRESS


def test_it_is_the_same_atlas(shared_folder: Path, there: str) -> None:
    local = Atlas.open(shared_folder)
    for address in (there, f"{there}/", f"{there}/atlas.zarr", f"file://{shared_folder}"):
        remote = Atlas.open(address)
        assert remote.dataset.identical(local.dataset) and remote.table().equals(local.table())
        assert remote.path is None and not remote.evidence
    assert Atlas.open(there).dataset.encoding["source"] == PRINTED


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An atlas with measured attention, labels, dynamic scores (those of the map once more), an ablated task,
    an ablation of chosen heads, and preferences."""
    out = tmp_path_factory.mktemp("measured") / "out"
    path = out / "atlas.zarr"
    make_atlas(path, 4, 3)
    group = evidence_group(path)
    make_behaviours(group, 4, 3, ["previous_token", "distance"], (1, 2))
    row = (1, 2, "copies names", "9 of 15", 0.8, 0.2, 0.1, "rules 1", BY_MAPPINGS)
    store_labels(group, pd.DataFrame([row], columns=list(LABEL_COLUMNS)), {"author": "rules 1"})
    for kind in ("context", "without-context"):
        make_atlas(group / f"{kind}-0123.zarr", 4, 3)
    attention = np.full((4, 3, len(Atlas.open(out).relations)), 0.25)
    store_attention(group / "context-0123.zarr", attention)
    _store_tested(group, str(Atlas.open(out).sel(called=True)["relation"].iloc[0]))
    return out


def _store_tested(group: Path, relation: str) -> None:
    """One of each kind of stored test, on a relation."""
    task = made_up().data
    task = task.assign_coords({name: (name, strings(map(str, task[name].values))) for name in task.coords})
    told = dict.fromkeys(Ablation.NEEDED, "") | {"relation": relation, "shots": 0, "method": "zero"}
    store_dataset(Ablation.place(group, "0123"), task, told)
    conditions = ("whole", "chosen", "random 0")
    chosen = {
        "loss": (("condition", "item"), np.array([[1.0, 2.0], [3.0, 4.0], [1.0, 2.5]])),
        "correct": (("condition", "item"), np.array([[True, True], [False, True], [True, True]])),
        "on": ("item", strings(["text", relation])),
        "layer": (("order", "rank"), np.array([[1], [0]])),
        "head": (("order", "rank"), np.array([[2], [1]])),
    }
    names = {"condition": strings(conditions), "order": strings(conditions[1:])}
    store_dataset(HeadsAblation.place(group, "0123"), xr.Dataset(chosen, coords=names), {"heads": ["1.2"]})
    rng = np.random.default_rng(0)
    preferred = {
        "auroc": (("query", "relation", "layer", "head", "distance"), rng.random((1, 1, 4, 3, 2))),
        "p": (("query", "relation", "layer", "head"), rng.random((1, 1, 4, 3)) / 1000),
        "n_sources": ("relation", np.array([20])),
        "n_words": ("relation", np.array([40])),
    }
    names = {"query": strings([TASK]), "relation": strings([relation]), "distance": np.array([1, 8])}
    data = xr.Dataset(preferred, coords=names)
    store_dataset(Preferences.place(group, SHIPPED), data, {"left_out": {"other": "too few words"}})


@pytest.fixture(scope="module")
def served(measured: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(measured.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/out"
    server.shutdown()
    server.server_close()


@pytest.fixture(params=["memory", "http"])
def elsewhere(request: pytest.FixtureRequest, measured: Path) -> str:
    """The address of the measured atlas."""
    if request.param == "http":
        return str(request.getfixturevalue("served"))
    address = "memory://me:secret@measured/out"
    fsspec.filesystem("memory").put(f"{measured}/", f"{address}/", recursive=True)
    return address


def test_evidence_is_read_at_an_address(run: Run, measured: Path, elsewhere: str) -> None:
    local, remote = Atlas.open(measured), Atlas.open(elsewhere)
    assert len(remote.behaviours()) == 24 and remote.behaviours().equals(local.behaviours())
    assert remote.labels()["label"].tolist() == ["copies names"]
    assert remote.evidence and remote.table().equals(local.table())
    assert remote.path is None and remote.head(1, 2).statements == local.head(1, 2).statements
    for name, *rest in (["heads"], ["head", "1.2"], ["info", "--json"], ["head", "1.2", "--json"]):
        there, here = (run(name, place, *rest).stdout for place in (elsewhere, measured))
        assert "secret" not in there
        assert there.replace(shown(f"{elsewhere}/atlas.zarr"), "") == here.replace(
            f"{measured}/atlas.zarr", ""
        )


def test_ablations_and_preferences_are_read_at_an_address(measured: Path, elsewhere: str) -> None:
    local, remote = Atlas.open(measured), Atlas.open(elsewhere)
    kinds: tuple[type[Stored], ...] = (Ablation, HeadsAblation, Preferences)
    for kind in kinds:
        (here,), (there,) = (kind.all_in(atlas.place) for atlas in (local, remote))
        assert there.data.identical(here.data) and there.provenance == here.provenance
    assert len(remote.evidence.single_heads) == 2
    assert remote.evidence.single_heads.equals(local.evidence.single_heads)
    assert remote.evidence.provenance() == local.evidence.provenance()
    assert remote.table()["loss_alone"].notna().sum() == 2
    (chosen,), (preferred,) = HeadsAblation.all_in(remote.place), Preferences.all_in(remote.place)
    assert chosen.heads == [(1, 2)] and chosen.of("loss", "text").tolist() == [[1.0], [3.0], [1.0]]
    assert preferred.distances == [1, 8] and preferred.left_out == {"other": "too few words"}
    rows = preferred.frame(remote)
    assert len(rows) > 0 and rows.equals(Preferences.all_in(local.place)[0].frame(local))


def test_damaged_evidence_at_an_address_is_left_out(measured: Path) -> None:
    address = "memory://me:secret@damaged/out"
    files = fsspec.filesystem("memory")
    files.put(f"{measured}/", f"{address}/", recursive=True)
    group = f"{address}/atlas.zarr/evidence"
    files.rm(f"{group}/context-0123.zarr/promotion_rank", recursive=True)
    files.rm(f"{group}/behaviour-shipped/value", recursive=True)
    files.rm(f"{group}/ablation-0123/alone", recursive=True)
    files.rm(f"{group}/attention-shipped/auroc", recursive=True)
    atlas = Atlas.open(address)
    with pytest.warns(UserWarning) as warned:
        assert not atlas.evidence
    ablation, context = sorted(str(each.message) for each in warned)
    assert re.match(r"memory://damaged.*context-0123.zarr: the atlas lacks promotion_rank", context)
    assert re.match(r"memory://damaged.*ablation-0123: is damaged \(it lacks alone\)", ablation)
    with pytest.warns(UserWarning, match=r"^memory://damaged.*is damaged \(it lacks auroc\)"):
        assert not Preferences.all_in(atlas.place)
    with pytest.warns(UserWarning, match=r"^memory://damaged.*is damaged \(it lacks value\)"):
        assert atlas.behaviours().empty


def test_reading_commands(run: Run, shared_folder: Path, there: str, tmp_path: Path) -> None:
    for name, *rest in (["heads", "--all"], ["head", "2.1"], ["describe"], ["structure"]):
        assert run(name, there, *rest).stdout == run(name, shared_folder, *rest).stdout
    assert run("compare", there, shared_folder).output
    assert parsed(run("info", there, "--json"))["path"] == PRINTED
    assert "secret" not in run("info", there).output
    for command, name in (("plot", "a.svg"), ("report", "a.html"), ("export", "a.parquet")):
        run(command, there, "-o", tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    result = run("report", there, code=2)
    assert "say with -o where the page goes" in result.output and "secret" not in result.output


def test_what_is_not_there_or_fails_is_said_without_credentials(
    there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    with pytest.raises(HeadatlasError, match=r"somewhere/none/atlas.zarr: there is no atlas here") as caught:
        Atlas.open(there.replace("out", "none"))
    said.append(caught.value)
    whole = MemoryFileSystem.cat_file

    def fails(failing: str) -> None:
        def cat_file(self: MemoryFileSystem, path: str, *rest: object, **more: object) -> bytes:
            if failing in path:
                raise ConnectionResetError(there)
            return bytes(whole(self, path, *rest, **more))

        monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)

    fails("_rank/c/")
    with pytest.raises(HeadatlasError, match=r"_rank cannot be read \(Conn.*\); try again later") as caught:
        Atlas.open(there).at(k=3).scores  # noqa: B018
    said.append(caught.value)
    fails("")
    with pytest.raises(HeadatlasError, match=r"cannot be read \(ConnectionResetError\); check") as caught:
        Atlas.open(there)
    said.append(caught.value)
    assert not [error for error in said if "secret" in str(error) or not error.__suppress_context__]


@pytest.mark.parametrize(
    ("address", "says"),
    [("nosuch://bucket/out", r"cannot be read \(ValueError\)"), ("abfs://c/out", "a package is missing")],
)
def test_file_systems_that_are_not_there(address: str, says: str) -> None:
    with pytest.raises(HeadatlasError, match=says):
        Atlas.open(address)


@pytest.mark.parametrize(
    "given",
    [
        "s3://me:secret@bucket/out",
        "S3://bucket/out?key=secret",
        "simplecache::s3://me:secret@bucket/out",
        "file:///tmp/out",
        Path("s3://bucket/out"),
    ],
)
def test_nothing_is_written_to_an_address(given: str | Path, shared_folder: Path) -> None:
    from headatlas.figures import save

    atlas = Atlas.open(shared_folder)
    for write in (
        lambda: output_path(given),
        lambda: check_writable(given),
        lambda: map_heads("no/model", out=given),
        lambda: export_table(atlas, f"{given}/table.csv"),
        lambda: save(atlas.plot.categories(), f"{given}/figure.svg"),
    ):
        with pytest.raises(HeadatlasError, match="nothing is written to an address; give a folder") as caught:
            write()
        assert "secret" not in str(caught.value)
    assert not Path("s3:").exists()


def test_commands_refuse_an_address_to_write_to(run: Run, shared_folder: Path) -> None:
    address = "s3://me:secret@bucket/figure.svg"
    for command in (
        ["map", "no/model", "-o"],
        *(["plot", shared_folder, "-o"], ["report", shared_folder, "-o"], ["structure", shared_folder, "-o"]),
        ["compare", shared_folder, shared_folder, "-o"],
    ):
        result = run(*command, address, code=2)
        assert "s3://bucket/figure.svg: nothing is written to an address" in result.output
        assert "secret" not in result.output


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("https://u:p@h/a/b?x=1#y", "https://h/a/b"),
        ("S3://key:secret@bucket/m", "s3://bucket/m"),
        ("https://h/a@main/b", "https://h/a@main/b"),
        ("https://u:p@ss@h?x", "https://h"),
        ("org/name@main", "org/name@main"),
    ],
)
def test_what_is_shown_of_an_address(given: str, expected: str) -> None:
    assert shown(given) == expected
