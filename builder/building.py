"""From a catalogue entry to the pairs that are shipped: a step, corrections, and the rules all pairs obey."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from builder import verdicts
from builder.catalogue import Entry, catalogue
from builder.facts import FactsError, Pairs, Patch, inverse, read_facts
from builder.packages import packages
from builder.steps import STEPS
from builder.store import Store

HERE = Path(__file__).parent
LEAST = 30


def made(entry: Entry, store: Store, folder: Path = HERE) -> Pairs:
    """The pairs of a relation, corrected and cut to length.

    Args:
        entry: From the catalogue.
        store: Where the packages are.
        folder: Holds ``facts/`` and ``patches/``.
    """
    pairs = _raw(entry, store, folder)
    path = folder / "patches" / f"{entry.name}.toml"
    pairs = Patch.read(path).applied(pairs, str(path))
    return dict(list(_clean(entry, pairs, folder).items())[: entry.most])


def _raw(entry: Entry, store: Store, folder: Path) -> Pairs:
    word, _, other = entry.step.partition(" ")
    if word == "facts":
        return read_facts(folder / "facts" / f"{other or entry.name}.txt")
    if word == "inverse":
        origin = catalogue()[other]
        path = folder / "patches" / f"{other}.toml"
        return inverse(Patch.read(path).applied(_raw(origin, store, folder), str(path)))
    return STEPS[word](store, *other.split())


def _clean(entry: Entry, pairs: Pairs, folder: Path) -> Pairs:
    """`pairs` without offensive words, and (but for copying) without words that are their own targets."""
    avoided = set((folder / "patches" / "avoided.txt").read_text(encoding="utf-8").split())
    kept: Pairs = {}
    for source, targets in pairs.items():
        right = [
            target
            for target in dict.fromkeys(targets)
            if target.lower() not in avoided and (entry.copying or target != source)
        ]
        if right and source.lower() not in avoided:
            kept[source] = right
    if len(kept) < LEAST:
        raise FactsError(f"{entry.name}: {len(kept)} sources; a relation needs {LEAST}")
    return kept


def judgement(entry: Entry, pairs: Pairs, folder: Path = HERE) -> verdicts.Judgement | None:
    """What was judged about a relation; None for those of core, of which every pair was read."""
    if entry.core:
        return None
    return verdicts.judge(
        entry.name, pairs, folder / "verdicts" / f"{entry.name}.tsv", entry.draw, entry.corrected
    )


def document(entry: Entry, pairs: Pairs, quality: verdicts.Judgement | None) -> dict[str, Any]:
    """A relation's file: the head, then the pairs."""
    used = [packages()[key] for key in entry.sources]
    head: dict[str, Any] = {"name": entry.name, "title": entry.title, "category": entry.category}
    head["subcategory"] = entry.subcategory
    if entry.core:
        head["core"] = True
    if entry.copying:
        head["copying"] = True
    if entry.alternative_to:
        head["alternative_to"] = entry.alternative_to
    head["spacing"] = list(entry.spacing)
    head["source"] = "; ".join(package.title for package in used)
    head["licence"] = " AND ".join(dict.fromkeys(package.licence for package in used))
    head["step"] = entry.step
    if entry.note:
        head["note"] = entry.note
    if entry.known_problems:
        head["known_problems"] = entry.known_problems
    if entry.question:
        head["question"] = entry.question
    if entry.contexts:
        head["contexts"] = list(entry.contexts)
    if quality is not None:
        head["judged"] = quality.shipped
        if quality.complete:
            head["quality"] = {
                "sampled": quality.sampled,
                "wrong": quality.wrong,
                "corrected": quality.corrected,
                "upper_95": round(quality.upper, 4),
            }
    return head | {"pairs": [[source, targets] for source, targets in pairs.items()]}


def text(body: dict[str, Any]) -> str:
    """A relation's file with one pair a line."""
    head = "".join(f"  {_json(key)}: {_json(body[key])},\n" for key in body if key != "pairs")
    pairs = ",\n".join(f"    {_json(pair)}" for pair in body["pairs"])
    return f'{{\n{head}  "pairs": [\n{pairs}\n  ]\n}}\n'


def notice(used: set[str]) -> str:
    """The part of NOTICE that speaks of data: what each package asks for."""
    parts = [packages()[key] for key in packages() if key in used and packages()[key].notice]
    return "\n\n".join(package.notice.strip() for package in parts) + "\n"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
