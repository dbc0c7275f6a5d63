"""Common English words: which they are, in which order, and their inflected forms."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from builder.wordnet import WordNet

LEVELS = (10, 20, 35, 40, 50)
_UNLISTED = 99

# Grammar's words have entries in dictionaries too, as names of letters, metals and states.
_FUNCTION_WORDS = frozenset(
    [
        "a",
        "an",
        "the",
        "i",
        "me",
        "my",
        "mine",
        "we",
        "us",
        "our",
        "ours",
        "you",
        "your",
        "yours",
        "he",
        "him",
        "his",
        "she",
        "her",
        "hers",
        "it",
        "its",
        "they",
        "them",
        "their",
        "theirs",
        "this",
        "that",
        "these",
        "those",
        "who",
        "whom",
        "whose",
        "which",
        "what",
        "and",
        "or",
        "but",
        "nor",
        "so",
        "if",
        "as",
        "at",
        "by",
        "for",
        "from",
        "in",
        "into",
        "of",
        "off",
        "on",
        "onto",
        "out",
        "over",
        "to",
        "up",
        "with",
        "about",
        "above",
        "after",
        "against",
        "along",
        "among",
        "around",
        "before",
        "behind",
        "below",
        "beneath",
        "beside",
        "between",
        "beyond",
        "down",
        "during",
        "except",
        "inside",
        "near",
        "outside",
        "per",
        "since",
        "than",
        "then",
        "there",
        "here",
        "through",
        "under",
        "until",
        "upon",
        "when",
        "where",
        "while",
        "why",
        "how",
        "not",
        "no",
        "all",
        "any",
        "both",
        "each",
        "every",
        "either",
        "neither",
        "some",
        "such",
        "same",
        "other",
        "another",
        "is",
        "am",
        "are",
        "was",
        "were",
        "be",
        "been",
        "being",
        "have",
        "has",
        "had",
        "having",
        "do",
        "does",
        "did",
        "done",
        "doing",
        "can",
        "could",
        "may",
        "might",
        "must",
        "shall",
        "should",
        "will",
        "would",
        "let",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
    ]
)


class English:
    """What is common in English, by SCOWL's levels and by how often WordNet's texts hold a word.

    Args:
        scowl: The folder of SCOWL's lists.
        wordnet: For parts of speech and counts.
    """

    def __init__(self, scowl: Path, wordnet: WordNet) -> None:
        self.wordnet = wordnet
        self.level: dict[str, int] = {}
        for level in LEVELS:
            for dialect in ("english", "american", "british"):
                path = scowl / f"{dialect}-words.{level}"
                for word in path.read_text(encoding="latin-1").split() if path.is_file() else ():
                    self.level.setdefault(word, level)

    def known(self, word: str, level: int = 50) -> bool:
        """Whether `word` is plain lower-case letters and on a list up to `level`."""
        return word.isascii() and word.isalpha() and self.level.get(word, _UNLISTED) <= level

    def order(self, word: str) -> tuple[int, int, str]:
        """Sorts common words first."""
        count = sum(self.wordnet.count(word.lower(), part) for part in "nvar")
        return (self.level.get(word.lower(), _UNLISTED), -count, word)

    @cached_property
    def words(self) -> list[str]:
        """Common content words in their base forms, the most common first."""
        found = {word for word, _ in self.wordnet.senses if self.known(word) and len(word) > 2}
        return sorted(
            (w for w in found if w not in _FUNCTION_WORDS and not self.inflected(w)), key=self.order
        )

    def of(self, part: str, share: float = 0.5) -> list[str]:
        """The words that are this part of speech (n, v, a, r) in at least `share` of their tagged uses."""
        return [word for word in self.words if self._share(word, part) >= share]

    def _share(self, word: str, part: str) -> float:
        mine = self.wordnet.count(word, part)
        total = sum(self.wordnet.count(word, each) for each in "nvar")
        if total:
            return mine / total
        parts = [each for each in "nvar" if (word, each) in self.wordnet.senses]
        return 1.0 if parts == [part] else 0.0

    def inflected(self, word: str) -> bool:
        """Whether `word` is a form of a shorter word that is as common."""
        from lemminflect import getAllLemmas

        bases = {base for bases in getAllLemmas(word).values() for base in bases}
        return any(
            base != word and self.level.get(base, _UNLISTED) <= self.level[word] for base in bases
        ) and word.endswith(("s", "ed", "ing", "er", "est", "en", "t", "d"))

    def forms(self, word: str, tag: str) -> list[str]:
        """The inflected forms of `word` for a Penn Treebank tag, those of the most common level only."""
        from lemminflect import getInflection

        forms = [form for form in dict.fromkeys(getInflection(word, tag)) if form != word]
        best = min((self.level.get(form, _UNLISTED) for form in forms), default=_UNLISTED)
        return [form for form in forms if best < _UNLISTED and self.level.get(form, _UNLISTED) == best]
