"""Atlases compared: relation by relation, and those of one shape head by head.

*By relation*: the best head, how deep it sits, how many heads, and agreement.

*By head*: which heads lost a relation, which gained one, whose score moved. A *cell* is a head, a relation
and a sign. The same sources are asked in both atlases, so every cell has a paired test; sources count as
independent draws from the relation, as for the interval of one score. A head is held against the head of the
same layer and number; that heads may have changed places is not looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headatlas.addresses import is_url
from headatlas.atlas.atlas import Atlas, atlas_of, titles_of
from headatlas.atlas.relation_scores import SIGNS
from headatlas.atlas.store import read_array
from headatlas.errors import HeadatlasError
from headatlas.scoring.scores import false_discovery_rates, source_hits, wilson
from headatlas.showing import safe_text

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Counts = NDArray[np.integer[Any]]
Change = Literal["lost", "gained", "weaker", "stronger", ""]

FEWEST = 5
"""A correlation over fewer relations is not computed."""
RESAMPLES = 9_999
MOST_LINES = 6
"""Pairs of atlases, and steps, of a comparison that is printed."""


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

    def __repr__(self) -> str:
        names = self.table["relation"].nunique()
        out = f"; {len(self.left_out)} not compared (.left_out)" if self.left_out else ""
        lines = [f"Comparison of {' and '.join(self.labels)}: {names} relations (.table){out}"]
        for each in self.agreement[:MOST_LINES]:
            scores = "–" if each.score is None else f"{each.score:.2f}"
            depths = "–" if each.depth is None else f"{each.depth:.2f}"
            lines += [f"  {each.first}, {each.second}: correlation of scores {scores}, of depths {depths}"]
        lines += [f"  {step!r} (.changes)" for step in self.changes[:MOST_LINES]]
        lines += [f"  {self.not_by_head}"] if self.not_by_head else []
        return safe_text("\n".join(lines), keep="\n")


def compare(*atlases: Atlas | str | Path | Sequence[Atlas | str | Path]) -> Comparison:
    """Put the relations of several atlases side by side; those of one shape also head by head, in this order.

    Args:
        atlases: Two or more, or a list of them: atlases, or where they are. Of one shape are models with the
            same layers, heads and family, mapped and read alike: fine-tunes, checkpoints, quantisations.
            Heads are matched by layer and number.

    Raises:
        HeadatlasError: Fewer than two atlases, one given twice, or no relation that two of them share.
    """
    given: list[Any] = []
    for part in atlases:
        given += part if isinstance(part, list | tuple) else [part]
    if len(given) < 2:
        raise HeadatlasError("a comparison needs at least two atlases.")
    return _compared(tuple(map(atlas_of, given)))


def _compared(atlases: tuple[Atlas, ...]) -> Comparison:
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
    table = pd.DataFrame(rows)
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

    That is the lens, else the revision, else the file or id of the model alone, else the folder of the atlas,
    else a number.
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
        [
            f"{atlas.model_name} ({atlas.folder.resolve().name})"
            for atlas in atlases
            if atlas.path is not None
        ],
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
    rows = atlas.without_evidence[atlas.without_evidence["relation"] == name]
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


# Head by head ----------------------------------------------------------------------------------------

FEWEST_DISCORDANT = 6
"""With fewer sources that are hit in one alone no outcome has p ≤ 0.05: the smallest of five is 0.0625."""
CHANGES: tuple[Change, ...] = ("lost", "gained", "weaker", "stronger")
CELL_COLUMNS = (
    *("layer", "head", "relation", "sign", "score_a", "score_b", "difference", "low", "high", "p", "q"),
    *("change", "called_in", "category", "n_sources", "only_a", "only_b"),
)
CALLED_IN = ("", "a", "b", "both")


@dataclass(frozen=True)
class ChangeCounts:
    """The counts of a head-by-head comparison, over cells: head × relation × sign.

    Attributes:
        cells: Compared.
        asked: Of these, tested: at least six sources are hit in one alone.
        called_a, called_b, called_both: Called (the head implements or suppresses the relation) in each.
        expected_both: ``called_both`` if the heads of each layer of b were shuffled.
        lost, gained: q ≤ q_max, and called in a alone or in b alone.
        weaker, stronger: q ≤ q_max without that.
        unsure: Called in one alone, but q > q_max: not shown to differ.
        moves: Relations × signs that one head lost and another gained.
        heads_a, heads_b, heads_both: Heads called in any cell.
        by_chance: The most of ``lost`` to ``stronger`` that are expected to be chance: q_max of them.
        mean_difference, low, high: Mean difference of scores over cells called in either, with a 95 %
            interval (bootstrap over heads); None without such cells, or with one head.
    """

    cells: int
    asked: int
    called_a: int
    called_b: int
    called_both: int
    expected_both: float
    lost: int
    gained: int
    weaker: int
    stronger: int
    unsure: int
    moves: int
    heads_a: int
    heads_b: int
    heads_both: int
    by_chance: float
    mean_difference: float | None
    low: float | None
    high: float | None

    @property
    def different(self) -> int:
        """Cells shown to differ."""
        return self.lost + self.gained + self.weaker + self.stronger


@dataclass(frozen=True)
class HeadChanges:
    """Two atlases of one shape head by head; a is the first, b the second.

    Attributes:
        a, b: Labels of the atlases.
        table: A row per cell that is called in either or in which a source differs: layer, head, relation,
            sign (``"promotion"`` or ``"suppression"``), score_a, score_b (on the sources that both can use),
            difference (b − a) with low and high, p (exact McNemar), q (Benjamini–Hochberg over all asked
            cells of both signs; NaN in others), change (one of :data:`CHANGES`, or ``""``), called_in
            (``"a"``, ``"b"``, ``"both"`` or ``""``), category, n_sources, only_a, only_b (sources hit in one
            alone).
        relations: A row per relation and sign of which a cell is called or has changed: relation, title,
            category, sign, n_sources, called_a, called_b, called_both, lost, gained, weaker, stronger, moved,
            best_a, best_b, total (sum of the differences over cells called in either); the largest loss
            first.
        counts: Over everything.
        categories: Of the relations compared, in panel order.
        mapped: [n_layers] layers mapped in both.
        n_heads: Heads of a layer.
        q_max: Largest q of a change.
    """

    a: str
    b: str
    table: pd.DataFrame
    relations: pd.DataFrame
    counts: ChangeCounts
    categories: tuple[str, ...]
    mapped: Bools
    n_heads: int
    q_max: float

    def __repr__(self) -> str:
        n = self.counts
        return safe_text(
            f"HeadChanges from {self.a} to {self.b}: of {n.cells} cells {n.called_a} and {n.called_b} are "
            f"called, {n.called_both} in both; {n.lost} lost, {n.gained} gained, {n.weaker} weaker, "
            f"{n.stronger} stronger at q ≤ {self.q_max:g}"
        )

    @property
    def equal(self) -> bool:
        """Whether no source is hit, and no cell called, in one alone."""
        alone = self.table[["only_a", "only_b"]].to_numpy().any()
        return not alone and not self.table["called_in"].isin(["a", "b"]).any()

    @property
    def changes(self) -> pd.DataFrame:
        """The rows of :attr:`table` that are shown to differ or are called in one alone, largest first."""
        rows = self.table[(self.table["change"] != "") | self.table["called_in"].isin(["a", "b"])]
        order = np.lexsort((rows["head"], rows["layer"], -rows["difference"].abs(), rows["change"] == ""))
        return rows.iloc[order].reset_index(drop=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: a, b, counts, relations and changes as records."""
        from headatlas.atlas.export import plain_records

        return {
            "a": self.a,
            "b": self.b,
            "counts": asdict(self.counts),
            "relations": plain_records(self.relations),
            "changes": plain_records(self.changes),
        }


