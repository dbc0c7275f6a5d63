"""Evidence where people meet it: commands, files, figures, the page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from headatlas.atlas import Atlas
from headatlas.atlas.evidence import COLUMNS, CRITERIA
from headatlas.atlas.export import export_table
from headatlas.figures import KINDS
from headatlas.figures.colours import DARK
from headatlas.figures.grids import relation_grids
from headatlas.options import FigureKind
from headatlas.outputs import write_outputs
from headatlas.report import write_report
from headatlas.report.data import page_data
from tests.cli.conftest import Run, parsed, run
from tests.evidence.conftest import Planted
from tests.evidence.planted import HEADS, LAYER, template_file
from tests.report.unpacking import unpack

__all__ = ["run"]


def test_the_inference_command(examined: Planted, run: Run, tmp_path: Path) -> None:
    planted = examined.copied(tmp_path / "out")
    result = run("evidence", "inference", planted.folder, "--templates", planted.templates, "--json")
    rows = parsed(result)["rows"]
    assert {row["relation"] for row in rows} == {"first", "second", "mean"}
    assert {"kind", "sign", "pearson", "pearson_low", "spearman", "n_heads"} <= rows[0].keys()
    written = {path.name for path in (planted.folder / "evidence").iterdir()}
    kinds, suffixes = ("context", "without-context"), (".png", ".svg", ".pdf")
    assert written == {"agreement.csv", *(kind + suffix for kind in kinds for suffix in suffixes)}
    table = run("evidence", "inference", planted.folder, "--templates", planted.templates, "--no-figures")
    assert "r with context" in table.stdout and "mean" in table.stdout and "sample" not in table.stderr
    few = ("--templates", template_file(tmp_path, context=["{}"]), "--no-figures", "--sources", 30)
    sampled = run("evidence", "inference", planted.folder, *few)
    assert "70" not in sampled.stdout and "30" in sampled.stdout
    assert "60 texts, 61 tokens through the model, 120 rows a head to rank" in sampled.stderr
    assert "of relations with more than 30 sources a sample was asked" in sampled.stderr
    refused = run("evidence", "inference", planted.folder, "--sources", 3, code=2)
    assert "--sources is 3: it must be a whole number of at least 30" in refused.stderr


@pytest.mark.parametrize("command", [("inference",), ("ablation", "--shots", 0)])
def test_outputs_that_show_evidence_are_written_again(
    mapped: Planted, run: Run, tmp_path: Path, command: tuple[object, ...]
) -> None:
    planted = mapped.copied(tmp_path / "out")
    write_outputs(planted.atlas, planted.folder)
    stale = {name: (planted.folder / name).read_bytes() for name in ("report.html", "heads.parquet")}
    kind, *rest = command
    result = run("evidence", kind, planted.folder, "--templates", planted.templates, "--no-figures", *rest)
    assert "heads.parquet, report.html" in result.stderr
    for name, old in stale.items():
        write = {"report.html": write_report, "heads.parquet": export_table}[name]
        fresh = write(planted.atlas, tmp_path / name).read_bytes()
        assert (planted.folder / name).read_bytes() == fresh != old
    column = {"inference": "confirmed_with_context", "ablation": "confirmed_by_ablation"}[str(kind)]
    assert pd.read_parquet(planted.folder / "heads.parquet")[column].sum() == 2


def test_evidence_adds_no_output_that_was_not_there(examined: Planted, run: Run, tmp_path: Path) -> None:
    """And it goes beside an atlas of any name, not among its arrays."""
    planted = examined.copied(tmp_path / "out")
    (planted.folder / "atlas.zarr").rename(planted.folder / "mine.zarr")
    mine = planted.folder / "mine.zarr"
    arguments = ("--templates", planted.templates, "--model", planted.model)
    run("evidence", "ablation", mine, *arguments, "--shots", 0)
    assert {path.name for path in planted.folder.iterdir()} == {"mine.zarr", "evidence"}
    assert (planted.folder / "evidence" / "ablation.csv").exists()
    assert Atlas.open(mine).evidence


def test_a_fault_in_one_output_of_evidence_costs_no_other(
    examined: Planted, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = examined.copied(tmp_path / "out")
    write_outputs(planted.atlas, planted.folder, figures=False)

    def broken(*_: object, **__: object) -> None:
        raise ValueError("no axis")

    monkeypatch.setattr("headatlas.figures.evidence.draw_scatters", broken)
    result = run("evidence", "inference", planted.folder, "--templates", planted.templates, code=2)
    assert "r with context" in result.stdout
    assert f"written to {planted.folder}: evidence/agreement.csv, heads.parquet" in result.stderr
    assert (
        "not written: evidence/context.png, .svg, .pdf, evidence/without-context.png, .svg, .pdf "
        "(a fault in headatlas, ValueError: no axis"
    ) in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_is_drawn_again_in_another_size(
    examined: Planted, run: Run, tmp_path: Path, kind: FigureKind
) -> None:
    """Or it is said which command makes what it shows."""
    command = {"behaviours": "behaviour", "salience": "salience", "attention": "evidence attention"}.get(kind)
    figure, data = tmp_path / "figure.svg", tmp_path / "data.csv"
    which = ("--which", "second") if kind == "ablation" else ()
    arguments = ("plot", examined.folder, "--kind", kind, "-o", figure, "--data", data)
    result = run(*arguments, *which, "--width", "85mm", "--dark", code=2 if command else 0)
    if command is not None:
        assert result.stderr.endswith(f"run `headatlas {command}` first.\n") and not figure.exists()
        return
    assert f'width="{85 / 25.4 * 72:.3f}'[:12] in figure.read_text() and DARK.paper in figure.read_text()
    assert len(pd.read_csv(data))
    if kind == "ablation":
        assert set(pd.read_csv(data)["task"]) == {"first-shots0-zero", "second-shots0-zero"}
        several = run(*arguments, code=2).stderr
        assert "choose it with --which: first-shots0-zero, second-shots0-zero" in several


def test_the_ablation_command(examined: Planted, run: Run, tmp_path: Path) -> None:
    planted = examined.copied(tmp_path / "out")
    arguments = ("evidence", "ablation", planted.folder, "--templates", planted.templates, "--shots", 0)
    result = run(*arguments, "--only", "second", "--json")
    body = parsed(result)
    assert [task["relation"] for task in body["rows"]] == ["second"] and body["skipped"] == {}
    assert body["rows"][0]["without_relation"] == 0
    names = {path.name for path in (planted.folder / "evidence").iterdir()}
    assert {"ablation.csv", "ablation-second-shots0-zero.svg"} <= names
    assert set(pd.read_csv(planted.folder / "evidence" / "ablation.csv")["relation"]) == {"first", "second"}
    shown = run(*arguments, "--no-figures")
    assert "− relation" in shown.stdout and "no control task" not in shown.stderr
    only = template_file(tmp_path, tasks={"second": "The {}"})
    alone = run(*arguments[:3], "--templates", only, "--shots", 0, "--only", "second")
    assert "no control task for second: none has a similar base" in alone.stderr
    figure = planted.folder / "evidence" / "ablation-second-shots0-zero.svg"
    assert "control task: none has a similar base" in " ".join(
        re.sub("<[^>]*>", " ", figure.read_text()).split()
    )
    file = template_file(tmp_path, tasks={"first": "of {} ,"})
    nothing = run(*arguments[:3], "--templates", file, "--shots", 0, "--only", "first")
    assert "skipped: first (base accuracy is 0." in nothing.stderr and "no task was ablated" in nothing.stderr
    assert not nothing.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inference", "--only", "capital"), "this atlas has no relation 'capital'"),
        (("ablation", "--max-heads", 0), "--max-heads is 0"),
        (("inference", "--templates", "nowhere.json"), "nowhere.json: cannot be read"),
        (("inference", "--model", "nowhere/at/all"), "nowhere/at/all"),
    ],
)
def test_what_is_given_wrongly(
    mapped: Planted, run: Run, arguments: tuple[object, ...], message: str
) -> None:
    command, *rest = arguments
    result = run("evidence", command, mapped.folder, *rest, code=2)
    assert message in result.stderr and "Traceback" not in result.stderr


def test_heads_show_what_is_confirmed(examined: Planted, mapped: Planted, run: Run) -> None:
    shown = run("heads", examined.folder)
    assert "with context, by ablation" in shown.stdout
    assert all(text in shown.stderr for text in CRITERIA)
    refused = run("heads", examined.folder, "--k", 1, "--tau", 0.03, "--criterion", "tau")
    assert "not with context" in refused.stdout
    row = parsed(run("head", examined.folder, f"{LAYER}.{HEADS['first']}", "--json"))["rows"][0]
    assert row["confirmed_by_ablation"] is True and row["confirmed_with_context"] is True
    assert row["loss_alone"] > 0.9 and 0 <= row["attention"] <= 1
    before = run("heads", mapped.folder)
    assert "confirmed" not in before.stdout and "confirmed" not in before.stderr


def test_info_says_what_was_measured(examined: Planted, mapped: Planted, run: Run) -> None:
    shown = run("info", examined.folder).stdout
    assert shown.count("evidence: texts") == 3 and "'of a {}', 2 relations" in shown
    assert "first, 0 examples, zero" in shown
    body = parsed(run("info", examined.folder, "--json"))["evidence"]
    tasks = [each["provenance"]["relation"] for each in body if each["kind"] == "ablation"]
    assert tasks == ["first", "second"] and {each["kind"] for each in body} == {"ablation", "inference"}
    assert all(each["provenance"]["versions"]["torch"] for each in body)
    assert "evidence" not in run("info", mapped.folder).stdout


def test_files_hold_the_evidence(examined: Planted, tmp_path: Path) -> None:
    frame = pd.read_parquet(export_table(examined.atlas, tmp_path / "heads.parquet"))
    assert set(COLUMNS) <= set(frame.columns)
    assert frame["confirmed_by_ablation"].sum() == 2
    csv = pd.read_csv(export_table(examined.atlas, tmp_path / "heads.csv"))
    assert csv["context"].notna().all()
    assert (
        '"confirmed_by_ablation": null' in export_table(examined.atlas, tmp_path / "heads.json").read_text()
    )


def test_figures_mark_confirmed_heads(examined: Planted, mapped: Planted) -> None:
    grids = {grid.relation: grid for grid in relation_grids(examined.atlas)}
    for name, head in HEADS.items():
        marks = grids[name].marks
        assert marks["ablation"][LAYER, head] and marks["ablation"].sum() == 1
    for atlas, marked in ((examined.atlas, True), (mapped.atlas, False)):
        texts = {text.get_text() for text in atlas.plot.relations().findobj(Text)}
        assert ("confirmed by ablation" in texts) is marked


def test_the_page_says_what_is_confirmed(examined: Planted, mapped: Planted) -> None:
    data = page_data(examined.atlas, alternative="", in_words="")
    assert data["evidence"] == list(CRITERIA)
    ranks = unpack(data["packed"]["ranks"])
    assert len(ranks["confirmed"]) == len(ranks["row_cell"]) == ranks["rows"].sum()
    table = examined.atlas.table()
    first = 0
    for relation, n_rows in zip(examined.atlas.included["relation"], ranks["rows"], strict=True):
        bits = ranks["confirmed"][first : first + n_rows]
        # Asked and confirmed, both ways: 1 + 2 + 4 + 8. Of heads that are not called nothing is asked.
        assert sorted(bits)[-2:] == [0, 15]
        cells = np.cumsum(ranks["row_cell"][first : first + n_rows])
        rows = table[table["relation"] == relation].set_index(["layer", "head"])
        context = [rows.loc[divmod(int(cell), examined.atlas.n_heads), "context"] for cell in cells]
        packed = ranks["evidence/context"][first : first + n_rows] / 1e4
        np.testing.assert_allclose(packed, context, atol=1e-4)
        first += int(n_rows)
    without = page_data(mapped.atlas, alternative="", in_words="")
    assert without["evidence"] is None and "confirmed" not in unpack(without["packed"]["ranks"])


def test_reading_evidence_needs_no_torch(examined: Planted, tmp_path: Path) -> None:
    code = (
        "import sys; from headatlas.atlas import Atlas; from headatlas.report import write_report\n"
        "from headatlas.evidence.statistics import agreement, summarise_ablations\n"
        f"atlas = Atlas.open({str(examined.folder)!r})\n"
        "assert len(agreement(atlas)) and len(summarise_ablations(atlas.evidence.ablations)) == 2\n"
        f"write_report(atlas, {str(tmp_path / 'report.html')!r})\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=240)
    assert (tmp_path / "report.html").exists()


def test_damaged_evidence_stops_nothing_else(examined: Planted, tmp_path: Path) -> None:
    """An atlas is read whatever has become of what lies beside its ranks; what is left out is said."""
    planted = examined.copied(tmp_path / "out")
    evidence = planted.folder / "atlas.zarr" / "evidence"
    contexts = sorted(evidence.glob("context-*.zarr"))
    for each in contexts:
        (each / "attention" / "c" / "0" / "0" / "0").write_bytes(b"damaged")
    first, second = sorted(evidence.glob("ablation-*"))
    (first / "zarr.json").write_text("{")
    body = json.loads((second / "zarr.json").read_text())
    provenance = json.loads(body["attributes"]["provenance"])
    del provenance["seed"]
    body["attributes"]["provenance"] = json.dumps(provenance)
    (second / "zarr.json").write_text(json.dumps(body))
    with pytest.warns(UserWarning) as said:
        table = planted.atlas.table()
    assert {str(each.message).partition(":")[0] for each in said} == {
        *map(str, contexts),
        str(first),
        str(second),
    }
    assert any("it lacks seed" in str(each.message) for each in said)
    assert table.equals(examined.atlas.without_evidence[list(table.columns)])
    command = [sys.executable, "-m", "headatlas", "info", str(planted.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert f"warning: {first}: " in done.stderr and "evidence: ablation" not in done.stdout
