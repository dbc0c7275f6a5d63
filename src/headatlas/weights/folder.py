"""Checkpoints on disk: a folder, a `.safetensors` file with its config.json, or a `.gguf` file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headatlas.errors import HeadatlasError
from headatlas.weights.adapter import CONFIG_NAME, WEIGHTS_NAME, adapter_alone
from headatlas.weights.gguf_header import MAGIC
from headatlas.weights.gguf_source import GgufSource, parts_of
from headatlas.weights.jsonfile import read_json_object
from headatlas.weights.safetensors_source import INDEX_NAME, SafetensorsSource, read_weight_map
from headatlas.weights.source import Checkpoint

SINGLE_NAME = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_CONVERT = (
    "which headatlas never opens, for reading it can run what is in it; convert the model once, where you "
    "trust it, with AutoModelForCausalLM.from_pretrained(…).save_pretrained(FOLDER), and give that folder"
)


def open_path(path: Path, spec: str) -> Checkpoint:
    """Open what lies at a path that exists.

    Raises:
        HeadatlasError: It is no checkpoint that headatlas reads, or a broken one.
    """
    if path.is_dir():
        return _open_folder(path, spec)
    if path.suffix == ".gguf" and path.is_file():
        return open_gguf(path, spec)
    if path.suffix == ".safetensors" and path.is_file():
        return _open_safetensors_file(path, spec)
    if path.suffix in _PICKLES:
        raise HeadatlasError(f"{path} is a pickle, {_CONVERT}.")
    if _starts_like_gguf(path):
        return open_gguf(path, spec)
    raise HeadatlasError(
        f"{path} is not a model that headatlas opens; give a .safetensors or .gguf "
        "file, or the model's folder."
    )


def _starts_like_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(4) == MAGIC
    except OSError:
        return False


def _open_folder(folder: Path, spec: str) -> Checkpoint:
    single, index = folder / SINGLE_NAME, folder / INDEX_NAME
    if single.is_file():
        return _with_config(SafetensorsSource([single]), folder, spec, notes=_beside(single, index))
    if index.is_file():
        return _with_config(SafetensorsSource.from_index(index), folder, spec)
    if (folder / CONFIG_NAME).is_file():
        raise adapter_alone(folder, folder / CONFIG_NAME)
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return _with_config(SafetensorsSource(found), folder, spec)
    if found:
        raise HeadatlasError(
            f"{folder} holds {len(found)} .safetensors files and no {INDEX_NAME}; "
            "fetch the index or give one file."
        )
    return _open_gguf_folder(folder, spec)


def _beside(single: Path, index: Path) -> tuple[str, ...]:
    """Notes on weights in one file beside an index that names others.

    Raises:
        HeadatlasError: The two are not the same model.
    """
    if not index.is_file():
        return ()
    weight_map = read_weight_map(index)
    shards = sorted({name for name in weight_map.values() if name != SINGLE_NAME})
    if not shards:
        return ()
    there = [index.parent / name for name in shards if (index.parent / name).is_file()]
    one = SafetensorsSource([single]).infos()
    others = SafetensorsSource(there).infos() if there else {}
    different = sorted(set(one) ^ set(weight_map))
    different += sorted(name for name in one if name in others and one[name].shape != others[name].shape)
    if different:
        raise HeadatlasError(
            f"{single} and {index.name} beside it are of different models: {different[0]!r} is in one of "
            "them only, or has another shape; remove the one that does not belong."
        )
    what = "gives the same names and shapes" if len(there) == len(shards) else "names files that are not here"
    return (
        f"{SINGLE_NAME} is read, as transformers does, and not the {len(shards)} shards beside it; "
        f"{index.name} {what}.",
    )


def _open_gguf_folder(folder: Path, spec: str) -> Checkpoint:
    # A vision encoder in a file of its own is called mmproj-….gguf.
    found = sorted(file for file in folder.glob("*.gguf") if not file.name.startswith("mmproj"))
    models = sorted({parts_of(file)[0] for file in found})
    if len(models) == 1:
        return open_gguf(models[0], spec)
    if models:
        named = ", ".join(file.name for file in models[:5])
        raise HeadatlasError(
            f"{folder} holds {len(models)} GGUF models ({named}{' …' if len(models) > 5 else ''}); "
            "give the path of one file."
        )
    pickle = next((file for kind in _PICKLES for file in sorted(folder.glob(f"*{kind}"))), None)
    if pickle is not None:
        raise HeadatlasError(f"{folder} holds its weights as a pickle ({pickle.name}), {_CONVERT}.")
    raise HeadatlasError(
        f"{folder} holds no {SINGLE_NAME}, {INDEX_NAME} or .gguf file; give the folder of a model."
    )


def _open_safetensors_file(path: Path, spec: str) -> Checkpoint:
    index = path.parent / INDEX_NAME
    if path.name == WEIGHTS_NAME:
        raise adapter_alone(path, path.parent / CONFIG_NAME)
    if index.is_file() and path.name in read_weight_map(index).values():
        raise HeadatlasError(f"{path} is one shard of a model; give its folder {path.parent}.")
    return _with_config(SafetensorsSource([path]), path.parent, spec, path)


def _with_config(
    source: SafetensorsSource, folder: Path, spec: str, path: Path | None = None, notes: tuple[str, ...] = ()
) -> Checkpoint:
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise HeadatlasError(f"{config_file} is missing; it says what the tensors mean, fetch it.")
    config = read_json_object(config_file)
    source.unpack(config)
    return Checkpoint(
        spec=spec,
        name=folder.resolve().name,
        format="safetensors",
        path=path or folder,
        revision=None,
        architecture=architecture_of(config, config_file),
        config=config,
        source=source,
        notes=notes,
    )


def architecture_of(config: Mapping[str, Any], file: Path | str) -> str:
    """The architecture that a config.json names.

    Raises:
        HeadatlasError: It names none.
    """
    named = config.get("architectures")
    if isinstance(named, list) and named and isinstance(named[0], str):
        return named[0]
    model_type = config.get("model_type")
    if isinstance(model_type, str):
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
        if known is not None:
            return str(known)
    raise HeadatlasError(
        f'{file} names no architecture (no "architectures", and "model_type" is {model_type!r}); '
        'add it, e.g. "architectures": ["LlamaForCausalLM"].'
    )


def open_gguf(path: Path, spec: str) -> Checkpoint:
    """Open a GGUF file, whatever it is called.

    Raises:
        HeadatlasError: It is broken, or a part of it is missing.
    """
    source = GgufSource(path)
    metadata = source.header.metadata
    if (kind := metadata.get("general.type", "model")) != "model":
        raise HeadatlasError(
            f"{path} is no model: by its header (general.type) it is {kind!r}; give the file of the model"
            f"{', with the adapter merged in (llama-export-lora)' if kind == 'adapter' else ''}."
        )
    architecture, name = metadata.get("general.architecture"), metadata.get("general.name")
    if not isinstance(architecture, str) or not architecture:
        raise HeadatlasError(f"{path} names no general.architecture; convert the model again.")
    # Whoever makes a config of the header makes a list of this length.
    layers = metadata.get(f"{architecture}.block_count")
    if isinstance(layers, int) and layers > len(source.infos()):
        raise HeadatlasError(
            f"{path}: its header speaks of {layers:,} layers, and it holds {len(source.infos()):,} tensors; "
            "fetch or convert the file again."
        )
    licence = metadata.get("general.license")
    return Checkpoint(
        spec=spec,
        name=name if isinstance(name, str) and name.strip() else path.stem,
        format="gguf",
        path=source.files[0],
        revision=None,
        architecture=architecture,
        config=metadata,
        source=source,
        notes=(f"The model's file declares the licence {licence!r}.",) if isinstance(licence, str) else (),
    )
