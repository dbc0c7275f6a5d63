"""Translation: words written by hand, and CLDR's names of emoji, days and months."""

from __future__ import annotations

import unicodedata

from builder.facts import HERE, Pairs, read_facts
from builder.store import Store

_FIRST_PICTURE = 0x2300  # before it come punctuation, currencies and mathematics
_CASED_NOUNS = {"de"}
_NUMBERED_MONTHS = {"zh", "ja", "ko"}
# Names of pictures that are not what the English word mostly means, or that other languages describe.
_UNCLEAR = frozenset((HERE / "patches" / "unclear_pictures.txt").read_text(encoding="utf-8").split())


def english_to(store: Store, code: str, name: str) -> Pairs:
    """English word → words of another language: those written by hand first, then CLDR's."""
    pairs = {source: list(targets) for source, targets in read_facts(HERE / "facts" / f"{name}.txt").items()}
    for word, target in _cldr(store, code).items():
        if word not in pairs and _plain(word) != _plain(target):
            pairs[word] = [target]
    return pairs


def _cldr(store: Store, code: str) -> dict[str, str]:
    english, other = store.annotations("en"), store.annotations(code)
    found: dict[str, str] = {}
    if code not in _NUMBERED_MONTHS:
        found |= zip(store.calendar("en")[0], store.calendar(code)[0], strict=True)
    found |= zip(store.calendar("en")[1], store.calendar(code)[1], strict=True)
    names: dict[str, str] = {}
    for emoji, word in english.items():
        target = other.get(emoji, "")
        picture = ord(emoji[0]) >= _FIRST_PICTURE
        if picture and store.english.known(word) and word not in _UNCLEAR and _one_word(target):
            names.setdefault(word, target if code in _CASED_NOUNS else target.lower())
    return found | {word: names[word] for word in sorted(names, key=store.english.order)}


def _one_word(text: str) -> bool:
    return bool(text) and all(unicodedata.category(c)[0] in "LM" or c in "-'’" for c in text)


def _plain(word: str) -> str:
    """Without case and accents: words that differ in these only are spelled alike."""
    parts = unicodedata.normalize("NFD", word.lower())
    return "".join(c for c in parts if not unicodedata.combining(c))


STEPS = {"english_to": english_to}
