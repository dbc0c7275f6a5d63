"""A safetensors file with nothing but the changed output projections of a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from headatlas import __version__
from headatlas.addresses import shown
from headatlas.architectures.model import Model, open_model
from headatlas.atlas import Atlas
from headatlas.errors import HeadatlasError
from headatlas.files import atomic_write
from headatlas.recipes.code import Head
from headatlas.weights.checkpoints import open_checkpoint
from headatlas.weights.loading import need_on_disk
from headatlas.weights.safetensors_source import SafetensorsSource
from headatlas.weights.source import fingerprint

if TYPE_CHECKING:
    import torch

REST = "use another form of recipe, which needs no weights"


def write_checkpoint(
    atlas: Atlas, model: str | Path | None, path: Path, heads: Sequence[Head], factor: float, code: str
) -> None:
    """Write the output projections of these heads' layers, the heads' columns multiplied by a factor.

    Tensors have the names, layouts and types that the checkpoint has them in. Of a GGUF file they have the
    names and layouts of the Hugging Face modules, in float32: the block types of GGUF cannot hold them.

    Args:
        atlas: Of that model.
        model: The model; None as the atlas names it.
        path: The file to write.
        heads: (layer, head).
        factor: 0 sets to zero, whatever stands there.
        code: Python that loads the file; it goes into the metadata.

    Raises:
        HeadatlasError: The model cannot be read, is not the atlas's, or its weights are quantised; or the
            file cannot be written.
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
    if fingerprint(checkpoint) != about["weights_hash"]:
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
