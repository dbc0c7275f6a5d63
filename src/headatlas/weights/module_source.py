"""Tensors of a model that is already in memory, and refusals of what models are wrapped in.

Wrappers add to the names of tensors. Each way has one sentence that says how to get at the model itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from headatlas.errors import HeadatlasError
from headatlas.weights.source import Checkpoint, TensorInfo

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


_COMPILED = "_orig_mod."


def unwrapped(model: object) -> Any:
    """The model inside what ``torch.compile`` and data parallelism put around it; anything else as it is."""
    from torch import nn

    while isinstance(model, nn.Module):
        around = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
        inner = model._modules.get("module" if around else "_orig_mod")
        if inner is None:
            break
        model = inner
    return model


def stock_class(model: PreTrainedModel) -> type[PreTrainedModel]:
    """The class of transformers that a model is of: a subclass of the user's own still has its tensors."""
    return next(
        (each for each in type(model).__mro__ if each.__module__.startswith("transformers.models.")),
        type(model),
    )


class ModuleSource:
    """Reads tensors out of a loaded module by their ``state_dict`` names; tied names are all there.

    Modules within it that ``torch.compile`` has wrapped keep the names they had before.

    Nothing is copied until it is read, and what is read is a copy on the CPU.

    Attributes:
        module: The model, which is only looked at.
    """

    def __init__(self, module: PreTrainedModel) -> None:
        self.module = module
        self._infos = {
            name: TensorInfo(
                name,
                tuple(tensor.shape),
                str(tensor.dtype).removeprefix("torch."),
                tensor.numel() * tensor.element_size(),
                "memory",
            )
            for name, tensor in self.tensors().items()
        }

    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor of the module's ``state_dict`` by name."""
        return self._infos

    def tensors(self) -> dict[str, torch.Tensor]:
        """The parameters and stored buffers themselves, by name; tied ones are one object."""
        stored: dict[str, torch.Tensor] = self.module.state_dict(keep_vars=True)
        return {name.replace(_COMPILED, ""): tensor for name, tensor in stored.items()}

    def floating(self, name: str) -> torch.Tensor:
        """The tensor itself, of whatever floating type it is.

        Raises:
            HeadatlasError: It is not there, has no data, or is of a type that is not read.
        """
        import torch

        # The module is asked anew: `.to(device)` replaces storage between two reads.
        stored = self.tensors().get(name)
        kind = type(self.module).__name__
        if stored is None:
            raise HeadatlasError(f"The loaded {kind} holds no tensor {name!r}.")
        if stored.is_meta:
            raise HeadatlasError(
                f"Tensor {name!r} of the loaded {kind} has no data (it is on the meta device or offloaded); "
                "load the model fully into memory."
            )
        if stored.dtype not in {torch.float16, torch.bfloat16, torch.float32, torch.float64}:
            raise HeadatlasError(
                f"Tensor {name!r} of the loaded {kind} is {stored.dtype}, which headatlas does not read; "
                "load the model without quantisation."
            )
        return stored.detach()

    def read(self, name: str, rows: slice | Sequence[int] | None = None) -> torch.Tensor:
        """See :meth:`headatlas.weights.source.TensorSource.read`."""
        import torch

        stored = self.floating(name)
        if rows is not None:
            stored = stored[rows if isinstance(rows, slice) else list(rows)]
        wanted = torch.float64 if stored.dtype == torch.float64 else torch.float32
        return stored.to("cpu", wanted, copy=True)


_PARALLEL = "module."
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
    """The advice where an object is no model of transformers."""
    if {"PeftModel", "BaseTuner"} & {cls.__name__ for cls in type(model).__mro__}:
        return _MERGED
    return "a path, a name or a PreTrainedModel"


def _all_begin(names: Collection[str], start: str) -> bool:
    return bool(names) and all(name.startswith(start) for name in names)


def _saved(checkpoint: Checkpoint) -> str:
    """The end of the advice where the model is in a file."""
    return "" if checkpoint.loaded is not None else ", saved with its save_pretrained(FOLDER)"
