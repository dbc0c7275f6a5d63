"""Which families passed which oracles, and which architectures are known but not supported, and why.

`oracles.json` is written from the tests' own list of cases (`python -m tests.architectures.proven`); a test
holds the two together, so a family counts as proven only if the tests hold it against the modules.
"""

from __future__ import annotations

import json
import tomllib
from functools import cache
from importlib import resources
from typing import Any

from pydantic import BaseModel, ConfigDict

from headatlas.architectures.family import Family


class Oracles(BaseModel):
    """The tiny random models of a family whose heads, norms and first MLP equal the modules'.

    Attributes:
        safetensors: Cases saved by transformers, and held in memory.
        gguf: Cases written as GGUF.
        gguf_read: Those of them that transformers reads back to the same weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    safetensors: tuple[str, ...] = ()
    gguf: tuple[str, ...] = ()
    gguf_read: tuple[str, ...] = ()


def oracles(family: Family) -> Oracles:
    """What a family was proven with; nothing for one that no test knows."""
    return Oracles.model_validate(_stored()["families"].get(family.name, {}))


def tested_with() -> str:
    """The version of transformers whose modules were the oracles."""
    return str(_stored()["transformers"])


@cache
def unsupported() -> dict[str, str]:
    """Architectures that are known and not supported → why, as the end of a sentence."""
    file = resources.files("headatlas.architectures") / "unsupported.toml"
    groups = tomllib.loads(file.read_text("utf-8"))["group"]
    return {name: group["because"] for group in groups for name in group["architectures"]}


@cache
def _stored() -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(
        (resources.files("headatlas.architectures") / "oracles.json").read_text("utf-8")
    )
    return stored
