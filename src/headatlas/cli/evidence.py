"""``evidence``, ``behaviour``, ``salience``, ``label``: what is measured is kept in the atlas."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headatlas.cli.heads import CALLED, WRITES, heads_named, parse_head, source_token
from headatlas.cli.options import (
    AsJson,
    AtlasArgument,
    InferenceSources,
    Known,
    ModelOption,
    Only,
    ablates,
    as_options,
    computes,
    names_of,
    option,
)
from headatlas.cli.output import (
    HEAD,
    NOTHING_STORED,
    Column,
    head_records,
    interval_of,
    number,
    print_fields,
    print_records,
    print_rows,
    progress_shown,
    say,
    small,
    span,
    stopping,
)
from headatlas.options import AblationChoices, Compute, TokenChoice
from headatlas.showing import tokens_shown

if TYPE_CHECKING:
    import pandas as pd

    from headatlas.atlas import Atlas
    from headatlas.atlas.evidence import HeadsAblation
    from headatlas.evidence.opening import Subject

KEPT = "stopped; what was finished is stored in the atlas; the same command goes on"
SHOWN_SOURCES = 4

TemplateFile = Annotated[
    Path | None, option("--templates", "JSON with your own texts. Default: the shipped ones.", "FILE")
]
NoFigures = Annotated[bool, option("--no-figures", "Draw nothing.")]
AblateHeads = Annotated[
    list[str] | None,
    option(
        "--ablate-heads",
        "Ablate these heads together, such as 23.4,24.5, and say what is lost on running texts, and "
        "on the tasks of --only, beside random heads of the same layers.",
        "LAYER.HEAD,…",
    ),
]


# evidence inference -----------------------------------------------------------------------------------


@contextmanager
def _examining(
    folder: str, model: str | None, compute: Compute, kept: str, only: Sequence[str] | None = None
) -> Iterator[Subject]:
    """Open an atlas and its model, show progress, and say what is kept when the run is stopped."""
    from headatlas.atlas import Atlas
    from headatlas.evidence.opening import examined

    with (
        stopping(lambda: kept),
        progress_shown() as progress,
        examined(Atlas.open(folder), model, only=only, compute=compute, progress=progress) as subject,
    ):
        yield subject


@computes("device")
def inference_command(
    folder: AtlasArgument,
    compute: Compute,
    model: ModelOption = None,
    only: Only = None,
    templates: TemplateFile = None,
    own_templates: Annotated[
        bool, option("--own-templates", "The texts that relations have of their own, in their place.")
    ] = False,
    sources: InferenceSources = None,
    no_figures: NoFigures = False,
    as_json: AsJson = False,
) -> None:
    """Compare the map's scores with what heads write in running texts.

    With context: what a head adds at the last position of a text. Without: the value vector at the source.
    Pearson's r and Spearman's rho over heads, with 95 % bootstrap intervals, attention on the source.

    The scores are stored in the atlas; a table and scatter plots go to DIR/evidence, and DIR's page and table
    of heads are written again with them. The same command goes on after Ctrl-C.
    """
    from headatlas.evidence.inference_run import InferenceTexts, run_inference
    from headatlas.evidence.statistics import agreement, sampling
    from headatlas.outputs import write_inference

    asked = InferenceTexts.of(templates, own_templates=own_templates, sources=sources)
    with _examining(folder, model, compute, KEPT, names_of(only)) as subject:
        found = run_inference(subject, asked)
    atlas = subject.atlas
    frame = agreement(atlas, found)
    about = "; ".join(filter(None, [f"{len(found)} templates", sampling(found)]))
    for dynamic in found:
        for name, why in dynamic.context.left_out.items():
            say(f"skipped in {dynamic.template!r}: {name} ({why})")
    with _writing(atlas, lambda: write_inference(atlas, frame, found, not no_figures)):
        if as_json:
            print_rows(atlas, frame, about=about)
        else:
            say(f"{atlas.caption()}; {about}")
            _print_agreement(frame)


def _print_agreement(frame: pd.DataFrame) -> None:
    """A row a relation: promotion with its interval, then suppression."""

    def column(title: str, kind: str, name: str = "pearson", sign: str = "promotion") -> Column:
        return title, lambda cell: cell.loc[(kind, sign)][name]

    def between(kind: str) -> Column:
        at = kind, "promotion"
        return "95 %", lambda cell: span(cell.loc[at]["pearson_low"], cell.loc[at]["pearson_high"])

    with_, without = "context", "without-context"
    columns: tuple[Column, ...] = (
        ("relation", lambda cell: cell["relation"].iloc[0]),
        ("sources", lambda cell: cell["n_sources"].max()),
        *(column("r with context", with_), between(with_), column("rho", with_, "spearman")),
        *(column("r without", without), between(without), column("rho", without, "spearman")),
        column("suppression: r with", with_, sign="suppression"),
        column("r without", without, sign="suppression"),
    )
    print_records(
        columns, [rows.set_index(["kind", "sign"]) for _, rows in frame.groupby("relation", sort=False)]
    )


# evidence attention -----------------------------------------------------------------------------------


@computes("device")
def attention_command(
    folder: AtlasArgument,
    compute: Compute,
    model: ModelOption = None,
    only: Only = None,
    templates: TemplateFile = None,
    limit: Annotated[
        int, option("--limit", "Rows to show, highest AUROC first. JSON has all.", "N", min=1)
    ] = 20,
    no_figures: NoFigures = False,
    as_json: AsJson = False,
) -> None:
    """Say whether called heads would look at the words of their relation: by W_Q and W_K, before any softmax.

    Queries are states at the end of the relation's task and of running texts; keys are states of its sources
    and of matched other words. AUROC at several distances, with a permutation p and q over called heads.

    What is measured is stored in the atlas and not measured again. Table and figure go to DIR/evidence.
    """
    from headatlas.evidence.attention_run import run_attention
    from headatlas.evidence.statistics import against_measured
    from headatlas.evidence.texts import read_templates
    from headatlas.outputs import write_preferences

    asked = read_templates(templates)
    with _examining(folder, model, compute, NOTHING_STORED) as subject:
        found = run_attention(subject, asked, own=templates is not None)
    atlas = subject.atlas
    frame = found.frame(atlas, names_of(only))
    _say_skipped(found.left_out)
    measured = against_measured(frame)
    with _writing(atlas, lambda: write_preferences(atlas, frame, found, not no_figures)):
        if as_json:
            more = {"skipped": found.left_out, "against_measured": measured}
            print_rows(atlas, frame, about=found.caption(), **more)
        else:
            say(f"{atlas.caption()}; {found.caption()}")
            _print_preferences(frame, measured, limit)


def _print_preferences(frame: pd.DataFrame, measured: pd.DataFrame, limit: int) -> None:
    """The rows of highest AUROC, how many prefer, and agreement with measured attention."""
    distances = [(f"at {name[1:]}", name) for name in frame.columns if re.fullmatch(r"d\d+", name)]
    columns: tuple[Column, ...] = (
        *(HEAD, "relation", ("query", "query_at"), ("AUROC", "auroc"), *distances),
        *(("as high", "as_high"), small("q"), "attention"),
        ("", lambda row: "prefers" if row["prefers"] else ""),
    )
    print_records(columns, frame.sort_values("auroc", ascending=False, kind="stable").head(limit))
    say(f"prefers: {int(frame['prefers'].sum())} of {len(frame)} rows")
    for row in measured.to_dict("records"):
        say(
            f"AUROC ({row['query_at']}) and measured attention: Spearman's rho {row['spearman']:.2f} "
            f"({span(row['spearman_low'], row['spearman_high'])}) over {row['n_rows']} rows"
        )


# evidence ablation ------------------------------------------------------------------------------------


@computes("device")
@ablates
def ablation_command(
    folder: AtlasArgument,
    compute: Compute,
    choices: AblationChoices,
    model: ModelOption = None,
    only: Only = None,
    ablate_heads: AblateHeads = None,
    templates: TemplateFile = None,
    no_figures: NoFigures = False,
    as_json: AsJson = False,
) -> None:
    """Take the heads of a relation out of the model and see whether it can still do the task.

    Heads go in order of score, and once more in order of *added* (what the state itself does not hold),
    beside as many random heads and beside other tasks. Or take out heads of your own choice: --ablate-heads.

    Each relation is stored in the atlas when it is done, so the same command goes on after Ctrl-C. A table
    and a figure per relation go to DIR/evidence; DIR's page and table of heads are written again with them.
    """
    from headatlas.atlas import Atlas
    from headatlas.evidence.ablation_run import run_ablation, run_chosen
    from headatlas.evidence.statistics import summarise_ablations
    from headatlas.evidence.texts import read_templates
    from headatlas.outputs import write_ablations

    asked = read_templates(templates)
    if ablate_heads is not None:
        heads = heads_named(ablate_heads, Atlas.open(folder), "ablate_heads") or ()
        with _examining(folder, model, compute, NOTHING_STORED) as subject:
            chosen = run_chosen(subject, heads, asked, choices, names_of(only))
        _print_chosen(subject.atlas, chosen, choices.draws, as_json)
        return
    with _examining(folder, model, compute, KEPT) as subject:
        found = run_ablation(subject, asked, choices, names_of(only))
    atlas = subject.atlas
    frame = summarise_ablations(found.done)
    skipped = _say_skipped(found.skipped)
    for task in found.done:
        if not task.controls:
            say(f"no control task for {task.relation}: none has a similar base and few heads in common")
    with _writing(atlas, lambda: write_ablations(atlas, found.done, not no_figures)):
        if as_json:
            print_rows(atlas, frame, skipped=skipped)
        elif found.done:
            say(atlas.caption())
            print_records(_ABLATION_COLUMNS, frame)
        else:
            say(f"{atlas.caption()}\nno task was ablated")


_ABLATION_COLUMNS: tuple[Column, ...] = (
    *(
        "relation",
        "shots",
        ("asked", "n_sources"),
        ("heads", "n_heads"),
        "base",
        ("− relation", "without_relation"),
    ),
    *(("− added", "without_added"), ("− random", "without_random")),
    *(("control", "control_base"), ("− control", "without_control")),
    *("area", interval_of("area_low", "area_high")),
    *(("added area", "added_area"), interval_of("added_area_low", "added_area_high")),
    ("hurts more", "hurts_more"),
)


def _print_chosen(atlas: Atlas, found: HeadsAblation, draws: int, as_json: bool) -> None:
    """The part of ``evidence ablation`` that is about heads of the user's own choice."""
    from headatlas.evidence.statistics import summarise_heads
    from headatlas.outputs import write_heads_ablation

    frame = summarise_heads(found)
    names = ", ".join(f"{layer}.{head}" for layer, head in found.heads)
    how = "output 0" if found.provenance["method"] == "zero" else "mean output"
    caption = f"without {names} ({how}), beside {len(found.draws)} draws of random heads of the same layers"
    skipped = _say_skipped(found.provenance["skipped"])
    with _writing(atlas, lambda: write_heads_ablation(atlas, frame, found.heads)):
        if as_json:
            print_rows(atlas, frame, about=caption, heads=head_records(found.heads), skipped=skipped)
        else:
            say(f"{atlas.model_name}: {caption}; losses in nats, intervals 95 % over texts or prompts")
            if len(found.draws) < draws:
                say(f"only {len(found.draws)} different draws: these layers have no more other heads")
            print_records(_CHOSEN_COLUMNS, frame)


