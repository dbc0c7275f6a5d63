"""Models on the Hugging Face Hub: only the files needed, through huggingface_hub and its cache."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headatlas.errors import HeadatlasError
from headatlas.weights.adapter import CONFIG_NAME, adapter_alone
from headatlas.weights.gguf_source import SPLIT_NAME
from headatlas.weights.safetensors_source import INDEX_NAME, read_weight_map

HUB_ID = re.compile(
    r"^(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@(?P<revision>[A-Za-z0-9][\w./-]*))?$", re.ASCII
)
_SMALL_FILES = re.compile(
    r"^(config\.json|adapter_config\.json|tokenizer.*\.(json|model)|[\w.-]+\.model|special_tokens_map\.json|added_tokens\.json|"
    r"vocab\.(json|txt)|merges\.txt|.*\.tiktoken)$"
)
_UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx")


def download(repo: str, revision: str | None) -> tuple[Path, str]:
    """Fetch what headatlas reads of a Hub model, or find it in the cache.

    With ``HF_HUB_OFFLINE`` set, or when the Hub cannot be reached, only the cache is used.

    Args:
        repo: ``org/name``.
        revision: Branch, tag or commit; the default branch if None.

    Returns:
        The folder with the files, and the commit.

    Raises:
        HeadatlasError: The model or revision does not exist, is gated, has no usable files, or is neither
            reachable nor in the cache.
    """
    import huggingface_hub

    with explained(repo, revision):
        if huggingface_hub.is_offline_mode():
            folder = _cached(repo, revision)
        else:
            names = _file_names(repo, revision)
            folder = _cached(repo, revision) if names is None else _fetch(repo, revision, names)
    return folder, folder.name


def download_all_but_weights(repo: str, revision: str | None) -> tuple[Path, list[str]]:
    """Fetch config, tokenizer and index of a Hub model whose weights are to be read in place.

    Returns:
        The folder with the files, named like the commit; and the name of the weights or of their index.

    Raises:
        HeadatlasError: As :func:`download`, or the Hub cannot be asked, or the weights are not safetensors.
    """
    import huggingface_hub

    with explained(repo, revision):
        names = None if huggingface_hub.is_offline_mode() else _file_names(repo, revision)
        if names is None:
            raise HeadatlasError(
                f"{repo} is to be read from the Hub, which cannot be reached (offline mode or no "
                "connection); leave out `remote=True` to use what is in the cache."
            )
        if "config.json" not in names:
            raise HeadatlasError(
                f"{repo} on the Hub has no config.json; it cannot be read with `remote=True`."
            )
        weights = _weight_files(repo, revision, names)[:1]
        if weights[0].endswith(".gguf"):
            raise HeadatlasError(
                f"{repo} on the Hub holds a GGUF file; leave out `remote=True` to download it."
            )
        wanted = [name for name in names if _SMALL_FILES.match(name)]
        wanted += [INDEX_NAME] if weights == [INDEX_NAME] else []
        folder = huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=[_literal(name) for name in wanted]
        )
    return Path(folder), weights


def _file_names(repo: str, revision: str | None) -> list[str] | None:
    """Names of the files at the top of the repository; None when the Hub cannot be reached."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        info = huggingface_hub.HfApi().model_info(repo, revision=revision)
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code >= 500:
            return None
        raise
    except (ConnectionError, _client_error()):
        return None
    return [item.rfilename for item in info.siblings or [] if "/" not in item.rfilename]


def _fetch(repo: str, revision: str | None, names: list[str]) -> Path:
    import huggingface_hub

    if (
        CONFIG_NAME not in names
        and "config.json" not in names
        and not any(name.endswith(".gguf") for name in names)
    ):
        raise HeadatlasError(
            f"{repo} on the Hub has no config.json; it does not hold a model for transformers."
        )
    wanted = [name for name in names if _SMALL_FILES.match(name)] + _weight_files(repo, revision, names)
    return Path(
        huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=[_literal(n) for n in wanted]
        )
    )


