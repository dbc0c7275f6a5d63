"""Princeton WordNet 3.0, read from its ``dict`` folder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_FILES = {
    "n": ("index.noun", ["data.noun", "data.noun1", "data.noun2"]),
    "v": ("index.verb", ["data.verb"]),
    "a": ("index.adj", ["data.adj"]),
    "r": ("index.adv", ["data.adv"]),
}
_SENSE_KEY = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}

Key = tuple[str, int]  # part of speech, offset


@dataclass(frozen=True)
class Pointer:
    """An edge to another synset; `word` and `to_word` count from 1, 0 where all words are meant."""

    symbol: str
    to: Key
    word: int
    to_word: int


@dataclass(frozen=True)
class Synset:
    """A set of words that share a sense.

    Attributes:
        key: Part of speech (n, v, a, r) and offset.
        topic: Number of the lexicographer's file (18 is persons, 5 animals).
        words: As spelled, with ``_`` for spaces.
    """

    key: Key
    topic: int
    words: tuple[str, ...]
    pointers: tuple[Pointer, ...]
    gloss: str = field(repr=False)


class WordNet:
    """Synsets by word, with how often each sense was tagged in the text that came with WordNet."""

    def __init__(self, folder: Path) -> None:
        self.synsets: dict[Key, Synset] = {}
        self.senses: dict[tuple[str, str], list[Synset]] = {}
        self.counts: dict[tuple[str, Key], int] = defaultdict(int)
        for part, (index, data) in _FILES.items():
            for name in data:
                if (folder / name).is_file():
                    self._read_data(folder / name, part)
            self._read_index(folder / index, part)
        for line in _lines(folder / "index.sense"):
            sense, offset, _, count = line.split()
            lemma, _, rest = sense.partition("%")
            self.counts[lemma, (_SENSE_KEY[rest[0]], int(offset))] = int(count)

    def _read_data(self, path: Path, part: str) -> None:
        for line in _lines(path):
            head, _, gloss = line.partition("|")
            cells = head.split()
            n_words = int(cells[3], 16)
            words = tuple(cells[4 + 2 * at].partition("(")[0] for at in range(n_words))
            rest = cells[5 + 2 * n_words :]
            pointers = tuple(
                Pointer(rest[at], (rest[at + 2].replace("s", "a"), int(rest[at + 1])), *_ends(rest[at + 3]))
                for at in range(0, 4 * int(cells[4 + 2 * n_words]), 4)
            )
            key = (part, int(cells[0]))
            self.synsets[key] = Synset(key, int(cells[1]), words, pointers, gloss.strip())

    def _read_index(self, path: Path, part: str) -> None:
        for line in _lines(path):
            cells = line.split()
            offsets = cells[6 + int(cells[3]) :]
            self.senses[cells[0], part] = [self.synsets[part, int(offset)] for offset in offsets]

    def count(self, word: str, part: str) -> int:
        """How often `word` was tagged as this part of speech."""
        return sum(self.counts[word, synset.key] for synset in self.senses.get((word, part), ()))

    def dominant(self, word: str, part: str) -> Synset | None:
        """The first sense of `word`, if it has no other or most of its tagged uses."""
        senses = self.senses.get((word, part), [])
        if len(senses) == 1:
            return senses[0]
        total = self.count(word, part)
        if senses and total and self.counts[word, senses[0].key] >= 0.5 * total:
            return senses[0]
        return None

    def related(self, word: str, synset: Synset, *symbols: str) -> Iterator[tuple[Synset, str]]:
        """The words that pointers of these kinds join to `word` itself, with their synsets."""
        for pointer in synset.pointers:
            if pointer.symbol in symbols and pointer.word and synset.words[pointer.word - 1].lower() == word:
                other = self.synsets[pointer.to]
                yield other, other.words[pointer.to_word - 1]

    def above(self, synset: Synset) -> list[Synset]:
        """All hypernyms, the nearest first."""
        found: dict[Key, Synset] = {}
        todo = [synset]
        while todo:
            ups = [p.to for each in todo for p in each.pointers if p.symbol in ("@", "@i")]
            todo = [self.synsets[key] for key in dict.fromkeys(ups) if key not in found]
            found |= {each.key: each for each in todo}
        return list(found.values())


def _ends(cell: str) -> tuple[int, int]:
    return int(cell[:2], 16), int(cell[2:], 16)


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file that are not its licence."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):
            yield line