_CHOSEN_COLUMNS: tuple[Column, ...] = (
    *("on", "n", "loss", "without", ("more", "difference"), interval_of("difference_low", "difference_high")),
    *("random", interval_of("random_low", "random_high", "draws")),
    *(("beyond random", "excess"), interval_of("excess_low", "excess_high")),
    *(("right", "accuracy"), ("without", "accuracy_without"), ("random", "accuracy_random")),
)


def _say_skipped(reasons: dict[str, str]) -> dict[str, str]:
    """Say which relations were left out and why; returns the reasons with parameters as options."""
    skipped = {name: as_options(why) for name, why in reasons.items()}
    for name, why in skipped.items():
        say(f"skipped: {name} ({why})")
    return skipped


@contextmanager
def _writing(atlas: Atlas, write: Callable[[], list[Path]]) -> Iterator[None]:
    """Print in the block; then write outputs beside those of the map and say which.

    They are written also where whoever reads what is printed has seen enough, as ``head`` has.
    """
    from headatlas.outputs import UnwrittenError

    written: Sequence[Path] = ()
    try:
        yield
    finally:
        try:
            written = write()
        except UnwrittenError as error:
            written = error.written
            raise
        finally:
            if written:
                names = (str(path).removeprefix(f"{atlas.folder}/") for path in written)
                say(f"written to {atlas.folder}: {', '.join(names)}")


