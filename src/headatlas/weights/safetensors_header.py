"""The header of a safetensors file, read and checked against the size of the file.

Format: 8 bytes little-endian header length, the header as JSON, then the tensors without gaps
(https://github.com/huggingface/safetensors, section "Format").
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from headatlas.errors import HeadatlasError
from headatlas.weights.jsonfile import refuse_pointer
from headatlas.weights.source import TensorInfo

MAX_HEADER_BYTES = 100_000_000  # the limit of the format's reference implementation
MAX_DIMS = 64

BITS = {
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}


@dataclass(frozen=True)
class PlacedTensor:
    """A tensor and where its bytes are.

    Attributes:
        info: The tensor.
        start: Position of its first byte in the file; ``info.nbytes`` follow.
    """

    info: TensorInfo
    start: int


def read_safetensors_header(path: Path) -> dict[str, TensorInfo]:
    """Every tensor of one safetensors file, in the order of the header.

    Raises:
        HeadatlasError: The file cannot be read, is truncated, or its header contradicts itself.
    """
    try:
        with path.open("rb") as stream:
            size = path.stat().st_size
            header = stream.read(header_length(path, stream.read(8), size))
    except OSError as error:
        raise HeadatlasError(f"{path} cannot be read: {error.strerror or error}.") from error
    return {name: placed.info for name, placed in placed_tensors(path, header, size).items()}


def header_length(path: Path | str, first: bytes, size: int) -> int:
    """Bytes of the JSON header, from the first 8 bytes of a file of ``size`` bytes.

    Args:
        path: The file, for messages.
        first: Its first bytes.
        size: Its size.

    Raises:
        HeadatlasError: The file is truncated or not safetensors.
    """
    if len(first) < 8:
        raise HeadatlasError(
            f"{path} is truncated: a safetensors file has at least 8 bytes, found {size}; fetch it again."
        )
    length = int.from_bytes(first, "little")
    refuse_pointer(path, first)
    if length > MAX_HEADER_BYTES:
        raise HeadatlasError(
            f"{path} is not a safetensors file: its header would be {length:,} bytes "
            f"(at most {MAX_HEADER_BYTES:,} are allowed; it starts with {first!r}); fetch it again."
        )
    if 8 + length > size:
        raise HeadatlasError(
            f"{path} is truncated: its header alone needs {8 + length:,} bytes, found {size:,}; "
            "fetch it again."
        )
    return length


def placed_tensors(path: Path | str, header: bytes, size: int) -> dict[str, PlacedTensor]:
    """Every tensor that a JSON header describes, in its order.

    Args:
        path: The file, for messages and :attr:`TensorInfo.file`.
        header: The header without its length.
        size: Size of the file.

    Raises:
        HeadatlasError: The header contradicts itself or the size of the file.
    """
    data_start = 8 + len(header)
    placed: dict[str, PlacedTensor] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in _parse(path, header).items():
        if name == "__metadata__":
            continue
        info, span = _tensor(path, name, entry)
        placed[name] = PlacedTensor(info, data_start + span[0])
        spans.append((*span, name))
    _check_layout(path, spans, data_start, size)
    return placed


def _parse(path: Path | str, header: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise HeadatlasError(f"{path}: its header names {twice!r} twice; fetch it again.")
        return found

    try:
        value = json.loads(header.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise HeadatlasError(
            f"{path} is not a safetensors file: its header is not JSON ({error}); fetch it again."
        ) from error
    if not isinstance(value, dict):
        raise HeadatlasError(
            f"{path} is not a safetensors file: its header is a JSON {type(value).__name__}, not an object."
        )
    return value


def _is_size_list(value: object) -> TypeGuard[list[int]]:
    if not isinstance(value, list) or len(value) > MAX_DIMS:
        return False
    return all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 63 for item in value)


def _tensor(path: Path | str, name: str, entry: object) -> tuple[TensorInfo, tuple[int, int]]:
    if not isinstance(entry, dict):
        raise HeadatlasError(f"{path}: the header entry of {name!r} is not an object; fetch it again.")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if (
        not isinstance(dtype, str)
        or not _is_size_list(shape)
        or not _is_size_list(offsets)
        or len(offsets) != 2
    ):
        raise HeadatlasError(
            f"{path}: the header entry of {name!r} lacks a valid dtype, shape or "
            "data_offsets; fetch it again."
        )
    start, end = offsets
    if end < start:
        raise HeadatlasError(f"{path}: tensor {name!r} ends before it starts; fetch it again.")
    if dtype in BITS:
        bits = math.prod(shape) * BITS[dtype]
        if bits != 8 * (end - start):
            raise HeadatlasError(
                f"{path}: tensor {name!r} of shape {tuple(shape)} and type {dtype} needs {bits // 8:,} "
                f"bytes, its header gives it {end - start:,}; fetch it again."
            )
    return TensorInfo(name, tuple(shape), dtype, end - start, str(path)), (start, end)


def _check_layout(path: Path | str, spans: list[tuple[int, int, str]], data_start: int, size: int) -> None:
    position = 0
    for start, end, name in sorted(spans):
        if start != position:
            raise HeadatlasError(
                f"{path}: tensor {name!r} starts at byte {start:,} of the data where {position:,} is "
                "expected; fetch it again."
            )
        position = end
    if data_start + position != size:
        problem = "is truncated" if data_start + position > size else "has bytes after its last tensor"
        raise HeadatlasError(
            f"{path} {problem}: its header describes {data_start + position:,} bytes, found {size:,}; "
            "fetch it again."
        )
