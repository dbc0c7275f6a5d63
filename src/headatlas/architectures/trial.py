"""Tries a family file on a tiny random model of a checkpoint's own architecture and config.

transformers makes the model with all parameters drawn anew; it is saved as it would be published, opened
through the family file, and every part that headatlas reads of it must be what the Hugging Face modules
compute. So a norm, bias or layout that the file forgets is found without the large weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headatlas.architectures.accounting import Inventory
from headatlas.architectures.family import Family
from headatlas.architectures.opened import OpenedModel
from headatlas.architectures.proposal import Proposal, proposals
from headatlas.architectures.recognition import section_for
from headatlas.errors import HeadatlasError
from headatlas.weights.first_block import small_ids
from headatlas.weights.folder import open_path
from headatlas.weights.loading import local_config, transformers_at_work
from headatlas.weights.source import Checkpoint

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
    """Hold a family file against a tiny model of a checkpoint's config.

    Args:
        family: What is to be tried.
        checkpoint: Safetensors with a config.json; their weights are not read.

    Returns:
        An outcome for each part, those with a ``problem`` among them.

    Raises:
        HeadatlasError: transformers cannot build the architecture, not even tiny, or the checkpoint is not
            safetensors.
    """
    if checkpoint.format != "safetensors" or checkpoint.traffic is not None:
        raise HeadatlasError(
            f"{checkpoint.spec}: the comparison with transformers needs safetensors and their "
            "config.json on disk."
        )
    model = _tiny(checkpoint)
    with tempfile.TemporaryDirectory(prefix="headatlas-") as folder:
        with transformers_at_work("The tiny model"):
            model.save_pretrained(folder)
        try:
            saved = open_path(Path(folder), "the tiny model")
            inventory = Inventory(saved, family.safetensors)
            inventory.check()
        except HeadatlasError as error:
            return [Outcome("accounting of the tiny model", None, str(error))]
        opened = OpenedModel(saved, family, inventory)
        # Without an MLP, or with a mixer of unknown place before it, there is nothing to compare.
        mlp = bool(opened.mlp_modules(0) and opened.attention_modules(0))
        checks = {part: check for part, check in _CHECKS.items() if mlp or check is not _first_mlp}
        return [_outcome(part, check, opened, model) for part, check in checks.items()]


def best(checkpoint: Checkpoint) -> tuple[Proposal, list[Outcome], str | None]:
    """The proposal to show for a checkpoint: the first that is whole and agrees with a tiny model, if any is.

    Returns:
        The proposal, the outcomes of its comparison, and why there was none where there is none.

    Raises:
        HeadatlasError: No family explains anything of the checkpoint.
    """
    found = proposals(checkpoint)
    whole = [each for each in found[:_TRIED] if accounting(each.family(), checkpoint) is None]
    tried: list[tuple[Proposal, list[Outcome]]] = []
    for proposal in whole or found[:1]:
        try:
            outcomes = try_family(proposal.family(), checkpoint)
        except HeadatlasError as error:
            return proposal, [], str(error)
        if not any(each.problem for each in outcomes):
            return proposal, outcomes, None
        tried.append((proposal, outcomes))
    return *min(tried, key=lambda each: sum(bool(outcome.problem) for outcome in each[1])), None


def accounting(family: Family, checkpoint: Checkpoint) -> str | None:
    """What the accounting of tensors says against a family; None if nothing."""
    section = section_for(family, checkpoint)
    if section is None:
        return f"The family {family.name!r} has no section for {checkpoint.format}."
    try:
        Inventory(checkpoint, section).check()
    except HeadatlasError as error:
        return str(error)
    return None


def _outcome(
    part: str,
    check: Callable[[OpenedModel, Any], Iterator[float]],
    opened: OpenedModel,
    model: PreTrainedModel,
) -> Outcome:
    import torch

    try:
        with torch.no_grad():
            distance = max(check(opened, model), default=0.0)
    except HeadatlasError as error:
        return Outcome(part, None, str(error))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        # A wrong module path, or modules that do not fit the family's idea of them.
        return Outcome(
            part, None, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        )
    problem = "" if distance < _TOLERANCE else "differs from what transformers computes"
    return Outcome(part, distance, problem)


def _tiny(checkpoint: Checkpoint) -> PreTrainedModel:
    """A random model of the checkpoint's architecture with small sizes."""
    import torch
    from transformers import AutoModelForCausalLM

    config = local_config(checkpoint)
    with transformers_at_work(f"A tiny model of the config of {checkpoint.spec}"):
        _shrink(config.get_text_config())
        auto: Any = AutoModelForCausalLM
        model: PreTrainedModel = auto.from_config(config, dtype=torch.float32, attn_implementation="eager")
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


def _layers(config: Any) -> int:
    """Enough layers to see each kind of them."""
    kinds = getattr(config, "layer_types", None) or []
    firsts = [kinds.index(kind) for kind in set(kinds)]
    wanted = max([2, *(first + 1 for first in firsts)])
    return min(int(config.num_hidden_layers), wanted, _MOST_LAYERS)


@contextmanager
def _recorded(
    model: PreTrainedModel, paths: Sequence[str]
) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """First inputs and outputs of the named modules during the block."""
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}

    def recorder(path: str) -> Any:
        def record(_: Any, args: Any, kwargs: Any, output: Any) -> None:
            given: Any = args[0] if args else next(iter(kwargs.values()), None)
            left = output[0] if isinstance(output, tuple) else output
            inputs.setdefault(path, given)
            outputs.setdefault(path, left)

        return record

    hooks = [
        model.get_submodule(path).register_forward_hook(recorder(path), with_kwargs=True)
        for path in set(paths)
    ]
    try:
        yield inputs, outputs
    finally:
        for hook in hooks:
            hook.remove()


