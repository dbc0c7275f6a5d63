"""Delete an atlas, and nothing that is not one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from headatlas.atlas.publishing import CLAIM, ROOT, SCHEMA, root_attributes
from headatlas.atlas.store import ATLAS_NAME
from headatlas.errors import HeadatlasError
from headatlas.storage import Place, StoragePath, place


def remove_atlas(folder: str | Place) -> bool:
    """Delete the atlas in an output folder or at an address, and nothing else; True if there was one.

    Raises:
        HeadatlasError: What is there is not an atlas of headatlas, or cannot be deleted.
    """
    given = place(folder)
    path = given if given.suffix == ".zarr" else given / ATLAS_NAME
    return _remove_objects(path) if isinstance(path, StoragePath) else _remove_folder(path)


def _remove_folder(path: Path) -> bool:
    if not path.exists() and not path.is_symlink():
        return False
    try:
        is_atlas = (
            not path.is_symlink() and SCHEMA in json.loads((path / ROOT).read_text("utf-8"))["attributes"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        is_atlas = False
    if not is_atlas:
        raise _no_atlas(path)
    try:
        shutil.rmtree(path)
    except OSError as error:
        raise HeadatlasError(f"{path}: cannot be deleted ({error.strerror or error}).") from error
    return True


def _remove_objects(path: StoragePath) -> bool:
    """The flags of layers first and the root last: whenever it stops, no layer counts as done that is not
    there, and the same call goes on."""
    attributes = root_attributes(path)
    if attributes is None:
        if path.files():
            raise _no_atlas(path)
        return False
    if not {SCHEMA, CLAIM} & set(attributes):
        raise _no_atlas(path)
    flags = (path / "layer_done").files()
    root = path / ROOT
    rest = [each for each in path.files() if each != root and each not in flags]
    for each in (*flags, *rest, root):
        each.unlink()
    return True


def _no_atlas(path: Place) -> HeadatlasError:
    return HeadatlasError(f"{path}: this is not an atlas of headatlas, so --force does not delete it.")
