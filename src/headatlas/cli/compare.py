"""``compare``: the same relations, and the same heads, in several models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from headatlas.addresses import output_path
from headatlas.cli.options import (
    AsJson,
    OutFile,
    PlottedData,
    QAt,
    Relations,
    Sources,
    Width,
    computes,
    draws,
    names_of,
    option,
    reads_several,
)
from headatlas.cli.output import (
    HEAD,
    Column,
    check_figure,
    number,
    parse_width,
    print_json,
    print_records,
    print_text,
    progress_shown,
    save_figure,
    say,
    small,
    span,
    stopping,
)
from headatlas.errors import HeadatlasError
from headatlas.options import Compute, LensName, Look, Preset

if TYPE_CHECKING:
    from headatlas.arrangement.comparison import Comparison, HeadChanges
    from headatlas.atlas import Atlas

N_CHANGES = 20
STOPPED = "stopped; with --maps DIR, layers that are done are saved, and the same command goes on"


Kind = Annotated[
    Literal["heads", "trajectory", "relations"] | None,
    option(
        "--kind",
        "The figure: heads that changed (two of one shape), relations over models in order, or "
        "relations side by side. Default: the first that fits.",
    ),
]
ComparedPage = Annotated[
    Path | None,
    option(
        "--page",
        "Write the interactive page of the last model with the comparison in it: one HTML file that "
        "needs no network.",
        "FILE",
        parser=output_path,
    ),
]
Maps = Annotated[
    Path | None,
    option(
        "--maps",
        "Keep the atlases of models here, and go on with those that are here. Default: not kept.",
        "FOLDER",
        parser=output_path,
    ),
]
LensOfModels = Annotated[
    LensName | None,
    option("--lens", "Of models: how a head sees a token. Default: as the first atlas, or neutral."),
]


@computes("device", "max_memory", "stream")
@draws
@reads_several
def compare_command(
    places: list[str],
    read: Callable[[Atlas], Atlas],
    preset: Preset,
    look: Look,
    compute: Compute,
    out: OutFile = None,
    kind: Kind = None,
    width: Width = "170mm",
    data: PlottedData = None,
    page: ComparedPage = None,
    q_at: QAt = None,
    maps: Maps = None,
    lens: LensOfModels = None,
    relations: Relations = None,
    sources: Sources = None,
    as_json: AsJson = False,
) -> None:
    """Compare models: relation by relation and, where they have one shape, head by head.

    For each relation its best head, how deep that sits (0 the first layer, 1 the last), and how many heads
    implement it; then how far the models agree.

    Models with the same layers, heads and family (fine-tunes, checkpoints, quantisations) are compared head
    by head, each with the next in the order given: a paired test on the same sources says which heads lost or
    gained a relation. Heads are matched by layer and number.

    A model in the place of an atlas is mapped first; then lens, relations and sources can be given.
    """
    width_mm = parse_width(width)
    check_figure(out)
    if q_at and page is None:
        raise HeadatlasError("`q_at` is of the page, which `page` writes; give both or neither.")
    asked = names_of(relations, "relations")
    atlases = [read(atlas) for atlas in _given(places, maps, lens, asked, sources, preset, compute)]
    from headatlas.arrangement import compare
    from headatlas.figures.compare import comparison_data, comparison_kind, draw_comparison

    found = compare(*atlases)
    if out is not None or data is not None:
        comparison_kind(found, kind)
    _say_found(atlases, found, as_json)
    if out is not None:
        save_figure(draw_comparison(found, width_mm, kind, look), out)
    if data is not None:
        from headatlas.figures.plots import write_table

        say(f"written: {write_table(comparison_data(found, kind), data)}")
    if page is not None:
        from headatlas.report import write_comparison

        say(f"written: {write_comparison(atlases, page, found, q_at or ())}")


def _say_found(atlases: Sequence[Atlas], found: Comparison, as_json: bool) -> None:
    """Print a comparison."""
    from headatlas.atlas.export import heading, plain_records

    records = plain_records(found.table)
    agreement = [asdict(pair) for pair in found.agreement]
    if as_json:
        named = zip(found.labels, atlases, strict=True)
        print_json(
            {
                "atlases": [{"atlas": label, **heading(atlas)} for label, atlas in named],
                "rows": records,
                "agreement": agreement,
                "relations_left_out": found.left_out,
                "changes": [step.to_dict() for step in found.changes],
                "not_by_head": found.not_by_head,
            }
        )
        return
    for atlas in atlases:
        say(atlas.caption())
    for name, why in found.left_out.items():
        say(f"not compared: {name} ({why})")
    _print_relations(records, agreement)
    for step in found.changes:
        _print_changes(step)
    if found.not_by_head:
        say(found.not_by_head)


def _given(
    places: Sequence[str],
    maps: Path | None,
    lens: str | None,
    relations: list[str] | None,
    sources: Any,
    preset: Preset,
    compute: Compute,
) -> list[Atlas]:
    from headatlas.atlas.store import holds_atlas

    if all(map(holds_atlas, places)) and not (maps or lens or relations or sources):
        from headatlas.atlas import Atlas

        return [Atlas.open(place) for place in places]  # without torch, which takes seconds
    from headatlas.mapping.run import atlases_given

    with stopping(lambda: STOPPED):
        return atlases_given(
            places,
            maps=maps,
            lens=lens,
            relations=relations,
            sources=sources,
            preset=preset,
            compute=compute,
            progress=progress_shown,
        )


_AGREEMENT: tuple[Column, ...] = (
    *("first", "second", ("best scores", "score"), ("p", lambda pair: number(pair["score_p"]))),
    *(("relations", "n_score"), ("depths", "depth"), ("p", lambda pair: number(pair["depth_p"]))),
    ("relations", "n_depth"),
)
_MOVES = (
    *("relation", "sign", "called_a", "called_b", "called_both"),
    *("lost", "gained", "weaker", "stronger", "best_a", "best_b", "total"),
)
_CHANGES: tuple[Column, ...] = (
    *(HEAD, "relation", "sign", ("a", "score_a"), ("b", "score_b"), "difference"),
    ("95 % interval", lambda row: span(row["low"], row["high"], "to")),
    *(small("q"), ("change", lambda row: row["change"] or "not shown")),
    ("called", lambda row: row["called_in"] or "neither"),
)


def _print_relations(records: list[dict[str, Any]], agreement: list[dict[str, Any]]) -> None:
    columns: tuple[Column, ...] = (
        *("relation", "atlas", ("best head", HEAD[1]), "score", "added", "depth"),
        *(("heads", "n_implementing"), ("median depth", "median_depth")),
    )
    print_records(columns, records)
    typer.echo("\nAgreement: Spearman correlation over relations, p by permutation")
    print_records(_AGREEMENT, agreement)


def _print_changes(step: HeadChanges) -> None:
    from headatlas.figures.compare import describe_changes

    typer.echo("")
    print_text(f"Head by head, from {step.a} (a) to {step.b} (b)")
    print_text(describe_changes(step).replace(". ", ".\n"))
    if step.equal:
        return
    tables = ([(name.replace("_", " "), name) for name in _MOVES], step.relations), (_CHANGES, step.changes)
    for columns, rows in tables:
        if len(rows):
            typer.echo("")
            print_records(columns, rows.head(N_CHANGES) if rows is step.changes else rows)
    if len(step.changes) > N_CHANGES:
        say(f"{len(step.changes) - N_CHANGES} more rows; --json has them all")
