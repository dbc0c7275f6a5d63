"""The result of a map: labelled ranks, and the scores read from them.

>>> atlas = Atlas.open("out")                          # doctest: +SKIP
>>> atlas.top("country_to_capital")                    # doctest: +SKIP
>>> atlas.with_settings(k=5, tau=0.3).categories()     # doctest: +SKIP
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from headatlas.atlas.calibrate import Calibration
from headatlas.atlas.derived import stored_scores
from headatlas.atlas.reading import SIGNS, Floats, RelationScores, score_relation
from headatlas.atlas.store import atlas_path, read_array, read_store
from headatlas.errors import HeadatlasError
from headatlas.relations.relation import CORE_CATEGORIES
from headatlas.scoring.scores import false_discovery_rates, wilson
from headatlas.scoring.settings import Criterion, Settings

if TYPE_CHECKING:
    from headatlas.atlas.evidence import Evidence
    from headatlas.figures import Plots


class Atlas:
    """What every head of one model does, as far as the relations asked can tell.

    An atlas is immutable; :meth:`with_settings` gives another reading of the same ranks.

    Attributes:
        dataset: The xarray dataset behind it; arrays are read from disk when used.
        provenance: What was mapped, how, with which versions.
        settings: The k, τ, q and criterion it is read with.
        path: The ``.zarr`` folder; None for an atlas in memory or at an address.
    """

    def __init__(
        self, dataset: xr.Dataset, provenance: dict[str, Any], settings: Settings, path: Path | None = None
    ) -> None:
        settings.check(int(provenance["ceiling"]))
        self.dataset = dataset
        self.provenance = provenance
        self.settings = settings
        self.path = path

    @classmethod
    def open(cls, path: str | Path) -> Atlas:
        """Open an atlas from its output folder or its ``.zarr`` folder, or from the address of one.

        Raises:
            HeadatlasError: There is no (complete) atlas.
        """
        where = atlas_path(path)
        dataset, provenance = read_store(where)
        try:
            settings = Settings(**provenance["settings"])
        except TypeError as error:
            raise HeadatlasError(
                f"{where}: its settings cannot be read ({error}); use the headatlas version that made it."
            ) from error
        return cls(dataset, provenance, settings, where if isinstance(where, Path) else None)

    def with_settings(
        self,
        *,
        profile: str | None = None,
        k: int | None = None,
        k_copy: int | None = None,
        tau: float | None = None,
        q_max: float | None = None,
        criterion: Criterion | None = None,
    ) -> Atlas:
        """The same ranks read with other numbers; nothing is mapped again.

        Raises:
            HeadatlasError: k is above the ceiling, or a number is out of range.
        """
        settings = self.settings
        if profile is not None:
            chosen = Settings.from_profile(profile)
            settings = replace(settings, profile=profile, k=chosen.k, k_copy=chosen.k_copy)
        settings = settings.changed(k=k, k_copy=k_copy, tau=tau, q_max=q_max, criterion=criterion)
        other = Atlas(self.dataset, self.provenance, settings, self.path)
        if (settings.k, settings.k_copy) == (self.settings.k, self.settings.k_copy):
            # Scores depend on k alone; share what has been computed.
            other.__dict__.update(
                {name: self.__dict__[name] for name in ("scores", "_q") if name in self.__dict__}
            )
        return other

    # What was mapped ------------------------------------------------------------------------------

    @property
    def model_name(self) -> str:
        return str(self.provenance["model"]["name"])

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

    @cached_property
    def relations(self) -> pd.DataFrame:
        """One row per relation, in atlas order.

        Columns: relation, title, category, copying, k, n_pairs, n_sources, n_targets, left_out (why; empty if
        it is in), dropped (reason → sources that could not be used).
        """
        names = ["title", "category", "copying", "n_pairs", "n_sources", "n_targets", "left_out", "dropped"]
        frame = pd.DataFrame({name: read_array(self.dataset, name).tolist() for name in names})
        frame.insert(0, "relation", read_array(self.dataset, "relation").tolist())
        frame.insert(4, "k", [self.settings.k_for(copying) for copying in frame["copying"]])
        frame["dropped"] = [json.loads(text) for text in frame["dropped"]]
        return frame

    @property
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
    def scores(self) -> dict[str, RelationScores]:
        """Scores of every relation that is in, by name; computed once, or read where they are stored."""
        included = self.included
        names = dict(zip(included["relation"], included.index.tolist(), strict=True))
        stored = stored_scores(self.dataset, self.settings, self.layers_done, names)
        if stored is not None:
            return stored
        return {
            name: score_relation(self.dataset, at, k)
            for (name, at), k in zip(names.items(), included["k"], strict=True)
        }

    @cached_property
    def _q(self) -> dict[str, dict[str, Floats]]:
        """q per sign and relation: Benjamini–Hochberg over all cells of both signs together."""
        names = list(self.scores)
        if not names:
            return {sign: {} for sign in SIGNS}
        p = np.array([[getattr(self.scores[name], f"{sign}_null").p for name in names] for sign in SIGNS])
        q = false_discovery_rates(p)
        return {sign: dict(zip(names, q[i], strict=True)) for i, sign in enumerate(SIGNS)}

    @cached_property
    def evidence(self) -> Evidence:
        """Dynamic scores and ablations that are stored in this atlas; false if there are none."""
        from headatlas.atlas.evidence import Evidence

        return Evidence.of(self)

    @cached_property
    def table(self) -> pd.DataFrame:
        """:attr:`called`, and where there is evidence the columns of ``headatlas.atlas.evidence.COLUMNS``."""
        if not self.evidence:
            return self.called
        return self.called.merge(self.evidence.table, on=["layer", "head", "relation"], how="left")

    @cached_property
    def called(self) -> pd.DataFrame:
        """One row per mapped head × scored relation.

        Columns: layer, head, relation, category; score (promotion), low, high (Wilson 95 %), chance, lift, p,
        q; suppression and suppression_low … suppression_q; control (score of the state itself at that
        layer), added (share of sources the head hits and the state does not), n_sources, implements and
        suppresses (under the criterion). chance and lift are NaN below the calibration floor.
        """
        layers, heads = np.meshgrid(np.arange(self.n_layers), np.arange(self.n_heads), indexing="ij")
        parts = []
        included = self.included
        for name, category, n_sources in zip(
            included["relation"], included["category"], included["n_sources"], strict=True
        ):
            columns = self._columns(name, n_sources)
            parts.append(
                pd.DataFrame(
                    {
                        "layer": layers.ravel(),
                        "head": heads.ravel(),
                        "relation": name,
                        "category": category,
                        **{column: values.ravel() for column, values in columns.items()},
                    }
                )[np.repeat(self.layers_done, self.n_heads)]
            )
        if not parts:
            return pd.DataFrame(columns=list(TABLE_COLUMNS))
        return pd.concat(parts, ignore_index=True)[list(TABLE_COLUMNS)]

    def _columns(self, name: str, n_sources: int) -> dict[str, NDArray[Any]]:
        scores = self.scores[name]
        columns: dict[str, NDArray[Any]] = {
            "control": np.broadcast_to(scores.control[:, None], scores.score.shape),
            "added": scores.added,
            "n_sources": np.full(scores.score.shape, n_sources),
        }
        for sign, prefix, verb in (
            ("promotion", "", "implements"),
            ("suppression", "suppression_", "suppresses"),
        ):
            value = scores.score if sign == "promotion" else scores.suppression
            null: Calibration = getattr(scores, f"{sign}_null")
            q = self._q[sign][name]
            low, high = wilson(np.nan_to_num(value * n_sources).round().astype(int), n_sources)
            called = value >= self.settings.tau
            if self.settings.criterion == "calibrated":
                called &= q <= self.settings.q_max
            with np.errstate(divide="ignore", invalid="ignore"):
                lift = np.where(null.chance > 0, value / null.chance, np.nan)
            columns.update(
                {
                    "score" if sign == "promotion" else "suppression": value,
                    f"{prefix}low": low,
                    f"{prefix}high": high,
                    f"{prefix}chance": null.chance,
                    f"{prefix}lift": lift,
                    f"{prefix}p": null.p,
                    f"{prefix}q": q,
                    verb: called,
                }
            )
        return columns

    def heads(
        self, relation: str | None = None, category: str | None = None, *, everything: bool = False
    ) -> pd.DataFrame:
        """Rows of :attr:`table`, best first: those called (promoting or suppressing), or all of them.

        Raises:
            HeadatlasError: No such relation or category in this atlas.
        """
        frame = self.table
        if relation is not None:
            name = self.known(relation)
            frame = frame[frame["relation"] == name]
        if category is not None:
            known = {name.lower(): name for name in self.category_names}
            if category.lower() not in known:
                names = ", ".join(known.values())
                raise HeadatlasError(f"this atlas has no category {category!r}; it has {names}.")
            frame = frame[frame["category"] == known[category.lower()]]
        if not everything:
            frame = frame[frame["implements"] | frame["suppresses"]]
        best = frame[["score", "suppression"]].max(axis=1)
        order = np.lexsort((frame["head"], frame["layer"], -best.to_numpy()))
        return frame.iloc[order].reset_index(drop=True)

    def top(self, relation: str, n: int = 10) -> pd.DataFrame:
        """The n heads that score highest on a relation (promotion), called or not.

        Raises:
            HeadatlasError: The relation is not in this atlas, or was left out (with the reason).
        """
        name = self.known(relation)
        frame = self.table[self.table["relation"] == name]
        return frame.sort_values("score", ascending=False, kind="stable").head(n).reset_index(drop=True)

    def known(self, relation: str) -> str:
        """The name of a scored relation, given by its name or by the title that figures print."""
        frame = self.relations
        titled = frame["relation"][frame["title"] == relation].tolist()
        name = titled[0] if len(titled) == 1 and relation not in set(frame["relation"]) else relation
        if name in self.left_out:
            raise HeadatlasError(f"relation {relation!r} was left out of this atlas: {self.left_out[name]}.")
        if name not in set(self.included["relation"]):
            known = ", ".join(self.included["relation"])
            raise HeadatlasError(f"this atlas has no relation {relation!r}; it has {known}.")
        return str(name)

    def categories(self) -> pd.DataFrame:
        """One row per mapped head: layer, head, n_categories, which (tuple of categories, in panel order),
        relations (tuple of the relations it promotes or suppresses)."""
        called = self.called[self.called["implements"] | self.called["suppresses"]]
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

    @property
    def layers_without_heads(self) -> tuple[int, ...]:
        """Layers of a hybrid model that have no attention heads; they are never mapped."""
        there = self.provenance.get("model", {}).get("layers_with_heads")
        return () if there is None else tuple(sorted(set(range(self.n_layers)) - set(there)))

    def caption(self) -> str:
        """The line that belongs under every figure and table of this atlas."""
        parts = [self.model_name, f"lens {self.lens}", self.settings.describe()]
        headless = self.layers_without_heads
        if headless:
            parts.append(f"{len(headless)} of {self.n_layers} layers have no attention heads")
        missing = int((~self.layers_done).sum()) - len(headless)
        if missing:
            parts.append(f"{missing} of {self.n_layers} layers not mapped")
        if self.provenance.get("target_policy", "single") != "single":
            parts.append(f"targets: {self.provenance['target_policy']}")
        if self.left_out:
            titles = dict(zip(self.relations["relation"], self.relations["title"], strict=True))
            parts.append("left out: " + ", ".join(titles[name] for name in self.left_out))
        return "; ".join(parts)

    @property
    def plot(self) -> Plots:
        """Figures of this atlas: ``plot.categories()``, ``plot.relations()``, ``plot.layers()``."""
        from headatlas.figures import Plots

        return Plots(self)

    def __repr__(self) -> str:
        mapped = int(self.layers_done.sum())
        return (
            f"<Atlas of {self.model_name}: {mapped} of {self.n_layers} layers × {self.n_heads} heads, "
            f"{len(self.included)} relations, lens {self.lens}, {self.settings.describe()}>"
        )

    def settings_dict(self) -> dict[str, Any]:
        """The settings as plain values, for files and pages."""
        return asdict(self.settings)


def _sign_columns(prefix: str) -> Sequence[str]:
    return [f"{prefix}{name}" for name in ("low", "high", "chance", "lift", "p", "q")]


TABLE_COLUMNS = (
    *("layer", "head", "relation", "category", "score"),
    *_sign_columns(""),
    "suppression",
    *_sign_columns("suppression_"),
    *("control", "added", "n_sources", "implements", "suppresses"),
)
