"""An object store made of a folder, for several processes, with failures at will: ``bucket://name/key``.

Like those of the clouds it has keys instead of folders, replaces objects whole, creates on condition,
remembers listings until it is told not to, and is asynchronous inside.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, unquote

import fsspec
from fsspec.asyn import AsyncFileSystem

FOLDER = "HEADATLAS_TEST_BUCKET"
"""Environment variable: the folder that holds the objects."""

Before = Callable[[str, str], float | None]
"""Called with what is asked (``put``, ``get``, ``look``, ``list``, ``delete``) and the key before it is done.
It may raise; a number makes the request wait so many seconds, after which it is called again."""


class BucketFileSystem(AsyncFileSystem):  # type: ignore[misc]
    protocol = "bucket"
    before: ClassVar[Before | None] = None

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        rest = str(path).removeprefix("bucket://")
        place, slash, key = rest.partition("/")
        return f"{place.rpartition('@')[2]}{slash}{key}".rstrip("/")

    async def _asked(self, verb: str, key: str) -> Path:
        while self.before is not None and (pause := type(self).before(verb, key)):
            await asyncio.sleep(pause)
        return Path(os.environ[FOLDER]) / quote(key, safe="")

    async def _pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        key = self._strip_protocol(path)
        target = await self._asked("put", key)
        half = target.with_name(f".{uuid.uuid4().hex}")
        half.write_bytes(value)
        if mode == "create":
            try:
                os.link(half, target)
            finally:
                half.unlink()
        else:
            half.replace(target)

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        return (await self._asked("get", self._strip_protocol(path))).read_bytes()[start:end]

    async def _rm_file(self, path: str, **_: Any) -> None:
        (await self._asked("delete", self._strip_protocol(path))).unlink()

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        key = self._strip_protocol(path)
        target = await self._asked("look", key)
        if target.exists():
            return {"name": key, "type": "file", "size": target.stat().st_size}
        if any(each.startswith(f"{key}/") for each in keys()):
            return {"name": key, "type": "directory", "size": 0}
        raise FileNotFoundError(path)

    async def _ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        prefix = self._strip_protocol(path)
        await self._asked("list", prefix)
        if prefix not in self.dircache:
            inside = {each.removeprefix(f"{prefix}/") for each in keys() if each.startswith(f"{prefix}/")}
            names = {each.partition("/")[0]: "directory" if "/" in each else "file" for each in inside}
            self.dircache[prefix] = [
                {"name": f"{prefix}/{name}", "type": kind, "size": 0} for name, kind in sorted(names.items())
            ]
        found = self.dircache[prefix]
        if not found:
            raise FileNotFoundError(path)
        return found if detail else [each["name"] for each in found]

    def invalidate_cache(self, path: str | None = None) -> None:  # noqa: ARG002
        self.dircache.clear()


def keys() -> set[str]:
    """All keys of all buckets."""
    return {unquote(each.name) for each in Path(os.environ[FOLDER]).iterdir() if each.name[0] != "."}


def objects() -> dict[str, bytes]:
    """All objects of all buckets."""
    folder = Path(os.environ[FOLDER])
    return {key: (folder / quote(key, safe="")).read_bytes() for key in keys()}


def register() -> None:
    """Let fsspec know it, in this process."""
    fsspec.register_implementation("bucket", BucketFileSystem, clobber=True)
