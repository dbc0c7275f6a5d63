"""The result of a map: labelled ranks, and the scores read from them.

>>> atlas = Atlas.open("out")                          # doctest: +SKIP
>>> atlas.top("country_to_capital")                    # doctest: +SKIP
>>> atlas.at(k=5, tau=0.3).categories()                # doctest: +SKIP
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from headatlas.addresses import output_path
from headatlas.atlas.behaviours import stored_behaviours
from headatlas.atlas.display import SHOWN, HeadTable, MadeAbove, atlas_html
from headatlas.atlas.labels import stored_labels
from headatlas.atlas.relation_scores import (
    SIGNS,
    STORED,
    Floats,
    RelationScores,
    score_relation,
    store_scores,
    stored_scores,
)
from headatlas.atlas.salience import salience_frames
from headatlas.atlas.store import (
    ATLAS_NAME,
    Place,
    atlas_path,
    copy_store,
    damaged,
    load_arrays,
    read_array,
    read_store,
)
from headatlas.errors import HeadatlasError
from headatlas.options import Thresholds, is_whole
from headatlas.relations.relation import CORE_CATEGORIES
from headatlas.relations.selection import match_relation
from headatlas.scoring.scores import false_discovery_rates, source_hits, wilson

if TYPE_CHECKING:
    from headatlas.atlas.cards import Card
    from headatlas.atlas.evidence import Evidence

_MEASURED = ("_behaviours", "_labels", "_salience")
"""Cached tables that no threshold changes."""


class Atlas:
    """A map of one model: the scores of every head on every relation asked.

    An atlas is immutable; :meth:`at` gives another reading of the same ranks. Every number that can be
    reached is one at :attr:`thresholds`, except :attr:`dataset`, which holds ranks and no scores.

    ``atlas[23, 4]`` are the rows of one head, best first.

    Attributes:
        dataset: Ranks and axes, an xarray dataset; arrays are read from disk when used.
        provenance: What was mapped, how, with which versions.
        thresholds: The k, τ, q and criterion it is read with.
        place: The ``.zarr`` folder, or its address with all that it needs; None for an atlas in memory.
    """

    def __init__(
        self,
        dataset: xr.Dataset,
        provenance: dict[str, Any],
        thresholds: Thresholds,
        place: Place | None = None,
    ) -> None:
        thresholds.check(int(provenance["ceiling"]))
        scores = [name for name in STORED if name in dataset.variables]
        self._stored = dataset[scores]
        self.dataset = dataset.drop_vars(scores)
        self.dataset.attrs = {
            name: value for name, value in dataset.attrs.items() if not name.startswith("scores_")
        }
        self.dataset.encoding = dict(dataset.encoding)
        self.provenance = provenance
        self.thresholds = thresholds
        self.place = place

    @classmethod
    def open(cls, path: str | Path, **changes: Any) -> Atlas:
        """Open an atlas from its output folder or its ``.zarr`` folder, or from the address of one.

        Args:
            path: Where it is.
            changes: As for :meth:`at`: numbers that replace the stored ones.

        Raises:
            HeadatlasError: There is no (complete) atlas, or a number is out of range.
        """
        where = atlas_path(path)
        dataset, provenance = read_store(where)
        try:
            thresholds = Thresholds(**provenance["thresholds"])
        except TypeError as error:
            raise HeadatlasError(
                f"{where}: its thresholds cannot be read ({error}); use the headatlas version that made it."
            ) from error
        atlas = cls(dataset, provenance, thresholds, where)
        return atlas.at(**changes) if changes else atlas

    def at(self, thresholds: Thresholds | str | None = None, **changes: Any) -> Atlas:
        """Read the ranks with other thresholds; nothing is mapped again.

        Args:
            thresholds: In place of this atlas's; or the name of a preset, such as ``"maps-paper"``.
            changes: ``k``, ``k_copy``, ``tau``, ``q_max`` and ``criterion``; None leaves one as it is.

        Raises:
            HeadatlasError: k is above the ceiling, a number is out of range, or there is no such name.
        """
        if isinstance(thresholds, str):
            thresholds = Thresholds.preset(thresholds)
        new = (thresholds or self.thresholds).changed(**changes)
        new.check(int(self.provenance["ceiling"]))
        kept: tuple[str, ...] = ("dataset", "_stored", "provenance", "place", "layers_done", *_MEASURED)
        if (new.k, new.k_copy) == (self.thresholds.k, self.thresholds.k_copy):
            kept += ("relation_scores", "_q")  # they depend on k alone
        other = object.__new__(Atlas)
        other.__dict__ = {name: self.__dict__[name] for name in kept if name in self.__dict__}
        other.thresholds = new
        return other

    def load(self) -> Atlas:
        """A copy in memory that needs no files; it has no evidence."""
        scores = self.relation_scores
        other = Atlas(load_arrays(self.dataset), self.provenance, self.thresholds)
        other.__dict__["relation_scores"] = scores
        return other

    def save(self, path: str | Path) -> Path:
        """Write the atlas, with its evidence, into a folder; commands and :meth:`open` then read it there.

        Args:
            path: An output folder; the atlas becomes ``path/atlas.zarr``.

        Returns:
            The ``.zarr`` folder.

        Raises:
            HeadatlasError: There is an atlas already, or the folder cannot be written.
        """
        where = output_path(path) / ATLAS_NAME
        copy_store(self.dataset, self.provenance, where, self.place)
        saved = Atlas(*read_store(where), self.thresholds, where)
        if self.place is None:  # of a folder, a job may have added layers since
            saved.__dict__["relation_scores"] = self.relation_scores
        store_scores(saved)
        return where

    # What was mapped ------------------------------------------------------------------------------

    @property
    def model_name(self) -> str:
        return str(self.provenance["model"]["name"])

    @property
    def path(self) -> Path | None:
        """The ``.zarr`` folder; None for an atlas in memory or at an address."""
        return self.place if isinstance(self.place, Path) else None

    @property
    def folder(self) -> Path:
        """The output folder, where figures and page lie beside the atlas; ``DIR`` for one without."""
        if self.path is None:
            return Path("DIR")
        return self.path.parent

    @property
    def lens(self) -> str:
        return str(self.provenance["lens"]["name"])

    @property
    def n_layers(self) -> int:
        return int(self.dataset.sizes["layer"])

    @property
    def n_heads(self) -> int:
        return int(self.dataset.sizes["head"])

    @cached_property
    def layers_done(self) -> NDArray[np.bool_]:
        """[n_layers] which layers have been mapped."""
        return np.asarray(read_array(self.dataset, "layer_done")).astype(bool)

    @property
    def layers_without_heads(self) -> tuple[int, ...]:
        """Layers of a hybrid model that have no attention heads; they are never mapped."""
        there = self.provenance.get("model", {}).get("layers_with_heads")
        return () if there is None else tuple(sorted(set(range(self.n_layers)) - set(there)))

    @cached_property
    def relations(self) -> pd.DataFrame:
        """One row per relation, in atlas order.

        Columns: relation, title, category, is_copying, k, n_pairs, n_sources, n_targets, left_out (why, or
        empty), dropped (reason → sources that could not be used), subcategory (or the category again).
        """
        names = ["relation", "title", "category", "copying", "n_pairs", "n_sources", "n_targets", "left_out"]
        names += ["dropped", "subcategory"]
        frame = pd.DataFrame({name: read_array(self.dataset, name).tolist() for name in names})
        frame.insert(4, "k", [self.thresholds.k_for(copying) for copying in frame["copying"]])
        try:
            dropped: list[Any] = [dict(json.loads(text)) for text in frame["dropped"]]
        except (RecursionError, TypeError, ValueError) as error:
            raise damaged(self.dataset, "dropped", error) from error
        frame["dropped"] = dropped
        return frame.rename(columns={"copying": "is_copying"})

    @cached_property
    def included(self) -> pd.DataFrame:
        """The rows of :attr:`relations` that are scored."""
        return self.relations[self.relations["left_out"] == ""]

    @property
    def left_out(self) -> dict[str, str]:
        """Relations that are not scored, with the reason."""
        rows = self.relations[self.relations["left_out"] != ""]
        return dict(zip(rows["relation"], rows["left_out"], strict=True))

    @cached_property
    def category_names(self) -> tuple[str, ...]:
        """Categories of the relations of this atlas: the paper's four in their order, then the user's."""
        present = list(dict.fromkeys(self.relations["category"]))
        core = [name for name in CORE_CATEGORIES if name in present]
        return tuple(core + sorted(name for name in present if name not in core))

    # Scores ---------------------------------------------------------------------------------------

    @cached_property
    def relation_scores(self) -> dict[str, RelationScores]:
        """Scores, control and calibration of every relation that is in, by name; read if they are stored."""
        included = self.included
        names = dict(zip(included["relation"], included.index.tolist(), strict=True))
        stored = stored_scores(self._stored, self.thresholds, self.layers_done, names)
        if stored is not None:
            return stored
        return {
            name: score_relation(self.dataset, at, k)
            for (name, at), k in zip(names.items(), included["k"], strict=True)
        }

    @cached_property
    def scores(self) -> xr.DataArray:
        """[sign, layer, head, relation] float64 scores; NaN in layers that are not mapped.

        ``atlas.scores.sel(sign="promotion", relation="country_to_capital")`` is [layer, head]. Relations that
        were left out are not there; ``category`` is a coordinate along ``relation``.
        """
        return xr.DataArray(
            self._along_relations(lambda each, sign: each.of(sign)[0]),
            dims=("sign", "layer", "head", "relation"),
            coords={
                "sign": list(SIGNS),
                "layer": np.arange(self.n_layers),
                "head": np.arange(self.n_heads),
                "relation": list(self.relation_scores),
                "category": ("relation", self.included["category"].tolist()),
            },
            name="score",
            attrs={"model": self.model_name, "lens": self.lens, "thresholds": self.thresholds.describe()},
        )

    def _along_relations(self, of: Callable[[RelationScores, str], Floats]) -> Floats:
        """[sign, layer, head, relation], from [layer, head] of each relation and sign."""
        values = [[of(each, sign) for each in self.relation_scores.values()] for sign in SIGNS]
        shape = (len(SIGNS), len(self.relation_scores), self.n_layers, self.n_heads)
        return np.moveaxis(np.reshape(np.array(values, dtype=np.float64), shape), 1, -1)

    @cached_property
    def p(self) -> xr.DataArray:
        """[sign, layer, head, relation] p beside :attr:`scores`, under the reassignment null."""
        return self.scores.copy(data=self._along_relations(lambda each, sign: each.of(sign)[1].p)).rename("p")

    @cached_property
    def q(self) -> xr.DataArray:
        """[sign, layer, head, relation] Benjamini–Hochberg's q over all cells of both signs together."""
        return self.scores.copy(data=false_discovery_rates(self.p.values)).rename("q")

    @cached_property
    def calls(self) -> xr.DataArray:
        """[sign, layer, head, relation] whether a head implements or suppresses, beside :attr:`scores`."""
        called = meets_criterion(self.thresholds, self.scores.values, self.q.values)
        return self.scores.copy(data=called).rename("called")

    @cached_property
    def evidence(self) -> Evidence:
        """Stored dynamic scores and ablations; false if there are none. What is damaged costs a warning."""
        from headatlas.atlas.evidence import Evidence

        found = Evidence.of(self)
        for why in found.damaged:
            warnings.warn(why, stacklevel=3)  # over functools to whoever asked
        return found

    def forget_evidence(self) -> None:
        """Read the evidence from disk again when it is next asked for: some has been added."""
        for name in (*_MEASURED, "evidence", "_table"):
            self.__dict__.pop(name, None)

    def table(self) -> pd.DataFrame:
        """One row per mapped head × scored relation, in the order of layers and heads.

        Columns: layer, head, relation, score (promotion) and its q, suppression and suppression_q, added
        (share of sources that the head hits and the state does not), implements and suppresses; then
        category, low and high (Wilson 95 %), chance, lift, p; suppression_low … suppression_p; control (score
        of the state itself at that layer), n_sources, called (by either sign). chance and lift are NaN below
        the calibration floor. With evidence, the columns of ``headatlas.atlas.evidence.COLUMNS`` follow.
        """
        return self._table.copy()

    @cached_property
    def _table(self) -> pd.DataFrame:
        if not self.evidence:
            return HeadTable(self.without_evidence)
        keys = ["layer", "head", "relation"]
        return HeadTable(self.without_evidence.merge(self.evidence.table, on=keys, how="left"))

    @cached_property
    def without_evidence(self) -> pd.DataFrame:
        """:meth:`table` without the columns of evidence."""
        included, found = self.included, list(self.relation_scores.values())
        if not found:
            return pd.DataFrame(columns=list(TABLE_COLUMNS)).astype(dict.fromkeys(_BOOLEANS, bool))
        names = ("relation", "category", "n_sources")
        named = {name: included[name].to_numpy()[:, None, None] for name in names}
        promotes, suppresses = np.moveaxis(self.calls.values, -1, 1)
        # Of each column [relation, layer, head], or what that repeats.
        columns: dict[str, NDArray[Any]] = {
            **named,
            "layer": np.arange(self.n_layers)[:, None],
            "head": np.arange(self.n_heads),
            "control": np.array([each.control[:, None] for each in found]),
            "added": np.array([each.added for each in found]),
            "implements": promotes,
            "suppresses": suppresses,
            "called": promotes | suppresses,
        }
        for at, (name, prefix) in enumerate((("score", ""), ("suppression", "suppression_"))):
            score, q = (np.moveaxis(values[at], -1, 0) for values in (self.scores.values, self.q.values))
            nulls, n = [each.of(SIGNS[at])[1] for each in found], named["n_sources"]
            chance, p = np.array([null.chance for null in nulls]), np.array([null.p for null in nulls])
            low, high = wilson(np.nan_to_num(score * n).round().astype(int), n)
            with np.errstate(divide="ignore", invalid="ignore"):
                lift = np.where(chance > 0, score / chance, np.nan)
            numbers = {"low": low, "high": high, "chance": chance, "lift": lift, "p": p, "q": q}
            columns |= {name: score, **{f"{prefix}{each}": values for each, values in numbers.items()}}
        shape = (len(found), self.n_layers, self.n_heads)
        rows = {name: np.broadcast_to(columns[name], shape)[:, self.layers_done] for name in TABLE_COLUMNS}
        return pd.DataFrame({name: values.ravel() for name, values in rows.items()})

    def behaviours(self) -> pd.DataFrame:
        """Attention of heads as :func:`headatlas.behaviour` measured it on the shipped texts.

        One row per behaviour, layer and head: layer, head, behaviour, value, expected, low, high, p, q,
        called. No row where that has not been measured; ``attrs["caption"]`` where it has.
        """
        return self._behaviours.copy()

    @cached_property
    def _behaviours(self) -> pd.DataFrame:
        return stored_behaviours(self.place)

    def labels(self) -> pd.DataFrame:
        """Labels of heads that are stored in this atlas: :func:`headatlas.label` makes them.

        One row per head and author, one more where attention says what a head does: layer, head, label,
        support, score, chance, se, author, kind; ``attrs["caption"]`` says what the numbers are not.
        """
        return self._labels.copy()

    @cached_property
    def _labels(self) -> pd.DataFrame:
        return stored_labels(self.place)

    def salience(self) -> pd.DataFrame:
        """Source tokens of largest gain, and what each head writes for them (:func:`headatlas.salience`).

        One row per head and source: layer, head, order (0 … 29), source_id, source, gain, promoted_ids,
        promoted, suppressed_ids, suppressed (lists of five). Texts of tokens are unescaped. No row where that
        has not been computed; ``attrs["caption"]`` where it has.
        """
        return self._salience[0].copy()

    def spectrum(self) -> pd.DataFrame:
        """Spectrum of each head's W_V·W_O, computed with its salience.

        One row per head: layer, head, effective_rank, copying (−1 … 1), norm_share (of the layer's squared
        norm), singular_values, directions (a list of dicts; see ``headatlas.atlas.salience``).
        """
        return self._salience[1].copy()

    def explained(self) -> pd.DataFrame:
        """Share of each head's salience that known relations account for, and where the rest comes from.

        One row per head: layer, head, explained (0 … 1), relations (list of dicts: relation, n_sources),
        rest (list of dicts: field, n_words, q).
        """
        return self._salience[2].copy()

    @cached_property
    def _salience(self) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        return salience_frames(self.place)

    # Asking ---------------------------------------------------------------------------------------

    def sel(
        self,
        *,
        layer: int | None = None,
        head: int | None = None,
        relation: str | Sequence[str] | None = None,
        category: str | None = None,
        called: bool = False,
    ) -> pd.DataFrame:
        """Rows of :meth:`table`, best first: those of a layer, a head, a relation, a category.

        Args:
            layer, head: Both from 0.
            relation: Its name or title, or several.
            category: Its name.
            called: Only heads that implement or suppress.

        Raises:
            HeadatlasError: No such layer, head, relation or category in this atlas.
        """
        frame = self._table
        if relation is not None:
            names = [relation] if isinstance(relation, str) else relation
            frame = frame[frame["relation"].isin([self.known(name) for name in names])]
        if category is not None:
            known = {name.lower(): name for name in self.category_names}
            if category.lower() not in known:
                there = ", ".join(known.values())
                raise HeadatlasError(f"this atlas has no category {category!r}; it has {there}.")
            frame = frame[frame["category"] == known[category.lower()]]
        for name, value, n in (("layer", layer, self.n_layers), ("head", head, self.n_heads)):
            if value is not None:
                if not is_whole(value):
                    raise HeadatlasError(f"`{name}` is {value!r}: give one {name}, a whole number from 0.")
                if not 0 <= value < n:
                    raise HeadatlasError(
                        f"there is no {name} {value}: {self.model_name} has {name}s 0 to {n - 1}."
                    )
                frame = frame[frame[name] == value]
        if called:
            frame = frame[frame["called"]]
        best = frame[["score", "suppression"]].max(axis=1)
        order = np.lexsort((frame["head"], frame["layer"], -best.to_numpy()))
        return frame.iloc[order].reset_index(drop=True)

    def __getitem__(self, head: tuple[int, int]) -> pd.DataFrame:
        """The rows of one head, ``atlas[layer, head]``, best first."""
        if not isinstance(head, tuple) or len(head) != 2:
            raise TypeError("write atlas[layer, head], for example atlas[23, 4]")
        return self.sel(layer=head[0], head=head[1])

    def heads(
        self,
        relation: str | None = None,
        *,
        category: str | None = None,
        sign: Literal["promotion", "suppression"] = "promotion",
    ) -> list[tuple[int, int]]:
        """(layer, head) of the heads that implement a relation, best first, for one's own hooks.

        Args:
            relation: Its name or title; any relation by default.
            category: Relations of this category.
            sign: ``"suppression"`` for the heads that suppress it.

        Raises:
            HeadatlasError: No such relation or category in this atlas.
        """
        if sign not in SIGNS:
            raise HeadatlasError(f"`sign` is {sign!r}: use {' or '.join(SIGNS)}.")
        frame = self.sel(relation=relation, category=category)
        verb, value = ("implements", "score") if sign == "promotion" else ("suppresses", "suppression")
        frame = frame[frame[verb]].sort_values(value, ascending=False, kind="stable")
        rows = zip(frame["layer"].tolist(), frame["head"].tolist(), strict=True)
        return list(dict.fromkeys(rows))

    def top(self, relation: str, n: int = 10) -> pd.DataFrame:
        """The n heads that score highest on a relation (promotion), called or not.

        Raises:
            HeadatlasError: The relation is not in this atlas, or was left out (with the reason).
        """
        if not is_whole(n) or n < 0:
            raise HeadatlasError(f"`n` is {n!r}: give a whole number from 0.")
        frame = self._table[self._table["relation"] == self.known(relation)]
        return frame.sort_values("score", ascending=False, kind="stable").head(n).reset_index(drop=True)

    def pairs(self, layer: int, head: int, relation: str | Sequence[str]) -> pd.DataFrame:
        """List the words of a relation that a head gets right: one row per source and accepted target.

        Columns: source, target, rank (number of other tokens at least as high; missing at the ceiling and
        beyond), hit (rank below k), source_hit (any target of the source is hit), then the same of the state
        itself, without any head (control_rank, control_hit, control_source_hit), and of suppression
        (suppression_rank …). Scores are means over sources, not over rows:
        ``pairs.drop_duplicates("source")["source_hit"].mean()``. Pairs that the tokenizer cannot use are not
        there (see :attr:`relations`). Of several relations, a column ``relation`` comes first.

        Raises:
            HeadatlasError: No such head or relation, or the layer is not mapped.
        """
        self.sel(layer=layer, head=head)
        if not self.layers_done[layer]:
            raise HeadatlasError(f"layer {layer} is not mapped in this atlas.")
        if not isinstance(relation, str):
            names = dict.fromkeys(self.known(name) for name in relation)
            if not names:
                raise HeadatlasError("`relation` names nothing: give a relation or several.")
            by_name = {name: self.pairs(layer, head, name) for name in names}
            return pd.concat(by_name, names=["relation"]).reset_index(level=0).reset_index(drop=True)
        name = self.known(relation)
        at = self.relations.index[self.relations["relation"] == name][0]
        k = int(self.relations["k"][at])
        data = self.dataset
        usable = (read_array(data, "pair_relation") == at) & (read_array(data, "pair_source") >= 0)
        ranks = {
            "": read_array(data, "promotion_rank")[layer, head],
            "control_": read_array(data, "control_rank")[layer],
            "suppression_": read_array(data, "suppression_rank")[layer, head],
        }
        columns: dict[str, Any] = {word: read_array(data, word)[usable] for word in ("source", "target")}
        source, n_sources = read_array(data, "pair_source")[usable], int(read_array(data, "n_sources")[at])
        for prefix, all_ranks in ranks.items():
            rank = all_ranks[usable]
            columns[f"{prefix}rank"] = pd.array(rank, dtype="Int16")
            columns[f"{prefix}rank"][rank < 0] = pd.NA
            columns[f"{prefix}hit"] = (rank >= 0) & (rank < k)
            columns[f"{prefix}source_hit"] = source_hits(rank, source, n_sources, k)[source]
        return pd.DataFrame(columns)

    def head(self, layer: int, head: int) -> Card:
        """All that this atlas says about one head: relations, attention, similar heads, statements.

        Raises:
            HeadatlasError: No such layer or head in this atlas.
        """
        from headatlas.atlas.cards import head_card

        return head_card(self, layer, head)

    def search(self, text: str) -> pd.DataFrame:
        """Heads of which something with this text is said: :func:`headatlas.atlas.cards.search`."""
        from headatlas.atlas.cards import search

        return search(self, text)

    def coverage(self) -> pd.DataFrame:
        """Which heads have a tested statement, as :func:`headatlas.atlas.cards.coverage` describes it."""
        from headatlas.atlas.cards import coverage

        return coverage(self)

    def known(self, relation: str) -> str:
        """The name of a scored relation, given by its name, in any case, by a part that no other name has, or
        by the title that figures print."""
        frame = self.relations
        names, titled = list(frame["relation"]), frame["relation"][frame["title"] == relation].tolist()
        exact = len(titled) == 1 and relation not in names
        name = str(titled[0]) if exact else match_relation(relation, names)
        if name in self.left_out:
            raise HeadatlasError(f"relation {name!r} was left out of this atlas: {self.left_out[name]}.")
        return name

    def categories(self) -> pd.DataFrame:
        """One row per mapped head: layer, head, n_categories, which (tuple of categories, in panel order),
        relations (tuple of the relations it promotes or suppresses)."""
        return self._categories.copy()

    @cached_property
    def _categories(self) -> pd.DataFrame:
        frame = self.without_evidence
        called = frame[frame["called"]]
        by_head = called.groupby(["layer", "head"], sort=False)
        relations = {key: tuple(group["relation"]) for key, group in by_head}
        found = {key: set(group["category"]) for key, group in by_head}
        rows = []
        for layer in np.flatnonzero(self.layers_done):
            for head in range(self.n_heads):
                key = (int(layer), head)
                which = tuple(name for name in self.category_names if name in found.get(key, ()))
                rows.append((*key, len(which), which, relations.get(key, ())))
        return pd.DataFrame(rows, columns=["layer", "head", "n_categories", "which", "relations"])

    # Showing --------------------------------------------------------------------------------------

    def caption(self) -> str:
        """The line that belongs under every figure and table of this atlas."""
        parts = [self.model_name, f"lens {self.lens}", self.thresholds.describe()]
        headless = self.layers_without_heads
        if headless:
            parts.append(f"{len(headless)} of {self.n_layers} layers have no attention heads")
        missing = int((~self.layers_done).sum()) - len(headless)
        if missing:
            parts.append(f"{missing} of {self.n_layers} layers not mapped")
        if self.provenance.get("target_policy", "single") != "single":
            parts.append(f"targets: {self.provenance['target_policy']}")
        if self.provenance.get("sources") is not None:
            parts.append(f"at most {self.provenance['sources']} sources a relation")
        if self.left_out:
            titles = titles_of(self)
            parts.append("left out: " + ", ".join(titles[name] for name in self.left_out))
        return "; ".join(parts)

    plot = MadeAbove(
        "headatlas.figures:Plots",
        "Figures of this atlas: ``atlas.plot(kind=…)``, ``atlas.plot.categories()`` …",
    )
    recipe = MadeAbove("headatlas.recipes:bound", "Python that acts on heads: :func:`headatlas.recipe`.")
    explore = MadeAbove("headatlas.report:explore_atlas", "The page, in a notebook: ``atlas.explore()``.")

    def __repr__(self) -> str:
        mapped = int(self.layers_done.sum())
        return (
            f"<Atlas of {self.model_name}: {mapped} of {self.n_layers} layers × {self.n_heads} heads, "
            f"{len(self.included)} relations, lens {self.lens}, {self.thresholds.describe()}>"
        )

    def _repr_html_(self) -> str:
        return atlas_html(self)


