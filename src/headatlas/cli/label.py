"""``label``: what heads do in a few words, and whether the words predict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from headatlas.cli.heads import parse_head
from headatlas.cli.options import AsJson, AtlasArgument, askable_names, names_of
from headatlas.cli.output import print_rows, print_table, progress_shown, say, stopping

if TYPE_CHECKING:
    import pandas as pd


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("label")(label_command)


DescribeWith = Annotated[
    str | None,
    typer.Option(
        "--describe-with",
        metavar="URL",
        help="Let a language model describe heads as well: an OpenAI-compatible address, such as "
        "http://localhost:11434/v1. HEADATLAS_API_KEY or OPENAI_API_KEY may hold a key.",
    ),
]
ModelName = Annotated[
    str | None, typer.Option("--model-name", metavar="NAME", help="The model at that address.")
]
Known = Annotated[
    list[str] | None,
    typer.Option(
        "--relations",
        metavar="core|all|NAME|PATH,…",
        help="Relations that the rules know. Default: all that are shipped.",
        autocompletion=askable_names,
    ),
]
Only = Annotated[
    list[str] | None, typer.Option("--only", metavar="LAYER.HEAD,…", help="Only these heads. Default: all.")
]
PerMinute = Annotated[
    float | None,
    typer.Option(
        "--per-minute", metavar="N", help="Most requests a minute to another machine. Default: 120."
    ),
]
Seconds = Annotated[
    float | None, typer.Option("--seconds", metavar="S", help="Longest time of a request. Default: 120.")
]


def label_command(
    folder: AtlasArgument,
    describe_with: DescribeWith = None,
    model_name: ModelName = None,
    relations: Known = None,
    only: Only = None,
    per_minute: PerMinute = None,
    seconds: Seconds = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of halves and distractors.")] = 0,
    everything: Annotated[bool, typer.Option("--all", help="Also heads whose label is unclear.")] = False,
    as_json: AsJson = False,
) -> None:
    """Name what every head does, and test whether the name predicts.

    Half of a head's salient mappings are described, by rules and, with --describe-with, by a language model.
    The description must pick the other half out among mappings of other heads. What does no better than
    chance + 2 standard errors is unclear. Labels by attention rest on `headatlas behaviour`.

    Labels are stored in the atlas. JSON has all heads.
    """
    from headatlas.atlas import Atlas
    from headatlas.atlas.export import plain_records
    from headatlas.atlas.labels import LABELS_CAVEAT, UNCLEAR, label_counts
    from headatlas.describing.run import label

    atlas = Atlas.open(folder)
    asked = names_of(only)
    with stopping(lambda: "stopped; what the endpoint answered is kept"), progress_shown() as progress:
        rows = label(
            atlas,
            relations=names_of(relations, "relations") or "all",
            describe_with=describe_with,
            model_name=model_name,
            only=None if asked is None else [parse_head(name, atlas) for name in asked],
            per_minute=per_minute,
            seconds=seconds,
            seed=seed,
            progress=progress,
        )
    if as_json:
        print_rows([atlas], plain_records(rows), labels=LABELS_CAVEAT)
        return
    say(f"{atlas.model_name}: {LABELS_CAVEAT}")
    print_table(*_table(rows if everything else rows[rows["label"] != UNCLEAR]))
    for author, own in rows.groupby("author", sort=False):
        n = label_counts(own)
        say(
            f"{author}: {n['heads']} heads; {n['scored']} with a scored label, {n['attention']} with a label "
            f"by attention, {n[UNCLEAR]} unclear"
        )


def _table(rows: pd.DataFrame) -> tuple[list[str], list[list[Any]]]:
    shown = ["label", "support", "score", "chance", "se", "kind", "author"]
    cells = [
        [f"{row['layer']}.{row['head']}", *(row[name] for name in shown)] for row in rows.to_dict("records")
    ]
    return ["head", *shown], cells
