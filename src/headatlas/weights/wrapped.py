"""Models inside something else: an adapter that is not merged, a compiler, parallel training.

Wrappers add to the names of tensors. Each way has one sentence that says how to get at the model itself.
"""

from __future__ import annotations

from collections.abc import Collection

from headatlas.errors import HeadatlasError
from headatlas.weights.source import Checkpoint

_COMPILED, _PARALLEL = "_orig_mod.", "module."
_ADAPTERS = (".lora_", ".base_layer.", ".modules_to_save.", ".ia3_", "base_model.model.")
_MERGED = "what PEFT's merge_and_unload() makes of a copy (copy.deepcopy) of it"


def refuse_wrapped(checkpoint: Checkpoint) -> None:
    """Make sure that the names of tensors are those of the model, not of what it was wrapped in.

    Raises:
        HeadatlasError: They are not.
    """
    if checkpoint.format == "gguf":
        return
    names = checkpoint.source.infos()
    if adapted := next((name for name in names if any(part in name for part in _ADAPTERS)), None):
        raise HeadatlasError(
            f"{checkpoint.spec} holds {adapted!r}: an adapter is in the model and not merged into its "
            f"weights; give {_MERGED}{_saved(checkpoint)}."
        )
    if compiled := next((name for name in names if _COMPILED in name), None):
        raise HeadatlasError(
            f"{checkpoint.spec} holds {compiled!r}: a compiled part was put into the model; "
            f"give the model as it was before torch.compile (model._orig_mod){_saved(checkpoint)}."
        )
    if _all_begin(names, _PARALLEL):
        raise HeadatlasError(
            f"{checkpoint.spec}: all names begin with {_PARALLEL!r}, which parallel training puts before "
            f"them; give the model inside (model.module){_saved(checkpoint)}."
        )


def instead_of(model: object) -> str:
    """What to give instead of an object that is no model of transformers."""
    if {"PeftModel", "BaseTuner"} & {cls.__name__ for cls in type(model).__mro__}:
        return _MERGED
    return "a path, a name or a PreTrainedModel"


def _all_begin(names: Collection[str], start: str) -> bool:
    return bool(names) and all(name.startswith(start) for name in names)


def _saved(checkpoint: Checkpoint) -> str:
    """How to repair a file."""
    return "" if checkpoint.loaded is not None else ", saved with its save_pretrained(FOLDER)"
