"""How tables, an atlas and a card show themselves in a notebook, and what they take from folders above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pandas as pd

from headatlas.scoring.scores import p_value
from headatlas.showing import safe_text, tokens_shown

if TYPE_CHECKING:
    from headatlas.atlas.atlas import Atlas
    from headatlas.atlas.cards import Card

SHOWN = (
    *("layer", "head", "relation", "score", "q", "suppression", "suppression_q"),
    *("added", "implements", "suppresses"),
)
"""Columns of a table of heads that are printed."""
N_BEST = 8
"""Rows of each table of an atlas or a card."""


class HeadTable(pd.DataFrame):
    """A DataFrame whose printed form shows the columns one looks for; pandas would show the outer ones.

    Where the option ``display.max_columns`` has room for all of them, all are shown, as pandas does.
    """

    @property
    def _constructor(self) -> type[HeadTable]:
        return HeadTable

    def __repr__(self) -> str:
        shown, rest = self._parted()
        if not rest:
            return super().__repr__()
        rows = {"max_rows": pd.get_option("display.max_rows"), "min_rows": pd.get_option("display.min_rows")}
        floats = pd.get_option("display.float_format") or "{:.3g}".format
        text = pd.DataFrame(self)[shown].to_string(float_format=floats, **rows)
        return f"{text}\n{len(self)} rows; {len(rest)} more columns: {', '.join(rest)}"

    def _repr_html_(self) -> str | None:
        shown, rest = self._parted()
        frame: Any = pd.DataFrame(self)[shown]
        text: str | None = frame._repr_html_()
        more = f"<p>{len(rest)} more columns: {', '.join(rest)}</p>" if rest else ""
        return text if text is None else text + more

    def _parted(self) -> tuple[list[str], list[str]]:
        """The columns that are printed and the others; all of them where there is room, or where some of the
        usual are not there."""
        names, most = [str(name) for name in self.columns], pd.get_option("display.max_columns")
        if set(SHOWN) <= set(names) and most is not None and most < len(names):
            return list(SHOWN), [name for name in names if name not in SHOWN]
        return names, []


def called_in_words(row: Mapping[Any, Any]) -> str:
    """Verbs that a row of a table of heads is called by: ``implements``, ``suppresses``, both, none."""
    return ", ".join(verb for verb in ("implements", "suppresses") if row[verb])


class MadeAbove:
    """An attribute made by something of a folder above, which a string names and first use imports."""

    def __init__(self, target: str, doc: str) -> None:
        self._target = target
        self.__doc__ = doc

    def __get__(self, owner: Any, kind: type[Any]) -> Any:
        if owner is None:
            return self
        module, name = self._target.split(":")
        return getattr(import_module(module), name)(owner)


def atlas_html(atlas: Atlas) -> str:
    """Caption, coverage and figure of an atlas, and the best head of its strongest relations."""
    from headatlas.atlas.cards import coverage_sentence

    heads = atlas.categories()
    called = int((heads["n_categories"] > 0).sum())
    per_category = heads["which"].explode().value_counts()
    counts = ", ".join(f"{name} {int(per_category.get(name, 0))}" for name in atlas.category_names)
    best = atlas.sel(called=True).drop_duplicates("relation")
    lines = (f"{called} of {len(heads)} heads belong to a category: {counts}", coverage_sentence(atlas))
    return (
        f"<p><b>{_text(atlas.caption())}</b><br>{'<br>'.join(map(_text, lines))}</p>"
        f"{atlas.plot._repr_html_()}"
        + _table("Best head of the strongest relations", _headed(best), *_RELATION_COLUMNS)
    )


def card_html(card: Card) -> str:
    """A card: its statements, then a table of each kind that is stored; the rest with its command."""
    from headatlas.atlas.cards import CAVEAT, spectrum_sentence

    lines = "".join(f"<li>{_text(line)}</li>" for line in card.statements or ("no tested statement",))
    shared = ", ".join(f"{layer}.{head}" for layer, head in card.group)
    group = f"; shares its keys and values with {shared}" if shared else ""
    return (
        f"<p><b>Head {card.layer}.{card.head}</b>{group}<br>{_text(card.caption)}</p>"
        f"<ul>{lines}</ul><p>{_text(CAVEAT)}</p>"
        + _table("Relations", card.relations, *_RELATION_COLUMNS[1:])
        + _measured("Where it looks", card.behaviours, "behaviour", _LOOK_COLUMNS)
        + _measured("What it writes", _written(card.salient), "salience", _WRITTEN_COLUMNS)
        + (f"<p>{spectrum_sentence(card)}</p>" if card.spectrum else "")
        + _measured("Labels", card.labels, "label", _LABEL_COLUMNS)
        + _table("Heads like it", _headed(card.similar), "head", "similarity", "writes", "looks")
    )


_RELATION_COLUMNS = ("head", "relation", "score", "suppression", "q", "control", "added", "called")
_LOOK_COLUMNS = ("behaviour", "value", "expected", "low", "high", "q", "called")
_WRITTEN_COLUMNS = ("source", "gain", "promoted", "suppressed")
_LABEL_COLUMNS = ("label", "support", "score", "chance", "author")


def _measured(title: str, frame: pd.DataFrame | None, command: str, columns: Sequence[str]) -> str:
    if frame is None:
        return f"<p>{title}: not measured (<code>headatlas {command} DIR</code>)</p>"
    return _table(title, frame, *columns)


def _table(title: str, frame: pd.DataFrame, *columns: str) -> str:
    """The first rows under a title, with every text made safe; nothing where there are none."""
    if frame.empty:
        return ""
    shown = pd.DataFrame(frame).head(N_BEST)
    if "suppresses" in shown:  # the effect that is called, and its q
        shown["called"] = [called_in_words(row) for row in shown.to_dict("records")]
        shown["q"] = shown["q"].mask(shown["suppresses"] & ~shown["implements"], shown["suppression_q"])
    shown = shown[list(columns)]
    texts = [name for name in columns if shown[name].dtype.kind not in "biuf"]
    shown = shown.assign(**{name: shown[name].map(safe_text) for name in texts})
    if "called" in shown and "called" not in texts:
        shown["called"] = shown["called"].map({True: "called", False: ""})
    small: Any = {"q": lambda q: p_value(q, "").lstrip(" =")} if "q" in columns else None
    table = shown.to_html(index=False, border=0, na_rep="–", float_format="{:.2f}".format, formatters=small)
    more = f" (first {N_BEST} of {len(frame)})" if len(frame) > N_BEST else ""
    return f"<p>{title}{more}</p>{table}"


def _headed(frame: pd.DataFrame) -> pd.DataFrame:
    """Layer and head in one column, as heads are named: 23.4."""
    names = [f"{layer}.{head}" for layer, head in zip(frame["layer"], frame["head"], strict=True)]
    return pd.DataFrame(frame).assign(head=names)


def _written(salient: pd.DataFrame | None) -> pd.DataFrame | None:
    if salient is None:
        return None
    lists = {name: salient[name].map(tokens_shown) for name in ("promoted", "suppressed")}
    return salient.assign(source=[tokens_shown([each]) for each in salient["source"]], **lists)


def _text(text: str) -> str:
    return escape(safe_text(text))
