"""Make an atlas in a store that knows neither renaming nor locks.

The atlas is there when its root object says so, and that is written last. Before anything else, the root is
claimed: created, with what is to be made, on the condition that there is none. So of processes that start
together, one decides what the place is for. The claim is no lock: those that make the same atlas write the
same objects, whoever is first, and finish what another left; those that make something else are told. Nothing
is deleted here, and no layer written: one that comes late changes nothing of what others have done since.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from headatlas.errors import HeadatlasError
from headatlas.storage import StoragePath

ROOT = "zarr.json"
SCHEMA = "headatlas_schema"
CLAIM = "headatlas_unfinished"


def publish(made: Path, path: StoragePath) -> None:
    """Copy an empty atlas from a folder into a store, unless it is there.

    Raises:
        HeadatlasError: Something else is there or is being made there, or it cannot be written.
    """
    files = {str(file.relative_to(made)): file.read_bytes() for file in made.rglob("*") if file.is_file()}
    root = json.loads(files.pop(ROOT))
    digest = _digest(files)
    attributes = _claimed(path, root, digest)
    if SCHEMA in attributes:
        return
    path.write_all(files)
    attributes = _claimed(path, root, digest)
    if SCHEMA in attributes:  # finished by another process in the meantime
        return
    del attributes[CLAIM]
    # The provenance is the claim's: if this process is of another map, it finds out as from any atlas.
    finished = {**root, "attributes": {**root["attributes"], **attributes}}
    (path / ROOT).write_bytes(json.dumps(finished).encode())


def root_attributes(path: StoragePath) -> dict[str, Any] | None:
    """The attributes at the root of a Zarr group in a store; None if there is nothing.

    Raises:
        HeadatlasError: What is there is no Zarr group, or the store does not answer.
    """
    try:
        attributes = json.loads((path / ROOT).read_bytes())["attributes"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        attributes = None
    if not isinstance(attributes, dict):
        raise HeadatlasError(f"{path}: this is not an atlas of headatlas; choose another place with -o.")
    return attributes


def _claimed(path: StoragePath, root: dict[str, Any], digest: str) -> dict[str, Any]:
    """The attributes of the root, which now says that this atlas is made or being made."""
    attributes = root_attributes(path)
    if attributes is None:
        # Objects first, root after: another process claims the root before it writes objects.
        strange = path.files()
        attributes = root_attributes(path)
        if attributes is None and strange:
            raise HeadatlasError(
                f"{path}: there are {len(strange)} objects but no atlas, perhaps of one that was partly "
                "deleted; delete them, or choose another place with -o."
            )
    if attributes is None:
        wanted = {name: value for name, value in root["attributes"].items() if name != SCHEMA}
        claim = {**root, "attributes": {**wanted, CLAIM: digest}}
        (path / ROOT).create(json.dumps(claim).encode())
        attributes = root_attributes(path)
    if attributes is None or not {SCHEMA, CLAIM} & set(attributes):
        raise HeadatlasError(f"{path}: this is not an atlas of headatlas; choose another place with -o.")
    if SCHEMA not in attributes and attributes[CLAIM] != digest:
        raise HeadatlasError(
            f"{path}: another map, or one by another version of headatlas or Zarr, is being made there or "
            "was left unfinished; choose another place with -o, or start over with --force."
        )
    return attributes


def _digest(files: dict[str, bytes]) -> str:
    """Of all that is written besides the root."""
    digest = hashlib.sha256()
    for name, data in sorted(files.items()):
        digest.update(f"{name} {len(data)} ".encode())
        digest.update(data)
    return digest.hexdigest()
