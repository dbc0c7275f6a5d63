"""A LoRA adapter of PEFT beside its base model: merged exactly when asked for, never passed over.

Merging adds ``scale * B @ A`` to a stored weight, in float32, when the weight is read. ``scale`` is
``lora_alpha / r``, with ``use_rslora`` ``lora_alpha / sqrt(r)``; single modules may have other numbers
(``rank_pattern``, ``alpha_pattern``). Sources: huggingface/peft, tuners/lora/layer.py (``update_layer``,
``get_delta_weight``) and utils/save_and_load.py (names). Whatever else a config or a file holds is refused.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headatlas.devices import strict_products
from headatlas.errors import HeadatlasError
from headatlas.weights.local_files import read_json_object, sha256_of_file
from headatlas.weights.safetensors_source import SafetensorsSource
from headatlas.weights.source import Checkpoint, Mapped, MergedAdapter, TensorInfo, TensorSource

if TYPE_CHECKING:
    import torch

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_FILES = (CONFIG_NAME, WEIGHTS_NAME, "adapter_model.bin")
_MERGE = (
    "merge it with PEFT (PeftModel.from_pretrained(base, ADAPTER).merge_and_unload()"
    ".save_pretrained(FOLDER)) and give that folder"
)

_READ = frozenset(
    {"peft_type", "r", "lora_alpha", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern"}
)
"""Keys of a config that say how to merge."""
_WITHOUT_EFFECT = frozenset(
    {
        *(
            "auto_mapping",
            "base_model_name_or_path",
            "revision",
            "inference_mode",
            "peft_version",
            "task_type",
        ),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout"),
        *("runtime_config", "ephemeral_gpu_offload", "megatron_core", "qalora_group_size", "loftq_config"),
        *("eva_config", "corda_config", "lora_ga_config", "ensure_weight_tying"),
    }
)
"""Keys that say how an adapter was trained or put in place; merging does not depend on them."""
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the base as it is; the others (PiSSA, OLoRA …) change it."""
_KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?\.weight"
)
_PLAIN_PATTERN = re.compile(r"\^?(?:[\w-]|\\?\.)+\$?", re.ASCII)


def refuse_adapter_beside(checkpoint: Checkpoint) -> None:
    """Make sure that no adapter lies beside weights that are to be read without it.

    Raises:
        HeadatlasError: One does.
    """
    if checkpoint.format != "safetensors" or checkpoint.path is None:
        return
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    if found := [name for name in _FILES if (folder / name).is_file()]:
        raise HeadatlasError(
            f"{folder} holds a model and an adapter that is not merged into it ({', '.join(found)}); give "
            f"`adapter` {shlex.quote(str(folder))} to map the two together, or {_MERGE}; to map the base "
            "alone, move the adapter's files away."
        )


def adapter_alone(where: Path | str, config: Path) -> HeadatlasError:
    """The refusal of an adapter where a model is needed; it names the base.

    Args:
        where: The folder or repository.
        config: Its adapter_config.json.
    """
    base = read_json_object(config).get("base_model_name_or_path") if config.is_file() else None
    if not isinstance(base, str) or not base:
        return HeadatlasError(
            f"{where} holds an adapter, not a whole model, and does not name its base; give the base model "
            "and the adapter's folder with `adapter`."
        )
    return HeadatlasError(
        f"{where} holds an adapter of {base!r}, not a whole model; give {base!r} (or its folder) as the "
        "model, and the adapter's folder with `adapter`."
    )


def with_adapter(checkpoint: Checkpoint, folder: str | Path) -> Checkpoint:
    """A checkpoint whose weights have an adapter merged into them.

    Args:
        checkpoint: Safetensors, on disk or read in place.
        folder: The adapter's: adapter_config.json and adapter_model.safetensors.

    Raises:
        HeadatlasError: The base is not safetensors, the adapter is no plain LoRA, or does not fit the base.
    """
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
    source = AdaptedSource(checkpoint.source, factors, _updates(config, factors, checkpoint.source, home))
    base = config.get("base_model_name_or_path")
    adapter = MergedAdapter(
        name=home.resolve().name,
        folder=str(folder),
        base=base if isinstance(base, str) and base else None,
        hash=_hash(home),
        tensors=frozenset(source.updates),
    )
    said = f"it says that its base is {adapter.base!r}" if adapter.base else "it does not name its base"
    note = (
        f"The adapter {adapter.name} (LoRA) is merged into {checkpoint.name} ({len(adapter.tensors)} of "
        f"{len(source.infos())} tensors); {said}."
    )
    name = f"{checkpoint.name} + {adapter.name}"
    return replace(checkpoint, name=name, source=source, adapter=adapter, notes=(*checkpoint.notes, note))


