"""Stored salience of an atlas's heads, read without torch: salient operations, spectra, shares explained.

docs/salience.md defines every number.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from headatlas.atlas.store import Place
from headatlas.atlas.stored import Stored, evidence_in, no_rows, read_provenance
from headatlas.errors import HeadatlasError

NAME = "salience"
N_SOURCES = 30
"""Source tokens of a head, those of largest gain."""
N_TOKENS = 5
"""Targets of a source of either sign; tokens at either end of a direction."""
N_DIRECTIONS = 3

CAVEAT = (
    "what a head writes if it attends to a token; a high gain is not use: nothing here says that the head "
    "attends there or that the model needs it"
)
"""Caveat that stands beside the lists wherever they are shown."""

COLUMNS = (
    *("layer", "head", "order", "source_id", "source", "gain"),
    *("promoted_ids", "promoted", "suppressed_ids", "suppressed"),
)
SPECTRUM_COLUMNS = (
    *("layer", "head", "effective_rank", "copying", "norm_share", "singular_values", "directions"),
)
EXPLAINED_COLUMNS = ("layer", "head", "explained", "relations", "rest")
EXPLAINED_BY = {"relations": ("relation", "n_sources"), "rest": ("field", "n_words", "q")}
"""Fields of what explains a head's sources, and of what the others come from."""

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Salience(Stored):
    """Writing of the heads of a model, by their weights.

    Attributes:
        data: gain, source [layer, head, order]; promoted, suppressed [layer, head, order, place];
            effective_rank, copying, norm_share, explained [layer, head]; singular_values [layer, head,
            d_head]; reads, writes [layer, head, direction, end, place]; relations, rest [layer, head] as
            JSON; text [token] of all tokens named. Tokens are ids, -1 where there is none; numbers NaN.
        provenance: Lens, tokens, definitions, versions.
    """

    PREFIX = NAME
    VARIABLES = (
        *("gain", "source", "promoted", "suppressed", "text"),
        *("singular_values", "effective_rank", "copying", "norm_share", "reads", "writes"),
        *("explained", "relations", "rest"),
    )
    NEEDED = ("tokens", "lens")

    def check(self) -> None:
        """Raise a KeyError, TypeError or ValueError for unlisted tokens and entries of a wrong form."""
        for name in ("source", "promoted", "suppressed", "reads", "writes"):
            unlisted = np.setdiff1d(self.data[name].values, self.data["token"].values)
            if len(unlisted := unlisted[unlisted >= 0]):
                raise ValueError(f"token {unlisted[0]} of {name} is not listed")
        self.explained()
        self.caption()

    @cached_property
    def _texts(self) -> dict[int, str]:
        ids, texts = self.data["token"].values.tolist(), self.data["text"].values.tolist()
        return {int(token): str(text) for token, text in zip(ids, texts, strict=True)}

    def _named(self, ids: Ids) -> tuple[list[int], list[str]]:
        """Tokens that are there, as ids and as texts."""
        there = [int(token) for token in ids if token >= 0]
        return there, [self._texts[token] for token in there]

    def frame(self) -> pd.DataFrame:
        """One row per head and source token, the largest gain first: :data:`COLUMNS`."""
        gain, source, promoted, suppressed = (
            self.data[name].values for name in ("gain", "source", "promoted", "suppressed")
        )
        rows = []
        for layer, head, order in np.argwhere(source >= 0).tolist():
            at = layer, head, order
            (token,), (text,) = self._named(source[at][None])
            targets = (*self._named(promoted[at]), *self._named(suppressed[at]))
            rows.append((layer, head, order, token, text, float(gain[at]), *targets))
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def spectrum(self) -> pd.DataFrame:
        """One row per head: :data:`SPECTRUM_COLUMNS`.

        ``directions`` is a list of dicts, the largest singular value first: ``singular_value``, and under
        ``ends`` two dicts with the tokens that the direction ``reads``, and those ``promoted`` and
        ``suppressed`` for them (texts), and the same as ``…_ids``.
        """
        numbers = {name: self.data[name].values for name in ("effective_rank", "copying", "norm_share")}
        values = self.data["singular_values"].values
        rows = []
        for layer, head in np.argwhere(np.isfinite(values[..., 0])).tolist():
            at = layer, head
            mine = [float(value) for value in values[at] if np.isfinite(value)]
            own = (float(number[at]) for number in numbers.values())
            rows.append((layer, head, *own, mine, self._directions(at, mine)))
        return pd.DataFrame(rows, columns=list(SPECTRUM_COLUMNS))

    def _directions(self, at: tuple[int, int], values: list[float]) -> list[dict[str, Any]]:
        reads, writes = self.data["reads"].values[at], self.data["writes"].values[at]
        found = []
        for direction in np.flatnonzero((reads[:, 0, 0] >= 0) | (writes[:, 0, 0] >= 0)).tolist():
            ends = []
            for end in range(2):
                sides = {
                    "reads": reads[direction, end],
                    "promoted": writes[direction, end],
                    "suppressed": writes[direction, 1 - end],
                }
                named = {side: self._named(ids) for side, ids in sides.items()}
                texts = {side: texts for side, (_, texts) in named.items()}
                ends.append({**texts, **{f"{side}_ids": ids for side, (ids, _) in named.items()}})
            found.append({"singular_value": values[direction], "ends": ends})
        return found

    def explained(self) -> pd.DataFrame:
        """One row per head: :data:`EXPLAINED_COLUMNS`.

        ``explained`` is the share of the salient mass, ``relations`` the relations that explain it as (name,
        sources), ``rest`` the fields of words that the other sources come from as (field, count, q).
        """
        share, relations, rest = (self.data[name].values for name in ("explained", "relations", "rest"))
        rows = [
            (
                layer,
                head,
                float(share[layer, head]),
                [tuple(each) for each in json.loads(str(relations[layer, head]))],
                [tuple(each) for each in json.loads(str(rest[layer, head]))],
            )
            for layer, head in np.argwhere(np.isfinite(share)).tolist()
        ]
        return pd.DataFrame(rows, columns=list(EXPLAINED_COLUMNS))

    def by_head(self) -> pd.DataFrame:
        """One row per head: the columns of :meth:`spectrum`, then those of :meth:`explained`."""
        return self.spectrum().merge(self.explained(), on=["layer", "head"], how="left")

    def frames(self) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        """:meth:`frame`, :meth:`spectrum`, :meth:`explained`, for people: what explains and the rest as dicts
        with the fields of :data:`EXPLAINED_BY`, which tables in files can hold."""
        plain = self.explained()
        parts: dict[str, Any] = {
            column: [[dict(zip(names, each, strict=True)) for each in row] for row in plain[column]]
            for column, names in EXPLAINED_BY.items()
        }
        return self.frame(), self.spectrum(), plain.assign(**parts)

    def of_head(self, layer: int, head: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        """The rows of one head of :meth:`frames`; no others are made."""
        mine = Salience(self.data.isel(layer=[layer], head=[head]), self.provenance)
        first, second, third = (frame.assign(layer=layer, head=head) for frame in mine.frames())
        return first, second, third

    @property
    def n_followed(self) -> int:
        """Tokens that went through the model after each prefix: all, unless a screening pass chose some."""
        said = self.provenance["tokens"]
        return int(said.get("followed", said["n"]))

    def caption(self) -> str:
        """The tokens, how many were left out, and what the lists are not, in one line."""
        said = self.provenance["tokens"]
        # Stored before limits were said: the limit that word-like tokens had was not said either.
        first = f", the first of {said['n'] + said['left']:,}" if said.get("left") else ""
        left = f"{first}, {said['undertrained']:,} undertrained ones left out"
        if not said["reference"]:
            left = f"{first}; undertrained ones cannot be told, for too few unused tokens are known"
        if self.n_followed < said["n"]:
            left += f"; {self.n_followed:,} followed, which a screening pass proposed"
        return (
            f"{N_SOURCES} sources of largest gain among {said['n']:,} tokens ({said['choice']}{left}); lens "
            f"{self.provenance['lens']}; {CAVEAT}"
        )


def salience_path(group: Path) -> Path:
    """Path of the salience in an atlas's evidence group."""
    return Salience.place(group, "")


def operations_sha256(data: xr.Dataset) -> str:
    """Hash of the operations in the data of a :class:`Salience`; labels keep it of those they rest on."""
    tokens = (data[name].values.astype(np.int64) for name in ("source", "promoted", "suppressed"))
    return hashlib.sha256(b"".join(each.tobytes() for each in tokens)).hexdigest()


def stored_operations_sha256(atlas: Place | None) -> str | None:
    """The hash that an atlas's salience says of itself; its numbers are not read. None where it says none."""
    for place in evidence_in(atlas, NAME).values():
        with suppress(HeadatlasError):  # said where it is read
            return read_provenance(place).get("operations")
    return None


def stored_salience(atlas: Place | None) -> Salience | None:
    """The salience of an atlas's heads, if it was computed."""
    found = Salience.all_in(atlas)
    return found[0] if found else None


def head_rows(frame: pd.DataFrame, head: tuple[int, int]) -> pd.DataFrame:
    """The rows of one head."""
    mine = (frame["layer"] == head[0]) & (frame["head"] == head[1])
    return frame[mine].reset_index(drop=True)


def salience_frames(atlas: Place | None) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Operations, spectra and shares explained of an atlas's heads, with a caption; no rows where there are
    none."""
    found = stored_salience(atlas)
    if found is None:
        whole = dict.fromkeys(("layer", "head", "order", "source_id"), int)
        numbers = ("gain", "effective_rank", "copying", "norm_share", "explained")
        names = {*COLUMNS, *SPECTRUM_COLUMNS, *EXPLAINED_COLUMNS}.difference(numbers)
        kinds = dict.fromkeys(names, object) | whole
        first, second, third = (
            no_rows(each, **kinds) for each in (COLUMNS, SPECTRUM_COLUMNS, EXPLAINED_COLUMNS)
        )
        return first, second, third
    frames = found.frames()
    for frame in frames:
        frame.attrs["caption"] = found.caption()
    return frames
