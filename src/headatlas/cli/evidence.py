"""``evidence inference``, ``evidence attention`` and ``evidence ablation``: is a map true?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from headatlas.cli.heads import parse_head
from headatlas.cli.options import (
    AsJson,
    AtlasArgument,
    InferenceSources,
    Only,
    as_options,
    computes,
    names_of,
)
from headatlas.cli.output import number, print_rows, print_table, progress_shown, say, stopping
from headatlas.options import Compute

if TYPE_CHECKING:
    import pandas as pd

    from headatlas.atlas import Atlas
    from headatlas.atlas.ablations import HeadsAblation
    from headatlas.evidence.opening import Subject

KEPT = "stopped; what was finished is stored in the atlas; the same command goes on"
NOTHING = "stopped; nothing was stored"

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
AblateHeads = Annotated[
    list[str] | None,
    typer.Option(
        "--ablate-heads",
        metavar="LAYER.HEAD,…",
        help="Ablate these heads together, such as 23.4,24.5, and say what is lost on running texts, and "
        "on the tasks of --only, beside random heads of the same layers.",
    ),
]
Shots = Annotated[int, typer.Option("--shots", metavar="N", min=0, help="Examples before each question.")]
Method = Annotated[
    Literal["zero", "mean"],
    typer.Option("--method", help="What takes the place of a head's output: nothing, or its mean."),
]
Questions = Annotated[
    int, typer.Option("--sources", metavar="N", help="At most so many questions a relation.")
]
MaxHeads = Annotated[int, typer.Option("--max-heads", metavar="N", help="At most so many heads are ablated.")]
Draws = Annotated[int, typer.Option("--draws", metavar="N", help="Draws of random heads.")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Of the draws.")]


def register(app: typer.Typer) -> None:
    """Add the command group of this module."""
    group = typer.Typer(
        no_args_is_help=True, rich_markup_mode=None, help="Check a map against the running model."
    )
    group.command("inference")(inference_command)
    group.command("attention")(attention_command)
    group.command("ablation")(ablation_command)
    app.add_typer(group, name="evidence")


@contextmanager
def _examining(
    folder: str, model: str | None, compute: Compute, kept: str, only: Sequence[str] | None = None
) -> Iterator[Subject]:
    """Open an atlas and its model, show progress, and say what is kept when the run is stopped."""
    from headatlas.atlas import Atlas
    from headatlas.evidence.opening import examined

    with (
        stopping(lambda: kept),
        progress_shown() as progress,
        examined(Atlas.open(folder), model, only=only, compute=compute, progress=progress) as subject,
    ):
        yield subject


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
    sources: InferenceSources = None,
    no_figures: NoFigures = False,
    as_json: AsJson = False,
) -> None:
    """Compare the map's scores with what heads write in running texts.

    With context: what a head adds at the last position of a text. Without: the value vector at the source.
    Pearson's r and Spearman's rho over heads, with 95 % bootstrap intervals, attention on the source.

    The scores are stored in the atlas; a table and scatter plots go to DIR/evidence, and DIR's page and table
    of heads are written again with them. The same command goes on after Ctrl-C.
    """
    from headatlas.evidence.inference_run import InferenceTexts, run_inference
    from headatlas.evidence.statistics import agreement, sampling
    from headatlas.outputs import write_inference

    asked = InferenceTexts.of(templates, own_templates=own_templates, sources=sources)
    with _examining(folder, model, compute, KEPT, names_of(only)) as subject:
        found = run_inference(subject, asked)
    atlas = subject.atlas
    frame = agreement(atlas, found)
    for dynamic in found:
        for name, why in dynamic.context.left_out.items():
            say(f"skipped in {dynamic.template!r}: {name} ({why})")
    if as_json:
        print_rows([atlas], _records(frame), sampling=sampling(found))
    else:
        say("; ".join(filter(None, [atlas.caption(), f"{len(found)} templates", sampling(found)])))
        print_table(*_agreement_table(frame))
    _write(atlas, lambda beside: write_inference(atlas, frame, found, beside, figures=not no_figures))


@computes("device")
def attention_command(
    folder: AtlasArgument,
    compute: Compute,
    model: ModelOption = None,
    only: Only = None,
    templates: TemplateFile = None,
    limit: Annotated[
        int,
        typer.Option("--limit", metavar="N", min=1, help="Rows to show, highest AUROC first. JSON has all."),
    ] = 20,
    as_json: AsJson = False,
) -> None:
    """Say whether called heads would look at the words of their relation: by W_Q and W_K, before any softmax.

    Queries are states at the end of the relation's task and of running texts; keys are states of its sources
    and of matched other words. AUROC at several distances, with a permutation p and q over called heads.

    What is measured is stored in the atlas and not measured again. The table goes to DIR/evidence.
    """
    from headatlas.evidence.attention_run import run_attention
    from headatlas.evidence.statistics import against_measured
    from headatlas.evidence.texts import read_templates
    from headatlas.outputs import write_preferences

    asked = read_templates(templates)
    with _examining(folder, model, compute, NOTHING) as subject:
        found = run_attention(subject, asked, own=templates is not None)
    atlas = subject.atlas
    frame = found.frame(atlas, names_of(only))
    for name, why in found.left_out.items():
        say(f"skipped: {name} ({why})")
    measured = against_measured(frame)
    if as_json:
        print_rows(
            [atlas],
            _records(frame),
            attention=found.caption(),
            skipped=found.left_out,
            against_measured=_records(measured),
        )
    else:
        say(f"{atlas.caption()}; {found.caption()}")
        print_table(*_attention_table(frame, limit))
        say(f"prefers: {int(frame['prefers'].sum())} of {len(frame)} rows")
        for row in _records(measured):
            say(
                f"AUROC ({row['query']}) and measured attention: Spearman's rho {row['spearman']:.2f} "
                f"({_interval(row, 'spearman')}) over {row['rows']} rows"
            )
    _write(atlas, lambda beside: write_preferences(frame, beside))


def _attention_table(frame: pd.DataFrame, limit: int) -> tuple[list[str], list[list[Any]]]:
    """The rows of the highest AUROC."""
    distances = [name for name in frame.columns if name[0] == "d" and name[1:].isdigit()]
    rows = frame.sort_values("auroc", ascending=False, kind="stable").head(limit)
    cells = [
        [
            f"{row['layer']}.{row['head']}",
            *(row[name] for name in ("relation", "query", "auroc", *distances, "as_high")),
            number(row["q"]),
            row["attention"],
            "prefers" if row["prefers"] else "",
        ]
        for row in rows.to_dict("records")
    ]
    names = [f"at {name[1:]}" for name in distances]
    return ["head", "relation", "query", "AUROC", *names, "as high", "q", "attention", ""], cells


@computes("device")
def ablation_command(
    folder: AtlasArgument,
    compute: Compute,
    model: ModelOption = None,
    only: Only = None,
    ablate_heads: AblateHeads = None,
    templates: TemplateFile = None,
    shots: Shots = 5,
    method: Method = "zero",
    sources: Questions = 64,
    max_heads: MaxHeads = 32,
    draws: Draws = 5,
    seed: Seed = 0,
    no_figures: NoFigures = False,
    as_json: AsJson = False,
) -> None:
    """Take the heads of a relation out of the model and see whether it can still do the task.

    Heads go in order of score, and once more in order of *added* (what the state itself does not hold),
    beside as many random heads and beside other tasks. Or take out heads of your own choice: --ablate-heads.

    Each relation is stored in the atlas when it is done, so the same command goes on after Ctrl-C. A table
    and a figure per relation go to DIR/evidence; DIR's page and table of heads are written again with them.
    """
    from headatlas.atlas import Atlas
    from headatlas.evidence.ablation_run import Choices, run_ablation, run_chosen
    from headatlas.evidence.statistics import summarise_ablations
    from headatlas.evidence.texts import read_templates
    from headatlas.outputs import write_ablations

    choices, asked = Choices(shots, method, sources, max_heads, draws, seed), read_templates(templates)
    if ablate_heads is not None:
        heads = [parse_head(name, Atlas.open(folder)) for name in names_of(ablate_heads) or ()]
        with _examining(folder, model, compute, NOTHING) as subject:
            chosen = run_chosen(subject, heads, asked, choices, names_of(only))
        _print_chosen(subject.atlas, chosen, draws, as_json)
        return
    with _examining(folder, model, compute, KEPT) as subject:
        found = run_ablation(subject, asked, choices, names_of(only))
    atlas = subject.atlas
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
            print_table(*_tabled(_records(frame), ABLATION_TABLE))
        else:
            say("no task was ablated")
    _write(atlas, lambda beside: write_ablations(atlas, found.done, beside, figures=not no_figures))


def _print_chosen(atlas: Atlas, found: HeadsAblation, draws: int, as_json: bool) -> None:
    """The part of ``evidence ablation`` that is about heads of the user's own choice."""
    from headatlas.evidence.statistics import summarise_heads
    from headatlas.outputs import write_heads_ablation

    frame = summarise_heads(found)
    names = ", ".join(f"{layer}.{head}" for layer, head in found.heads)
    how = "output 0" if found.provenance["method"] == "zero" else "mean output"
    caption = f"without {names} ({how}), beside {len(found.draws)} draws of random heads of the same layers"
    skipped = {name: as_options(why) for name, why in found.provenance["skipped"].items()}
    for name, why in skipped.items():
        say(f"skipped: {name} ({why})")
    if as_json:
        print_rows(
            [atlas], _records(frame), heads=found.provenance["heads"], ablation=caption, skipped=skipped
        )
    else:
        say(f"{atlas.model_name}: {caption}; losses in nats, intervals 95 % over texts or prompts")
        if len(found.draws) < draws:
            say(f"only {len(found.draws)} different draws: these layers have no more other heads")
        print_table(*_heads_table(frame))
    _write(atlas, lambda beside: write_heads_ablation(frame, found.heads, beside))


