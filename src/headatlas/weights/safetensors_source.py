"""Tensors of a safetensors checkpoint: one file, or shards with an index.

Headers are checked against the size of the file. Format: 8 bytes little-endian header length, the header as
JSON, then the tensors without gaps (https://github.com/huggingface/safetensors, section "Format").
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from headatlas.errors import HeadatlasError
from headatlas.weights.local_files import read_json_object, refuse_pointer
from headatlas.weights.quantized import PLAIN, Quantized, quantized_tensors, speaks_of_quantisation
from headatlas.weights.source import TensorInfo

if TYPE_CHECKING:
    import torch


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


INDEX_NAME = "model.safetensors.index.json"


class StoredTensors:
    """Tensors of safetensors files, wherever these are; quantised ones can be shown as what they stand for.

    Attributes:
        quantised: Whether some tensors are stored as values and scales, or the config speaks of it.
    """

    def __init__(self, infos: dict[str, TensorInfo], where: str) -> None:
        """Hold the tensors of all files; ``where`` is their folder, for messages."""
        self._stored_infos, self._infos, self._where = infos, infos, where
        self._quantized: dict[str, Quantized] = {}
        self.quantised = False

    def dequantise(self, config: Mapping[str, Any]) -> None:
        """From now on show quantised weights (FP8, MXFP4) as the plain tensors they stand for.

        Args:
            config: The model's config.json.

        Raises:
            HeadatlasError: The weights are quantised in a way that is not read.
        """
        self._infos, self._quantized = quantized_tensors(self._stored_infos, config, self._where)
        self.quantised = bool(self._quantized) or speaks_of_quantisation(config)

    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name."""
        return self._infos

    def read(self, name: str, rows: slice | Sequence[int] | None = None) -> torch.Tensor:
        """See :meth:`headatlas.weights.source.TensorSource.read`; integer tensors are refused.

        Raises:
            HeadatlasError: There is no such tensor, its type is not read, or its bytes cannot be had.
        """
        import torch

        if name in self._quantized:
            return self._quantized[name].read(self._stored, rows)
        readable(self._infos, name, self._where)
        stored = self._stored(name, rows)
        wanted = torch.float64 if stored.dtype == torch.float64 else torch.float32
        return stored.to(wanted, copy=True)

    def _stored(self, name: str, rows: slice | Sequence[int] | None = None) -> torch.Tensor:
        """A stored tensor, or rows of it, in the type it is stored in."""
        raise NotImplementedError


class SafetensorsSource(StoredTensors):
    """Reads tensors out of one or several safetensors files; opening reads headers only.

    Attributes:
        files: The files, in order.
        index: The index file of a sharded checkpoint, else None.
    """

    def __init__(self, files: Sequence[Path], index: Path | None = None) -> None:
        """Read and check the header of every file.

        Args:
            files: The safetensors files of the checkpoint.
            index: The index that named them, if there is one.

        Raises:
            HeadatlasError: A file is missing, truncated or contradicts itself, or two hold the same tensor.
        """
        self.files = tuple(files)
        self.index = index
        self._handles: dict[str, Any] = {}
        headers = {str(file): read_safetensors_header(file) for file in self.files}
        super().__init__(infos_of_files(headers), str(self.files[0].parent))

    @classmethod
    def from_index(cls, index: Path) -> SafetensorsSource:
        """Open the shards that an index names.

        Raises:
            HeadatlasError: The index is malformed, names a file outside its folder, a missing shard, or a
                tensor that its shard does not hold.
        """
        weight_map = read_weight_map(index)
        shards = sorted(set(weight_map.values()))
        for shard in shards:
            if not (index.parent / shard).is_file():
                raise HeadatlasError(
                    f"{index} names the shard {shard}, which is not there; fetch the missing file."
                )
        source = cls([index.parent / shard for shard in shards], index)
        check_weight_map(index, weight_map, source._infos)
        return source

    def stored(self, name: str) -> torch.Tensor:
        """A tensor in the dtype it is stored in, as a view of the mapped file; not to be written to.

        Its pages are read when they are used, and the system may take them back meanwhile. What is
        stored quantised is dequantised.

        Raises:
            HeadatlasError: It is not there, of a type that is not read, or cannot be read.
        """
        if name in self._quantized:
            return self._quantized[name].read(self._stored, None)
        readable(self._infos, name, self._where)
        return self._stored(name)

    def _stored(self, name: str, rows: slice | Sequence[int] | None = None) -> torch.Tensor:
        import torch
        from safetensors import SafetensorError

        info = self._stored_infos[name]
        try:
            # A view of the memory-mapped file: only the pages of the rows asked for are read.
            stored: torch.Tensor = self._handle(info.file).get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise HeadatlasError(f"{info.file}: tensor {name!r} cannot be read ({error}).") from error
        if rows is None:
            return stored
        if isinstance(rows, slice):
            return stored[rows]
        if stored.element_size() == 1:  # torch does not index every type of one byte
            return stored.view(torch.uint8)[list(rows)].view(stored.dtype)
        return stored[list(rows)]

    def release(self) -> None:
        """Unmap the files until the next read: what no view holds is no memory of this process then."""
        self._handles.clear()

    def _handle(self, file: str) -> Any:
        from safetensors import safe_open

        if file not in self._handles:
            self._handles[file] = safe_open(file, framework="pt")
        return self._handles[file]


