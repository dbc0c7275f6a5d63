"""``heads``, ``head``, ``describe`` and ``info``: what an atlas says, in tables and words."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headatlas.cli.options import AsJson, AtlasArgument, Only, names_of, reads_atlas, shipped_names
from headatlas.cli.output import (
    number,
    print_fields,
    print_rows,
    print_table,
    print_text,
    say,
)
from headatlas.errors import HeadatlasError
from headatlas.showing import safe_text, tokens_shown

if TYPE_CHECKING:
    import pandas as pd

    from headatlas.atlas import Atlas
    from headatlas.atlas.cards import Card

_COLUMNS = ("head", "relation", "category", "score", "suppression", "q", "control", "sources", "called")
_N_SALIENT = 8
_EVIDENCE_COLUMNS = ("with context", "attention", "loss alone", "confirmed")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("heads")(heads_command)
    app.command("head")(head_command)
    app.command("describe")(describe_command)
    app.command("info")(info_command)


@reads_atlas
def heads_command(
    atlas: Atlas,
    only: Only = None,
    category: Annotated[
        str | None, typer.Option("--category", metavar="NAME", help="Only this category.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every head, also those not called.")] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", metavar="N", min=1, help="Only the first N rows.")
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            "--label",
            metavar="TEXT",
            help="Heads of which something with this text is said, such as induction or months: relations, "
            "behaviours, labels, the tokens they write most.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the heads that implement a relation, best first.

    A head implements a relation when it raises the right target among the top k of the vocabulary for enough
    sources; it suppresses it when it lowers it as far.
    """
    if label is not None:
        _print_search(atlas, label, limit, as_json)
        return
    frame = atlas.sel(relation=names_of(only), category=category, called=not everything)
    _print_heads(atlas, frame if limit is None else frame.head(limit), as_json)


