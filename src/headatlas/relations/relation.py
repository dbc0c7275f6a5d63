"""A relation: a name, a category, and pairs of a source word with its accepted targets; and its checks."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from headatlas.errors import HeadatlasError

CORE_CATEGORIES = ("Algorithmic", "Knowledge", "Linguistic", "Translation")
USER_CATEGORY = "User"
PROVENANCE = ("source", "licence", "step", "note", "known_problems")
MAX_WORD_CHARACTERS = 200

_NOT_TEXT = {"Cc", "Cs", "Zl", "Zp"}
# Zero-width characters and marks of writing direction: nobody sees them, and every tokenizer does. The
# joiners U+200C and U+200D are not among them: Persian words and emoji need them.
_INVISIBLE = frozenset(
    "\u00ad\u061c\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
)
_NAME = re.compile(r"[a-z0-9_]+")
_FROM_PAIRS = "Relation.from_pairs(name, [(source, target), …]) makes a relation from plain pairs"


@dataclass(frozen=True)
class Pair:
    """A source word and the words any of which counts as its target."""

    source: str
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Relation:
    """One operation seen from outside: pairs of words. Checked when it is made.

    Attributes:
        name: Identifier, ``[a-z0-9_]+``.
        title: For people, e.g. ``"country → capital"``.
        category: One of the four core categories or the user's own.
        pairs: The pairs; sources are distinct.
        copying: Whether the target is the source itself (scored with the profile's copying k).
        provenance: Free texts: ``source``, ``licence``, ``step`` (how it was made), ``note``,
            ``known_problems``.
        file: Where it was read from, for messages.
        subcategory: A finer panel within the category; empty where there is none.

    Raises:
        HeadatlasError: An argument has the wrong type, a word cannot be used, a source is there twice.
    """

    name: str
    title: str
    category: str = USER_CATEGORY
    pairs: tuple[Pair, ...] = ()
    copying: bool = False
    provenance: dict[str, str] = field(default_factory=dict, compare=False)
    file: str = field(default="", compare=False)
    subcategory: str = ""

    def __post_init__(self) -> None:
        if problem := next(_problems(self), None):
            raise HeadatlasError(f"{self.file or f'relation {self.name or self.title!r}'}: {problem}.")

    @classmethod
    def from_pairs(
        cls,
        name: str,
        pairs: Iterable[tuple[str, str | Sequence[str]]] | Mapping[str, str | Sequence[str]],
        category: str = USER_CATEGORY,
    ) -> Relation:
        """A relation from plain pairs; a source given several times has all its targets.

        It counts as copying if every source is its own only target.

        Args:
            name: Its title; made plain (``"My colours"`` → ``my_colours``) it is its name.
            pairs: ``(source, target)`` or ``(source, [targets])``; or a dict of sources.
            category: The panel it belongs to.

        Raises:
            HeadatlasError: Not a name, not pairs, or a word that cannot be used; names the pair.

        >>> Relation.from_pairs("colour", [("sky", "blue"), ("sea", ["blue", "green"])]).pairs[1]
        Pair(source='sea', targets=('blue', 'green'))
        """
        if not isinstance(name, str):
            raise HeadatlasError(f"a relation's name is text, not {kind(name)}; {_FROM_PAIRS}.")
        where = f"relation {name!r}"
        given: Any = pairs.items() if isinstance(pairs, Mapping) else pairs
        if isinstance(given, str | bytes) or not isinstance(given, Iterable):
            raise HeadatlasError(f"{where}: the pairs are {kind(given)}; {_FROM_PAIRS}.")
        merged = merge([as_pair(item, f"{where}, pair {at}") for at, item in enumerate(given, 1)])
        return cls(slug(name), name.replace("_", " "), category, merged, is_copying(merged))

    @cached_property
    def sha256(self) -> str:
        """Hash of everything that can change a score: name, category, copying, pairs in order."""
        body = [self.name, self.category, self.copying, [[p.source, list(p.targets)] for p in self.pairs]]
        return hashlib.sha256(json.dumps(body, ensure_ascii=False).encode()).hexdigest()

    @property
    def n_targets(self) -> int:
        """How many different targets there are."""
        return len({target for pair in self.pairs for target in pair.targets})

    def to_json(self) -> str:
        """The relation in headatlas' own JSON, one pair a line, as a file holds it."""
        head: dict[str, Any] = {"name": self.name, "title": self.title, "category": self.category}
        if self.subcategory:
            head["subcategory"] = self.subcategory
        if self.copying or is_copying(self.pairs):
            head["copying"] = self.copying
        head |= {key: self.provenance[key] for key in PROVENANCE if key in self.provenance}
        lines = [f"  {_json(key)}: {_json(value)},\n" for key, value in head.items()]
        pairs = ",\n".join(f"    {_json([pair.source, list(pair.targets)])}" for pair in self.pairs)
        return f'{{\n{"".join(lines)}  "pairs": [\n{pairs}\n  ]\n}}\n'


@dataclass(frozen=True)
class TokenisedPair:
    """A usable pair: the source's token ids and the single-token ids of its usable targets."""

    index: int  # position in ``Relation.pairs``
    source_ids: tuple[int, ...]  # of the source in its natural form (with a leading space where text has one)
    target_ids: tuple[int, ...]  # distinct, in the order of ``Relation.pairs[index].targets``
    target_words: tuple[str, ...]  # the words they stand for


@dataclass(frozen=True)
class TokenisedRelation:
    """A relation as one tokenizer sees it."""

    relation: Relation  # the relation that was tokenised
    pairs: tuple[TokenisedPair, ...]  # the usable ones
    dropped: dict[str, tuple[str, ...]]
    """Reason → sources that could not be used, e.g. ``"target is several tokens"``."""
    left_out: str | None  # why the whole relation is left out (too few sources or targets), or None
    sampled: int | None = None  # how many usable sources were drawn out of more, or None if all are there

    @property
    def sha256(self) -> str:
        """The relation's hash; that of a sample is another one."""
        if self.sampled is None:
            return self.relation.sha256
        return hashlib.sha256(f"{self.relation.sha256} {self.sampled}".encode()).hexdigest()


def word_problem(word: str) -> str | None:
    """Why `word` cannot be a source or a target (the end of a sentence), or None if it can."""
    if not word:
        return "is empty"
    if len(word) > MAX_WORD_CHARACTERS:
        return f"is longer than {MAX_WORD_CHARACTERS} characters"
    for character in "" if word.isprintable() else word:
        if unicodedata.category(character) in _NOT_TEXT:
            return f"holds the control or invalid character U+{ord(character):04X}"
        if character in _INVISIBLE:
            name = unicodedata.name(character).lower()
            return f"holds the invisible character U+{ord(character):04X} ({name}); delete it"
    if word != word.strip():
        return "begins or ends with a space"
    return None


def checked_word(word: Any) -> str:
    """A word as pairs have it, without the spaces around it."""
    return _word(word, "word", f"{word!r}" if isinstance(word, str) else "words")


def as_pair(item: Any, where: str) -> Pair:
    """A pair from ``(source, target)`` or ``(source, [targets])``; numbers are taken as they are written.

    The refusal of anything else begins with `where`.
    """
    if isinstance(item, Pair):
        item = (item.source, item.targets)
    if not isinstance(item, list | tuple) or len(item) != 2:
        raise HeadatlasError(
            f"{where}: not a pair of a source and its target (or list of targets) but {kind(item)}."
        )
    source, targets = item
    targets = list(targets) if isinstance(targets, list | tuple) else [targets]
    if not targets:
        raise HeadatlasError(f"{where}: the source has no target.")
    words = [_word(target, "target", where) for target in targets]
    return Pair(_word(source, "source", where), tuple(dict.fromkeys(words)))


def _word(value: Any, role: str, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # years and numbers, written without quotes
    if not isinstance(value, str):
        raise HeadatlasError(f"{where}: the {role} is not a word but {kind(value)}.")
    word = value.strip(" ")
    problem = word_problem(word)
    if problem:
        raise HeadatlasError(f"{where}: the {role} {problem}.")
    return word


def kind(value: Any) -> str:
    """A value's type in plain words, for messages; short text is quoted."""
    if value is None or isinstance(value, bool):
        return "nothing" if value is None else "true or false"
    if isinstance(value, str):
        return repr(value) if len(value) <= 40 else "a long text"
    names = {int: "a number", float: "a number", list: "a list", tuple: "a tuple", dict: "an object"}
    name = names.get(type(value), f"of the type {type(value).__name__}")
    return f"{name} of {len(value)}" if isinstance(value, list | tuple) else name


def slug(text: str) -> str:
    """`text` as a relation's name: lower case, accents removed, everything else turned into ``_``."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "_", plain).strip("_")


def merge(pairs: list[Pair]) -> tuple[Pair, ...]:
    """One pair per source, in the order of first appearance, with every target given for it once."""
    targets: dict[str, dict[str, None]] = {}
    for pair in pairs:
        targets.setdefault(pair.source, {}).update(dict.fromkeys(pair.targets))
    return tuple(Pair(source, tuple(words)) for source, words in targets.items())


def is_copying(pairs: tuple[Pair, ...]) -> bool:
    """Whether every source is its own only target: such a relation is scored with the copying k."""
    return bool(pairs) and all(pair.targets == (pair.source,) for pair in pairs)


def _problems(relation: Any) -> Iterator[str]:
    """Why a relation cannot be used: types, texts, the name, the pairs. Only the first is to be asked for."""
    for role in ("name", "title", "category", "subcategory"):
        text = getattr(relation, role)
        if not isinstance(text, str):
            yield f"the {role} is {kind(text)}, not text; {_FROM_PAIRS}"
    if not relation.name:
        yield (
            f"a name is made of the letters a–z and digits, and {relation.title!r} has none; give it, or "
            "its file, a name of these (a JSON file can hold a title in any script as well)"
        )
    if not _NAME.fullmatch(relation.name):
        yield f"the name {relation.name!r} is not made of a–z, 0–9 and _; rename it or its file"
    for role in ("title", "category", *(["subcategory"] if relation.subcategory else [])):
        if problem := word_problem(getattr(relation, role)):
            yield f"the {role} {problem}"
    if not isinstance(relation.copying, bool):
        yield f"copying is {kind(relation.copying)}; it is True or False"
    pairs = relation.pairs
    if not isinstance(pairs, tuple) or not all(isinstance(pair, Pair) for pair in pairs):
        yield f"the pairs are {kind(pairs)}, not a tuple of Pair; {_FROM_PAIRS}"
    if not pairs:
        yield "there are no pairs"
    seen: set[str] = set()
    for pair in pairs:
        yield from _pair_problems(pair)
        if pair.source in seen:
            yield f"the source {pair.source!r} is there twice"
        seen.add(pair.source)


def _pair_problems(pair: Any) -> Iterator[str]:
    source, targets = pair.source, pair.targets
    if not isinstance(targets, tuple):
        yield f"the targets of {source!r} are {kind(targets)}, not a tuple of words"
    if not all(isinstance(word, str) for word in (source, *targets)):
        yield f"{pair!r} holds something that is not text"
    if problem := word_problem(source):
        yield f"the source {source!r} {problem}"
    if not targets:
        yield f"the source {source!r} has no target"
    for target in targets:
        if problem := word_problem(target):
            yield f"the target {target!r} of {source!r} {problem}"
    if len(set(targets)) < len(targets):
        yield f"the source {source!r} has the same target twice"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
