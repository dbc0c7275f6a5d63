"""Measured attention of heads as an atlas stores it: one dataset a set of texts, read without torch.

docs/behaviour.md defines every behaviour. Stored are each head's value, expected level, interval and p;
q and which heads are called follow from them here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headatlas.atlas.store import Place
from headatlas.atlas.stored import Stored, no_rows
from headatlas.errors import HeadatlasError
from headatlas.scoring.scores import false_discovery_rates

MEASURED = ("value", "expected", "low", "high", "p")
COLUMNS = ("layer", "head", "behaviour", *MEASURED, "q", "called")

CALLED_Q = 0.01
CALLED_EXCESS = 0.1
"""A head is called where it gives at least so much more of its attention than expected."""
CRITERION = f"called: q ≤ {CALLED_Q:g} and value − expected ≥ {CALLED_EXCESS:g}"
CAVEAT = (
    "attention on the texts named here, not on all text; where a head looks does not say what it writes, nor "
    "whether the model needs it"
)
"""Caveat that stands beside the numbers wherever they are shown."""

Basis = Literal["uniform", "place", "other blocks"]


@dataclass(frozen=True)
class Behaviour:
    """A number that is measured of every head."""

    name: str  # in tables and on the command line
    title: str  # in figures
    basis: Basis
    """The expected level: of a head that spreads evenly over all it can see (``"uniform"``); of one that
    attends by query position and distance alone (``"place"``); or what the same positions get where nothing
    is repeated at them (``"other blocks"``)."""
    tested: bool = True  # whether it is a share of attention, tested against the expected level


BEHAVIOURS = (
    Behaviour("previous_token", "Previous token", "uniform"),
    Behaviour("self", "Itself", "uniform"),
    Behaviour("first_position", "First position", "uniform"),
    Behaviour("duplicate_token", "Duplicate of the token", "place"),
    Behaviour("induction", "Induction", "place"),
    Behaviour("induction_repeated", "Induction, repeated random tokens", "other blocks"),
    Behaviour("line_start", "Start of the line", "place"),
    Behaviour("sentence_start", "Start of the sentence", "place"),
    Behaviour("punctuation", "Punctuation", "place"),
    Behaviour("digits", "Digits", "place"),
    Behaviour("names", "Capitalised words", "place"),
    Behaviour("line_breaks", "Line breaks", "place"),
    Behaviour("sink_parameter", "Sink parameter", "uniform", tested=False),
    Behaviour("entropy", "Entropy", "uniform", tested=False),
    Behaviour("distance", "Distance", "uniform", tested=False),
    Behaviour("distance_variance", "Variance of the distance", "uniform", tested=False),
)
"""In the order in which they are shown."""
NAMES = tuple(each.name for each in BEHAVIOURS)


@dataclass(frozen=True)
class Looking(Stored):
    """Measurements on one set of texts.

    Attributes:
        data: value, expected, low, high, p [behaviour, layer, head], NaN in layers without heads and where a
            behaviour is not tested; ``n_sequences`` [behaviour].
        provenance: Texts, their digest, versions.
    """

    PREFIX = "behaviour-"
    VARIABLES = (*MEASURED, "n_sequences")
    NEEDED = ("texts",)

    def frame(self) -> pd.DataFrame:
        """One row per behaviour, layer and head that has one: :data:`COLUMNS`; q is over all tested rows."""
        axes = ["behaviour", "layer", "head"]
        frame = self.data[list(MEASURED)].to_dataframe(dim_order=axes).reset_index()
        frame["q"] = false_discovery_rates(frame["p"].to_numpy())
        excess = frame["value"] - frame["expected"]
        frame["called"] = (frame["q"] <= CALLED_Q) & (excess >= CALLED_EXCESS)
        return frame[frame["value"].notna()].reset_index(drop=True)[list(COLUMNS)]

    @property
    def source(self) -> str:
        """The name of the user's file; empty for the shipped texts."""
        return str(self.provenance["texts"]["source"])

    def caption(self) -> str:
        """The texts, the criterion and what the numbers are not, in one line."""
        texts = self.provenance["texts"]
        whose = f"sequences of {self.source}" if self.source else "shipped texts"
        return (
            f"{texts['texts']} {whose} and {texts['repeated']} of repeated random tokens, {texts['length']} "
            f"tokens each; {CRITERION}; {CAVEAT}"
        )


def stored_behaviours(atlas: Place | None) -> pd.DataFrame:
    """The frame of the measurement on the shipped texts, with its caption; no row where there is none."""
    found = Looking.shipped_in(atlas)
    if found is None:
        return no_rows(COLUMNS, layer=int, head=int, behaviour=object, called=bool)
    frame = found.frame()
    frame.attrs["caption"] = found.caption()
    return frame


def known(only: Sequence[str] | None) -> list[str]:
    """The names of behaviours, as they are written and each once; all of them for None."""
    if only is None:
        return list(NAMES)
    asked = [only] if isinstance(only, str) else list(only)
    names = [name.strip().lower().replace("-", "_").replace(" ", "_") for name in asked]
    wrong = [given for given, name in zip(asked, names, strict=True) if name not in NAMES]
    if wrong or not names:
        found = f"there is no behaviour {wrong[0]!r}" if wrong else "no behaviour is named"
        raise HeadatlasError(f"`only`: {found}; choose from {', '.join(NAMES)}.")
    return list(dict.fromkeys(names))


def chosen(frame: pd.DataFrame, only: Sequence[str] | None) -> pd.DataFrame:
    """The rows of some behaviours, in the order asked for; all of them for None."""
    if only is None:
        return frame
    parts = {name: frame[frame["behaviour"] == name] for name in known(only)}
    missing = [name for name, rows in parts.items() if rows.empty]
    if missing:
        raise HeadatlasError(
            f"`only`: {missing[0]} was not measured: these texts, this tokenizer or this model have too few "
            "places for it."
        )
    return pd.concat(list(parts.values()), ignore_index=True)


def best_first(frame: pd.DataFrame) -> pd.DataFrame:
    """Behaviour by behaviour, the heads that exceed what is expected most first; ties by layer and head."""
    order = {name: at for at, name in enumerate(dict.fromkeys(frame["behaviour"]))}
    rank: NDArray[np.int64] = frame["behaviour"].map(order).to_numpy(dtype=np.int64)
    excess = (frame["value"] - frame["expected"]).to_numpy()
    rows = np.lexsort((frame["head"], frame["layer"], -excess, rank))
    return frame.iloc[rows].reset_index(drop=True)
