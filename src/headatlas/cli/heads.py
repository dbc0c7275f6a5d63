"""Commands that say what an atlas holds, or write it down: ``heads``, ``describe``, ``plot`` and others."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headatlas.cli.options import (
    AsJson,
    AtlasArgument,
    Only,
    OutFile,
    PlottedData,
    QAt,
    Width,
    argument,
    draws,
    names_of,
    option,
    out_option,
    reads_atlas,
    shipped_names,
)
from headatlas.cli.output import (
    HEAD,
    Column,
    check_figure,
    head_records,
    interval_of,
    number,
    p_equals,
    parse_width,
    print_fields,
    print_records,
    print_rows,
    print_text,
    save_figure,
    say,
    small,
    span,
)
from headatlas.errors import HeadatlasError
from headatlas.options import FigureKind, Look, Panels
from headatlas.showing import tokens_shown

if TYPE_CHECKING:
    import pandas as pd

    from headatlas.arrangement.model_structure import Depth, Structure
    from headatlas.atlas import Atlas
    from headatlas.atlas.cards import Card


_N_SALIENT = 8


# heads ------------------------------------------------------------------------------------------------


@reads_atlas
def heads_command(
    atlas: Atlas,
    only: Only = None,
    category: Annotated[str | None, option("--category", "Only this category.", "NAME")] = None,
    everything: Annotated[bool, option("--all", "Every head, also those not called.")] = False,
    limit: Annotated[
        int | None,
        typer.Option("--limit", "-n", metavar="N", min=1, help="Only the first N rows; with --label, heads."),
    ] = None,
    label: Annotated[
        str | None,
        option(
            "--label",
            "Heads of which something with this word is said, such as induction or months: relations, "
            "behaviours, labels, the tokens they write most. Parts of words count where no word matches.",
            "TEXT",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the heads that implement a relation, best first.

    A head implements a relation when it raises the right target among the top k of the vocabulary for enough
    sources; it suppresses it when it lowers it as far.

    The q printed is that of what is called: of suppression for a head that only suppresses. --json has both,
    q (of score) and suppression_q, and says with implements and suppresses which is called.
    """
    if label is not None:
        given = {"--only": only, "--category": category, "--all": everything}
        if named := ", ".join(name for name, value in given.items() if value):
            raise HeadatlasError(f"--label searches all that is said of every head; leave out {named}.")
        _print_search(atlas, label, limit, as_json)
        return
    frame = atlas.sel(relation=names_of(only), category=category, called=not everything)
    frame = frame if limit is None else frame.head(limit)
    if as_json:
        from headatlas.atlas.export import heads_json

        print_rows(atlas, heads_json(frame))
    else:
        _print_heads(atlas, frame)


def _print_heads(atlas: Atlas, frame: pd.DataFrame) -> None:
    say(atlas.caption())
    if atlas.evidence:
        from headatlas.atlas.evidence import CRITERIA

        say("; ".join(CRITERIA))
    if frame.empty:
        say("no head is called; --all shows every head, --tau and --criterion change what counts.")
        return
    print_records([*_COLUMNS, *(_EVIDENCE_COLUMNS if atlas.evidence else ())], frame)


def _deciding(promotion: str, suppression: str) -> Callable[[dict[str, Any]], Any]:
    """The field of the sign that decides: of promotion, unless the head only suppresses."""
    return lambda row: row[suppression if row["suppresses"] and not row["implements"] else promotion]


def _called(row: dict[str, Any]) -> str:
    from headatlas.atlas.display import called_in_words

    return called_in_words(row)


def _confirmed(row: dict[str, Any]) -> str | None:
    found = {"with context": row["confirmed_with_context"], "by ablation": row["confirmed_by_ablation"]}
    known = {word: yes for word, yes in found.items() if isinstance(yes, bool)}
    return ", ".join(word if yes else f"not {word}" for word, yes in known.items()) or None


_Q = _deciding("q", "suppression_q")
_COLUMNS: tuple[Column, ...] = (
    *(HEAD, "relation", "category", "score", "suppression"),
    ("q", lambda row: number(_Q(row))),
    *("control", ("sources", "n_sources"), ("called", _called)),
)
_EVIDENCE_COLUMNS: tuple[Column, ...] = (
    ("with context", _deciding("context", "context_suppression")),
    *("attention", ("loss alone", "loss_alone"), ("confirmed", _confirmed)),
)


