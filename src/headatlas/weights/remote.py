"""Safetensors models that are not on disk: of the weights only what is asked for is fetched, through fsspec.

A read returns exactly the bytes asked for, of the file as it was when it was found, or ends in one sentence.
There is one policy for failures: those that may pass are tried again with growing pauses, everywhere.

Config, tokenizer and index go into the user cache, under the address and what the store says identifies each
file. Weights are read by ranges of bytes.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies

from headatlas.addresses import failures, shown
from headatlas.errors import HeadatlasError
from headatlas.files import CACHE_VARIABLE, atomic_folder, cache_dir, locked
from headatlas.weights.checkpoints import SINGLE_NAME, with_config
from headatlas.weights.safetensors_source import (
    INDEX_NAME,
    PlacedTensor,
    StoredTensors,
    header_length,
    placed_tensors,
    read_weight_map,
    shards_of,
)
from headatlas.weights.source import Checkpoint, Rows, Traffic, place_of

if TYPE_CHECKING:
    import torch
    from fsspec import AbstractFileSystem
    from fsspec.asyn import AsyncFileSystem

T = TypeVar("T")
U = TypeVar("U")

HTTP = ("http", "https")
PARALLEL = 8
"""Requests under way at a time, where the file system allows several."""
MOST_BYTES = 256 << 20
"""No config, tokenizer or index is larger."""
BLOCK_BYTES = 16 << 20
"""Most bytes of one request, unless a single row is larger: what is lost when a connection breaks."""
GAP_BYTES = 256 << 10
"""Rows this close are fetched together: a request of its own costs as much time as this many bytes."""
CONFIG = "config.json"
_DECIDING = ("tokenizer.json", "tokenizer_config.json")
_OPTIONAL = (
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)
_WINDOWS, _WINDOW_BYTES = 64, 16 << 10
_HUB_PAGE = re.compile(r"/(resolve|raw|blob|tree)/[^/]+$")
_CONTENT_RANGE = re.compile(r"\s*bytes\s+(\d+)-(\d+)/(\d+|\*)\s*", re.IGNORECASE)
_MARKS = ("ETag", "etag", "blob_id", "md5Hash", "content_md5", "Content-MD5")
_TIMES = ("Last-Modified", "LastModified", "last_modified", "updated", "mtime", "ino", "created")


@dataclass(frozen=True)
class Patience:
    """Tries in all, seconds of the first pause (doubled each time) and of the longest, and seconds without a
    byte after which a request has failed."""

    attempts: int = 6
    first_pause: float = 0.5
    longest_pause: float = 30.0
    timeout: float = 30.0


PATIENCE = Patience()


@dataclass(frozen=True)
class Address:
    """A model's folder, or one file of it."""

    folder: str  # address of the folder, without a query and a slash at its end; may hold credentials
    query: str  # what follows the path (``?…``), sent with every file; may hold credentials
    file: str | None  # name of the file given, or None for the folder

    @classmethod
    def parse(cls, spec: str) -> Address:
        """Take an address apart."""
        try:
            parts = urlsplit(spec)
        except ValueError:
            raise HeadatlasError(f"{shown(spec)} is no usable address; check it.") from None
        scheme, path, file = parts.scheme.lower(), parts.path.rstrip("/"), None
        what = ""
        if re.search(r"^[\w+.-]+::|::[\w+.-]+://", spec):
            what = "is a chain of file systems (::), which is not followed; give the address of a folder"
        elif not parts.netloc and not path:
            what = "names no folder; give the address of a model's folder"
        elif scheme not in HTTP and (parts.query or parts.fragment):
            what = "has a query (?…) or fragment (#…), as only http and https addresses may"
        elif path.endswith(".gguf"):
            what = "is a GGUF file, and only safetensors are read from afar; download it"
        if what:
            raise HeadatlasError(f"{shown(spec.rpartition('::')[2])} {what}.")
        if path.endswith(".safetensors"):
            path, _, file = path.rpartition("/")
        query = f"?{parts.query}" if parts.query else ""
        return cls(f"{scheme}://{parts.netloc}{path}", query, file and unquote(file))

    @property
    def name(self) -> str:
        """Short name of the model: the last part of the folder."""
        return unquote(_HUB_PAGE.sub("", shown(self.folder)).rpartition("/")[2]) or shown(self.folder)

    def of(self, file: str) -> str:
        """The whole address of a file in the folder; may hold credentials."""
        return f"{self.folder}/{file}{self.query}"


