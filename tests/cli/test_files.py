"""Files written from an atlas: export, plot, report, and all the outputs of a map."""

from __future__ import annotations

import json
import os
import stat
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import xarray as xr

from headatlas.atlas import Atlas
from headatlas.atlas.atlas import with_thresholds
from headatlas.atlas.export import export_table
from headatlas.atlas.store import remove_atlas
from headatlas.atlas.stored import store_dataset
from headatlas.cli.evidence import _writing
from headatlas.errors import HeadatlasError
from headatlas.files import atomic_write
from headatlas.outputs import UnwrittenError, write_heads_ablation, write_outputs
from tests.cli.conftest import Run
from tests.full_disk import file_size_limit

OUTPUTS = {
    *("heads.parquet", "categories.csv", "categories.png", "categories.svg", "categories.pdf"),
    *("description.txt", "report.html"),
}


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".json"])
def test_export_keeps_every_number(run: Run, shared_folder: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / f"heads{suffix}"
    run("export", shared_folder, "-o", path, "--tau", 0.3)
    frame = {".parquet": pd.read_parquet, ".csv": pd.read_csv, ".json": _read_json}[suffix](path)
    table = Atlas.open(shared_folder).at(tau=0.3).table()
    assert len(frame) == len(table)
    for name in table.columns:
        if table[name].dtype.kind == "f":
            np.testing.assert_array_equal(frame[name].to_numpy(dtype=float), table[name].to_numpy())
        else:
            # pandas reads an empty cell of a CSV as missing.
            assert frame[name].fillna("").tolist() == table[name].tolist()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def _read_json(path: Path) -> pd.DataFrame:
    body = json.loads(path.read_text())
    assert body["model"] == "Synthetic-1M" and body["lens"] == "neutral"
    assert body["thresholds"]["tau"] == 0.3
    assert "year_to_following" in body["relations_left_out"]
    return pd.DataFrame(body["rows"])


def test_exported_rows_say_what_they_were_read_with(shared_folder: Path) -> None:
    frame = with_thresholds(Atlas.open(shared_folder))
    assert set(frame.loc[frame["relation"] == "copying", "k"]) == {1}
    assert set(frame.loc[frame["relation"] == "country_to_capital", "k"]) == {10}
    assert set(zip(frame["model"], frame["lens"], frame["tau"], frame["criterion"], strict=True)) == {
        ("Synthetic-1M", "neutral", 0.15, "calibrated")
    }


def test_parquet_carries_the_provenance(shared_folder: Path, tmp_path: Path) -> None:
    path = export_table(Atlas.open(shared_folder), tmp_path / "heads.parquet")
    header = json.loads(pq.read_schema(path).metadata[b"headatlas"])
    assert header["provenance"]["tokenizer_hash"] == "sha256:1"
    assert header["caption"].startswith("Synthetic-1M; lens neutral")


@pytest.mark.parametrize(
    ("kind", "name", "magic"),
    [("categories", "a.pdf", b"%PDF"), ("relations", "b.png", b"\x89PNG"), ("layers", "c.svg", b"<?xml")],
)
def test_plot(run: Run, shared_folder: Path, tmp_path: Path, kind: str, name: str, magic: bytes) -> None:
    path, data = tmp_path / name, tmp_path / "data.csv"
    result = run("plot", shared_folder, "--kind", kind, "-o", path, "--width", "12cm", "--data", data)
    assert path.read_bytes().startswith(magic)
    assert {"layer"} <= set(pd.read_csv(data).columns)
    assert result.stdout == ""
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([name, "data.csv"])


def test_report_goes_beside_the_atlas(run: Run, folder: Path, tmp_path: Path) -> None:
    run("report", folder)
    assert (folder / "report.html").read_text().lstrip().lower().startswith("<!doctype html")
    run("report", folder / "atlas.zarr", "-o", tmp_path / "page.html", "--tau", 0.4)
    assert (tmp_path / "page.html").exists()


def test_outputs_of_a_map(folder: Path) -> None:
    written = write_outputs(Atlas.open(folder), folder)
    assert {path.name for path in written} == OUTPUTS
    assert {path.name for path in folder.iterdir()} == OUTPUTS | {"atlas.zarr"}
    assert len(pd.read_csv(folder / "categories.csv")) == 12
    assert len(pd.read_parquet(folder / "heads.parquet")) == 12 * 19
    assert all(path.stat().st_mode & stat.S_IROTH for path in written)


def test_outputs_without_figures(folder: Path) -> None:
    assert {path.name for path in write_outputs(Atlas.open(folder), folder, figures=False)} == {
        "heads.parquet",
        "categories.csv",
    }


@pytest.mark.parametrize(
    ("part", "lost"),
    [
        ("headatlas.outputs.write_table", {"categories.csv"}),
        ("headatlas.figures.plots.figure_bytes", {f"categories{s}" for s in (".png", ".svg", ".pdf")}),
        ("headatlas.figures.describe.describe", {"description.txt", "report.html"}),
        ("headatlas.report.page.page_data", {"report.html"}),
        ("headatlas.atlas.export.with_thresholds", {"heads.parquet"}),
    ],
)
@pytest.mark.parametrize("error", [ZeroDivisionError("no heads"), HeadatlasError("a font is missing.")])
def test_a_fault_in_one_output_costs_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch, part: str, lost: set[str], error: Exception
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    module, _, name = part.rpartition(".")
    monkeypatch.setattr(import_module(module), name, broken)
    with pytest.raises(UnwrittenError) as caught:
        write_outputs(Atlas.open(folder), folder)
    assert {path.name for path in caught.value.written} == OUTPUTS - lost
    assert {path.name for path in folder.iterdir()} == OUTPUTS - lost | {"atlas.zarr"}
    message = str(caught.value)
    assert message.startswith(f"{folder}: not written: ") and message.endswith(
        "; all other outputs are written."
    )
    assert message.count(str(error).rstrip(".")) == 1 and "remove" not in message
    assert ("a fault in headatlas, ZeroDivisionError: no heads" in message) is isinstance(
        error, ArithmeticError
    )


def test_a_full_disk_costs_no_other_output(folder: Path) -> None:
    write_outputs(Atlas.open(folder), folder, figures=False)
    old = (folder / "heads.parquet").read_bytes()
    sizes = {path.name: path.stat().st_size for path in write_outputs(Atlas.open(folder), folder)}
    (folder / "description.txt").unlink()
    limit = sum(sorted(sizes.values())[2:4]) // 2
    with file_size_limit(limit), pytest.raises(UnwrittenError) as caught:
        write_outputs(Atlas.open(folder).at(tau=0.16), folder)
    fits = {name for name, size in sizes.items() if size <= limit}
    assert fits < {*sizes} and "heads.parquet" not in fits and "description.txt" in fits
    assert {path.name for path in caught.value.written} == fits
    assert "cannot be written (File too large); make room" in str(caught.value)
    assert (folder / "heads.parquet").read_bytes() == old
    assert (folder / "description.txt").exists()
    assert {path.name for path in folder.iterdir()} == OUTPUTS | {"atlas.zarr"}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")
    full = pytest.raises(HeadatlasError, match=r"table\.csv: cannot be written \(No space left.*; make room")
    with full, atomic_write(path) as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]


