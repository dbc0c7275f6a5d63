"""Data cards: what a reader should know of each shipped relation, as pages of docs/relations.

How many sources a tokenizer can use is counted once, with `python -m builder count`, and kept in
``usable.json``; the cards are made from that and from the data alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from builder.verdicts import BAD, second_reading
from headatlas.lenses import lens_named
from headatlas.relations import (
    CORE_CATEGORIES,
    MIN_SOURCES,
    MIN_TARGETS,
    Relation,
    competing_tokens,
    tokenise,
)
from headatlas.relations.selection import groups, heads, shipped

USABLE = Path(__file__).parent / "usable.json"
PAGES = Path(__file__).parent.parent / "docs" / "relations"
N_SAMPLES = 6


def count(tokenizers: Mapping[str, Path]) -> str:
    """The text of ``usable.json``: usable sources and targets of every relation, by tokenizer.

    Args:
        tokenizers: Name → a folder with the tokenizer's files.
    """
    from transformers import AutoTokenizer

    longest = lens_named("neutral").max_source_tokens
    rows: dict[str, dict[str, Any]] = {
        name: {"sha256": shipped(name).sha256} for name in sorted(groups()["all"])
    }
    for label, folder in tokenizers.items():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        competing, _ = competing_tokens(tokenizer, len(tokenizer))
        for name, row in rows.items():
            seen = tokenise(shipped(name), tokenizer, competing=competing, max_source_tokens=longest)
            row[label] = [len(seen.pairs), len({token for pair in seen.pairs for token in pair.target_ids})]
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    return f"{{\n{lines}\n}}\n"


def pages() -> dict[str, str]:
    """The cards: name of a page's file → its text, a page a category."""
    usable = json.loads(USABLE.read_text(encoding="utf-8"))
    return {f"{category.lower()}.md": _page(category, usable) for category in CORE_CATEGORIES}


def _page(category: str, usable: Mapping[str, Mapping[str, Any]]) -> str:
    names = sorted(groups()[category], key=lambda name: (heads()[name]["subcategory"], name))
    labels = [label for label in usable[names[0]] if label != "sha256"]
    table = [
        ["relation", "subcategory", "sources", *labels],
        ["---", "---", *["--:"] * (1 + len(labels))],
        *(
            [
                f"[{_plain(shipped(name).title)}](#{name})",
                heads()[name]["subcategory"],
                str(len(shipped(name).pairs)),
                *(_used(usable[name][label]) for label in labels),
            ]
            for name in names
        ),
    ]
    return "\n".join(
        [
            f"# {category}: {len(names)} relations",
            "",
            "This page is written by `python -m builder cards`. Under a tokenizer's name stands how many "
            "sources it can use (lens `neutral`, targets of one token); in brackets where these are fewer "
            f"than {MIN_SOURCES}, or have fewer than {MIN_TARGETS} different targets: an atlas leaves the "
            "relation out then.",
            "",
            *("| " + " | ".join(row) + " |" for row in table),
            *(line for name in names for line in _card(shipped(name))),
            "",
        ]
    )


def _used(counts: tuple[int, int]) -> str:
    sources, targets = counts
    return str(sources) if sources >= MIN_SOURCES and targets >= MIN_TARGETS else f"({sources})"


def _card(relation: Relation) -> list[str]:
    head = heads()[relation.name]
    step = max(1, len(relation.pairs) // N_SAMPLES)
    samples = relation.pairs[::step][:N_SAMPLES]
    rows = {
        "name": f"`{relation.name}`" + (", one of core" if head.get("core") else ""),
        "pairs": f"{len(relation.pairs)} sources, {relation.n_targets} different targets",
        "samples": "; ".join(f"{_plain(p.source)} → {_plain(' or '.join(p.targets))}" for p in samples),
        "read": _quality(relation, head.get("quality")),
        "read again": _again(relation.name),
        "source": _plain(head["source"]),
        "licence": head["licence"],
        "made by": f"`{head['step']}`",
        "note": _plain(head.get("note", "")),
        "known problems": _plain(head.get("known_problems", "")),
        "stands in for": f"`{head['alternative_to']}`" if "alternative_to" in head else "",
        "question": _plain(head.get("question", "")),
    }
    lines = [f"- {key}: {text}" for key, text in rows.items() if text]
    return ["", f'<a id="{relation.name}"></a>', "", f"## {_plain(relation.title)}", "", *lines]


def _quality(relation: Relation, quality: Mapping[str, Any] | None) -> str:
    if quality is None:
        return "every pair"
    if quality["sampled"] == len(relation.pairs):
        return f"every pair, {quality['wrong'] or 'none'} of them wrong"
    wrong = quality["wrong"] + quality["corrected"]
    since = f" ({quality['corrected']} put right since)" if quality["corrected"] else ""
    return (
        f"a random sample of {quality['sampled']}, {wrong or 'none'} of them wrong{since}; at most "
        f"{100 * quality['upper_95']:.1f} % of all are (upper end of the 95 % interval)"
    )


def _again(name: str) -> str:
    rows = [row for row in second_reading() if row["relation"] == name]
    wrong = [row["second"] for row in rows].count(BAD)
    return f"{len(rows)} of the pairs, {wrong or 'none'} of them wrong" if rows else ""


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return re.sub(r"([\\`*_\[\]<>|#{}~])", r"\\\1", text)
