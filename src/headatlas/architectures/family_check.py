"""Tries a family file on a tiny random model of a checkpoint's own architecture and config.

transformers makes the model with all parameters drawn anew; it is saved as it would be published, opened
through the family file, and every part that headatlas reads of it must be what the Hugging Face modules
compute. So a norm, bias or layout that the file forgets is found without the large weights.

Nothing writes GGUF files here, so of those the first layers themselves are compared with what transformers
makes of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headatlas.architectures.accounting import Inventory
from headatlas.architectures.family import Family
from headatlas.architectures.model import Model
from headatlas.architectures.oracle import COMPARISONS, Compared
from headatlas.architectures.proposal import Proposal, proposals
from headatlas.errors import HeadatlasError
from headatlas.weights.checkpoints import open_path
from headatlas.weights.gguf_source import GgufSource
from headatlas.weights.loading import (
    TooLargeError,
    auto_class,
    first_layers,
    in_first_layers,
    local_config,
    small_ids,
    transformers_at_work,
)
from headatlas.weights.source import Checkpoint, TensorInfo

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "n_inner": 48, "ffn_dim": 48,
    "max_position_embeddings": 64, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 12, "q_lora_rank": 20, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4, "qk_head_dim": 12, "v_head_dim": 8, "word_embed_proj_dim": 32,
}  # fmt: skip
_HEADS, _D_HEAD, _MOST_LAYERS = 4, 8, 8
_TOLERANCE = 1e-3  # float32; what is wrong differs by far more
_TRIED = 12
_GGUF_LAYERS = 2
_MOST_BYTES = 4 << 30  # memory for the weights of these layers, the embedding and the unembedding


@dataclass(frozen=True)
class Outcome:
    """One part of the comparison.

    Attributes:
        part: What was compared.
        distance: The largest difference found, relative to the size of the numbers; None if none was made.
        problem: What is wrong, in words; empty if nothing.
    """

    part: str
    distance: float | None
    problem: str = ""


def try_family(family: Family, checkpoint: Checkpoint) -> list[Outcome]:
    """Hold a family file against a tiny model of a checkpoint's config, or against a GGUF's first layers.

    Args:
        family: What is to be tried.
        checkpoint: Safetensors with a config.json, whose weights are not read; or GGUF.

    Returns:
        An outcome for each part, those with a ``problem`` among them.

    Raises:
        HeadatlasError: transformers cannot build the architecture, not even tiny, or the checkpoint is
            neither.
    """
    if isinstance(checkpoint.source, GgufSource):
        return _try_gguf(family, checkpoint, checkpoint.source)
    if checkpoint.format != "safetensors" or checkpoint.traffic is not None:
        raise HeadatlasError(
            f"{checkpoint.spec}: the comparison with transformers needs safetensors and their "
            "config.json on disk, or GGUF."
        )
    modules = _tiny(checkpoint)
    with tempfile.TemporaryDirectory(prefix="headatlas-") as folder:
        with transformers_at_work("The tiny model"):
            modules.save_pretrained(folder)
        try:
            saved = open_path(Path(folder), "the tiny model")
        except HeadatlasError as error:
            return [Outcome("accounting", None, str(error))]
        return _outcomes(family, saved, modules)


def subject(checkpoint: Checkpoint) -> str:
    """The model that :func:`try_family` compares with, in words."""
    return f"first {_GGUF_LAYERS} layers" if checkpoint.format == "gguf" else "tiny model"


def _try_gguf(family: Family, checkpoint: Checkpoint, source: GgufSource) -> list[Outcome]:
    """The first layers of a GGUF file as the family reads them and as transformers does."""
    key = f"{checkpoint.architecture}.block_count"
    stored = checkpoint.config.get(key)
    if family.gguf is None or not isinstance(stored, int):
        raise HeadatlasError(
            f"{checkpoint.spec}: the family {family.name!r} or the file does not say how many layers "
            "there are."
        )
    layers = min(stored, _GGUF_LAYERS)
    try:
        modules = first_layers(source, layers, _MOST_BYTES)
    except TooLargeError as error:
        raise HeadatlasError(
            f"{checkpoint.spec}: its first layers would take {error.args[0] / 1e9:.1f} GB of memory; a "
            "smaller model of the family can be compared."
        ) from error
    config = {**checkpoint.config, key: layers}
    return _outcomes(family, replace(checkpoint, config=config, source=_FirstLayers(source, layers)), modules)


class _FirstLayers:
    """The tensors of a GGUF file without those of later layers."""

    def __init__(self, source: GgufSource, layers: int) -> None:
        self._source = source
        self._infos = {name: info for name, info in source.infos().items() if in_first_layers(name, layers)}

    def infos(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def read(self, name: str, rows: slice | Sequence[int] | None = None) -> torch.Tensor:
        return self._source.read(name, rows)


def _outcomes(family: Family, checkpoint: Checkpoint, modules: PreTrainedModel) -> list[Outcome]:
    """Every part of a checkpoint as a family reads it, compared with modules."""
    try:
        model = Model(checkpoint, family, _accounted(family, checkpoint))
    except HeadatlasError as error:
        return [Outcome("accounting", None, str(error))]
    # Without an MLP, or with a mixer of unknown place before it, there is nothing to compare.
    mlp = bool(model.mlp_modules(0) and model.attention_modules(0))
    parts = {part: compare for part, compare in COMPARISONS.items() if mlp or part != "first MLP"}
    return [_outcome(part, compare, model, modules) for part, compare in parts.items()]


def _outcome(
    part: str,
    compare: Callable[[Model, PreTrainedModel], Iterator[Compared]],
    model: Model,
    modules: PreTrainedModel,
) -> Outcome:
    try:
        distance = max((each.distance for each in compare(model, modules)), default=0.0)
    except HeadatlasError as error:
        return Outcome(part, None, str(error))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        # A wrong module path, or modules that do not fit the family's idea of them.
        why = str(error).splitlines()[:1]
        return Outcome(part, None, f"{type(error).__name__}: {''.join(why)}")
    problem = "" if distance < _TOLERANCE else "differs from what transformers computes"
    return Outcome(part, distance, problem)


def _accounted(family: Family, checkpoint: Checkpoint) -> Inventory:
    """A checkpoint's tensors as a family explains them.

    Raises:
        HeadatlasError: It does not explain all of them.
    """
    section = family.section(checkpoint.format)
    if section is None:
        raise HeadatlasError(f"The family {family.name!r} has no section for {checkpoint.format}.")
    inventory = Inventory(checkpoint, section)
    inventory.check()
    return inventory


def accounting(family: Family, checkpoint: Checkpoint) -> str | None:
    """The objection of the accounting of tensors to a family; None if there is none."""
    try:
        _accounted(family, checkpoint)
    except HeadatlasError as error:
        return str(error)
    return None


def best(checkpoint: Checkpoint) -> tuple[Proposal, list[Outcome], str | None]:
    """The proposal to show for a checkpoint: the first that is whole and agrees with transformers, if any is.

    Returns:
        The proposal, the outcomes of its comparison, and why there was none where there is none.

    Raises:
        HeadatlasError: No family explains anything of the checkpoint.
    """
    found = proposals(checkpoint)
    whole = [each for each in found[:_TRIED] if accounting(each.family, checkpoint) is None]
    tried: list[tuple[Proposal, list[Outcome]]] = []
    for proposal in whole or found[:1]:
        try:
            outcomes = try_family(proposal.family, checkpoint)
        except HeadatlasError as error:
            return proposal, [], str(error)
        if not any(each.problem for each in outcomes):
            return proposal, outcomes, None
        tried.append((proposal, outcomes))
    return *min(tried, key=lambda each: sum(bool(outcome.problem) for outcome in each[1])), None


def _tiny(checkpoint: Checkpoint) -> PreTrainedModel:
    """A random model of the checkpoint's architecture with small sizes."""
    import torch

    config = local_config(checkpoint)
    with transformers_at_work(f"A tiny model of the config of {checkpoint.spec}"):
        _shrink(config.get_text_config())
        model: PreTrainedModel = auto_class(checkpoint).from_config(
            config, dtype=torch.float32, attn_implementation="eager"
        )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            usual = 0.3 if parameter.ndim == 1 else 0.0
            parameter.normal_(usual, 0.4 if parameter.ndim == 1 else 0.25, generator=generator)
    model.requires_grad_(False)
    model.train(mode=False)
    return model


