"""Writes the tables of docs/families.md from the data. `python -m tests.architectures.families_page`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from headatlas.architectures import families
from headatlas.architectures.family import oracles, tested_with

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
_MARKS = {
    "families": ("<!-- families -->", "<!-- end of families -->"),
    "unsupported": ("<!-- unsupported -->", "<!-- end of unsupported -->"),
}


def page() -> str:
    """The page with its tables made anew."""
    text = PAGE.read_text("utf-8")
    for name, lines in (("families", _families()), ("unsupported", _unsupported())):
        start, end = _MARKS[name]
        before, _, rest = text.partition(start)
        after = rest.partition(end)[2]
        text = f"{before}{start}\n{chr(10).join(lines)}\n{end}{after}"
    return text


def _families() -> Iterator[str]:
    yield f"Oracles: the modules of transformers {tested_with()}."
    yield ""
    yield "| family | architectures | safetensors | GGUF |"
    yield "|---|---|---|---|"
    for family in families():
        proof = oracles(family)
        names = ", ".join(f"`{name}`" for name in family.aliases.architectures)
        gguf = "–"
        if family.gguf is not None:
            read = f", {len(proof.gguf_read)} read back" if proof.gguf_read else ""
            gguf = f"{', '.join(f'`{name}`' for name in family.aliases.gguf)}: {len(proof.gguf)}{read}"
        yield f"| {family.title} | {names} | {len(proof.safetensors)} | {gguf} |"


def _unsupported() -> Iterator[str]:
    file = resources.files("headatlas.architectures") / "unsupported.toml"
    for group in tomllib.loads(file.read_text("utf-8"))["group"]:
        names = ", ".join(f"`{name}`" for name in group["architectures"])
        yield f"- {group['because'][0].upper()}{group['because'][1:]}: {names}."


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
