"""Ablated tasks as they are stored in an atlas: one dataset a task, complete or not there."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from headatlas.atlas.store import open_arrays, renamed
from headatlas.errors import HeadatlasError
from headatlas.files import atomic_folder
from headatlas.scoring.scores import false_discovery_rates

PREFIX = "ablation-"
RELATION, ADDED, RANDOM = "relation", "added", "random"
Bools = NDArray[np.bool_]
PROVENANCE = (
    *("relation", "template", "shots", "method", "seed", "controls", "dropped", "thresholds", "versions"),
)
"""Entries of a task's provenance that readers rely on."""
_VARIABLES = (
    *("base", "correct", "n_ablated", "alone", "layer", "head", "control", "control_base"),
    *("order", "source", "control_name"),
)


@dataclass(frozen=True)
class Ablation:
    """One ablated task.

    Attributes:
        data: ``base`` [source] and ``correct`` [order, step, source] bool; ``alone`` [head, source] bool;
            ``n_ablated`` [step]; ``control_base`` [control] and ``control`` [control, step] accuracies;
            ``layer`` and ``head`` [order, rank] of the heads in order. Orders are ``relation``, ``added``,
            ``random 0`` …
        provenance: Relation, template, shots, method, model, versions.
    """

    data: xr.Dataset
    provenance: dict[str, Any]

    @property
    def relation(self) -> str:
        return str(self.provenance["relation"])

    @property
    def shots(self) -> int:
        return int(self.provenance["shots"])

    @property
    def method(self) -> str:
        return str(self.provenance["method"])

    @cached_property
    def base(self) -> Bools:
        """[source] which sources the whole model answers."""
        return np.asarray(self.data["base"].values).astype(bool)

    @cached_property
    def steps(self) -> NDArray[np.int64]:
        """[step] numbers of heads ablated; the first is 0."""
        return np.concatenate([[0], self.data["n_ablated"].values]).astype(np.int64)

    def correct(self, order: str) -> Bools:
        """[step, source] answers with the heads of an order ablated; the first step is the whole model."""
        found = np.asarray(self.data["correct"].sel(order=order).values).astype(bool)
        return np.concatenate([self.base[None], found])

    @cached_property
    def random(self) -> Bools:
        """[draw, step, source] answers with random heads ablated."""
        names = [str(name) for name in self.data["order"].values if str(name).startswith(RANDOM)]
        return np.stack([self.correct(name) for name in names])

    @cached_property
    def controls(self) -> dict[str, NDArray[np.float64]]:
        """Control relation → [step] accuracy on its task with this relation's heads ablated."""
        base, rest = self.data["control_base"].values, self.data["control"].values
        return {
            str(name): np.concatenate([[base[at]], rest[at]])
            for at, name in enumerate(self.data["control_name"].values)
        }

    def heads(self, order: str = RELATION) -> list[tuple[int, int]]:
        """(layer, head) in the order in which they are ablated."""
        rows = self.data.sel(order=order)
        return [(int(a), int(b)) for a, b in zip(rows["layer"].values, rows["head"].values, strict=True)]


HEADS_PREFIX = "heads-"
WHOLE, CHOSEN = "whole", "chosen"
RUNNING_TEXT = "text"
_HEADS_VARIABLES = {"loss", "correct", "condition", "on", "layer", "head"}


@dataclass(frozen=True)
class HeadsAblation:
    """Heads of one's own choice, ablated together.

    Attributes:
        data: ``loss`` [condition, item] in nats and ``correct`` [condition, item] bool; ``on`` [item]:
            ``text`` for a running text, where nothing is right or wrong, or the relation whose task it is.
            Conditions are ``whole``, ``chosen``, ``random 0`` …; ``layer`` and ``head`` [order, rank] say
            which heads the last ones are without.
        provenance: Heads, tasks, method, model, versions, tasks left out and why.
    """

    data: xr.Dataset
    provenance: dict[str, Any]

    @property
    def heads(self) -> list[tuple[int, int]]:
        """The chosen heads."""
        rows = self.data.sel(order=CHOSEN)
        return [(int(a), int(b)) for a, b in zip(rows["layer"].values, rows["head"].values, strict=True)]

    @property
    def draws(self) -> list[str]:
        """Names of the random draws."""
        return [str(name) for name in self.data["condition"].values if str(name).startswith(RANDOM)]

    def of(self, variable: str, on: str) -> NDArray[np.float64]:
        """[condition, item] of the items on one thing: whole, chosen, then the draws."""
        mine = np.flatnonzero([str(name) == on for name in self.data["on"].values])
        return np.asarray(self.data[variable].values[:, mine], dtype=np.float64)


