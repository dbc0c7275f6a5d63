"""A look at a real model when it is opened: does its first block compute what the family file says?

The oracles of the tests hold every family against tiny random models. This check holds the checkpoint at hand
against the Hugging Face modules of its own first block: random rows go in, and what every head passes on, and
what one head writes, must have the direction that the heads read from the checkpoint give. (A positive
factor per row and head is left open: it changes no rank, and an attention sink or a latent's norm makes one.)
Besides, the unembedding must be the tensor that transformers would use.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from headatlas.errors import HeadatlasError
from headatlas.weights.loading import TooLargeError, first_block, load_modules

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from headatlas.architectures.model import Model
    from headatlas.architectures.types import LayerHeads

VARIABLE = "HEADATLAS_SELF_CHECK"
MOST_BYTES = 512 << 20
"""Stored bytes of a first block's attention that are read for it, at most."""
_ROWS = 4


class _Reached(Exception):  # noqa: N818 (a signal, no error)
    """The output projection is about to run; the rest of the model is not needed."""


def self_check(model: Model) -> str:
    """Hold the first block of a model against its Hugging Face modules, where that is cheap.

    Returns:
        What was checked, or why nothing was, in words for the provenance.

    Raises:
        HeadatlasError: They disagree: the family file does not describe this checkpoint.
    """
    if os.environ.get(VARIABLE, "1").lower() in ("0", "no", "false", "off"):
        return f"not run ({VARIABLE} is set)"
    try:
        heads = model.heads(0)
        modules = _modules(model)
    except TooLargeError as error:
        return f"not run (it would read {error.args[0] / 1e9:.1f} GB)"
    except HeadatlasError as error:
        return f"not run ({str(error).rstrip('.')})"
    if isinstance(modules, str):
        return f"not run ({modules})"
    _check_unembedding(model, modules)
    recorded = _recorded(model, modules)
    if isinstance(recorded, str):
        return f"not run ({recorded})"
    x, passed = recorded
    tolerance = 1e-3 if modules.dtype.itemsize >= 4 else 5e-2
    _check_values(model, heads, x, passed, tolerance)
    _check_output(model, modules, heads, passed, tolerance)
    return (
        f"layer 0: values of all {model.dims.n_heads} heads and output of head {model.dims.n_heads // 2} as "
        f"{type(modules).__name__} of transformers computes them"
    )


def _modules(model: Model) -> PreTrainedModel | str:
    """The modules to compare with, or why there are none."""
    checkpoint = model.checkpoint
    if checkpoint.loaded is not None:
        placed = getattr(checkpoint.loaded, "hf_device_map", None)
        if placed:
            return "the loaded model is spread over devices"
        return load_modules(checkpoint, checkpoint.loaded.dtype)  # in its own type nothing is copied
    if checkpoint.traffic is not None:
        return "the weights are not on disk"
    return first_block(
        checkpoint,
        body=model.body_module(),
        without=model.mlp_modules(0),
        stored_name=model.stored_name,
        most_bytes=MOST_BYTES,
    )


def _recorded(model: Model, modules: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor] | str:
    """For random rows the source states [rows, d_model] and what enters the output projection, or why not."""
    import torch

    seen: dict[str, torch.Tensor] = {}

    def record(_: Any, args: Any, kwargs: Any) -> None:
        seen.setdefault("x", args[0] if args else kwargs["hidden_states"])

    def stop(_: Any, args: Any) -> None:
        seen["passed"] = args[0]
        raise _Reached

    rows = torch.randn(_ROWS, 1, model.dims.d_model, generator=torch.Generator().manual_seed(0))
    like = next(modules.get_submodule(model.o_proj_module(0)).parameters())
    body: Any = modules.get_submodule(model.body_module())
    hooks = [
        modules.get_submodule(model.value_input_module(0)).register_forward_pre_hook(
            record, with_kwargs=True
        ),
        modules.get_submodule(model.o_proj_module(0)).register_forward_pre_hook(stop),
    ]
    try:
        with torch.inference_mode():
            # One token a row: a head attends to the token itself, so what it passes on is its value.
            body(inputs_embeds=rows.to(like), use_cache=False)
    except _Reached:
        return seen["x"].reshape(_ROWS, -1).float().cpu(), seen["passed"].reshape(_ROWS, -1).float().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        return f"{type(modules).__name__} does not run on embeddings alone: {str(error).splitlines()[0]}"
    finally:
        for hook in hooks:
            hook.remove()
    return f"{type(modules).__name__} does not come to the first output projection"


def _check_values(
    model: Model, heads: LayerHeads, x: torch.Tensor, passed: torch.Tensor, tolerance: float
) -> None:
    dims = model.dims
    if passed.shape[1] != dims.n_heads * dims.d_head:
        raise _disagreement(
            model, f"{dims.n_heads} heads of {dims.d_head}", f"{passed.shape[1]} numbers in all"
        )
    for head in range(dims.n_heads):
        group = dims.kv_head(head)
        ours = x @ heads.W_V[group].float() + (0.0 if heads.b_V is None else heads.b_V[group].float())
        theirs = passed[:, head * dims.d_head : (head + 1) * dims.d_head]
        if _apart(ours, theirs) > tolerance:
            raise _disagreement(model, f"the values of head 0.{head}", "others")


def _check_output(
    model: Model, modules: PreTrainedModel, heads: LayerHeads, passed: torch.Tensor, tolerance: float
) -> None:
    import torch

    dims = model.dims
    head = dims.n_heads // 2
    part = slice(head * dims.d_head, (head + 1) * dims.d_head)
    alone = torch.zeros(_ROWS, 1, passed.shape[1])
    alone[:, 0, part] = passed[:, part]
    projection = modules.get_submodule(model.o_proj_module(0))
    like = next(projection.parameters())
    with torch.inference_mode():
        written, nothing = (
            projection(rows.to(like)).float().cpu().reshape(_ROWS, -1)
            for rows in (alone, torch.zeros_like(alone))
        )
    if _apart(passed[:, part] @ heads.W_O[head].float(), written - nothing) > tolerance:
        raise _disagreement(model, f"the output of head 0.{head}", "another")


def _apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest distance between two rows brought to length one."""
    import torch

    unit = torch.nn.functional.normalize
    return float((unit(ours.double(), dim=-1) - unit(theirs.double(), dim=-1)).norm(dim=-1).max())


def _check_unembedding(model: Model, modules: PreTrainedModel) -> None:
    """A stored unembedding is used; without one it is the embedding, if the modules tie the two."""
    untyped: Any = modules
    output, embedding = untyped.get_output_embeddings(), untyped.get_input_embeddings()
    if output is None or model._inventory.unembed_stem is not None:
        return
    tied = getattr(output, "weight", None) is embedding.weight or modules.all_tied_weights_keys
    if not tied:  # without memory of their own, tied parameters are two that are listed
        raise _disagreement(model, "an unembedding tied to the embedding", "one of its own")


def _disagreement(model: Model, ours: str, theirs: str) -> HeadatlasError:
    return HeadatlasError(
        f"{model.checkpoint.spec}: read as the family {model.family.name!r}, layer 0 would have "
        f"{ours}, where transformers has {theirs}; such a model is not mapped. "
        f"Please report it; {VARIABLE}=0 maps it all the same."
    )
