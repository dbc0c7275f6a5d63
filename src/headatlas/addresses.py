"""Addresses such as ``s3://bucket/folder``: how to tell one, what may be shown of it, what it may raise."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from headatlas.errors import HeadatlasError

_ADDRESS = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_SQUEEZED = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:/(?!/)")
_ROOTS = (
    *(("aiohttp", "ClientError"), ("botocore.exceptions", "BotoCoreError")),
    *(("botocore.exceptions", "ClientError"), ("azure.core.exceptions", "AzureError")),
    *(("gcsfs.retry", "HttpError"), ("google.auth.exceptions", "GoogleAuthError")),
    *(("huggingface_hub.errors", "HfHubHTTPError"), ("httpx", "HTTPError"), ("httpx2", "HTTPError")),
    ("requests", "RequestException"),
)
"""Errors that the libraries behind fsspec raise and that Python has no name for."""


def is_url(spec: str) -> bool:
    """Whether a model or an atlas is given by an address such as ``https://…`` or ``s3://…``."""
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


def output_path(given: str | Path) -> Path:
    """A file or folder to write, which must be a path: no address, not empty, and not ``-``."""
    text = str(given)
    if not text:
        raise HeadatlasError("nothing is written to an empty path; give the name of a file or folder.")
    if text == "-":
        raise HeadatlasError("`out` -: nothing goes to standard output; give the name of a file or folder.")
    if "://" in text or (_SQUEEZED.match(text) and not Path(text.partition("/")[0]).exists()):
        raise HeadatlasError(
            f"{shown(text.rpartition('::')[2])}: nothing is written to an address; give a folder or file of "
            "this machine and copy it there (an atlas is small)."
        )
    return Path(given)


def failures(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """Return the errors that reading an address may raise, and `more`; libraries count if they are in use."""
    found = [getattr(sys.modules[module], name) for module, name in _ROOTS if module in sys.modules]
    return (OSError, ValueError, RuntimeError, *found, *more)
