"""``evidence inference`` and ``evidence ablation``: is a map true?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from headatlas.cli.options import AsJson, AtlasArgument, Only, as_options, computes, names_of
from headatlas.cli.output import print_rows, print_table, progress_shown, say, stopping
from headatlas.options import Compute

if TYPE_CHECKING:
    import pandas as pd

    from headatlas.atlas import Atlas

KEPT = "stopped; what was finished is stored in the atlas; the same command goes on"

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="MODEL", help="The model that was mapped. Default: as the atlas names it."
    ),
]
TemplateFile = Annotated[
    Path | None,
    typer.Option("--templates", metavar="FILE", help="JSON with your own texts. Default: the shipped ones."),
]
NoFigures = Annotated[bool, typer.Option("--no-figures", help="Draw nothing.")]


def register(app: typer.Typer) -> None:
    """Add the command group of this module."""
    group = typer.Typer(
        no_args_is_help=True, rich_markup_mode=None, help="Check a map against the running model."
    )
    group.command("inference")(inference_command)
    group.command("ablation")(ablation_command)
    app.add_typer(group, name="evidence")


@computes("device")
def inference_command(
    folder: AtlasArgument,
    compute: Compute,
    model: ModelOption = None,
    only: Only = None,
    templates: TemplateFile = None,
    own_templates: Annotated[
        bool,
        typer.Option("--own-templates", help="The texts that relations have of their own, in their place."),
    ] = False,
    no_figures: NoFigures = False,
    as_json: AsJson = False,
) -> None:
    """Compare the map's scores with what heads write in running texts.

    With context: what a head adds at the last position of a text. Without: the value vector at the source.
    Pearson's r and Spearman's rho over heads, with 95 % bootstrap intervals, attention on the source.

    The scores are stored in the atlas; a table and scatter plots go to DIR/evidence, and DIR's page and table
    of heads are written again with them. The same command goes on after Ctrl-C.
    """
    from headatlas.atlas import Atlas
    from headatlas.evidence.inference_run import run_inference
    from headatlas.evidence.statistics import agreement
    from headatlas.outputs import write_inference

    atlas = Atlas.open(folder)
    with stopping(lambda: KEPT), progress_shown() as progress:
        found = run_inference(
            atlas,
            model,
            only=names_of(only),
            templates=templates,
            own_templates=own_templates,
            compute=compute,
            progress=progress,
        )
    atlas = Atlas.open(folder)
    frame = agreement(atlas, found)
    for dynamic in found:
        for name, why in dynamic.context.left_out.items():
            say(f"skipped in {dynamic.template!r}: {name} ({why})")
    if as_json:
        print_rows([atlas], _records(frame))
    else:
        say(f"{atlas.caption()}; {len(found)} templates")
        print_table(*_agreement_table(frame))
    beside = _beside(atlas)
    write_and_say(beside, lambda: write_inference(atlas, frame, found, beside, figures=not no_figures))


@computes("device")
def ablation_command(
    folder: AtlasArgument,
    compute: Compute,
    model: ModelOption = None,
    only: Only = None,
    templates: TemplateFile = None,
    shots: Annotated[
        int, typer.Option("--shots", metavar="N", min=0, help="Examples before each question.")
    ] = 5,
    method: Annotated[
        Literal["zero", "mean"],
        typer.Option("--method", help="What takes the place of a head's output: nothing, or its mean."),
    ] = "zero",
    sources: Annotated[
        int, typer.Option("--sources", metavar="N", help="At most so many questions a relation.")
    ] = 64,
    max_heads: Annotated[
        int, typer.Option("--max-heads", metavar="N", help="At most so many heads are ablated.")
    ] = 32,
    draws: Annotated[int, typer.Option("--draws", metavar="N", help="Draws of random heads.")] = 5,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the draws.")] = 0,
    no_figures: NoFigures = False,
    as_json: AsJson = False,
) -> None:
    """Take the heads of a relation out of the model and see whether it can still do the task.

    Heads go in order of score, and once more in order of *added* (what the state itself does not hold),
    beside as many random heads and beside other tasks.

    Each relation is stored in the atlas when it is done, so the same command goes on after Ctrl-C. A table
    and a figure per relation go to DIR/evidence; DIR's page and table of heads are written again with them.
    """
    from headatlas.atlas import Atlas
    from headatlas.evidence.ablation_run import Choices, run_ablation
    from headatlas.evidence.statistics import summarise_ablations
    from headatlas.outputs import write_ablations

    choices = Choices(shots, method, sources, max_heads, draws, seed)
    atlas = Atlas.open(folder)
    with stopping(lambda: KEPT), progress_shown() as progress:
        found = run_ablation(
            atlas,
            model,
            only=names_of(only),
            templates=templates,
            choices=choices,
            compute=compute,
            progress=progress,
        )
    atlas = Atlas.open(folder)
    frame = summarise_ablations(found.done)
    skipped = {name: as_options(why) for name, why in found.skipped.items()}
    for name, why in skipped.items():
        say(f"skipped: {name} ({why})")
    for task in found.done:
        if not task.controls:
            say(f"no control task for {task.relation}: none has a similar base and few heads in common")
    if as_json:
        print_rows([atlas], _records(frame), skipped=skipped)
    else:
        say(atlas.caption())
        if found.done:
            print_table(*_ablation_table(frame))
        else:
            say("no task was ablated")
    beside = _beside(atlas)
    write_and_say(beside, lambda: write_ablations(atlas, found.done, beside, figures=not no_figures))


def _beside(atlas: Atlas) -> Path:
    """The folder of the outputs of the map; those of evidence are in a folder of it."""
    return atlas.folder


def write_and_say(folder: Path, write: Callable[[], list[Path]]) -> None:
    """Write outputs and say which, also where some cannot be written."""
    from headatlas.outputs import UnwrittenError

    written: Sequence[Path] = ()
    try:
        written = write()
    except UnwrittenError as error:
        written = error.written
        raise
    finally:
        if written:
            names = (str(path).removeprefix(f"{folder}/") for path in written)
            say(f"written to {folder}: {', '.join(names)}")


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    from headatlas.atlas.export import plain_records

    return plain_records(frame)


def _agreement_table(frame: pd.DataFrame) -> tuple[list[str], list[list[Any]]]:
    """A row a relation: promotion with its interval, then suppression."""
    columns = ["relation", "r with context", "95 %", "rho", "r without", "95 %", "rho"]
    columns += ["suppression: r with", "r without"]
    rows = []
    for name in dict.fromkeys(frame["relation"]):
        cell = frame[frame["relation"] == name].set_index(["kind", "sign"])
        row: list[Any] = [name]
        for kind in ("context", "without-context"):
            found = cell.loc[(kind, "promotion")]
            row += [found["pearson"], _interval(found, "pearson"), found["spearman"]]
        row += [cell.loc[(kind, "suppression")]["pearson"] for kind in ("context", "without-context")]
        rows.append(row)
    return columns, rows


def _ablation_table(frame: pd.DataFrame) -> tuple[list[str], list[list[Any]]]:
    columns = [
        "relation",
        "shots",
        "asked",
        "heads",
        "base",
        "− relation",
        "− added",
        "− random",
        "control",
        "− control",
    ]
    columns += ["area", "95 %", "added area", "95 %", "hurts more"]
    rows = [
        [
            *(row[name] for name in ("relation", "shots", "sources", "heads", "base")),
            *(row[name] for name in ("without_relation", "without_added", "without_random")),
            *(row[name] for name in ("control_base", "without_control")),
            row["area"],
            _interval(row, "area"),
            row["added_area"],
            _interval(row, "added_area"),
            row["hurts_more"],
        ]
        for row in _records(frame)
    ]
    return columns, rows


def _interval(row: Any, name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "–" if low is None or math.isnan(low) else f"{low:.2f} … {high:.2f}"