open_atlas = Atlas.open


def atlas_of(given: Atlas | str | Path) -> Atlas:
    """An atlas, or the one at a path or address."""
    if not isinstance(given, Atlas | str | Path):
        raise HeadatlasError(
            f"this is no atlas but of the type {type(given).__name__}: give one, or its path."
        )
    return given if isinstance(given, Atlas) else Atlas.open(given)


def meets_criterion(thresholds: Thresholds, score: Floats, q: Floats) -> NDArray[np.bool_]:
    """Whether heads are called, by their scores and q of one sign: the criterion, written once."""
    enough = score >= thresholds.tau
    return enough & (q <= thresholds.q_max) if thresholds.criterion == "calibrated" else enough


def titles_of(atlas: Atlas) -> dict[str, str]:
    """Relation → its title, as people read it."""
    return dict(zip(atlas.relations["relation"], atlas.relations["title"], strict=True))


def concat(atlases: Sequence[Atlas | str | Path]) -> pd.DataFrame:
    """The tables of several atlases as one, with model, lens and thresholds on every row.

    Raises:
        HeadatlasError: No atlas was given.
    """
    if not atlases:
        raise HeadatlasError("`atlases` is empty: give two or more.")
    return pd.concat([with_thresholds(atlas_of(each)) for each in atlases], ignore_index=True)


def with_thresholds(atlas: Atlas) -> pd.DataFrame:
    """:meth:`Atlas.table` with the numbers it was read with on every row, so that tables can be joined.

    Added columns: model, lens, k (that of the relation), tau, q_max, criterion.
    """
    frame = atlas.table()
    k = dict(zip(atlas.relations["relation"], atlas.relations["k"], strict=True))
    named = {name: value for name, value in asdict(atlas.thresholds).items() if not name.startswith("k")}
    return frame.assign(
        model=atlas.model_name, lens=atlas.lens, k=frame["relation"].map(k).astype("int64"), **named
    )


_BOOLEANS = ("implements", "suppresses", "called")
TABLE_COLUMNS = (
    *SHOWN,
    *("category", "low", "high", "chance", "lift", "p"),
    *(f"suppression_{name}" for name in ("low", "high", "chance", "lift", "p")),
    *("control", "n_sources", "called"),
)