def _print_search(atlas: Atlas, text: str, limit: int | None, as_json: bool) -> None:
    found = atlas.search(text)
    head_of = found.groupby(["layer", "head"]).ngroup()  # 0 … in the order of the rows
    rows = found if limit is None else found[head_of < limit]
    if as_json:
        print_rows(atlas, rows)
        return
    say(f"{atlas.caption()}\n{head_of.nunique()} heads with {text!r} in what is said about them")
    if len(rows):
        print_records([HEAD, "where", "what", "author"], rows)


# head -------------------------------------------------------------------------------------------------


@reads_atlas
def head_command(
    atlas: Atlas,
    name: Annotated[str, argument("LAYER.HEAD", "For example 23.4.")],
    words: Annotated[
        bool, option("--words", "Show which words of its relations it hits, at which rank, and which not.")
    ] = False,
    only: Annotated[
        list[str] | None,
        option(
            "--only",
            "The words of these relations, called or not, by name, title or a part of it.",
            "NAME,…",
            autocompletion=shipped_names,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the card of one head: tested statements, relations, where it looks, what it writes, heads like it.

    What has not been measured yet is named with the command that does.
    """
    from headatlas.atlas.cards import CAVEAT

    layer, head = parse_head(name, atlas)
    hits = None
    if words or only:
        from headatlas.atlas.cards import words_of

        hits = words_of(atlas, layer, head, names_of(only))
    if as_json:
        _print_card_json(atlas, atlas.head(layer, head), hits)
        return
    if hits is not None:
        _print_words(atlas, layer, head, hits)
        return
    card = atlas.head(layer, head)
    say("; ".join([f"head {card.layer}.{card.head}", *(card.statements or ("no tested statement",))]))
    say(CAVEAT)
    _print_heads(atlas, card.relations)
    _print_attention(atlas, card)
    _print_writing(atlas, card)
    _print_like(card)


def parse_head(name: str, atlas: Atlas) -> tuple[int, int]:
    """A mapped head of an atlas, written LAYER.HEAD."""
    match = re.fullmatch(r"L?(\d+)[.:/H](\d+)", name.strip(), re.IGNORECASE)
    if match is None:
        raise HeadatlasError(f"{name!r} is no head; write it LAYER.HEAD, both from 0, like 23.4.")
    layer, head = int(match[1]), int(match[2])
    if layer >= atlas.n_layers or head >= atlas.n_heads:
        raise HeadatlasError(
            f"there is no head {layer}.{head}: {atlas.model_name} has layers 0 to {atlas.n_layers - 1} "
            f"and heads 0 to {atlas.n_heads - 1}."
        )
    if not atlas.layers_done[layer]:
        raise HeadatlasError(
            f"layer {layer} is not mapped in this atlas; "
            f"map it with `headatlas map MODEL -o DIR --layers {layer}-{layer}`."
        )
    return layer, head


def _print_card_json(atlas: Atlas, card: Card, hits: pd.DataFrame | None) -> None:
    """The card, with the hits and misses of its words if they were asked for."""
    from headatlas.atlas.export import heads_json

    at = {"layer": card.layer, "head": card.head}
    weights = None if card.spectrum is None else [{**at, **card.spectrum, **(card.explained or {})}]
    parts = ("statements", "behaviours", "salient", "labels", "similar")
    found = at | {name: getattr(card, name) for name in parts}
    words = {} if hits is None else {"ceiling": int(atlas.provenance["ceiling"]), "words": hits}
    rows = heads_json(card.relations)
    print_rows(atlas, rows, **found, spectrum=weights, group=head_records(card.group), **words)


def _print_words(atlas: Atlas, layer: int, head: int, frame: pd.DataFrame) -> None:
    """Hits and misses of each relation: a line a source, its targets with their ranks."""
    ceiling = int(atlas.provenance["ceiling"])
    say(f"head {layer}.{head}: {atlas.caption()}")
    if frame.empty:
        say("no relation is called of this head; --only NAME shows the words of any.")
    known = {row["relation"]: row for row in atlas.relations.to_dict("records")}
    for (relation, sign), rows in frame.groupby(["relation", "sign"], sort=False):
        sources = rows.drop_duplicates("source")
        control = "" if sign == "suppression" else f"; the state itself {sources['control_source_hit'].sum()}"
        n_unused = sum(map(len, known[relation]["dropped"].values()))
        unused = f"; {n_unused} more cannot be used (headatlas info)" if n_unused else ""
        typer.echo("")
        print_text(
            f"{relation}, {sign}: {sources['source_hit'].sum()} of {len(sources)} sources hit "
            f"(rank below {known[relation]['k']}){control}{unused}"
        )
        columns: list[Column] = [
            ("", lambda targets: "hit" if targets["source_hit"].iloc[0] else "–"),
            ("source", lambda targets: str(targets["source"].iloc[0])),
            ("rank of target", lambda targets: _ranks(targets, "rank", ceiling)),
            ("of the state itself", lambda targets: _ranks(targets, "control_rank", ceiling)),
        ]
        by_source = [targets for _, targets in rows.groupby("source", sort=False)]
        print_records(columns if control else columns[:3], by_source)


def _ranks(targets: pd.DataFrame, column: str, ceiling: int) -> str:
    """The targets of a source, the best first, with their ranks."""
    pairs = zip(targets["target"], targets[column], strict=True)
    return ", ".join(f"{target} {rank_shown(rank, ceiling)}" for target, rank in pairs)


def heads_named(given: list[str] | None, atlas: Atlas, parameter: str) -> list[tuple[int, int]] | None:
    """Mapped heads of an atlas, as :func:`names_of` takes names; None if none were given."""
    names = names_of(given, parameter)
    return None if names is None else [parse_head(name, atlas) for name in names]


def rank_shown(rank: Any, ceiling: int) -> str:
    """A rank as text; one that is missing is at the ceiling or beyond."""
    import pandas as pd

    return f"≥ {ceiling}" if pd.isna(rank) else str(int(rank))


def _print_attention(atlas: Atlas, card: Card) -> None:
    typer.echo("")
    if card.behaviours is None:
        say(f"attention was not measured: `headatlas behaviour {shlex.quote(str(atlas.folder))}`")
        return
    columns = (("looks at", "behaviour"), "value", "expected", interval_of(), small("q"), CALLED)
    print_records(columns, card.behaviours)


CALLED: Column = ("called", lambda row: "called" if row["called"] else "")
WRITES: tuple[Column, ...] = (
    ("promotes", lambda row: tokens_shown(row["promoted"])),
    ("suppresses", lambda row: tokens_shown(row["suppressed"])),
)


def source_token(title: str) -> Column:
    """The column of a source token."""
    return title, lambda row: tokens_shown([row["source"]])


def _print_writing(atlas: Atlas, card: Card) -> None:
    """Salient operations, the spectrum in one line, and labels with who wrote them."""
    from headatlas.atlas.cards import spectrum_sentence

    typer.echo("")
    if card.salient is None:
        say(f"what it writes was not computed: `headatlas salience {shlex.quote(str(atlas.folder))}`")
    else:
        print_records((source_token("for"), "gain", *WRITES), card.salient.head(_N_SALIENT))
    if card.spectrum is not None:
        say(spectrum_sentence(card))
    for row in [] if card.labels is None else card.labels.to_dict("records"):
        say(f"label: {row['label']} ({row['support']}; by {row['author']})")


def _print_like(card: Card) -> None:
    typer.echo("")
    print_records([("similar head", HEAD[1]), "similarity", "writes", "looks"], card.similar)
    if card.group:
        say(f"shares its keys and values with {', '.join(f'{layer}.{head}' for layer, head in card.group)}")


# describe and info ------------------------------------------------------------------------------------


@reads_atlas
def describe_command(atlas: Atlas) -> None:
    """Say in words what the figure shows."""
    from headatlas.figures.describe import describe

    print_text(describe(atlas).rstrip("\n"))


def info_command(folder: AtlasArgument, as_json: AsJson = False) -> None:
    """Show where an atlas comes from.

    Model, lens, versions, thresholds; for each relation what the tokenizer could use and why not the rest.
    """
    from headatlas.atlas import Atlas

    atlas = Atlas.open(folder)
    relations = [
        {str(name): value for name, value in row.items()} for row in atlas.relations.to_dict("records")
    ]
    if as_json:
        print_rows(
            atlas,
            relations,
            path=atlas.dataset.encoding["source"],
            n_layers=atlas.n_layers,
            n_heads=atlas.n_heads,
            layers_done=[int(layer) for layer in atlas.layers_done.nonzero()[0]],
            coverage=_coverage_counts(atlas),
            provenance=atlas.provenance,
            evidence=[
                {"kind": kind, "provenance": each}
                for kind, found in atlas.evidence.provenance().items()
                for each in found
            ],
        )
        return
    print_fields(_info_rows(atlas))
    typer.echo("")
    columns = ("relation", "category", "k", ("sources", "n_sources"), ("targets", "n_targets"))
    print_records((*columns, ("not used", _unused)), relations)


def _coverage_counts(atlas: Atlas) -> dict[str, Any]:
    """How many heads each column of :meth:`Atlas.coverage` has; None for a kind that was never measured."""
    frame = atlas.coverage()
    counts = {str(name): int(frame[name].sum()) for name in frame.columns.drop(["layer", "head"])}
    missing = dict.fromkeys(f"by_{kind}" for kind in frame.attrs["not_measured"])
    return {"n_heads": len(frame), "share": frame.attrs["share"], **counts, **missing}


def _info_rows(atlas: Atlas) -> list[tuple[str, Any]]:
    from headatlas.atlas.cards import coverage_sentence

    done = int(atlas.layers_done.sum())
    rows: list[tuple[str, Any]] = [
        ("atlas", atlas.dataset.encoding["source"]),
        ("mapped", f"{done} of {atlas.n_layers} layers, {atlas.n_heads} heads each"),
        ("read with", atlas.thresholds.describe()),
        ("coverage", coverage_sentence(atlas).removeprefix("Coverage: ")),
    ]
    for name, value in atlas.provenance.items():
        rows += _flat(name.replace("_", " "), value)
    for kind, found in atlas.evidence.provenance().items():
        title, said = _EVIDENCE[kind]
        rows += [(f"evidence: {title}", said(each)) for each in found]
    return rows


_EVIDENCE: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "inference": ("texts", lambda run: f"{run['template']!r}, {len(run['relations'])} relations"),
    "attention": (
        "attention",
        lambda each: f"{len(each['words'])} relations, {len(each['context'])} templates",
    ),
    "ablation": ("ablation", lambda task: f"{task['relation']}, {task['shots']} examples, {task['method']}"),
    "heads": ("heads", lambda each: f"{', '.join(each['heads'])}, {each['method']}"),
    "behaviour": (
        "behaviour",
        lambda each: f"{each['texts']['texts']} texts of {each['texts']['source'] or 'headatlas'}",
    ),
    "salience": ("salience", lambda each: f"{each['tokens']['n']:,} tokens ({each['tokens']['choice']})"),
    "labels": ("labels", lambda each: str(each["author"])),
}
"""Kind of evidence → what it is called and what is said of one."""


def _flat(name: str, value: Any) -> list[tuple[str, Any]]:
    """A provenance entry as rows; long lists by their length."""
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in _flat(f"{name}: {key}", inner)]
    if isinstance(value, list) and len(value) > 8:
        return [(name, f"{len(value)} of them; --json lists them")]
    if isinstance(value, list):
        return [(name, ", ".join(repr(item) if isinstance(item, str) else str(item) for item in value))]
    return [(name, "–" if value is None else str(value))]


def _unused(row: dict[str, Any]) -> str:
    parts = [f"left out: {row['left_out']}"] if row["left_out"] else []
    return "; ".join([*parts, *reasons_shown(row["dropped"])])


def reasons_shown(dropped: dict[str, Any]) -> list[str]:
    """Why sources cannot be used, with how many."""
    return [f"{reason} ({len(sources)})" for reason, sources in dropped.items() if sources]


# structure --------------------------------------------------------------------------------------------


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
        print_rows(atlas, **found.to_dict())
    else:
        say(atlas.caption())
        _print_structure(found)
    if out is not None:
        from headatlas.figures.structure import draw_structure

        save_figure(draw_structure(atlas, found, width_mm, look), out)


def _print_structure(found: Structure) -> None:
    typer.echo("Key/value groups: cosine of the scores of two heads of a layer")
    if found.groups:
        columns: tuple[Column, ...] = (
            ("sign", lambda each: {"signed": "counts", "unsigned": "ignored"}[each.measure]),
            *(("one group", "within"), ("different groups", "between"), "difference"),
            ("95 % interval", lambda each: span(each.low, each.high, "to")),
            *(small("p"), ("pairs", lambda each: f"{each.n_within} and {each.n_between}")),
            ("layers", lambda each: len(each.by_layer)),
        )
        print_records(columns, found.groups)
    else:
        typer.echo(found.no_groups)
    typer.echo("\nRelations per head")
    if found.per_head is None:
        typer.echo("nothing has been mapped or scored")
    else:
        counts = enumerate(zip(found.per_head.observed, found.per_head.expected_counts, strict=True))
        rows = [{"relations": at, "heads": n, "by chance": f"{chance:.1f}"} for at, (n, chance) in counts]
        print_records(("relations", "heads", "by chance"), rows)
        if found.per_head.dispersion is not None and found.per_head.p is not None:
            typer.echo(
                f"variance within layers: {found.per_head.dispersion:.2f} times that by chance, "
                f"p {p_equals(found.per_head.p)}"
            )
    typer.echo("\nLayers of each category's heads")
    _print_depth(found.depths)
    if found.depths_single is not None:
        typer.echo("\nThe same on sources of one token")
        _print_depth(found.depths_single)


def _print_depth(depth: Depth) -> None:
    if not depth.categories:
        typer.echo("no head implements or suppresses a relation")
        return
    columns: tuple[Column, ...] = (
        *("category", ("heads", lambda row: len(row.layers))),
        *(("lower quartile", "lower_quartile"), "median", ("upper quartile", "upper_quartile")),
    )
    print_records(columns, depth.categories)
    found = depth.comparison
    if found is None:
        typer.echo("not compared: fewer than two categories have five heads, or all sit in one layer")
        return
    typer.echo(f"Kruskal–Wallis: H = {found.h:.2f}, p {p_equals(found.p)}, ε² = {found.epsilon2:.2f}")
    for pair in found.pairs:
        typer.echo(
            f"Mann–Whitney, {pair.first} and {pair.second}: r = {pair.r:+.2f}, Holm p {p_equals(pair.p)}"
        )


# plot, report and export -------------------------------------------------------------------------------


@draws
@reads_atlas
def plot_command(
    atlas: Atlas,
    look: Look,
    out: Annotated[Path, out_option("The figure: .png, .svg or .pdf.")],
    kind: Annotated[
        FigureKind,
        option(
            "--kind",
            "Of the map: panels per category, panels per relation, layer profiles. Of what was "
            "measured: where heads look, what they write, scores in texts, preferences of queries, a task.",
        ),
    ] = "categories",
    panels: Annotated[
        Panels, option("--panels", "Of the categories figure: what has a panel of its own.")
    ] = "category",
    which: Annotated[
        list[str] | None,
        option(
            "--which",
            "Only these panels: categories, relations, behaviours or measures by name, or by a part that no "
            "other has; or which ablated task. Default: all.",
            "NAME,…",
        ),
    ] = None,
    width: Width = "170mm",
    data: PlottedData = None,
) -> None:
    """Draw a figure into a file."""
    from headatlas.figures.plots import plot, write_table

    plot(atlas, kind, out, parse_width(width), which=names_of(which, "which"), panels=panels, **asdict(look))
    say(f"written: {out}")
    if data is not None:
        say(f"written: {write_table(atlas.plot.data(kind, panels), data)}")


@reads_atlas
def report_command(
    atlas: Atlas,
    out: Annotated[Path | None, out_option("Default: report.html beside the atlas.")] = None,
    q_at: QAt = None,
) -> None:
    """Write the interactive page.

    It is one HTML file that needs no network: the figure, a card of every head, sliders for k, tau and q,
    search, a scatter and a table (docs/page.md). Its k moves freely; q is there at the atlas's k, and at
    those of --q-at.
    """
    from headatlas.report import write_report

    if out is None and atlas.path is None:
        raise HeadatlasError(
            f"{atlas.dataset.encoding['source']}: this atlas is at an address; say with `out` where the page "
            "goes."
        )
    say(f"written: {write_report(atlas, out or atlas.folder / 'report.html', q_at or ())}")


@reads_atlas
def export_command(
    atlas: Atlas, out: Annotated[Path, out_option("The table: .parquet, .csv or .json.")]
) -> None:
    """Write the whole table: a row per head and relation.

    CSV and Parquet repeat model, lens, k, tau, q and criterion on every row, so that tables of several
    models can be joined; JSON has them once, beside the rows.
    """
    from headatlas.atlas.export import export_table

    say(f"written: {export_table(atlas, out)}")
