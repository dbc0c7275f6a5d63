"""Tensors of a model that is already in memory, and refusals of what models are wrapped in.

Wrappers add to the names of tensors. Each way has one sentence that says how to get at the model itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from headatlas.errors import HeadatlasError
from headatlas.weights.source import Checkpoint, Rows, TensorInfo, TensorSource, place_of, widened

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


_COMPILED = "_orig_mod."
_SAMPLED_VALUES = 4096


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


class ModuleSource(TensorSource):
    """Reads tensors out of a loaded module by their ``state_dict`` names; tied names are all there.

    Modules within it that ``torch.compile`` has wrapped keep the names they had before. Nothing is copied
    until it is read, and what is read is a copy on the CPU.
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
        """The tensor itself, of whatever floating type it is."""
        import torch

        # The module is asked anew: `.to(device)` replaces storage between two reads.
        stored = self.tensors().get(name)
        kind = type(self.module).__name__
        if stored is None:
            raise HeadatlasError(f"The loaded {kind} holds no tensor {name!r}.")
        if stored.is_meta:
            raise self._without_data(name)
        if stored.dtype not in {torch.float16, torch.bfloat16, torch.float32, torch.float64}:
            raise HeadatlasError(
                f"Tensor {name!r} of the loaded {kind} is {stored.dtype}, which headatlas does not read; "
                "load the model without quantisation."
            )
        return stored.detach()

    def read(self, name: str, rows: Rows = None) -> torch.Tensor:
        """See :meth:`headatlas.weights.source.TensorSource.read`."""
        return widened(self.floating(name)[place_of(rows)])

    def fingerprint(self) -> str:
        """See :func:`headatlas.weights.source.fingerprint`."""
        import torch

        digest = hashlib.sha256()
        for name, tensor in self.tensors().items():
            if tensor.is_meta:
                raise self._without_data(name)
            digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            flat = tensor.detach().reshape(-1)
            step = max(1, flat.numel() // _SAMPLED_VALUES)
            digest.update(flat[::step].to("cpu", torch.float64).numpy().tobytes())
        return f"sampled-sha256:{digest.hexdigest()}"

    def _without_data(self, name: str) -> HeadatlasError:
        return HeadatlasError(
            f"Tensor {name!r} of the loaded {type(self.module).__name__} has no data (it is on the meta "
            "device or offloaded); load the model fully into memory."
        )


_PARALLEL = "module."
_ADAPTERS = (".lora_", ".base_layer.", ".modules_to_save.", ".ia3_", "base_model.model.")
_MERGED = "what PEFT's merge_and_unload() makes of a copy (copy.deepcopy) of it"


def refuse_wrapped(checkpoint: Checkpoint) -> None:
    """Refuse names of tensors that are not those of the model but of what it was wrapped in."""
    if checkpoint.format == "gguf":
        return
    names = checkpoint.source.infos()
    if adapted := next((name for name in names if any(part in name for part in _ADAPTERS)), None):
        problem = f" holds {adapted!r}: an adapter is in the model and not merged into its weights"
        wanted = _MERGED
    elif compiled := next((name for name in names if _COMPILED in name), None):
        problem = f" holds {compiled!r}: a compiled part was put into the model"
        wanted = "the model as it was before torch.compile (model._orig_mod)"
    elif names and all(name.startswith(_PARALLEL) for name in names):
        problem = f": all names begin with {_PARALLEL!r}, which parallel training puts before them"
        wanted = "the model inside (model.module)"
    else:
        return
    saved = "" if checkpoint.loaded is not None else ", saved with its save_pretrained(FOLDER)"
    raise HeadatlasError(f"{checkpoint.spec}{problem}; give {wanted}{saved}.")


def instead_of(model: object) -> str:
    """The advice where an object is no model of transformers."""
    if {"PeftModel", "BaseTuner"} & {cls.__name__ for cls in type(model).__mro__}:
        return _MERGED
    return "a path, a name or a PreTrainedModel"
