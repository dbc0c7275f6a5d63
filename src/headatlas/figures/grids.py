"""The plotted numbers as plain arrays and tables: no drawing here.

Arrays are [n_layers, n_heads]. A layer that is not mapped is False in ``mapped`` and holds no numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headatlas.errors import HeadatlasError
from headatlas.options import Panels
from headatlas.relations.selection import candidates, near_names

if TYPE_CHECKING:
    from headatlas.atlas import Atlas

T = TypeVar("T")

ALL = "All Categories"

Which = str | Sequence[str] | None
"""Panels or relations by name; all of them for None."""

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CategoryGrid:
    """The categories of every head, as arrays; a panel is a category, a subcategory or a relation."""

    count: Ints  # [n_layers, n_heads] number of categories of each head; 0 where none or not mapped
    member: dict[str, Bools]  # panel, in order → [n_layers, n_heads] whether the head belongs to it
    mapped: Bools  # [n_layers] which layers have been mapped
    control: dict[str, Floats]
    """Panel → [n_layers] mean score of the source states alone over the panel's relations; NaN where not
    mapped or where no relation is scored."""
    n_relations: dict[str, int]  # panel → number of its relations that are scored
    n_categories: int  # how many there are, whatever the panels show

    @property
    def panels(self) -> tuple[str, ...]:
        """Panels in order: All Categories, then each other."""
        return (ALL, *self.member)

    @property
    def n_levels(self) -> int:
        """The most categories a head could belong to."""
        return max(1, self.n_categories)

    def shown(self, panel: str) -> Ints:
        """[n_layers, n_heads] the level each cell of a panel is coloured by; 0 is blank."""
        return self.count if panel == ALL else np.where(self.member[panel], self.count, 0)


def relation_panels(atlas: Atlas, panels: Panels = "category") -> dict[str, str]:
    """Relation → the title of the panel that it belongs to; categories keep their order.

    A subcategory that two categories have is two panels, named with the category too.
    """
    frame = _by_category(atlas, atlas.relations)
    if panels == "relation":
        titles = frame["title"].where(~frame["title"].duplicated(keep=False), frame["relation"])
    elif panels == "subcategory":
        shared = frame.groupby("subcategory")["category"].transform("nunique") > 1
        titles = frame["subcategory"].mask(shared, frame["category"] + ": " + frame["subcategory"])
    else:
        titles = frame["category"]
    return dict(zip(frame["relation"], titles, strict=True))


def _by_category(atlas: Atlas, relations: pd.DataFrame) -> pd.DataFrame:
    """Rows of relations, category by category."""
    order = {name: at for at, name in enumerate(atlas.category_names)}
    return relations.sort_values("category", key=lambda names: names.map(order), kind="stable")


def category_grid(atlas: Atlas, panels: Panels = "category") -> CategoryGrid:
    """The arrays behind the categories and layers figures."""
    shape = (atlas.n_layers, atlas.n_heads)
    panel_of = relation_panels(atlas, panels)
    member = {panel: np.zeros(shape, dtype=bool) for panel in dict.fromkeys(panel_of.values())}
    count = np.zeros(shape, dtype=np.int64)
    frame = atlas.categories()
    columns = (frame[name] for name in ("layer", "head", "n_categories", "relations"))
    for layer, head, n_categories, relations in zip(*columns, strict=True):
        count[layer, head] = n_categories
        for name in relations:
            member[panel_of[name]][layer, head] = True
    scored = {
        panel: [name for name in atlas.included["relation"] if panel_of[name] == panel] for panel in member
    }
    return CategoryGrid(
        count=count,
        member=member,
        mapped=atlas.layers_done,
        control={ALL: _control(atlas)} | {panel: _control(atlas, names) for panel, names in scored.items()},
        n_relations={ALL: len(atlas.included)} | {panel: len(names) for panel, names in scored.items()},
        n_categories=len(atlas.category_names),
    )


def grid_of_table(table: pd.DataFrame, shape: tuple[int, int] | None = None) -> CategoryGrid:
    """The arrays behind the categories figure, from a table of layer, head and category; no control."""
    missing = [name for name in ("layer", "head", "category") if name not in table]
    if missing:
        there = ", ".join(str(name) for name in table.columns) or "none"
        raise HeadatlasError(f"the table lacks {', '.join(missing)}; its columns are {there}.")
    try:
        at = [table[name].to_numpy(dtype=np.int64) for name in ("layer", "head")]
        whole = all((each == table[name]).all() for each, name in zip(at, ("layer", "head"), strict=True))
    except (TypeError, ValueError):
        whole = False
    size = tuple(int(each.max(initial=0)) + 1 for each in at) if whole and shape is None else shape
    if (
        not whole
        or size is None
        or any((each < 0).any() or (each >= n).any() for each, n in zip(at, size, strict=True))
    ):
        of = "" if shape is None else f" of {shape[0]} layers of {shape[1]} heads"
        raise HeadatlasError(f"the table names a layer or head that is no whole number{of}, counted from 0.")
    names = table["category"].astype(str).to_numpy()
    member = {name: np.zeros(size, dtype=bool) for name in dict.fromkeys(names)}
    for layer, head, name in zip(*at, names, strict=True):
        member[name][layer, head] = True
    count = np.asarray(sum(member.values(), start=np.zeros(size, dtype=np.int64)), dtype=np.int64)
    none = np.full(size[0], np.nan)
    return CategoryGrid(
        count=count,
        member=member,
        mapped=np.ones(size[0], dtype=bool),
        control=dict.fromkeys((ALL, *member), none),
        n_relations=dict.fromkeys((ALL, *member), 1),
        n_categories=len(member),
    )


def _control(atlas: Atlas, relations: Sequence[str] | None = None) -> Floats:
    table = atlas.table()
    if relations is not None:
        table = table[table["relation"].isin(relations)]
    mean = table.groupby("layer")["control"].mean()
    return mean.reindex(range(atlas.n_layers)).to_numpy(dtype=np.float64)


@dataclass(frozen=True)
class RelationGrid:
    """One relation's scores, arrays [n_layers, n_heads]; NaN where not mapped."""

    relation: str
    title: str
    category: str
    score: Floats  # of promotion
    suppression: Floats
    implements: Bools  # whether the head is called, under the atlas's criterion
    suppresses: Bools
    marks: dict[str, Bools]
    """Evidence → heads of which it says so: confirmed by ``ablation``, with ``context`` alone, or
    ``refuted``; False where there is none."""

    @property
    def called(self) -> Bools:
        """Whether the head implements or suppresses the relation."""
        return self.implements | self.suppresses

    @property
    def shown(self) -> Floats:
        """The plotted number: the promotion score, or minus the suppression score where that is larger."""
        return np.where(self.suppression > self.score, -self.suppression, self.score)