def why_not_by_head(first: Atlas, second: Atlas) -> str:
    """Why two atlases cannot be compared head by head; empty if they can."""
    shapes = [f"{atlas.n_layers} × {atlas.n_heads}" for atlas in (first, second)]
    if shapes[0] != shapes[1]:
        return f"they have other numbers of layers and heads ({shapes[0]}, {shapes[1]})"
    families = [atlas.provenance["model"].get("family") for atlas in (first, second)]
    if None not in families and families[0] != families[1]:
        return f"they are of different families ({families[0]}, {families[1]})"
    for what, of in _SAME_MAP.items():
        if of(first) != of(second):
            return f"they differ in {what} ({of(first)}, {of(second)})"
    if not (first.layers_done & second.layers_done).any():
        return "no layer is mapped in both"
    return ""


_SAME_MAP: dict[str, Callable[[Atlas], Any]] = {
    "the lens": lambda atlas: atlas.lens,
    "the prefixes of the lens": lambda atlas: atlas.provenance["lens"].get("prefixes", []),
    "the target policy": lambda atlas: atlas.provenance.get("target_policy", "single"),
    "which tokens compete": lambda atlas: "all" if not atlas.provenance["mask"] else "those of texts",
    "the thresholds": lambda atlas: atlas.thresholds.describe(),
}


