"""Models on the Hugging Face Hub: only the files needed, through huggingface_hub and its cache."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from headatlas.errors import HeadatlasError
from headatlas.weights.adapter import CONFIG_NAME, adapter_alone
from headatlas.weights.checkpoints import CONVERT, PICKLES, SINGLE_NAME
from headatlas.weights.gguf_source import SPLIT_NAME
from headatlas.weights.safetensors_source import INDEX_NAME, read_weight_map, shards_of

HUB_ID = re.compile(
    r"^(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@(?P<revision>[A-Za-z0-9][\w./-]*))?$", re.ASCII
)
_SMALL_FILES = re.compile(
    r"^(config\.json|adapter_config\.json|tokenizer.*\.(json|model)|[\w.-]+\.model|special_tokens_map\.json|added_tokens\.json|"
    r"vocab\.(json|txt)|merges\.txt|.*\.tiktoken)$"
)
_UNSAFE = (*PICKLES, ".h5", ".msgpack", ".onnx")


def download(repo: str, revision: str | None) -> Path:
    """Fetch what headatlas reads of a Hub model, or find it in the cache.

    With ``HF_HUB_OFFLINE`` set, or when the Hub cannot be reached, only the cache is used.

    Args:
        repo: ``org/name``.
        revision: Branch, tag or commit; the default branch if None.

    Returns:
        The folder with the files, named like the commit.

    Raises:
        HeadatlasError: The model or revision does not exist, is gated, has no usable files, or is neither
            reachable nor in the cache.
    """
    with explained(repo, revision):
        names = _file_names(repo, revision)
        if names is None:
            return _snapshot(repo, revision, ["config.json"], local_files_only=True)
        is_model = {"config.json", CONFIG_NAME} & set(names) or any(n.endswith(".gguf") for n in names)
        if not is_model:
            raise HeadatlasError(
                f"{repo} on the Hub has no config.json; it does not hold a model for transformers."
            )
        return _snapshot(repo, revision, [*_small(names), *_weight_files(repo, revision, names)])


def download_all_but_weights(repo: str, revision: str | None) -> tuple[Path, str]:
    """Fetch config, tokenizer and index of a Hub model whose weights are to be read in place.

    Returns:
        The folder with the files, named like the commit; and the name of the weights or of their index.

    Raises:
        HeadatlasError: As :func:`download`, or the Hub cannot be asked, or the weights are not safetensors.
    """
    with explained(repo, revision):
        names = _file_names(repo, revision)
        if names is None:
            raise HeadatlasError(
                f"{repo} is to be read from the Hub, which cannot be reached (offline mode or no "
                "connection); leave out `remote=True` to use what is in the cache."
            )
        if "config.json" not in names:
            raise HeadatlasError(
                f"{repo} on the Hub has no config.json; it cannot be read with `remote=True`."
            )
        weights = _weight_files(repo, revision, names)[0]
        if weights.endswith(".gguf"):
            raise HeadatlasError(
                f"{repo} on the Hub holds a GGUF file; leave out `remote=True` to download it."
            )
        index = [INDEX_NAME] if weights == INDEX_NAME else []
        return _snapshot(repo, revision, [*_small(names), *index]), weights


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


def _small(names: Iterable[str]) -> list[str]:
    """Config and tokenizer among files."""
    return [name for name in names if _SMALL_FILES.match(name)]


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
    """The files that hold the model, without the copies that some repositories add."""
    import huggingface_hub

    if SINGLE_NAME in names:
        return [SINGLE_NAME, *([INDEX_NAME] if INDEX_NAME in names else [])]
    if INDEX_NAME in names:
        index = huggingface_hub.hf_hub_download(repo, INDEX_NAME, revision=revision)
        return [INDEX_NAME, *shards_of(read_weight_map(Path(index)))]
    if CONFIG_NAME in names:
        config = huggingface_hub.hf_hub_download(repo, CONFIG_NAME, revision=revision)
        raise adapter_alone(f"{repo} on the Hub", Path(config))
    gguf = sorted(name for name in names if name.endswith(".gguf") and not name.startswith("mmproj"))
    if gguf and len({_split_model(name) for name in gguf}) == 1:
        return gguf
    if gguf:
        raise HeadatlasError(
            f"{repo} on the Hub holds several GGUF files; fetch one with `hf download {repo} {gguf[0]}` "
            "and give its path."
        )
    if any(name.endswith(_UNSAFE) for name in names):
        raise HeadatlasError(
            f"{repo} on the Hub holds its weights as a pickle or in another format, {CONVERT}."
        )
    raise HeadatlasError(f"{repo} on the Hub holds no .safetensors weights.")


def _split_model(name: str) -> str:
    """The common name of the parts of a split GGUF; for another file its own."""
    split = SPLIT_NAME.match(name)
    return name if split is None else f"{split['stem']} of {split['parts']}"


def _client_error() -> type[Exception]:
    """The base of what huggingface_hub's HTTP client raises; which client that is has changed before."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


@contextmanager
def explained(repo: str, revision: str | None) -> Iterator[None]:
    """Turn the errors of huggingface_hub into sentences (HeadatlasError) that say what to do."""
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except (HFValidationError, _client_error(), OSError) as error:
        raise HeadatlasError(_explanation(error, repo, revision)) from error


def _explanation(error: Exception, repo: str, revision: str | None) -> str:
    from huggingface_hub import errors

    where = f"{repo}@{revision}" if revision else repo
    lines = str(error).strip().splitlines()
    said = lines[0].rstrip(".") if lines else type(error).__name__
    sentences = {
        errors.GatedRepoError: f"{repo} is gated: accept its terms on the model's page on the Hub, then log "
        "in with `hf auth login`.",
        errors.RepositoryNotFoundError: f"{repo} is neither a folder here nor a model on the Hub that you "
        "may read; check the spelling, or log in with `hf auth login` if it is private.",
        errors.RevisionNotFoundError: f"{repo} on the Hub has no revision {revision!r}; check the name.",
        errors.LocalEntryNotFoundError: f"{where} is not in the cache of the Hub and the Hub cannot be "
        "reached (offline mode or no connection); run once with a connection, or give a folder.",
        errors.HFValidationError: f"{where} is not a name that the Hub accepts ({said}).",
        errors.HfHubHTTPError: f"The Hub refused {where} ({said}); try again later.",
        _client_error(): f"The connection to the Hub broke while fetching {where} ({said}); run again, what "
        "was fetched is kept.",
        OSError: f"{where} could not be fetched ({said}).",
    }
    return next(sentence for kind, sentence in sentences.items() if isinstance(error, kind))
