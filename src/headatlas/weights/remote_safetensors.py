"""Safetensors models that are not on disk: of the weights only what is asked for is fetched.

Config, tokenizer and index go into the user cache, under the address and what the store says identifies each
file. Weights are read by ranges of bytes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from headatlas.addresses import shown
from headatlas.errors import HeadatlasError
from headatlas.weights.checkpoints import SINGLE_NAME, architecture_of
from headatlas.weights.local_files import cache_dir, filled_folder, locked, read_json_object
from headatlas.weights.remote import Address, RemoteFile, RemoteStore
from headatlas.weights.safetensors_source import (
    INDEX_NAME,
    PlacedTensor,
    StoredTensors,
    check_weight_map,
    header_length,
    infos_of_files,
    placed_tensors,
    read_weight_map,
)
from headatlas.weights.source import Checkpoint, Traffic

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"
MOST_BYTES = 256 << 20
"""No config, tokenizer or index is larger."""
BLOCK_BYTES = 16 << 20
"""Most bytes of one request, unless a single row is larger: what is lost when a connection breaks."""
GAP_BYTES = 256 << 10
"""Rows this close are fetched together: a request of its own costs as much time as this many bytes."""
_DECIDING = ("tokenizer.json", "tokenizer_config.json")
_OPTIONAL = (
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)
_WINDOWS, _WINDOW_BYTES = 64, 16 << 10


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
    if (config := store.find(address.of(CONFIG))) is None:
        raise HeadatlasError(
            f"{shown(address.of(CONFIG))} is not there; give the address of a folder that holds a model's "
            "config.json and its safetensors."
        )
    weights, index = _weights(store, address)

    def find(name: str) -> RemoteFile | None:
        return store.find(address.of(name), forbidden_is_missing=name not in _DECIDING)

    tokenizer = [file for file in store.map(find, (*_DECIDING, *_OPTIONAL)) if file is not None]
    folder = _kept(store, address, [config, *tokenizer, *([index] if index else [])])
    weight_map = read_weight_map(folder / INDEX_NAME) if index else None
    if weight_map is not None:
        weights = store.found(map(address.of, sorted(set(weight_map.values()))), INDEX_NAME)
    return _checkpoint(shown(spec), address.name, folder, RemoteSafetensorsSource(store, weights, weight_map))


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

    folder, names = download_all_but_weights(repo, revision)
    weight_map = read_weight_map(folder / INDEX_NAME) if names == [INDEX_NAME] else None
    shards = sorted(set(weight_map.values())) if weight_map else names
    with explained(repo, revision):
        store = RemoteStore(HfFileSystem(), fixed=True)
        files = store.found([f"{repo}@{folder.name}/{shard}" for shard in shards], INDEX_NAME)
        source = RemoteSafetensorsSource(store, files, weight_map)
    return _checkpoint(spec, repo.partition("/")[2], folder, source, commit=folder.name)


def _checkpoint(
    spec: str, name: str, folder: Path, source: RemoteSafetensorsSource, commit: str | None = None
) -> Checkpoint:
    config = read_json_object(folder / CONFIG)
    source.dequantise(config)
    return Checkpoint(
        spec=spec,
        name=name,
        format="safetensors",
        path=folder,
        revision=commit,
        architecture=architecture_of(config, f"{spec} ({CONFIG})"),
        config=config,
        source=source,
        traffic=source.traffic,
    )


def _weights(store: RemoteStore, address: Address) -> tuple[list[RemoteFile], RemoteFile | None]:
    """The weight files of an address, or the index that names them."""
    index = store.find(address.of(INDEX_NAME), forbidden_is_missing=True)
    if address.file is not None:
        if index is not None and re.search(r"-\d{5}-of-\d{5}\.safetensors$", address.file):
            raise HeadatlasError(
                f"{shown(address.of(address.file))} is one shard of a model; give its folder "
                f"{shown(address.folder)}."
            )
        return store.found([address.of(address.file)]), None
    whole = store.find(address.of(SINGLE_NAME), forbidden_is_missing=index is not None)
    if whole is not None:
        return [whole], None
    if index is None:
        raise HeadatlasError(
            f"{shown(address.folder)} holds neither {SINGLE_NAME} nor {INDEX_NAME}; only safetensors are "
            "read from afar: download the model and give its folder."
        )
    return [], index


def _kept(store: RemoteStore, address: Address, files: list[RemoteFile]) -> Path:
    """A folder of the cache with these files, fetched unless they are there.

    Files whose content the store does not mark are fetched every time, and kept under their content.
    """
    if large := [file for file in files if file.size > MOST_BYTES]:
        raise HeadatlasError(
            f"{large[0].label} is {large[0].size:,} bytes; that is no model's config, tokenizer or index."
        )
    fetched = {f.label: store.read(f, 0, f.size) for f in files if f.content_mark is None}
    marks = [(f.label, f.size, f.content_mark or hashlib.sha256(fetched[f.label]).hexdigest()) for f in files]
    key = hashlib.sha256(repr((shown(address.folder), sorted(marks))).encode()).hexdigest()[:32]
    final = cache_dir() / "remote" / key
    with locked(final.with_suffix(".lock")):
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


class RemoteSafetensorsSource(StoredTensors):
    """Reads tensors out of one or several safetensors files by byte ranges; opening reads headers only.

    A file that changed since it was opened is never read on.

    Attributes:
        files: The files, in order.
        traffic: What has been fetched.
    """

    def __init__(
        self, store: RemoteStore, files: Sequence[RemoteFile], weight_map: Mapping[str, str] | None = None
    ) -> None:
        """Read and check the header of every file.

        Args:
            store: What reads them.
            files: The safetensors files of the checkpoint.
            weight_map: Tensor name → file name, where there is an index.

        Raises:
            HeadatlasError: A file cannot be read, is truncated or contradicts itself or the index, or two
                hold the same tensor.
        """
        self.files = tuple(files)
        self.traffic = Traffic(sum(file.size for file in self.files))
        self._store = store
        self._headers: dict[str, str] = {}
        found = dict(zip(self.files, store.map(self._header, self.files), strict=True))
        headers = {
            file.label: {name: each.info for name, each in placed.items()} for file, placed in found.items()
        }
        super().__init__(infos_of_files(headers), self.files[0].label.rpartition("/")[0])
        self._placed = {name: (file, each) for file, placed in found.items() for name, each in placed.items()}
        if weight_map is not None:
            check_weight_map(f"The index beside {self.files[0].label}", weight_map, self._infos)

    def _stored(self, name: str, rows: slice | Sequence[int] | None = None) -> torch.Tensor:
        """Of the rows asked for, those close together are fetched in one request, and each only once."""
        import torch

        file, placed = self._placed[name]
        shape = placed.info.shape or (1,)
        row_bytes = placed.info.nbytes // max(1, shape[0])
        # Indexing a range gives negative, repeated and out-of-range rows the meaning they have on disk.
        wanted = torch.arange(shape[0])[slice(None) if rows is None else rows]
        unique, inverse = torch.unique(wanted, return_inverse=True)
        found = torch.empty((len(unique), row_bytes), dtype=torch.uint8)

        def fetch(block: tuple[int, int]) -> None:
            first, end = block
            body = self._read(file, placed.start + first * row_bytes, placed.start + end * row_bytes)
            low, high = torch.searchsorted(unique, torch.tensor([first, end])).tolist()
            # A copy, because torch wants memory that may be written to.
            stored = torch.frombuffer(bytearray(body), dtype=torch.uint8).view(-1, row_bytes)
            found[low:high] = stored if high - low == len(stored) else stored[unique[low:high] - first]

        if found.numel():
            self._store.map(fetch, blocks(spans(unique.tolist(), row_bytes), row_bytes))
            self._store.check_unchanged(file)
        if not torch.equal(wanted, unique):
            found = found[inverse]
        kind = _torch_type(placed.info.dtype)
        return (
            found.flatten().view(kind).view(placed.info.shape if rows is None else (len(wanted), *shape[1:]))
        )

    def fingerprint(self) -> str:
        """A hash that identifies the weights; see :func:`headatlas.weights.identity.fingerprint`.

        Raises:
            HeadatlasError: A window cannot be read.
        """
        count = max(2, _WINDOWS // len(self.files))
        windows = [
            (file, (file.size - length) * place // (count - 1), length)
            for file in self.files
            for length in [min(_WINDOW_BYTES, file.size)]
            for place in range(count)
        ]
        bodies = self._store.map(lambda w: self._read(w[0], w[1], w[1] + w[2]), windows)
        digest = hashlib.sha256()
        for file in self.files:
            about = (file.label.rpartition("/")[2], file.size, file.content_mark, self._headers[file.label])
            digest.update(repr(about).encode())
        for body in bodies:
            digest.update(body)
        return f"remote-sha256:{digest.hexdigest()}"

    def _header(self, file: RemoteFile) -> dict[str, PlacedTensor]:
        length = header_length(file.label, self._read(file, 0, min(8, file.size)), file.size)
        header = self._read(file, 8, 8 + length)
        self._headers[file.label] = hashlib.sha256(header).hexdigest()
        return placed_tensors(file.label, header, file.size)

    def _read(self, file: RemoteFile, start: int, end: int) -> bytes:
        body = self._store.read(file, start, end)
        self.traffic.add(len(body))
        return body


def spans(rows: Sequence[int], row_bytes: int) -> list[tuple[int, int]]:
    """Sorted rows as (first, end) spans, those with small gaps between them joined."""
    gap = GAP_BYTES // max(1, row_bytes)
    found: list[tuple[int, int]] = []
    for row in rows:
        if found and row - found[-1][1] <= gap:
            found[-1] = (found[-1][0], row + 1)
        else:
            found.append((row, row + 1))
    return found


def blocks(kept: Sequence[tuple[int, int]], row_bytes: int) -> list[tuple[int, int]]:
    """Spans of rows cut so that none is larger than a request may be."""
    step = max(1, BLOCK_BYTES // max(1, row_bytes))
    return [(at, min(at + step, end)) for first, end in kept for at in range(first, end, step)]


def _torch_type(dtype: str) -> torch.dtype:
    import torch

    return {
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F32": torch.float32,
        "F64": torch.float64,
        "U8": torch.uint8,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E8M0": torch.float8_e8m0fnu,
    }[dtype]
