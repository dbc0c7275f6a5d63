"""Tensors of a GGUF file, dequantised row by row when asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headatlas.errors import HeadatlasError
from headatlas.weights.gguf_header import GgufHeader, GgufTensor, read_gguf_header
from headatlas.weights.source import TensorInfo

if TYPE_CHECKING:
    import numpy as np
    import torch

SPLIT_NAME = re.compile(r"^(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf$")
_CHUNK_ELEMENTS = 1 << 22  # elements dequantised at once, so that temporary memory stays small
_INTEGERS = frozenset({"I8", "I16", "I32", "I64"})


class GgufSource:
    """Reads tensors out of a GGUF file, or out of all parts of a split one; opening reads headers only.

    Attributes:
        files: The file, or the parts in order.
        header: The header of the first file, which holds the metadata.
    """

    def __init__(self, path: Path) -> None:
        """Read and check the headers.

        Args:
            path: The file; for a split model any of its parts ``…-00001-of-0000N.gguf``.

        Raises:
            HeadatlasError: A header is broken, a part is missing, or a tensor is in two parts.
        """
        self.files = parts_of(path)
        headers = [read_gguf_header(file) for file in self.files]
        _check_split(self.files, headers)
        self.header: GgufHeader = headers[0]
        self._tensors: dict[str, tuple[Path, GgufTensor]] = {}
        for file, header in zip(self.files, headers, strict=True):
            for name, tensor in header.tensors.items():
                if name in self._tensors:
                    raise HeadatlasError(
                        f"Tensor {name!r} is in {self._tensors[name][0]} and again in {file}; "
                        "fetch the parts again."
                    )
                self._tensors[name] = (file, tensor)
        if not self._tensors:
            raise HeadatlasError(
                f"{path} holds no tensors (a vocabulary only?); use a file with the weights."
            )
        self._maps: dict[Path, Any] = {}

    def infos(self) -> Mapping[str, TensorInfo]:
        """Every stored tensor by name, shapes as [out, in]."""
        return self._by_name

    @cached_property
    def _by_name(self) -> dict[str, TensorInfo]:
        return {
            name: TensorInfo(name, tensor.shape, tensor.type_name, tensor.nbytes, str(file))
            for name, (file, tensor) in self._tensors.items()
        }

    def read(self, name: str, rows: slice | Sequence[int] | None = None) -> torch.Tensor:
        """See :meth:`headatlas.weights.source.TensorSource.read`; only the rows asked for are dequantised."""
        import numpy as np
        import torch

        if name not in self._tensors:
            raise HeadatlasError(f"{self.files[0]} holds no tensor {name!r}.")
        file, tensor = self._tensors[name]
        stored = self._stored(file, tensor)
        if rows is not None and len(tensor.shape) > 1:
            stored = stored[rows if isinstance(rows, slice) else np.asarray(rows, dtype=np.int64)]
        values = torch.from_numpy(_dequantise(stored, tensor, file))
        if rows is not None and len(tensor.shape) == 1:
            values = values[rows if isinstance(rows, slice) else list(rows)]
        return values

    def _stored(self, file: Path, tensor: GgufTensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The stored bytes as a view of the mapped file: [*shape[:-1], row_bytes]."""
        import numpy as np

        if file not in self._maps:
            try:
                self._maps[file] = np.memmap(file, dtype=np.uint8, mode="r")
            except (OSError, ValueError) as error:
                raise HeadatlasError(f"{file} cannot be read ({error}).") from error
        whole = self._maps[file]
        end = tensor.offset + tensor.nbytes
        if end > whole.size:
            raise HeadatlasError(
                f"{file} has become shorter: tensor {tensor.name!r} ends at byte {end:,}, "
                f"found {whole.size:,}; fetch it again."
            )
        part = np.asarray(whole[tensor.offset : end])
        return part.reshape(*tensor.shape[:-1], tensor.row_bytes)


def _dequantise(
    stored: np.ndarray[Any, np.dtype[np.uint8]], tensor: GgufTensor, file: Path
) -> np.ndarray[Any, np.dtype[Any]]:
    """Float32 (or float64) values of stored rows [..., row_bytes], in the logical shape [..., n_in]."""
    import numpy as np
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    if tensor.type_name in _INTEGERS:
        raise HeadatlasError(
            f"{file}: tensor {tensor.name!r} holds integers ({tensor.type_name}), not weights."
        )
    n_in = tensor.shape[-1]
    if tensor.type_name == "F64":
        return np.ascontiguousarray(stored).view("<f8").astype(np.float64).reshape(*stored.shape[:-1], n_in)
    kind = GGMLQuantizationType[tensor.type_name]
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
            f"{file}: tensor {tensor.name!r} is stored as {tensor.type_name}, which the installed gguf "
            "package cannot dequantise; use another quantisation of the model."
        ) from error
    return values.reshape(*stored.shape[:-1], n_in)


def _check_split(files: Sequence[Path], headers: Sequence[GgufHeader]) -> None:
    """Compare what the headers of the parts say about the split with the files that are there.

    Raises:
        HeadatlasError: A part belongs to another split or has another place in it, or tensors are missing.
    """
    for place, (file, header) in enumerate(zip(files, headers, strict=True)):
        count, number = (
            header.metadata.get(f"split.{key}", usual) for key, usual in (("count", 0), ("no", place))
        )
        if count and (count, number) != (len(files), place):
            raise HeadatlasError(
                f"{file}: by its header it is part {number} of {count}, counted from 0, by its name {place} "
                f"of {len(files)}; give the parts their names back, …-00001-of-0000N.gguf, or fetch "
                "them again."
            )
    total, found = (
        headers[0].metadata.get("split.tensors.count", 0),
        sum(len(each.tensors) for each in headers),
    )
    if total and total != found:
        raise HeadatlasError(
            f"{files[0]}: the model has {total} tensors by its header, its {len(files)} files hold {found}; "
            "fetch the parts again."
        )


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
