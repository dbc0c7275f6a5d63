"""The list of relations: what each is called, where it belongs, and which step makes its pairs."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
MOST = 200


@dataclass(frozen=True)
class Entry:
    """One relation of ``catalogue.toml``.

    Attributes:
        name: Identifier.
        title: For people, with an arrow.
        category, subcategory: Where it is shown.
        step: ``facts``, ``inverse NAME``, or the name of a step in ``builder.steps``.
        sources: Keys of ``packages.toml``.
        note: How the pairs were chosen.
        core: Whether it is one of the paper's twenty.
        spacing: How source and target stand in text: after a space (``word``), without (``bare``), ``mixed``.
        question: Template that asks for the target; empty where no sentence does.
        contexts: Templates in which the source stands naturally.
        alternative_to: A relation of core that this one stands in for where its words are not single tokens.
        known_problems: What a reader should know about the pairs.
        most: The largest number of sources that is shipped.
        draw: Which random sample is judged; raised when one led to corrections.
        corrected: Wrong pairs of this sample that were put right since; they count as wrong.
    """

    name: str
    title: str
    category: str
    subcategory: str
    step: str
    sources: tuple[str, ...] = ("hand",)
    note: str = ""
    core: bool = False
    copying: bool = False
    spacing: tuple[str, str] = ("word", "word")
    question: str = ""
    contexts: tuple[str, ...] = ()
    alternative_to: str = ""
    known_problems: str = ""
    most: int = MOST
    draw: int = 1
    corrected: int = 0


@cache
def catalogue() -> dict[str, Entry]:
    """Every relation by its name, in the order of the file."""
    body = tomllib.loads((HERE / "catalogue.toml").read_text(encoding="utf-8"))
    entries = {}
    for name, fields in body.items():
        lists = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
        entries[name] = Entry(name, **{**fields, **lists})
    return entries
