"""Which cases prove which family. `python -m tests.architectures.proven` writes them beside the families."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import transformers

from headatlas.architectures import families

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
            # Mixtral's GGUF files call themselves llama.
            name = owner[case.partition("-")[0]]
            name = "llama" if kind != "safetensors" and name == "mixtral" else name
            found.setdefault(name, {}).setdefault(kind, []).append(case)
    return {"transformers": transformers.__version__, "families": dict(sorted(found.items()))}


if __name__ == "__main__":
    FILE.write_text(json.dumps(proven(), indent=1) + "\n", encoding="utf-8")
