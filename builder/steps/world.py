"""Countries, cities, symbols, spelling: from GeoNames, CLDR, Unicode, Linguist and SCOWL."""

from __future__ import annotations

from typing import Any

from builder.facts import HERE, Pairs, read_facts
from builder.store import Store

# Names in everyday use that differ from CLDR's.
_NAMES = {
    "BA": "Bosnia",
    "CD": "Congo",
    "CG": "Congo",
    "CI": "Ivory Coast",
    "CZ": "Czechia",
    "HK": "Hong Kong",
    "KP": "North Korea",
    "KR": "South Korea",
    "MK": "Macedonia",
    "MM": "Myanmar",
    "PS": "Palestine",
    "TR": "Turkey",
    "TT": "Trinidad",
}
_ALSO = {
    "US": ["America", "USA", "US"],
    "GB": ["UK", "Britain"],
    "KR": ["Korea"],
    "NL": ["Holland"],
    "CD": ["DRC"],
    "BA": ["Bosnia and Herzegovina"],
    "MM": ["Burma"],
}
_CONTINENTS = {
    "AF": ["Africa"],
    "AS": ["Asia"],
    "EU": ["Europe"],
    "NA": ["North America", "America", "Americas"],
    "SA": ["South America", "America", "Americas"],
    "OC": ["Oceania"],
}
_TWO_CONTINENTS = {
    "AM": ["Europe"],
    "AU": ["Australia"],
    "AZ": ["Europe"],
    "CY": ["Asia"],
    "EG": ["Asia"],
    "GE": ["Europe", "Asia"],
    "KZ": ["Europe"],
    "RU": ["Asia"],
    "TR": ["Europe"],
}
_NAMED_SHORT = {"BA", "CD", "CG", "HK", "MK", "MM", "MO", "PS", "TT"}  # by us, and in full by CLDR
_SMALLEST = 250_000
_FIRST_PICTURE = 0x2300  # before it come punctuation, currencies and mathematics
_QUARTERS = ("East ", "West ", "North ", "South ", "New South ", "Upper ", "The ")  # parts of cities
_TERRITORIES = {"RE", "MO", "GP", "MQ", "NC", "YT", "PF", "EH"}  # parts of, or claimed by, other countries
# What stands in British words → what stands in American ones.
_BRITISH_TO_AMERICAN = (
    "our>or is>iz ys>yz ll>l tre>ter bre>ber ence>ense ae>e "
    "oe>e ogue>og mme>m l>ll grey>gray que>ck ph>f plough>plow "
    "tyre>tire kerb>curb mould>mold sceptic>skeptic ou>o gement>gment storey>story pyjamas>pajamas "
    "chre>cher x>ct eable>able draught>draft aluminium>aluminum moustache>mustache y>i e> "
    "yre>ire"
)
_BRITISH = [rule.split(">") for rule in _BRITISH_TO_AMERICAN.split()]


def _countries(store: Store) -> list[tuple[str, str, dict[str, Any]]]:
    """Code, name and GeoNames' entry of each country of some size, the largest first."""
    names = store.territories("en")
    found = [
        (code, _NAMES.get(code, names[code]), entry)
        for code, entry in store.countries.items()
        if code in names
        and code not in _TERRITORIES
        and entry["capital"]
        and int(entry["population"]) >= _SMALLEST
    ]
    return sorted(found, key=lambda item: -int(item[2]["population"]))


def _by_name(store: Store, targets: dict[str, list[str]]) -> Pairs:
    """Country → targets given by code; countries that share a name share theirs."""
    pairs: Pairs = {}
    for code, name, _ in _countries(store):
        pairs.setdefault(name, []).extend(t for t in targets.get(code, ()) if t not in pairs[name])
        for other in _ALSO.get(code, ())[:1] if code in ("US", "GB", "NL") else ():
            pairs.setdefault(other, list(targets.get(code, ())))
    return {name: found for name, found in pairs.items() if found}


def continent(store: Store) -> Pairs:
    """Country → continent."""
    return _by_name(
        store,
        {
            c: _CONTINENTS.get(e["continentcode"], []) + _TWO_CONTINENTS.get(c, [])
            for c, _, e in _countries(store)
        },
    )


def currency(store: Store) -> Pairs:
    """Country → what its money is called."""
    return _by_name(
        store, {c: [e["currencyname"].lower()] for c, _, e in _countries(store) if e["currencyname"]}
    )


def currency_code(store: Store) -> Pairs:
    """Country → the three letters of its currency."""
    return _by_name(store, {c: [e["currencycode"]] for c, _, e in _countries(store) if e["currencycode"]})


def iso_code(store: Store) -> Pairs:
    """Country → its two letters."""
    return _by_name(store, {c: [c] for c, _, _ in _countries(store)})


