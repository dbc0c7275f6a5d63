"""``structure`` and ``compare``: how what heads do is arranged, in one model and across models."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from headatlas.cli.options import AsJson, OutFile, Width, reads_atlas, reads_atlases
from headatlas.cli.output import number, parse_width, print_rows, print_table, say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from headatlas.arrangement.depth import Depth
    from headatlas.arrangement.model_structure import Structure
    from headatlas.atlas import Atlas


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("structure")(structure_command)
    app.command("compare")(compare_command)


@reads_atlas
def structure_command(
    atlas: Atlas, out: OutFile = None, width: Width = "170mm", as_json: AsJson = False
) -> None:
    """Show how what the heads do is arranged.

    Whether heads of one key/value group are more alike than others of their layer, how many relations a head
    carries, and how deep each category sits, each with a test.
    """
    width_mm = parse_width(width)
    _check_format(out)
    from headatlas.arrangement import structure

    found = structure(atlas)
    if as_json:
        print_rows([atlas], **found.to_dict())
    else:
        say(atlas.caption())
        _print_structure(found)
    if out is not None:
        from headatlas.figures.structure import draw_structure

        _save(draw_structure(atlas, found, width_mm), out)


@reads_atlases
def compare_command(
    atlases: list[Atlas], out: OutFile = None, width: Width = "170mm", as_json: AsJson = False
) -> None:
    """Put the same relations of several models, or lenses, side by side.

    For each relation its best head, how deep that sits (0 the first layer, 1 the last), and how many heads
    implement it; then how far the models agree.
    """
    width_mm = parse_width(width)
    _check_format(out)
    from headatlas.arrangement import compare
    from headatlas.atlas.export import plain_records

    found = compare(*atlases)
    records = plain_records(found.table)
    agreement = [asdict(pair) for pair in found.agreement]
    if as_json:
        print_rows(atlases, records, labels=found.labels, agreement=agreement, left_out=found.left_out)
    else:
        for atlas in atlases:
            say(atlas.caption())
        for name, why in found.left_out.items():
            say(f"not compared: {name} ({why})")
        _print_comparison(records, agreement)
    if out is not None:
        from headatlas.figures.compare import draw_comparison

        _save(draw_comparison(found, width_mm), out)


def _check_format(out: Path | None) -> None:
    """Refuse a kind of file that cannot be drawn, before anything is computed."""
    if out is not None:
        from headatlas.figures.plots import figure_format

        figure_format(out)


def _save(figure: Figure, out: Path) -> None:
    from headatlas.figures.plots import save

    say(f"written: {save(figure, out)}")


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
                f"p {_equals(found.per_head.p)}"
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
    typer.echo(f"Kruskal–Wallis: H = {found.h:.2f}, p {_equals(found.p)}, ε² = {found.epsilon2:.2f}")
    for pair in found.pairs:
        typer.echo(
            f"Mann–Whitney, {pair.first} and {pair.second}: r = {pair.r:+.2f}, Holm p {_equals(pair.p)}"
        )


def _equals(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {number(p)}"


def _print_comparison(records: list[dict[str, Any]], agreement: list[dict[str, Any]]) -> None:
    print_table(
        ["relation", "atlas", "best head", "score", "added", "depth", "heads", "median depth"],
        [
            [
                row["relation"],
                row["atlas"],
                f"{row['layer']}.{row['head']}",
                row["score"],
                row["added"],
                row["depth"],
                row["n_implementing"],
                row["median_depth"],
            ]
            for row in records
        ],
    )
    typer.echo("\nAgreement: Spearman correlation over relations, p by permutation")
    print_table(
        ["first", "second", "best scores", "p", "relations", "depths", "p", "relations"],
        [
            [
                pair["first"],
                pair["second"],
                pair["score"],
                None if pair["score_p"] is None else number(pair["score_p"]),
                pair["n_score"],
                pair["depth"],
                None if pair["depth_p"] is None else number(pair["depth_p"]),
                pair["n_depth"],
            ]
            for pair in agreement
        ],
    )