def head_changes(
    first: Atlas, second: Atlas, relations: list[str], labels: tuple[str, str] = ("a", "b")
) -> HeadChanges:
    """Compare two atlases that :func:`why_not_by_head` has nothing against, head by head, on relations that
    both score on the same pairs."""
    mapped = first.layers_done & second.layers_done
    layers = np.flatnonzero(mapped)
    calls = [atlas.calls.sel(relation=relations).values[:, mapped] for atlas in (first, second)]
    categories = dict(zip(first.relations["relation"], first.relations["category"], strict=True))
    parts, shuffled = [], 0.0
    for name, sign, in_a, in_b in _paired_hits(first, second, relations, mapped):
        a, b = (each[SIGNS.index(sign), ..., relations.index(name)] for each in calls)
        shuffled += float((a.sum(axis=1) * b.sum(axis=1)).sum()) / first.n_heads
        found = _cells(in_a, in_b, a, b, layers)
        parts.append(found.assign(relation=name, sign=sign, category=categories[name]))
    if not parts:
        raise HeadatlasError(f"{labels[0]} and {labels[1]}: no pair of words can be used in both.")
    table = pd.concat(parts, ignore_index=True)
    asked = (table["only_a"] + table["only_b"]).to_numpy() >= FEWEST_DISCORDANT
    table["q"] = false_discovery_rates(np.where(asked, table["p"].to_numpy(), np.nan))
    table["change"] = _change(table, first.thresholds.q_max)
    table = table[list(CELL_COLUMNS)]
    by_relation = _by_relation(table, first, second)
    n_cells = len(relations) * len(SIGNS) * int(mapped.sum()) * first.n_heads
    counts = _counts(table, by_relation, n_cells, int(asked.sum()), shuffled, first.thresholds.q_max)
    there = {categories[name] for name in relations}
    return HeadChanges(
        *labels,
        table,
        by_relation,
        counts,
        categories=tuple(name for name in first.category_names if name in there),
        mapped=mapped,
        n_heads=first.n_heads,
        q_max=first.thresholds.q_max,
    )


def _paired_hits(
    first: Atlas, second: Atlas, relations: list[str], mapped: Bools
) -> Iterator[tuple[str, str, Bools, Bools]]:
    """Relation, sign and, for each atlas, [mapped layers, n_heads, n_sources] which sources are hit.

    Only pairs that both atlases can use count, found by their words; at least one source has such pairs.
    """
    names = first.relations["relation"].tolist()
    k = dict(zip(names, first.relations["k"].tolist(), strict=True))
    usable = [_usable_pairs(atlas) for atlas in (first, second)]
    ranks = [
        {sign: read_array(atlas.dataset, f"{sign}_rank")[mapped] for sign in SIGNS}
        for atlas in (first, second)
    ]
    for name in relations:
        words = sorted(usable[0][name].keys() & usable[1][name].keys())
        source, distinct = pd.factorize(np.array([source for source, _ in words], dtype=object))
        for sign in SIGNS if words else ():
            a, b = (
                source_hits(
                    each[sign][..., [at[name][pair] for pair in words]], source, len(distinct), k[name]
                )
                for each, at in zip(ranks, usable, strict=True)
            )
            yield name, sign, a, b