# behaviour --------------------------------------------------------------------------------------------


def behaviour_names(incomplete: str) -> list[str]:
    """Names of behaviours, for the shell's completion."""
    from headatlas.atlas.behaviours import NAMES

    return [name for name in NAMES if name.startswith(incomplete)]


OwnText = Annotated[
    Path | None,
    option("--text", "Your own UTF-8 text, of 1,000 words or more. Default: the shipped texts.", "FILE"),
]
OnlyBehaviours = Annotated[
    list[str] | None,
    option(
        "--only",
        "Show only these behaviours, such as induction. Default: all.",
        "NAME,…",
        autocompletion=behaviour_names,
    ),
]


@computes("device")
def behaviour_command(
    folder: AtlasArgument,
    compute: Compute,
    model: ModelOption = None,
    text: OwnText = None,
    only: OnlyBehaviours = None,
    limit: Annotated[int, option("--limit", "Heads to show of each behaviour, best first.", "N", min=1)] = 5,
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
    from headatlas.looking import measured_or_stored
    from headatlas.outputs import write_behaviours

    names = names_of(only)
    known(names)
    atlas = Atlas.open(folder)
    with stopping(lambda: KEPT), progress_shown() as progress:
        found = measured_or_stored(atlas, model, text=text, compute=compute, progress=progress)
    rows = best_first(chosen(found.frame(), names))
    with _writing(atlas, lambda: write_behaviours(atlas, found, not no_figures)):
        if as_json:
            print_rows(atlas, rows, about=found.caption())
        else:
            say(f"{atlas.model_name}: {found.caption()}")
            columns = ("behaviour", HEAD, "value", "expected", interval_of(), small("q"), ("", CALLED[1]))
            print_records(columns, rows.groupby("behaviour", sort=False).head(limit))
            say(f"called heads: {_counted(rows)}")


def _counted(rows: pd.DataFrame) -> str:
    """How many heads are called for each behaviour that is tested, and for any."""
    tested = rows[rows["q"].notna()]
    parts = [f"{name} {int(part['called'].sum())}" for name, part in tested.groupby("behaviour", sort=False)]
    heads = rows.groupby(["layer", "head"])["called"].any()
    return f"{', '.join(parts) or 'none tested'}; any of these {int(heads.sum())} of {len(heads)}"


# salience ---------------------------------------------------------------------------------------------


OneHead = Annotated[str | None, option("--head", "Show one head in full, for example 23.4.", "LAYER.HEAD")]
Tokens = Annotated[
    TokenChoice | None,
    option(
        "--tokens",
        "Source tokens: like words, those that begin a word, or all. Default: those stored, "
        "else all with the lens maps and word-like ones with neutral.",
    ),
]
Most = Annotated[
    int | None,
    option(
        "--most",
        "The first N of them, by id. Default: those stored; else all, but for word-like ones with "
        "neutral: 20,000, fewer of a large model.",
        "N",
        min=1,
    ),
]
Exact = Annotated[
    bool,
    option(
        "--exact",
        "With neutral: follow every token after every prefix, not only those that a quick pass "
        "proposes. Takes two thirds longer.",
    ),
]


@computes("device", "max_memory")
def salience_command(
    folder: AtlasArgument,
    compute: Compute,
    model: ModelOption = None,
    head: OneHead = None,
    tokens: Tokens = None,
    most: Most = None,
    exact: Exact = False,
    no_figures: NoFigures = False,
    as_json: AsJson = False,
) -> None:
    """Show what heads write: the tokens each head changes most, and what it promotes for them.

    Of every head the 30 source tokens of largest gain ‖x·W_V·W_O‖ / ‖x‖ with the 5 tokens that it promotes
    and suppresses most for each; the spectrum of W_V·W_O; and how much of it known relations explain.

    It is computed once and stored in the atlas; a run that was stopped goes on where it was. JSON has all
    heads, sources and directions. Without --head, tables and a figure go to DIR/evidence.
    """
    from headatlas.atlas import Atlas
    from headatlas.atlas.salience import head_rows
    from headatlas.outputs import write_salience
    from headatlas.writing import computed_or_stored

    atlas = Atlas.open(folder)
    one = None if head is None else parse_head(head, atlas)
    with stopping(lambda: "stopped; the same command goes on where it was"), progress_shown() as progress:
        found = computed_or_stored(
            atlas, model, tokens=tokens, most=most, exact=exact, compute=compute, progress=progress
        )
    frames = found.frames()
    if one is not None:
        rows, spectrum, explained = (head_rows(frame, one) for frame in frames)
        frames = rows, spectrum, explained
    files = _writing(atlas, lambda: write_salience(atlas, found, not no_figures))
    with files if one is None else nullcontext():
        if as_json:
            spectrum = frames[1].merge(frames[2], on=["layer", "head"], how="left")
            print_rows(atlas, frames[0], about=found.caption(), spectrum=spectrum)
        else:
            say(f"{atlas.model_name}: {found.caption()}")
            (_print_writing if one is None else _print_written)(*frames)


def _print_writing(rows: pd.DataFrame, spectrum: pd.DataFrame, explained: pd.DataFrame) -> None:
    """A row a head: its strongest sources, what it promotes for the first, and numbers."""
    best = rows.groupby(["layer", "head"])
    first = best.first()[["gain", "promoted"]].assign(sources=best["source"].agg(list)).reset_index()
    both = spectrum.merge(explained, on=["layer", "head"], how="left")
    columns: tuple[Column, ...] = (
        *(HEAD, "gain", ("sources", lambda row: _tokens(row["sources"], SHOWN_SOURCES))),
        ("promotes for the first", lambda row: _tokens(row["promoted"])),
        *(("rank", "effective_rank"), "copying", ("explained", lambda row: percent(row["explained"]))),
        ("rest", lambda row: _fields_shown(row["rest"]) if isinstance(row["rest"], list) else ""),
    )
    print_records(columns, both.merge(first, on=["layer", "head"], how="left"))


def _tokens(texts: Any, most: int | None = None) -> str:
    """The first tokens of a list; nothing for a head that has none."""
    return tokens_shown(texts[:most]) if isinstance(texts, list) else ""


def _print_written(rows: pd.DataFrame, spectrum: pd.DataFrame, explained: pd.DataFrame) -> None:
    """One head: its sources, its numbers, its directions."""
    print_records(("gain", source_token("source"), *WRITES), rows)
    for own, share in zip(spectrum.to_dict("records"), explained.to_dict("records"), strict=False):
        typer.echo("")
        print_fields(
            [
                ("effective rank", f"{own['effective_rank']:.1f} of {len(own['singular_values'])}"),
                ("copying", own["copying"]),
                ("share of the layer's squared norm", percent(own["norm_share"])),
                ("explained", percent(share["explained"])),
                ("by", _relations_shown(share["relations"]) or "nothing"),
                ("the rest", _fields_shown(share["rest"]) or "no field of words stands out"),
            ]
        )
        typer.echo("")
        ends = [
            {"direction": at, "s": each["singular_value"], **end}
            for at, each in enumerate(own["directions"], 1)
            for end in each["ends"]
        ]
        sides: list[Column] = [
            ("reads", lambda end: tokens_shown(end["reads"])),
            ("promotes", lambda end: tokens_shown(end["promoted"])),
        ]
        print_records(["direction", "s", *sides], ends)


def _relations_shown(relations: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"{each['relation']} ({each['n_sources']})" for each in relations)


def _fields_shown(rest: Sequence[dict[str, Any]]) -> str:
    """Fields of words, with how many and q."""
    return ", ".join(f"{each['field']} ({each['n_words']}, q {number(each['q'])})" for each in rest)


def percent(share: float) -> str | None:
    """A share as a whole percentage; None where there is none."""
    return None if isnan(share) else f"{100 * share:.0f} %"


# label ------------------------------------------------------------------------------------------------


DescribeWith = Annotated[
    str | None,
    option(
        "--describe-with",
        "Let a language model describe heads as well: an OpenAI-compatible address, such as "
        "http://localhost:11434/v1. HEADATLAS_API_KEY or OPENAI_API_KEY may hold a key.",
        "URL",
    ),
]
ModelName = Annotated[str | None, option("--model-name", "The model at that address.", "NAME")]
OnlyHeads = Annotated[list[str] | None, option("--only", "Only these heads. Default: all.", "LAYER.HEAD,…")]
PerMinute = Annotated[
    float | None, option("--per-minute", "Most requests a minute to another machine. Default: 120.", "N")
]
Seconds = Annotated[float | None, option("--seconds", "Longest time of a request. Default: 120.", "S")]


def label_command(
    folder: AtlasArgument,
    describe_with: DescribeWith = None,
    model_name: ModelName = None,
    relations: Known = None,
    only: OnlyHeads = None,
    per_minute: PerMinute = None,
    seconds: Seconds = None,
    seed: Annotated[int, option("--seed", "Of halves and distractors.", "N", min=0)] = 0,
    everything: Annotated[bool, option("--all", "Also heads whose label is unclear.")] = False,
    as_json: AsJson = False,
) -> None:
    """Name what every head does, and test whether the name predicts.

    Half of a head's salient mappings are described, by rules and, with --describe-with, by a language model.
    The description must pick the other half out among mappings of other heads. What does no better than
    chance + 2 standard errors is unclear. Labels by attention rest on `headatlas behaviour`.

    Labels are stored in the atlas. JSON has all heads.
    """
    from headatlas.atlas import Atlas
    from headatlas.atlas.labels import UNCLEAR, label_counts
    from headatlas.describing.run import label

    atlas = Atlas.open(folder)
    heads = heads_named(only, atlas, "only")
    with (
        stopping(lambda: "stopped; heads that were done are stored, and what the endpoint answered is kept"),
        progress_shown() as progress,
    ):
        rows = label(
            atlas,
            relations=names_of(relations, "relations") or "all",
            describe_with=describe_with,
            model_name=model_name,
            only=heads,
            per_minute=per_minute,
            seconds=seconds,
            seed=seed,
            progress=progress,
        )
    if as_json:
        print_rows(atlas, rows, about=rows.attrs["caption"])
        return
    say(f"{atlas.model_name}: {rows.attrs['caption']}")
    columns = (HEAD, "label", "support", "score", "chance", "se", "kind", "author")
    print_records(columns, rows if everything else rows[rows["label"] != UNCLEAR])
    for author, own in rows.groupby("author", sort=False):
        n = label_counts(own)
        say(
            f"{author}: {n['heads']} heads; {n['scored']} with a scored label, {n['attention']} with a label "
            f"by attention, {n[UNCLEAR]} with neither"
        )
