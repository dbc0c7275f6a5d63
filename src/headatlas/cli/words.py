"""``ask`` and ``query``: words of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from headatlas.cli.evidence import ModelOption
from headatlas.cli.heads import parse_head, rank_shown
from headatlas.cli.options import AsJson, AtlasArgument, computes
from headatlas.cli.output import (
    print_fields,
    print_json,
    print_rows,
    print_table,
    progress_shown,
    say,
    stopping,
)
from headatlas.cli.salience import STOPPED_HERE
from headatlas.errors import HeadatlasError
from headatlas.options import Compute
from headatlas.showing import tokens_shown


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("ask")(ask_command)
    app.command("query")(query_command)


@computes("device", "max_memory")
def ask_command(
    folder: AtlasArgument,
    name: Annotated[str, typer.Argument(metavar="LAYER.HEAD", help="For example 23.4.", show_default=False)],
    words: Annotated[
        list[str], typer.Argument(metavar="WORD…", help="One or more words.", show_default=False)
    ],
    compute: Compute,
    top: Annotated[int, typer.Option("--top", metavar="N", help="Tokens of each list.")] = 10,
    model: ModelOption = None,
    as_json: AsJson = False,
) -> None:
    """Show what one head promotes and suppresses for any words.

    With the model and the lens of the atlas, exact in float64. Where a word is a source of a mapped relation,
    the ranks of its targets are shown, too.
    """
    from headatlas.atlas import Atlas
    from headatlas.atlas.export import plain_records
    from headatlas.writing.words import ask

    atlas = Atlas.open(folder)
    layer, head = parse_head(name, atlas)
    with stopping(lambda: STOPPED_HERE), progress_shown() as progress:
        found = ask(atlas, layer, head, words, model, top=top, compute=compute, progress=progress)
    ceiling = int(atlas.provenance["ceiling"])
    if as_json:
        about = {"layer": layer, "head": head, "ceiling": ceiling, "asked": found.attrs["caption"]}
        print_rows([atlas], plain_records(found), **about)
        return
    say(found.attrs["caption"])
    for row in found.to_dict("records"):
        typer.echo("")
        print_fields(
            [
                (row["source"], tokens_shown(row["tokens"])),
                ("promotes", tokens_shown(row["promoted"]) or "nothing"),
                ("suppresses", tokens_shown(row["suppressed"]) or "nothing"),
                *((each["relation"], _wanted(each, ceiling)) for each in row["wanted"]),
            ]
        )


@computes("device", "max_memory")
def query_command(
    where: Annotated[
        str,
        typer.Argument(
            metavar="DIR|MODEL",
            help="A folder that `headatlas map` wrote to, for its model and lens, or the address of an "
            "atlas.zarr; or a model as `headatlas map` takes it, seen with the lens neutral.",
            show_default=False,
        ),
    ],
    pairs: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE=TARGET…", help="One or more pairs of words.", show_default=False),
    ],
    compute: Compute,
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Only the first N heads.")] = 20,
    model: ModelOption = None,
    as_json: AsJson = False,
) -> None:
    """Rank a few pairs of words for every head, the best head first.

    Score is the share of sources of which a target has a rank below k. A few pairs prove little: there is no
    calibration and no q, and of many heads some hit by chance. Nothing is stored.
    """
    from headatlas.atlas.export import plain_records
    from headatlas.writing.words import query

    given = [parse_pair(text) for text in pairs]
    with stopping(lambda: STOPPED_HERE), progress_shown() as progress:
        found = query(where, given, model=model, compute=compute, progress=progress)
    rows = plain_records(found.head(top))
    if as_json:
        print_json({**found.attrs, "rows": rows})
        return
    say(found.attrs["caption"])
    names = [f"{source}={target}" for source, target in found.attrs["pairs"]]
    print_table(
        ["head", "sign", "score", "suppression", "control", *names],
        [_query_row(row, found.attrs["ceiling"]) for row in rows],
    )


def parse_pair(text: str) -> tuple[str, str]:
    """A pair written SOURCE=TARGET.

    Raises:
        HeadatlasError: It is not written so.
    """
    source, sign, target = text.partition("=")
    if not (source.strip() and sign and target.strip()):
        raise HeadatlasError(f"{text!r} is no pair; write it SOURCE=TARGET, like France=Paris.")
    return source, target


def _query_row(row: dict[str, Any], ceiling: int) -> Sequence[Any]:
    ranks = row["ranks" if row["sign"] == "promotion" else "suppression_ranks"]
    head = f"{row['layer']}.{row['head']}"
    numbers = [row[name] for name in ("sign", "score", "suppression", "control")]
    return [head, *numbers, *(rank_shown(rank, ceiling) for rank in ranks)]


def _wanted(each: dict[str, Any], ceiling: int) -> str:
    low = each["suppression_rank"]
    rank = f"{each['target']} wanted: rank {rank_shown(each['rank'], ceiling)}"
    return rank if low is None else f"{rank}, {low} of the most suppressed"
