"""A LoRA adapter of PEFT beside its base model: merged exactly when asked for, never passed over.

Merging adds ``scale * B @ A`` to a stored weight, in float32, when the weight is read. ``scale`` is
``lora_alpha / r``, with ``use_rslora`` ``lora_alpha / sqrt(r)``. Sources: huggingface/peft,
tuners/lora/layer.py (``update_layer``, ``get_delta_weight``) and utils/save_and_load.py (names). Whatever
else a config or a file holds, such as numbers of single modules (``rank_pattern``), is refused.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from headatlas.devices import strict_products
from headatlas.errors import HeadatlasError
from headatlas.files import read_json_object, reading, sha256_of_files
from headatlas.weights.safetensors_source import SafetensorsSource
from headatlas.weights.source import Checkpoint, MergedAdapter, Rows, TensorInfo, TensorSource, place_of

if TYPE_CHECKING:
    import torch

ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_FILES = (ADAPTER_CONFIG, WEIGHTS_NAME, "adapter_model.bin")
_MERGE = (
    "merge it with PEFT (PeftModel.from_pretrained(base, ADAPTER).merge_and_unload()"
    ".save_pretrained(FOLDER)) and give that folder"
)

_WITHOUT_EFFECT = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout"),
        *("runtime_config", "ephemeral_gpu_offload", "megatron_core", "qalora_group_size", "loftq_config"),
        *("eva_config", "corda_config", "lora_ga_config", "ensure_weight_tying", "task_type"),
    }
)
"""Keys of a config that say how an adapter was trained or put in place; merging does not depend on them."""
_KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?\.weight"
)
_Number = Annotated[float, Field(gt=-1e9, lt=1e9)]


class _Config(BaseModel, extra="allow", strict=True):
    """The keys of an adapter_config.json that say how to merge; the defaults are PEFT's."""

    peft_type: Literal["LORA"]
    r: _Number = 8
    lora_alpha: _Number = 8
    use_rslora: bool | None = False
    fan_in_fan_out: bool | None = False
    # The other starts (PiSSA, OLoRA …) change the base.
    init_lora_weights: Literal[True, False, None, "gaussian", "eva", "orthogonal"] = True
    base_model_name_or_path: Any = None

    @property
    def scale(self) -> float:
        """The factor of the products of A and B."""
        return self.lora_alpha / (sqrt(self.r) if self.use_rslora else self.r)


def refuse_adapter_beside(checkpoint: Checkpoint) -> None:
    """Refuse weights that an adapter lies beside and that are to be read without it."""
    if checkpoint.format != "safetensors" or checkpoint.path is None:
        return
    folder = checkpoint.folder
    if found := [name for name in _FILES if (folder / name).is_file()]:
        raise HeadatlasError(
            f"{folder} holds a model and an adapter that is not merged into it ({', '.join(found)}); give "
            f"`adapter` {shlex.quote(str(folder))} to map the two together, or {_MERGE}; to map the base "
            "alone, move the adapter's files away."
        )


def adapter_alone(where: Path | str, config: Path) -> HeadatlasError:
    """The refusal of an adapter, by its place and its config, where a model is needed; it names the base."""
    base = _named_base(read_json_object(config).get("base_model_name_or_path") if config.is_file() else None)
    if base is None:
        return HeadatlasError(
            f"{where} holds an adapter, not a whole model, and does not name its base; give the base model "
            "and the adapter's folder with `adapter`."
        )
    return HeadatlasError(
        f"{where} holds an adapter of {base!r}, not a whole model; give {base!r} (or its folder) as the "
        "model, and the adapter's folder with `adapter`."
    )


