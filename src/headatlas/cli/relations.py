"""``relations``: what headatlas looks for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headatlas.cli.options import AsJson, Lens
from headatlas.cli.output import print_json, print_table, say
from headatlas.errors import HeadatlasError

if TYPE_CHECKING:
    from headatlas.relations import Relation

Source = Annotated[
    str,
    typer.Argument(metavar="PATH", help="A relation file or a folder of them; core for the shipped ones."),
]


def register(app: typer.Typer) -> None:
    """Add the command groups of this module."""
    relations = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The relations to look for.")
    relations.command("list")(list_relations)
    relations.command("check")(check_relations)
    relations.command("show")(show_relation)
    app.add_typer(relations, name="relations")


def list_relations(source: Source = "core", as_json: AsJson = False) -> None:
    """List the shipped relations, or those in PATH."""
    found = _relations(source)
    if as_json:
        print_json([_record(relation) for relation in found])
        return
    print_table(
        ["relation", "title", "category", "sources"],
        [[each.name, each.title, each.category, len(each.pairs)] for each in found],
    )


def check_relations(
    source: Source = "core",
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="Also count what this model's tokenizer can use."),
    ] = None,
    lens: Annotated[
        Lens, typer.Option("--lens", help="The lens to check for: maps needs sources of one token.")
    ] = "neutral",
    as_json: AsJson = False,
) -> None:
    """Check relation files, and what a model can use of them.

    Without --model the files are read and counted. With it, its tokenizer says which sources and targets can
    be used, and why the others cannot. No weights are read.
    """
    found = _relations(source)
    rows = [_record(relation) for relation in found]
    if model is not None:
        for row, usable in zip(rows, _usable(found, model, lens), strict=True):
            row.update(usable)
    if as_json:
        print_json(rows)
        return
    columns = ["relation", "category", "sources", "targets", "copying"]
    if model is not None:
        columns += ["usable", "usable targets", "not used"]
    print_table(columns, [_check_row(row) for row in rows])
    left_out = [row for row in rows if row.get("left_out")]
    for row in left_out:
        say(f"left out: {row['relation']} ({row['left_out']})")


def show_relation(
    name: Annotated[
        str, typer.Argument(metavar="NAME|PATH", help="A shipped relation's name, or a relation file.")
    ],
    as_json: AsJson = False,
) -> None:
    """Print the pairs of one relation."""
    for relation in _named(name):
        if as_json:
            pairs = [[pair.source, list(pair.targets)] for pair in relation.pairs]
            print_json({**_record(relation), "pairs": pairs})
            continue
        say(f"{relation.title} ({relation.category}), {len(relation.pairs)} sources")
        for key, text in relation.provenance.items():
            say(f"{key}: {text}")
        print_table(["source", "targets"], [[p.source, " | ".join(p.targets)] for p in relation.pairs])


def _relations(source: str) -> tuple[Relation, ...]:
    from headatlas.relations import core, load

    return core() if source == "core" else load(source)


def _named(name: str) -> list[Relation]:
    from headatlas.relations import core, load

    shipped = [relation for relation in core() if relation.name == name]
    if shipped:
        return shipped
    if not Path(name).exists():
        raise HeadatlasError(
            f"{name}: neither a shipped relation nor a file; `headatlas relations list` has the names."
        )
    found = load(name)
    if len(found) > 1:
        raise HeadatlasError(f"{name}: a folder of {len(found)} relations; give one of its files.")
    return list(found)


def _record(relation: Relation) -> dict[str, Any]:
    return {
        "relation": relation.name,
        "title": relation.title,
        "category": relation.category,
        "copying": relation.copying,
        "n_sources": len(relation.pairs),
        "n_targets": len({target for pair in relation.pairs for target in pair.targets}),
        "provenance": relation.provenance,
        "sha256": relation.sha256,
    }


def _check_row(row: dict[str, Any]) -> list[Any]:
    cells = [
        row["relation"],
        row["category"],
        row["n_sources"],
        row["n_targets"],
        "yes" if row["copying"] else "no",
    ]
    if "usable_sources" in row:
        reasons = [f"{reason} ({len(sources)})" for reason, sources in row["dropped"].items() if sources]
        cells += [row["usable_sources"], row["usable_targets"], "; ".join(reasons)]
    return cells


def _usable(relations: tuple[Relation, ...], model: str, lens: Lens) -> list[dict[str, Any]]:
    """What a model's tokenizer can use of each relation."""
    from headatlas.architectures import open_model
    from headatlas.lenses.lens import lens_named
    from headatlas.relations import competing_tokens, tokenise
    from headatlas.weights import open_checkpoint

    opened = open_model(open_checkpoint(model))
    tokenizer = opened.tokenizer()
    competing, _ = competing_tokens(tokenizer, opened.dims.vocab_size)
    longest = lens_named(lens).max_source_tokens
    rows = []
    for relation in relations:
        seen = tokenise(relation, tokenizer, competing=competing, max_source_tokens=longest)
        rows.append(
            {
                "usable_sources": len(seen.pairs),
                "usable_targets": len({token for pair in seen.pairs for token in pair.target_ids}),
                "left_out": seen.left_out,
                "dropped": {reason: list(sources) for reason, sources in seen.dropped.items()},
            }
        )
    return rows
