"""An atlas full of hostile text (terminal escapes, bidi marks, HTML, formulas) is shown safely."""

from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr

from headatlas.atlas import Atlas
from headatlas.cli.output import say, say_error
from headatlas.outputs import write_outputs
from headatlas.report.page import report_html
from headatlas.showing import safe_cells, safe_json, safe_text, safe_values
from tests.cli.conftest import Run, run
from tests.describing.made import HOSTILE
from tests.synthetic import make_atlas

__all__ = ["run"]
SEEN_BY_NOBODY = set("\x00\x07\x08\x1b\x7f\x85\x9b\u200b\u2028\u202e\u2066")
EVIL = "\x1b[2J\u202egpj\x9b\x00\u2028\u200b<img src=x onerror=alert(1)>"


def strings(group: zarr.Group, name: str, change: Any) -> None:
    array = group[name]
    assert isinstance(array, zarr.Array)
    values = [str(each) for each in np.asarray(array[:]).tolist()]
    array[:] = np.array([change(each) for each in values], dtype=np.dtypes.StringDType())


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder whose atlas holds hostile titles, categories, words and a hostile model's name."""
    folder = tmp_path_factory.mktemp("hostile") / "out"
    path = folder / "atlas.zarr"
    make_atlas(path, 3, 3)
    group = zarr.open_group(path, mode="r+")
    strings(group, "title", lambda text: f"={text}{EVIL}")
    strings(group, "category", lambda text: f"@{text}{EVIL}")
    strings(group, "subcategory", lambda text: f"+{text}{EVIL}")
    strings(group, "source", lambda text: f"-{text}{EVIL}")
    strings(group, "target", lambda text: f"={text}{EVIL}")
    provenance = json.loads(str(group.attrs["provenance"]))
    provenance["model"]["name"] = f"=model{EVIL}"
    provenance[f"note{EVIL}"] = f"text{EVIL}"
    group.attrs["provenance"] = json.dumps(provenance)
    return folder


@pytest.mark.parametrize(
    "command",
    [
        *("heads", "heads --json", "head 1.1", "describe", "info", "info --json", "structure"),
        *("structure --json", "heads --category bogus\x1b", "head 9.9\x1b[2J"),
    ],
)
def test_no_command_prints_what_nobody_sees(run: Run, hostile: Path, command: str) -> None:
    bad = "\x1b" in command
    name, *rest = command.split()
    result = run(name, hostile, *rest, code=2 if bad else 0)
    assert not set(result.output) & SEEN_BY_NOBODY
    if bad:
        assert len(result.stderr.splitlines()) == 1 and "\\x1b" in result.stderr
    else:
        assert "gpj" in result.output
    if "--json" in rest:
        assert "\x1b[2J\u202egpj" in json.loads(result.stdout)["model"], "a parser gets what was there"


def test_the_files_of_a_map_are_safe(hostile: Path, tmp_path: Path) -> None:
    atlas = Atlas.open(hostile)
    written = write_outputs(atlas, tmp_path)
    names = {path.name for path in written}
    assert {"categories.csv", "categories.svg", "description.txt", "report.html", "heads.parquet"} <= names
    for name in ("categories.csv", "categories.svg", "description.txt", "report.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert not set(text) & SEEN_BY_NOBODY, name
        assert "gpj" in text
    svg = ET.fromstring((tmp_path / "categories.svg").read_bytes())  # noqa: S314
    assert not [each for each in svg.iter() if each.tag.endswith(("img", "script"))]


def test_the_page_holds_no_markup_of_others(hostile: Path) -> None:
    page = report_html(Atlas.open(hostile))
    assert "<img src=x" not in page
    data = re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert data is not None
    model = json.loads(data[1])["model"]
    assert model.startswith("=model\\x1b[2J\\u202egpj") and "<img src=x" in model


def test_tables_hold_no_formula(run: Run, hostile: Path, tmp_path: Path) -> None:
    run("export", hostile, "-o", tmp_path / "heads.csv")
    run("plot", hostile, "-o", tmp_path / "x.svg", "--data", tmp_path / "data.csv")
    for name in ("heads.csv", "data.csv"):
        with (tmp_path / name).open(encoding="utf-8", newline="") as stream:
            cells = [cell for row in csv.reader(stream) for cell in row]
        texts = [cell for cell in cells if not re.fullmatch(r"-?[\d.e+-]+", cell)]
        assert texts and not [cell for cell in texts if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    run("export", hostile, "-o", tmp_path / "heads.json")
    text = (tmp_path / "heads.json").read_text(encoding="utf-8")
    assert not set(text) & SEEN_BY_NOBODY and json.loads(text)["model"] == Atlas.open(hostile).model_name


def test_a_notebook_shows_no_markup_of_others(hostile: Path) -> None:
    atlas = Atlas.open(hostile)
    for text in (atlas._repr_html_(), atlas.table()._repr_html_()):
        assert "<img src=x" not in text


# The functions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
def test_json_gives_back_what_was_there(text: str) -> None:
    dumped = safe_json({"text": [text], text: 1})
    assert json.loads(dumped) == {"text": [text], text: 1}
    assert not set(dumped) & SEEN_BY_NOBODY
    dumped.encode("utf-8")


@pytest.mark.parametrize("text", HOSTILE)
def test_text_and_cells_can_be_shown(text: str) -> None:
    shown = safe_text(text)
    assert shown.isprintable() and shown.encode("utf-8")
    frame = safe_cells(pd.DataFrame({"text": pd.Series([text, [text, "b"]], dtype=object), "n": [-1.5, 2]}))
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in frame["text"])
    assert frame["n"].tolist() == [-1.5, 2]


def test_what_can_be_seen_stays_as_it_is() -> None:
    for text in ("été", "中文", "می\u200cخواهم", "👩\u200d🚀", "a\u0301", "→ “x” …", " Paris", "", "C:\\x1b"):
        assert safe_text(text) == text
    assert safe_text("a\nb") == "a\\nb" and safe_text("a\nb", keep="\n") == "a\nb"
    assert safe_text("\U000e0041") == "\\U000e0041"
    assert safe_values({"a\x1b": ["\u202e", 1, None, ("b\n",)]}) == {"a\\x1b": ["\\u202e", 1, None, ["b\n"]]}
    assert "→" in safe_json("→") and json.loads(safe_json("\U000e0041")) == "\U000e0041"


def test_messages_are_safe(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\x1b[31m\nb")
    say_error("c\u202e\nd")
    assert capsys.readouterr().err == "a\\x1b[31m\nb\nerror: c\\u202e\\nd\n"
