"""Reads the small JSON files that lie beside weights, with errors that name the line.

A clone without Git LFS has a few lines of text in the place of any large file; those are known here as well.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headatlas.errors import HeadatlasError


def refuse_pointer(path: Path | str, first: bytes) -> None:
    """Make sure that a file is not a pointer of Git LFS, by its first bytes.

    Source: the specification of Git LFS, docs/spec.md: the first line begins with ``version``.

    Raises:
        HeadatlasError: It is one.
    """
    if first[:8] == b"version ":
        raise HeadatlasError(
            f"{path} is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull` there."
        )


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        HeadatlasError: The file cannot be read, is not UTF-8 JSON (with the line), or is not an object.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise HeadatlasError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise HeadatlasError(
            f"{path} is not UTF-8 text (byte {error.start}); fetch the file again."
        ) from error
    refuse_pointer(path, text[:8].encode())
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise HeadatlasError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}); correct it or fetch the file again."
        ) from error
    except (RecursionError, ValueError) as error:
        raise HeadatlasError(f"{path} is not usable JSON ({error}); fetch the file again.") from error
    if not isinstance(value, dict):
        raise HeadatlasError(
            f"{path} holds a JSON {type(value).__name__} where an object is needed; fetch the file again."
        )
    return value
