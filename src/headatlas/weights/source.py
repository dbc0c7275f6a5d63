"""Checkpoints and their named tensors, as the rest of headatlas sees them.

Nothing above this folder knows whether the bytes are safetensors, GGUF or a module already in memory.
"""

from __future__ import annotations

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
        ...

    def read(self, name: str, rows: Rows = None) -> torch.Tensor:
        """The tensor, or rows of its first axis, dequantised, as float32 (float64 stays float64), in its
        logical shape."""
        ...

    def fingerprint(self) -> str:
        """See :func:`fingerprint`."""
        ...

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


def fingerprint(checkpoint: Checkpoint) -> str:
    """A hash that identifies the weights of a checkpoint.

    * Files of up to 2 GiB together: ``sha256:`` and the SHA-256 of the file, as ``sha256sum`` prints it. For
      several files, of the lines ``<sha256>  <name>`` in the order of the shards.
    * Larger ones: ``sampled-sha256:`` over each file's name, size, first and last mebibyte, and evenly spaced
      mebibytes between them, 256 in all files together (at least two a file). It tells models apart; it does
      not prove that every byte is the same.
    * Files that are not on disk: ``remote-sha256:`` over names, sizes, what the store says identifies their
      content, headers, and a mebibyte of evenly spaced windows.
    * With an adapter merged in: ``adapted-sha256:`` over the base's own and the adapter's hash.
    * A loaded model: ``sampled-sha256:`` over names, types, shapes and some 4,096 evenly spaced values of
      every tensor.
    """
    return checkpoint.source.fingerprint()
