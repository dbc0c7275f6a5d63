"""``plan`` and ``map``: from a model to an atlas."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from headatlas.cli.options import (
    AsJson,
    CriterionOption,
    Device,
    K,
    KCopy,
    LensOption,
    MaxMemory,
    ModelArgument,
    QMax,
    Relations,
    Remote,
    Stream,
    Tau,
)
from headatlas.cli.output import print_fields, print_json, say
from headatlas.cli.progress import MapProgress, stopping
from headatlas.cli.summary import plan_rows, summary
from headatlas.errors import HeadatlasError

if TYPE_CHECKING:
    from pathlib import Path


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("plan")(plan)
    app.command("map")(map_model)


def plan(
    model: ModelArgument,
    lens: LensOption = None,
    relations: Relations = "core",
    stream: Stream = None,
    device: Device = "auto",
    max_memory: MaxMemory = None,
    remote: Remote = False,
    as_json: AsJson = False,
) -> None:
    """Say what mapping a model will take; nothing is computed.

    Family, heads, bytes to read, memory and time. Only the headers of the weights are read.
    """
    from headatlas.mapping.plan import plan as make_plan

    found = make_plan(
        model,
        lens=lens or "neutral",
        relations=relations,
        stream=stream,
        device=device,
        max_memory=max_memory,
        remote=remote,
    ).to_dict()
    if as_json:
        print_json(found)
    else:
        print_fields(plan_rows(found))


def map_model(
    model: ModelArgument,
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Folder for the atlas, figures and page.",
            show_default=False,
        ),
    ],
    lens: LensOption = None,
    preset: Annotated[
        str,
        typer.Option(
            "--preset", metavar="NAME", help="default, or all the paper's choices: maps-paper[-llama3]."
        ),
    ] = "default",
    relations: Relations = "core",
    k: K = None,
    k_copy: KCopy = None,
    tau: Tau = None,
    q: QMax = None,
    criterion: CriterionOption = None,
    layers: Annotated[
        str | None, typer.Option("--layers", metavar="A-B", help="Map only these layers, both ends included.")
    ] = None,
    target_policy: Annotated[
        Literal["single", "first-token"],
        typer.Option("--target-policy", help="Whether a target of several tokens may count by its first."),
    ] = "single",
    ceiling: Annotated[
        int,
        typer.Option("--ceiling", metavar="N", help="Ranks are stored exactly below N; k can be up to N."),
    ] = 32,
    stream: Stream = None,
    device: Device = "auto",
    max_memory: MaxMemory = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="auto|ADDRESS",
            help="Map the layers on the machines of a running Ray cluster.",
        ),
    ] = None,
    remote: Remote = False,
    force: Annotated[
        bool, typer.Option("--force", help="Delete the atlas in DIR and start over, instead of resuming.")
    ] = False,
    no_figures: Annotated[
        bool, typer.Option("--no-figures", help="Write the atlas and the tables only.")
    ] = False,
) -> None:
    """Map every head of a model into a folder.

    DIR gets the atlas (atlas.zarr), the figure (categories.png, .svg, .pdf), its data (categories.csv), the
    figure in words (description.txt), the interactive page (report.html) and the table (heads.parquet).

    Each layer is saved when it is done. After Ctrl-C or a crash, the same command goes on where it stopped.
    """
    from headatlas.addresses import output_path
    from headatlas.files import check_writable
    from headatlas.mapping.run import map_heads
    from headatlas.outputs import write_outputs

    began = time.monotonic()
    where = output_path(out)
    check_writable(where)
    with stopping(lambda: _stopped(where)), MapProgress() as progress:
        atlas = map_heads(
            model,
            out=where,
            preset=preset,
            lens=lens,
            relations=relations,
            k=k,
            k_copy=k_copy,
            tau=tau,
            q_max=q,
            criterion=criterion,
            layers=layers,
            ceiling=ceiling,
            stream=stream,
            device=device,
            max_memory=max_memory,
            target_policy=target_policy,
            cluster=cluster,
            remote=remote,
            force=force,
            progress=progress,
        )
    # The outputs follow this command line, whatever an earlier one, now resumed, said.
    atlas = atlas.with_settings(k=k, k_copy=k_copy, tau=tau, q_max=q, criterion=criterion)
    with stopping(lambda: _stopped(where)):
        written = write_outputs(atlas, where, figures=not no_figures)
    say(summary(atlas, where, written, time.monotonic() - began))


def _stopped(out: Path) -> str:
    """What Ctrl-C left."""
    from headatlas.atlas import Atlas

    try:
        done = Atlas.open(out).layers_done
    except HeadatlasError:
        return "stopped; nothing saved yet; the same command starts again"
    return f"stopped; {int(done.sum())} of {len(done)} layers saved; the same command resumes"