def neighbour(store: Store) -> Pairs:
    """Country → countries it borders on."""
    names = {code: [name, *_ALSO.get(code, [])] for code, name, _ in _countries(store)}
    return _by_name(
        store,
        {
            code: [name for other in entry["neighbours"].split(",") for name in names.get(other.strip(), ())]
            for code, _, entry in _countries(store)
        },
    )


def country_named_in(store: Store, language: str) -> Pairs:
    """Name of a country in another language → the country's English names, where the two differ."""
    there = store.territories(language)
    pairs: Pairs = {}
    for code, name, _ in _countries(store):
        if there[code] != name and "(" not in there[code] and code not in _NAMED_SHORT:
            pairs[there[code]] = [name, *_ALSO.get(code, [])]
    return pairs


def city(store: Store) -> Pairs:
    """City → every country that has a town of the name; cities that WordNet knows, the largest first."""
    names = {code: [name, *_ALSO.get(code, [])] for code, name, _ in _countries(store)}
    pairs: Pairs = {}
    for place in sorted(store.cities.values(), key=lambda c: -c["population"]):
        name = place["name"]
        known = name.isascii() and name.isalpha() and (name.lower(), "n") in store.wordnet.senses
        first = name not in pairs
        if known and not (first and (place["population"] < 150_000 or name.lower() in store.english.level)):
            found = pairs.setdefault(name, [])
            found += [n for n in names.get(place["countrycode"], ()) if n not in found]
    return {name: found for name, found in pairs.items() if found}


def us_city(store: Store) -> Pairs:
    """City of the United States → every state that has a town of the name."""
    states = {codes[0]: state for state, codes in read_facts(HERE / "facts" / "us_state_to_code.txt").items()}
    pairs: Pairs = {}
    for place in sorted(store.cities.values(), key=lambda c: -c["population"]):
        name = place["name"]
        state = states.get(place["admin1code"])
        if place["countrycode"] != "US" or state is None or name == state or name.startswith(_QUARTERS):
            continue
        if name in pairs or (place["population"] >= 100_000 and _known_city(store, name)):
            pairs.setdefault(name, []).extend(s for s in [state] if s not in pairs[name])
    return pairs


def _known_city(store: Store, name: str) -> bool:
    """Whether WordNet has an entry for a name that is no common word."""
    return (
        name.lower() not in store.english.level
        and (name.lower().replace(" ", "_"), "n") in store.wordnet.senses
    )


def emoji_name(store: Store) -> Pairs:
    """Emoji → its name, where that is one common word."""
    english = store.english
    named = {
        emoji: [name]
        for emoji, name in store.annotations("en").items()
        if english.known(name) and len(emoji.rstrip("\ufe0f")) == 1 and ord(emoji[0]) >= _FIRST_PICTURE
    }
    return dict(sorted(named.items(), key=lambda pair: english.order(pair[1][0])))


def brackets(store: Store) -> Pairs:
    """Opening bracket → the closing one."""
    text = store.file("unicode-data*/usr/share/unicode/BidiBrackets.txt").read_text(encoding="utf-8")
    rows = [line.split("#")[0].split(";") for line in text.splitlines() if ";" in line.split("#")[0]]
    return {chr(int(o, 16)): [chr(int(c, 16))] for o, c, kind in rows if kind.strip() == "o"}


def american_spelling(store: Store) -> Pairs:
    """British spelling → American, where SCOWL has each on one side only and they differ in a known way."""
    lists = store.file("scowl*/usr/share/dict/scowl")
    british, american = (
        {
            word: level
            for level in (50, 40, 35, 20, 10)
            for word in (lists / f"{dialect}-words.{level}").read_text(encoding="latin-1").split()
        }
        for dialect in ("british", "american")
    )
    pairs: Pairs = {}
    for word in sorted(british, key=lambda each: (british[each], each)):
        if word in american or not word.isalpha() or not word.isascii():
            continue
        found = [
            other
            for old, new in _BRITISH
            for at in range(len(word))
            if word.startswith(old, at) and (other := word[:at] + new + word[at + len(old) :]) in american
            and other not in british
        ]  # fmt: skip
        if found:
            pairs[word] = list(dict.fromkeys(found))[:1]
    return dict(sorted(pairs.items(), key=lambda pair: store.english.order(pair[1][0])))


STEPS = {
    "continent": continent,
    "currency": currency,
    "currency_code": currency_code,
    "iso_code": iso_code,
    "neighbour": neighbour,
    "country_named_in": country_named_in,
    "city": city,
    "us_city": us_city,
    "emoji_name": emoji_name,
    "brackets": brackets,
    "american_spelling": american_spelling,
}
