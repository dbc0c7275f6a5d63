"""Tensors of a safetensors checkpoint: one file, or shards with an index.

Headers are checked against the size of the file. Format: 8 bytes little-endian header length, the header as
JSON, then the tensors without gaps (https://github.com/huggingface/safetensors, section "Format").
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from headatlas.errors import HeadatlasError
from headatlas.weights.local_files import fingerprint_of_files, read_json_object, reading, refuse_pointer
from headatlas.weights.quantized import PLAIN, Quantized, quantized_tensors, speaks_of_quantisation
from headatlas.weights.source import Rows, TensorInfo, joined, place_of, widened

if TYPE_CHECKING:
    import torch


MAX_HEADER_BYTES = 100_000_000  # the limit of the format's reference implementation
MAX_DIMS = 64
_Size = Annotated[int, Field(ge=0, lt=1 << 63)]

BITS = {
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}


class _Entry(BaseModel):
    """A tensor as a header has it; offsets count from the end of the header."""

    dtype: str
    shape: list[_Size] = Field(max_length=MAX_DIMS)
    data_offsets: list[_Size] = Field(min_length=2, max_length=2)


@dataclass(frozen=True)
class PlacedTensor(TensorInfo):
    """A tensor and where its bytes are.

    Attributes:
        start: Position of its first byte in the file; ``nbytes`` follow.
    """

    start: int


def read_safetensors_header(path: Path) -> dict[str, PlacedTensor]:
    """Every tensor of one safetensors file, in the order of the header.

    Raises:
        HeadatlasError: The file cannot be read, is truncated, or its header contradicts itself.
    """
    with reading(path), path.open("rb") as stream:
        size = path.stat().st_size
        header = stream.read(header_length(path, stream.read(8), size))
    return placed_tensors(path, header, size)


def _broken(path: Path | str, problem: str) -> HeadatlasError:
    return HeadatlasError(f"{path}{problem}; fetch it again.")


def header_length(path: Path | str, first: bytes, size: int) -> int:
    """Bytes of the JSON header, from the first 8 bytes (or fewer) of a file of ``size`` bytes.

    Raises:
        HeadatlasError: The file is truncated or not safetensors.
    """
    if len(first) < 8:
        raise _broken(path, f" is truncated: a safetensors file has at least 8 bytes, found {size}")
    refuse_pointer(path, first)
    length = int.from_bytes(first, "little")
    if length > MAX_HEADER_BYTES:
        raise _broken(
            path,
            f" is not a safetensors file: its header would be {length:,} bytes (at most "
            f"{MAX_HEADER_BYTES:,} are allowed; it starts with {first!r})",
        )
    if 8 + length > size:
        raise _broken(path, f" is truncated: its header alone needs {8 + length:,} bytes, found {size:,}")
    return length


def placed_tensors(path: Path | str, header: bytes, size: int) -> dict[str, PlacedTensor]:
    """Every tensor that a JSON header describes, in its order, in a file of ``size`` bytes.

    Raises:
        HeadatlasError: The header contradicts itself or the size of the file.
    """
    entries = _parse(path, header)
    entries.pop("__metadata__", None)
    data_start = 8 + len(header)
    placed = [_placed(path, name, entry, data_start) for name, entry in entries.items()]
    position = data_start
    for each in sorted(placed, key=lambda each: (each.start, each.nbytes)):
        if each.start != position:
            raise _broken(
                path,
                f": tensor {each.name!r} starts at byte {each.start - data_start:,} of the data where "
                f"{position - data_start:,} is expected",
            )
        position += each.nbytes
    if position != size:
        problem = "is truncated" if position > size else "has bytes after its last tensor"
        raise _broken(path, f" {problem}: its header describes {position:,} bytes, found {size:,}")
    return {each.name: each for each in placed}


def _parse(path: Path | str, header: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise _broken(path, f": its header names {twice!r} twice")
        return found

    try:
        value = json.loads(header.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _broken(path, f" is not a safetensors file: its header is not JSON ({error})") from error
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise _broken(path, f" is not a safetensors file: its header is a JSON {kind}, not an object")
    return value


def _placed(path: Path | str, name: str, entry: object, data_start: int) -> PlacedTensor:
    try:
        told = _Entry.model_validate(entry, strict=True)
    except ValidationError as error:
        raise _broken(
            path, f": the header entry of {name!r} lacks a valid dtype, shape or data_offsets"
        ) from error
    start, end = told.data_offsets
    if end < start:
        raise _broken(path, f": tensor {name!r} ends before it starts")
    shape, bits = tuple(told.shape), math.prod(told.shape) * BITS.get(told.dtype, 0)
    if told.dtype in BITS and bits != 8 * (end - start):
        raise _broken(
            path,
            f": tensor {name!r} of shape {shape} and type {told.dtype} needs {bits // 8:,} bytes, its "
            f"header gives it {end - start:,}",
        )
    return PlacedTensor(name, shape, told.dtype, end - start, str(path), data_start + start)


INDEX_NAME = "model.safetensors.index.json"


class StoredTensors:
    """Tensors of safetensors files, wherever these are; quantised ones can be shown as what they stand for.

    Attributes:
        quantised: Whether some tensors are stored as values and scales, or the config speaks of it.
    """

    def __init__(
        self, headers: Iterable[Mapping[str, PlacedTensor]], where: str, weight_map: Mapping[str, str] | None
    ) -> None:
        """Join the headers of the files in the folder ``where``; an index says which file holds a tensor.

        Raises:
            HeadatlasError: Two files hold the same tensor, none holds any, or a tensor is not where the index
                says.
        """
        self._placed, self._where = joined(headers, where), where
        self._infos: Mapping[str, TensorInfo] = self._placed
        self._quantized: dict[str, Quantized] = {}
        for name, shard in (weight_map or {}).items():
            info = self._placed.get(name)
            if info is None or Path(info.file).name != shard:
                raise HeadatlasError(
                    f"The index in {where} says that {shard} holds {name!r}, which it does not; "
                    "fetch the index and the shard again."
                )
        self.quantised = False

    def dequantise(self, config: Mapping[str, Any]) -> None:
        """From now on show quantised weights (FP8, MXFP4) as the plain tensors they stand for.

        Raises:
            HeadatlasError: By config.json or tensors, the weights are quantised in a way that is not read.
        """
        self._infos, self._quantized = quantized_tensors(self._placed, config, self._where)
        self.quantised = bool(self._quantized) or speaks_of_quantisation(config)

    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name."""
        return self._infos

    def holds_scales_of(self, name: str) -> bool:
        """Whether a tensor is stored as values and scales."""
        return name in self._quantized

    def read(self, name: str, rows: Rows = None) -> torch.Tensor:
        """See :meth:`headatlas.weights.source.TensorSource.read`; integer tensors are refused.

        Raises:
            HeadatlasError: There is no such tensor, its type is not read, or its bytes cannot be had.
        """
        quantized = self._quantized.get(name)
        return quantized.read(self._stored, rows) if quantized else widened(self._plain(name, rows))

    def _plain(self, name: str, rows: Rows = None) -> torch.Tensor:
        """A stored tensor, or rows of it, of a type that is read as it is."""
        info = self._infos.get(name)
        if info is None:
            raise HeadatlasError(f"{self._where} holds no tensor {name!r}.")
        if info.dtype not in PLAIN:
            raise HeadatlasError(
                f"{info.file}: tensor {name!r} is stored as {info.dtype}, which headatlas does not read; "
                "use a checkpoint in BF16, F16, F32 or F64."
            )
        return self._stored(name, rows)

    def _stored(self, name: str, rows: Rows) -> torch.Tensor:
        """A stored tensor, or rows of it, in the type it is stored in."""
        raise NotImplementedError


