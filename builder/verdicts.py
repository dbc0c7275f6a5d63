"""Judging: a fixed random sample of each relation, the verdicts kept beside it, and what they prove."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from builder.facts import Pairs

SAMPLE = 100
LIMIT = 0.08
GOOD, BAD = "ok", "wrong"
COLUMNS = ("source", "targets", "verdict", "reason")


@dataclass(frozen=True)
class Judgement:
    """What the verdicts on a sample say.

    Attributes:
        sampled: Pairs in the sample.
        judged: Of those, pairs with a verdict.
        wrong: Of those, wrong ones.
        corrected: Wrong ones that were put right since; the bound counts them as if they were still there.
        population: Pairs of the whole relation.
    """

    sampled: int
    judged: int
    wrong: int
    population: int
    corrected: int = 0

    @property
    def complete(self) -> bool:
        """Whether every pair of the sample has a verdict."""
        return self.judged == self.sampled > 0

    @property
    def upper(self) -> float:
        """Upper end of the 95 % Clopper–Pearson interval of the error rate.

        Where the sample is the whole relation nothing is left to chance: the bound is the rate itself.
        """
        if self.sampled == self.population:
            return self.wrong / self.sampled
        return clopper_pearson_upper(self.wrong + self.corrected, self.sampled)

    @property
    def shipped(self) -> bool:
        """Whether the relation may be shipped."""
        return self.complete and self.upper < LIMIT


def clopper_pearson_upper(wrong: int, n: int, level: float = 0.95) -> float:
    """The upper end of the two-sided exact interval for `wrong` of `n`, by bisection."""
    if wrong == n:
        return 1.0
    tail = (1 - level) / 2
    low, high = wrong / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _at_most(wrong, n, middle) > tail:
            low = middle
        else:
            high = middle
    return high


def _at_most(wrong: int, n: int, rate: float) -> float:
    """The probability of at most `wrong` errors among n."""
    term = (1 - rate) ** n
    total = term
    for k in range(1, wrong + 1):
        term *= (n - k + 1) / k * rate / (1 - rate)
        total += term
    return total


def sample(name: str, pairs: Pairs, draw: int = 1) -> list[str]:
    """The sources to judge: those with the smallest hashes, so that a correction elsewhere changes nothing.

    A correction that the sample itself led to makes the sample flatter the rest; raise `draw` then.
    """
    ranked = sorted(pairs, key=lambda source: hashlib.sha256(f"{name}\t{draw}\t{source}".encode()).digest())
    chosen = set(ranked[:SAMPLE])
    return [source for source in pairs if source in chosen]


def read(path: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """Verdict and reason by source and targets (as they stand in the file); empty if there is no file."""
    if not path.is_file():
        return {}
    rows = csv.DictReader(
        io.StringIO(path.read_text(encoding="utf-8")), delimiter="\t", quoting=csv.QUOTE_NONE
    )
    found = {(row["source"], row["targets"]): (row["verdict"], row["reason"]) for row in rows}
    for key, (verdict, _) in found.items():
        if verdict not in (GOOD, BAD, ""):
            raise ValueError(f"{path}: the verdict {verdict!r} of {key[0]!r} is neither {GOOD} nor {BAD}")
    return found


def write_sample(name: str, pairs: Pairs, path: Path, draw: int = 1) -> Judgement:
    """Write the sample of a relation to `path`, keeping verdicts on pairs that have not changed."""
    known = read(path)
    rows = []
    for source in sample(name, pairs, draw):
        targets = ", ".join(pairs[source])
        rows.append((source, targets, *known.get((source, targets), ("", ""))))
    lines = ["\t".join(COLUMNS)] + ["\t".join(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return _judgement([row[2] for row in rows], pairs)


def judge(name: str, pairs: Pairs, path: Path, draw: int = 1, corrected: int = 0) -> Judgement:
    """What the verdicts at `path` say about `pairs`; a pair that changed since has none."""
    known = read(path)
    keys = [(source, ", ".join(pairs[source])) for source in sample(name, pairs, draw)]
    verdicts = [known[key][0] if key in known else "" for key in keys]
    return _judgement(verdicts, pairs, corrected)


@dataclass(frozen=True)
class Agreement:
    """What two readings of the same pairs say.

    Attributes:
        both_good, only_first, only_second, both_bad: Pairs wrong for neither, for one only, for both.
    """

    both_good: int
    only_first: int
    only_second: int
    both_bad: int

    @property
    def n(self) -> int:
        """Pairs read twice."""
        return self.both_good + self.only_first + self.only_second + self.both_bad

    @property
    def raw(self) -> float:
        """Share of pairs with the same verdict."""
        return (self.both_good + self.both_bad) / self.n

    @property
    def kappa(self) -> float:
        """Cohen's kappa; where nearly all pairs are good it is near 0 even for careful readers."""
        first, second = self.only_first + self.both_bad, self.only_second + self.both_bad
        chance = (first * second + (self.n - first) * (self.n - second)) / self.n**2
        return (self.raw - chance) / (1 - chance)


SECOND = Path(__file__).parent / "second.tsv"
SECOND_COLUMNS = ("relation", "source", "targets", "first", "second", "reason")


def second_reading() -> list[dict[str, str]]:
    """The rows of ``second.tsv``: a pair as it was, the verdict of each reading, and why it is wrong."""
    rows = csv.DictReader(
        io.StringIO(SECOND.read_text(encoding="utf-8")), delimiter="\t", quoting=csv.QUOTE_NONE
    )
    if tuple(rows.fieldnames or ()) != SECOND_COLUMNS:
        raise ValueError(f"{SECOND}: the columns are not {', '.join(SECOND_COLUMNS)}")
    found = list(rows)
    for row in found:
        if {row["first"], row["second"]} - {GOOD, BAD}:
            raise ValueError(f"{SECOND}: a verdict on {row['source']!r} is neither {GOOD} nor {BAD}")
    return found


def agreement(rows: Sequence[Mapping[str, str]]) -> Agreement:
    """How far the two readings agree."""
    seen = Counter((row["first"], row["second"]) for row in rows)
    return Agreement(seen[GOOD, GOOD], seen[BAD, GOOD], seen[GOOD, BAD], seen[BAD, BAD])


def _judgement(verdicts: list[str], pairs: Pairs, corrected: int = 0) -> Judgement:
    return Judgement(
        len(verdicts), sum(v != "" for v in verdicts), verdicts.count(BAD), len(pairs), corrected
    )
