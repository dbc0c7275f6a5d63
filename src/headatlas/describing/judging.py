"""Salient mappings of heads, cut into halves, and the forced choice by which every description is judged.

A description is made from one half of a head's mappings. It is judged on the other half: each held-out
mapping stands among four of other heads, from the same range of layers and with a source of the same kind,
and whoever described must pick it by the description alone. Chance is one in five.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headatlas.errors import HeadatlasError

Side = Literal["promoted", "suppressed"]
SIDES: tuple[Side, Side] = ("promoted", "suppressed")
NEEDED = ("layer", "head", "order", "source", *SIDES)
"""Columns of a frame of salient operations that are read."""
OPTIONS = 5
CHANCE = 1 / OPTIONS
LEAST_HELD_OUT = 8
"""With fewer held-out mappings a head is not judged."""
ERRORS = 2.0
"""A description counts when its score lies more than so many standard errors above chance."""
LAYER_RANGE = 6
"""Distractors come from layers no farther than 1 / LAYER_RANGE of the model's depth, and at least two."""

_BYTES = {
    char: code
    for code, char in zip(
        [*range(33, 127), *range(161, 173), *range(174, 256), *range(33), *range(127, 161), 173],
        [chr(c) for c in [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)]],
        strict=True,
    )
}
"""Characters by which byte-level tokenizers write bytes (GPT-2's table): those not printable from U+0100."""


@dataclass(frozen=True)
class Token:
    """A token as text."""

    text: str  # as in running text, with the space before it
    word: str  # without spaces around it
    folded: str  # the word, case-folded
    # "space", "number", "symbol", "other script", "piece" (letters without a space before them),
    # "capitalised" or "lower".
    kind: str


def tokens_of(raw: Sequence[str]) -> dict[str, Token]:
    """Raw token strings of one vocabulary as tokens: byte-level, with ``▁``, with ``##``, or plain text."""
    distinct = list(dict.fromkeys(raw))
    byte_level = any("Ġ" in text for text in distinct) and not any(
        "▁" in text or text.startswith(" ") for text in distinct
    )
    texts = [_text(each, byte_level) for each in distinct]
    spaced = any(text[:1] == " " and text.strip() for text in texts)
    return {each: _token(text, spaced) for each, text in zip(distinct, texts, strict=True)}


def _text(raw: str, byte_level: bool) -> str:
    if byte_level and all(char in _BYTES for char in raw):
        return bytes(_BYTES[char] for char in raw).decode("utf-8", "replace")
    if len(raw) == 6 and raw.startswith("<0x") and raw.endswith(">"):
        return f"\\x{raw[3:5].lower()}"  # a byte on its own is no text
    return raw.replace("▁", " ")


def _token(text: str, spaced: bool) -> Token:
    joined = text.startswith("##") and len(text) > 2
    word = text.removeprefix("##").strip() if joined else text.strip()
    return Token(text, word, word.casefold(), _kind(word, joined or (spaced and text[:1] != " ")))


def _kind(word: str, joined: bool) -> str:
    letters = [char for char in word if char.isalpha()]
    if not word:
        return "space"
    if not letters:
        return "number" if any(char.isdigit() for char in word) else "symbol"
    if script(letters[0]) != "LATIN":
        return "other script"
    if joined:
        return "piece"
    return "capitalised" if word[0].isupper() else "lower"


@lru_cache(maxsize=65536)
def script(char: str) -> str:
    """Name of the script of a letter: the first word of its name in Unicode."""
    return unicodedata.name(char, "").split(" ")[0].split("-")[0]


@dataclass(frozen=True)
class Mappings:
    """The salient mappings of a model's heads, one a row."""

    layer: NDArray[np.int64]  # [n]
    head: NDArray[np.int64]  # [n]
    sources: tuple[Token, ...]  # [n] source tokens
    targets: dict[Side, tuple[tuple[Token, ...], ...]]  # side → [n] target tokens, strongest first

    @classmethod
    def of(cls, frame: pd.DataFrame) -> Mappings:
        """Mappings of a frame of salient operations.

        Args:
            frame: One row per layer, head and order: the columns of :data:`NEEDED`; ``promoted`` and
                ``suppressed`` are lists of raw token strings.
        """
        missing = [name for name in NEEDED if name not in frame.columns]
        if missing or frame.empty:
            what = f"it has no column {missing[0]!r}" if missing else "it has no rows"
            raise HeadatlasError(f"`salience`: {what}; give what `headatlas.salience` returns.")
        rows = frame.sort_values(["layer", "head", "order"], kind="stable")
        sources = [str(each) for each in rows["source"]]
        lists = {side: [_strings(each, side) for each in rows[side]] for side in SIDES}
        known = tokens_of([*sources, *(text for side in SIDES for each in lists[side] for text in each)])
        return cls(
            rows["layer"].to_numpy(dtype=np.int64),
            rows["head"].to_numpy(dtype=np.int64),
            tuple(known[each] for each in sources),
            {side: tuple(tuple(known[text] for text in each) for each in lists[side]) for side in SIDES},
        )

    def __len__(self) -> int:
        return len(self.sources)

    @cached_property
    def heads(self) -> list[tuple[int, int]]:
        """(layer, head) of the heads that have mappings."""
        return list(self.rows)

    @cached_property
    def rows(self) -> dict[tuple[int, int], NDArray[np.int64]]:
        """(layer, head) → the rows of its mappings."""
        found: dict[tuple[int, int], list[int]] = {}
        for at, key in enumerate(zip(self.layer.tolist(), self.head.tolist(), strict=True)):
            found.setdefault(key, []).append(at)
        return {key: np.array(each, dtype=np.int64) for key, each in found.items()}

    @cached_property
    def kinds(self) -> NDArray[np.int64]:
        """[n] the kind of each mapping's source, as a number."""
        names = sorted({each.kind for each in self.sources})
        return np.array([names.index(each.kind) for each in self.sources], dtype=np.int64)

    @cached_property
    def sha256(self) -> str:
        """Hash of all mappings."""
        digest = hashlib.sha256()
        for at in range(len(self)):
            targets = [[token.text for token in self.targets[side][at]] for side in SIDES]
            digest.update(repr((self.layer[at], self.head[at], self.sources[at].text, targets)).encode())
        return digest.hexdigest()

    def texts(self, at: int) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
        """Source, promoted and suppressed targets of a mapping, as texts."""
        promoted, suppressed = (tuple(each.text for each in self.targets[side][at]) for side in SIDES)
        return self.sources[at].text, promoted, suppressed


