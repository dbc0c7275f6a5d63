"""Tensors of a GGUF file, dequantised row by row when asked for, and its header.

Every count and offset of the header is checked before it is believed: a reader that trusts those of a broken
header can allocate without end; this one never holds more than the file really contains. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from headatlas.errors import HeadatlasError
from headatlas.files import fingerprint_of_files, reading, refuse_pointer
from headatlas.weights.source import Rows, TensorInfo, TensorSource, joined, place_of

if TYPE_CHECKING:
    import numpy as np
    import torch


MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

# Far above what any real model has, far below what would hurt.
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_STRINGS = 1 << 23
MAX_NAME_BYTES = 1 << 16
MAX_STRING_BYTES = 1 << 24
MAX_ALIGNMENT = 1 << 20
MAX_DIMS = 8
KEPT_ARRAY_LENGTH = 1 << 12

# Value types of the header and how struct unpacks them.
_SCALARS = {**dict(enumerate("BbHhIif?")), 10: "Q", 11: "q", 12: "d"}
_UINT32, _STRING, _ARRAY = 4, 8, 9


@dataclass(frozen=True)
class GgufTensor(TensorInfo):
    """One tensor of a GGUF file; ``dtype`` is the name of its ggml type, e.g. ``"Q4_1"``."""

    row_bytes: int  # stored bytes of one row (the innermost axis)
    offset: int  # position of its first byte in the file; ``nbytes`` follow


@dataclass(frozen=True)
class GgufHeader:
    """The header of a GGUF file."""

    metadata: dict[str, Any]  # scalars and strings by key, and number arrays of up to 4,096 items as lists
    arrays: dict[str, int]  # number of items of every array by key (token lists are counted, not kept)
    tensors: dict[str, GgufTensor]  # the tensors by name, in the order of the file
    data_start: int  # position of the tensor data; everything before it is header


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check the header of one GGUF file."""
    with reading(path), path.open("rb") as stream:
        size = path.stat().st_size
        if size < 24:
            start = stream.read(4)
            problem = "is truncated" if start == MAGIC[: len(start)] and start else "is not a GGUF file"
            raise HeadatlasError(
                f"{path} {problem}: a GGUF header has at least 24 bytes, found {size}; fetch it again."
            )
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return _HeaderReader(path, view, size).read()