def _usable_pairs(atlas: Atlas) -> dict[str, dict[tuple[str, str], int]]:
    """Relation → usable (source, target) as written → position on the pair axis."""
    data = atlas.dataset
    names = atlas.relations["relation"].tolist()
    found: dict[str, dict[tuple[str, str], int]] = {name: {} for name in names}
    usable = np.flatnonzero(read_array(data, "pair_source") >= 0)
    columns = (read_array(data, name)[usable].tolist() for name in ("pair_relation", "source", "target"))
    for at, relation, source, target in zip(usable.tolist(), *columns, strict=True):
        found[names[relation]][source, target] = at
    return found


def _cells(in_a: Bools, in_b: Bools, a: Bools, b: Bools, layers: NDArray[np.intp]) -> pd.DataFrame:
    """The cells of one relation and sign in which something is called or a source differs."""
    both, only_a, only_b = (each.sum(axis=-1) for each in (in_a & in_b, in_a & ~in_b, in_b & ~in_a))
    layer, head = np.nonzero(a | b | (only_a + only_b > 0))
    n = in_a.shape[-1]
    both, only_a, only_b = (each[layer, head] for each in (both, only_a, only_b))
    difference, low, high = paired_difference(both, only_a, only_b, n)
    return pd.DataFrame(
        {
            "layer": layers[layer],
            "head": head,
            "score_a": (both + only_a) / n,
            "score_b": (both + only_b) / n,
            "difference": difference,
            "low": low,
            "high": high,
            "p": mcnemar(only_a, only_b),
            "called_in": np.array(CALLED_IN, dtype=object)[a[layer, head] + 2 * b[layer, head]],
            "n_sources": n,
            "only_a": only_a,
            "only_b": only_b,
        }
    )


def _change(table: pd.DataFrame, q_max: float) -> NDArray[np.object_]:
    shown = table["q"].to_numpy() <= q_max
    down, called = table["difference"].to_numpy() < 0, table["called_in"].to_numpy()
    kinds = {
        "lost": down & (called == "a"),
        "gained": ~down & (called == "b"),
        "weaker": down & (called != "a"),
        "stronger": ~down & (called != "b"),
    }
    return np.select([shown & mask for mask in kinds.values()], list(kinds), default="").astype(object)


def _by_relation(table: pd.DataFrame, first: Atlas, second: Atlas) -> pd.DataFrame:
    """The rows of :attr:`HeadChanges.relations`."""
    titles = titles_of(first)
    rows = []
    for (name, sign), cells in table.groupby(["relation", "sign"], sort=False):
        numbers = _numbers(cells)
        called = cells[cells["called_in"] != ""]
        if not any(numbers.values()):
            continue
        best = [
            float(np.nanmax(each.relation_scores[str(name)].of(str(sign))[0])) for each in (first, second)
        ]
        rows.append(
            {
                "relation": name,
                "title": titles[str(name)],
                "category": cells["category"].iloc[0],
                "sign": sign,
                "n_sources": int(cells["n_sources"].iloc[0]),
                **numbers,
                "moved": bool(numbers["lost"] and numbers["gained"]),
                "best_a": best[0],
                "best_b": best[1],
                "total": float(called["difference"].sum()),
            }
        )
    names = ("relation", "title", "category", "sign", "n_sources", "called_a", "called_b", "called_both")
    columns = [*names, *CHANGES, "moved", "best_a", "best_b", "total"]
    frame = pd.DataFrame(rows, columns=columns).astype({"moved": bool})  # also where there is no row
    return frame.sort_values("total", kind="stable", ignore_index=True)


