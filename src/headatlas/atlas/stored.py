"""Evidence in an atlas: one dataset a measurement, complete or not there, in a folder or at an address."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import xarray as xr
import zarr

from headatlas.addresses import shown
from headatlas.atlas.store import Place, names_in, open_arrays, opening, store_at, within
from headatlas.errors import HeadatlasError
from headatlas.files import atomic_folder, check_writable, unwritten

GROUP = "evidence"
SHIPPED = "shipped"
"""Name of what is measured with texts of headatlas; with others it is a part of their digest."""


@dataclass(frozen=True)
class Stored:
    """One measurement: its arrays, and the provenance that says what was measured, and with which versions.

    A kind of measurement is a subclass. It says how names begin in the group, and what must be there.
    """

    data: xr.Dataset
    provenance: dict[str, Any]

    PREFIX: ClassVar[str]
    VARIABLES: ClassVar[Sequence[str]]
    NEEDED: ClassVar[Sequence[str]] = ()
    """Entries of the provenance that readers rely on."""

    @classmethod
    def place(cls, group: Path, name: str = SHIPPED) -> Path:
        """The folder of a measurement in an atlas's evidence group."""
        return group / f"{cls.PREFIX}{name}"

    @classmethod
    def read(cls, place: Place) -> Self:
        """A stored measurement."""
        data, provenance = read_dataset(place)
        lacking = {*cls.VARIABLES} - {*map(str, data.variables)} | {*cls.NEEDED} - {*provenance}
        if lacking:
            raise _damaged(place, f"it lacks {', '.join(sorted(lacking))}")
        found = cls(data, provenance)
        try:
            found.check()
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise _damaged(place, error) from error
        return found

    def check(self) -> None:
        """Raise a KeyError, TypeError or ValueError where the contents contradict each other."""

    @classmethod
    def all_in(cls, atlas: Place | None) -> list[Self]:
        """All of this kind in an atlas, by name; none of an atlas in memory.

        What is damaged is left out, with a warning.
        """
        return cls._readable(evidence_in(atlas, cls.PREFIX))

    @classmethod
    def shipped_in(cls, atlas: Place | None) -> Self | None:
        """The one on the texts of headatlas, if it has been measured; with a warning as above."""
        return next(iter(cls._readable(evidence_in(atlas, f"{cls.PREFIX}{SHIPPED}"))), None)

    @classmethod
    def _readable(cls, places: dict[str, Place]) -> list[Self]:
        found = []
        for place in places.values():
            try:
                found.append(cls.read(place))
            except HeadatlasError as error:
                warnings.warn(str(error), stacklevel=3)
        return found


def evidence_in(atlas: Place | None, prefix: str) -> dict[str, Place]:
    """Name → place of what an atlas's evidence group holds under names that begin so, sorted.

    Nothing of an atlas in memory. What a stopped process left behind has a name that begins with a dot.
    """
    if atlas is None:
        return {}
    group = within(atlas, GROUP)
    return {name: within(group, name) for name in names_in(group) if name.startswith(prefix)}


COPY_IT = "copy the atlas into a folder that can be written, and run the same command there"


def check_storable(path: Path) -> None:
    """Refuse a path where :func:`store_dataset` could not write, before anything is measured for it."""
    check_writable(path.parent, COPY_IT)


def store_dataset(path: Path, data: xr.Dataset, provenance: dict[str, Any]) -> None:
    """Write one piece of evidence in the place of an older one; it appears whole or not at all."""
    stored = data.assign_attrs({"provenance": json.dumps(provenance)})
    try:
        with atomic_folder(path, replace=True) as temporary:
            stored.to_zarr(temporary, mode="w", consolidated=False)
    except OSError as error:
        raise unwritten(path, error, COPY_IT) from error


def read_dataset(place: Place) -> tuple[xr.Dataset, dict[str, Any]]:
    """Read what :func:`store_dataset` wrote: the data in memory, and the provenance."""
    none = HeadatlasError(f"{shown(str(place))}: this is no stored measurement; move it elsewhere.")
    with opening(place, none, lambda why: _damaged(place, why)):
        while True:
            before = _version(place)
            try:
                data = open_arrays(place).load()
                found = data, dict(json.loads(data.attrs["provenance"]))
            except Exception:
                if _version(place) == before:
                    raise
            else:
                if _version(place) == before:
                    return found


def read_provenance(place: Place) -> dict[str, Any]:
    """The provenance alone of what :func:`store_dataset` wrote."""
    with opening(place, _damaged(place, "nothing is there"), lambda why: _damaged(place, why)):
        return dict(json.loads(str(zarr.open_group(store_at(place), mode="r").attrs["provenance"])))


def _version(place: Place) -> tuple[int, int] | None:
    """Identity of a folder: another one that a process puts in its place has another."""
    with suppress(OSError):
        if isinstance(place, Path):
            about = place.stat()
            return about.st_ino, about.st_mtime_ns
    return None


def no_rows(columns: Sequence[str], **kinds: Any) -> pd.DataFrame:
    """The table of what was not measured; columns hold numbers unless something else is said."""
    return pd.DataFrame({name: np.array([], dtype=kinds.get(name, np.float64)) for name in columns})


def _damaged(place: Place, why: object) -> HeadatlasError:
    return HeadatlasError(f"{shown(str(place))}: is damaged ({why}); remove this folder, and measure again.")