@dataclass(frozen=True)
class RemoteFile:
    """One file as it was when it was looked up."""

    address: str  # for the file system; may hold credentials
    label: str  # for people
    size: int  # bytes
    content_mark: str | None  # what its store says identifies the content (ETag, a hash), or None
    change_mark: str  # what differs when the file has been written again, as far as the store tells


class UnusableAnswerError(OSError):
    """An answer that must not be used: why, and whether asking again may help."""

    def __init__(self, reason: str, *, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient


class RemoteStore:
    """A file system of fsspec, asked with patience; ``parallel`` requests may be under way at a time."""

    def __init__(self, system: AbstractFileSystem, *, fixed: bool = False) -> None:
        """Wrap a file system; ``fixed`` says that files behind an address cannot change (a commit)."""
        from fsspec.asyn import AsyncFileSystem

        # Others may hand out one file object to all who open a file, so they are asked one by one.
        self.parallel = PARALLEL if fixed or isinstance(system, AsyncFileSystem) else 1
        self._system, self._fixed = system, fixed
        self._giving_up = Event()

    @classmethod
    def at(cls, address: str) -> RemoteStore:
        """The file system that an address belongs to."""
        import fsspec

        scheme = address.partition("://")[0].lower()
        if scheme in HTTP:
            return cls(_http_filesystem(encoded="%" in address))
        try:
            return cls(fsspec.url_to_fs(address)[0])
        except ImportError as error:
            raise HeadatlasError(f"{shown(address)}: a package is missing ({error}).") from None
        except failures(TypeError) as error:
            raise HeadatlasError(
                f"{shown(address)} cannot be opened by fsspec ({type(error).__name__}); "
                f"check that {scheme}:// is a scheme it knows and that access to it is set up."
            ) from None

    def find(self, address: str, *, forbidden_is_missing: bool = False) -> RemoteFile | None:
        """Look a file up; None if there is none.

        Object stores say “forbidden” of files that do not exist when the folder may not be listed:
        ``forbidden_is_missing`` believes them.
        """
        label = shown(address)
        options = {"expand_info": True} if self._fixed else {}

        def ask() -> dict[str, Any]:
            try:
                return dict(self._system.info(address, **options))
            except failures() as error:
                _, kind = _verdict(error)
                if kind == "missing" or (forbidden_is_missing and kind == "forbidden"):
                    return {}
                raise

        info = self._with_retries(label, ask)
        if not info or info.get("type") == "directory":
            return None
        size = info.get("size")
        if not isinstance(size, int) or size < 0:
            raise HeadatlasError(
                f"{label}: the server does not say how large it is, so parts of it cannot be read; download "
                "the model and give its folder."
            )
        lfs = info.get("lfs")
        mark = str(lfs["sha256"]) if lfs else next((str(info[key]) for key in _MARKS if info.get(key)), None)
        times = " ".join(str(info[key]) for key in _TIMES if info.get(key))
        return RemoteFile(address, label, size, mark, mark or times)

    def find_all(self, addresses: Iterable[str], named_by: str = "") -> list[RemoteFile]:
        """Look several files up, all of which must be there."""

        def find(address: str) -> RemoteFile:
            if (file := self.find(address)) is None:
                by = f", which {named_by} names" if named_by else ""
                raise HeadatlasError(f"{shown(address)}{by} is not there; check the address.")
            return file

        return self.map(find, addresses)

    def read(self, file: RemoteFile, start: int, end: int) -> bytes:
        """Bytes ``start`` to ``end`` (excluded) of a file."""
        if start == end:
            return b""

        def ask() -> bytes:
            body = self._fetch(file, start, end)
            if len(body) != end - start:
                raise UnusableAnswerError(f"asked for {end - start} bytes, got {len(body)}", transient=True)
            return body

        return self._with_retries(file.label, ask)

    def check_unchanged(self, file: RemoteFile) -> None:
        """Refuse a file that is no longer the one that was opened; over HTTP every answer was checked."""
        if self._fixed or _is_http(file.address):
            return
        now = self.find(file.address)
        if now is None or (now.size, now.change_mark) != (file.size, file.change_mark):
            raise HeadatlasError(f"{file.label} has changed since it was opened; run the command again.")

    def map(self, work: Callable[[T], U], items: Iterable[T]) -> list[U]:
        """``work`` on every item, several at a time where that is safe; the first error ends it."""
        tasks = list(items)
        if self.parallel == 1 or len(tasks) < 2:
            return [work(item) for item in tasks]
        with ThreadPoolExecutor(min(self.parallel, len(tasks))) as pool:
            futures = [pool.submit(work, item) for item in tasks]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                # Those still under way are not worth more tries, and Ctrl-C should not wait for them.
                self._giving_up.set()
                raise
            finally:
                pool.shutdown(cancel_futures=True)
                self._giving_up.clear()
        return [future.result() for future in futures]

    def _fetch(self, file: RemoteFile, start: int, end: int) -> bytes:
        from fsspec.asyn import AsyncFileSystem, sync

        if _is_http(file.address):
            return bytes(sync(self._system.loop, _http_part, self._system, file, start, end))
        # Files that are opened for it get no cache, which would read ahead what nobody asked for.
        options = {} if isinstance(self._system, AsyncFileSystem) else {"cache_type": "none"}
        return bytes(self._system.cat_file(file.address, start=start, end=end, **options))

    def _with_retries(self, label: str, ask: Callable[[], T]) -> T:
        patience = PATIENCE
        for attempt in range(1, patience.attempts + 1):
            try:
                return ask()
            except failures() as error:
                reason, kind = _verdict(error)
                # The error itself is not chained: its text may hold the address with its credentials.
                if kind != "passing" or attempt == patience.attempts or self._giving_up.is_set():
                    tried = f" ({attempt} attempts)" if attempt > 1 else ""
                    message = f"{label} cannot be read: {reason}{tried}; {_ADVICE[kind]}."
                    raise HeadatlasError(message) from None
                pause = patience.first_pause * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)  # noqa: S311
                pause = min(max(pause, _asked_to_wait(error)), patience.longest_pause)
            self._giving_up.wait(pause)
        raise AssertionError("the loop returns or raises")


