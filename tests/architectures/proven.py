"""Which cases prove which family. `python -m tests.architectures.proven` writes them beside the families."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import transformers

from headatlas.architectures import families

from .gguf_files import ARCHITECTURES
from .test_gguf_families import OTHERS, READ_BY_TRANSFORMERS
from .tiny import ALL

FILE = Path(str(resources.files("headatlas.architectures") / "oracles.json"))


def proven() -> dict[str, Any]:
    """Family → format → cases. A case belongs to the family whose name (or alias) it begins with."""
    owner = {kind: family.name for family in families() for kind in family.aliases.model_types}
    owner |= {family.name: family.name for family in families()}
    found: dict[str, dict[str, list[str]]] = {}
    formats = {
        "safetensors": list(ALL),
        "gguf": [*READ_BY_TRANSFORMERS, *OTHERS],
        "gguf_read": READ_BY_TRANSFORMERS,
    }
    for kind, cases in formats.items():
        for case in sorted(cases):
            name = _of_gguf(case) if kind != "safetensors" else owner[case.partition("-")[0]]
            found.setdefault(name, {}).setdefault(kind, []).append(case)
    return {"transformers": transformers.__version__, "families": dict(sorted(found.items()))}


def _of_gguf(case: str) -> str:
    """The family that reads a case's GGUF file: Mixtral's, say, call themselves llama."""
    name = case.partition("-")[0]
    arch = next(ARCHITECTURES[kind] for kind in (name, f"{name}_text") if kind in ARCHITECTURES)
    return next(family.name for family in families() if arch in family.aliases.gguf)


if __name__ == "__main__":
    FILE.write_text(json.dumps(proven(), indent=1) + "\n", encoding="utf-8")
