"""Inflection: verbs, nouns and adjectives with their forms."""

from __future__ import annotations

from builder.facts import HERE, Pairs, read_facts
from builder.store import Store

_VERB_ENDINGS = {"VBG": "ing", "VBZ": "s"}


def verb_form(store: Store, tag: str) -> Pairs:
    """Verb → a form of it (Penn Treebank tag)."""
    english = store.english
    ending = _VERB_ENDINGS.get(tag, "")
    pairs = {}
    for verb in english.of("v", 0.4):
        forms = [form for form in english.forms(verb, tag) if form.endswith(ending)]
        if forms and english.known(verb, 35):
            pairs[verb] = forms
    return pairs


def irregular_participle(store: Store) -> Pairs:
    """Verb → its past participle, where that does not end in -ed."""
    pairs = verb_form(store, "VBN")
    return {verb: forms for verb, forms in pairs.items() if not any(form.endswith("ed") for form in forms)}


def irregular_past(store: Store) -> Pairs:
    """Verb → its past tense, where that does not end in -ed."""
    pairs = verb_form(store, "VBD")
    return {verb: forms for verb, forms in pairs.items() if not any(form.endswith("ed") for form in forms)}


def plural(store: Store) -> Pairs:
    """Noun → its plural."""
    english = store.english
    nouns = [noun for noun in english.of("n", 0.6) if english.known(noun, 35)]
    return {noun: forms for noun in nouns if (forms := english.forms(noun, "NNS"))}


def comparative_to_superlative(_: Store) -> Pairs:
    """The two degrees of the adjectives of core."""
    comparative, superlative = (
        read_facts(HERE / "facts" / f"adjective_to_{degree}.txt") for degree in ("comparative", "superlative")
    )
    pairs: Pairs = {}
    for adjective, forms in comparative.items():
        for form in forms:
            for best in superlative.get(adjective, ()):
                if form[:2] == best[:2] or adjective in ("good", "bad", "ill", "many", "much"):
                    pairs.setdefault(form, [])
                    pairs[form] += [best] if best not in pairs[form] else []
    return pairs


STEPS = {
    "verb_form": verb_form,
    "irregular_participle": irregular_participle,
    "irregular_past": irregular_past,
    "plural": plural,
    "comparative_to_superlative": comparative_to_superlative,
}