@reads_atlas
def head_command(
    atlas: Atlas,
    name: Annotated[str, typer.Argument(metavar="LAYER.HEAD", help="For example 23.4.", show_default=False)],
    words: Annotated[
        bool,
        typer.Option(
            "--words", help="Show which words of its relations it hits, at which rank, and which not."
        ),
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="NAME,…",
            help="The words of these relations, called or not, by name, title or a part of it.",
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
    if words or only:
        _print_words(atlas, layer, head, names_of(only), as_json)
        return
    card = atlas.head(layer, head)
    if as_json:
        _print_card_json(atlas, card)
        return
    say("; ".join([f"head {card.layer}.{card.head}", *(card.statements or ("no tested statement",))]))
    say(CAVEAT)
    _print_heads(atlas, card.relations, False)
    _print_attention(atlas, card)
    _print_writing(atlas, card)
    _print_like(card)


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
            [atlas],
            relations,
            path=atlas.dataset.encoding["source"],
            layers=atlas.n_layers,
            heads=atlas.n_heads,
            layers_done=[int(layer) for layer in atlas.layers_done.nonzero()[0]],
            coverage=_coverage_counts(atlas),
            provenance=atlas.provenance,
            evidence=atlas.evidence.provenance(),
        )
        return
    print_fields(_info_rows(atlas))
    typer.echo("")
    print_table(
        ["relation", "category", "k", "sources", "targets", "not used"],
        [
            [row["relation"], row["category"], row["k"], row["n_sources"], row["n_targets"], _unused(row)]
            for row in relations
        ],
    )


def _print_heads(atlas: Atlas, frame: pd.DataFrame, as_json: bool) -> None:
    from headatlas.atlas.export import heads_json

    records = heads_json(frame)
    if as_json:
        print_rows([atlas], records)
        return
    say(atlas.caption())
    columns = (*_COLUMNS, *_EVIDENCE_COLUMNS) if atlas.evidence else _COLUMNS
    if atlas.evidence:
        from headatlas.atlas.evidence import CRITERIA

        say("; ".join(CRITERIA))
    if not records:
        say("no head is called; --all shows every head, --tau and --criterion change what counts.")
        return
    print_table(columns, [[*_row(record), *_evidence(record)][: len(columns)] for record in records])


def _print_search(atlas: Atlas, text: str, limit: int | None, as_json: bool) -> None:
    from headatlas.atlas.cards import search
    from headatlas.atlas.export import plain_records

    found = search(atlas, text)
    rows = plain_records(found if limit is None else found.head(limit))
    if as_json:
        print_rows([atlas], rows)
        return
    n_heads = len(found.drop_duplicates(["layer", "head"]))
    say(f"{atlas.caption()}\n{n_heads} heads with {text!r} in what is said about them")
    if rows:
        print_table(
            ["head", "where", "what"],
            [[f"{row['layer']}.{row['head']}", row["where"], safe_text(str(row["what"]))] for row in rows],
        )


def _print_card_json(atlas: Atlas, card: Card) -> None:
    from headatlas.atlas.export import heads_json, plain_records

    print_rows(
        [atlas],
        heads_json(card.relations),
        layer=card.layer,
        head=card.head,
        statements=card.statements,
        behaviours=None if card.behaviours is None else plain_records(card.behaviours),
        salient=None if card.salient is None else plain_records(card.salient),
        spectrum=card.spectrum,
        explained=card.explained,
        labels=None if card.labels is None else plain_records(card.labels),
        similar=plain_records(card.similar),
        group=card.group,
    )


def _print_words(atlas: Atlas, layer: int, head: int, only: list[str] | None, as_json: bool) -> None:
    """Hits and misses of each relation: a line a source, its targets with their ranks."""
    from headatlas.atlas.cards import words_of
    from headatlas.atlas.export import plain_records

    frame = words_of(atlas, layer, head, only)
    ceiling = int(atlas.provenance["ceiling"])
    if as_json:
        print_rows([atlas], plain_records(frame), layer=layer, head=head, ceiling=ceiling)
        return
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
        columns = ["", "source", "rank of target", *(["of the state itself"] if control else [])]
        print_table(columns, [_word_row(group, ceiling) for _, group in rows.groupby("source", sort=False)])


def _word_row(targets: pd.DataFrame, ceiling: int) -> list[str]:
    """A source with its targets, the best first; what the control hits where there is one."""
    first = targets.iloc[0]
    cells = ["hit" if first["source_hit"] else "–", str(first["source"])]
    for column in ("rank", "control_rank"):
        pairs = zip(targets["target"], targets[column], strict=True)
        cells.append(", ".join(f"{target} {rank_shown(rank, ceiling)}" for target, rank in pairs))
    return cells if first["sign"] == "promotion" else cells[:3]


def rank_shown(rank: Any, ceiling: int) -> str:
    """A rank as text; one that is missing is at the ceiling or beyond."""
    import pandas as pd

    return f"≥ {ceiling}" if pd.isna(rank) else str(int(rank))


def _print_attention(atlas: Atlas, card: Card) -> None:
    typer.echo("")
    if card.behaviours is None:
        say(f"attention was not measured: `headatlas behaviour {shlex.quote(str(atlas.folder))}`")
        return
    print_table(
        ["looks at", "value", "expected", "95 %", "q", "called"],
        [
            [
                row["behaviour"],
                row["value"],
                row["expected"],
                f"{row['low']:.2f} … {row['high']:.2f}",
                number(row["q"]),
                "called" if row["called"] else "",
            ]
            for row in card.behaviours.to_dict("records")
        ],
    )


def _print_writing(atlas: Atlas, card: Card) -> None:
    """Salient operations, the spectrum in one line, and labels with who wrote them."""
    from headatlas.atlas.cards import spectrum_sentence

    typer.echo("")
    if card.salient is None:
        say(f"what it writes was not computed: `headatlas salience {shlex.quote(str(atlas.folder))}`")
    else:
        print_table(
            ["for", "gain", "promotes", "suppresses"],
            [
                [
                    tokens_shown([row["source"]]),
                    row["gain"],
                    *map(tokens_shown, (row["promoted"], row["suppressed"])),
                ]
                for row in card.salient.head(_N_SALIENT).to_dict("records")
            ],
        )
    if card.spectrum is not None:
        say(spectrum_sentence(card))
    for row in [] if card.labels is None else card.labels.to_dict("records"):
        say(f"label: {row['label']} ({row['support']}; by {row['author']})")


def _print_like(card: Card) -> None:
    typer.echo("")
    print_table(
        ["similar head", "similarity", "writes", "looks"],
        [
            [f"{row['layer']}.{row['head']}", row["similarity"], row["writes"], row["looks"]]
            for row in card.similar.to_dict("records")
        ],
    )
    if card.group:
        say(f"shares its keys and values with {', '.join(f'{layer}.{head}' for layer, head in card.group)}")


def _row(record: dict[str, Any]) -> list[Any]:
    # Where a head suppresses, the q of the suppression is the one that decides.
    suppresses = record["suppresses"] and not record["implements"]
    q = record["suppression_q" if suppresses else "q"]
    return [
        f"{record['layer']}.{record['head']}",
        record["relation"],
        record["category"],
        record["score"],
        record["suppression"],
        None if q is None else number(q),
        record["control"],
        record["n_sources"],
        ", ".join(verb for verb in ("implements", "suppresses") if record[verb]),
    ]


def _evidence(record: dict[str, Any]) -> list[Any]:
    """The cells of the evidence columns; the side that decides, promotion or suppression."""
    suppresses = record["suppresses"] and not record["implements"]
    confirmed = [
        word if record[column] else f"not {word}"
        for word, column in (
            ("with context", "confirmed_with_context"),
            ("by ablation", "confirmed_by_ablation"),
        )
        if record.get(column) is not None
    ]
    context = record.get("context_suppression" if suppresses else "context")
    return [context, record.get("attention"), record.get("loss_alone"), ", ".join(confirmed) or None]


def parse_head(name: str, atlas: Atlas) -> tuple[int, int]:
    """A mapped head of an atlas, written LAYER.HEAD.

    Raises:
        HeadatlasError: It is not written so, or the atlas has no such head.
    """
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


def _coverage_counts(atlas: Atlas) -> dict[str, Any]:
    """How many heads have each kind of statement; None for a kind that was never measured."""
    from headatlas.atlas.cards import STATEMENTS

    frame = atlas.coverage()
    missing = frame.attrs["not_measured"]
    counts = {kind: None if kind in missing else int(frame[kind].sum()) for kind in STATEMENTS}
    return {
        "heads": len(frame),
        "any": int(frame["any"].sum()),
        "more": int(frame["more"].sum()),
        "share": frame.attrs["share"],
        **counts,
    }


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
    evidence = atlas.evidence.provenance()
    rows += [
        ("evidence: texts", f"{run['template']!r}, {len(run['relations'])} relations")
        for run in evidence["inference"]
    ]
    rows += [
        ("evidence: attention", f"{len(each['words'])} relations, {len(each['context'])} templates")
        for each in evidence["attention"]
    ]
    rows += [
        ("evidence: ablation", f"{task['relation']}, {task['shots']} examples, {task['method']}")
        for task in evidence["ablation"]
    ]
    rows += [
        ("evidence: heads", f"{', '.join(each['heads'])}, {each['method']}") for each in evidence["heads"]
    ]
    rows += [
        ("evidence: behaviour", f"{each['texts']['texts']} texts of {each['texts']['source'] or 'headatlas'}")
        for each in evidence["behaviour"]
    ]
    return rows


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
    parts += [f"{reason} ({len(sources)})" for reason, sources in row["dropped"].items() if sources]
    return "; ".join(parts)