def _weight_files(repo: str, revision: str | None, names: list[str]) -> list[str]:
    """The files that hold the model, without the copies that some repositories add."""
    import huggingface_hub

    if "model.safetensors" in names:
        return ["model.safetensors", *([INDEX_NAME] if INDEX_NAME in names else [])]
    if INDEX_NAME in names:
        index = huggingface_hub.hf_hub_download(repo, INDEX_NAME, revision=revision)
        return [INDEX_NAME, *sorted(set(read_weight_map(Path(index)).values()))]
    if CONFIG_NAME in names:
        config = huggingface_hub.hf_hub_download(repo, CONFIG_NAME, revision=revision)
        raise adapter_alone(f"{repo} on the Hub", Path(config))
    gguf = sorted(name for name in names if name.endswith(".gguf") and not name.startswith("mmproj"))
    if len(gguf) == 1 or len({_split_model(name) for name in gguf}) == 1:
        return gguf
    if gguf:
        raise HeadatlasError(
            f"{repo} on the Hub holds several GGUF files; fetch one with `hf download {repo} {gguf[0]}` "
            "and give its path."
        )
    if any(name.endswith(_UNSAFE) for name in names):
        raise HeadatlasError(
            f"{repo} on the Hub holds its weights in a pickle or another format that headatlas does not "
            "open; convert them once, where you trust them, with AutoModelForCausalLM.from_pretrained(…)"
            ".save_pretrained(FOLDER), and give the folder."
        )
    raise HeadatlasError(f"{repo} on the Hub holds no .safetensors weights.")


def _split_model(name: str) -> str:
    """The common name of the parts of a split GGUF; for another file its own."""
    split = SPLIT_NAME.match(name)
    return name if split is None else f"{split['stem']} of {split['parts']}"


def _cached(repo: str, revision: str | None) -> Path:
    import huggingface_hub

    return Path(
        huggingface_hub.snapshot_download(
            repo, revision=revision, local_files_only=True, allow_patterns=["config.json"]
        )
    )


def _literal(name: str) -> str:
    """A file name as a pattern that matches only itself."""
    return re.sub(r"([*?\[])", r"[\1]", name)


def _client_error() -> type[Exception]:
    """The base of what huggingface_hub's HTTP client raises; which client that is has changed before."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


@contextmanager
def explained(repo: str, revision: str | None) -> Iterator[None]:
    """Turn the errors of huggingface_hub into sentences that say what to do."""
    from huggingface_hub import errors

    where = f"{repo}@{revision}" if revision else repo
    try:
        yield
    except errors.GatedRepoError as error:
        raise HeadatlasError(
            f"{repo} is gated: accept its terms on the model's page on the Hub, then log in with "
            "`hf auth login`."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HeadatlasError(
            f"{repo} is neither a folder here nor a model on the Hub that you may read; check the "
            "spelling, or log in with `hf auth login` if it is private."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HeadatlasError(f"{repo} on the Hub has no revision {revision!r}; check the name.") from error
    except errors.LocalEntryNotFoundError as error:
        raise HeadatlasError(
            f"{where} is not in the cache of the Hub and the Hub cannot be reached "
            "(offline mode or no connection); run once with a connection, or give a folder."
        ) from error
    except errors.HFValidationError as error:
        raise HeadatlasError(f"{where} is not a name that the Hub accepts ({error}).") from error
    except errors.HfHubHTTPError as error:
        raise HeadatlasError(
            f"The Hub refused {where} ({_first_sentence(error)}); try again later."
        ) from error
    except _client_error() as error:
        raise HeadatlasError(
            f"The connection to the Hub broke while fetching {where} ({_first_sentence(error)}); run again, "
            "what was fetched is kept."
        ) from error
    except OSError as error:
        raise HeadatlasError(f"{where} could not be fetched ({_first_sentence(error)}).") from error


def _first_sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
