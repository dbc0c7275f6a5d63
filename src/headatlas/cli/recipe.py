"""``recipe``: Python that acts on the heads of an atlas."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from headatlas.cli.evidence import ModelOption
from headatlas.cli.heads import parse_head
from headatlas.cli.options import AsJson, out_option, reads_atlas, shipped_names
from headatlas.cli.output import print_rows, print_text, say

if TYPE_CHECKING:
    from headatlas.atlas import Atlas


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("recipe")(recipe_command)


@reads_atlas
def recipe_command(
    atlas: Atlas,
    relation: Annotated[
        str | None,
        typer.Option(
            "--relation",
            metavar="NAME",
            help="The heads that implement this relation, best first.",
            autocompletion=shipped_names,
        ),
    ] = None,
    heads: Annotated[
        list[str] | None,
        typer.Option("--heads", metavar="LAYER.HEAD,…", help="Or these heads, such as 23.4,24.5."),
    ] = None,
    form: Annotated[
        Literal["transformers", "transformer-lens", "nnsight", "checkpoint"],
        typer.Option(
            "--as",
            help="The library that the Python is for. checkpoint: a safetensors file with the changed output "
            "projections alone (-o), and Python that loads it over the model.",
        ),
    ] = "transformers",
    do: Annotated[
        Literal["silence", "scale", "watch"],
        typer.Option("--do", help="Set what heads bring to zero, multiply it by --factor, or collect it."),
    ] = "silence",
    factor: Annotated[
        float | None, typer.Option("--factor", metavar="F", help="What --do scale multiplies by.")
    ] = None,
    control: Annotated[
        int, typer.Option("--control", metavar="SEED", help="Seed of the random heads beside them.")
    ] = 0,
    model: ModelOption = None,
    out: Annotated[
        Path | None, out_option("Write it to this file instead. checkpoint: the file of tensors.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print Python that silences, scales or watches heads, for your own experiments.

    The code works at the input of the output projection, where heads are side by side. It needs the model and
    its library, not headatlas. As many random heads of the same layers stand in it as a control.

    Of the forms only checkpoint reads the model, which --model may name.
    """
    from headatlas.recipes import recipe

    named = None if heads is None else [name for text in heads for name in text.split(",")]
    made = recipe(
        atlas,
        relation,
        heads=None if named is None else [parse_head(name, atlas) for name in named],
        form=form,
        do=do,
        factor=factor,
        control=control,
        out=out,
        model=model,
    )
    if as_json:
        rows = [{"layer": layer, "head": head} for layer, head in made.heads]
        beside: list[Any] = [{"layer": layer, "head": head} for layer, head in made.control]
        print_rows([atlas], rows, control=beside, code=made.code)
    elif out is None or form == "checkpoint":
        print_text(made.code.rstrip("\n"))
    if out is not None:
        say(f"wrote {out}")
