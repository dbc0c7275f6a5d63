"""``relations``: what headatlas looks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headatlas.cli.heads import reasons_shown
from headatlas.cli.options import (
    AsJson,
    AtlasArgument,
    Known,
    TargetPolicyOption,
    argument,
    askable_names,
    names_of,
    option,
    out_option,
)
from headatlas.cli.output import (
    Column,
    head_records,
    print_json,
    print_records,
    print_rows,
    say,
    say_error,
)
from headatlas.errors import HeadatlasError
from headatlas.options import LensName, TargetPolicy

if TYPE_CHECKING:
    from headatlas.describing.mining import MinedRelation
    from headatlas.relations import Relation

Specs = Annotated[
    list[str] | None,
    argument(
        "[core|all|NAME|PATH]…",
        "core, all, categories, names of shipped relations, files or folders. Default: core.",
        autocompletion=askable_names,
    ),
]

SCAFFOLD_PAIRS = [("hot", "cold"), ("big", ["small", "little"])]
"""Example pairs of a new file, to be replaced: a source with one target, and one with several."""


def list_relations(
    specs: Specs = None,
    long: Annotated[bool, option("--long", "Also subcategory, targets, copying, licence, source.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the shipped relations, or those given."""
    from headatlas.relations import resolve_relations

    records = [_record(relation) for relation in resolve_relations(specs or "core")]
    if as_json:
        print_json({"rows": records})
        return
    columns: list[Column] = ["relation", "title", "category", *(["subcategory"] if long else []), _SOURCES]
    if long:
        said = (("licence", _said("licence")), ("source", _said("source")))
        columns += [_TARGETS, _COPYING, *said]
    print_records(columns, records)


def check_relations(
    specs: Specs = None,
    tokenizer: Annotated[
        str | None, option("--tokenizer", "Also count what this model's tokenizer can use.", "MODEL")
    ] = None,
    lens: Annotated[
        LensName, option("--lens", "The lens to check for: maps needs sources of one token.")
    ] = "neutral",
    target_policy: TargetPolicyOption = "single",
    as_json: AsJson = False,
) -> None:
    """Check relation files, and what a model can use of them.

    Every file is read, also after one that is broken. The relations that are too small for an atlas (30
    sources, 3 targets) are named. With --tokenizer, a model's tokenizer says which sources and targets can be
    used, and why the others cannot; no weights are read. The exit code is 2 if something could not be read,
    else 0.
    """
    from headatlas.relations import try_relations

    found, problems = try_relations(specs or "core")
    rows = [{**_record(relation), **_size(relation)} for relation in found]
    if tokenizer is not None and found:
        for row, usable in zip(rows, _usable(found, tokenizer, lens, target_policy), strict=True):
            row.update(usable)
    asked = {"tokenizer": tokenizer, "lens": lens, "target_policy": target_policy}
    if as_json:
        print_json({**asked, "rows": rows, "problems": [str(problem) for problem in problems]})
    elif rows:
        columns: list[Column] = ["relation", "category", _SOURCES, _TARGETS, _COPYING]
        if tokenizer is not None:
            columns += [("usable", "n_sources"), ("usable targets", "n_targets")]
            columns += [("not used", lambda row: "; ".join(reasons_shown(row["dropped"])))]
        print_records(columns, rows)
        _say_remarks(rows)
    for problem in problems:
        say_error(str(problem))
    if problems:
        raise typer.Exit(2)


