"""Tensors of a safetensors checkpoint: one file, or shards with an index; packed ones as what they stand for.

Headers are checked against the size of the file. Format: 8 bytes little-endian header length, the header as
JSON, then the tensors without gaps (https://github.com/huggingface/safetensors, section "Format").

Two layouts of eight or four bits with scales beside them are documented well enough to be read:

* **FP8**: a weight of type F8 and a scale under a name made from it. ``weight = stored * scale``, the scale
  spread over blocks of rows and columns (DeepSeek's ``weight_scale_inv``: [ceil(rows / 128),
  ceil(columns / 128)]), over rows ([rows, 1]: compressed-tensors, fbgemm), or over everything (one number).
  Scales of type F8_E8M0 are powers of two; in bytes they are the exponents plus 127.
* **MXFP4** (GPT-OSS): ``X_blocks`` [experts, out, groups, 16] holds two E2M1 numbers a byte, the lower half
  first, and ``X_scales`` [experts, out, groups] the exponents plus 127. Together they are ``X``
  [experts, 32 * groups, out]. Format: OCP Microscaling Formats (MX) Specification 1.0.

Whatever else is quantised is refused, with a sentence that says what to use instead.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from headatlas.errors import HeadatlasError
from headatlas.files import fingerprint_of_files, read_json_object, reading, refuse_pointer
from headatlas.weights.source import Rows, TensorInfo, TensorSource, joined, place_of, widened

if TYPE_CHECKING:
    import torch


FP8 = frozenset({"F8_E4M3", "F8_E5M2"})
_EXPONENTS = frozenset({"U8", "F8_E8M0"})
_SCALES = frozenset({"F16", "BF16", "F32"}) | _EXPONENTS
PLAIN = frozenset({"F16", "BF16", "F32", "F64"})
"""Types that are read as they are."""
QUANTIZED = FP8 | {"MXFP4"}
"""Types of :class:`Quantized` tensors."""
_ROWS = 1024  # rows scaled at once, so that temporary memory stays small
_BLOCK = 128
_EXPONENT_BIAS = 127

_READ = frozenset({"fp8", "fbgemm_fp8", "mxfp4", "mxfp8", "compressed-tensors", "modelopt"})
# Plain weights that the modules round each time they are used.
_IN_THE_FORWARD_PASS = frozenset({"bitnet"})
# Tensors that only a quantised checkpoint of the kind has, by how their names end.
_TELLTALES = {
    "qweight": "GPTQ or AWQ",
    "absmax": "bitsandbytes",
    "SCB": "bitsandbytes",
    "weight_packed": "compressed-tensors",
    "weight_scale_2": "NVFP4",
    "W_q": "HQQ",
    "biases": "MLX",
}
# Ends of names: scales of activations and of the key/value cache, which no weight depends on.
_OF_ACTIVATIONS = (
    *(".input_scale", ".input_scale_ub", ".input_global_scale", ".activation_scale", ".output_scale"),
    *(".q_scale", ".k_scale", ".v_scale", ".kv_scale"),
)
_INSTEAD = {
    "bitsandbytes": "convert them once, where they run, with "
    "AutoModelForCausalLM.from_pretrained(…).dequantize().save_pretrained(FOLDER), and give that folder",
    "mlx": "convert them once with `mlx_lm.convert --dequantize`, and give that folder",
}

Stored = Callable[[str, Rows], "torch.Tensor"]
"""Reads a stored tensor, or rows of it, in the type it is stored in."""


@dataclass(frozen=True)
class Quantized:
    """A tensor that is stored as values and scales."""

    info: TensorInfo  # the tensor they stand for
    values: TensorInfo
    scale: TensorInfo
    grid: tuple[int, ...] = ()  # shape in which the scales are used; empty for a single one
    block: tuple[int, int] = (1, 1)  # rows and columns that share a scale

    def read(self, stored: Stored, rows: Rows) -> torch.Tensor:
        """The tensor, or rows of its first axis, as float32; only their values are read, and all scales."""
        import torch

        wanted = torch.arange(self.info.shape[0] if self.info.shape else 1)[place_of(rows)]
        values = stored(self.values.name, rows)
        if self.values.dtype not in FP8:
            return _mxfp4(values, stored(self.scale.name, None)[wanted])
        scale = stored(self.scale.name, None).to(torch.float32)
        if self.scale.dtype == "U8":
            scale = torch.exp2(scale - _EXPONENT_BIAS)
        if not self.grid:
            return values.to(torch.float32) * scale.reshape(())
        scale = scale.reshape(self.grid)
        result = torch.empty(values.shape, dtype=torch.float32)
        if values.ndim == 2:
            _fp8(values, scale[wanted // self.block[0]], self.block[1], result)
            return result
        within = torch.arange(values.shape[-2]) // self.block[0]
        for place, expert in enumerate(wanted.tolist()):
            _fp8(values[place], scale[expert][within], self.block[1], result[place])
        return result


def quantized_tensors(
    infos: Mapping[str, TensorInfo], config: Mapping[str, Any], where: str
) -> tuple[dict[str, TensorInfo], dict[str, Quantized]]:
    """The tensors of a checkpoint as a model that is not quantised would have them; how to read those that
    are quantised."""
    scheme = _quantization_config(config)
    quantized = {each.info.name: each for each in _found(infos, scheme)}
    hidden = {part.name for each in quantized.values() for part in (each.values, each.scale)}
    others = {name: info for name, info in infos.items() if name not in hidden and info.dtype not in PLAIN}
    _refuse_others(infos, others, config, scheme, where)
    if quantized:
        hidden |= {name for name in infos if name.endswith(_OF_ACTIVATIONS)}
    plain = {name: info for name, info in infos.items() if name not in hidden}
    return plain | {name: each.info for name, each in quantized.items()}, quantized


def _quantization_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings of a quantised model in its config.json; plain weights may have kept them."""
    for part in (config, config.get("text_config")):
        for key in ("quantization_config", "compression_config"):
            if isinstance(part, Mapping) and isinstance(part.get(key), Mapping):
                return dict(part[key])
    return {}


