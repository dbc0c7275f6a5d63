"""The modules of a model up to its first blocks, with the weights that transformers gives them.

The tensors find their modules by transformers' own names and conversions, not by a family file, so what the
modules compute says whether the family file is right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from headatlas.errors import HeadatlasError
from headatlas.weights.gguf_modules import gguf_modules
from headatlas.weights.gguf_settings import of_text
from headatlas.weights.gguf_source import GgufSource
from headatlas.weights.loading import can_stream, local_config, skeleton_of, transformers_at_work
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
    if not can_stream(checkpoint) or checkpoint.traffic is not None:
        raise HeadatlasError(f"{checkpoint.spec}: the weights are not on disk.")
    config = local_config(checkpoint)
    with transformers_at_work(f"The first block of {checkpoint.spec}"):
        with_layers(config)
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


def first_layers(source: GgufSource, layers: int, most_bytes: int) -> PreTrainedModel:
    """A transformers model of the first layers of a GGUF file, in float32 and evaluation mode.

    Args:
        source: The file.
        layers: How many layers.
        most_bytes: How much memory the weights may take.

    Raises:
        HeadatlasError: transformers cannot make the modules.
        TooLargeError: The weights would take more than ``most_bytes``.
    """

    def wanted(name: str) -> bool:
        return of_text(name) and in_first_layers(name, layers)

    size = sum(4 * prod(info.shape) for name, info in source.infos().items() if wanted(name))
    if size > most_bytes:
        raise TooLargeError(size)
    return _modules_of_gguf(source, lambda config: with_layers(config, layers), wanted)


def in_first_layers(name: str, layers: int) -> bool:
    """Whether a tensor of a GGUF file belongs to the first layers or to none."""
    block, number = name.split(".")[:2]
    return block != "blk" or not number.isdigit() or int(number) < layers


def with_layers(config: Any, layers: int = 1) -> Any:
    """The config cut down to its first layers; what is said layer by layer is cut as well."""
    text = config.get_text_config()
    every = text.num_hidden_layers
    for key, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == every:
            setattr(text, key, value[:layers])
    text.num_hidden_layers = layers
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

    def wanted(name: str) -> bool:
        if name.startswith("blk."):
            return name.startswith("blk.0.") and ".ffn" not in name
        return name not in ("token_embd.weight", "output.weight")

    size = sum(info.nbytes for name, info in source.infos().items() if wanted(name))
    if size > most_bytes:
        raise TooLargeError(size)

    def smaller(config: Any) -> Any:
        text = with_layers(config).get_text_config()
        for key in _WIDTHS:
            if isinstance(getattr(text, key, None), int):
                setattr(text, key, _FEW)
        small_ids(text)
        return config

    return _modules_of_gguf(source, smaller, wanted)


def _modules_of_gguf(
    source: GgufSource, change: Callable[[Any], Any], wanted: Callable[[str], bool]
) -> PreTrainedModel:
    """Modules of a changed config with some of a file's tensors."""
    import torch

    options = {"dtype": torch.float32, "local_files_only": True, "trust_remote_code": False}
    with transformers_at_work(f"The model {source.files[0]}"):
        model: PreTrainedModel = gguf_modules(source, options, change=change, wanted=wanted)
    model.requires_grad_(False)
    model.train(mode=False)
    return model