def _distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    ours, theirs = ours.double(), theirs.double()
    if ours.shape != theirs.shape:
        raise ValueError(f"shape {list(ours.shape)} instead of {list(theirs.shape)}")
    return float((ours - theirs).norm() / theirs.norm().clamp_min(1e-30))


def _unit(rows: torch.Tensor) -> torch.Tensor:
    """Rows of length one: positive factors change no rank."""
    import torch

    return torch.nn.functional.normalize(rows.double(), dim=-1)


def _ids(rows: int) -> torch.Tensor:
    import torch

    return torch.arange(3, 3 + rows).unsqueeze(1)


def _embeddings(opened: OpenedModel, model: Any) -> Iterator[float]:
    if opened._section.embed_norm is None:
        yield _distance(opened.embed([7, 3]), model.get_input_embeddings().weight[[7, 3]])
    yield _distance(opened.unembed(), model.get_output_embeddings().weight)


def _values(opened: OpenedModel, model: Any) -> Iterator[float]:
    """One token a row: a head passes its value on."""
    dims, layers = opened.dims, opened.layers_with_heads
    sources = {layer: opened.value_input_module(layer) for layer in layers}
    outputs = {layer: opened.o_proj_module(layer) for layer in layers}
    with _recorded(model, [*sources.values(), *outputs.values()]) as (entering, _):
        model(_ids(5))
    for layer in layers:
        heads, x, passed = opened.heads(layer), entering[sources[layer]], entering[outputs[layer]]
        for head in range(dims.n_heads):
            part = slice(head * dims.d_head, (head + 1) * dims.d_head)
            ours = x @ heads.W_V[dims.kv_head(head)]
            if heads.b_V is not None:
                ours = ours + heads.b_V[dims.kv_head(head)]
            yield _distance(_unit(ours).reshape(5, -1), _unit(passed[..., part]).reshape(5, -1))


def _outputs(opened: OpenedModel, model: Any) -> Iterator[float]:
    import torch

    dims = opened.dims
    for layer in opened.layers_with_heads:
        projection, heads = model.get_submodule(opened.o_proj_module(layer)), opened.heads(layer)
        nothing = torch.zeros(2, 1, dims.n_heads * dims.d_head)
        for head in range(dims.n_heads):
            alone = nothing.clone()
            part = slice(head * dims.d_head, (head + 1) * dims.d_head)
            alone[..., part] = torch.randn(2, 1, dims.d_head)
            written = projection(alone) - projection(nothing)
            yield _distance(alone[..., part] @ heads.W_O[head], written)


def _right_maps(opened: OpenedModel, model: Any) -> Iterator[float]:
    """The norm on the attention's output, found among the modules by what goes into it."""
    for layer in opened.layers_with_heads:
        block, output = opened.block_module(layer), opened.o_proj_module(layer)
        norms = [
            f"{block}.{name}"
            for name, module in model.get_submodule(block).named_modules()
            if "norm" in type(module).__name__.lower()
        ]
        with _recorded(model, [output, *norms]) as (entering, left):
            model(_ids(5))
        after = [path for path in norms if path in entering and _same(entering[path], left[output])]
        gain = opened.right_map(layer).post_gain
        if (gain is None) != (not after):
            said = "none" if gain is None else "one"
            raise HeadatlasError(
                f"layer {layer} has {len(after)} norms on the attention's output, the file says {said}"
            )
        if gain is not None:
            yield _distance(_unit(left[output] * gain), _unit(left[after[0]]))


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    import torch

    return a.shape == b.shape and torch.equal(a, b)


def _final_norm(opened: OpenedModel, model: Any) -> Iterator[float]:
    import torch

    rows = torch.randn(4, opened.dims.d_model)
    theirs = model.get_submodule(opened.final_norm_module())(rows)
    yield _distance(opened.final_norm(rows), theirs)
    right = opened.right_map(opened.layers_with_heads[0])
    centred = rows - rows.mean(-1, keepdim=True) if right.centre else rows
    gain = 1.0 if right.final_gain is None else right.final_gain
    bias = getattr(model.get_submodule(opened.final_norm_module()), "bias", None)
    yield _distance(_unit(centred * gain), _unit(theirs if bias is None else theirs - bias))


def _first_mlp(opened: OpenedModel, model: Any) -> Iterator[float]:
    """With the first attention silenced, its block's MLP sees norm(rows)."""
    import torch

    rows = torch.randn(3, 5, opened.dims.d_model)

    def replace(_: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if args:
            return (rows, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": rows}

    def silence(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(output)

    hooks = [
        *(model.get_submodule(at).register_forward_hook(silence) for at in opened.attention_modules(0)),
        model.get_submodule(opened.block_module(0)).register_forward_pre_hook(replace, with_kwargs=True),
    ]
    try:
        with _recorded(model, opened.mlp_modules(0)) as (_, left):
            model(_ids(3).expand(3, 5))
    finally:
        for hook in hooks:
            hook.remove()
    ours = opened.first_mlp(rows.reshape(15, -1))
    theirs = torch.stack([left[path].reshape(15, -1) for path in opened.mlp_modules(0)]).sum(dim=0)
    yield _distance(ours.reshape(15, -1), theirs)


_CHECKS: dict[str, Callable[[OpenedModel, Any], Iterator[float]]] = {
    "embedding and unembedding": _embeddings,
    "values of every head": _values,
    "outputs of every head": _outputs,
    "norms after attention": _right_maps,
    "final norm": _final_norm,
    "first MLP": _first_mlp,
}
