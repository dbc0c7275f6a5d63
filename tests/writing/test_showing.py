"""Salience of whole models: as defined, stored once, read without torch, shown safely."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner, Result

import headatlas as ha
from headatlas import writing
from headatlas.atlas import Atlas
from headatlas.atlas.salience import (
    COLUMNS,
    EXPLAINED_BY,
    EXPLAINED_COLUMNS,
    SPECTRUM_COLUMNS,
    Salience,
    head_rows,
    stored_salience,
)
from headatlas.atlas.stored import store_dataset
from headatlas.cli import app
from headatlas.errors import HeadatlasError
from headatlas.evidence.opening import reopened
from headatlas.lenses import NEUTRAL_PREFIXES, MapsStates, NeutralStates, States
from headatlas.mapping.run import layer_inputs
from headatlas.showing import tokens_shown
from headatlas.writing import run
from tests.cli.conftest import parsed
from tests.mapping.checkpoints import word
from tests.writing.layers import brute_force

ROOT = Path(__file__).parents[2]


def invoke(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, f"exit {result.exit_code}: {result.output} {result.exception!r}"
    return result


@pytest.mark.parametrize("lens", ["maps", "neutral"])
def test_a_model_is_read_as_defined(lens: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    atlas = Atlas.open(request.getfixturevalue(f"written_{lens}"))
    prepared, _ = reopened(atlas)
    competing = np.flatnonzero(prepared.competing)
    sources = [(token,) for token in competing.tolist()]
    states: States = (
        MapsStates(prepared.model, sources)
        if lens == "maps"
        else NeutralStates.compute(prepared.model, sources, NEUTRAL_PREFIXES, tmp_path / "s", identity="")
    )
    frame = atlas.salience()
    assert list(frame.columns) == list(COLUMNS)
    rows = frame.set_index(["layer", "head"])
    for layer in range(atlas.n_layers):
        inputs = layer_inputs(prepared, states, layer)
        expected = brute_force(inputs, prepared.model.unembed(), competing, competing)
        for head in range(atlas.n_heads):
            mine = rows.loc[(layer, head)]
            assert mine["order"].tolist() == list(range(30))
            for found, wanted in zip(mine.to_dict("records"), expected[head], strict=True):
                assert found["source_id"] == wanted[0]
                assert found["gain"] == pytest.approx(wanted[1], rel=1e-9)
                assert (found["promoted_ids"], found["suppressed_ids"]) == wanted[2:]
                assert found["promoted"] == [f" {word(token)}" for token in wanted[2]]


def test_spectrum_and_shares(written_neutral: Path, tmp_path: Path) -> None:
    atlas = Atlas.open(written_neutral)
    spectrum, explained = atlas.spectrum(), atlas.explained()
    stored = stored_salience(atlas.path)
    assert stored is not None
    for mine, every in zip(stored.of_head(1, 2), (atlas.salience(), spectrum, explained), strict=True):
        assert len(mine) and mine.equals(head_rows(every, (1, 2)))
    assert list(spectrum.columns) == list(SPECTRUM_COLUMNS)
    assert list(explained.columns) == list(EXPLAINED_COLUMNS)
    assert len(spectrum) == len(explained) == atlas.n_layers * atlas.n_heads
    np.testing.assert_allclose(spectrum.groupby("layer")["norm_share"].sum(), 1.0)
    assert spectrum["copying"].between(-1, 1).all() and explained["explained"].between(0, 1).all()
    explained.to_parquet(tmp_path / "explained.parquet")
    read = pd.read_parquet(tmp_path / "explained.parquet")
    assert [list(each) for each in read["relations"]] == explained["relations"].tolist()
    named = {tuple(each) for row in explained["relations"] for each in row}
    assert named == {EXPLAINED_BY["relations"]} == {("relation", "n_sources")}
    first = spectrum["directions"].iloc[0]
    assert [each["singular_value"] for each in first] == spectrum["singular_values"].iloc[0][: len(first)]
    ends = first[0]["ends"]
    assert ends[0]["promoted"] == ends[1]["suppressed"] and ends[0]["reads"] != ends[1]["reads"]
    assert all(len(end[name]) == 5 for end in ends for name in end)


def test_what_is_stored_is_not_computed_again(written: Path, tmp_path: Path) -> None:
    atlas = Atlas.open(written)
    first = atlas.salience()
    with patch.object(run, "reopened", side_effect=AssertionError("computed again")):
        pd.testing.assert_frame_equal(ha.salience(atlas), first)
        pd.testing.assert_frame_equal(ha.salience(atlas, tokens="all"), first)
    opened = patch.object(run, "reopened", wraps=run.reopened)
    with opened as computed:
        # No token of this tokenizer is made of letters alone but those of the text around its words.
        few = ha.salience(atlas, tokens="wordlike")
        pd.testing.assert_frame_equal(ha.salience(atlas), few)
    assert computed.call_count == 1 and set(few["source"]) == {" The", " of"}
    with opened as computed, patch.object(writing, "DEFINITIONS", 0):
        ha.salience(atlas)
    assert computed.call_count == 1
    atlas.save(tmp_path / "copy")
    pd.testing.assert_frame_equal(Atlas.open(tmp_path / "copy").salience(), atlas.salience())


def test_an_atlas_is_read_without_torch(written_maps: Path) -> None:
    code = (
        f"import sys; from headatlas.atlas import Atlas; atlas = Atlas.open({str(written_maps)!r})\n"
        "assert len(atlas.salience()) and len(atlas.spectrum()) and len(atlas.explained())\n"
        f"from headatlas.cli import app\ntry: app(['salience', {str(written_maps)!r}])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True, timeout=120)


def test_nothing_is_there_before(fresh: Path) -> None:
    atlas = Atlas.open(fresh)
    for frame, columns in (
        (atlas.salience(), COLUMNS),
        (atlas.spectrum(), SPECTRUM_COLUMNS),
        (atlas.explained(), EXPLAINED_COLUMNS),
    ):
        assert frame.empty and list(frame.columns) == list(columns)
    ha.salience(atlas)
    assert len(atlas.salience()) == 30 * atlas.n_layers * atlas.n_heads
    assert "a high gain is not use" in atlas.salience().attrs["caption"]


def test_rows_as_json(written: Path) -> None:
    found = parsed(invoke("salience", written, "--json"))
    assert {"model", "lens", "thresholds", "caption", "rows", "about", "spectrum"} == set(found)
    assert list(found["rows"][0]) == list(COLUMNS) and len(found["rows"]) == 12 * 30
    one = parsed(invoke("salience", written, "--head", "1.2", "--json"))
    assert one["rows"] == [row for row in found["rows"] if (row["layer"], row["head"]) == (1, 2)]
    assert one["spectrum"] == [row for row in found["spectrum"] if (row["layer"], row["head"]) == (1, 2)]


def test_tables(written: Path) -> None:
    result = invoke("salience", written)
    assert [line.split()[0] for line in result.stdout.splitlines()][:2] == ["head", "0.0"]
    assert "undertrained ones cannot be told" in result.stderr and "not use" in result.stderr
    lines = invoke("salience", written, "--head", "1.2").stdout.splitlines()
    assert lines[0].split() == ["gain", "source", "promotes", "suppresses"]
    assert [line.split("  ")[0] for line in lines if line.startswith(("effective", "copying", "explained"))]
    assert sum(line.split()[:1] == ["1"] for line in lines) == 2


def test_hostile_tokens_are_escaped(written: Path) -> None:
    bad = " \x1b[31m\u202eevil\n"
    there = stored_salience(Atlas.open(written).path)
    assert there is not None
    data = there.data
    texts = np.array([bad] * data.sizes["token"], dtype=np.dtypes.StringDType())
    store_dataset(
        written / "atlas.zarr" / "evidence" / "salience", data.assign(text=("token", texts)), there.provenance
    )
    assert Atlas.open(written).salience()["source"].iloc[0] == bad
    for args in ((), ("--head", "0.0")):
        printed = invoke("salience", written, *args).stdout
        assert r"\x1b[31m\u202eevil\n" in printed
        assert not {"\x1b", "\u202e"} & set(printed)
    assert parsed(invoke("salience", written, "--json"))["rows"][0]["source"] == bad
    assert tokens_shown([" May", "é"]) == "' May' 'é'"


def test_what_is_wrong_is_said(fresh: Path, written: Path) -> None:
    assert "there is no head 9.9" in invoke("salience", written, "--head", "9.9", code=2).stderr
    with pytest.raises(HeadatlasError, match="`tokens` is 'some': use wordlike, initial, all"):
        ha.salience(Atlas.open(fresh), tokens="some")
    with pytest.raises(HeadatlasError, match="map the model into a folder"):
        ha.salience(Atlas.open(fresh).load())
    shutil.rmtree(written / "atlas.zarr" / "evidence" / "salience" / "gain")
    with pytest.warns(UserWarning, match=r"is damaged \(it lacks gain\); remove this folder"):
        assert Atlas.open(written).salience().empty


@pytest.mark.parametrize(
    ("changed", "tokens", "problem"),
    [
        ({"source": 10**6}, {}, "token 1000000 of source is not listed"),
        ({"rest": "{"}, {}, "Expecting property name"),
        ({}, {"left": "many"}, "unsupported operand"),
    ],
)
def test_damaged_salience_is_said(
    written: Path, changed: dict[str, object], tokens: dict[str, str], problem: str
) -> None:
    place = written / "atlas.zarr" / "evidence" / "salience"
    there = Salience.read(place)
    data = there.data
    arrays = {name: data[name].copy(data=np.full_like(data[name], each)) for name, each in changed.items()}
    about = {**there.provenance, "tokens": {**there.provenance["tokens"], **tokens}}
    store_dataset(place, data.assign(arrays), about)
    with pytest.raises(HeadatlasError, match=rf"is damaged \(.*({problem}).*\); remove this folder"):
        Salience.read(place)


def test_arrays_say_what_they_are(written_maps: Path) -> None:
    there = stored_salience(Atlas.open(written_maps).path)
    assert there is not None and isinstance(there.data, xr.Dataset)
    assert there.data["promoted"].dims == ("layer", "head", "order", "place")
    assert there.data["reads"].dims == ("layer", "head", "direction", "end", "place")


def test_tables_and_a_figure_of_all_heads(written: Path) -> None:
    said = invoke("salience", written)
    assert "evidence/salience.csv, evidence/spectrum.csv, evidence/salience.png" in said.stderr
    atlas = Atlas.open(written)
    table = pd.read_csv(written / "evidence" / "spectrum.csv")
    np.testing.assert_allclose(table["copying"], atlas.spectrum()["copying"])
    assert len(pd.read_csv(written / "evidence" / "salience.csv")) == len(atlas.salience())
    (written / "evidence" / "salience.png").unlink()
    invoke("salience", written, "--head", "1.2")
    invoke("salience", written, "--no-figures")
    assert not (written / "evidence" / "salience.png").exists()
