"""The packages that relations are taken from: where their files lie, and under which licence they come."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Package:
    """A source of relations.

    Attributes:
        title: With its version, as a relation's ``source`` names it.
        licence: SPDX identifier, or the name of a licence that NOTICE spells out.
        notice: The sentences that NOTICE gives for it; empty where nothing is asked for.
        fetch: A command that brings it into the folder of packages; empty for facts of our own.
    """

    title: str
    licence: str
    notice: str
    fetch: str


@cache
def packages() -> dict[str, Package]:
    """Every source by its key in ``packages.toml``."""
    text = (HERE / "packages.toml").read_text(encoding="utf-8")
    return {key: Package(**entry) for key, entry in tomllib.loads(text).items()}