# Over HTTP ------------------------------------------------------------------------------------------


def _is_http(address: str) -> bool:
    return address.partition("://")[0].lower() in HTTP


def _http_filesystem(*, encoded: bool) -> AsyncFileSystem:
    """fsspec's file system for http and https; ``encoded``: addresses are percent-encoded already."""
    import aiohttp
    from fsspec.implementations.http import HTTPFileSystem

    timeout = PATIENCE.timeout
    return HTTPFileSystem(
        encoded=encoded,
        skip_instance_cache=True,
        client_kwargs={
            # What a compressed answer would be a range of, nobody can say.
            "headers": {"Accept-Encoding": "identity"},
            "timeout": aiohttp.ClientTimeout(total=600, sock_connect=timeout, sock_read=timeout),
            # Asked for only where there is a proxy: it costs a thread hop per request to look for ~/.netrc.
            "trust_env": bool(getproxies()),
        },
    )


async def _http_part(system: Any, file: RemoteFile, start: int, end: int) -> bytes:
    """A range of a file, the answer's headers checked before its body is read; fsspec looks at neither."""
    session, url = await system.set_session(), system.encode_url(file.address)
    async with session.get(url, headers={"Range": f"bytes={start}-{end - 1}"}) as answer:
        answer.raise_for_status()
        if answer.url.scheme != "https" and any(step.url.scheme == "https" for step in answer.history):
            raise UnusableAnswerError("the server redirects from https to http")
        if answer.status != 206:
            raise UnusableAnswerError(
                f"the server does not send parts of files (it answered {answer.status} instead of 206)"
            )
        if answer.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
            raise UnusableAnswerError("the server sends it compressed")
        _check_part(answer.headers, file, start, end)
        return bytes(await answer.read())