def read_heads_ablation(path: Path) -> HeadsAblation:
    """One stored ablation of chosen heads.

    Raises:
        HeadatlasError: It is damaged, or cannot be read.
    """
    data, provenance = read_dataset(path)
    if lacking := _HEADS_VARIABLES - {*map(str, data.variables)}:
        raise _damaged(path, f"it lacks {', '.join(sorted(lacking))}")
    return HeadsAblation(data, provenance)


def all_heads_ablations(atlas_path: Path | None) -> list[HeadsAblation]:
    """All ablations of chosen heads in an atlas."""
    group = atlas_path / "evidence" if atlas_path is not None else None
    paths = sorted(group.glob(f"{HEADS_PREFIX}*")) if group is not None else []
    return [read_heads_ablation(path) for path in paths]


def store_ablation(folder: Path, name: str, data: xr.Dataset, provenance: dict[str, Any]) -> None:
    """Write a task's dataset; it appears whole or not at all.

    Raises:
        HeadatlasError: It cannot be written.
    """
    store_dataset(folder / f"{PREFIX}{name}", data, provenance)


def store_dataset(path: Path, data: xr.Dataset, provenance: dict[str, Any]) -> None:
    """Write one piece of evidence in the place of an older one; it appears whole or not at all.

    Raises:
        HeadatlasError: It cannot be written.
    """
    stored = data.assign_attrs({"provenance": json.dumps(provenance)})
    try:
        with atomic_folder(path, replace=True) as temporary:
            stored.to_zarr(temporary, mode="w", consolidated=False)
    except OSError as error:
        raise HeadatlasError(f"{path}: cannot be written ({error.strerror or error}); make room.") from error


def read_ablation(path: Path) -> Ablation:
    """One stored task.

    Raises:
        HeadatlasError: It is damaged, or cannot be read.
    """
    data, provenance = read_dataset(path)
    lacking = {*_VARIABLES} - {*data.variables} | {*PROVENANCE} - {*provenance}
    if lacking:
        raise _damaged(path, f"it lacks {', '.join(sorted(map(str, lacking)))}")
    return Ablation(data, provenance)


def read_dataset(path: Path) -> tuple[xr.Dataset, dict[str, Any]]:
    """Read what :func:`store_dataset` wrote: the data in memory, and the provenance.

    Raises:
        HeadatlasError: It is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* is not recognized as a component of a Zarr")
            data = open_arrays(path).load()
        return data, renamed(dict(json.loads(data.attrs["provenance"])))
    except FileNotFoundError as error:
        raise HeadatlasError(f"{path}: this is no stored measurement; move it elsewhere.") from error
    except OSError as error:
        raise HeadatlasError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, why: object) -> HeadatlasError:
    return HeadatlasError(f"{path}: is damaged ({why}); remove this folder, and measure again.")


def single_heads(ablations: Sequence[Ablation], q_max: float) -> pd.DataFrame:
    """Heads ablated alone, with an exact one-sided McNemar test each.

    Right answers lost against right answers gained: under the null either is equally likely, so the number
    lost is binomial (McNemar 1947; exact form).

    Args:
        ablations: Stored tasks.
        q_max: Largest false discovery rate over all rows at which a head is confirmed.

    Returns:
        relation, shots, method, layer, head, base, loss, loss_random, p, q, confirmed.
    """
    rows = []
    for each in ablations:
        base = each.base
        random = base.mean() - each.random[:, 1].mean(axis=1)
        for (layer, head), after in zip(each.heads(), each.data["alone"].values.astype(bool), strict=False):
            lost, gained = int((base & ~after).sum()), int((~base & after).sum())
            p = at_least(lost, lost + gained)
            loss = float(base.mean() - after.mean())
            rows.append(
                (each.relation, each.shots, each.method, layer, head, base.mean(), loss, random.max(), p)
            )
    names = ["relation", "shots", "method", "layer", "head", "base", "loss", "loss_random", "p"]
    frame = pd.DataFrame(rows, columns=names)
    frame["q"] = false_discovery_rates(frame["p"].to_numpy(dtype=np.float64))
    frame["confirmed"] = (frame["q"] <= q_max) & (frame["loss"] > frame["loss_random"])
    return frame


def at_least(hits: int, n: int) -> float:
    """Probability of so many heads or more in n throws of a fair coin: the one-sided exact McNemar test.

    Whole numbers until the division, so it is exact; 1 for no throw.
    """
    return float(sum(comb(n, i) for i in range(hits, n + 1)) / 2**n)
