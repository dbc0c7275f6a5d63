"""Pairs that follow from a rule: letters, case, length, numbers, sequences."""

from __future__ import annotations

import itertools
import string

from builder.facts import HERE, Pairs, read_facts
from builder.store import Store

_ONES = [
    "zero",
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
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_ORDINAL_ONES = [
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
    "thirteenth",
    "fourteenth",
    "fifteenth",
    "sixteenth",
    "seventeenth",
    "eighteenth",
    "nineteenth",
]
_ORDINAL_TENS = [ten.replace("y", "ieth") for ten in _TENS]
_ROMAN = [(100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")]


def number_words() -> list[str]:
    """zero … ninety-nine, hundred."""
    rest = [f"{ten}-{one}" if one != "zero" else ten for ten in _TENS for one in _ONES[:10]]
    return [*_ONES, *rest, "hundred"]


def ordinal_words() -> list[str]:
    """first … ninety-ninth, hundredth."""
    rest = [
        f"{ten}-{_ORDINAL_ONES[one - 1]}" if one else ordinal
        for ten, ordinal in zip(_TENS, _ORDINAL_TENS, strict=True)
        for one in range(10)
    ]
    return [*_ORDINAL_ONES, *rest, "hundredth"]


def roman(number: int) -> str:
    """A number up to 399 in Roman numerals."""
    out = ""
    for value, letters in _ROMAN:
        out += letters * (number // value)
        number %= value
    return out


def _common_words() -> list[str]:
    return list(read_facts(HERE / "facts" / "copying.txt"))


def letter_of_word(_: Store, position: str) -> Pairs:
    """Word → its letter at a position (from 1, or from -1 at the end), small or capital."""
    at = int(position) - 1 if int(position) > 0 else int(position)
    name = {"1": "word_to_first_letter", "-1": "word_to_last_letter"}.get(position, "word_to_first_letter")
    words = [word for word in read_facts(HERE / "facts" / f"{name}.txt") if len(word) > abs(at) + 1]
    return {word: [word[at], word[at].upper()] for word in words}


def length_of_word(_: Store) -> Pairs:
    """Word → the number of its letters."""
    words = dict.fromkeys([*_common_words(), *read_facts(HERE / "facts" / "word_to_first_letter.txt")])
    return {word: [str(len(word))] for word in words if 2 <= len(word) <= 9}


def case_of_word(_: Store, before: str, after: str) -> Pairs:
    """Word in one case → the same word in another."""
    cases = {"lower": str.lower, "upper": str.upper, "capitalised": str.capitalize}
    words = dict.fromkeys([*_common_words(), *read_facts(HERE / "facts" / "word_to_first_letter.txt")])
    return {cases[before](word): [cases[after](word)] for word in words if len(word) > 1}


def reversed_word(store: Store) -> Pairs:
    """Word → the word it makes when read backwards."""
    english = store.english
    words = [word for word in english.level if english.known(word, 35) and len(word) > 2]
    known = set(words)
    return {w: [w[::-1]] for w in sorted(words, key=english.order) if w[::-1] in known and w[::-1] != w}


def neighbour_letter(_: Store, step: str) -> Pairs:
    """Letter → the next or the previous one of the alphabet, in its case."""
    out = {}
    for alphabet in (string.ascii_lowercase, string.ascii_uppercase):
        line = alphabet if step == "1" else alphabet[::-1]
        out |= {one: [two] for one, two in itertools.pairwise(line)}
    return out


def case_of_letter(_: Store) -> Pairs:
    """Letter → the same letter in the other case."""
    return {letter: [letter.swapcase()] for letter in string.ascii_letters}


def position_of_letter(_: Store) -> Pairs:
    """Letter → its place in the alphabet."""
    return {
        letter: [str(at)]
        for alphabet in (string.ascii_lowercase, string.ascii_uppercase)
        for at, letter in enumerate(alphabet, 1)
    }


def years(_: Store) -> Pairs:
    """Year → the following one: sparse before 1900, every one since."""
    chosen = [*range(1100, 1800, 17), *range(1800, 1900, 3), *range(1900, 2050)]
    return {str(year): [str(year + 1)] for year in chosen}


def neighbour_number(_: Store, step: str) -> Pairs:
    """Number up to 250 → the next or the previous one."""
    return {str(n): [str(n + int(step))] for n in range(251) if n + int(step) >= 0}


def double(_: Store) -> Pairs:
    """Number up to 150 → twice as much."""
    return {str(n): [str(2 * n)] for n in range(1, 151)}


def word_of_number(_: Store) -> Pairs:
    """Number word → digits."""
    return {word: [str(n)] for n, word in enumerate(number_words())} | {"thousand": ["1000"]}


def ordinal_of_cardinal(_: Store) -> Pairs:
    """Number word → ordinal, in both cases."""
    both = list(zip(number_words()[1:], ordinal_words(), strict=True))
    both += [("thousand", "thousandth"), ("million", "millionth"), ("billion", "billionth")]
    return _both_cases({one: [two] for one, two in both})


def next_number_word(_: Store) -> Pairs:
    """Number word → the next, in both cases."""
    return _both_cases({one: [two] for one, two in itertools.pairwise(number_words())})


def previous_number_word(_: Store) -> Pairs:
    """Number word → the previous one, in both cases."""
    return _both_cases({two: [one] for one, two in itertools.pairwise(number_words())})


def digits_of_roman(_: Store) -> Pairs:
    """Roman numeral → digits, up to 120."""
    return {roman(n): [str(n)] for n in range(1, 121)}


def successor(_: Store) -> Pairs:
    """Member of a well-known sequence → the next: number words, ordinals, months, days, letters, numerals."""
    months = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ]
    days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    sequences = [
        [*_ONES, "twenty"],
        [word.capitalize() for word in [*_ONES, "twenty"]],
        [*_ORDINAL_ONES, "twentieth"],
        [word.capitalize() for word in [*_ORDINAL_ONES, "twentieth"]],
        [*months, months[0]],
        [*days, days[0]],
        [*(month[:3] for month in months), "Jan"],
        [*(day[:3] for day in days), "Mon"],
        list(string.ascii_lowercase),
        [roman(number) for number in range(2, 21)],
        list(string.ascii_uppercase),
    ]
    out: Pairs = {}
    for sequence in sequences:
        for one, two in itertools.pairwise(sequence):  # May, V and X stand in two: both that follow count
            out.setdefault(one, []).append(two)
    return {source: list(dict.fromkeys(targets)) for source, targets in out.items()}


def _both_cases(pairs: Pairs) -> Pairs:
    capital = {s.capitalize(): [t.capitalize() for t in targets] for s, targets in pairs.items()}
    return pairs | capital


STEPS = {
    "letter_of_word": letter_of_word,
    "length_of_word": length_of_word,
    "case_of_word": case_of_word,
    "reversed_word": reversed_word,
    "neighbour_letter": neighbour_letter,
    "case_of_letter": case_of_letter,
    "position_of_letter": position_of_letter,
    "years": years,
    "neighbour_number": neighbour_number,
    "double": double,
    "word_of_number": word_of_number,
    "ordinal_of_cardinal": ordinal_of_cardinal,
    "next_number_word": next_number_word,
    "previous_number_word": previous_number_word,
    "digits_of_roman": digits_of_roman,
    "successor": successor,
}
