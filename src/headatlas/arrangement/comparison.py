"""Compare atlases relation by relation: the best head, how deep it sits, how many heads, and agreement.

Atlases of one shape are compared head by head as well (:mod:`headatlas.arrangement.changes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headatlas.addresses import is_url
from headatlas.arrangement.changes import HeadChanges, head_changes, why_not_by_head
from headatlas.errors import HeadatlasError

if TYPE_CHECKING:
    from headatlas.atlas import Atlas

Floats = NDArray[np.float64]

FEWEST = 5
"""A correlation over fewer relations is not computed."""
RESAMPLES = 9_999

COLUMNS = (
    *("relation", "title", "category", "atlas", "layer", "head", "depth", "score", "low", "high", "q"),
    *("control", "added", "n_sources", "n_implementing", "median_depth"),
)


@dataclass(frozen=True)
class RelationAgreement:
    """Spearman correlations between two atlases over relations; None where there are fewer than five.

    Attributes:
        first, second: Labels of the atlases.
        score, score_p, n_score: Of the best scores, over all relations that both have; p by permutation.
        depth, depth_p, n_depth: Of the relative depths of the best heads, over relations that both implement.
    """

    first: str
    second: str
    score: float | None
    score_p: float | None
    n_score: int
    depth: float | None
    depth_p: float | None
    n_depth: int


@dataclass(frozen=True)
class Comparison:
    """Several atlases side by side.

    Attributes:
        labels: What each atlas is called, in the order given.
        table: A row per relation and atlas: its best head (layer, head), that head's relative depth (0 the
            first layer, 1 the last), score, 95 % interval, q, control, added, number of sources; number of
            heads that implement the relation and their median relative depth (NaN if none does).
        agreement: Every pair of atlases.
        left_out: Relation → why it is not compared.
        captions: What each atlas is and how it is read.
        changes: Each atlas and the next head by head, where all have one shape; else empty.
        not_by_head: Why ``changes`` is empty; empty where it is not.
    """

    labels: tuple[str, ...]
    table: pd.DataFrame
    agreement: tuple[RelationAgreement, ...]
    left_out: dict[str, str]
    captions: tuple[str, ...]
    changes: tuple[HeadChanges, ...]
    not_by_head: str


def compare(*atlases: Atlas) -> Comparison:
    """Put the relations of several atlases side by side; those of one shape also head by head, in this order.

    Args:
        atlases: Two or more. Of one shape are models with the same layers, heads and family, mapped and read
            alike: fine-tunes, checkpoints, quantisations. Heads are matched by layer and number.

    Raises:
        HeadatlasError: Fewer than two atlases, one given twice, or no relation that two of them share.
    """
    if len(atlases) < 2:
        raise HeadatlasError("a comparison needs at least two atlases.")
    for first, second in combinations(atlases, 2):
        if _same(first, second):
            raise HeadatlasError(
                f"{second.path or second.model_name}: the same atlas is given twice, so there is nothing to "
                "compare; give each once."
            )
    labels = labels_of(atlases)
    names, left_out = _shared_relations(atlases)
    if not names:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:3])
        raise HeadatlasError(f"these atlases share no relation that is scored in two of them ({why}).")
    rows = [
        _row(atlas, label, name)
        for name in names
        for atlas, label in zip(atlases, labels, strict=True)
        if name in set(atlas.included["relation"])
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    pairs = tuple(_agreement(table, first, second) for first, second in combinations(labels, 2))
    captions = tuple(atlas.caption() for atlas in atlases)
    changes, why = _by_head(atlases, labels, names)
    return Comparison(labels, table, pairs, left_out, captions, changes, why)


def _by_head(
    atlases: Sequence[Atlas], labels: Sequence[str], names: Sequence[str]
) -> tuple[tuple[HeadChanges, ...], str]:
    """Each atlas and the next head by head, or why not."""
    steps = list(pairwise(zip(atlases, labels, strict=True)))
    for (first, a), (second, b) in steps:
        if why := why_not_by_head(first, second):
            return (), f"{a} and {b} are not compared head by head: {why}"
    found = []
    for (first, a), (second, b) in steps:
        scored = [set(atlas.included["relation"]) for atlas in (first, second)]
        shared = [name for name in names if all(name in each for each in scored)]
        found.append(head_changes(first, second, shared, (a, b)))
    return tuple(found), ""


def _same(first: Atlas, second: Atlas) -> bool:
    """Whether two are one atlas, read alike; a link to a folder is that folder."""
    if first.thresholds != second.thresholds:
        return False
    if first.dataset is second.dataset:
        return True
    paths = [path.resolve() if isinstance(path, Path) else path for path in (first.place, second.place)]
    return paths[0] is not None and paths[0] == paths[1]


def labels_of(atlases: Sequence[Atlas]) -> tuple[str, ...]:
    """Short different names: the model's, or where models repeat that with what tells them apart.

    That is the lens, else the revision, else the file or id of the model alone, else a number.
    """
    names = [atlas.model_name for atlas in atlases]
    models = [atlas.provenance["model"] for atlas in atlases]
    specs = [str(model.get("spec")) for model in models]
    with_lens = [f"{atlas.model_name} ({atlas.lens})" for atlas in atlases]
    revisions = [model.get("revision") for model in models]
    with_revision = [f"{name} ({revision})" for name, revision in zip(names, revisions, strict=True)]
    for told in (
        names,
        with_lens,
        with_revision if None not in revisions else [],
        [spec if is_url(spec) else Path(spec).name for spec in specs],
    ):
        if len(set(told)) == len(atlases):
            return tuple(told)
    return tuple(
        f"{name} #{with_lens[: at + 1].count(name)}" if with_lens.count(name) > 1 else name
        for at, name in enumerate(with_lens)
    )


def _shared_relations(atlases: Sequence[Atlas]) -> tuple[list[str], dict[str, str]]:
    """Relations scored in two atlases or more with the same pairs, by category; others with the reason."""
    categories = list(dict.fromkeys(name for atlas in atlases for name in atlas.category_names))
    every = pd.concat([_relations(atlas) for atlas in atlases])
    every = every.sort_values("category", key=lambda names: names.map(categories.index), kind="stable")
    names: list[str] = []
    left_out: dict[str, str] = {}
    for at, rows in every.groupby("relation", sort=False):
        name = str(at)
        hashes, scored = set(rows["sha256"]), int(rows["scored"].sum())
        if len(hashes) > 1:
            left_out[name] = "its pairs differ between the atlases"
        elif scored < 2:
            left_out[name] = f"scored in {scored} of {len(atlases)} atlases"
        elif not all(atlas.layers_done.any() for atlas in atlases):
            left_out[name] = "an atlas has no mapped layer"
        else:
            names.append(name)
    return names, left_out


def _relations(atlas: Atlas) -> pd.DataFrame:
    """Relation, category, sha256 of its pairs and whether it is scored."""
    frame = atlas.relations[["relation", "category"]]
    scored = frame["relation"].isin(atlas.included["relation"])
    return frame.assign(sha256=atlas.dataset["relation_sha256"].values, scored=scored)


def _row(atlas: Atlas, label: str, name: str) -> dict[str, Any]:
    rows = atlas.table()[atlas.table()["relation"] == name].reset_index(drop=True)
    best = rows.to_dict("records")[int(rows["score"].to_numpy(dtype=float).argmax())]
    info = atlas.included[atlas.included["relation"] == name].to_dict("records")[0]
    implementing = rows["layer"][rows["implements"].to_numpy(dtype=bool)].to_numpy(dtype=float)
    deepest = max(1, atlas.n_layers - 1)
    return {
        "relation": name,
        "title": info["title"],
        "category": info["category"],
        "atlas": label,
        "layer": int(best["layer"]),
        "head": int(best["head"]),
        "depth": float(best["layer"]) / deepest,
        **{column: float(best[column]) for column in ("score", "low", "high", "q", "control", "added")},
        "n_sources": int(info["n_sources"]),
        "n_implementing": len(implementing),
        "median_depth": float(np.median(implementing)) / deepest if len(implementing) else float("nan"),
    }


def _agreement(table: pd.DataFrame, first: str, second: str) -> RelationAgreement:
    one, other = (table[table["atlas"] == label] for label in (first, second))
    both = one.merge(other, on="relation", suffixes=("_1", "_2"))
    implemented = both[(both["n_implementing_1"] > 0) & (both["n_implementing_2"] > 0)]
    score, score_p = permutation_spearman(both["score_1"].to_numpy(float), both["score_2"].to_numpy(float))
    depth, depth_p = permutation_spearman(
        implemented["depth_1"].to_numpy(float), implemented["depth_2"].to_numpy(float)
    )
    return RelationAgreement(first, second, score, score_p, len(both), depth, depth_p, len(implemented))


def permutation_spearman(x: Floats, y: Floats) -> tuple[float | None, float | None]:
    """Rank correlation and its two-sided permutation p; None with too few values, or where all are equal."""
    from scipy import stats

    if len(x) < FEWEST or len(np.unique(x)) == 1 or len(np.unique(y)) == 1:
        return None, None
    first, second = stats.rankdata(x), stats.rankdata(y)
    # Pearson of the ranks; centred, so that each pairing costs one product.
    first, second = first - first.mean(), second - second.mean()
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))

    def correlation(ranks: Floats, axis: int = -1) -> Floats:
        return np.asarray((ranks * second).sum(axis=axis) / scale)

    found = stats.permutation_test(
        (first,),
        correlation,
        permutation_type="pairings",
        vectorized=True,
        n_resamples=RESAMPLES,
        random_state=0,
    )
    return float(found.statistic), float(found.pvalue)
