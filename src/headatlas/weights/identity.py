"""Hashes that say which weights and which tokenizer an atlas was made from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from headatlas.errors import HeadatlasError
from headatlas.weights.adapter import AdaptedSource
from headatlas.weights.gguf_source import GgufSource
from headatlas.weights.local_files import sha256_of_file
from headatlas.weights.module_source import ModuleSource
from headatlas.weights.remote_safetensors import RemoteSafetensorsSource
from headatlas.weights.safetensors_source import SafetensorsSource
from headatlas.weights.source import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FULL_LIMIT = 2 << 30
SAMPLED_WINDOWS = 256
_WINDOW = 1 << 20
_SAMPLED_VALUES = 4096


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

    Raises:
        HeadatlasError: A file cannot be read.
    """
    source = checkpoint.source
    if checkpoint.adapter is not None and isinstance(source, AdaptedSource):
        base = fingerprint(replace(checkpoint, source=source.base, adapter=None))
        body = f"{base}\n{checkpoint.adapter.hash}\n"
        return f"adapted-sha256:{hashlib.sha256(body.encode()).hexdigest()}"
    if isinstance(source, ModuleSource):
        return f"sampled-sha256:{_of_module(source)}"
    if isinstance(source, RemoteSafetensorsSource):
        return source.fingerprint()
    if not isinstance(source, SafetensorsSource | GgufSource):
        raise TypeError(f"no fingerprint is defined for a {type(source).__name__}")
    try:
        if sum(file.stat().st_size for file in source.files) > FULL_LIMIT:
            return f"sampled-sha256:{_sampled(source.files)}"
        if len(source.files) == 1:
            return f"sha256:{sha256_of_file(source.files[0])}"
        lines = "".join(f"{sha256_of_file(file)}  {file.name}\n" for file in source.files)
    except OSError as error:
        raise HeadatlasError(f"{checkpoint.path} cannot be read: {error.strerror or error}.") from error
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """``sha256:`` over the sorted vocabulary (token, id) and the ids of the special tokens."""
    body = [sorted(tokenizer.get_vocab().items()), sorted(set(tokenizer.all_special_ids))]
    return f"sha256:{hashlib.sha256(json.dumps(body).encode()).hexdigest()}"


def _sampled(files: tuple[Path, ...]) -> str:
    windows = max(2, SAMPLED_WINDOWS // len(files))
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        last = max(0, size - _WINDOW)
        with file.open("rb") as stream:
            for place in range(windows):
                stream.seek(last * place // (windows - 1))
                digest.update(stream.read(_WINDOW))
    return digest.hexdigest()


def _of_module(source: ModuleSource) -> str:
    import torch

    digest = hashlib.sha256()
    for name, tensor in source.tensors().items():
        if tensor.is_meta:
            raise HeadatlasError(
                f"Tensor {name!r} of the loaded model has no data; load it fully into memory."
            )
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        flat = tensor.detach().reshape(-1)
        step = max(1, flat.numel() // _SAMPLED_VALUES)
        digest.update(flat[::step].to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()