def _shrink(config: Any) -> None:
    """Small sizes in place of large ones; what kind of model it is stays."""
    layers = _layers(config)
    for key, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == config.num_hidden_layers:
            setattr(config, key, value[:layers])
    config.num_hidden_layers = layers
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None)
    config.num_attention_heads = _HEADS
    if shared is not None:
        config.num_key_value_heads = _HEADS if shared == heads else 1 if shared == 1 else _HEADS // 2
    if getattr(config, "head_dim", None) is not None:
        with suppress(AttributeError):  # where it follows from other sizes
            config.head_dim = _SIZES["qk_rope_head_dim"] if hasattr(config, "qk_rope_head_dim") else _D_HEAD
    for key, size in _SIZES.items():
        if isinstance(getattr(config, key, None), int):
            setattr(config, key, size)
    small_ids(config)
    if isinstance(rope := getattr(config, "rope_parameters", None), dict) and "rope_type" in rope:
        kept = {key: value for key, value in rope.items() if not isinstance(value, list)}
        config.rope_parameters = {**kept, "rope_type": "default"}
        if "mrope_section" in rope:
            config.rope_parameters["mrope_section"] = [_D_HEAD // 8, _D_HEAD // 8, _D_HEAD // 4]


def _layers(config: Any) -> int:
    """Enough layers to see each kind of them."""
    kinds = getattr(config, "layer_types", None) or []
    firsts = [kinds.index(kind) for kind in set(kinds)]
    wanted = max([2, *(first + 1 for first in firsts)])
    return min(int(config.num_hidden_layers), wanted, _MOST_LAYERS)
