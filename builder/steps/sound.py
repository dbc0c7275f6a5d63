"""Sound: rhyme, from CMUdict."""

from __future__ import annotations

from builder.facts import Pairs
from builder.store import Store

_MOST_RHYMES = 60


def rhyme(store: Store) -> Pairs:
    """Word → common words that sound alike from the stressed vowel on, with another beginning."""
    english = store.english
    common = [w for w, level in english.level.items() if level <= 20 and english.known(w) and len(w) > 1]
    common = [w for w in common if len(store.pronunciations.get(w, ())) == 1]
    by_end: dict[str, list[str]] = {}
    for word in sorted(common, key=english.order):
        by_end.setdefault(_ending(store, word), []).append(word)
    pairs = {}
    for word in english.words:
        if word in common:
            others = [o for o in by_end[_ending(store, word)] if _onset(store, o) != _onset(store, word)]
            if len(others) >= 2:
                pairs[word] = others[:_MOST_RHYMES]
    return pairs


def _stressed(said: str) -> int:
    phones = said.split()
    return max((at for at, phone in enumerate(phones) if phone[-1] == "1"), default=0)


def _ending(store: Store, word: str) -> str:
    said = store.pronunciations[word][0]
    return " ".join(said.split()[_stressed(said) :])


def _onset(store: Store, word: str) -> str:
    said = store.pronunciations[word][0]
    at = _stressed(said)
    return said.split()[at - 1] if at else ""


STEPS = {"rhyme": rhyme}