def _found(infos: Mapping[str, TensorInfo], scheme: Mapping[str, Any]) -> Iterator[Quantized]:
    for name, info in infos.items():
        if info.dtype in FP8 and (scale := _scale_of(name, infos)) is not None:
            grid, block = _grid(info, scale, scheme)
            yield Quantized(_stands_for(name, info.shape, info, scale, info.dtype), info, scale, grid, block)
        elif info.dtype == "U8" and name.endswith("_blocks"):
            stem = name.removesuffix("_blocks")
            scale = infos.get(f"{stem}_scales")
            if scale is None or scale.dtype != "U8" or len(info.shape) != 4:
                continue
            experts, d_out, groups, size = info.shape
            if size != 16 or scale.shape != info.shape[:3]:
                raise _misfit(info, scale)
            shape = (experts, 2 * size * groups, d_out)
            yield Quantized(_stands_for(stem, shape, info, scale, "MXFP4"), info, scale)


def _stands_for(
    name: str, shape: tuple[int, ...], values: TensorInfo, scale: TensorInfo, dtype: str
) -> TensorInfo:
    return TensorInfo(name, shape, dtype, values.nbytes + scale.nbytes, values.file)


def _scale_of(name: str, infos: Mapping[str, TensorInfo]) -> TensorInfo | None:
    stem = name.removesuffix(".weight")
    names = [f"{name}_scale_inv", f"{name}_scale", *([f"{stem}.scale"] if stem != name else [])]
    found = [infos[each] for each in names if each in infos and infos[each].dtype in _SCALES]
    if len(found) > 1:
        raise HeadatlasError(
            f"{infos[name].file}: tensor {name!r} has two scales, {found[0].name!r} and {found[1].name!r}; "
            "use another checkpoint of the model."
        )
    return found[0] if found else None