@dataclass(frozen=True)
class Update:
    """The term that an adapter adds to one stored weight: ``scale * B @ A``.

    Attributes:
        A, B: Names of the factors [r, in] and [out, r].
        scale: What their product is multiplied by.
        transposed: Whether the weight is stored as [in, out].
    """

    A: str
    B: str
    scale: float
    transposed: bool


class AdaptedSource:
    """The tensors of another source with an adapter merged into them.

    Attributes:
        base: The other source.
        updates: Name of a stored weight → what is added to it.
    """

    def __init__(self, base: TensorSource, factors: SafetensorsSource, updates: dict[str, Update]) -> None:
        self.base = base
        self.updates = updates
        self._factors = factors

    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor of the base by name, as it is stored there."""
        return self.base.infos()

    def read(self, name: str, rows: slice | Sequence[int] | None = None) -> torch.Tensor:
        """See :meth:`headatlas.weights.source.TensorSource.read`."""
        weight = self.base.read(name, rows)
        update = self.updates.get(name)
        if update is None:
            return weight
        A, B = self._factor(update.A), self._factor(update.B)
        wanted = slice(None) if rows is None else rows if isinstance(rows, slice) else list(rows)
        with strict_products():
            delta = (B @ A[:, wanted]).T if update.transposed else B[wanted] @ A
        return weight.add_(delta.mul_(update.scale))

    def stored(self, name: str) -> torch.Tensor:
        """A tensor as it is stored, not to be written to; merged, and in float32, where the adapter has one.

        Raises:
            HeadatlasError: It cannot be read.
        """
        if name not in self.updates and isinstance(self.base, SafetensorsSource):
            return self.base.stored(name)
        return self.read(name)

    def release(self) -> None:
        """Unmap the files until the next read."""
        self._factors.release()
        if isinstance(self.base, Mapped):
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


def _config(home: Path) -> dict[str, Any]:
    """An adapter's config, if it is a LoRA that can be merged exactly.

    Raises:
        HeadatlasError: It is not, with the key that says so.
    """
    file = home / CONFIG_NAME
    if not file.is_file():
        known = (
            "" if home.is_dir() else " (give a folder on this machine; `hf download org/name` fetches one)"
        )
        raise HeadatlasError(f"`adapter` {home}: there is no {CONFIG_NAME}{known}.")
    config = read_json_object(file)
    if config.get("peft_type") != "LORA":
        raise HeadatlasError(
            f"{file}: peft_type is {config.get('peft_type')!r}, and only LORA is merged; {_MERGE}."
        )
    if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
        raise HeadatlasError(
            f"{file}: init_lora_weights is {config['init_lora_weights']!r}, which changes the base weights "
            f"as well; {_MERGE}."
        )
    for key, value in config.items():
        idle = value in (None, False, [], {}, "") or (key, value) == ("bias", "none")
        if not idle and key not in _READ | _WITHOUT_EFFECT | {"init_lora_weights"}:
            raise HeadatlasError(
                f"{file}: {key} is {str(value)[:100]}, which is more than a plain LoRA; {_MERGE}."
            )
    for key in ("use_rslora", "fan_in_fan_out"):
        if config.get(key) not in (None, True, False):
            raise HeadatlasError(f"{file}: {key} is {config[key]!r}, where true or false is needed.")
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(key) or {}, dict):
            raise HeadatlasError(f"{file}: {key} is no object of numbers by module.")
        for pattern in config.get(key) or {}:
            if _PLAIN_PATTERN.fullmatch(pattern) is None:
                raise HeadatlasError(
                    f"{file}: {key} has the regular expression {pattern[:100]!r}, and only names of modules "
                    f"are followed; {_MERGE}."
                )
    return config


def _number(config: Mapping[str, Any], module: str, key: str, patterns: str, file: Path) -> float:
    """Rank or alpha of a module: what the first pattern says that its name ends with, else the config's."""
    usual = config.get(key, 8)  # PEFT's default of both
    found = next(
        (
            value
            for pattern, value in (config.get(patterns) or {}).items()
            if re.match(rf"(.*\.)?({pattern})$", module)
        ),
        usual,
    )
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not abs(found) < 1e9:
        raise HeadatlasError(f"{file}: {key} of {module!r} is {found!r}, where a number is needed.")
    return found