def relation_grids(atlas: Atlas) -> list[RelationGrid]:
    """The scored relations, category by category in panel order."""
    grids = []
    for row in _by_category(atlas, atlas.included).to_dict("records"):
        name, scores = row["relation"], atlas.relation_scores[row["relation"]]
        implements, suppresses = atlas.calls.sel(relation=name).values
        shown = scores.score, scores.suppression, implements, suppresses, _marks(atlas, name)
        grids.append(RelationGrid(name, row["title"], row["category"], *shown))
    return grids


def _marks(atlas: Atlas, relation: str) -> dict[str, Bools]:
    """:attr:`RelationGrid.marks` of a relation."""
    by_ablation, with_context, asked = np.zeros((3, atlas.n_layers, atlas.n_heads), dtype=bool)
    if atlas.evidence:
        rows = atlas.evidence.table
        rows = rows[rows["relation"] == relation]
        at = rows["layer"].to_numpy(dtype=int), rows["head"].to_numpy(dtype=int)
        for mask, column in ((by_ablation, "by_ablation"), (with_context, "with_context")):
            said = rows[f"confirmed_{column}"]
            mask[at] = said.eq(True).fillna(False)
            asked[at] |= said.notna()
    context = with_context & ~by_ablation
    return {"ablation": by_ablation, "context": context, "refuted": asked & ~by_ablation & ~with_context}


