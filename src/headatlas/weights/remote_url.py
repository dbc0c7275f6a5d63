"""Addresses of models that are not on disk, and of the files in their folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit, urlunsplit

from headatlas.errors import HeadatlasError
from headatlas.storage import shown

_HUB_PAGE = re.compile(r"/(resolve|raw|blob|tree)/[^/]+$")
HTTP = ("http", "https")


@dataclass(frozen=True)
class Address:
    """A model's folder, or one file of it.

    Attributes:
        folder: Address of the folder, without a query and a slash at its end; may hold credentials.
        query: What follows the path (``?…``), sent with every file; may hold credentials.
        file: Name of the file given, or None for the folder.
    """

    folder: str
    query: str
    file: str | None

    @classmethod
    def parse(cls, spec: str) -> Address:
        """Take an address apart.

        Raises:
            HeadatlasError: It is a chain of file systems, names no place, or a file that is not safetensors.
        """
        if "::" in spec.partition("://")[0] or "::" in spec.partition("://")[2].partition("/")[0]:
            raise HeadatlasError(
                f"{shown(spec.rpartition('::')[2])}: a chain of file systems (::) is not followed; "
                "give the address of a folder."
            )
        try:
            parts = urlsplit(spec)
        except ValueError:
            raise HeadatlasError(f"{shown(spec)} is no usable address; check it.") from None
        path = parts.path.rstrip("/")
        if not parts.netloc and not path:
            raise HeadatlasError(f"{shown(spec)} names no folder; give the address of a model's folder.")
        query = urlunsplit(("", "", "", parts.query, "")) if parts.scheme.lower() in HTTP else ""
        if parts.scheme.lower() not in HTTP and (parts.query or parts.fragment):
            raise HeadatlasError(
                f"{shown(spec)}: only http and https addresses may have a query (?…) or fragment (#…)."
            )
        folder, file = path, None
        if path.endswith(".safetensors"):
            folder, _, file = path.rpartition("/")
        elif path.endswith(".gguf"):
            raise HeadatlasError(
                f"{shown(spec)} is a GGUF file, and only safetensors are read from afar; download it."
            )
        return cls(f"{parts.scheme.lower()}://{parts.netloc}{folder}", query, file and unquote(file))

    @property
    def protocol(self) -> str:
        """The part before ``://``."""
        return self.folder.partition("://")[0]

    @property
    def name(self) -> str:
        """Short name of the model: the last part of the folder."""
        place = _HUB_PAGE.sub("", shown(self.folder)) if self.protocol in HTTP else shown(self.folder)
        return unquote(place.rpartition("/")[2]) or shown(self.folder)

    def of(self, file: str) -> str:
        """The whole address of a file in the folder; may hold credentials."""
        return f"{self.folder}/{file}{self.query}"