def with_adapter(checkpoint: Checkpoint, folder: str | Path) -> Checkpoint:
    """A checkpoint (safetensors) whose weights have the adapter of a folder merged into them."""
    if checkpoint.format != "safetensors":
        what = "a loaded model" if checkpoint.format == "module" else "a GGUF file"
        raise HeadatlasError(
            f"`adapter`: an adapter is merged into safetensors, and {checkpoint.spec} is {what}; give the "
            "folder of the model that the adapter was trained on."
        )
    home = Path(folder).expanduser()
    config = _config(home)
    if not (home / WEIGHTS_NAME).is_file():
        raise HeadatlasError(f"{home} holds no {WEIGHTS_NAME}; save the adapter again, as safetensors.")
    factors = SafetensorsSource([home / WEIGHTS_NAME])
    updates = _updates(config, factors, checkpoint.source, home)
    adapter = MergedAdapter(
        name=home.resolve().name,
        folder=str(folder),
        base=_named_base(config.base_model_name_or_path),
        hash=f"sha256:{sha256_of_files([home / ADAPTER_CONFIG, home / WEIGHTS_NAME])}",
        tensors=frozenset(updates),
    )
    source = AdaptedSource(checkpoint.source, factors, updates, adapter.hash)
    said = f"it says that its base is {adapter.base!r}" if adapter.base else "it does not name its base"
    note = (
        f"The adapter {adapter.name} (LoRA) is merged into {checkpoint.name} ({len(adapter.tensors)} of "
        f"{len(source.infos())} tensors); {said}."
    )
    name = f"{checkpoint.name} + {adapter.name}"
    return replace(checkpoint, name=name, source=source, adapter=adapter, notes=(*checkpoint.notes, note))


def _named_base(said: object) -> str | None:
    return said if isinstance(said, str) and said else None


@dataclass(frozen=True)
class Update:
    """The term that an adapter adds to one stored weight: ``scale * B @ A``."""

    A: str  # name of the factor [r, in]
    B: str  # and of the other [out, r]
    scale: float
    transposed: bool  # whether the weight is stored as [in, out]


class AdaptedSource(TensorSource):
    """The tensors of another source with an adapter merged into them."""

    def __init__(
        self, base: TensorSource, factors: SafetensorsSource, updates: dict[str, Update], adapter_hash: str
    ) -> None:
        self.base = base
        self.updates = updates
        self._factors, self._hash = factors, adapter_hash

    def infos(self) -> Mapping[str, TensorInfo]:
        return self.base.infos()

    def read(self, name: str, rows: Rows = None) -> torch.Tensor:
        weight = self.base.read(name, rows)
        update = self.updates.get(name)
        if update is None:
            return weight
        A, B = self._factor(update.A), self._factor(update.B)
        wanted = place_of(rows)
        with strict_products():
            delta = (B @ A[:, wanted]).T if update.transposed else B[wanted] @ A
        return weight.add_(delta.mul_(update.scale))

    def stored(self, name: str) -> torch.Tensor:
        return self.read(name) if name in self.updates else self.base.stored(name)

    def fingerprint(self) -> str:
        body = f"{self.base.fingerprint()}\n{self._hash}\n"
        return f"adapted-sha256:{hashlib.sha256(body.encode()).hexdigest()}"

    def release(self) -> None:
        self._factors.release()
        self.base.release()

    def _factor(self, name: str) -> torch.Tensor:
        import torch

        factor = self._factors.read(name).to(torch.float32)
        if not bool(torch.isfinite(factor).all()):
            raise HeadatlasError(
                f"{self._factors.files[0]}: tensor {name!r} holds numbers that are not finite; the adapter "
                "is damaged, or its training diverged."
            )
        return factor


def _config(home: Path) -> _Config:
    """An adapter's config, if it is a LoRA that can be merged exactly; the refusal names the key."""
    file = home / ADAPTER_CONFIG
    with reading(file):
        there = file.is_file()
    if not there:
        known = (
            "" if home.is_dir() else " (give a folder of this machine; `hf download org/name` fetches one)"
        )
        raise HeadatlasError(f"`adapter` {home}: there is no {ADAPTER_CONFIG}{known}.")
    try:
        config = _Config.model_validate(read_json_object(file))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise HeadatlasError(
            f"{file}: {key} is {first['input']!r:.100}, which is not merged ({first['msg']}); {_MERGE}."
        ) from error
    for key, value in (config.model_extra or {}).items():
        idle = value in (None, False, [], {}, "") or (key, value) == ("bias", "none")
        if not idle and key not in _WITHOUT_EFFECT:
            raise HeadatlasError(
                f"{file}: {key} is {str(value)[:100]}, which is more than a plain LoRA; {_MERGE}."
            )
    return config