def choose(which: Which, known: Sequence[str], what: str) -> list[str]:
    """The names meant by ``which``, as :func:`choose_by` reads them, in the order given; all for None."""
    return list(
        dict.fromkeys(each for part in _meant(which, known, lambda name: (name,), what) for each in part)
    )


def choose_by(which: Which, items: Sequence[T], names: Callable[[T], Sequence[str]], what: str) -> list[T]:
    """The items that go by one of the names meant by ``which``, in their own order; all of them for None.

    A name is meant in any case, or by a part that no other item has. The refusal says which are near.
    """
    asked = [id(each) for part in _meant(which, items, names, what) for each in part]
    return [item for item in items if id(item) in asked]


def _meant(
    which: Which, items: Sequence[T], names: Callable[[T], Sequence[str]], what: str
) -> Iterator[Sequence[T]]:
    """The items that each name in ``which`` means: one, or all that go by that name."""
    asked = [which] if isinstance(which, str) else which
    if asked is None:
        yield items
        return
    known = list(dict.fromkeys(name for each in zip(*map(names, items), strict=True) for name in each))
    if not asked:
        raise HeadatlasError(f"nothing asked for as {what}; choose from {', '.join(known)}.")
    for name in asked:
        meant = candidates(name, known)
        found = [item for item in items if not set(meant).isdisjoint(names(item))]
        if len(meant) != 1 and len(found) != 1:
            near = [names(item)[0] for item in found] or near_names(name, known)
            others = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(known)}."
            raise HeadatlasError(f"this atlas has no {what} {name!r}; {others}")
        yield found


def needed(found: T | None, command: str) -> T:
    """Refuse to go on with nothing: a HeadatlasError names the command that measures it."""
    if not found:
        raise HeadatlasError(
            f"this atlas holds nothing that this figure shows; run `headatlas {command}` first."
        )
    return found


# Tables, to be written beside a figure ---------------------------------------------------------------


def categories_table(atlas: Atlas, panels: Panels = "category") -> pd.DataFrame:
    """One row per mapped head: layer, head, n_categories (its colour), one 0/1 column per panel, and
    relations, the relations it promotes or suppresses, joined with ``;``."""
    frame = atlas.categories()
    table = frame[["layer", "head", "n_categories"]].astype(int)
    for name, member in category_grid(atlas, panels).member.items():
        table[name] = member[frame["layer"], frame["head"]].astype(int)
    table["relations"] = np.array([";".join(names) for names in frame["relations"]], dtype=object)
    return table


def relations_table(atlas: Atlas) -> pd.DataFrame:
    """One row per mapped head × scored relation: layer, head, relation, category, score, suppression, shown
    (the plotted number: the score, or minus the suppression where that is larger), implements, suppresses."""
    names = ["layer", "head", "relation", "category", "score", "suppression", "implements", "suppresses"]
    table = atlas.table()[names].astype({"implements": bool, "suppresses": bool})
    shown = table["score"].mask(table["suppression"] > table["score"], -table["suppression"])
    table.insert(6, "shown", shown)
    return table


def layers_table(atlas: Atlas) -> pd.DataFrame:
    """One row per panel and mapped layer: panel, layer, n_heads, heads (how many belong to the panel), share,
    share_1 … share_n (of all heads of the layer: those of the panel with so many categories), control (mean
    score of the states alone over the panel's relations)."""
    grid = category_grid(atlas)
    layers = np.flatnonzero(grid.mapped)
    parts = []
    for panel in grid.panels:
        shown = grid.shown(panel)[layers]
        columns: dict[str, Any] = {"panel": panel, "layer": layers, "n_heads": shown.shape[1]}
        columns |= {"heads": (shown > 0).sum(axis=1), "share": (shown > 0).mean(axis=1)}
        for level in range(1, grid.n_levels + 1):
            columns[f"share_{level}"] = (shown == level).mean(axis=1)
        parts.append(pd.DataFrame(columns | {"control": grid.control[panel][layers]}))
    return pd.concat(parts, ignore_index=True)