def _updates(
    config: Mapping[str, Any], factors: SafetensorsSource, base: TensorSource, home: Path
) -> dict[str, Update]:
    """Stored weights and the terms that an adapter adds to them.

    Raises:
        HeadatlasError: A tensor of the adapter is not understood or fits no weight of the base.
    """
    stored, shapes = _by_end(base.infos()), factors.infos()
    conv1d = _stores_transposed(base.infos())
    found: dict[str, Update] = {}
    for module, (A, B) in _pairs(factors, home):
        name = _target(f"{module}.weight", base.infos(), stored)
        if name is None or name in found:
            raise HeadatlasError(
                f"{home / WEIGHTS_NAME}: tensor {A!r} belongs to no weight of the base, or to several; check "
                f"that the adapter was trained on this model, or {_MERGE}."
            )
        (rank, d_in), (d_out, _) = shapes[A].shape, shapes[B].shape
        shape, flag = base.infos()[name].shape, bool(config.get("fan_in_fan_out"))
        if sorted(shape) != sorted((d_in, d_out)) or len(shape) != 2:
            raise HeadatlasError(
                f"{home / WEIGHTS_NAME}: {A!r} and its partner make a matrix of {d_out} by {d_in}, but "
                f"{name!r} of the base has the shape {list(shape)}; give the model that the adapter was "
                "trained on."
            )
        if d_in == d_out and flag != conv1d:
            raise HeadatlasError(
                f"{home / CONFIG_NAME}: fan_in_fan_out is {str(flag).lower()}, but the base stores {name!r} "
                f"{'input' if conv1d else 'output'} first; correct it, or {_MERGE}."
            )
        alpha = _number(config, module, "lora_alpha", "alpha_pattern", home / CONFIG_NAME)
        said = _number(config, module, "r", "rank_pattern", home / CONFIG_NAME)
        if said != rank or rank < 1:
            raise HeadatlasError(
                f"{home / CONFIG_NAME}: the rank of {module!r} is {said}, but {A!r} has {rank} rows; the "
                "config does not belong to these weights."
            )
        scale = alpha / (sqrt(rank) if config.get("use_rslora") else rank)
        found[name] = Update(A, B, scale, transposed=conv1d if d_in == d_out else shape == (d_in, d_out))
    return found


def _pairs(factors: SafetensorsSource, home: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """Paths of modules with the names of their A and B.

    Raises:
        HeadatlasError: A tensor is neither, or without its partner, or there are several of a module.
    """
    file = home / WEIGHTS_NAME
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
            raise HeadatlasError(
                f"{file}: {next(iter(names.values()))!r} has no partner; save the adapter again."
            )
        shapes = [factors.infos()[names[side]].shape for side in "AB"]
        if shapes[0][0] != shapes[1][1]:
            raise HeadatlasError(
                f"{file}: {names['A']!r} has {shapes[0][0]} rows and {names['B']!r} {shapes[1][1]} columns, "
                "which must be the same; save the adapter again."
            )
        yield module, (names["A"], names["B"])


def _by_end(stored: Mapping[str, TensorInfo]) -> dict[str, str | None]:
    """Every end of a stored name, from a dot on → the name; None where several end so."""
    found: dict[str, str | None] = {}
    for name in stored:
        parts = name.split(".")
        for start in range(1, len(parts)):
            end = ".".join(parts[start:])
            found[end] = None if end in found else name
    return found


def _target(wanted: str, stored: Mapping[str, TensorInfo], ends: Mapping[str, str | None]) -> str | None:
    """The stored name of a module's weight.

    A file may leave out what its modules' paths begin with (GPT-2: ``h.0…`` for ``transformer.h.0…``), or the
    other way round.
    """
    if wanted in stored:
        return wanted
    if ends.get(wanted) is not None:
        return ends[wanted]
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


def _hash(home: Path) -> str:
    try:
        lines = "".join(f"{sha256_of_file(home / name)}  {name}\n" for name in (CONFIG_NAME, WEIGHTS_NAME))
    except OSError as error:
        raise HeadatlasError(f"{home} cannot be read: {error.strerror or error}.") from error
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"
