"""Which heads a recipe is about, which random heads stand beside them, and how it is written.

Code is text: one template a library, ``data/*.txt``, filled with names of the model and the heads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import isfinite
from numbers import Integral, Real
from pathlib import Path
from pprint import pformat
from string import Template
from typing import TYPE_CHECKING, Any, get_args

from headatlas import __version__
from headatlas.addresses import output_path, shown
from headatlas.architectures.family import Family, families
from headatlas.architectures.model import Model, open_model
from headatlas.atlas import Atlas
from headatlas.errors import HeadatlasError
from headatlas.evidence.statistics import Head, named_heads, random_heads
from headatlas.files import atomic_write
from headatlas.options import Action, RecipeForm
from headatlas.weights.checkpoints import open_checkpoint
from headatlas.weights.loading import need_on_disk
from headatlas.weights.safetensors_source import SafetensorsSource

if TYPE_CHECKING:
    import torch


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
REST = "use another form of recipe, which needs no weights"


@dataclass(frozen=True)
class Recipe:
    """Python that does something to heads of a model; ``print`` shows it.

    Attributes:
        heads: (layer, head), as in the code.
        control: Random other heads of the same layers, as in the code.
        code: The Python. Of the form ``checkpoint``, it loads the written file over the model.
    """

    heads: tuple[Head, ...]
    control: tuple[Head, ...]
    code: str

    def __str__(self) -> str:
        return self.code

    def __repr__(self) -> str:
        first = ", ".join(f"{layer}.{head}" for layer, head in self.heads[:8])
        more = f" and {len(self.heads) - 8} more" if len(self.heads) > 8 else ""
        n_lines = len(self.code.splitlines())
        return (
            f"<Recipe for the heads {first}{more}: {n_lines} lines of Python in .code; print it to read them>"
        )


def recipe(
    atlas: Atlas,
    relation: str | None = None,
    *,
    heads: Sequence[Head] | None = None,
    form: RecipeForm = "transformers",
    do: Action = "silence",
    factor: float | None = None,
    control: int = 0,
    out: str | Path | None = None,
    model: str | Path | None = None,
) -> Recipe:
    """Write Python that silences, scales or watches heads at the input of the output projection.

    The code needs the model and its library, not headatlas. It names the heads and, as a control, as many
    random heads of the same layers. Only the form ``checkpoint`` reads the model; no other needs torch.

    Args:
        atlas: Any atlas.
        relation: The heads that implement it, best first; its name or title.
        heads: Or these heads: (layer, head), each once.
        form: ``transformers``, ``transformer-lens`` or ``nnsight``: code for that library. ``checkpoint``:
            a safetensors file with the changed output projections alone.
        do: ``silence`` (zero), ``scale`` (times `factor`) or ``watch`` (collect what they bring).
        factor: Of ``scale``.
        control: Seed of the random heads: the first draw of ``evidence ablation`` with it.
        out: File to write the code to; of ``checkpoint``, the safetensors file, which is needed.
        model: Of ``checkpoint``: the model; by default the one that the atlas names.

    Raises:
        HeadatlasError: A choice makes no sense, no head is meant, the atlas does not say what the model is,
            or a file cannot be read or written.
    """
    _check_choices(form, do, factor, control, out, model)
    chosen, why = _chosen(atlas, relation, heads)
    family, n_heads, d_head = _known_model(atlas)
    beside = tuple(next(random_heads(chosen, n_heads, int(control))))
    scale = None if factor is None else float(factor)
    # Names of models and relations are text of others: they go in as literals alone.
    names = [*_model_named(atlas), f"WHY = {why!r}", f"HEADS = {_listed(chosen)}"]
    if form != "checkpoint":
        fewer = "" if len(beside) == len(chosen) else "; fewer than HEADS, for a layer has no more"
        names += [
            f"CONTROL = {_listed(beside)}",
            f"# CONTROL: random other heads of the same layers, seed {int(control)}{fewer}",
            f"N_HEADS, D_HEAD = {n_heads}, {d_head}",
            f"HOOK = {HOOK_Z!r}" if form == "transformer-lens" else f"OUTPUTS = {_listed(_outputs(family))}",
            *([f"FACTOR = {scale!r}"] if do == "scale" else []),
        ]
        code = _written(form, do, names)
        if out is not None:
            with atomic_write(output_path(out)) as temporary:
                temporary.write_text(code, encoding="utf-8")
        return Recipe(chosen, beside, code)
    path = output_path(str(out))
    done = "set to zero" if scale is None else f"multiplied by {scale!r}"
    names += [f"FILE = {path.name!r}", f"# The columns of HEADS in W_O are {done}."]
    in_gguf = "names of the modules, in float32: the model is a GGUF file"
    gguf = atlas.provenance["model"].get("format") == "gguf"
    kept = in_gguf if gguf else "names and types of the checkpoint"
    code = _filled("checkpoint", "load", names, kept=kept)
    write_checkpoint(atlas, model, path, chosen, 0.0 if scale is None else scale, code)
    return Recipe(chosen, beside, code)


def _model_named(atlas: Atlas) -> list[str]:
    """The model's name, and where its weights were read: under the name transformers may not find it."""
    about = atlas.provenance["model"]
    read = f"{shown(str(about.get('spec')))!r} ({about.get('format')})"
    return [
        f"MODEL = {atlas.model_name!r}",
        f"# A name, which from_pretrained may not know; the weights were read from {read}.",
    ]


