"""What was watched is stored once, read without torch, shown, and goes on after an interruption."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pytest

import headatlas as ha
from headatlas import looking
from headatlas.atlas import Atlas
from headatlas.atlas.behaviours import COLUMNS, Looking, best_first
from headatlas.errors import HeadatlasError
from headatlas.looking import measuring
from tests.cli.conftest import invoke, parsed
from tests.looking.planted import PLANTED, text_file

ROOT = Path(__file__).parents[2]


def test_rows_as_json(watched: Path, text: Path) -> None:
    found = parsed(invoke("behaviour", watched, "--text", text, "--json", "--no-figures"))
    assert {"model", "lens", "thresholds", "caption", "rows", "about"} == set(found)
    assert list(found["rows"][0]) == list(COLUMNS)
    called = {(row["behaviour"], row["layer"], row["head"]) for row in found["rows"] if row["called"]}
    assert called == PLANTED
    entropy = [row for row in found["rows"] if row["behaviour"] == "entropy"]
    assert len(entropy) == 8 and all(row["q"] is None for row in entropy)
    assert "does not say what it writes" in found["about"]


def test_the_table_has_the_best_heads_first(watched: Path, text: Path) -> None:
    args = ("behaviour", watched, "--text", text, "--no-figures")
    result = invoke(*args, "--only", "Self,previous-token", "--limit", 2)
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[:2] for line in lines[1:]] == [
        *(["self", "0.3"], ["self", lines[2][1]]),
        *(["previous_token", "0.0"], ["previous_token", lines[4][1]]),
    ]
    assert [line[-1] for line in lines[1:]].count("called") == 2
    assert "called heads: self 1, previous_token 1; any of these 2 of 8" in result.stderr
    assert "called: q ≤ 0.01 and value − expected ≥ 0.1" in result.stderr


def test_table_and_figure_are_written(watched: Path, text: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(watched, tmp_path / "out"))
    invoke("behaviour", out, "--text", text)
    names = sorted(path.name for path in (out / "evidence").iterdir())
    assert names == [f"behaviour-words.{suffix}" for suffix in ("csv", "pdf", "png", "svg")]
    assert list(pd.read_csv(out / "evidence" / "behaviour-words.csv").columns) == list(COLUMNS)
    svg = (out / "evidence" / "behaviour-words.svg").read_text(encoding="utf-8")
    assert "Induction: 1 called, most 1.0" in svg and "Previous token" in svg


def test_what_is_stored_is_not_measured_again(watched: Path, text: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(watched, tmp_path / "out"))
    first = ha.behaviour(Atlas.open(out), text=text)
    with patch.object(measuring, "running", side_effect=AssertionError("measured again")):
        pd.testing.assert_frame_equal(ha.behaviour(Atlas.open(out), text=text), first)
    # Another text is kept beside it; another version of the definitions takes its place.
    ha.behaviour(Atlas.open(out), text=text_file(tmp_path, 25, seed=1))
    assert len(Looking.all_in(Atlas.open(out).path)) == 2
    watched = patch.object(measuring, "measure_attention", wraps=measuring.measure_attention)
    with patch.object(measuring, "DEFINITIONS", 2), watched as measured:
        ha.behaviour(Atlas.open(out), text=text)
    assert measured.call_count == 1


def test_shipped_texts_are_what_an_atlas_shows(fresh: Path, tmp_path: Path) -> None:
    atlas = Atlas.open(fresh)
    assert atlas.behaviours().empty and list(atlas.behaviours().columns) == list(COLUMNS)
    with pytest.raises(HeadatlasError, match="run `headatlas behaviour` first"):
        atlas.plot.behaviours()
    frame = ha.behaviour(atlas)
    pd.testing.assert_frame_equal(atlas.behaviours(), frame)
    assert "shipped texts" in atlas.behaviours().attrs["caption"]
    # It is evidence of its own: a copy has it, the table of relations has no other column, info names it.
    atlas.save(tmp_path / "copy")
    pd.testing.assert_frame_equal(Atlas.open(tmp_path / "copy").behaviours(), frame)
    assert not set(atlas.table().columns) & {"behaviour", "expected"}
    assert "texts of headatlas" in invoke("info", fresh).stdout
    code = (
        f"import sys; from headatlas.atlas import Atlas; atlas = Atlas.open({str(fresh)!r})\n"
        "assert len(atlas.behaviours()) and atlas.plot.behaviours(which='induction')\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True, timeout=120)


def test_what_is_measured_and_drawn_is_shown_without_the_model(fresh: Path) -> None:
    invoke("behaviour", fresh)
    there = {path: path.stat().st_mtime_ns for path in (fresh / "evidence").iterdir()}
    assert len(there) == 4
    code = (
        f"import sys; from headatlas.cli import app\ntry: app(['behaviour', {str(fresh)!r}])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'transformers', 'matplotlib', 'scipy'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert "called heads" in done.stderr and "written" not in done.stderr
    assert {path: path.stat().st_mtime_ns for path in there} == there
    # A figure that is gone is drawn again; so is all of it once another measurement is stored.
    (fresh / "evidence" / "behaviour.png").unlink()
    assert "written to" in invoke("behaviour", fresh).stderr
    with patch.object(looking, "DEFINITIONS", 2), patch.object(measuring, "DEFINITIONS", 2):
        invoke("behaviour", fresh)
    assert all(path.stat().st_mtime_ns > then for path, then in there.items())


class Killed(BaseException):
    """Stands for Ctrl-C."""


def test_a_killed_run_goes_on(fresh: Path, watched: Path, text: Path) -> None:
    def dying(tell: Any) -> None:
        if tell.stage == "behaviour" and tell.done > 40:
            raise Killed

    with patch.object(measuring, "SECONDS_BETWEEN_SAVES", 0.0):
        with pytest.raises(Killed):
            ha.behaviour(Atlas.open(fresh), text=text, progress=dying)
        assert not Looking.all_in(Atlas.open(fresh).path)
        seen: list[int] = []
        frame = ha.behaviour(
            Atlas.open(fresh),
            text=text,
            progress=lambda tell: seen.append(tell.done) if tell.stage == "behaviour" else None,
        )
    assert 0 < seen[0] <= 40 and seen[-1] == 85
    pd.testing.assert_frame_equal(frame, ha.behaviour(Atlas.open(watched), text=text))
    group = fresh / "atlas.zarr" / "evidence"
    assert [path.name for path in group.glob(".*")] == []


def test_what_is_wrong_is_said(fresh: Path, text: Path) -> None:
    result = invoke("behaviour", fresh, "--only", "indction", code=2)
    assert result.stderr.startswith(
        "error: --only: there is no behaviour 'indction'; choose from previous_token"
    )
    result = invoke("behaviour", fresh, "--text", fresh / "no.txt", code=2)
    assert re.search(r"error: .*no\.txt: cannot be read", result.stderr)
    with pytest.raises(HeadatlasError, match="digits was not measured"):
        ha.behaviour(Atlas.open(fresh), text=text, only=["digits"])
    kept = next((fresh / "atlas.zarr" / "evidence").glob("behaviour-*"))
    shutil.rmtree(kept / "value")
    with pytest.warns(UserWarning, match=r"is damaged \(it lacks value\); remove this folder"):
        assert not Looking.all_in(Atlas.open(fresh).path)


def test_order_of_rows() -> None:
    rows = [(0, 0, "self", 0.5, 0.4), (0, 1, "self", 0.3, 0.1), (1, 0, "induction", 0.2, 0.1)]
    frame = pd.DataFrame(rows, columns=["layer", "head", "behaviour", "value", "expected"])
    assert best_first(frame)[["layer", "head"]].to_numpy().tolist() == [[0, 1], [0, 0], [1, 0]]
