"""An atlas, a card and the page as notebooks show them."""

from __future__ import annotations

import base64
from collections.abc import Callable
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from headatlas.atlas import Atlas
from headatlas.atlas.cards import coverage_sentence
from headatlas.errors import HeadatlasError
from headatlas.report import report_html
from headatlas.scoring.scores import p_value
from tests.browser.made import LABELLED, LOOKS, full_atlas, hostile_atlas


class Seen(HTMLParser):
    """Elements with their attributes, and all text, as a browser would have them."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module", params=[full_atlas, hostile_atlas])
def atlas(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    made: Atlas = request.param(tmp_path_factory.mktemp("made") / "atlas.zarr")
    return made


def test_the_page_is_in_a_frame_whole(atlas: Atlas, data_of: Callable[[str], Any]) -> None:
    """To the byte, for its policy names hashes; with no right but to run and to save."""
    for shown, opens in ((atlas.explore(height=500), ""), (atlas.head(*LABELLED).explore(), "head=2.1")):
        seen = Seen(shown._repr_html_())
        assert [tag for tag, _ in seen.elements] == ["iframe"]
        (frame,) = seen.named("iframe")
        assert frame["srcdoc"] == shown.page == report_html(atlas, opens=opens)
        assert frame["sandbox"] == "allow-scripts allow-downloads"
        assert f"height:{shown.height}px" in str(frame["style"])
        assert data_of(shown.page)["opens"] == opens
        assert len(repr(shown)) < 1000
    with pytest.raises(HeadatlasError):
        atlas.explore(q_at=(99,))


def test_an_atlas_shows_figure_and_coverage(atlas: Atlas) -> None:
    seen = Seen(atlas._repr_html_())
    (image,) = seen.named("img")
    source = str(image["src"])
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    assert "categories" in str(image["alt"])
    png, metadata = atlas.plot.relations()._repr_png_()
    assert png.startswith(b"\x89PNG") and metadata == {"width": int(str(image["width"]))}
    assert coverage_sentence(atlas).partition(" (")[0] in seen.text
    assert {tag for tag, _ in seen.elements} <= {*("p", "b", "br", "img"), *TABLE}


def test_a_card_shows_each_kind(atlas: Atlas) -> None:
    seen = Seen(atlas.head(*LABELLED)._repr_html_())
    for text in ("Relations", "Where it looks", "What it writes (first 8 of 30)", "Labels", "Heads like it"):
        assert text in seen.text
    assert "not measured" not in seen.text and "effective rank" in seen.text
    assert {tag for tag, _ in seen.elements} <= {*("p", "b", "br", "ul", "li"), *TABLE}
    assert all(set(attributes) <= {"class", "style"} for _, attributes in seen.elements)
    assert not [char for char in seen.text if not (char.isprintable() or char in "\n ")]
    assert "previous_token0.90" in Seen(atlas.head(*LOOKS)._repr_html_()).text.replace("\n", "").replace(
        " ", ""
    )


def test_the_q_shown_is_of_the_effect_that_is_called(tmp_path: Path) -> None:
    atlas = full_atlas(tmp_path / "atlas.zarr")
    rows = atlas.sel(called=True)
    row = rows[~rows["implements"]].iloc[0]
    assert row["q"] > 0.5 > row["suppression_q"]
    own = atlas.head(row["layer"], row["head"])._repr_html_()
    assert f"<td>{escape(p_value(row['suppression_q'], '').lstrip(' ='))}</td>" in own


TABLE = ("table", "thead", "tbody", "tr", "th", "td")