def test_evidence_that_cannot_be_written_says_where_to_go(tmp_path: Path) -> None:
    """Room is not what is missing."""
    (tmp_path / "atlas.zarr").write_text("")
    with pytest.raises(HeadatlasError, match="copy the atlas into a folder that can be written"):
        store_dataset(tmp_path / "atlas.zarr" / "evidence", xr.Dataset(), {})


def test_tables_of_evidence_that_cannot_be_written_say_where_to_go(folder: Path) -> None:
    """The commands that measure have no ``-o``."""
    (folder / "evidence").write_text("")
    with pytest.raises(HeadatlasError, match="evidence is a file, not a folder; copy the atlas"):
        write_heads_ablation(Atlas.open(folder), pd.DataFrame({"loss": [1.0]}), [(0, 0)])


def test_evidence_is_written_also_where_nobody_reads_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of ``headatlas salience DIR | head -1``."""
    atlas, frame = Atlas.open(folder), pd.DataFrame({"loss": [1.0]})
    files = _writing(atlas, lambda: write_heads_ablation(atlas, frame, [(0, 0)]))
    with pytest.raises(BrokenPipeError), files:
        raise BrokenPipeError
    assert (folder / "evidence" / "without-0.0.csv").is_file()
    assert capsys.readouterr().err == f"written to {folder}: evidence/without-0.0.csv\n"


def test_force_deletes_an_atlas_and_nothing_else(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    assert remove_atlas(folder)
    assert [file.name for file in folder.iterdir()] == ["notes.txt"]
    assert not remove_atlas(folder)


@pytest.mark.parametrize("kind", ["folder", "file", "other zarr", "link"])
def test_force_deletes_no_strange_folder(tmp_path: Path, shared_folder: Path, kind: str) -> None:
    path = tmp_path / "atlas.zarr"
    if kind == "file":
        path.write_text("mine")
    elif kind == "link":
        path.symlink_to(shared_folder / "atlas.zarr")
    else:
        path.mkdir()
        (path / "mine.txt").write_text("mine")
        if kind == "other zarr":
            (path / "zarr.json").write_text('{"attributes": {"title": "weather"}}')
    with pytest.raises(HeadatlasError, match="not an atlas"):
        remove_atlas(tmp_path)
    assert path.exists()


def test_a_pipe_is_no_place_for_a_file_and_a_link_is_followed(tmp_path: Path) -> None:
    pipe, link, target = (tmp_path / name for name in ("pipe", "link", "target"))
    os.mkfifo(pipe)
    link.symlink_to(target.name)
    for there in (False, True):
        with atomic_write(link) as temporary:
            temporary.write_text(str(there))
        assert link.is_symlink() and target.read_text() == str(there)
    with pytest.raises(HeadatlasError, match="pipe: is a device or a pipe, not a file"), atomic_write(pipe):
        pass
    assert pipe.is_fifo()
