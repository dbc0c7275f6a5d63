"""``structure``: how what heads do is arranged in one model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from headatlas.cli.options import AsJson, OutFile, Width, draws, reads_atlas
from headatlas.cli.output import (
    check_figure,
    number,
    p_equals,
    parse_width,
    print_rows,
    print_table,
    save_figure,
    say,
)
from headatlas.options import Look

if TYPE_CHECKING:
    from headatlas.arrangement.depth import Depth
    from headatlas.arrangement.model_structure import Structure
    from headatlas.atlas import Atlas


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("structure")(structure_command)


@draws
@reads_atlas
def structure_command(
    atlas: Atlas, look: Look, out: OutFile = None, width: Width = "170mm", as_json: AsJson = False
) -> None:
    """Show how what the heads do is arranged.

    Whether heads of one key/value group are more alike than others of their layer, how many relations a head
    carries, and how deep each category sits, each with a test.
    """
    width_mm = parse_width(width)
    check_figure(out)
    from headatlas.arrangement import structure

    found = structure(atlas)
    if as_json:
        print_rows([atlas], **found.to_dict())
    else:
        say(atlas.caption())
        _print_structure(found)
    if out is not None:
        from headatlas.figures.structure import draw_structure

        save_figure(draw_structure(atlas, found, width_mm, look), out)


def _print_structure(found: Structure) -> None:
    typer.echo("Key/value groups: cosine of the scores of two heads of a layer")
    if found.groups:
        print_table(
            ["sign", "one group", "different groups", "difference", "95 % interval", "p", "pairs", "layers"],
            [
                [
                    {"signed": "counts", "unsigned": "ignored"}[each.measure],
                    each.within,
                    each.between,
                    each.difference,
                    None if each.low is None else f"{each.low:.2f} to {each.high:.2f}",
                    number(each.p),
                    f"{each.n_within} and {each.n_between}",
                    len(each.layers),
                ]
                for each in found.groups
            ],
        )
    else:
        typer.echo(found.no_groups)
    typer.echo("\nRelations per head")
    if found.per_head is None:
        typer.echo("nothing has been mapped or scored")
    else:
        counts = zip(found.per_head.observed, found.per_head.expected, strict=True)
        print_table(
            ["relations", "heads", "by chance"],
            [[at, seen, f"{expected:.1f}"] for at, (seen, expected) in enumerate(counts)],
        )
        if found.per_head.dispersion is not None and found.per_head.p is not None:
            typer.echo(
                f"variance within layers: {found.per_head.dispersion:.2f} times that by chance, "
                f"p {p_equals(found.per_head.p)}"
            )
    typer.echo("\nLayers of each category's heads")
    _print_depth(found.depth)
    if found.depth_single is not None:
        typer.echo("\nThe same on sources of one token")
        _print_depth(found.depth_single)


def _print_depth(depth: Depth) -> None:
    if not depth.categories:
        typer.echo("no head implements or suppresses a relation")
        return
    print_table(
        ["category", "heads", "lower quartile", "median", "upper quartile"],
        [[row.category, len(row.layers), row.low, row.median, row.high] for row in depth.categories],
    )
    found = depth.comparison
    if found is None:
        typer.echo("not compared: fewer than two categories have five heads, or all sit in one layer")
        return
    typer.echo(f"Kruskal–Wallis: H = {found.h:.2f}, p {p_equals(found.p)}, ε² = {found.epsilon2:.2f}")
    for pair in found.pairs:
        typer.echo(
            f"Mann–Whitney, {pair.first} and {pair.second}: r = {pair.r:+.2f}, Holm p {p_equals(pair.p)}"
        )
