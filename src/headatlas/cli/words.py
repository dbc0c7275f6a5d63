"""``ask``, ``query``, ``recipe``, ``serve``: heads in one's own questions and experiments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headatlas.cli.heads import heads_named, parse_head, rank_shown
from headatlas.cli.options import (
    AsJson,
    AtlasArgument,
    ModelOption,
    argument,
    computes,
    option,
    out_option,
    reads_atlas,
    shipped_names,
)
from headatlas.cli.output import (
    HEAD,
    NOTHING_STORED,
    head_records,
    print_fields,
    print_json,
    print_records,
    print_rows,
    print_text,
    progress_shown,
    say,
    stopping,
)
from headatlas.errors import HeadatlasError
from headatlas.options import Action, Compute, RecipeForm
from headatlas.showing import tokens_shown

if TYPE_CHECKING:
    from headatlas.atlas import Atlas


@computes("device", "max_memory")
def ask_command(
    folder: AtlasArgument,
    name: Annotated[str, argument("LAYER.HEAD", "For example 23.4.")],
    words: Annotated[list[str], argument("WORD…", "One or more words.")],
    compute: Compute,
    top: Annotated[int, option("--top", "Tokens of each list.", "N")] = 10,
    model: ModelOption = None,
    as_json: AsJson = False,
) -> None:
    """Show what one head promotes and suppresses for any words.

    With the model and the lens of the atlas, exact in float64. Where a word is a source of a mapped relation,
    the ranks of its targets are shown, too.
    """
    from headatlas.atlas import Atlas
    from headatlas.writing.words import ask

    atlas = Atlas.open(folder)
    layer, head = parse_head(name, atlas)
    with stopping(lambda: NOTHING_STORED), progress_shown() as progress:
        found = ask(atlas, layer, head, words, model, top=top, compute=compute, progress=progress)
    ceiling = int(atlas.provenance["ceiling"])
    if as_json:
        about = {"about": found.attrs["caption"], "layer": layer, "head": head, "ceiling": ceiling}
        print_rows(atlas, found, **about)
        return
    say(found.attrs["caption"])
    for row in found.to_dict("records"):
        typer.echo("")
        print_fields(
            [
                (row["source"], tokens_shown(row["tokens"])),
                ("promotes", tokens_shown(row["promoted"]) or "nothing"),
                ("suppresses", tokens_shown(row["suppressed"]) or "nothing"),
                *((each["relation"], _wanted(each, ceiling)) for each in row["wanted"]),
            ]
        )


@computes("device", "max_memory")
def query_command(
    where: Annotated[
        str,
        argument(
            "DIR|MODEL",
            "A folder that `headatlas map` wrote to, for its model and lens, or the address of an "
            "atlas.zarr; or a model as `headatlas map` takes it, seen with the lens neutral.",
        ),
    ],
    pairs: Annotated[list[str], argument("SOURCE=TARGET…", "One or more pairs of words.")],
    compute: Compute,
    top: Annotated[int, option("--top", "Only the first N heads.", "N", min=1)] = 20,
    model: ModelOption = None,
    as_json: AsJson = False,
) -> None:
    """Rank a few pairs of words for every head, the best head first.

    Score is the share of sources of which a target has a rank below k. A few pairs prove little: there is no
    calibration and no q, and of many heads some hit by chance. Heads that rank no target are counted, not
    listed. Nothing is stored.
    """
    from headatlas.atlas.export import plain_records
    from headatlas.writing.words import query

    given = [parse_pair(text) for text in pairs]
    with stopping(lambda: NOTHING_STORED), progress_shown() as progress:
        found = query(where, given, model=model, compute=compute, progress=progress)
    ranked = [set(row) != {None} for row in found["ranks"] + found["suppression_ranks"]]
    n_without, ceiling = len(found) - sum(ranked), found.attrs["ceiling"]
    rows = plain_records(found[ranked].head(top))
    if as_json:
        print_json({**found.attrs, "without_rank": n_without, "rows": rows})
        return
    say(found.attrs["caption"])
    names = [f"{pair['source']}={pair['target']}" for pair in found.attrs["pairs"]]
    ranks = [(name, lambda row, at=at: _rank(row, at, ceiling)) for at, name in enumerate(names)]
    print_records([HEAD, "sign", "score", "suppression", "control", *ranks], rows)
    if n_without:
        say(f"{n_without} of {len(found)} heads rank no target below {ceiling}, of either sign")


def parse_pair(text: str) -> tuple[str, str]:
    """A pair written SOURCE=TARGET."""
    source, sign, target = text.partition("=")
    if not (source.strip() and sign and target.strip()):
        raise HeadatlasError(f"{text!r} is no pair; write it SOURCE=TARGET, like France=Paris.")
    return source, target


def _rank(row: dict[str, Any], pair: int, ceiling: int) -> str:
    """The rank of a pair by the sign that decides."""
    return rank_shown(row["ranks" if row["sign"] == "promotion" else "suppression_ranks"][pair], ceiling)


def _wanted(each: dict[str, Any], ceiling: int) -> str:
    low = each["suppression_rank"]
    rank = f"{each['target']} wanted: rank {rank_shown(each['rank'], ceiling)}"
    return rank if low is None else f"{rank}, {low} of the most suppressed"


HeadsOfRelation = Annotated[
    str | None,
    option(
        "--relation",
        "The heads that implement this relation, best first.",
        "NAME",
        autocompletion=shipped_names,
    ),
]
TheseHeads = Annotated[
    list[str] | None, option("--heads", "Or these heads, such as 23.4,24.5.", "LAYER.HEAD,…")
]
Form = Annotated[
    RecipeForm,
    option(
        "--as",
        "The library that the Python is for. checkpoint: a safetensors file with the changed output "
        "projections alone (-o), and Python that loads it over the model.",
    ),
]
Do = Annotated[
    Action,
    option("--do", "Set what heads bring to zero, multiply it by --factor, or collect it."),
]
Factor = Annotated[float | None, option("--factor", "What --do scale multiplies by.", "F")]
ControlSeed = Annotated[int, option("--control", "Seed of the random heads beside them.", "SEED")]
RecipeFile = Annotated[
    Path | None, out_option("Write it to this file instead. checkpoint: the file of tensors.")
]


@reads_atlas
def recipe_command(
    atlas: Atlas,
    relation: HeadsOfRelation = None,
    heads: TheseHeads = None,
    form: Form = "transformers",
    do: Do = "silence",
    factor: Factor = None,
    control: ControlSeed = 0,
    model: ModelOption = None,
    out: RecipeFile = None,
    as_json: AsJson = False,
) -> None:
    """Print Python that silences, scales or watches heads, for your own experiments.

    The code works at the input of the output projection, where heads are side by side. It needs the model and
    its library, not headatlas. As many random heads of the same layers stand in it as a control.

    Of the forms only checkpoint reads the model, which --model may name.
    """
    from headatlas.recipes import recipe

    made = recipe(
        atlas,
        relation,
        heads=heads_named(heads, atlas, "heads"),
        form=form,
        do=do,
        factor=factor,
        control=control,
        out=out,
        model=model,
    )
    if as_json:
        beside = head_records(made.control)
        print_rows(atlas, head_records(made.heads), control_heads=beside, code=made.code)
    elif out is None or form == "checkpoint":
        print_text(made.code.rstrip("\n"))
    if out is not None:
        say(f"written: {out}")


# serve -------------------------------------------------------------------------------------------------


@computes("device", "max_memory")
def serve_command(
    folder: AtlasArgument,
    compute: Compute,
    model: ModelOption = None,
    port: Annotated[int, option("--port", "Listen at this port; 0: a free one.", "N", min=0, max=65535)] = 0,
    host: Annotated[
        str, option("--host", "Listen at this address. All but loopback ask for a token.", "ADDRESS")
    ] = "127.0.0.1",
    open_browser: Annotated[bool, option("--open/--no-open", "Open the page in a browser.")] = False,
) -> None:
    """Show an atlas's page and answer questions there: your own pairs, words and texts.

    The model is opened once and kept in memory. The address is printed; with --host it holds a token, made
    anew each time or taken from the environment variable HEADATLAS_TOKEN. Nothing is stored. Ctrl-C ends it.
    """
    from headatlas.atlas import Atlas
    from headatlas.serving.run import (
        access_for,
        address_of,
        application,
        listen,
        open_answers,
        serve_until_stopped,
    )

    atlas = Atlas.open(folder)
    access = access_for(host)
    listening = listen(host, port)
    with listening, stopping(lambda: NOTHING_STORED):
        with progress_shown() as progress:
            answers = open_answers(atlas, model, None, compute, progress)
        app = application(atlas, answers, access)
        address = address_of(listening, access)

        def ready() -> None:
            print_text(address)
            say(f"{atlas.model_name} answers at this address: open it in a browser. Ctrl-C ends it.")
            if open_browser:
                import webbrowser

                webbrowser.open(address)

        serve_until_stopped(app, listening, ready)
        say(NOTHING_STORED)
