"""Addresses such as ``s3://bucket/folder``: how to tell one, and what may be shown of it."""

from __future__ import annotations

import re

_ADDRESS = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(spec: str) -> bool:
    """Whether a model or a place is given by an address such as ``https://…`` or ``s3://…``."""
    return _ADDRESS.match(spec) is not None


def shown(spec: str) -> str:
    """An address as it may be printed and kept: without user, password, query and fragment.

    What is no address comes back as it is.
    """
    if not is_url(spec):
        return spec
    scheme, _, rest = spec.partition("://")
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    place, slash, path = rest.partition("/")
    return f"{scheme.lower()}://{place.rpartition('@')[2]}{slash}{path}"