def _updates(
    config: _Config, factors: SafetensorsSource, base: TensorSource, home: Path
) -> dict[str, Update]:
    """Stored weights and the terms that an adapter adds to them."""
    infos, shapes = base.infos(), factors.infos()
    conv1d, flag = _stores_transposed(infos), bool(config.fan_in_fan_out)
    file = home / WEIGHTS_NAME
    found: dict[str, Update] = {}
    for module, (A, B) in _pairs(factors, file):
        name = _target(f"{module}.weight", infos)
        if name is None or name in found:
            raise HeadatlasError(
                f"{file}: tensor {A!r} belongs to no weight of the base, or to several; check that the "
                f"adapter was trained on this model, or {_MERGE}."
            )
        (rank, d_in), (d_out, _), shape = shapes[A].shape, shapes[B].shape, infos[name].shape
        if sorted(shape) != sorted((d_in, d_out)):
            raise HeadatlasError(
                f"{file}: {A!r} and its partner make a matrix of {d_out} by {d_in}, but {name!r} of the base "
                f"has the shape {list(shape)}; give the model that the adapter was trained on."
            )
        if d_in == d_out and flag != conv1d:
            raise HeadatlasError(
                f"{home / ADAPTER_CONFIG}: fan_in_fan_out is {str(flag).lower()}, but the base stores "
                f"{name!r} {'input' if conv1d else 'output'} first; correct it, or {_MERGE}."
            )
        if config.r != rank or rank < 1:
            raise HeadatlasError(
                f"{home / ADAPTER_CONFIG}: r is {config.r:g}, but {A!r} has {rank} rows; the config does not "
                "belong to these weights."
            )
        transposed = conv1d if d_in == d_out else shape == (d_in, d_out)
        found[name] = Update(A, B, config.scale, transposed)
    return found


def _pairs(factors: SafetensorsSource, file: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """Paths of modules with the names of their A and B."""
    sides: dict[str, dict[str, str]] = {}
    for name, info in factors.infos().items():
        match = _KEY.fullmatch(name)
        if match is None or len(info.shape) != 2:
            raise HeadatlasError(f"{file}: tensor {name!r} is no A or B of a plain LoRA; {_MERGE}.")
        if match["side"] in sides.setdefault(match["module"], {}):
            raise HeadatlasError(f"{file}: {name!r} is there for several adapters; save one alone.")
        sides[match["module"]][match["side"]] = name
    for module, names in sides.items():
        if len(names) != 2:
            raise HeadatlasError(f"{file}: {min(names.values())!r} has no partner; save the adapter again.")
        (rows, _), (_, columns) = (factors.infos()[names[side]].shape for side in "AB")
        if rows != columns:
            raise HeadatlasError(
                f"{file}: {names['A']!r} has {rows} rows and {names['B']!r} {columns} columns, which must be "
                "the same; save the adapter again."
            )
        yield module, (names["A"], names["B"])


def _target(wanted: str, stored: Mapping[str, TensorInfo]) -> str | None:
    """The stored name of a module's weight; None where there is none, or several might be meant.

    A file may leave out what its modules' paths begin with (GPT-2: ``h.0…`` for ``transformer.h.0…``), or the
    other way round.
    """
    if wanted in stored:
        return wanted
    if longer := [name for name in stored if name.endswith(f".{wanted}")]:
        return longer[0] if len(longer) == 1 else None
    parts = wanted.split(".")
    shorter = (".".join(parts[start:]) for start in range(1, len(parts) - 2))
    return next((name for name in shorter if name in stored), None)


def _stores_transposed(stored: Mapping[str, TensorInfo]) -> bool:
    """Whether weights are [in, out], as of GPT-2's Conv1D: then biases are as long as their second axis."""
    for name, info in stored.items():
        bias = stored.get(f"{name.removesuffix('.weight')}.bias")
        if name.endswith(".weight") and len(info.shape) == 2 and bias is not None:
            d_first, d_second = info.shape
            if d_first != d_second and bias.shape == (d_second,):
                return True
    return False
