"""Derivation: words made from words, where WordNet joins the two and the spelling shows it."""

from __future__ import annotations

from collections.abc import Iterable

from builder.facts import Pairs
from builder.store import Store

_PERSON = 18  # WordNet's file of persons
_DERIVED, _PERTAINS = "+", "\\"
_ENDINGS = {
    "agent": ("er", "or", "ist", "ant", "ent", "ian"),
    "action": ("tion", "sion", "ment", "ance", "ence", "al", "ure", "ery", "age", "ing"),
    "quality": ("ness", "ity", "cy", "ce", "th", "dom", "ty"),
    "adjective": ("al", "ous", "ful", "y", "ic", "ical", "less", "ish", "ary", "en", "ly", "ar"),
    "able": ("able", "ible"),
}
_PREFIXES = ("un", "in", "im", "ir", "il", "dis", "non", "mis")


def _joined(
    store: Store, words: Iterable[str], part: str, target_part: str, endings: tuple[str, ...], senses: int = 3
) -> Pairs:
    """Word → the words derived from its first senses that are of a part of speech and end so."""
    english = store.english
    pairs: Pairs = {}
    for word in words:
        found = [
            (target, other)
            for sense in store.wordnet.senses.get((word, part), [])[:senses]
            for target, other in store.wordnet.related(word, sense, _DERIVED, _PERTAINS)
            if target.key[0] == target_part and other.endswith(endings) and english.known(other, 40)
        ]
        near = [other for _, other in found if other != word and _alike(word, other)]
        if near and english.known(word, 35):
            pairs[word] = sorted(dict.fromkeys(near), key=english.order)
    return pairs


def _alike(one: str, two: str) -> bool:
    """Whether two words begin alike, but for the last letters of the shorter one."""
    size = max(3, min(len(one), len(two)) - 3)
    return one[:size] == two[:size]


def verb_to_agent(store: Store) -> Pairs:
    """Verb → the person or thing that does it."""
    pairs = _joined(store, store.english.of("v", 0.3), "v", "n", _ENDINGS["agent"])
    senses = store.wordnet.senses
    return {
        verb: right
        for verb, agents in pairs.items()
        if (right := [agent for agent in agents if senses[agent, "n"][0].topic == _PERSON])
    }


def verb_to_action(store: Store) -> Pairs:
    """Verb → the noun for doing it."""
    endings = tuple(ending for ending in _ENDINGS["action"] if ending != "ing")
    pairs = _joined(store, store.english.of("v", 0.3), "v", "n", endings)
    senses = store.wordnet.senses
    return {
        verb: right
        for verb, nouns in pairs.items()
        if (right := [noun for noun in nouns if senses[noun, "n"][0].topic != _PERSON])
    }


def verb_to_able(store: Store) -> Pairs:
    """Verb → the adjective in -able or -ible."""
    english = store.english
    pairs: Pairs = {}
    for verb in english.of("v", 0.2):
        stems = {verb, verb.removesuffix("e"), verb + verb[-1], verb.removesuffix("y") + "i"}
        found = [stem + ending for stem in stems for ending in _ENDINGS["able"]]
        found += [verb.removesuffix("d") + "sible"] if verb.endswith("nd") else []
        found += [verb.removesuffix("ate") + "able"] if verb.endswith("ate") and len(verb) > 6 else []
        right = [
            word
            for word in dict.fromkeys(found)
            if english.known(word, 40) and (word, "a") in store.wordnet.senses
        ]
        if right:
            pairs[verb] = sorted(right, key=english.order)
    return pairs


def adjective_to_quality(store: Store) -> Pairs:
    """Adjective → the noun for the quality."""
    return _joined(store, store.english.of("a", 0.5), "a", "n", _ENDINGS["quality"])


def noun_to_adjective(store: Store) -> Pairs:
    """Noun → the adjective made from it."""
    nouns = set(store.english.of("n", 0.5))
    turned: Pairs = {}
    for adjective in store.english.of("a", 0.5):
        if not adjective.endswith(_ENDINGS["adjective"]):
            continue
        for sense in store.wordnet.senses[adjective, "a"][:3]:
            for target, other in store.wordnet.related(adjective, sense, _DERIVED, _PERTAINS):
                right = target.key[0] == "n" and other in nouns and len(other) < len(adjective)
                if right and _alike(other, adjective) and adjective not in turned.get(other, ()):
                    turned.setdefault(other, []).append(adjective)
    return dict(sorted(turned.items(), key=lambda pair: store.english.order(pair[0])))


def adjective_to_adverb(store: Store) -> Pairs:
    """Adjective → the adverb in -ly."""
    english = store.english
    pairs: Pairs = {}
    for adjective in english.of("a", 0.4):
        stems = [adjective + "ly", adjective.removesuffix("y") + "ily", adjective.removesuffix("e") + "y"]
        stems += [adjective + "ally"] if adjective.endswith("ic") else []
        stems += [adjective + "y"] if adjective.endswith("ll") else []
        right = [word for word in stems if english.known(word, 40) and (word, "r") in store.wordnet.senses]
        if right:
            pairs[adjective] = right[:1]
    return pairs


def word_to_negative(store: Store) -> Pairs:
    """Word → the same word with a negative prefix, where WordNet has the two as antonyms."""
    english = store.english
    pairs: Pairs = {}
    for word in english.words:
        for part in "arnv":
            for sense in store.wordnet.senses.get((word, part), [])[:4]:
                for _, other in store.wordnet.related(word, sense, "!"):
                    prefixed = any(other == prefix + word for prefix in _PREFIXES)
                    if prefixed and english.known(other, 40) and other not in pairs.get(word, ()):
                        pairs.setdefault(word, []).append(other)
    return pairs


STEPS = {
    "verb_to_agent": verb_to_agent,
    "verb_to_action": verb_to_action,
    "verb_to_able": verb_to_able,
    "adjective_to_quality": adjective_to_quality,
    "noun_to_adjective": noun_to_adjective,
    "adjective_to_adverb": adjective_to_adverb,
    "word_to_negative": word_to_negative,
}