def infos_of_files(headers: Mapping[str, Mapping[str, TensorInfo]]) -> dict[str, TensorInfo]:
    """The tensors of several files, given by file.

    Raises:
        HeadatlasError: Two files hold the same tensor, or none holds any.
    """
    infos: dict[str, TensorInfo] = {}
    for file, header in headers.items():
        for name, info in header.items():
            if name in infos:
                raise HeadatlasError(
                    f"Tensor {name!r} is in {infos[name].file} and again in {file}; "
                    "a checkpoint may hold it once, remove the file that does not belong."
                )
            infos[name] = info
    if not infos:
        raise HeadatlasError(f"{', '.join(headers)} holds no tensors; fetch it again.")
    return infos


def readable(infos: Mapping[str, TensorInfo], name: str, where: str) -> TensorInfo:
    """A tensor by name, if it is there and of a type that is read.

    Raises:
        HeadatlasError: It is not.
    """
    info = infos.get(name)
    if info is None:
        raise HeadatlasError(f"{where} holds no tensor {name!r}.")
    if info.dtype not in PLAIN:
        raise HeadatlasError(
            f"{info.file}: tensor {name!r} is stored as {info.dtype}, which headatlas does not read; "
            "use a checkpoint in BF16, F16, F32 or F64."
        )
    return info


def check_weight_map(
    index: Path | str, weight_map: Mapping[str, str], infos: Mapping[str, TensorInfo]
) -> None:
    """Make sure that the shards hold what their index says.

    Raises:
        HeadatlasError: A tensor is elsewhere or missing.
    """
    for name, shard in weight_map.items():
        info = infos.get(name)
        if info is None or Path(info.file).name != shard:
            raise HeadatlasError(
                f"{index} says that {shard} holds {name!r}, which it does not; "
                "fetch the index and the shard again."
            )


def read_weight_map(index: Path) -> dict[str, str]:
    """Tensor name → shard name of an index.

    Raises:
        HeadatlasError: The index is malformed or names anything but .safetensors files of its own folder.
    """
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise HeadatlasError(f"{index} has no weight_map; fetch it again.")
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            raise HeadatlasError(f"{index}: the shard of {name!r} is not a file name; fetch it again.")
        plain = shard not in {"", ".", ".."} and not set(shard) & {"/", "\\", ":", "\0"}
        if not plain or not shard.endswith(".safetensors"):
            raise HeadatlasError(
                f"{index}: {shard!r} is not the name of a .safetensors file in the same folder; "
                "such an index is not followed."
            )
    return weight_map
