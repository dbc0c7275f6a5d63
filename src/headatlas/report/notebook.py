"""The page in a notebook: an output cell that holds it whole, in a frame of its own.

>>> atlas.explore()                                    # doctest: +SKIP
>>> atlas.head(23, 4).explore()                        # doctest: +SKIP
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from headatlas.atlas import Atlas
from headatlas.atlas.cards import Card
from headatlas.report.page import report_html
from headatlas.showing import safe_text

HEIGHT = 800


@dataclass(frozen=True)
class Explorer:
    """The page of an atlas as a notebook shows it; it needs no kernel and stays in saved notebooks.

    Attributes:
        page: The page, an HTML document.
        title: Of the frame, for screen readers.
        height: Of the frame, in pixels; its width is that of the cell.
    """

    page: str = field(repr=False)
    title: str
    height: int

    def _repr_html_(self) -> str:
        # Between apostrophes, of which the page has far fewer than quotes. The text inside is for viewers
        # that leave frames out, as they do in a notebook that is not trusted.
        srcdoc = self.page.replace("&", "&amp;").replace("'", "&#39;")
        title = html.escape(safe_text(self.title))
        return (
            f'<iframe title="{title}" sandbox="allow-scripts allow-downloads" '
            f"style=\"width:100%;height:{self.height}px;border:0\" srcdoc='{srcdoc}'>"
            f"{title}: shown when the notebook is trusted or its cells are run</iframe>"
        )


def explore_atlas(atlas: Atlas) -> Callable[..., Explorer]:
    """:func:`explore` of one atlas: what ``atlas.explore`` is."""
    return partial(explore, atlas)


def explore_head(card: Card) -> Callable[..., Explorer]:
    """:func:`explore` with one head's card open: what ``card.explore`` is."""
    return partial(explore, card.atlas, opens=f"head={card.layer}.{card.head}")


def explore(atlas: Atlas, *, height: int = HEIGHT, q_at: Sequence[int] = (), opens: str = "") -> Explorer:
    """Show the interactive page of an atlas in a notebook, as one output cell that loads nothing.

    Args:
        atlas: The atlas; the page starts with its thresholds.
        height: Of the cell, in pixels.
        q_at: Further k at which heads are calibrated, so that the page has q there.
        opens: The fragment of a page's address that says what is open and chosen: ``head=23.4&tau=0.3``.

    Raises:
        HeadatlasError: A k is above the ceiling.
    """
    page = report_html(atlas, q_at, opens=opens)
    return Explorer(page, f"{atlas.model_name}: what its attention heads do", int(height))
