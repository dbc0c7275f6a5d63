"""Python as text: one template a library, ``data/*.txt``, filled with names of the model and the heads.

Text of others (names of models and relations) goes in as literals alone. Only strings are handled here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pprint import pformat
from string import Template
from typing import Literal

from headatlas import __version__

Action = Literal["silence", "scale", "watch"]
Head = tuple[int, int]

FUNCTIONS: dict[Action, tuple[str, str, str]] = {
    "silence": ("silenced", "Set to zero", "rows[..., chosen, :] = 0.0"),
    "scale": ("scaled", "Multiply by FACTOR", "rows[..., chosen, :] *= FACTOR"),
    "watch": ("watched", "Collect", ""),
}
"""Name of the function in the code, what it does, and the line that does it."""
INTRODUCTION = """{says}.

Written by headatlas {version}, which is not needed here. HEADS are (layer, head), both from 0: query heads,
whose channels begin at head * D_HEAD. Give CONTROL instead for random heads of the same layers."""
HOOK_Z = "blocks.{layer}.attn.hook_z"
"""TransformerLens's name, in every family, of what the heads of a layer bring to the output projection."""


@dataclass(frozen=True)
class Place:
    """The place of heads in a model.

    Attributes:
        model: The model's name, as it is; text of others.
        outputs: Alternative paths of the Hugging Face module of the output projection, with ``{layer}``.
        n_heads: Query heads of a layer.
        d_head: Channels of each, at the input of the output projection: head · d_head and on.
    """

    model: str
    outputs: tuple[str, ...]
    n_heads: int
    d_head: int


def written(
    form: str,
    do: Action,
    place: Place,
    heads: Sequence[Head],
    control: Sequence[Head],
    *,
    why: str,
    seed: int,
    factor: float | None,
) -> str:
    """The code for one library (``transformers``, ``transformer-lens`` or ``nnsight``).

    ``why`` says how the heads were chosen, and is text of others; ``control`` are drawn with ``seed``.
    """
    function, does, change = FUNCTIONS[do]
    says = f"{does} what heads bring to the output projection, at every position"
    fewer = "" if len(control) == len(heads) else "; fewer than HEADS, for a layer has no more"
    names = [
        *_names(place, heads, why),
        f"CONTROL = {_listed(control)}",
        f"# CONTROL: random other heads of the same layers, seed {seed}{fewer}",
        f"N_HEADS, D_HEAD = {place.n_heads}, {place.d_head}",
        f"HOOK = {HOOK_Z!r}" if form == "transformer-lens" else f"OUTPUTS = {_listed(place.outputs)}",
        *([f"FACTOR = {factor!r}"] if do == "scale" else []),
    ]
    parts = _parts(form)
    return Template(parts["watch" if do == "watch" else "change"]).substitute(
        introduction=INTRODUCTION.format(says=says, version=__version__),
        names="\n".join(names),
        finding=parts["finding"],
        function=function,
        says=says,
        change=change,
    )


def written_loader(
    place: Place, file: str, heads: Sequence[Head], *, why: str, factor: float | None, gguf: bool
) -> str:
    """The code that loads changed output projections over a model of transformers."""
    done = "set to zero" if factor is None else f"multiplied by {factor!r}"
    names = [*_names(place, heads, why), f"FILE = {file!r}", f"# The columns of HEADS in W_O are {done}."]
    in_gguf = "names of the modules, in float32: the model is a GGUF file"
    return Template(_parts("checkpoint")["load"]).substitute(
        version=__version__,
        kept=in_gguf if gguf else "names and types of the checkpoint",
        names="\n".join(names),
    )


def _parts(form: str) -> dict[str, str]:
    """The parts of a library's template by name."""
    body = files("headatlas.recipes").joinpath(f"data/{form}.txt").read_text(encoding="utf-8")
    found = re.split(r"^=== (.+)\n", body, flags=re.MULTILINE)[1:]
    return dict(zip(found[::2], found[1::2], strict=True))


def _names(place: Place, heads: Sequence[Head], why: str) -> list[str]:
    return [f"MODEL = {place.model!r}", f"WHY = {why!r}", f"HEADS = {_listed(heads)}"]


def _listed(items: Sequence[object]) -> str:
    return pformat(list(items), width=100, compact=True)
