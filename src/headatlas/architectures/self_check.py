"""A look at a real model when it is opened: does its first block compute what the family file says?

The tests hold every family against tiny random models. This check holds the checkpoint at hand against the
Hugging Face modules of its own first block: random rows go in, and what every head passes on, and what one
head writes, must have the direction that the heads read from the checkpoint give. (A positive factor per row
and head is left open: it changes no rank, and an attention sink or a latent's norm makes one.) Besides, the
unembedding must be the tensor that transformers would use.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from headatlas.architectures.oracle import output_of_head, recorded, values_of_layer
from headatlas.errors import HeadatlasError
from headatlas.weights.loading import TooLargeError, first_block, load_modules

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from headatlas.architectures.model import Model

VARIABLE = "HEADATLAS_SELF_CHECK"
PASSED = "layer 0: "
"""First words of what is said where a check was made and found nothing."""
MOST_BYTES = 512 << 20
"""Stored bytes of a first block's attention that are read for it, at most."""
_ROWS = 4


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
    if modules is None:
        return "not run (the weights are not on disk)"
    _check_unembedding(model, modules)
    states = _states(model, modules)
    if isinstance(states, str):
        return f"not run ({states})"
    x, passed = states
    dims, tolerance = model.dims, 1e-3 if modules.dtype.itemsize >= 4 else 5e-2
    if passed.shape[-1] != dims.n_heads * dims.d_head:
        raise _disagreement(
            model, f"{dims.n_heads} heads of {dims.d_head}", f"{passed.shape[-1]} numbers in all"
        )
    for compared in values_of_layer(heads, dims, 0, x, passed):
        if compared.distance > tolerance:
            raise _disagreement(model, f"the {compared.part}", "others")
    head, projection = dims.n_heads // 2, modules.get_submodule(model.o_proj_module(0))
    if output_of_head(heads, dims, 0, head, passed, projection).directions.distance > tolerance:
        raise _disagreement(model, f"the output of head 0.{head}", "another")
    return (
        f"{PASSED}values of all {dims.n_heads} heads and output of head {head} as "
        f"{type(modules).__name__} of transformers computes them"
    )


def _modules(model: Model) -> PreTrainedModel | None:
    """The modules to compare with; None if the weights are not on disk."""
    checkpoint = model.checkpoint
    if checkpoint.loaded is not None:
        return load_modules(checkpoint, checkpoint.loaded.dtype)  # in its own type nothing is copied
    if checkpoint.traffic is not None:
        return None
    return first_block(
        checkpoint,
        body=model.body_module(),
        without=model.mlp_modules(0),
        stored_name=model.stored_name,
        most_bytes=MOST_BYTES,
    )


def _states(model: Model, modules: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor] | str:
    """For random rows the source states and what enters the output projection [rows, 1, …], or why not."""
    import torch

    rows = torch.randn(_ROWS, 1, model.dims.d_model, generator=torch.Generator().manual_seed(0))
    source, output = model.value_input_module(0), model.o_proj_module(0)
    like = next(modules.get_submodule(output).parameters())
    body: Any = modules.get_submodule(model.body_module())
    try:
        with recorded(modules, [source, output], stop_at=output) as (entering, _):
            # One token a row: a head attends to the token itself, so what it passes on is its value.
            body(inputs_embeds=rows.to(like), use_cache=False)
    except (TypeError, ValueError, RuntimeError) as error:
        return f"{type(modules).__name__} does not run on embeddings alone: {str(error).splitlines()[0]}"
    if output not in entering:
        return f"{type(modules).__name__} does not come to the first output projection"
    return entering[source].reshape(_ROWS, 1, -1), entering[output].reshape(_ROWS, 1, -1)


def _check_unembedding(model: Model, modules: PreTrainedModel) -> None:
    """A stored unembedding is used; without one it is the embedding, if the modules tie the two."""
    untyped: Any = modules
    output, embedding = untyped.get_output_embeddings(), untyped.get_input_embeddings()
    if output is None or model.stores_unembedding:
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
