"""The header of a GGUF file, read with every count and offset checked before it is believed.

A reader that trusts the counts of a broken header can allocate without end; this one never holds more
than the file really contains. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from headatlas.errors import HeadatlasError
from headatlas.weights.jsonfile import refuse_pointer

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

_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_UINT32, _STRING, _ARRAY = 4, 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a GGUF file.

    Attributes:
        name: Name as stored.
        shape: Logical shape, outermost axis first (the file stores it innermost first).
        type_name: Name of the ggml type, e.g. ``"Q4_1"``.
        row_bytes: Stored bytes of one row (the innermost axis).
        offset: Position of its first byte in the file.
        nbytes: Stored size.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    row_bytes: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says about itself.

    Attributes:
        metadata: Scalars and strings by key, and number arrays of up to 4,096 items as lists.
        arrays: Number of items of every array by key (token lists are counted, not kept).
        tensors: The tensors by name, in the order of the file.
        data_start: Position of the tensor data; everything before it is header.
    """

    metadata: dict[str, Any]
    arrays: dict[str, int]
    tensors: dict[str, GgufTensor]
    data_start: int


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check the header of one GGUF file.

    Raises:
        HeadatlasError: The file cannot be read, is not GGUF, has an unsupported version, an impossible
            count, an unknown tensor type, or tensors that lie outside the file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            if size < 24:
                start = stream.read(4)
                problem = "is truncated" if start == MAGIC[: len(start)] and start else "is not a GGUF file"
                raise HeadatlasError(
                    f"{path} {problem}: a GGUF header has at least 24 bytes, found {size}; fetch it again."
                )
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
                return _HeaderReader(path, view, size).read()
    except OSError as error:
        raise HeadatlasError(f"{path} cannot be read: {error.strerror or error}.") from error


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
            raise HeadatlasError(
                f"{self.path} is truncated or broken: {what} needs {start + count:,} bytes, found "
                f"{self.size:,}; fetch it again."
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
        tensors = self.place(found, data_start, alignment)
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
            self.metadata[key] = self.number(_SCALARS[kind], f"the value of {key!r}")
            if key == "general.alignment" and kind != _UINT32:
                self.fail("general.alignment is not a 32-bit count")
        else:
            self.fail(f"the metadata key {key!r} has the unknown type {kind}")

    def read_array(self, key: str) -> None:
        what = f"the array {key!r}"
        kind, length = self.number("<I", what), self.number("<Q", what)
        self.arrays[key] = length
        if kind in _SCALARS:
            code = _SCALARS[kind]
            start = self.take(length * struct.calcsize(code), what)
            if length <= KEPT_ARRAY_LENGTH:
                packed = f"<{length}{code[1]}"
                self.metadata[key] = list(struct.unpack_from(packed, self.view, start))
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

    def place(
        self, found: list[tuple[str, tuple[int, ...], int, int]], data_start: int, alignment: int
    ) -> dict[str, GgufTensor]:
        """Give every tensor its bytes, and check that they exist and belong to it alone."""
        tensors: dict[str, GgufTensor] = {}
        for name, shape, kind, offset in found:
            if name in tensors:
                self.fail(f"tensor {name!r} is there twice")
            type_name, block, block_bytes = self.type_of(name, kind)
            if not all(shape) or math.prod(shape) >= 1 << 62 or shape[-1] % block:
                self.fail(f"tensor {name!r} of type {type_name} has the impossible shape {shape}")
            if offset % alignment:
                self.fail(f"tensor {name!r} starts at {offset:,}, which is not a multiple of {alignment}")
            row_bytes = shape[-1] // block * block_bytes
            nbytes = math.prod(shape[:-1]) * row_bytes
            tensors[name] = GgufTensor(name, shape, type_name, row_bytes, data_start + offset, nbytes)
        end, last = data_start, ""
        for tensor in sorted(tensors.values(), key=lambda item: item.offset):
            if tensor.offset < end:
                self.fail(f"tensors {last!r} and {tensor.name!r} overlap")
            end, last = tensor.offset + tensor.nbytes, tensor.name
        if tensors and end > self.size:
            raise HeadatlasError(
                f"{self.path} is truncated: its header describes {end:,} bytes, found {self.size:,}; "
                "fetch it again."
            )
        return tensors

    def type_of(self, name: str, kind: int) -> tuple[str, int, int]:
        """Name, elements per block and bytes per block of a ggml type."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            ggml_type = GGMLQuantizationType(kind)
            block, block_bytes = GGML_QUANT_SIZES[ggml_type]
        except (ValueError, KeyError):
            raise HeadatlasError(
                f"{self.path}: tensor {name!r} has the ggml type {kind}, which the installed gguf package "
                "does not know; update the package `gguf` or convert the model to another type."
            ) from None
        return ggml_type.name, block, block_bytes
