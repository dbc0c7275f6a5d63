"""``behaviour``: where heads look."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headatlas.cli.evidence import KEPT, ModelOption, NoFigures, write_and_say
from headatlas.cli.options import AsJson, AtlasArgument, computes, names_of
from headatlas.cli.output import number, print_rows, print_table, progress_shown, say, stopping
from headatlas.options import Compute

if TYPE_CHECKING:
    import pandas as pd


def behaviour_names(incomplete: str) -> list[str]:
    """Names of behaviours, for the shell's completion."""
    from headatlas.atlas.behaviours import NAMES

    return [name for name in NAMES if name.startswith(incomplete)]


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("behaviour")(behaviour_command)


@computes("device")
def behaviour_command(
    folder: AtlasArgument,
    compute: Compute,
    model: ModelOption = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Your own UTF-8 text, of 1,000 words or more. Default: the shipped texts.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="NAME,…",
            help="Show only these behaviours, such as induction. Default: all.",
            autocompletion=behaviour_names,
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, help="Heads to show of each behaviour, best first.")
    ] = 5,
    no_figures: NoFigures = False,
    as_json: AsJson = False,
) -> None:
    """Show where heads look: at the previous token, the first position, an earlier copy of the token …

    Each head's attention on running texts, beside the level expected of a head that attends by distance
    alone, with a 95 % interval over texts and q over heads and behaviours. JSON has all heads.

    What is measured is stored in the atlas and not measured again. Table and figure go to DIR/evidence.
    """
    from headatlas.atlas import Atlas
    from headatlas.atlas.behaviours import best_first, chosen, known
    from headatlas.atlas.export import plain_records
    from headatlas.looking import measured_or_stored
    from headatlas.outputs import write_behaviours

    names = names_of(only)
    known(names)
    atlas = Atlas.open(folder)
    with stopping(lambda: KEPT), progress_shown() as progress:
        found = measured_or_stored(atlas, model, text=text, compute=compute, progress=progress)
    rows = best_first(chosen(found.frame(), names))
    if as_json:
        print_rows([atlas], plain_records(rows), behaviours=found.caption())
    else:
        say(f"{atlas.model_name}: {found.caption()}")
        print_table(*_table(rows, limit))
        say(f"called heads: {_counted(rows)}")
    write_and_say(atlas.folder, lambda: write_behaviours(atlas, found, atlas.folder, figures=not no_figures))


def _table(rows: pd.DataFrame, limit: int) -> tuple[list[str], list[list[Any]]]:
    """The best heads of each behaviour."""
    shown = rows.groupby("behaviour", sort=False).head(limit)
    cells = [
        [
            row["behaviour"],
            f"{row['layer']}.{row['head']}",
            row["value"],
            row["expected"],
            f"{row['low']:.2f} … {row['high']:.2f}",
            number(row["q"]),
            "called" if row["called"] else "",
        ]
        for row in shown.to_dict("records")
    ]
    return ["behaviour", "head", "value", "expected", "95 %", "q", ""], cells


def _counted(rows: pd.DataFrame) -> str:
    """How many heads are called for each behaviour that is tested, and for any."""
    tested = rows[rows["q"].notna()]
    parts = [f"{name} {int(part['called'].sum())}" for name, part in tested.groupby("behaviour", sort=False)]
    heads = rows.groupby(["layer", "head"])["called"].any()
    return f"{', '.join(parts) or 'none tested'}; any of these {int(heads.sum())} of {len(heads)}"
