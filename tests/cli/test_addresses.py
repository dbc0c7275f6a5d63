"""An atlas at an address is read like one in a folder; nothing is written to an address."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from headatlas.addresses import output_path, shown
from headatlas.atlas import Atlas
from headatlas.atlas.export import export_table
from headatlas.errors import HeadatlasError
from headatlas.files import check_writable
from headatlas.mapping.run import map_heads
from tests.cli.conftest import Run, parsed
from tests.synthetic import make_atlas

ADDRESS = "memory://me:secret@somewhere/out"
PRINTED = "memory://somewhere/out/atlas.zarr"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("atlas") / "out"
    make_atlas(folder / "atlas.zarr", 4, 3)
    return folder


@pytest.fixture
def there(here: Path) -> str:
    """The address of a copy, with credentials."""
    fsspec.filesystem("memory").put(f"{here}/", f"{ADDRESS}/", recursive=True)
    return ADDRESS


def test_it_is_the_same_atlas(here: Path, there: str) -> None:
    local = Atlas.open(here)
    for address in (there, f"{there}/", f"{there}/atlas.zarr", f"file://{here}"):
        remote = Atlas.open(address)
        assert remote.dataset.identical(local.dataset) and remote.table().equals(local.table())
        assert remote.path is None and not remote.evidence
    assert Atlas.open(there).dataset.encoding["source"] == PRINTED


def test_reading_commands(run: Run, here: Path, there: str, tmp_path: Path) -> None:
    for name, *rest in (["heads", "--all"], ["head", "2.1"], ["describe"], ["structure"]):
        assert run(name, there, *rest).stdout == run(name, here, *rest).stdout
    assert run("compare", there, here).output
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
def test_nothing_is_written_to_an_address(given: str | Path, here: Path) -> None:
    from headatlas.figures import save

    atlas = Atlas.open(here)
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


def test_commands_refuse_an_address_to_write_to(run: Run, here: Path) -> None:
    address = "s3://me:secret@bucket/figure.svg"
    for command in (
        ["map", "no/model", "-o"],
        *(["plot", here, "-o"], ["report", here, "-o"], ["structure", here, "-o"]),
        ["compare", here, here, "-o"],
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
