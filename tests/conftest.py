"""Fixtures for tests of all folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headatlas.storage import patience
from tests.storage import bucket
from tests.storage.bucket import BucketFileSystem


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a prefix in an empty object store that is asked with little patience."""
    folder = tmp_path / "objects"
    folder.mkdir()
    monkeypatch.setenv(bucket.FOLDER, str(folder))
    monkeypatch.setattr(BucketFileSystem, "before", None)
    quick = patience.Patience(attempts=3, first_pause=0.001, longest_pause=0.01, timeout=1.0)
    monkeypatch.setattr(patience, "PATIENCE", quick)
    bucket.register()
    yield "bucket://somewhere/out"
    BucketFileSystem.clear_instance_cache()


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Callable[[bucket.Before | None], None]:
    """Sets what happens before each request to the object store."""

    def set_before(action: bucket.Before | None) -> None:
        monkeypatch.setattr(BucketFileSystem, "before", action and staticmethod(action))

    return set_before
