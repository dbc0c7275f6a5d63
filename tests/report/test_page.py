"""The page is one file that loads nothing, and nothing in an atlas can become markup."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from headatlas.atlas import Atlas
from headatlas.errors import HeadatlasError
from headatlas.figures.colours import DARK, LIGHT
from headatlas.figures.describe import alt_text
from headatlas.report import report_html, write_report
from headatlas.report.page import LIVE, MODULES, STYLES, bundle, embed
from tests.report.made_up import HOSTILE

FOLDER = Path(str(files("headatlas.report")))


class Elements(HTMLParser):
    """Every element with its attributes, and the text of scripts, styles and the title."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open = tag
        if tag in ("script", "style", "title"):
            self.text.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self.open:
            self.open = ""

    def handle_data(self, data: str) -> None:
        if self.open in self.text:
            self.text[self.open][-1] += data


def test_hostile_names_stay_text(hostile_page: str, data_of: Callable[[str], dict[str, Any]]) -> None:
    elements = Elements(hostile_page)
    names = [tag for tag, _ in elements.tags]
    assert "img" not in names
    assert names.count("script") == 2
    assert not any(name.startswith("on") for _, attributes in elements.tags for name in attributes)
    data = data_of(hostile_page)
    assert data["model"] == f"org/{HOSTILE}\\udc80", "half a character is shown as an escape"
    assert data["relations"][1]["title"] == f"odd {HOSTILE}"
    assert data["categories"] == ["Knowledge", "Another", f"Zoo {HOSTILE}"]
    assert elements.text["title"][0].startswith(f"org/{HOSTILE}\\udc80")


def test_embedded_json_has_no_character_that_html_knows() -> None:
    text = embed({HOSTILE: [HOSTILE, "\u2028\u2029\ud800"]})
    assert not set(text) & set("<>&\u2028\u2029")
    assert text.isascii()
    with pytest.raises(ValueError, match="JSON"):
        embed([float("nan")])


def test_scripts_and_names_are_text_nodes_only() -> None:
    script = bundle()
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
        assert way not in script
    assert "</script" not in script.lower()
    assert "<!--" not in script


def test_the_policy_allows_this_script_and_this_style(page: str) -> None:
    elements = Elements(page)
    (policy,) = [
        attributes["content"]
        for tag, attributes in elements.tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    rules = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert rules == {
        "default-src": "'none'",
        "script-src": hashed(elements.text["script"][1]),
        "style-src": hashed(elements.text["style"][0]),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    names = [tag for tag, _ in elements.tags]
    assert names.index("meta") < names.index("style")
    assert page.index("Content-Security-Policy") < page.index("<style>")
    assert not any("style" in attributes for _, attributes in elements.tags)


def hashed(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_nothing_is_loaded(page: str) -> None:
    for tag, attributes in Elements(page).tags:
        assert tag not in ("iframe", "object", "embed", "base", "form")
        assert "src" not in attributes
        assert attributes.get("href", "data:,") == "data:,"
    # The one address is the name of SVG's namespace.
    assert set(re.findall(r"https?://[^\"'\s)]+", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|WebSocket|sendBeacon|import\(", page)


def test_the_same_atlas_gives_the_same_bytes(atlas: Atlas, page: str, tmp_path: Path) -> None:
    again = Atlas.open(str(atlas.path))
    assert write_report(again, tmp_path) == tmp_path / "report.html"
    assert (tmp_path / "report.html").read_bytes() == page.encode("utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_page_that_cannot_be_written_is_one_sentence(
    atlas: Atlas, page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headatlas.report.page.report_html", lambda *_, **__: page)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(HeadatlasError, match=r"report\.html: cannot be written"):
        write_report(atlas, tmp_path)


def test_colours_and_words_are_those_of_the_figures(
    atlas: Atlas, page: str, hostile: Atlas, hostile_page: str
) -> None:
    style = Elements(page).text["style"][0]
    assert f"--level-none: light-dark({LIGHT.blank}, {DARK.blank});" in style
    for level, pair in enumerate(zip(LIGHT.levels(4), DARK.levels(4), strict=True), start=1):
        assert f"--level-{level}: light-dark({', '.join(pair)});" in style
    assert len(set(re.findall(r"--level-\d+: ", Elements(hostile_page).text["style"][0]))) == len(
        hostile.category_names
    )
    assert alt_text(atlas) in report_html(atlas).replace("&lt;", "<").replace("&gt;", ">")


def test_every_module_is_bundled_after_what_it_imports() -> None:
    order = (*MODULES, *LIVE)
    assert {path.stem for path in (FOLDER / "js").glob("*.mjs")} == set(order)
    assert {path.stem for path in (FOLDER / "css").glob("*.css")} == {*STYLES, "live"}
    for at, name in enumerate(order):
        source = (FOLDER / "js" / f"{name}.mjs").read_text(encoding="utf-8")
        assert set(re.findall(r'from "\./(\w+)\.mjs"', source)) <= set(order[:at]), name
    assert not re.search(r"^(import|export)\b", bundle(order), re.MULTILINE)


def test_a_page_without_a_server_asks_nothing(page: str) -> None:
    assert "from_live" not in page and "fetch(" not in page and "connect-src" not in page


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.[mc][js]s")), ids=lambda path: path.name)
def test_modules_stay_readable(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 400
    assert max(map(len, lines)) <= 120