def _check_choices(form: str, do: str, factor: Any, control: Any, out: object, model: object) -> None:
    for name, value, known in (("form", form, get_args(RecipeForm)), ("do", do, get_args(Action))):
        if value not in known:
            raise HeadatlasError(f"`{name}` is {value!r}: use {', '.join(known)}.")
    if (factor is not None) != (do == "scale"):
        raise HeadatlasError("`factor` goes with `do=scale`, and `do=scale` needs it.")
    number = not isinstance(factor, bool) and isinstance(factor, Real) and isfinite(factor)
    if factor is not None and not number:
        raise HeadatlasError(f"`factor` is {factor!r}: it must be a finite number.")
    if isinstance(control, bool) or not isinstance(control, Integral) or control < 0:
        raise HeadatlasError(f"`control` is {control!r}: it is a seed, a whole number of at least 0.")
    if form != "checkpoint" and model is not None:
        raise HeadatlasError(f"`model` goes with `form=checkpoint`: `form={form}` reads no model.")
    if form == "checkpoint" and do == "watch":
        raise HeadatlasError(
            "`form=checkpoint` changes weights, and weights watch nothing; use another form."
        )
    if form == "checkpoint" and (out is None or Path(str(out)).suffix != ".safetensors"):
        raise HeadatlasError(
            "`form=checkpoint` writes a file: give one that ends in .safetensors with `out`."
        )


def _chosen(atlas: Atlas, relation: str | None, heads: Sequence[Head] | None) -> tuple[tuple[Head, ...], str]:
    """The heads meant, and why they are."""
    if (relation is None) == (heads is None):
        raise HeadatlasError("say which heads: give `relation` or `heads`, one of the two.")
    if relation is not None:
        name, found = atlas.known(relation), atlas.heads(relation)
        rule = f"{atlas.thresholds.describe()}; lens {atlas.lens}"
        if not found:
            raise HeadatlasError(f"no head of this atlas implements {name} ({rule}); name them with `heads`.")
        return tuple(found), f"they implement {name}, best first ({rule})"
    return named_heads(atlas, heads or ()), "named by hand"


def _known_model(atlas: Atlas) -> tuple[Family, int, int]:
    """The family of an atlas's model, the heads of a layer, and the channels of each."""
    about = atlas.provenance["model"]
    dims, family = about.get("dims"), about.get("family")
    known = next((each for each in families() if each.name == family), None)
    if dims is None or known is None:
        raise HeadatlasError(
            f"this atlas names no model family that this version knows ({family!r}); map the model again."
        )
    return known, int(dims["n_heads"]), int(dims["d_head"])


def _outputs(family: Family) -> tuple[str, ...]:
    """Paths of the output projection, the layer in braces, one for each place where the decoder may be."""
    modules = family.modules
    bodies = dict.fromkeys((modules.body, *modules.body_of.values()))
    return tuple(
        modules.output.format(block=modules.block, body="{body}", layer="{layer}").format(
            body=body, layer="{layer}"
        )
        for body in bodies
    )