def _write(atlas: Atlas, write: Callable[[Path], list[Path]]) -> None:
    """Write outputs beside those of the map, and say which."""
    write_and_say(atlas.folder, lambda: write(atlas.folder))


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


def _interval(row: Any, name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "–" if low is None or math.isnan(low) else f"{low:.2f} … {high:.2f}"


def _tabled(rows: Sequence[Any], columns: Sequence[tuple[str, str]]) -> tuple[list[str], list[list[Any]]]:
    """A table of rows, by (title, name of the number); under the title ``95 %`` stands its interval."""
    cells = [
        [_interval(row, name) if title == INTERVAL else row[name] for title, name in columns] for row in rows
    ]
    return [title for title, _ in columns], cells


INTERVAL = "95 %"
HEADS_TABLE = (
    *(("on", "on"), ("n", "n"), ("loss", "loss"), ("without", "without")),
    *(("more", "difference"), (INTERVAL, "difference"), ("random", "random"), ("draws", "random_range")),
    *(("beyond random", "excess"), (INTERVAL, "excess")),
    *(("right", "accuracy"), ("without", "accuracy_without"), ("random", "accuracy_random")),
)
ABLATION_TABLE = (
    *(("relation", "relation"), ("shots", "shots"), ("asked", "sources"), ("heads", "heads")),
    *(("base", "base"), ("− relation", "without_relation"), ("− added", "without_added")),
    *(("− random", "without_random"), ("control", "control_base"), ("− control", "without_control")),
    *(("area", "area"), (INTERVAL, "area"), ("added area", "added_area"), (INTERVAL, "added_area")),
    ("hurts more", "hurts_more"),
)
AGREEMENT_TABLE = (
    *(("relation", "relation"), ("sources", "n_sources")),
    *(("r with context", "context"), (INTERVAL, "context"), ("rho", "context_rho")),
    *(("r without", "without-context"), (INTERVAL, "without-context"), ("rho", "without-context_rho")),
    *(("suppression: r with", "context_suppression"), ("r without", "without-context_suppression")),
)


def _heads_table(frame: pd.DataFrame) -> tuple[list[str], list[list[Any]]]:
    rows = [{**row, "random_range": _interval(row, "random")} for row in _records(frame)]
    return _tabled(rows, HEADS_TABLE)


def _agreement_table(frame: pd.DataFrame) -> tuple[list[str], list[list[Any]]]:
    """A row a relation: promotion with its interval, then suppression."""
    rows: dict[str, dict[str, Any]] = {}
    for each in frame.to_dict("records"):
        row = rows.setdefault(each["relation"], {"relation": each["relation"], "n_sources": 0})
        row["n_sources"] = max(row["n_sources"], each["n_sources"])
        if each["sign"] == "suppression":
            row[f"{each['kind']}_suppression"] = each["pearson"]
            continue
        row |= {f"{each['kind']}{suffix}": each[f"pearson{suffix}"] for suffix in ("", "_low", "_high")}
        row[f"{each['kind']}_rho"] = each["spearman"]
    return _tabled(list(rows.values()), AGREEMENT_TABLE)
