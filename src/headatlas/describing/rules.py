"""Rules that describe a head without a language model: each is a short label and what it says of a mapping.

Three kinds stand in one list: what source and target have to do with each other by spelling, pairs that a
relation of the library holds, and fields: words of one side of a relation among the sources or the targets.
A rule is an object; to add one is to add a line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headatlas.describing.judging import (
    SIDES,
    Description,
    Halves,
    Mappings,
    Side,
    Token,
    above_chance,
    right_choices,
    script,
    standard_error,
)
from headatlas.relations.relation import Relation

RULES_VERSION = 1
"""Goes up when a rule or the choice among rules changes."""
LEAST_SUPPORT = 4
"""A label must hold of so many described mappings."""
FIELD_P = 0.01
"""Largest probability, times the number of fields, of a field's words among a head's tokens by chance."""
LEAST_WORDS = 12
"""A field has so many words."""

On = Literal["mapping", "sources", "targets"]
Holds = Callable[[Token, Token], bool]


@dataclass(frozen=True)
class Rule:
    """A short label, and which mappings it is true of."""

    name: str
    label: str  # what a head does of which it is true
    side: Side = "promoted"  # which targets it speaks of
    # Whether it speaks of source and target together, of the sources or of the targets alone. In the latter
    # cases mappings are no independent witnesses (a head may promote one token whatever the source), and
    # different words are counted.
    on: On = "mapping"
    holds: Holds | None = None  # source and target → whether it is true; None where the words decide
    # Case-folded (source, target), and words, of which it is true.
    pairs: frozenset[tuple[str, str]] = field(default=frozenset(), repr=False)
    words: frozenset[str] = field(default=frozenset(), repr=False)


# By spelling --------------------------------------------------------------------------------------


def _shared(source: Token, target: Token) -> int:
    """Number of letters with which both words begin."""
    alike = (a == b for a, b in zip(source.folded, target.folded, strict=False))
    return sum(1 for _ in takewhile(bool, alike))


def _words(source: Token, target: Token) -> bool:
    """Whether both are words, and not the same."""
    return source.folded.isalpha() and target.folded.isalpha() and source.folded != target.folded


def _same(source: Token, target: Token) -> bool:
    return source.word != "" and source.word == target.word


def _other_case(source: Token, target: Token) -> bool:
    return source.folded == target.folded and source.word != target.word


def _stem(source: Token, target: Token) -> bool:
    shorter = min(len(source.word), len(target.word))
    return _words(source, target) and shorter >= 4 and _shared(source, target) >= max(4, shorter - 2)


def _ending(source: Token, target: Token) -> bool:
    enough = min(len(source.word), len(target.word)) >= 4
    return _words(source, target) and enough and source.folded[-3:] == target.folded[-3:]


def _letter(at: int) -> Holds:
    return lambda source, target: (
        len(source.word) > 1 and source.word.isalpha() and target.folded == source.folded[at]
    )


SPELLING: tuple[tuple[str, str, str, Holds], ...] = (
    ("name_copying", "copies capitalised words", "suppresses the capitalised word itself",
     lambda s, t: s.kind == "capitalised" and len(s.word) > 2 and _same(s, t)),
    ("copying", "copies", "suppresses the token itself", _same),
    ("capitals", "writes the word in capitals", "suppresses the word in capitals",
     lambda s, t: _other_case(s, t) and len(t.word) > 1 and t.word.isupper()),
    ("case", "changes the case", "suppresses the word in another case", _other_case),
    ("longer", "writes words that begin with it", "suppresses words that begin with it",
     lambda s, t: _words(s, t) and len(s.word) > 1 and t.folded.startswith(s.folded)),
    ("shorter", "writes the word's beginning", "suppresses the word's beginning",
     lambda s, t: _words(s, t) and len(t.word) > 1 and s.folded.startswith(t.folded)),
    ("stem", "writes words of the same stem", "suppresses words of the same stem", _stem),
    ("first_letter", "writes the first letter", "suppresses the first letter", _letter(0)),
    ("last_letter", "writes the last letter", "suppresses the last letter", _letter(-1)),
    ("beginning", "writes words with the same three first letters",
     "suppresses words with the same three first letters", lambda s, t: _words(s, t) and _shared(s, t) >= 3),
    ("ending", "writes words with the same ending", "suppresses words with the same ending", _ending),
    ("same_letter", "writes words with the same first letter",
     "suppresses words with the same first letter", lambda s, t: _words(s, t) and _shared(s, t) >= 1),
    ("numbers", "writes other numbers for numbers", "suppresses other numbers for numbers",
     lambda s, t: s.kind == t.kind == "number" and s.word != t.word),
)  # fmt: skip
"""Name, label where such a target is promoted, label where it is suppressed, and when it is such a target."""


# By words -----------------------------------------------------------------------------------------

_NO_FIELDS = (
    *("word", "item", "thing", "object", "english", "the ", "its ", "what ", "who ", "domain", "person"),
    *("rhyme", "synonym", "antonym", "homophone", "first part", "last part", "compound", "stronger", "group"),
    *("member", "part", "whole", "state", "class", "place", "field", "american", "british", "character"),
    *("symbol", "a or an", "irregular", "neighbouring", "adjective or", "more general", "home", "action"),
)
"""Beginnings of those sides of titles that do not say what their words have in common."""
_FIELD_LABELS: tuple[tuple[On, Side, str], ...] = (
    ("sources", "promoted", "reads {}"),
    ("targets", "promoted", "writes {}"),
    ("targets", "suppressed", "suppresses {}"),
)


def relation_rules(relations: Iterable[Relation]) -> list[Rule]:
    """A rule for each relation of the library and each sign: the target is one that the relation accepts."""
    rules = []
    for relation in relations:
        pairs = frozenset(
            (pair.source.casefold(), target.casefold())
            for pair in relation.pairs
            for target in pair.targets
            if target.casefold() != pair.source.casefold()
        )
        if relation.copying or not pairs:
            continue  # copying has its rules above
        for side, label in zip(SIDES, (relation.title, f"suppresses {relation.title}"), strict=True):
            rules.append(Rule(f"relation {relation.name}:{side}", label, side, pairs=pairs))
    return rules


def fields(relations: Iterable[Relation]) -> dict[str, frozenset[str]]:
    """Field → its case-folded words: both sides of the relations by the names that their titles give them."""
    found: dict[str, set[str]] = {}
    for relation in relations:
        names = relation.title.split(" → ")
        if len(names) != 2 or (relation.category == "Algorithmic" and relation.subcategory != "Numbers"):
            continue
        for pair in relation.pairs:
            for name, words in zip(names, ((pair.source,), pair.targets), strict=True):
                if not name.casefold().startswith(_NO_FIELDS):
                    found.setdefault(name, set()).update(word.casefold() for word in words)
    return _large(found)


_KINDS = {
    "number": "numbers",
    "symbol": "symbols",
    "piece": "parts of words",
    "capitalised": "capitalised words",
}


def _formal_fields(mappings: Mappings) -> dict[str, frozenset[str]]:
    """Words of each script other than Latin, and of some kinds, among all tokens of the mappings."""
    found: dict[str, set[str]] = {}
    targets = (token for side in SIDES for each in mappings.targets[side] for token in each)
    for token in dict.fromkeys((*mappings.sources, *targets)):
        name = _KINDS.get(token.kind)
        if token.kind == "other script" and (letters := script(next(filter(str.isalpha, token.word)))):
            name = f"{letters if letters == 'CJK' else letters.capitalize()} letters"
        if name is not None:
            found.setdefault(name, set()).add(token.folded)
    return _large(found)


def _large(found: dict[str, set[str]]) -> dict[str, frozenset[str]]:
    return {name: frozenset(words) for name, words in found.items() if len(words) >= LEAST_WORDS}


def all_rules(relations: Sequence[Relation], mappings: Mappings) -> list[Rule]:
    """Every rule, the most particular first: of two that fit about equally well the first is taken."""
    by_spelling = [
        Rule(f"{name}:{side}", label, side, holds=holds)
        for name, *labels, holds in SPELLING
        for side, label in zip(SIDES, labels, strict=True)
    ]
    named = {f"words of the field “{name}”": words for name, words in fields(relations).items()}
    by_field = [
        Rule(f"{on} {name}:{side}", label.format(name), side, on, words=words)
        for name, words in (named | _formal_fields(mappings)).items()
        for on, side, label in _FIELD_LABELS
    ]
    return [*relation_rules(relations), *by_spelling, *by_field]


# Which are true of what ---------------------------------------------------------------------------


def strengths(rules: Sequence[Rule], mappings: Mappings) -> NDArray[np.int8]:
    """[mappings, rules] of how many targets of a mapping a rule is true; 1 or 0 for a rule on sources."""
    table = np.zeros((len(mappings), len(rules)), dtype=np.int8)
    by_pair = {side: _index(rules, side, "pairs") for side in SIDES}
    by_word = {side: _index(rules, side, "words") for side in SIDES}
    on_sources = np.array([rule.on == "sources" for rule in rules])
    spelled = [(at, rule) for at, rule in enumerate(rules) if rule.holds is not None]
    for row, source in enumerate(mappings.sources):
        for side in SIDES:
            for target in mappings.targets[side][row]:
                for at in by_pair[side].get((source.folded, target.folded), ()):
                    table[row, at] += 1
                for at in by_word[side].get(target.folded, ()):
                    table[row, at] += not on_sources[at]
                for at, rule in spelled:
                    if rule.side == side and rule.holds is not None and rule.holds(source, target):
                        table[row, at] += 1
        for at in by_word["promoted"].get(source.folded, ()):
            table[row, at] += on_sources[at]
    return table


def _index(rules: Sequence[Rule], side: Side, what: Literal["pairs", "words"]) -> dict[object, list[int]]:
    """Pair or word → the rules of a side that hold it."""
    found: dict[object, list[int]] = {}
    for at, rule in enumerate(rules):
        if rule.side == side:
            for each in getattr(rule, what):
                found.setdefault(each, []).append(at)
    return found


class Describer:
    """Describes heads by the rule that fits one half of their mappings best, and scores it on the other."""

    def __init__(self, mappings: Mappings, relations: Sequence[Relation]) -> None:
        self.mappings = mappings
        self.rules = all_rules(relations, mappings)
        self.strengths = strengths(self.rules, mappings)
        every = range(len(mappings))
        self._known = {(on, side): self._words(on, side, every) for on, side, _ in _FIELD_LABELS}
        """Different words of the sources and the targets of all mappings."""
        self._fields = [at for at, rule in enumerate(self.rules) if rule.on != "mapping"]

    def describe(self, parts: Halves) -> Description | None:
        """The best rule for a head, or None if none fits its described half."""
        if not parts.judged:
            return None
        rows = parts.described
        scores = right_choices(self.strengths, parts.described_options)
        holds = (self.strengths[rows] > 0).sum(axis=0)
        fits = np.array([above_chance(score, len(rows)) for score in scores])
        fits = self._enriched(rows, fits & (holds >= LEAST_SUPPORT))
        if not fits.any():
            return None
        at = self._best(np.where(fits, scores, -1.0), len(rows))
        every = np.concatenate([rows, parts.held_out])
        score = right_choices(self.strengths[:, at], parts.held_out_options)
        held = int((self.strengths[every, at] > 0).sum())
        support = f"{held} of {len(every)} mappings"
        return Description(self.rules[at].label, support, float(score), len(parts.held_out_options))

    def _best(self, scores: NDArray[np.float64], trials: int) -> int:
        """The rule of the best score; but of those within a standard error of it, the first on mappings.

        A field of targets holds wherever a relation into it does, and by accident as well.
        """
        near = np.flatnonzero(scores >= scores.max() - standard_error(trials))
        particular = [int(at) for at in near if self.rules[at].on == "mapping"]
        return particular[0] if particular else int(np.argmax(scores))

    def _enriched(self, rows: NDArray[np.int64], fits: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """[rules] those that fit; but a field only if so many of its words are no chance (hypergeometric)
        among the different words of these rows.
        """
        from scipy.stats import hypergeom

        words = {key: self._words(*key, rows) for key in self._known}
        for at in self._fields:
            if fits[at]:
                rule = self.rules[at]
                mine, known = words[rule.on, rule.side], self._known[rule.on, rule.side]
                hits = len(rule.words & mine)
                p = float(hypergeom.sf(hits - 1, len(known), len(rule.words & known), len(mine)))
                fits[at] = hits >= LEAST_SUPPORT and p * len(self._fields) <= FIELD_P
        return fits

    def _words(self, on: On, side: Side, rows: Iterable[int]) -> set[str]:
        if on == "sources":
            return {self.mappings.sources[at].folded for at in rows}
        return {token.folded for at in rows for token in self.mappings.targets[side][at]}


# By attention -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BehaviourRule:
    """A label made of a measured behaviour."""

    label: str  # what the head does
    behaviours: tuple[str, ...]  # any of these is called (``atlas.behaviours()``)
    copies: bool = False  # whether the head must implement a copying relation as well
    least: float = 0.0  # smallest share of attention
    # Taken only where no other rule is true: most heads rest on the first position.
    last: bool = False


_INDUCTION = ("induction", "induction_repeated")
ATTENTION_RULES = (
    BehaviourRule("induction: finds what followed the token before, and copies it", _INDUCTION, copies=True),
    BehaviourRule("induction: looks at what followed the token before", _INDUCTION),
    BehaviourRule("duplicate token: looks at earlier copies of the token", ("duplicate_token",)),
    BehaviourRule("previous token: looks one token back", ("previous_token",)),
    BehaviourRule("looks at the token itself", ("self",)),
    BehaviourRule("looks at the start of the line", ("line_start",)),
    BehaviourRule("looks at the start of the sentence", ("sentence_start",)),
    BehaviourRule("looks at punctuation", ("punctuation",)),
    BehaviourRule("looks at digits", ("digits",)),
    BehaviourRule("looks at capitalised words", ("names",)),
    BehaviourRule("looks at line breaks", ("line_breaks",)),
    BehaviourRule("sink: rests on the first position", ("first_position",), least=0.5, last=True),
)
"""Of those that are true of a head, the one whose attention exceeds the expected most; then the first."""
