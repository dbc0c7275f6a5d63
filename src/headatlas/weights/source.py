"""Checkpoints and their named tensors, as the rest of headatlas sees them; and those of a model in memory.

Nothing above this folder knows whether the bytes are safetensors, GGUF or a module already in memory. What
models are wrapped in adds to the names of tensors; each way has one sentence that says how to get at the
model itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from headatlas.errors import HeadatlasError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class NoModulesError(HeadatlasError):
    """There are no modules that compute what the model does; its tensors can be read all the same."""


OFFLINE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Given to transformers in every call: nothing is fetched, and no code that comes with a model runs."""
Format = Literal["safetensors", "gguf", "module"]
Rows = slice | Sequence[int] | None
"""Rows of a tensor's first axis; all of it if None."""


def place_of(rows: Rows) -> EllipsisType | slice | list[int]:
    """The index that gives these rows of a tensor."""
    if rows is None:
        return ...
    return rows if isinstance(rows, slice) else list(rows)


def widened(stored: torch.Tensor) -> torch.Tensor:
    """A copy of floating-point numbers on the CPU, as float32; float64 stays float64."""
    import torch

    wanted = torch.float64 if stored.dtype == torch.float64 else torch.float32
    return stored.to("cpu", wanted, copy=True)


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor, known from the header alone."""

    name: str  # as stored
    shape: tuple[int, ...]
    """Logical shape, in the order Hugging Face stores it (for GGUF: already reversed to [out, in])."""
    dtype: str  # stored type, e.g. ``"BF16"`` or ``"Q4_1"``
    nbytes: int
    file: str  # the file that holds it (``"memory"`` for a loaded module)


T = TypeVar("T", bound=TensorInfo)


def joined(headers: Iterable[Mapping[str, T]], where: Path | str) -> dict[str, T]:
    """The tensors of all files of a checkpoint, each once; ``where`` is its place, for messages."""
    found: dict[str, T] = {}
    for header in headers:
        if twice := next((name for name in header if name in found), None):
            raise HeadatlasError(
                f"Tensor {twice!r} is in {found[twice].file} and again in {header[twice].file}; "
                "a checkpoint may hold it once, remove the file that does not belong."
            )
        found |= header
    if not found:
        raise HeadatlasError(f"{where} holds no tensors (a vocabulary only?); give a file with weights.")
    return found


class TensorSource(Protocol):
    """Named tensors of one checkpoint, read when asked for and never kept."""

    def infos(self) -> Mapping[str, TensorInfo]:
        """Every stored tensor by name; reads headers only."""

    def read(self, name: str, rows: Rows = None) -> torch.Tensor:
        """The tensor, or rows of its first axis, dequantised, as float32 (float64 stays float64), in its
        logical shape."""

    def stored(self, name: str) -> torch.Tensor:
        """The tensor, not to be written to; in the type it is stored in where that is plain and on disk."""
        return self.read(name)

    def fingerprint(self) -> str:
        """A hash that identifies the weights.

        * Files of up to 2 GiB together: ``sha256:`` and the SHA-256 of the file, as ``sha256sum`` prints it.
          For several files, of the lines ``<sha256>  <name>`` in the order of the shards.
        * Larger ones: ``sampled-sha256:`` over each file's name, size, first and last mebibyte, and evenly
          spaced mebibytes between them, 256 in all files together (at least two a file). It tells models
          apart; it does not prove that every byte is the same.
        * Files that are not on disk: ``remote-sha256:`` over names, sizes, what the store says identifies
          their content, headers, and a mebibyte of evenly spaced windows.
        * With an adapter merged in: ``adapted-sha256:`` over the base's own and the adapter's hash.
        * A loaded model: ``sampled-sha256:`` over names, types, shapes and some 4,096 evenly spaced values of
          every tensor.
        """

    def release(self) -> None:
        """Unmap files that no tensor holds; the next read maps them again."""
        return


class Traffic:
    """Bytes read of a checkpoint that is not on disk; several threads may add to them."""

    def __init__(self, total: int) -> None:
        self.total = total  # of all its weight files
        self.read = 0  # so far: headers and tensors, without config and tokenizer
        self._lock = Lock()

    def add(self, n_bytes: int) -> None:
        """Count bytes that were fetched."""
        with self._lock:
            self.read += n_bytes


@dataclass(frozen=True)
class MergedAdapter:
    """An adapter (LoRA) that is merged into a checkpoint's weights when they are read."""

    name: str  # name of its folder
    folder: str  # what the user typed
    base: str | None  # the model that it names as its base, if it does
    hash: str  # ``sha256:`` and the SHA-256 of the lines ``<sha256>  <name>`` of its config and its weights
    tensors: frozenset[str]  # names of the stored tensors that it changes


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: where its bytes are, its config, and how to get tokenizer and modules."""

    spec: str  # what the user typed
    name: str  # short name for people, e.g. ``"SmolLM2-135M-Instruct"``
    format: Format  # ``"safetensors"``, ``"gguf"`` or ``"module"``
    path: Path | None
    """The folder or file the weights are in; None for a loaded module. Where the weights are not on disk, the
    folder that config and tokenizer were fetched to."""
    revision: str | None  # commit of a Hub model; version of a Python package; None otherwise
    architecture: str
    """First of ``architectures`` in config.json (e.g. ``"LlamaForCausalLM"``), or GGUF's
    ``general.architecture`` (e.g. ``"llama"``)."""
    config: Mapping[str, Any]
    """config.json as a dict; for GGUF the scalar metadata of the header, keys as stored."""
    source: TensorSource
    loaded: PreTrainedModel | None = None  # the module itself when the user passed one
    loaded_tokenizer: PreTrainedTokenizerBase | None = None
    notes: tuple[str, ...] = ()  # things to tell the user, e.g. licence terms that apply
    traffic: Traffic | None = None
    """For weights that are not on disk and fetched tensor by tensor: how much was. Else None."""
    adapter: MergedAdapter | None = None  # the adapter that is merged into the weights, if one is

    @property
    def folder(self) -> Path:
        """The folder of config and tokenizer, of a model that is not in memory."""
        if self.path is None:
            raise TypeError("a loaded model has no folder")
        return self.path if self.path.is_dir() else self.path.parent

    def release(self) -> None:
        """Unmap files that were read: pages of them are no memory of this process then."""
        self.source.release()


# In memory -------------------------------------------------------------------------------------------

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
        return widened(self.floating(name)[place_of(rows)])

    def fingerprint(self) -> str:
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