def _check_part(headers: Mapping[str, str], file: RemoteFile, start: int, end: int) -> None:
    """Compare the part that an answer announces with what was asked for, and with the file as it was."""
    found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    if found is None or (int(found[1]), int(found[2])) != (start, end - 1):
        what = "a part without saying which" if found is None else f"{found[1]}-{found[2]}"
        raise UnusableAnswerError(
            f"asked for bytes {start}-{end - 1}, the server sends {what}", transient=True
        )
    length = headers.get("Content-Length", "").strip()
    if length and length != str(end - start):
        raise UnusableAnswerError(
            f"asked for {end - start} bytes, the server announces {length[:20]}", transient=True
        )
    changed, etag = "", headers.get("ETag")
    if found[3] != "*" and int(found[3]) != file.size:
        changed = f"from {file.size:,} to {int(found[3]):,} bytes"
    elif etag and file.content_mark and etag != file.content_mark:
        changed = "it has another ETag"
    if changed:
        raise UnusableAnswerError(f"the file has changed since it was opened ({changed})")


# What failures mean ---------------------------------------------------------------------------------

_ADVICE = {
    "passing": "try again later",
    "missing": "check the address",
    "forbidden": "check the address and your credentials",
    "unusable": "check the address and how access to it is set up",
    "lasting": "download the model and give its folder",
}
_STATUS = {
    **dict.fromkeys((408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524), "passing"),
    **{401: "forbidden", 403: "forbidden", 404: "missing", 410: "missing"},
}


def _verdict(error: BaseException) -> tuple[str, str]:
    """A failure in words, never the error's own, which may hold credentials, and its kind in ``_ADVICE``."""
    if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, failures()):
        # fsspec says “not found” of every failed look-up over HTTP; the cause knows better.
        error = error.__cause__
    if isinstance(error, UnusableAnswerError):
        return str(error), "passing" if error.transient else "lasting"
    # aiohttp gives status 400, which no server sent, to answers that it cannot parse.
    garbled = type(error.__cause__).__module__ == "aiohttp.http_exceptions"
    status = None if garbled else _status(error)
    if status is not None:
        return f"the server answered {status}", _STATUS.get(status, "lasting")
    name = type(error).__name__
    absent, late = (FileNotFoundError, IsADirectoryError, NotADirectoryError), isinstance(error, TimeoutError)
    cases = (
        (garbled, "the server's answer is garbled", "passing"),
        (name.startswith("NonHttp"), "the server redirects to something other than http", "lasting"),
        (isinstance(error, absent), "there is no such file", "missing"),
        (isinstance(error, PermissionError) or "Cred" in name, f"access is refused ({name})", "forbidden"),
        (late or "Timeout" in name, f"no data for {PATIENCE.timeout:g} s", "passing"),
        ("SSL" in name or "Cert" in name, f"no secure connection can be made ({name})", "unusable"),
        (isinstance(error, (ValueError, RuntimeError)), f"it cannot be asked for ({name})", "unusable"),
        (True, f"the connection failed ({name})", "passing"),
    )
    return next((reason, kind) for is_it, reason, kind in cases if is_it)