def show_relations(
    specs: Annotated[
        list[str],
        argument(
            "NAME|PATH…",
            "Names of shipped relations, categories, relation files or folders.",
            autocompletion=askable_names,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Print the pairs of relations, and where they come from."""
    from headatlas.relations import resolve_relations

    found = resolve_relations(specs)
    if as_json:
        print_json({"rows": [{**_record(each), "pairs": _pairs(each)} for each in found]})
        return
    for relation in found:
        place = f"{relation.category}, {relation.subcategory}" if relation.subcategory else relation.category
        say(f"{relation.title} ({place}), {len(relation.pairs)} sources")
        for key, text in relation.provenance.items():
            say(f"{key.replace('_', ' ')}: {text}")
    columns: list[Column] = [
        ("relation", lambda row: row[0].name),
        ("source", lambda row: row[1].source),
        ("targets", lambda row: " | ".join(row[1].targets)),
    ]
    table = [(each, pair) for each in found for pair in each.pairs]
    print_records(columns if len(found) > 1 else columns[1:], table)


def new_relation(
    name: Annotated[str, argument("NAME", "The relation's name or title.")],
    out: Annotated[Path, out_option("A .json, .csv or .tsv.")],
    category: Annotated[str | None, option("--category", "Its panel. Default: User.", "NAME")] = None,
) -> None:
    """Write a small relation file to begin with.

    It holds two example pairs, to be replaced. JSON has room for a category, the source and the licence of
    the pairs; a CSV or TSV is named after its file and its category is User.
    """
    from dataclasses import replace

    from headatlas.relations import Relation

    relation = Relation.from_pairs(name, SCAFFOLD_PAIRS, category=category or "User")
    relation = replace(relation, provenance={"source": "", "licence": "", "note": ""})
    kind = out.suffix.lower()
    if kind == ".json":
        text = relation.to_json()
    elif kind in (".csv", ".tsv"):
        if category is not None:
            raise HeadatlasError(f"{out}: a table has no place for a category; end the name in .json.")
        if out.stem != relation.name:
            raise HeadatlasError(f"{out}: a table is named after its file; call it {relation.name}{kind}.")
        separator = "," if kind == ".csv" else "\t"
        rows = [("source", "target"), *((pair.source, "|".join(pair.targets)) for pair in relation.pairs)]
        text = "".join(f"{separator.join(row)}\n" for row in rows)
    else:
        raise HeadatlasError(f"{out}: a relation file ends in .json, .csv or .tsv.")
    _write_new({out: text})
    say(f"written: {out}; replace its pairs, then: headatlas relations check {out}")


def export_relations(
    specs: Annotated[
        list[str],
        argument(
            "core|all|NAME|PATH…", "core, all, categories, names of shipped relations, files or folders."
        ),
    ],
    out: Annotated[Path, out_option("Folder for the files.", "FOLDER")],
) -> None:
    """Write relations as JSON files, one each, to read or to change them.

    What is written gives the same relations again: the same names, categories, pairs and hashes.
    """
    from headatlas.relations import resolve_relations

    found = resolve_relations(specs)
    _write_new({out / f"{relation.name}.json": relation.to_json() for relation in found})
    say(f"written: {len(found)} {'file' if len(found) == 1 else 'files'} to {out}")


def mine_relations_command(
    folder: AtlasArgument,
    out: Annotated[
        Path | None,
        out_option("Folder for the proposals, a file each. Default: they are only shown.", "FOLDER"),
    ] = None,
    relations: Known = None,
    least_heads: Annotated[int, option("--least-heads", "Heads that share a mapping.", "N", min=2)] = 2,
    as_json: AsJson = False,
) -> None:
    """Propose relations that a model has and the library has not.

    Salient mappings that neither spelling nor a known relation explains, and that several heads share, are
    grouped by which heads have them. Each group becomes a relation file for you to read, correct and name.
    """
    from headatlas.atlas import Atlas
    from headatlas.describing.mining import mine_relations
    from headatlas.describing.run import stored_operations

    atlas = Atlas.open(folder)
    names = names_of(relations, "relations")
    found = mine_relations(stored_operations(atlas), known=names or "all", least_heads=least_heads)
    if out is not None:
        _write_new({out / f"{each.relation.name}.json": each.relation.to_json() for each in found.proposals})
    if as_json:
        rows = [
            {
                "relation": each.relation.name,
                "heads": head_records(each.heads),
                "pairs": _pairs(each.relation),
            }
            for each in found.proposals
        ]
        print_rows(atlas, rows, about=found.caption(), least_heads=found.least_heads)
        return
    say(f"{atlas.model_name}: {found.caption()}")
    print_records(_MINED, found.proposals)
    if out is not None and found.proposals:
        say(
            f"written: {len(found.proposals)} files to {out}; read and name them, then: relations check {out}"
        )


def _pairs(relation: Relation) -> list[dict[str, Any]]:
    return [{"source": pair.source, "targets": list(pair.targets)} for pair in relation.pairs]


def _first_mappings(each: MinedRelation) -> str:
    pairs = each.relation.pairs
    first = ", ".join(f"{pair.source} → {'|'.join(pair.targets)}" for pair in pairs[:4])
    return f"{first} …" if len(pairs) > 4 else first


_MINED: tuple[Column, ...] = (
    ("relation", lambda each: each.relation.name),
    ("sources", lambda each: len(each.relation.pairs)),
    ("targets", lambda each: each.relation.n_targets),
    ("heads", lambda each: len(each.heads)),
    ("first mappings", _first_mappings),
)


def _write_new(texts: dict[Path, str]) -> None:
    """Write files, none of which may be there already."""
    from headatlas.files import atomic_write

    there = [path for path in texts if path.exists()]
    if there:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise HeadatlasError(f"{there[0]}{more}: there already; choose another `out`.")
    for path, text in texts.items():
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _record(relation: Relation) -> dict[str, Any]:
    """A relation as it is before any tokenizer has seen it, its counts named as in an atlas: n_sources and
    n_targets are there only where a tokenizer says what can be used."""
    return {
        "relation": relation.name,
        "title": relation.title,
        "category": relation.category,
        "subcategory": relation.subcategory,
        "is_copying": relation.copying,
        "n_pairs": len(relation.pairs),
        "n_target_words": relation.n_targets,
        "provenance": relation.provenance,
        "sha256": relation.sha256,
    }


def _size(relation: Relation) -> dict[str, Any]:
    """Faults of size or content that a relation has before any tokenizer has seen it."""
    from headatlas.relations import too_small

    own = [pair.source for pair in relation.pairs if not relation.copying and pair.source in pair.targets]
    return {"too_small": too_small(len(relation.pairs), relation.n_targets), "own_targets": own}


def _say_remarks(rows: list[dict[str, Any]]) -> None:
    """Say why relations stay out of an atlas, and which scores would be doubtful."""
    for row in rows:
        if why := row["too_small"]:
            say(f"below the minimum, an atlas leaves it out: {row['relation']} ({why})")
        elif why := row.get("left_out"):
            say(f"left out with this model: {row['relation']} ({why})")
        if own := row["own_targets"]:
            words = f"{own[0]!r} is its own target" if len(own) == 1 else f"{len(own)} sources are their own"
            say(f"{row['relation']}: {words}; heads that copy score there too")


_SOURCES, _TARGETS = ("sources", "n_pairs"), ("targets", "n_target_words")
_COPYING: Column = ("copying", lambda row: "yes" if row["is_copying"] else "no")


def _said(key: str) -> Callable[[dict[str, Any]], Any]:
    """An entry of a relation's provenance, if it has it."""
    return lambda row: row["provenance"].get(key)


def _usable(
    relations: tuple[Relation, ...], model: str, lens: LensName, target_policy: TargetPolicy
) -> list[dict[str, Any]]:
    """Count what a model's tokenizer can use of each relation."""
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
        seen = tokenise(
            relation, tokenizer, competing=competing, max_source_tokens=longest, target_policy=target_policy
        )
        rows.append(
            {
                "n_sources": len(seen.pairs),
                "n_targets": len({token for pair in seen.pairs for token in pair.target_ids}),
                "left_out": seen.left_out or "",
                "dropped": {reason: list(sources) for reason, sources in seen.dropped.items()},
            }
        )
    return rows
