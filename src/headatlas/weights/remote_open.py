"""Open a safetensors model that is not on disk: small files are fetched whole and kept, weights are not.

Config, tokenizer and index go into the user cache, under the address and what the store says identifies each
file. Weights are read by ranges when they are asked for.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from headatlas.errors import HeadatlasError
from headatlas.storage import shown
from headatlas.weights.cache import cache_dir, filled_folder, locked
from headatlas.weights.folder import SINGLE_NAME, architecture_of
from headatlas.weights.jsonfile import read_json_object
from headatlas.weights.remote_files import RemoteFile, RemoteStore
from headatlas.weights.remote_source import RemoteSafetensorsSource, opened_files
from headatlas.weights.remote_url import Address
from headatlas.weights.safetensors_source import INDEX_NAME, read_weight_map
from headatlas.weights.source import Checkpoint

CONFIG = "config.json"
_DECIDING = ("tokenizer.json", "tokenizer_config.json")
_OPTIONAL = (
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)
MOST_BYTES = 256 << 20
"""No config, tokenizer or index is larger."""


def open_url(spec: str) -> Checkpoint:
    """Open the model at an address that fsspec understands.

    Args:
        spec: A folder with config.json, tokenizer and weights (``model.safetensors``, or an index and its
            shards), or one ``.safetensors`` file with the others beside it.

    Raises:
        HeadatlasError: It cannot be read, or is no such model. Credentials in the address are never shown.
    """
    address = Address.parse(spec)
    store = RemoteStore.at(address.of(CONFIG))
    config_file = store.find(address.of(CONFIG))
    if config_file is None:
        raise HeadatlasError(
            f"{shown(address.of(CONFIG))} is not there; give the address of a folder that holds a model's "
            "config.json and its safetensors."
        )
    weights = _Weights.find(store, address)
    small = [config_file, *_tokenizer_files(store, address), *([weights.index] if weights.index else [])]
    folder = _kept(store, address, small)
    weight_map = read_weight_map(folder / INDEX_NAME) if weights.index else None
    if weight_map is None:
        files = list(weights.files)
    else:
        shards = [address.of(name) for name in sorted(set(weight_map.values()))]
        files = opened_files(store, shards, INDEX_NAME)
    config = read_json_object(folder / CONFIG)
    source = RemoteSafetensorsSource(store, files, weight_map)
    source.unpack(config)
    return Checkpoint(
        spec=shown(spec),
        name=address.name,
        format="safetensors",
        path=folder,
        revision=None,
        architecture=architecture_of(config, config_file.label),
        config=config,
        source=source,
        traffic=source.traffic,
    )


def open_hub_remotely(spec: str, repo: str, revision: str | None) -> Checkpoint:
    """Open a Hub model without its weights: those are read by ranges, through huggingface_hub's file system.

    Args:
        spec: What the user typed.
        repo: ``org/name``.
        revision: Branch, tag or commit; the default branch if None.

    Raises:
        HeadatlasError: The model cannot be reached or read.
    """
    from huggingface_hub import HfFileSystem

    from headatlas.weights.hub import download_all_but_weights, explained
    from headatlas.weights.remote_files import PARALLEL

    folder, names = download_all_but_weights(repo, revision)
    commit = folder.name
    weight_map = read_weight_map(folder / INDEX_NAME) if names == [INDEX_NAME] else None
    shards = sorted(set(weight_map.values())) if weight_map else names
    with explained(repo, revision):
        store = RemoteStore(HfFileSystem(), parallel=PARALLEL, fixed=True, info_options={"expand_info": True})
        files = opened_files(store, [f"{repo}@{commit}/{shard}" for shard in shards], INDEX_NAME)
        source = RemoteSafetensorsSource(store, files, weight_map)
    config = read_json_object(folder / CONFIG)
    source.unpack(config)
    return Checkpoint(
        spec=spec,
        name=repo.partition("/")[2],
        format="safetensors",
        path=folder,
        revision=commit,
        architecture=architecture_of(config, folder / CONFIG),
        config=config,
        source=source,
        traffic=source.traffic,
    )


@dataclass(frozen=True)
class _Weights:
    """The weight files of an address, or the index that names them."""

    files: tuple[RemoteFile, ...]
    index: RemoteFile | None

    @classmethod
    def find(cls, store: RemoteStore, address: Address) -> _Weights:
        index = store.find(address.of(INDEX_NAME), forbidden_is_missing=True)
        if address.file is not None:
            single = opened_files(store, [address.of(address.file)])
            if index is not None and re.search(r"-\d{5}-of-\d{5}\.safetensors$", address.file):
                raise HeadatlasError(
                    f"{single[0].label} is one shard of a model; give its folder {shown(address.folder)}."
                )
            return cls(tuple(single), None)
        whole = store.find(address.of(SINGLE_NAME), forbidden_is_missing=index is not None)
        if whole is not None:
            return cls((whole,), None)
        if index is None:
            raise HeadatlasError(
                f"{shown(address.folder)} holds neither {SINGLE_NAME} nor {INDEX_NAME}; only safetensors are "
                "read from afar: download the model and give its folder."
            )
        return cls((), index)


def _tokenizer_files(store: RemoteStore, address: Address) -> list[RemoteFile]:
    """Those tokenizer files that exist."""

    def find(name: str) -> RemoteFile | None:
        return store.find(address.of(name), forbidden_is_missing=name not in _DECIDING)

    return [file for file in store.map(find, (*_DECIDING, *_OPTIONAL)) if file is not None]


def _kept(store: RemoteStore, address: Address, files: list[RemoteFile]) -> Path:
    """A folder of the cache with these files, fetched unless they are there.

    Files whose content the store does not mark are fetched every time, and kept under their content.
    """
    for file in files:
        if file.size > MOST_BYTES:
            raise HeadatlasError(
                f"{file.label} is {file.size:,} bytes; no model's config, tokenizer or index is that large."
            )
    fetched = {f.label: store.read(f, 0, f.size) for f in files if f.content_mark is None}
    marks = [(f.label, f.size, f.content_mark or hashlib.sha256(fetched[f.label]).hexdigest()) for f in files]
    key = hashlib.sha256(repr((shown(address.folder), sorted(marks))).encode()).hexdigest()[:32]
    place = cache_dir() / "remote"
    final = place / key
    with locked(place / f"{key}.lock"):
        if final.is_dir():
            return final
        missing = [file for file in files if file.label not in fetched]
        bodies = store.map(lambda file: store.read(file, 0, file.size), missing)
        fetched |= {file.label: body for file, body in zip(missing, bodies, strict=True)}
        for file in files:
            store.check_unchanged(file)
        try:
            with filled_folder(final) as work:
                for label, body in fetched.items():
                    (work / label.rpartition("/")[2]).write_bytes(body)
        except OSError as error:
            raise HeadatlasError(
                f"{final} cannot be written ({error.strerror or error}); make room, or set HEADATLAS_CACHE."
            ) from error
    return final