def _status(error: BaseException) -> int | None:
    """The HTTP status of an error, wherever its library keeps it."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore's
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return found if isinstance(found, int) else None
    places = [(error, "status"), (response, "status_code"), (error, "status_code"), (error, "code")]
    values = (getattr(holder, name, None) for holder, name in places)
    return next((each for each in values if isinstance(each, int) and 100 <= each < 600), None)


def _asked_to_wait(error: BaseException) -> float:
    """Seconds that the server asks to wait, or 0."""
    headers = getattr(error, "headers", None) or getattr(getattr(error, "response", None), "headers", None)
    asked = str((headers or {}).get("Retry-After", ""))
    return float(asked) if asked.isascii() and asked.isdigit() and len(asked) < 6 else 0.0


# Safetensors ----------------------------------------------------------------------------------------


def open_url(spec: str) -> Checkpoint:
    """Open the model at an address that fsspec understands; credentials in it are never shown.

    It is a folder with config.json, tokenizer and weights (``model.safetensors``, or an index and its
    shards), or one ``.safetensors`` file with the others beside it.
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
    folder = _cached_folder(store, address, [config, *tokenizer, *([index] if index else [])])
    weight_map = read_weight_map(folder / INDEX_NAME) if index else None
    if weight_map is not None:
        weights = store.find_all(map(address.of, shards_of(weight_map)), INDEX_NAME)
    source = RemoteSafetensorsSource(store, weights, weight_map)
    checkpoint = with_config(source, folder, shown(spec), f"{shown(spec)} ({CONFIG})")
    return replace(checkpoint, name=address.name, traffic=source.traffic)


def open_hub_remotely(spec: str, repo: str, revision: str | None) -> Checkpoint:
    """Open a Hub model without its weights, which huggingface_hub's file system reads by ranges."""
    from huggingface_hub import HfFileSystem

    from headatlas.weights.checkpoints import download, explained

    folder, weights = download(repo, revision, weights=False)
    weight_map = read_weight_map(folder / INDEX_NAME) if weights == INDEX_NAME else None
    with explained(repo, revision):
        store = RemoteStore(HfFileSystem(), fixed=True)
        shards = [weights] if weight_map is None else shards_of(weight_map)
        files = store.find_all([f"{repo}@{folder.name}/{shard}" for shard in shards], INDEX_NAME)
        source = RemoteSafetensorsSource(store, files, weight_map)
    checkpoint = with_config(source, folder, spec, f"{spec} ({CONFIG})")
    name = repo.partition("/")[2]
    return replace(checkpoint, name=name, revision=folder.name, traffic=source.traffic)


def _weights(store: RemoteStore, address: Address) -> tuple[list[RemoteFile], RemoteFile | None]:
    """The weight files of an address, or the index that names them."""
    index = store.find(address.of(INDEX_NAME), forbidden_is_missing=True)
    if address.file is not None:
        if index is not None and re.search(r"-\d{5}-of-\d{5}\.safetensors$", address.file):
            raise HeadatlasError(
                f"{shown(address.of(address.file))} is one shard of a model; give its folder "
                f"{shown(address.folder)}."
            )
        return store.find_all([address.of(address.file)]), None
    whole = store.find(address.of(SINGLE_NAME), forbidden_is_missing=index is not None)
    if whole is not None:
        return [whole], None
    if index is None:
        raise HeadatlasError(
            f"{shown(address.folder)} holds neither {SINGLE_NAME} nor {INDEX_NAME}; only safetensors are "
            "read from afar: download the model and give its folder."
        )
    return [], index


