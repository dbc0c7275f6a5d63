"""Facts and corrections that people wrote: read from text files, with the line in every complaint."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ARROW = " → "

Pairs = dict[str, list[str]]


class FactsError(Exception):
    """A file of facts or corrections that does not say what it should."""


def read_facts(path: Path) -> Pairs:
    """The pairs of ``source: target, target`` lines; a line without a colon is its own target.

    Empty lines and lines that begin with ``# `` are ignored.
    """
    pairs: Pairs = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("# "):
            continue
        source, _, rest = line.rpartition(": ") if ": " in line else (line, "", line)
        targets = [target.strip() for target in rest.split(", ")]
        if source in pairs:
            raise FactsError(f"{path}, line {number}: the source {source!r} is there twice")
        if not source.strip() or not all(targets) or len(set(targets)) < len(targets):
            raise FactsError(f"{path}, line {number}: not a source, a colon and distinct targets")
        pairs[source.strip()] = targets
    return pairs


@dataclass(frozen=True)
class Patch:
    """Corrections of one relation, each with its reason.

    Attributes:
        remove: ``"source → target"``, or ``"source"`` for all its targets.
        add: ``"source → target"``.
    """

    remove: tuple[tuple[str, str], ...]
    add: tuple[tuple[str, str], ...]

    @classmethod
    def read(cls, path: Path) -> Patch:
        """The corrections in a TOML file of two lists, or none if there is no file."""
        body = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        lists = []
        for key in ("remove", "add"):
            entries = body.pop(key, [])
            for entry in entries:
                if len(entry) != 2 or not all(isinstance(text, str) and text for text in entry):
                    raise FactsError(f'{path}: {entry!r} is not ["what", "reason"]')
            lists.append(tuple((what, reason) for what, reason in entries))
        if body:
            raise FactsError(f"{path}: {next(iter(body))!r} means nothing here; use remove and add")
        return cls(*lists)

    def applied(self, pairs: Pairs, where: str) -> Pairs:
        """`pairs` corrected; one that changes nothing is an error, so that none outlives its cause."""
        pairs = {source: list(targets) for source, targets in pairs.items()}
        for what, _ in self.remove:
            source, arrow, target = what.partition(ARROW)
            if source not in pairs or (arrow and target not in pairs[source]):
                raise FactsError(f"{where}: nothing to remove for {what!r}")
            if arrow:
                pairs[source].remove(target)
            if not arrow or not pairs[source]:
                del pairs[source]
        for what, _ in self.add:
            source, arrow, target = what.partition(ARROW)
            if not arrow or target in pairs.get(source, ()):
                raise FactsError(f"{where}: nothing to add for {what!r}")
            pairs.setdefault(source, []).append(target)
        return pairs


def inverse(pairs: Pairs) -> Pairs:
    """Every target with the sources it belongs to, in the order of first appearance."""
    turned: Pairs = {}
    for source, targets in pairs.items():
        for target in targets:
            turned.setdefault(target, []).append(source)
    return turned
