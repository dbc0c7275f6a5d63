"""Files of source states: a folder of ``.npy`` files, one for each layer and kind, that appears whole.

States are saved before any head is mapped: ranks are exact for the saved states, and a resumed run reads the
same ones. Processes of a job array may share the folder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headatlas.errors import HeadatlasError
from headatlas.files import atomic_folder, unwritten
from headatlas.lenses.lens import LayerStates

INDEX = "states.json"
ROOM = "make room, or use a folder where there is some"
KINDS = ("x", "control")
ORDER = "beginnings"
"""How rows of states that enter a block are ordered; those of another order are not taken up."""


def saved_layer(folder: Path, layer: int, shape: tuple[int, int]) -> LayerStates | None:
    """The states [n, d_model] of a layer from its files; None where they are not there, or damaged."""
    x, control = (saved_array(folder / state_file(kind, layer), shape) for kind in KINDS)
    if x is None or control is None:
        return None
    return LayerStates(torch.from_numpy(x), torch.from_numpy(control))


def state_file(kind: str, layer: int) -> str:
    """The name of a file of states."""
    return f"{kind}_{layer:03d}.npy"


def states_key(sources: Sequence[tuple[int, ...]], prefixes: Sequence[str], identity: str) -> str:
    """Hash that says of which model, prefixes and sources states are."""
    body = json.dumps([ORDER, identity, list(prefixes), [list(source) for source in sources]])
    return hashlib.sha256(body.encode()).hexdigest()


def write_index(folder: Path, wanted: str) -> None:
    """Write the key of the states that a folder holds."""
    (folder / INDEX).write_text(json.dumps({"states_key": wanted}), encoding="utf-8")


def claim(folder: Path, wanted: str) -> None:
    """Make a folder one of states with this key: one that is keeps what it holds, others are replaced."""
    if not belongs(folder, wanted):
        with atomic_state_folder(folder, lambda: belongs(folder, wanted)) as temporary:
            write_index(temporary, wanted)


def save_array(folder: Path, name: str, rows: NDArray[Any]) -> None:
    """Write a file that appears whole or not at all; nothing where the folder is gone.

    Another process may delete it when it has all that it needs.
    """
    if not folder.exists():
        return
    temporary = folder / f".{uuid.uuid4().hex[:8]}.npy"
    try:
        np.save(temporary, rows, allow_pickle=False)
        temporary.replace(folder / name)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if folder.exists():
            raise unwritten(folder, error, ROOM, ROOM) from error


def belongs(folder: Path, wanted: str) -> bool:
    """Whether a folder is one of states with this states_key."""
    try:
        found = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(found == {"states_key": wanted})


def has_layer(folder: Path, layer: int, shape: tuple[int, int]) -> bool:
    """Whether the states [n, d_model] of a layer are there and whole."""
    return all(whole_array(folder / state_file(kind, layer), shape) for kind in KINDS)


def whole_array(file: Path, shape: tuple[int, ...]) -> bool:
    """Whether a file holds a float32 array of this shape."""
    return saved_array(file, shape, mapped=True) is not None


def saved_array(file: Path, shape: tuple[int, ...], *, mapped: bool = False) -> NDArray[np.float32] | None:
    """A float32 array of this shape from its file, opened once: another process may delete it at any time.

    None where the file is gone, torn or holds another array. ``mapped`` leaves the numbers on the disk.
    """
    try:
        rows = np.load(file, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, EOFError, ValueError):
        return None
    return rows if rows.shape == shape and rows.dtype == np.float32 else None


def check_states_folder(folder: Path) -> None:
    """Raise HeadatlasError where states cannot go because something else is there, which is left alone."""
    ours = (folder / INDEX).is_file() or (folder.is_dir() and not any(folder.iterdir()))
    if folder.exists() and not ours:
        raise HeadatlasError(
            f"{folder}: cannot be written (it holds something else than source states, which a map keeps "
            "there until it is done); move it away or use another folder."
        )


@contextmanager
def atomic_state_folder(folder: Path, complete: Callable[[], bool]) -> Iterator[Path]:
    """Atomic creation of a folder of states: yields a temporary one, which replaces older states on success.

    Where ``folder`` is ``complete`` by then, another process of a job array has made the same states and may
    be reading them: it stays.
    """
    try:
        with atomic_folder(folder) as temporary:
            temporary.mkdir()
            yield temporary
            if folder.exists() and not complete():
                _discard(folder)
    except OSError as error:
        if not complete():
            raise unwritten(folder, error, ROOM, ROOM) from error


def discard_states(folder: Path) -> None:
    """Delete saved states and what a killed process left of them; a folder of anything else is left alone."""
    _discard(folder)
    for left in folder.parent.glob(f".{folder.name}." + 8 * "[0-9a-f]"):
        shutil.rmtree(left, ignore_errors=True)


def _discard(folder: Path) -> None:
    if (folder / INDEX).is_file():
        # Another process may be writing to it: moved away at once, it cannot be found half deleted.
        away = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
        with suppress(FileNotFoundError):
            folder.rename(away)
        shutil.rmtree(away, ignore_errors=True)