class SafetensorsSource(StoredTensors):
    """Reads tensors out of one or several safetensors files; opening reads headers only.

    Attributes:
        files: The files, in order.
    """

    def __init__(self, files: Sequence[Path], weight_map: Mapping[str, str] | None = None) -> None:
        """Read and check the header of every file; see :class:`StoredTensors`.

        Raises:
            HeadatlasError: A file is missing, truncated or contradicts itself or the index, or two hold the
                same tensor.
        """
        self.files = tuple(files)
        self._handles: dict[str, Any] = {}
        headers = map(read_safetensors_header, self.files)
        super().__init__(headers, str(self.files[0].parent), weight_map)

    @classmethod
    def from_index(cls, index: Path) -> SafetensorsSource:
        """Open the shards that an index names.

        Raises:
            HeadatlasError: As for given files; or the index is malformed, or names a file that is not there.
        """
        weight_map = read_weight_map(index)
        shards = [index.parent / shard for shard in shards_of(weight_map)]
        for shard in shards:
            if not shard.is_file():
                raise HeadatlasError(f"{index} names the shard {shard.name}, which is not there; fetch it.")
        return cls(shards, weight_map)

    def stored(self, name: str) -> torch.Tensor:
        """A tensor in the dtype it is stored in, as a view of the mapped file; not to be written to.

        Its pages are read when they are used, and the system may take them back meanwhile. What is
        stored quantised is dequantised.

        Raises:
            HeadatlasError: It is not there, of a type that is not read, or cannot be read.
        """
        quantized = self._quantized.get(name)
        return quantized.read(self._stored, None) if quantized else self._plain(name)

    def fingerprint(self) -> str:
        """See :func:`headatlas.weights.source.fingerprint`."""
        return fingerprint_of_files(self.files)

    def _stored(self, name: str, rows: Rows) -> torch.Tensor:
        import torch
        from safetensors import SafetensorError

        info = self._placed[name]
        try:
            # A view of the memory-mapped file: only the pages of the rows asked for are read.
            stored: torch.Tensor = self._handle(info.file).get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise HeadatlasError(f"{info.file}: tensor {name!r} cannot be read ({error}).") from error
        if stored.element_size() == 1:  # torch does not index every type of one byte
            return stored.view(torch.uint8)[place_of(rows)].view(stored.dtype)
        return stored[place_of(rows)]

    def release(self) -> None:
        """Unmap the files until the next read: what no view holds is no memory of this process then."""
        self._handles.clear()

    def _handle(self, file: str) -> Any:
        from safetensors import safe_open

        if file not in self._handles:
            self._handles[file] = safe_open(file, framework="pt")
        return self._handles[file]


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


def shards_of(weight_map: Mapping[str, str]) -> list[str]:
    """The names of the files that an index names, in order."""
    return sorted(set(weight_map.values()))
