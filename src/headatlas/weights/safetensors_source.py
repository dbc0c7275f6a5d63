"""Tensors of a safetensors checkpoint: one file, or shards with an index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headatlas.errors import HeadatlasError
from headatlas.weights.jsonfile import read_json_object
from headatlas.weights.quantized import PLAIN, Quantized, dequantising, speaks_of_quantisation
from headatlas.weights.safetensors_header import read_safetensors_header
from headatlas.weights.source import TensorInfo

if TYPE_CHECKING:
    import torch

INDEX_NAME = "model.safetensors.index.json"


class StoredTensors:
    """Tensors of safetensors files, wherever these are; packed ones can be shown as what they stand for.

    Attributes:
        quantised: Whether some tensors are stored as values and scales, or the config speaks of it.
    """

    def __init__(self, infos: dict[str, TensorInfo], where: str) -> None:
        """Hold the tensors of all files; ``where`` is their folder, for messages."""
        self._stored_infos, self._infos, self._where = infos, infos, where
        self._packed: dict[str, Quantized] = {}
        self.quantised = False

    def unpack(self, config: Mapping[str, Any]) -> None:
        """From now on show packed weights (FP8, MXFP4) as the plain tensors they stand for.

        Args:
            config: The model's config.json.

        Raises:
            HeadatlasError: The weights are quantised in a way that is not read.
        """
        self._infos, self._packed = dequantising(self._stored_infos, config, self._where)
        self.quantised = bool(self._packed) or speaks_of_quantisation(config)

    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name."""
        return self._infos

    def read(self, name: str, rows: slice | Sequence[int] | None = None) -> torch.Tensor:
        """See :meth:`headatlas.weights.source.TensorSource.read`; integer tensors are refused.

        Raises:
            HeadatlasError: There is no such tensor, its type is not read, or its bytes cannot be had.
        """
        import torch

        if name in self._packed:
            return self._packed[name].read(self._stored, rows)
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
        super().__init__(joined(headers), str(self.files[0].parent))

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

        Its pages are read when they are used, and the system may take them back meanwhile. A packed tensor is
        unpacked.

        Raises:
            HeadatlasError: It is not there, of a type that is not read, or cannot be read.
        """
        if name in self._packed:
            return self._packed[name].read(self._stored, None)
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


def joined(headers: Mapping[str, Mapping[str, TensorInfo]]) -> dict[str, TensorInfo]:
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