def _cached_folder(store: RemoteStore, address: Address, files: list[RemoteFile]) -> Path:
    """A folder of the cache with these files, fetched unless they are there.

    Files whose content the store does not mark are fetched every time, and kept under their content.
    """
    if large := [file for file in files if file.size > MOST_BYTES]:
        raise HeadatlasError(
            f"{large[0].label} is {large[0].size:,} bytes; that is no model's config, tokenizer or index."
        )
    bodies = {file: store.read(file, 0, file.size) for file in files if file.content_mark is None}
    marks = [(f.label, f.size, f.content_mark or hashlib.sha256(bodies[f]).hexdigest()) for f in files]
    key = hashlib.sha256(repr((shown(address.folder), sorted(marks))).encode()).hexdigest()[:32]
    final = cache_dir() / "remote" / key
    with locked(final.with_suffix(".lock")):
        if final.is_dir():
            return final
        missing = [file for file in files if file not in bodies]
        bodies |= zip(missing, store.map(lambda f: store.read(f, 0, f.size), missing), strict=True)
        for file in files:
            store.check_unchanged(file)
        try:
            with atomic_folder(final) as work:
                work.mkdir()
                for file, body in bodies.items():
                    (work / PurePosixPath(file.label).name).write_bytes(body)
        except OSError as error:
            raise HeadatlasError(
                f"{final} cannot be written ({error.strerror or error}); make room, or set {CACHE_VARIABLE}."
            ) from error
    return final


class RemoteSafetensorsSource(StoredTensors):
    """Reads tensors out of one or several safetensors files by byte ranges; opening reads headers only.

    A file that changed since it was opened is never read on.
    """

    def __init__(
        self, store: RemoteStore, files: Sequence[RemoteFile], weight_map: Mapping[str, str] | None
    ) -> None:
        """Read and check the header of every file."""
        self.files = {file.label: file for file in files}
        self.traffic = Traffic(sum(file.size for file in files))
        self._store = store
        self._headers: dict[str, str] = {}
        super().__init__(store.map(self._header, files), files[0].label.rpartition("/")[0], weight_map)

    def _stored(self, name: str, rows: Rows) -> torch.Tensor:
        """Of the rows asked for, those close together are fetched in one request, and each only once."""
        import torch
        from fsspec.utils import merge_offset_ranges

        placed = self._placed[name]
        file, shape = self.files[placed.file], placed.shape or (1,)
        row_bytes = placed.nbytes // max(1, shape[0])
        # Indexing a range gives negative, repeated and out-of-range rows the meaning they have on disk.
        wanted = torch.arange(shape[0])[place_of(rows)]
        unique, inverse = torch.unique(wanted, return_inverse=True)
        found = torch.empty((len(unique), row_bytes), dtype=torch.uint8)

        def fetch(span: tuple[int, int]) -> None:
            start, end = span
            # A copy, because torch wants memory that may be written to.
            body = torch.frombuffer(bytearray(self._read(file, start, end)), dtype=torch.uint8)
            first = (start - placed.start) // row_bytes
            low, high = torch.searchsorted(unique, torch.tensor([first, first + len(body) // row_bytes]))
            found[low:high] = body.view(-1, row_bytes)[unique[low:high] - first]

        if found.numel():
            starts = (placed.start + unique * row_bytes).tolist()
            ends = [start + row_bytes for start in starts]
            _, starts, ends = merge_offset_ranges(
                [""] * len(starts), starts, ends, GAP_BYTES, BLOCK_BYTES, sort=False
            )
            self._store.map(fetch, zip(starts, ends, strict=True))
            self._store.check_unchanged(file)
        if not torch.equal(wanted, unique):
            found = found[inverse]
        stored = found.flatten().view(_torch_type(placed.dtype))
        return stored.view(placed.shape if rows is None else (len(wanted), *shape[1:]))

    def fingerprint(self) -> str:
        count = max(2, _WINDOWS // len(self.files))
        windows = [
            (file, (file.size - length) * place // (count - 1), length)
            for file in self.files.values()
            for length in [min(_WINDOW_BYTES, file.size)]
            for place in range(count)
        ]
        bodies = self._store.map(lambda w: self._read(w[0], w[1], w[1] + w[2]), windows)
        digest = hashlib.sha256()
        for label, file in self.files.items():
            about = (PurePosixPath(label).name, file.size, file.content_mark, self._headers[label])
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


def _torch_type(dtype: str) -> torch.dtype:
    import torch

    return {
        "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
        "U8": torch.uint8, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
        "F8_E8M0": torch.float8_e8m0fnu,
    }[dtype]  # fmt: skip
