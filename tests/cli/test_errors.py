"""What a user gets wrong is said in one line, with exit code 2 and nothing on stdout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from headatlas.atlas import Atlas
from headatlas.atlas.store import read_store
from headatlas.errors import HeadatlasError
from headatlas.options import Thresholds
from tests.cli.conftest import Run


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["heads", "{no}"], ["there is no atlas", "headatlas map"]),
        (["heads", "{dir}", "--only", "bogus"], ["'bogus'", "country_to_capital"]),
        (["heads", "{dir}", "--only", "year_to_following"], ["left out", "usable sources"]),
        (["heads", "{dir}", "--category", "bogus"], ["'bogus'", "Knowledge"]),
        (["heads", "{dir}", "--k", "33"], ["--k is 33", "ceiling 32", "--ceiling 33"]),
        (["heads", "{dir}", "--k", "0"], ["--k is 0", "at least 1"]),
        (["heads", "{dir}", "--k-copy", "40"], ["--k-copy is 40"]),
        (["heads", "{dir}", "--tau", "1.5"], ["--tau is 1.5", "between 0 and 1"]),
        (["heads", "{dir}", "--q-max", "-1"], ["--q-max is -1"]),
        (["heads", "{dir}", "--preset", "bogus"], ["'bogus'", "maps-paper"]),
        (["plot", "{dir}", "-o", "x.pdf", "--width", "wide"], ["--width", "'wide'", "170mm"]),
        (["plot", "{dir}", "-o", "x.pdf", "--width", "3mm"], ["--width", "20 mm"]),
        (
            ["export", "{dir}", "-o", "{dir}/atlas.zarr/zarr.json"],
            ["this is inside the atlas {dir}/atlas.zarr"],
        ),
        (["plot", "{dir}", "-o", "x.svg", "--data", "{dir}/atlas.zarr/a/b.csv"], ["is inside the atlas"]),
        (["map", "m", "-o", "{dir}/atlas.zarr/more"], ["is inside the atlas"]),
        (["export", "{dir}", "-o", "x.xlsx"], ["x.xlsx", ".parquet, .csv, .json"]),
        (["export", "{dir}", "-o", "/proc/x/heads.csv"], ["/proc/x/heads.csv", "cannot be written"]),
        (["heads", "{dir}", "--only", "captial"], ["'captial'", "did you mean country_to_capital?"]),
        (["relations", "check", "{no}"], ["no such file"]),
        (
            ["map", "smollm2-135m", "-o", "{no}", "--relations", "captial"],
            ["did you mean country_to_capital?"],
        ),
        (["plan", "smollm2-135m", "--relations", "core,{no}"], ["no such file"]),
        (["relations", "show", "bogus"], ["bogus", "headatlas relations list"]),
        (["map", "smollm2-135m", "-o", "/proc/x"], ["/proc/x", "cannot be written", "-o"]),
        (["map", "smollm2-135m", "-o", "{file}"], ["is a file, not a folder"]),
        (["map", "smollm2-135m", "-o", "{file}/inside"], ["is a file, not a folder"]),
        (["map", "smollm2-135m", "-o", "{no}", "--k", "40"], ["--k is 40", "ceiling 32"]),
        (["map", "smollm2-135m", "-o", "{no}", "--q-max", "7"], ["--q-max is 7"]),
        (["map", "smollm2-135m", "-o", "{no}", "--preset", "bogus"], ["--preset:", "'bogus'", "maps-paper"]),
        (["map", "smollm2-135m", "-o", "{no}", "--max-memory", "6"], ["--max-memory 6: 6 bytes", "like 6GB"]),
        (["plan", "smollm2-135m", "--max-memory", "6XB"], ["--max-memory 6XB", "like 6GB or 800MB"]),
        (["plan", "smollm2-135m", "--device", "gpu"], ["--device is 'gpu'", "cuda:N"]),
        (["heads", "{dir}", "--only", ","], ["--only names nothing"]),
        (["heads", "{dir}", "--category", ""], ["no category ''"]),
        (["structure", "{dir}", "-o", "x.gif"], ["x.gif", ".png"]),
        (
            ["map", "smollm2-135m", "-o", "{no}", "--lens", "foo"],
            ["--lens: 'foo' is not one of 'neutral', 'maps'"],
        ),
        (
            ["map", "smollm2-135m", "-o", "{no}", "--ceiling", "few"],
            ["--ceiling is few: it must be a whole"],
        ),
        (["map", "m", "-o", "{no}", "--ceiling", "0"], ["--ceiling is 0: it must be at least 1"]),
        (["plot", "{dir}", "-o", ""], ["to an empty path; give the name of a file"]),
        (["relations", "export", "core", "-o", ""], ["to an empty path"]),
        (["heads", "n" * 300], ["cannot be read: File name too long"]),
        (["map", "m", "-o", "n" * 300], ["cannot be written (File name too long)"]),
        (["heads", "{dir}", "--tau", "high"], ["--tau is high: it must be a number"]),
        (["heads", "{dir}", "--limit", "-1"], ["--limit is -1: it must be at least 1"]),
        (["serve", "{dir}", "--port", "99999"], ["--port is 99999: it must be at most 65535"]),
    ],
)
def test_one_clear_line(
    run: Run, shared_folder: Path, tmp_path: Path, args: list[str], parts: list[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("text")
    places = {"dir": str(shared_folder), "no": str(tmp_path / "missing"), "file": str(file)}
    result = run(*(arg.format(**places) for arg in args), code=2)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    for part in parts:
        assert part.format(**places) in result.stderr
    assert not (tmp_path / "missing").exists()


def test_a_damaged_list_of_sources_is_named(run: Run, folder: Path) -> None:
    data, provenance = read_store(folder / "atlas.zarr")
    data = data.load().assign(dropped=data["dropped"].copy(data=np.full(data["dropped"].shape, "[", object)))
    with pytest.raises(HeadatlasError, match=r"dropped is damaged \(.*remove the folder and map again"):
        _ = Atlas(data, provenance, Thresholds()).relations


@pytest.mark.parametrize(
    "content", ["", "{", '{"attributes": {}}', '{"attributes": {"headatlas_schema": 1}, "node_type": 3}']
)
def test_a_damaged_atlas_is_named(run: Run, folder: Path, content: str) -> None:
    (folder / "atlas.zarr" / "zarr.json").write_text(content)
    stderr = run("heads", folder, code=2).stderr
    assert str(folder / "atlas.zarr") in stderr
    assert len(stderr.splitlines()) == 1


def test_an_atlas_of_a_newer_headatlas(run: Run, folder: Path) -> None:
    file = folder / "atlas.zarr" / "zarr.json"
    store = json.loads(file.read_text())
    store["attributes"]["headatlas_schema"] = 99
    file.write_text(json.dumps(store))
    assert "schema 99" in run("heads", folder, code=2).stderr


def test_a_malformed_relation_file_names_its_line(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("source,target\nFrance,Paris\nItaly\n")
    assert f"{file}, line 3" in run("relations", "check", file, code=2).stderr


@pytest.mark.parametrize("place", [0, 3])
def test_debug_shows_the_traceback_wherever_it_stands(run: Run, tmp_path: Path, place: int) -> None:
    args = ["heads", str(tmp_path), "--json"]
    args.insert(place, "--debug")
    assert isinstance(run(*args, code=1).exception, HeadatlasError)


def test_debug_in_the_environment(run: Run, tmp_path: Path) -> None:
    assert isinstance(run("heads", tmp_path, code=1, env={"HEADATLAS_DEBUG": "1"}).exception, HeadatlasError)


def test_the_process_itself(tmp_path: Path) -> None:
    for debug in ("", "1"):
        done = subprocess.run(
            [sys.executable, "-m", "headatlas", "heads", str(tmp_path)],
            env={**os.environ, "HEADATLAS_DEBUG": debug},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == ""
        assert ("Traceback" in done.stderr) == bool(debug)
        assert done.returncode == (1 if debug else 2)


def started(*args: object, **changes: str) -> subprocess.CompletedProcess[bytes]:
    """The command as a process of its own, with changes of its environment."""
    return subprocess.run(
        [sys.executable, "-m", "headatlas", *map(str, args)],
        capture_output=True,
        env={**os.environ, **changes},
        timeout=50,
        check=False,
    )


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="the system has no device that is full")
@pytest.mark.parametrize("args", [["--help"], ["heads", "{dir}", "--json"]])
def test_an_output_that_is_full(shared_folder: Path, args: list[str]) -> None:
    command = [sys.executable, "-m", "headatlas", *(each.format(dir=shared_folder) for each in args)]
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=50, check=False)
    assert done.returncode == 2
    assert done.stderr.decode().startswith("error: standard output") and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("args", "both"),
    [(["--help"], False), (["heads", "{dir}"], False), (["heads", "{no}"], True), (["heads", "--no"], True)],
)
def test_an_output_that_nobody_reads(shared_folder: Path, args: list[str], both: bool) -> None:
    """As of ``headatlas heads DIR | head -1``: silent, with the exit code of what SIGPIPE ends."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "headatlas", *(a.format(dir=shared_folder, no="/nowhere") for a in args)]
    stderr = write if both else subprocess.PIPE
    done = subprocess.run(command, stdout=write, stderr=stderr, timeout=50, check=False)
    os.close(write)
    assert done.returncode == 141
    assert b"rror" not in (done.stderr or b"")


def test_an_output_that_lacks_our_characters(shared_folder: Path) -> None:
    done = started("info", shared_folder, PYTHONIOENCODING="latin-1")
    assert done.returncode == 0 and b"\\u2265 0.15" in done.stdout, done.stdout.decode()


def test_a_name_that_is_too_long() -> None:
    done = started("info", "x" * 300)
    assert done.returncode == 2 and b"File name too long" in done.stderr and b"Traceback" not in done.stderr