def write_checkpoint(
    atlas: Atlas, model: str | Path | None, path: Path, heads: Sequence[Head], factor: float, code: str
) -> None:
    """Write the output projections of these heads' layers, the heads' columns times a factor.

    Tensors have the names, layouts and types that the checkpoint has them in. Of a GGUF file they have the
    names and layouts of the Hugging Face modules, in float32: the block types of GGUF cannot hold them. The
    ``code`` that loads the file goes into its metadata.
    """
    from safetensors.torch import save

    opened = _opened(atlas, model)
    if path.resolve() in {Path(each.file).resolve() for each in opened.checkpoint.source.infos().values()}:
        raise HeadatlasError(f"{path}: this is a file of the model itself; give `out` another name.")
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        by_layer.setdefault(layer, []).append(head)
    tensors, parameters = {}, {}
    for layer, chosen in sorted(by_layer.items()):
        name, parameter, weight = _weight(opened, layer)
        tensors[name], parameters[name] = _changed(opened, weight, chosen, factor), parameter
    metadata = {
        "format": "pt",
        "made_by": f"headatlas {__version__}",
        "model": atlas.model_name,
        "weights_hash": str(atlas.provenance["model"]["weights_hash"]),
        "heads": json.dumps([f"{layer}.{head}" for layer, head in heads]),
        "factor": repr(factor),
        "parameters": json.dumps(parameters),
        "usage": code,
    }
    # Half a character is no UTF-8; it becomes a question mark.
    metadata = {name: text.encode("utf-8", "replace").decode() for name, text in metadata.items()}
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(tensors, metadata))


def _opened(atlas: Atlas, model: str | Path | None) -> Model:
    about = atlas.provenance["model"]
    if model is None and about.get("format") == "module":
        raise HeadatlasError(
            f"this atlas was made from a model in memory, of which there is no file; {REST}."
        )
    if "adapter" in about:
        raise HeadatlasError(f"this atlas is of a model with an adapter merged in memory; {REST}.")
    checkpoint = open_checkpoint(str(about["spec"]) if model is None else model)
    need_on_disk(checkpoint, "a recipe of this form")
    if checkpoint.source.fingerprint() != about["weights_hash"]:
        raise HeadatlasError(
            f"{shown(str(checkpoint.spec))}: the weights of this model are not the atlas's; give the "
            "model that was mapped with `model`."
        )
    return open_model(checkpoint)


def _weight(model: Model, layer: int) -> tuple[str, str, torch.Tensor]:
    """Name of a layer's output projection in the file, that of the modules' parameter, and a copy of it."""
    parameter = f"{model.o_proj_module(layer)}.weight"
    source = model.checkpoint.source
    if model.checkpoint.format == "gguf":
        W_O = model.heads(layer).W_O.flatten(0, 1)
        return parameter, parameter, W_O.clone() if _transposed(model) else W_O.T.contiguous()
    name = model.output_name(layer)
    if not isinstance(source, SafetensorsSource) or source.holds_scales_of(name):
        raise HeadatlasError(f"{model.checkpoint.spec}: its tensor {name!r} is stored quantised; {REST}.")
    return name, parameter, source.stored(name).clone().contiguous()


def _changed(model: Model, weight: torch.Tensor, heads: Sequence[int], factor: float) -> torch.Tensor:
    """The weight with the channels of these heads multiplied; changed in place."""
    entering = weight if _transposed(model) else weight.T
    rows = entering.view(model.dims.n_heads, model.dims.d_head, -1)
    for head in heads:
        if factor == 0.0:
            rows[head].zero_()
        else:
            rows[head].mul_(factor)
    return weight


def _transposed(model: Model) -> bool:
    """Whether the modules have the weight as [in, out]: Conv1D of GPT-2."""
    return model.family.safetensors.output.layout == "conv1d"


# The code as text --------------------------------------------------------------------------------------


def _written(form: str, do: Action, names: Sequence[str]) -> str:
    """The code for one library (``transformers``, ``transformer-lens`` or ``nnsight``)."""
    function, does, change = FUNCTIONS[do]
    says = f"{does} what heads bring to the output projection, at every position"
    introduction = INTRODUCTION.format(says=says, version=__version__)
    part = "watch" if do == "watch" else "change"
    return _filled(form, part, names, introduction=introduction, function=function, says=says, change=change)


def _filled(form: str, part: str, names: Sequence[str], **values: str) -> str:
    """A part of a library's template with its values in it."""
    body = files("headatlas.recipes").joinpath(f"data/{form}.txt").read_text(encoding="utf-8")
    found = re.split(r"^=== (.+)\n", body, flags=re.MULTILINE)[1:]
    parts = dict(zip(found[::2], found[1::2], strict=True))
    values |= {"names": "\n".join(names), "finding": parts.get("finding", ""), "version": __version__}
    return Template(parts[part]).substitute(values)


def _listed(items: Sequence[object]) -> str:
    return pformat(list(items), width=100, compact=True)