def _grid(
    values: TensorInfo, scale: TensorInfo, scheme: Mapping[str, Any]
) -> tuple[tuple[int, ...], tuple[int, int]]:
    """The shape in which scales are used, and the rows and columns that share one."""
    if prod(scale.shape) == 1:
        return (), (1, 1)
    grid = (*scale.shape, 1) if len(values.shape) == 2 and len(scale.shape) == 1 else scale.shape
    if len(values.shape) not in (2, 3) or len(grid) != len(values.shape) or grid[:-2] != values.shape[:-2]:
        raise _misfit(values, scale)
    usual = scheme.get("weight_block_size")
    if not isinstance(usual, list) or len(usual) != 2 or any(type(size) is not int for size in usual):
        usual = [_BLOCK, _BLOCK]
    rows, columns = map(_block, values.shape[-2:], grid[-2:], usual)
    if rows is None or columns is None:
        raise _misfit(values, scale)
    return grid, (rows, columns)


def _block(size: int, parts: int, usual: int) -> int | None:
    """Rows or columns, of ``size``, that share one of ``parts`` scales; None if they do not fit."""
    if usual > 0 and -(-size // usual) == parts:
        return usual
    return size // parts if parts and size % parts == 0 else None


def _misfit(values: TensorInfo, scale: TensorInfo) -> HeadatlasError:
    return HeadatlasError(
        f"{values.file}: the scales {scale.name!r} {list(scale.shape)} do not fit the tensor {values.name!r} "
        f"{list(values.shape)}; fetch the file again, or use another checkpoint of the model."
    )


def _refuse_others(
    infos: Mapping[str, TensorInfo],
    others: Mapping[str, TensorInfo],
    config: Mapping[str, Any],
    scheme: Mapping[str, Any],
    where: str,
) -> None:
    """Refuse what is quantised otherwise: ``others`` are tensors that are neither plain nor understood."""
    method = scheme.get("quant_method")
    if not isinstance(method, str):
        method = "mlx" if isinstance(config.get("quantization"), Mapping) else ""
    telling = next((kind for name in infos if (kind := _TELLTALES.get(name.rpartition(".")[2]))), None)
    # A matrix of whole numbers, or of eight bits without a scale: not a form that is read above.
    matrix = next((info for name, info in others.items() if name.endswith(".weight")), None)
    if others and (telling or (method and method not in _READ)):
        raise _refusal(where, method or str(telling))
    if matrix is not None:
        raise _refusal(where, method or f"{matrix.name!r} is {matrix.dtype}")
    if method in _IN_THE_FORWARD_PASS:
        raise HeadatlasError(
            f"{where}: its weights are quantised in the forward pass ({method}), so that the stored ones are "
            "not those that act; such a model is not mapped."
        )
    for key in ("transform_config", "sparsity_config"):
        changed = scheme.get(key)
        if isinstance(changed, Mapping) and changed and changed.get("format") != "dense":
            raise _refusal(where, f"{method} with a {key}")


def _refusal(where: str, method: str) -> HeadatlasError:
    usual = "give the model that they were made from, or an FP8 or GGUF file of it"
    instead = _INSTEAD.get(method.lower(), usual)
    return HeadatlasError(
        f"{where}: its weights are quantised ({method}), in a form that headatlas does not read; {instead}."
    )


def _fp8(values: torch.Tensor, scale: torch.Tensor, columns: int, result: torch.Tensor) -> None:
    """Write values [rows, n] times scales [rows, parts], each for so many columns, into ``result``."""
    for start in range(0, len(values), _ROWS):
        part = slice(start, start + _ROWS)
        spread = scale[part].repeat_interleave(columns, dim=1)[:, : values.shape[1]]
        result[part] = values[part].to(result.dtype)
        result[part] *= spread


def _mxfp4(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """[experts, 32 * groups, out] from bytes [experts, out, groups, 16] and [experts, out, groups]."""
    import torch

    positive = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    numbers = torch.cat([positive, -positive])
    experts, d_out, groups, size = blocks.shape
    result = torch.empty(experts, 2 * size * groups, d_out)
    for expert in range(experts):
        halves = torch.stack([blocks[expert] & 15, blocks[expert] >> 4], dim=-1)
        values = numbers[halves.int()].reshape(d_out, groups, 2 * size)
        values = torch.ldexp(values, (scales[expert].int() - _EXPONENT_BIAS).unsqueeze(-1))
        result[expert] = values.reshape(d_out, -1).T
    return result


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
    """A tensor and where its bytes are."""

    start: int  # position of its first byte in the file; ``nbytes`` follow


def read_safetensors_header(path: Path) -> dict[str, PlacedTensor]:
    """Every tensor of one safetensors file, in the order of the header."""
    with reading(path), path.open("rb") as stream:
        size = path.stat().st_size
        header = stream.read(header_length(path, stream.read(8), size))
    return placed_tensors(path, header, size)


def _broken(path: Path | str, problem: str) -> HeadatlasError:
    return HeadatlasError(f"{path}{problem}; fetch it again.")


def header_length(path: Path | str, first: bytes, size: int) -> int:
    """Bytes of the JSON header, from the first 8 bytes (or fewer) of a file of ``size`` bytes."""
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
    """Every tensor that a JSON header describes, in its order, in a file of ``size`` bytes."""
    try:
        entries = json.loads(header.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _broken(path, f" is not a safetensors file: its header is not JSON ({error})") from error
    if not isinstance(entries, dict):
        kind = type(entries).__name__
        raise _broken(path, f" is not a safetensors file: its header is a JSON {kind}, not an object")
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


class StoredTensors(TensorSource):
    """Tensors of safetensors files, wherever these are; quantised ones can be shown as what they stand for.

    ``quantised`` says whether some are stored as values and scales, or the config speaks of it.
    """

    def __init__(
        self, headers: Iterable[Mapping[str, PlacedTensor]], where: str, weight_map: Mapping[str, str] | None
    ) -> None:
        """Join the headers of the files in the folder ``where``; an index says which file holds a tensor."""
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
        """From now on show quantised weights (FP8, MXFP4) as the plain tensors they stand for."""
        self._infos, self._quantized = quantized_tensors(self._placed, config, self._where)
        self.quantised = bool(self._quantized or _quantization_config(config))

    def infos(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def holds_scales_of(self, name: str) -> bool:
        """Whether a tensor is stored as values and scales."""
        return name in self._quantized

    def read(self, name: str, rows: Rows = None) -> torch.Tensor:
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

    @abstractmethod
    def _stored(self, name: str, rows: Rows) -> torch.Tensor:
        """A stored tensor, or rows of it, in the type it is stored in."""


class SafetensorsSource(StoredTensors):
    """Reads tensors out of one or several safetensors files; opening reads headers only."""

    def __init__(self, files: Sequence[Path], weight_map: Mapping[str, str] | None = None) -> None:
        """Read and check the header of every file; see :class:`StoredTensors`."""
        self.files = tuple(files)
        self._handles: dict[str, Any] = {}
        headers = map(read_safetensors_header, self.files)
        super().__init__(headers, str(self.files[0].parent), weight_map)

    @classmethod
    def from_index(cls, index: Path) -> SafetensorsSource:
        """Open the shards that an index names."""
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
        """
        quantized = self._quantized.get(name)
        return quantized.read(self._stored, None) if quantized else self._plain(name)

    def fingerprint(self) -> str:
        return fingerprint_of_files(self.files)

    def _stored(self, name: str, rows: Rows) -> torch.Tensor:
        import torch
        from safetensors import SafetensorError, safe_open

        info = self._placed[name]
        try:
            # A view of the memory-mapped file: only the pages of the rows asked for are read.
            if info.file not in self._handles:
                self._handles[info.file] = safe_open(info.file, framework="pt")
            stored: torch.Tensor = self._handles[info.file].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise HeadatlasError(f"{info.file}: tensor {name!r} cannot be read ({error}).") from error
        if stored.element_size() == 1:  # torch does not index every type of one byte
            return stored.view(torch.uint8)[place_of(rows)].view(stored.dtype)
        return stored[place_of(rows)]

    def release(self) -> None:
        self._handles.clear()


def read_weight_map(index: Path) -> dict[str, str]:
    """Tensor name → shard name of an index, which may name .safetensors files of its own folder only."""
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
