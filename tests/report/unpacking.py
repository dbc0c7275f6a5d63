"""The arrays of a section, as the page reads them."""

from __future__ import annotations

import base64
import gzip
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headatlas.report.packed import _TYPES


def unpack(section: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """What ``js/unpack.mjs`` makes of a section; ``json`` is bytes."""
    raw, at, found = gzip.decompress(base64.b64decode(section["bytes"])), 0, {}
    for name, kind, length in section["arrays"]:
        size = np.dtype(_TYPES[kind]).itemsize
        planes = np.frombuffer(raw, dtype=np.uint8, count=size * length, offset=at).reshape(size, length)
        found[name] = np.ascontiguousarray(planes.T).view(np.dtype(_TYPES[kind]).newbyteorder("<")).ravel()
        at += size * length
    return found
