"""Meaning: kinds, people, compounds and parts of speech, from WordNet."""

from __future__ import annotations

import re

from builder.facts import HERE, Pairs, read_facts
from builder.store import Store
from builder.wordnet import Synset

_PERSON, _ANIMAL = 18, 5
_PARTS = {"n": "noun", "v": "verb", "a": "adjective", "r": "adverb"}
_CLASSES = ("mammal", "bird", "fish", "insect", "reptile", "amphibian")
_OCCUPATIONS = frozenset(
    "actor actress architect artist astronaut astronomer athlete author aviator biologist boxer cartoonist chemist "
    "choreographer comedian composer conductor criminal dancer dictator director dramatist economist emperor "
    "engineer explorer general geneticist geologist golfer guitarist historian industrialist inventor journalist "
    "jurist king lawyer mathematician missionary musician navigator novelist painter patriot philanthropist "
    "philosopher photographer physician physicist physiologist pianist playwright poet politician pope president "
    "producer psychologist queen revolutionary ruler saint scientist sculptor singer sociologist soldier "
    "statesman surgeon swimmer theologian violinist writer".split()
)
_NATIONS = (
    "American Argentine Australian Austrian Belgian British Canadian Chilean Chinese Colombian Cuban Czech Danish "
    "Dutch Egyptian English Finnish Flemish French German Greek Hungarian Indian Iranian Irish Israeli Italian "
    "Japanese Macedonian Mexican Norwegian Persian Polish Portuguese Prussian Roman Russian Scottish Soviet "
    "Spanish Swedish Swiss Turkish Welsh"
).split()
_ALSO = {"English": "British", "Scottish": "British", "Welsh": "British", "Soviet": "Russian"}


def hypernym(store: Store) -> Pairs:
    """Noun → the common words one or two steps above its dominant sense."""
    english = store.english
    pairs: Pairs = {}
    for noun in english.of("n", 0.7):
        sense = store.wordnet.dominant(noun, "n")
        if sense is None or sense.topic in (3, 9, 11, 23, 24):  # the abstract top: few would agree on it
            continue
        words = [word for up in store.wordnet.above(sense)[:2] for word in up.words]
        right = [word for word in words if english.known(word, 35) and word != noun and word in _KINDS]
        if right:
            pairs[noun] = list(dict.fromkeys(right))
    return pairs


_KINDS = frozenset(
    "activity animal area argument artist attack bag bird boat body book bread bridge building ceremony chair cheese "
    "city class cloth clothing coat colour color container country crime criminal cup device dish disease doctor "
    "document drink drug emotion feeling fish flower food fruit fuel furniture game garment gas gun hat house insect "
    "instrument jewelry journey language law leader letter liquid machine material meal meat medicine metal money "
    "move movement music official organ paper person picture place plant room sauce science sound sport statement "
    "stone story structure sweet tool tree unit vegetable vehicle vessel walk wall war weapon wind wine woman "
    "wood word worker writer writing".split()
)


def animal_class(store: Store) -> Pairs:
    """Animal → mammal, bird, fish, insect, reptile or amphibian, where its first sense is an animal."""
    roots = {_first_of_topic(store, name, _ANIMAL).key: name for name in _CLASSES}
    pairs: Pairs = {}
    for noun in store.english.of("n", 0.5):
        sense = store.wordnet.senses[noun, "n"][0]
        if sense.topic == _ANIMAL:
            above = [roots[up.key] for up in store.wordnet.above(sense) if up.key in roots]
            if above:
                pairs[noun] = above
    return pairs


def _first_of_topic(store: Store, word: str, topic: int) -> Synset:
    return next(sense for sense in store.wordnet.senses[word, "n"] if sense.topic == topic)


def _people(store: Store) -> dict[str, list[Synset]]:
    """Surname → the persons of that name, for names that stand for nothing else in WordNet."""
    found: dict[str, list[Synset]] = {}
    for (lemma, part), senses in store.wordnet.senses.items():
        if part != "n" or not lemma.isalpha() or lemma in store.english.level:
            continue
        persons = [s for s in senses if s.topic == _PERSON and any(p.symbol == "@i" for p in s.pointers)]
        if persons and len(persons) == len(senses):
            name = next(word for word in senses[0].words if word.lower() == lemma)
            if name[0].isupper():
                found[name] = persons
    return dict(sorted(found.items(), key=lambda item: (-_fame(store, item[0], item[1]), item[0])))


def _fame(store: Store, name: str, persons: list[Synset]) -> int:
    """How well known a name is: tagged uses, then how many words WordNet spends on it."""
    tagged = sum(store.wordnet.counts[name.lower(), person.key] for person in persons)
    return 1000 * tagged + sum(len(person.words) for person in persons)


def person_to_occupation(store: Store) -> Pairs:
    """Surname → the occupations of its bearers and the common words above them."""
    pairs: Pairs = {}
    for name, persons in _people(store).items():
        words = [word for person in persons for up in store.wordnet.above(person)[:4] for word in up.words]
        right = list(dict.fromkeys(word for word in words if word in _OCCUPATIONS))
        if right:
            pairs[name] = right
    return pairs


def person_to_nationality(store: Store) -> Pairs:
    """Surname → the nationalities that glosses give its bearers."""
    pattern = re.compile(rf"\b(United States|{'|'.join(_NATIONS)})\b")
    pairs: Pairs = {}
    for name, persons in _people(store).items():
        found: list[str] = []
        for person in persons:
            head = person.gloss.split(";")[0]
            said = [m.replace("United States", "American") for m in pattern.findall(head)]
            found += [nation for each in said for nation in (each, _ALSO.get(each, each))]
        if found:
            pairs[name] = list(dict.fromkeys(found))
    return pairs


def part_of_speech(store: Store) -> Pairs:
    """Word → its part of speech, for words that are only one; as many of each as of the rarest."""
    found: dict[str, list[str]] = {part: [] for part in _PARTS}
    for word in store.english.words:
        parts = [part for part in _PARTS if (word, part) in store.wordnet.senses]
        if len(parts) == 1 and len(found[parts[0]]) < 60:
            found[parts[0]].append(word)
    pairs = {word: [_PARTS[part]] for part, words in found.items() for word in words}
    return dict(sorted(pairs.items(), key=lambda pair: store.english.order(pair[0])))


def compound_to_part(_: Store, which: str) -> Pairs:
    """Compound of core's list → its first part, or its last."""
    pairs: Pairs = {}
    for first, compounds in read_facts(HERE / "facts" / "word_to_compound.txt").items():
        for compound in compounds:
            rest = compound.removeprefix(first)
            if compound != rest and len(rest) > 2:
                pairs[compound] = [first if which == "first" else rest]
    return pairs


STEPS = {
    "hypernym": hypernym,
    "animal_class": animal_class,
    "person_to_occupation": person_to_occupation,
    "person_to_nationality": person_to_nationality,
    "part_of_speech": part_of_speech,
    "compound_to_part": compound_to_part,
}
