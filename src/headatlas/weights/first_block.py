"""The modules of a model up to its first block, with the weights that transformers gives them.

The tensors find their modules by transformers' own names and conversions, not by a family file, so what the
modules compute says whether the family file is right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from headatlas.errors import HeadatlasError
from headatlas.weights.gguf_modules import gguf_modules
from headatlas.weights.gguf_source import GgufSource
from headatlas.weights.loading import local_config, skeleton_of, transformers_at_work
from headatlas.weights.safetensors_source import SafetensorsSource
from headatlas.weights.source import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FEW = 8
# What makes an MLP or a vocabulary large; the attention does not depend on it.
_WIDTHS = (
    "vocab_size",
    "intermediate_size",
    "n_inner",
    "ffn_dim",
    "ffn_hidden_size",
    "moe_intermediate_size",
)
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")  # the places in the list are their new ids


class TooLargeError(Exception):
    """What would be read is more than was allowed; the argument is its size in bytes."""


def first_block(
    checkpoint: Checkpoint,
    *,
    body: str,
    without: Sequence[str],
    stored_name: Callable[[str], str],
    most_bytes: int,
) -> PreTrainedModel:
    """A transformers model of one block, in float32 and evaluation mode, without embedding and MLP.

    Args:
        checkpoint: Safetensors or GGUF on disk.
        body: Path of the decoder among the modules.
        without: Paths of the first block's MLP, which is not read.
        stored_name: From a parameter's path to the stored name (safetensors).
        most_bytes: How much may be read.

    Raises:
        HeadatlasError: transformers cannot make the modules, or a tensor is not there under its name.
        TooLargeError: More than ``most_bytes`` would be read.
    """
    if isinstance(checkpoint.source, GgufSource):
        return _of_gguf(checkpoint.source, most_bytes)
    if not isinstance(checkpoint.source, SafetensorsSource):
        raise HeadatlasError(f"{checkpoint.spec}: the weights are not on disk.")
    config = local_config(checkpoint)
    with transformers_at_work(f"The first block of {checkpoint.spec}"):
        one_layer(config)
    model = skeleton_of(checkpoint, config)
    decoder: Any = model.get_submodule(body)
    embedding = decoder.get_input_embeddings()
    wanted = {}
    for name, parameter in decoder.named_parameters():
        path = f"{body}.{name}" if body else name
        if parameter is embedding.weight or path.startswith(tuple(f"{part}." for part in without)):
            continue
        wanted[path] = stored_name(path)
        info = checkpoint.source.infos().get(wanted[path])
        if info is None or info.shape != tuple(parameter.shape):
            found = "is missing" if info is None else f"has the shape {list(info.shape)}"
            raise HeadatlasError(
                f"{checkpoint.spec}: tensor {wanted[path]!r} {found}, transformers wants it in "
                f"{list(parameter.shape)}."
            )
    infos = checkpoint.source.infos()
    size = sum(infos[name].nbytes for name in wanted.values())
    if size > most_bytes:
        raise TooLargeError(size)
    _fill(model, {path: checkpoint.source.read(name) for path, name in wanted.items()})
    return model


def one_layer(config: Any) -> Any:
    """The config cut down to its first layer; what is said layer by layer is cut as well."""
    text = config.get_text_config()
    layers = text.num_hidden_layers
    for key, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == layers:
            setattr(text, key, value[:1])
    text.num_hidden_layers = 1
    return config


def small_ids(config: Any) -> None:
    """Give special tokens ids that lie in any vocabulary."""
    for place, key in enumerate(_TOKENS):
        if getattr(config, key, None) is not None:
            setattr(config, key, place)


def _fill(model: PreTrainedModel, tensors: dict[str, Any]) -> None:
    from torch import nn

    for path, tensor in tensors.items():
        owner, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor.float(), requires_grad=False))


def _of_gguf(source: GgufSource, most_bytes: int) -> PreTrainedModel:
    """As transformers converts it. What is not read is made up, and small."""
    import torch

    def wanted(name: str) -> bool:
        if name.startswith("blk."):
            return name.startswith("blk.0.") and ".ffn" not in name
        return name not in ("token_embd.weight", "output.weight")

    size = sum(info.nbytes for name, info in source.infos().items() if wanted(name))
    if size > most_bytes:
        raise TooLargeError(size)

    def smaller(config: Any) -> Any:
        text = one_layer(config).get_text_config()
        for key in _WIDTHS:
            if isinstance(getattr(text, key, None), int):
                setattr(text, key, _FEW)
        small_ids(text)
        return config

    options = {"dtype": torch.float32, "local_files_only": True, "trust_remote_code": False}
    with transformers_at_work(f"The model {source.files[0]}"):
        model: PreTrainedModel = gguf_modules(source, options, change=smaller, wanted=wanted)
    model.requires_grad_(False)
    model.train(mode=False)
    return model