class _HeaderReader:
    """A cursor over the mapped file that refuses to step outside it."""

    def __init__(self, path: Path, view: mmap.mmap, size: int) -> None:
        self.path, self.view, self.size = path, view, size
        self.position = 0
        self.strings_left = MAX_STRINGS
        self.metadata: dict[str, Any] = {}
        self.arrays: dict[str, int] = {}

    def fail(self, problem: str) -> NoReturn:
        raise HeadatlasError(f"{self.path}: {problem}; fetch or convert the file again.")

    def take(self, count: int, what: str) -> int:
        """Step over ``count`` bytes and return where they start."""
        start = self.position
        if count > self.size - start:
            self.fail(
                f"the file is truncated or broken: {what} needs {start + count:,} bytes, found {self.size:,}"
            )
        self.position = start + count
        return start

    def number(self, code: str, what: str) -> Any:
        start = self.take(struct.calcsize(code), what)
        return struct.unpack_from(code, self.view, start)[0]

    def text(self, what: str, limit: int) -> str:
        length = self.number("<Q", what)
        if length > limit:
            self.fail(f"{what} would be {length:,} bytes long (at most {limit:,} are read)")
        start = self.take(length, what)
        try:
            return self.view[start : start + length].decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8")

    def read(self) -> GgufHeader:
        if self.view[:4] != MAGIC:
            refuse_pointer(self.path, self.view[:8])
            self.fail(f"not a GGUF file (it starts with {self.view[:4]!r}, not {MAGIC!r})")
        self.position = 4
        version = self.number("<I", "the version")
        if version & 0xFFFF == 0:
            self.fail("the file is big-endian, which is not supported")
        if version not in VERSIONS:
            self.fail(f"GGUF version {version} is not supported (versions 2 and 3 are)")
        n_tensors, n_keys = self.number("<Q", "the tensor count"), self.number("<Q", "the key count")
        if n_tensors > MAX_TENSORS or n_keys > MAX_KEYS:
            self.fail(f"the header announces {n_tensors:,} tensors and {n_keys:,} keys, which no model has")
        for _ in range(n_keys):
            self.read_key()
        found = [self.read_tensor() for _ in range(n_tensors)]
        alignment = self.alignment()
        data_start = -(-self.position // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, shape, kind, offset in found:
            if name in tensors:
                self.fail(f"tensor {name!r} is there twice")
            if offset % alignment:
                self.fail(f"tensor {name!r} starts at {offset:,}, which is not a multiple of {alignment}")
            tensors[name] = self.placed(name, shape, kind, data_start + offset)
        self.check_places(tensors.values(), data_start)
        return GgufHeader(self.metadata, self.arrays, tensors, data_start)

    def read_key(self) -> None:
        key = self.text("a metadata key", MAX_NAME_BYTES)
        if key in self.metadata or key in self.arrays:
            self.fail(f"the metadata key {key!r} is there twice")
        kind = self.number("<I", f"the type of {key!r}")
        if kind == _ARRAY:
            self.read_array(key)
        elif kind == _STRING:
            self.metadata[key] = self.text(f"the value of {key!r}", MAX_STRING_BYTES)
        elif kind in _SCALARS:
            self.metadata[key] = self.number(f"<{_SCALARS[kind]}", f"the value of {key!r}")
            if key == "general.alignment" and kind != _UINT32:
                self.fail("general.alignment is not a 32-bit count")
        else:
            self.fail(f"the metadata key {key!r} has the unknown type {kind}")

    def read_array(self, key: str) -> None:
        what = f"the array {key!r}"
        kind, length = self.number("<I", what), self.number("<Q", what)
        self.arrays[key] = length
        if kind in _SCALARS:
            start = self.take(length * struct.calcsize(f"<{_SCALARS[kind]}"), what)
            if length <= KEPT_ARRAY_LENGTH:
                self.metadata[key] = list(struct.unpack_from(f"<{length}{_SCALARS[kind]}", self.view, start))
        elif kind == _STRING:
            if length > self.strings_left:
                self.fail(f"{what} would hold {length:,} strings, which no tokenizer has")
            self.strings_left -= length
            for _ in range(length):
                self.take(self.number("<Q", what), what)
        else:
            self.fail(f"{what} has items of the unsupported type {kind}")

    def read_tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.text("a tensor name", MAX_NAME_BYTES)
        n_dims = self.number("<I", f"the shape of {name!r}")
        if not 1 <= n_dims <= MAX_DIMS:
            self.fail(f"tensor {name!r} has {n_dims} dimensions")
        shape = tuple(self.number("<Q", f"the shape of {name!r}") for _ in range(n_dims))
        kind, offset = self.number("<I", f"the type of {name!r}"), self.number("<Q", f"the place of {name!r}")
        return name, shape[::-1], kind, offset

    def alignment(self) -> int:
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        power_of_two = isinstance(alignment, int) and alignment > 0 and alignment & (alignment - 1) == 0
        if not power_of_two or alignment > MAX_ALIGNMENT:
            self.fail(f"general.alignment is {alignment}, not a usable power of two")
        return int(alignment)

    def placed(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> GgufTensor:
        """A tensor with the bytes that its type and shape take."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            dtype = GGMLQuantizationType(kind)
            block, block_bytes = GGML_QUANT_SIZES[dtype]
        except (ValueError, KeyError):
            raise HeadatlasError(
                f"{self.path}: tensor {name!r} has the ggml type {kind}, which the installed gguf package "
                "does not know; update the package `gguf` or convert the model to another type."
            ) from None
        if not all(shape) or math.prod(shape) >= 1 << 62 or shape[-1] % block:
            self.fail(f"tensor {name!r} of type {dtype.name} has the impossible shape {shape}")
        row_bytes = shape[-1] // block * block_bytes
        nbytes = math.prod(shape[:-1]) * row_bytes
        return GgufTensor(name, shape, dtype.name, nbytes, str(self.path), row_bytes, start)

    def check_places(self, tensors: Collection[GgufTensor], data_start: int) -> None:
        """Make sure that every tensor's bytes exist and belong to it alone."""
        end, last = data_start, ""
        for tensor in sorted(tensors, key=lambda item: item.offset):
            if tensor.offset < end:
                self.fail(f"tensors {last!r} and {tensor.name!r} overlap")
            end, last = tensor.offset + tensor.nbytes, tensor.name
        if tensors and end > self.size:
            self.fail(f"the file is truncated: its header describes {end:,} bytes, found {self.size:,}")


SPLIT_NAME = re.compile(r"^(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf$")
_CHUNK_ELEMENTS = 1 << 22  # elements dequantised at once, so that temporary memory stays small
_INTEGERS = frozenset({"I8", "I16", "I32", "I64"})


class GgufSource(TensorSource):
    """Reads tensors out of a GGUF file, or out of all parts of a split one; opening reads headers only."""

    def __init__(self, path: Path) -> None:
        """Read and check the headers; of a split model ``path`` is any of its parts."""
        self.files = parts_of(path)
        headers = [read_gguf_header(file) for file in self.files]
        _check_split(self.files, headers)
        self.header = headers[0]  # which holds the metadata
        self.tensors = joined((header.tensors for header in headers), path)
        self._maps: dict[str, np.memmap[Any, np.dtype[np.uint8]]] = {}

    def infos(self) -> Mapping[str, TensorInfo]:
        return self.tensors

    def read(self, name: str, rows: Rows = None) -> torch.Tensor:
        import torch

        if name not in self.tensors:
            raise HeadatlasError(f"{self.files[0]} holds no tensor {name!r}.")
        tensor = self.tensors[name]
        stored = self.bytes_of(tensor)
        if len(tensor.shape) == 1:  # a row of bytes is the whole tensor
            return torch.from_numpy(_dequantised(stored, tensor))[place_of(rows)]
        return torch.from_numpy(_dequantised(stored[place_of(rows)], tensor))

    def fingerprint(self) -> str:
        return fingerprint_of_files(self.files)

    def bytes_of(self, tensor: GgufTensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The stored bytes as a view of the mapped file: [*shape[:-1], row_bytes]."""
        import numpy as np

        if tensor.file not in self._maps:
            try:
                self._maps[tensor.file] = np.memmap(tensor.file, dtype=np.uint8, mode="r")
            except (OSError, ValueError) as error:
                raise HeadatlasError(f"{tensor.file} cannot be read ({error}).") from error
        whole = self._maps[tensor.file]
        end = tensor.offset + tensor.nbytes
        if end > whole.size:
            raise HeadatlasError(
                f"{tensor.file} has become shorter: tensor {tensor.name!r} ends at byte {end:,}, "
                f"found {whole.size:,}; fetch it again."
            )
        return np.asarray(whole[tensor.offset : end]).reshape(*tensor.shape[:-1], tensor.row_bytes)


def _dequantised(
    stored: np.ndarray[Any, np.dtype[np.uint8]], tensor: GgufTensor
) -> np.ndarray[Any, np.dtype[Any]]:
    """Float32 (or float64) values of stored rows [..., row_bytes], in the logical shape [..., n_in]."""
    import numpy as np
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    what = f"{tensor.file}: tensor {tensor.name!r}"
    if tensor.dtype in _INTEGERS:
        raise HeadatlasError(f"{what} holds integers ({tensor.dtype}), not weights.")
    n_in = tensor.shape[-1]
    if tensor.dtype == "F64":
        return np.ascontiguousarray(stored).view("<f8").astype(np.float64)
    kind = GGMLQuantizationType[tensor.dtype]
    flat = stored.reshape(-1, tensor.row_bytes)
    values = np.empty((flat.shape[0], n_in), dtype=np.float32)
    step = max(1, _CHUNK_ELEMENTS // n_in)
    try:
        with np.errstate(all="ignore"):  # a damaged scale may overflow; that is for the caller to see as inf
            for start in range(0, flat.shape[0], step):
                chunk = np.ascontiguousarray(flat[start : start + step])
                values[start : start + step] = dequantize(chunk, kind)
    except NotImplementedError as error:
        raise HeadatlasError(
            f"{what} is stored as {tensor.dtype}, which the installed gguf package cannot dequantise; use "
            "another quantisation of the model."
        ) from error
    return values.reshape(*stored.shape[:-1], n_in)


def _check_split(files: Sequence[Path], headers: Sequence[GgufHeader]) -> None:
    """Compare what the headers of the parts say about the split with the files that are there."""
    for place, (file, header) in enumerate(zip(files, headers, strict=True)):
        count, number = header.metadata.get("split.count"), header.metadata.get("split.no", place)
        if count and (count, number) != (len(files), place):
            raise HeadatlasError(
                f"{file}: by its header it is part {number} of {count}, counted from 0, by its name {place} "
                f"of {len(files)}; give the parts their names back, …-00001-of-0000N.gguf, or fetch "
                "them again."
            )
    total = headers[0].metadata.get("split.tensors.count")
    found = sum(len(each.tensors) for each in headers)
    if total and total != found:
        raise HeadatlasError(
            f"{files[0]}: the model has {total} tensors by its header, its {len(files)} files hold {found}; "
            "fetch the parts again."
        )


def starts_like_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do."""
    with reading(path), path.open("rb") as stream:
        return stream.read(4) == MAGIC


def whole_name(name: str) -> str:
    """The name that the parts of a split file have in common; of another file its own."""
    split = SPLIT_NAME.match(name)
    return name if split is None else f"{split['stem']} of {split['parts']}"


def parts_of(path: Path) -> tuple[Path, ...]:
    """The file itself, or every part of a split model in order."""
    split = SPLIT_NAME.match(path.name)
    if split is None:
        return (path,)
    total = int(split["parts"])
    if not 1 <= int(split["part"]) <= total:
        raise HeadatlasError(f"{path} cannot be a part of {total}; give the file its proper name.")
    parts = tuple(
        path.with_name(f"{split['stem']}-{number:05d}-of-{total:05d}.gguf") for number in range(1, total + 1)
    )
    for part in parts:
        if not part.is_file():
            raise HeadatlasError(
                f"{path} is one of {total} parts, and {part.name} is not beside it; fetch it."
            )
    return parts
