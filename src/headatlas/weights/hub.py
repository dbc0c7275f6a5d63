"""Models on the Hugging Face Hub: only the files needed, through huggingface_hub and its cache."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from headatlas.errors import HeadatlasError
from headatlas.weights.adapter import ADAPTER_CONFIG, adapter_alone
from headatlas.weights.checkpoints import SINGLE_NAME, main_file, open_path
from headatlas.weights.gguf_source import whole_name
from headatlas.weights.safetensors_source import INDEX_NAME, read_weight_map, shards_of
from headatlas.weights.source import Checkpoint

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
    ``weights`` these are to be read in place and must be safetensors.

    Returns:
        The folder with the files, named like the commit; and the name of the weights' file or index
        ("" if the Hub was not asked).
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
