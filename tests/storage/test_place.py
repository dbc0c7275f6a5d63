"""Addresses as places: what they are called, what is shown of them, what is done when a request fails."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from headatlas.errors import HeadatlasError
from headatlas.files import check_writable, replacing
from headatlas.storage import StorageError, StoragePath, place
from headatlas.storage.failures import failures, judge
from tests.storage.bucket import FOLDER, Before, BucketFileSystem, keys, objects

SetBefore = Callable[[Before | None], None]


def test_names_are_those_of_paths() -> None:
    given = place("S3://bucket/some/folder/")
    assert isinstance(given, StoragePath) and given.url == "s3://bucket/some/folder"
    table = given / "table.csv"
    assert (table.name, table.suffix, table.parent) == ("table.csv", ".csv", given)
    assert str(table.with_suffix(".parquet")) == "s3://bucket/some/folder/table.parquet"
    assert place(given) is given and {given, place("s3://bucket/some/folder")} == {given}
    top = place("s3://bucket")
    assert isinstance(top, StoragePath) and top.parent == top and str(top / "a") == "s3://bucket/a"


def test_what_is_on_this_machine_is_a_path(tmp_path: Path) -> None:
    assert place("out/atlas.zarr") == Path("out/atlas.zarr")
    assert place(tmp_path) is tmp_path
    assert place(f"file://{tmp_path}/some folder") == tmp_path / "some folder"
    assert place(f"local://{tmp_path}") == tmp_path


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("simplecache::s3://bucket/out", r"^s3://bucket/out: a chain of file systems"),
        ("https://me:secret@host/out?token=secret", r"^https://host/out: .* no query"),
        ("s3://bucket/out#part", r"no query .* or fragment"),
        ("s3://", r"^s3:// names no folder; give one, such as s3://bucket/folder"),
        (Path("s3://bucket/out"), r"^s3:/bucket/out: give an address .* as text"),
    ],
)
def test_addresses_that_are_no_place(given: str | Path, message: str) -> None:
    with pytest.raises(HeadatlasError, match=message) as caught:
        place(given)
    assert "secret" not in str(caught.value)


def test_an_unknown_scheme_and_a_missing_package_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HeadatlasError, match="nosuch:// is a scheme it knows"):
        check_writable("nosuch://bucket/out")
    monkeypatch.setitem(sys.modules, "adlfs", None)
    with pytest.raises(HeadatlasError, match=r"abfs://container/out.*: a package is missing .*adlfs"):
        check_writable("abfs://container/out")


def test_credentials_are_shown_nowhere(store: str, before: SetBefore) -> None:
    given = place("bucket://me:secret@somewhere/out")
    assert isinstance(given, StoragePath)
    assert (str(given), repr(given)) == ("bucket://somewhere/out", "StoragePath('bucket://somewhere/out')")
    check_writable(given)

    def fails(verb: str, key: str) -> None:
        raise ConnectionError("bucket://me:secret@somewhere?signature=secret")

    before(fails)
    with pytest.raises(StorageError) as caught:
        given.write_bytes(b"")
    error: BaseException | None = caught.value
    said = str(error)
    assert said == (
        "bucket://somewhere/out: cannot be written (the connection failed (ConnectionError), 3 attempts); "
        "try again later."
    )
    while error is not None:  # nor in what a traceback would show
        assert "secret" not in str(error) and (error.__suppress_context__ or error.__context__ is None)
        error = error.__cause__


def test_whether_a_place_can_be_written_is_found_out_early(store: str, before: SetBefore) -> None:
    check_writable(store)
    assert not keys(), "it leaves no trace"

    def refuses(verb: str, key: str) -> None:
        if verb == "put":
            raise PermissionError("secret")

    before(refuses)
    with pytest.raises(HeadatlasError, match=r"cannot be written \(access is refused\); check your rights"):
        check_writable(store)


def test_a_file_is_written_whole_or_not_at_all(store: str, before: SetBefore) -> None:
    table = place(store) / "table.csv"
    with replacing(table) as temporary:
        assert temporary.suffix == ".csv"
        temporary.write_text("old")
    with pytest.raises(RuntimeError), replacing(table) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert objects() == {"somewhere/out/table.csv": b"old"}


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (ConnectionResetError("gone"), 3),
        (TimeoutError(), 3),
        (OSError(5, "SlowDown"), 3),
        (aiohttp.ServerDisconnectedError(), 3),
        (PermissionError("no"), 1),
        (NotImplementedError(), 1),
    ],
)
def test_what_may_pass_is_tried_again(error: Exception, tries: int, store: str, before: SetBefore) -> None:
    asked: list[str] = []

    def fails(verb: str, key: str) -> None:
        asked.append(verb)
        if len(asked) <= failing:
            raise error

    before(fails)
    failing = 99
    with pytest.raises(StorageError, match=r"^bucket://somewhere/out: cannot be written"):
        place(store).write_bytes(b"new")  # type: ignore[arg-type]
    assert len(asked) == tries and not keys()
    asked.clear()
    failing = tries - 1
    place(store).write_bytes(b"new")  # type: ignore[arg-type]
    assert objects() == {"somewhere/out": b"new"}


def test_a_request_that_stalls_is_made_again(
    store: str, before: SetBefore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headatlas.storage import patience

    monkeypatch.setattr(patience, "PATIENCE", patience.Patience(3, 0.001, 0.01, timeout=0.1))
    calls: list[str] = []

    def stalls(verb: str, key: str) -> float | None:
        calls.append(verb)
        return 60 if len(calls) == 1 else None

    before(stalls)
    place(store).write_bytes(b"new")  # type: ignore[arg-type]
    assert calls == ["put", "put"] and objects() == {"somewhere/out": b"new"}


def test_one_of_several_creates(store: str) -> None:
    given = place(store)
    assert isinstance(given, StoragePath)
    assert given.create(b"first") and not given.create(b"second")
    assert given.read_bytes() == b"first"


def test_a_store_that_knows_no_condition_writes(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = BucketFileSystem._pipe_file

    async def simple(self: BucketFileSystem, path: str, value: bytes) -> None:
        await whole(self, path, value)

    monkeypatch.setattr(BucketFileSystem, "_pipe_file", simple)
    given = place(store)
    assert isinstance(given, StoragePath)
    assert given.create(b"first") and given.create(b"second")
    assert given.read_bytes() == b"second"


def test_what_other_processes_wrote_is_seen(store: str) -> None:
    given = place(store)
    assert isinstance(given, StoragePath)
    (given / "a").write_bytes(b"")
    assert given.files() == [given / "a"]
    system, _ = given.system()
    system.ls("somewhere/out")  # is remembered
    (Path(os.environ[FOLDER]) / "somewhere%2Fout%2Fb").write_bytes(b"")
    assert given.files() == [given / "a", given / "b"]
    assert given.is_dir() and given.exists() and not (given / "c").exists() and not (given / "a").is_dir()
    (given / "a").unlink()
    (given / "a").unlink()
    with pytest.raises(FileNotFoundError):
        (given / "a").read_bytes()


class _RefusedError(Exception):
    """Like botocore's, of no kind that Python knows."""

    def __init__(self, status: int) -> None:
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


@pytest.mark.parametrize(("status", "transient"), [(503, True), (429, True), (403, False), (404, False)])
def test_errors_of_the_libraries_behind_fsspec(
    status: int, transient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = types.ModuleType("botocore.exceptions")
    library.__dict__.update(BotoCoreError=OSError, ClientError=_RefusedError)
    monkeypatch.setitem(sys.modules, "botocore.exceptions", library)
    assert _RefusedError in failures()
    verdict = judge(_RefusedError(status), 1.0)
    assert (verdict.transient, str(status) in verdict.reason) == (transient, True)
    missing: Any = FileNotFoundError("key")
    missing.__cause__ = _RefusedError(status)
    assert judge(missing, 1.0) == verdict