def _strings(value: Any, side: str) -> list[str]:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise HeadatlasError(f"`salience`: {side!r} holds {value!r:.60}, not a list of tokens.")
    return [str(each) for each in value]


@dataclass(frozen=True)
class Halves:
    """A head's mappings, one half to be described and one held out, each among distractors."""

    described: NDArray[np.int64]  # rows of :class:`Mappings`
    held_out: NDArray[np.int64]
    # [rows, 5] rows to choose from, the right one first.
    described_options: NDArray[np.int64]
    held_out_options: NDArray[np.int64]

    @property
    def judged(self) -> bool:
        """Whether there is enough to judge a description by."""
        return len(self.held_out_options) >= LEAST_HELD_OUT

    @property
    def questions(self) -> int:
        """To a language model: one for the description, one for each held-out mapping."""
        return 1 + len(self.held_out_options) if self.judged else 0


def halves(mappings: Mappings, head: tuple[int, int], seed: int = 0) -> Halves:
    """Split a head's mappings at random and draw their distractors; the same seed gives the same.

    Distractors are mappings of other heads: of near layers with a source of the same kind if there are
    enough, else of any layer with a source of that kind, else of near layers, else any.
    """
    rng = np.random.default_rng([seed, *head])
    rows = rng.permutation(mappings.rows[head])
    half = len(rows) // 2
    others = np.flatnonzero((mappings.layer != head[0]) | (mappings.head != head[1]))
    depth = int(mappings.layer.max()) + 1
    near = np.abs(mappings.layer[others] - head[0]) <= max(2, depth // LAYER_RANGE)
    drawn = np.empty((len(rows), OPTIONS), dtype=np.int64)
    for at, row in enumerate(rows):
        alike = mappings.kinds[others] == mappings.kinds[row]
        pools = (near & alike, alike, near, np.ones(len(others), dtype=bool))
        pool = next((each for each in pools if each.sum() >= OPTIONS - 1), None)
        if pool is None:
            nothing = np.empty((0, OPTIONS), dtype=np.int64)
            return Halves(rows[:half], rows[half:], nothing, nothing)
        drawn[at] = [row, *rng.choice(others[pool], OPTIONS - 1, replace=False)]
    return Halves(rows[:half], rows[half:], drawn[:half], drawn[half:])


def right_choices(strength: NDArray[np.integer], options: NDArray[np.int64]) -> NDArray[np.float64]:
    """[…] share of forced choices that strengths [n, …] get right: how strongly each mapping is what is said.

    ``options`` [trials, 5] are rows to choose from, the right one first. The strongest is picked, ties by
    lot, so that a tie among five counts one fifth.
    """
    offered = strength[options]
    best = offered.max(axis=1)
    right = offered[:, 0] == best
    tied = (offered == best[:, None]).sum(axis=1)
    return np.asarray((right / tied).mean(axis=0), dtype=np.float64)


def standard_error(trials: int) -> float:
    """Standard error of a share of so many choices made by chance; with ties it is smaller."""
    return float(np.sqrt(CHANCE * (1 - CHANCE) / trials)) if trials else float("nan")


def above_chance(score: float, trials: int) -> bool:
    """Whether a score of so many choices lies above chance by more than :data:`ERRORS` standard errors."""
    return trials > 0 and score > CHANCE + ERRORS * standard_error(trials)


@dataclass(frozen=True)
class Description:
    """Words for a head, by a rule or a model, and how they fare."""

    label: str
    support: str  # what speaks for it
    score: float  # share of held-out choices that it gets right
    trials: int  # their number

    @property
    def proved(self) -> bool:
        """Whether it tells the head's mappings from those of other heads."""
        return above_chance(self.score, self.trials)
