"""Safetensors weights of eight or four bits with scales beside them, as the tensors they stand for.

Two layouts are documented well enough to be read:

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

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from headatlas.errors import HeadatlasError
from headatlas.weights.source import Rows, TensorInfo, place_of

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
    """A tensor that is stored as values and scales.

    Attributes:
        info: The tensor they stand for.
        values: The stored values.
        scale: The stored scales.
        grid: Shape in which the scales are used; empty for a single one.
        block: Rows and columns that share a scale.
    """

    info: TensorInfo
    values: TensorInfo
    scale: TensorInfo
    grid: tuple[int, ...] = field(default=())
    block: tuple[int, int] = field(default=(1, 1))

    def read(self, stored: Stored, rows: Rows) -> torch.Tensor:
        """The tensor, or rows of its first axis, as float32; only their values are read, and all scales."""
        import torch

        wanted = torch.arange(self.info.shape[0] if self.info.shape else 1)[place_of(rows)]
        values = stored(self.values.name, rows)
        if self.values.dtype not in FP8:
            return _mxfp4(values, stored(self.scale.name, None)[wanted])
        scale = _decoded(stored(self.scale.name, None), self.scale.dtype)
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
    """The tensors of a checkpoint as a model that is not quantised would have them.

    Args:
        infos: The stored tensors.
        config: The model's config.json.
        where: The checkpoint, for messages.

    Returns:
        Every tensor without scales, and how to read those that are quantised.

    Raises:
        HeadatlasError: The weights are quantised in another way, or scales do not fit their weights.
    """
    scheme = _quantization_config(config)
    quantized = {each.info.name: each for each in _found(infos, scheme)}
    hidden = {part.name for each in quantized.values() for part in (each.values, each.scale)}
    others = {name: info for name, info in infos.items() if name not in hidden and info.dtype not in PLAIN}
    _refuse_others(infos, others, config, scheme, where)
    if quantized:
        hidden |= {name for name in infos if name.endswith(_OF_ACTIVATIONS)}
    plain = {name: info for name, info in infos.items() if name not in hidden}
    return plain | {name: each.info for name, each in quantized.items()}, quantized


def speaks_of_quantisation(config: Mapping[str, Any]) -> bool:
    """Whether a config.json has settings of a quantised model; plain weights may have kept them."""
    return bool(_quantization_config(config))


def _quantization_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
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


def _decoded(scale: torch.Tensor, dtype: str) -> torch.Tensor:
    """Scales as float32 numbers."""
    import torch

    if dtype == "U8":
        return torch.exp2(scale.to(torch.float32) - _EXPONENT_BIAS)
    return scale.to(torch.float32)


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
