"""``salience``: what heads write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headatlas.cli.evidence import ModelOption, NoFigures, write_and_say
from headatlas.cli.heads import parse_head
from headatlas.cli.options import AsJson, AtlasArgument, computes
from headatlas.cli.output import (
    number,
    print_fields,
    print_rows,
    print_table,
    progress_shown,
    say,
    stopping,
)
from headatlas.options import Compute, TokenChoice
from headatlas.showing import tokens_shown

if TYPE_CHECKING:
    import pandas as pd

    from headatlas.atlas.salience import Salience

STOPPED_HERE = "stopped; nothing is stored"
STOPPED_BETWEEN = "stopped; the same command goes on where it was"
SHOWN_SOURCES = 4


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("salience")(salience_command)


@computes("device", "max_memory")
def salience_command(
    folder: AtlasArgument,
    compute: Compute,
    model: ModelOption = None,
    head: Annotated[
        str | None,
        typer.Option("--head", metavar="LAYER.HEAD", help="Show one head in full, for example 23.4."),
    ] = None,
    tokens: Annotated[
        TokenChoice | None,
        typer.Option(
            "--tokens",
            help="Source tokens: like words, those that begin a word, or all. Default: those stored, "
            "else all with the lens maps and word-like ones with neutral.",
        ),
    ] = None,
    most: Annotated[
        int | None,
        typer.Option(
            "--most",
            metavar="N",
            min=1,
            help="The first N of them, by id. Default: those stored; else all, but for word-like ones with "
            "neutral: 20,000, fewer of a large model.",
        ),
    ] = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="With neutral: follow every token after every prefix, not only those that a quick pass "
            "proposes. Takes twice as long.",
        ),
    ] = False,
    no_figures: NoFigures = False,
    as_json: AsJson = False,
) -> None:
    """Show what heads write: the tokens each head changes most, and what it promotes for them.

    Of every head the 30 source tokens of largest gain ‖x·W_V·W_O‖ / ‖x‖ with the 5 tokens that it promotes
    and suppresses most for each; the spectrum of W_V·W_O; and how much of it known relations explain.

    It is computed once and stored in the atlas; a run that was stopped goes on where it was. JSON has all
    heads, sources and directions. Without --head, tables and a
    figure go to DIR/evidence.
    """
    from headatlas.atlas import Atlas
    from headatlas.atlas.export import plain_records
    from headatlas.atlas.salience import head_rows
    from headatlas.outputs import write_salience
    from headatlas.writing import computed_or_stored

    atlas = Atlas.open(folder)
    one = None if head is None else parse_head(head, atlas)
    with stopping(lambda: STOPPED_BETWEEN), progress_shown() as progress:
        found = computed_or_stored(
            atlas, model, tokens=tokens, most=most, exact=exact, compute=compute, progress=progress
        )
    frames = found.frame(), found.spectrum(), found.explained()
    if one is not None:
        rows, spectrum, explained = (head_rows(frame, one) for frame in frames)
        frames = rows, spectrum, explained
    if as_json:
        records = [plain_records(frame) for frame in frames]
        print_rows([atlas], records[0], spectrum=records[1], explained=records[2], salience=found.caption())
    else:
        say(f"{atlas.model_name}: {found.caption()}")
        if one is None:
            print_table(*_all_heads(found))
        else:
            _print_head(*frames)
    if one is None:
        write_and_say(
            atlas.folder, lambda: write_salience(atlas, found, atlas.folder, figures=not no_figures)
        )


def _all_heads(found: Salience) -> tuple[list[str], list[list[Any]]]:
    """A row a head: its strongest sources, what it promotes for the first, and numbers."""
    sources = dict(iter(found.frame().groupby(["layer", "head"])))
    both = found.spectrum().merge(found.explained(), on=["layer", "head"], how="left")
    table = []
    for row in both.to_dict("records"):
        mine = sources.get((row["layer"], row["head"]))
        table.append(
            [
                f"{row['layer']}.{row['head']}",
                None if mine is None else float(mine["gain"].iloc[0]),
                "" if mine is None else tokens_shown(mine["source"].tolist()[:SHOWN_SOURCES]),
                "" if mine is None else tokens_shown(mine["promoted"].iloc[0]),
                row["effective_rank"],
                row["copying"],
                percent(row["explained"]),
                fields_shown(row["rest"]) if isinstance(row["rest"], list) else "",
            ]
        )
    columns = ["head", "gain", "sources", "promotes for the first", "rank", "copying", "explained", "rest"]
    return columns, table


def _print_head(rows: pd.DataFrame, spectrum: pd.DataFrame, explained: pd.DataFrame) -> None:
    """One head: its sources, its numbers, its directions."""
    print_table(
        ["gain", "source", "promotes", "suppresses"],
        [
            [row["gain"], *map(tokens_shown, ([row["source"]], row["promoted"], row["suppressed"]))]
            for row in rows.to_dict("records")
        ],
    )
    for own, share in zip(spectrum.to_dict("records"), explained.to_dict("records"), strict=False):
        typer.echo("")
        print_fields(
            [
                ("effective rank", f"{own['effective_rank']:.1f} of {len(own['singular_values'])}"),
                ("copying", own["copying"]),
                ("share of the layer's squared norm", percent(own["norm_share"])),
                ("explained", percent(share["explained"])),
                ("by", ", ".join(f"{name} ({n})" for name, n in share["relations"]) or "nothing"),
                ("the rest", fields_shown(share["rest"]) or "no field of words stands out"),
            ]
        )
        typer.echo("")
        print_table(
            ["direction", "s", "reads", "promotes"],
            [
                [at + 1, each["singular_value"], tokens_shown(end["reads"]), tokens_shown(end["promotes"])]
                for at, each in enumerate(own["directions"])
                for end in each["ends"]
            ],
        )


def fields_shown(rest: Sequence[tuple[str, int, float]]) -> str:
    """Fields of words, with how many and q."""
    return ", ".join(f"{field} ({count}, q {number(q)})" for field, count, q in rest)


def percent(share: float) -> str | None:
    """A share as a whole percentage; None where there is none."""
    return None if share != share else f"{100 * share:.0f} %"  # noqa: PLR0124
