"""Preferences of queries for a relation's sources as an atlas stores them, read without torch.

docs/evidence.md says what is measured. Stored are AUROC and p of every head and relation; q and which rows
are shown follow from them and from the heads that the atlas calls as it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from headatlas.atlas.stored import Stored
from headatlas.scoring.scores import false_discovery_rates

if TYPE_CHECKING:
    from headatlas.atlas.atlas import Atlas

TASK, CONTEXT_TEXT = "task", "context"
"""Queries: the end of the relation's task, or the ends of the context templates."""
COLUMNS = (
    *("layer", "head", "relation", "query", "auroc", "as_high", "p", "q", "prefers", "attention"),
    *("sources", "words"),
)
PREFERS_Q = 0.01
PREFERS_AUROC = 0.75
CRITERION = f"prefers: q ≤ {PREFERS_Q:g} and AUROC ≥ {PREFERS_AUROC:g}"
CAVEAT = (
    "logits of the query for words after neutral prefixes, before the softmax: what else stands in a text, "
    "and the first position above all, may take the attention all the same"
)


@dataclass(frozen=True)
class Preferences(Stored):
    """Measurements with one set of templates.

    Attributes:
        data: ``auroc`` [query, relation, layer, head, distance]; ``p`` [query, relation, layer, head], NaN
            where there is no such query or no head; ``n_sources`` and ``n_words`` [relation].
            ``distance`` is [0] where positions are in the states.
        provenance: Templates, relations left out and why, model, versions.
    """

    PREFIX = "attention-"
    VARIABLES = ("auroc", "p", "n_sources", "n_words", "query", "relation", "distance")
    NEEDED = ("left_out",)

    @property
    def left_out(self) -> dict[str, str]:
        """Relation → why its words could not be compared."""
        return dict(self.provenance["left_out"])

    @property
    def distances(self) -> list[int]:
        """Positions between key and query; empty where positions are in the states."""
        return [int(each) for each in self.data["distance"].values if each > 0]

    def frame(self, atlas: Atlas, only: Sequence[str] | None = None) -> pd.DataFrame:
        """One row per called head × relation and query: :data:`COLUMNS`, then AUROC by distance (``d1`` …).

        ``as_high`` is the share of the model's heads with an AUROC at least as high on the relation,
        ``attention`` what ``evidence inference`` measured, NaN where it has not. q is over all called rows,
        whichever relations are asked for.
        """
        called = _called(atlas)
        parts = [
            self._rows(called[called["relation"] == name], query, at)
            for query in range(self.data.sizes["query"])
            for at, name in enumerate(map(str, self.data["relation"].values))
        ]
        frame = pd.concat(parts, ignore_index=True)
        frame["q"] = false_discovery_rates(frame["p"].to_numpy(dtype=np.float64))
        frame["prefers"] = (frame["q"] <= PREFERS_Q) & (frame["auroc"] >= PREFERS_AUROC)
        if only is not None:
            frame = frame[frame["relation"].isin([atlas.known(name) for name in only])]
        return frame[[*COLUMNS, *self._distance_columns]].reset_index(drop=True)

    @property
    def _distance_columns(self) -> list[str]:
        return [f"d{each}" for each in self.distances]

    def _rows(self, called: pd.DataFrame, query: int, relation: int) -> pd.DataFrame:
        """The called heads of a relation for one query; none where there is no such query."""
        at = called["layer"].to_numpy(dtype=int), called["head"].to_numpy(dtype=int)
        by_distance = self.data["auroc"].values[query, relation]
        mean = by_distance.mean(axis=-1)
        every = np.sort(mean[~np.isnan(mean)])
        part = called[["layer", "head", "relation", "attention"]].assign(
            query=str(self.data["query"].values[query]),
            auroc=mean[at],
            # Means of the same ranks may differ by rounding.
            as_high=1.0 - np.searchsorted(every, mean[at] - 1e-12) / max(1, len(every)),
            p=self.data["p"].values[query, relation][at],
            sources=int(self.data["n_sources"].values[relation]),
            words=int(self.data["n_words"].values[relation]),
            **{name: by_distance[..., number][at] for number, name in enumerate(self._distance_columns)},
        )
        return part[part["p"].notna()]

    def caption(self) -> str:
        """The comparison, the criterion and what the numbers are not, in one line."""
        where = f"distances {', '.join(map(str, self.distances))}" if self.distances else "positions as given"
        return (
            "AUROC of a relation's sources over matched words, mean over queries; "
            f"{where}; {CRITERION}; {CAVEAT}"
        )


def _called(atlas: Atlas) -> pd.DataFrame:
    """The rows of an atlas that are called, with measured attention where there is any."""
    table = atlas.without_evidence
    called = table[table["implements"] | table["suppresses"]][["layer", "head", "relation"]]
    measured = atlas.evidence.table
    if measured.empty:
        return called.assign(attention=np.nan)
    return called.merge(measured[["layer", "head", "relation", "attention"]], how="left")