def _counts(
    table: pd.DataFrame, relations: pd.DataFrame, cells: int, asked: int, shuffled: float, q_max: float
) -> ChangeCounts:
    in_a, in_b = (table["called_in"].isin([each, "both"]) for each in ("a", "b"))
    heads = [set(zip(rows["layer"], rows["head"], strict=True)) for rows in (table[in_a], table[in_b])]
    mean, low, high = _mean_difference(table[in_a | in_b])
    return ChangeCounts(
        cells=cells,
        asked=asked,
        expected_both=shuffled,
        **_numbers(table),
        unsure=int(((in_a != in_b) & (table["change"] == "")).sum()),
        moves=int(relations["moved"].sum()),
        heads_a=len(heads[0]),
        heads_b=len(heads[1]),
        heads_both=len(heads[0] & heads[1]),
        by_chance=q_max * int((table["change"] != "").sum()),
        mean_difference=mean,
        low=low,
        high=high,
    )


def _numbers(cells: pd.DataFrame) -> dict[str, int]:
    """How many cells are called in a, in b and in both, and how many are of each change."""
    n = cells["called_in"].value_counts()
    both = int(n.get("both", 0))
    called = {"called_a": int(n.get("a", 0)) + both, "called_b": int(n.get("b", 0)) + both}
    changes: dict[str, int] = {kind: int((cells["change"] == kind).sum()) for kind in CHANGES}
    return {**called, "called_both": both, **changes}


def _mean_difference(called: pd.DataFrame) -> tuple[float | None, float | None, float | None]:
    """Mean difference over cells, with a percentile interval: heads are drawn anew with all their cells.

    Cells called in *either* are chosen without regard to direction, so a chance fall of one is as likely as
    a chance rise of another; cells called in a alone would fall by selection.
    """
    if len(called) == 0:
        return None, None, None
    by_head = called.groupby(["layer", "head"])["difference"]
    total, n = by_head.sum().to_numpy(), by_head.count().to_numpy()
    mean = float(total.sum() / n.sum())
    if len(total) < 2:
        return mean, None, None
    from scipy import stats

    found = stats.bootstrap(
        (total, n),
        lambda total, n, axis: total.sum(axis=axis) / n.sum(axis=axis),
        n_resamples=RESAMPLES,
        batch=100,  # the heads of a large model, 9,999 times, would not fit
        paired=True,
        vectorized=True,
        method="percentile",
        random_state=0,
    )
    return mean, float(found.confidence_interval.low), float(found.confidence_interval.high)


# Two shares of the same sources ------------------------------------------------------------------------


def mcnemar(only_first: Counts, only_second: Counts) -> Floats:
    """Exact two-sided p of McNemar's test: given how many sources differ, each is as likely lost as gained.

    Of arrays of one shape: sources hit in one alone. 1 where none differs.
    """
    from scipy.special import bdtr

    fewer, all_ = np.minimum(only_first, only_second), only_first + only_second
    return np.minimum(1.0, 2.0 * np.asarray(bdtr(fewer, all_, 0.5), dtype=np.float64))


def paired_difference(
    both: Counts, only_first: Counts, only_second: Counts, n: int
) -> tuple[Floats, Floats, Floats]:
    """Second share less the first, with its 95 % interval.

    Newcombe's method 10 (*Statistics in Medicine* 17, 1998, 2635–2650): the Wilson intervals of both shares
    put together by their correlation over sources, which is corrected for continuity. Of arrays of one shape:
    sources, of n, hit in both and in one alone; returns (difference, low, high) of that shape.
    """
    first, second = both + only_first, both + only_second
    neither = n - both - only_first - only_second
    low_1, high_1 = wilson(first, n)
    low_2, high_2 = wilson(second, n)
    share_1, share_2 = first / n, second / n
    product = both * neither - only_first * only_second
    corrected = np.where(product > 0, np.maximum(product - n / 2, 0.0), product)
    scale = np.sqrt(first.astype(float) * (n - first) * second * (n - second))
    phi = np.divide(corrected, scale, out=np.zeros_like(scale), where=scale > 0)

    def joined(one: Floats, other: Floats) -> Floats:
        root: Floats = np.sqrt(np.maximum(one**2 - 2 * phi * one * other + other**2, 0.0))
        return root

    difference = (only_second - only_first) / n
    low = difference - joined(share_2 - low_2, high_1 - share_1)
    high = difference + joined(high_2 - share_2, share_1 - low_1)
    return difference, low, high
