"""Zarr in a store that fsspec reaches: every request is made again if its failure may pass."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from functools import partial
from pathlib import Path

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore

from headatlas.storage.addresses import shown
from headatlas.storage.patience import patiently_async
from headatlas.storage.place import Place


def zarr_store(path: Place, *, read_only: bool = False) -> Path | Store:
    """What Zarr and xarray open for a place.

    Raises:
        HeadatlasError: fsspec knows no such scheme, a package is missing, or it cannot be set up.
    """
    if isinstance(path, Path):
        return path
    path.system()  # says what is wrong, if anything
    return PatientStore.from_url(path.url, read_only=read_only)


class PatientStore(FsspecStore):
    """Zarr's store over fsspec, which itself gives up at the first failure."""

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        ask = partial(super().get, key, prototype, byte_range)
        return await patiently_async(self._label(key), "cannot be read", ask)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        ask = partial(super().get_partial_values, prototype, list(key_ranges))
        return await patiently_async(self._label(""), "cannot be read", ask)

    async def set(self, key: str, value: Buffer, byte_range: tuple[int, int] | None = None) -> None:
        ask = partial(super().set, key, value, byte_range)
        await patiently_async(self._label(key), "cannot be written", ask)

    async def delete(self, key: str) -> None:
        await patiently_async(self._label(key), "cannot be deleted", partial(super().delete, key))

    async def delete_dir(self, prefix: str) -> None:
        await patiently_async(self._label(prefix), "cannot be deleted", partial(super().delete_dir, prefix))

    async def exists(self, key: str) -> bool:
        return await patiently_async(self._label(key), "cannot be read", partial(super().exists, key))

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        listing = super().list_dir

        async def ask() -> list[str]:
            # What other processes have written since the last listing must be seen.
            self.fs.invalidate_cache()
            return [name async for name in listing(prefix)]

        for name in await patiently_async(self._label(prefix), "cannot be listed", ask):
            yield name

    def _label(self, key: str) -> str:
        scheme = self.fs.protocol if isinstance(self.fs.protocol, str) else self.fs.protocol[0]
        return shown(f"{scheme}://{self.path.lstrip('/')}/{key}".rstrip("/"))

    def __str__(self) -> str:
        return self._label("")
