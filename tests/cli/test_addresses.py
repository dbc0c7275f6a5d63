"""Commands on an atlas in object storage."""

from __future__ import annotations

from pathlib import Path

import pytest

from headatlas.atlas.store import atlas_path
from tests.cli.conftest import Run, parsed
from tests.storage.bucket import keys, objects
from tests.synthetic import make_atlas


@pytest.fixture
def there(store: str) -> str:
    """The address of an atlas, with credentials."""
    make_atlas(atlas_path(store), 4, 3)  # type: ignore[arg-type]
    return store.replace("://", "://me:secret@")


def test_reading_commands(run: Run, there: str, shared_folder: Path) -> None:
    """They print what they print of a folder."""
    for command in (["heads", "--all"], ["head", "2.1"], ["describe"]):
        name, *rest = command
        assert run(name, there, *rest).stdout == run(name, shared_folder, *rest).stdout
    info = parsed(run("info", there, "--json"))
    assert info["path"] == "bucket://somewhere/out/atlas.zarr"
    assert "secret" not in run("info", there).output
    assert run("heads", f"{there}/atlas.zarr").stdout == run("heads", shared_folder).stdout


def test_files_go_where_they_are_asked_to(run: Run, there: str, tmp_path: Path) -> None:
    result = run("plot", there, "-o", tmp_path / "here.svg", "--data", tmp_path / "plotted.csv")
    assert "plotted.csv" in result.output and "secret" not in result.output
    assert (tmp_path / "here.svg").read_bytes().startswith(b"<?xml")
    assert "bucket://somewhere/out/report.html" in run("report", there).output
    run("report", there, "-o", tmp_path / "page.html")
    run("export", there, "-o", tmp_path / "table.parquet")
    found = {key.removeprefix("somewhere/out/") for key in keys() if "atlas.zarr" not in key}
    assert found == {"report.html"}
    assert objects()["somewhere/out/report.html"] == (tmp_path / "page.html").read_bytes()


def test_what_is_not_there(run: Run, store: str) -> None:
    result = run("heads", store.replace("://", "://me:secret@"), code=2)
    assert "bucket://somewhere/out/atlas.zarr: there is no atlas here" in result.output
    assert "secret" not in result.output


def test_outputs_beside_an_atlas_in_storage(there: str) -> None:
    from headatlas.atlas import Atlas
    from headatlas.outputs import write_outputs
    from tests.cli.test_files import OUTPUTS

    written = write_outputs(Atlas.open(there), there)
    assert {path.name for path in written} == OUTPUTS
    assert {key for key in keys() if "atlas.zarr" not in key} == {f"somewhere/out/{name}" for name in OUTPUTS}
