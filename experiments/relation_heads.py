"""Which heads relations share: one relation in many languages, categories, and coverage of core and all.

    python -m experiments.relation_heads ATLAS ATLAS -o DIR [--permutations 10000]

Each atlas is a map with ``--relations all``. Prints the tables and writes DIR/relation-heads.png. Heads
count where they *implement* a relation (promotion), by the criterion that the atlas is read with. All is
seeded.

Null of every test: which heads of a layer do it is chance. For each group (a language, a category) and each
layer, as many heads as it has there are drawn again from all heads of that layer, independently of the other
groups. So neither the number of heads nor their depth is tested, only whether they are the same heads. p is
the share of drawings, the observed one included, whose statistic is at least the observed one.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from numpy.typing import NDArray

import headatlas as ha
from headatlas.atlas import Atlas

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
SEED = 0
FLOOR = 0.03  # of calibration: below it no score is called
INTO_ENGLISH = "_to_english"


def main() -> None:
    """Print the tables of each atlas and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("atlases", nargs="+", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--permutations", type=int, default=10_000)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    atlases = [ha.open_atlas(path) for path in arguments.atlases]
    for atlas in atlases:
        print(f"# {atlas.caption()}\n")
        for tau in (atlas.thresholds.tau, FLOOR):
            print(f"score ≥ {tau:g}: {languages_table(atlas.at(tau=tau), arguments.permutations)}\n")
        print(categories_table(atlas, arguments.permutations).to_string(index=False), end="\n\n")
        print(coverage_table(atlas).to_string(index=False), end="\n\n")
    draw(atlases, arguments.out / "relation-heads.png")


# Who does what ---------------------------------------------------------------------------------------


def implementing(atlas: Atlas, column: str, groups: list[str]) -> Bools:
    """[group, layer, head] whether the head implements at least one relation of the group.

    Args:
        atlas: The map.
        column: ``"relation"`` or ``"category"``.
        groups: Values of that column.
    """
    table = atlas.table()
    found = np.zeros((len(groups), atlas.n_layers, atlas.n_heads), dtype=bool)
    rows = table[table["implements"] & table[column].isin(groups)]
    at = [groups.index(name) for name in rows[column]]
    found[at, rows["layer"], rows["head"]] = True
    return found


def languages(atlas: Atlas) -> list[str]:
    """The scored relations from a language into English."""
    return [name for name in atlas.included["relation"] if name.endswith(INTO_ENGLISH)]


# Statistics and their null ----------------------------------------------------------------------------


def jaccard(sets: Bools) -> Floats:
    """[..., group, group] heads in both over heads in either; 0 where both are empty.

    Args:
        sets: [..., group, head].
    """
    ones = sets.astype(np.float64)
    both = ones @ np.swapaxes(ones, -1, -2)
    sizes = ones.sum(-1)
    either = sizes[..., :, None] + sizes[..., None, :] - both
    return np.divide(both, either, out=np.zeros_like(both), where=either > 0)


def mean_overlap(sets: Bools) -> Floats:
    """[...] mean Jaccard index over the pairs of different groups."""
    values = jaccard(sets)
    first, second = np.triu_indices(values.shape[-1], k=1)
    mean: Floats = values[..., first, second].mean(-1)
    return mean


def redrawn(sets: Bools, rng: np.random.Generator) -> Bools:
    """[group, layer, head] as many heads of each layer as before, drawn at random for every group."""
    order = rng.random(sets.shape).argsort(axis=-1)
    return np.asarray(order < sets.sum(-1, keepdims=True))


def under_null(sets: Bools, permutations: int) -> tuple[Floats, Floats]:
    """The mean overlap and the pairwise numbers of shared heads in drawings of the null.

    Returns:
        [permutations] mean Jaccard index, and [permutations, group, group] heads in both.
    """
    rng = np.random.default_rng(SEED)
    overlaps, shared = [], []
    for _ in range(permutations):
        flat = redrawn(sets, rng).reshape(len(sets), -1)
        overlaps.append(mean_overlap(flat))
        ones = flat.astype(np.float64)
        shared.append(ones @ ones.T)
    return np.array(overlaps), np.array(shared)


def p_value(observed: float, null: Floats) -> float:
    """Share of drawings at least as large as the observed value, which counts as one of them."""
    return float((1 + np.sum(null >= observed - 1e-12)) / (1 + len(null)))


# Tables -----------------------------------------------------------------------------------------------


def languages_table(atlas: Atlas, permutations: int) -> str:
    """Whether the same heads translate into English from all languages; other relations are the control."""
    names = languages(atlas)
    sets = implementing(atlas, "relation", names)
    active = sets.any((1, 2))
    if active.sum() < 2:
        return f"{active.sum()} of {len(names)} languages into English have a head"
    names = [name for name, one in zip(names, active, strict=True) if one]
    sets = sets[active]
    flat = sets.reshape(len(sets), -1)
    null, _ = under_null(sets, permutations)
    observed = float(mean_overlap(flat))
    counts = flat.sum(0)
    lines = [
        f"{len(names)} languages into English with at least one head; heads of each: "
        + ", ".join(
            f"{name.removesuffix(INTO_ENGLISH)} {n}" for name, n in zip(names, flat.sum(1), strict=True)
        ),
        f"mean Jaccard index {observed:.3f}; null {null.mean():.3f} (99 % of drawings at most "
        f"{np.quantile(null, 0.99):.3f}); p = {p_value(observed, null):.1g}",
        f"heads with at least one language {np.sum(counts > 0)}, with half of them "
        f"{np.sum(counts >= len(names) / 2)}, with all {np.sum(counts == len(names))}",
        "the same heads for other things: mean Jaccard index with relations of "
        + ", ".join(f"{category} {value:.3f}" for category, value in _against_others(atlas, flat).items()),
        "most languages: "
        + ", ".join(
            f"{at // atlas.n_heads}.{at % atlas.n_heads} ({counts[at]})"
            for at in np.argsort(-counts, kind="stable")[:8]
        ),
    ]
    return "\n".join(lines)


def _against_others(atlas: Atlas, flat: Bools) -> dict[str, float]:
    """Mean Jaccard index of the translations into English with the relations of each other category."""
    found = {}
    for category, rows in atlas.included.groupby("category", sort=True):
        names = [name for name in rows["relation"] if not name.endswith(INTO_ENGLISH)]
        others = implementing(atlas, "relation", names).reshape(len(names), flat.shape[1])
        others = others[others.any(1)]
        if len(others):
            both = np.concatenate([flat, others])
            found[str(category)] = float(jaccard(both)[: len(flat), len(flat) :].mean())
    return found


def categories_table(atlas: Atlas, permutations: int) -> pd.DataFrame:
    """For each pair of categories the heads in both, beside what the null expects; Holm over the pairs."""
    names = list(atlas.category_names)
    sets = implementing(atlas, "category", names)
    flat = sets.reshape(len(sets), -1)
    _, null = under_null(sets, permutations)
    rows = []
    for a, b in combinations(range(len(names)), 2):
        both = int((flat[a] & flat[b]).sum())
        drawn = null[:, a, b]
        rows.append(
            {
                "categories": f"{names[a]}, {names[b]}",
                "heads": f"{flat[a].sum()}, {flat[b].sum()}",
                "both": both,
                "expected": round(float(drawn.mean()), 1),
                "ratio": round(both / drawn.mean(), 2) if drawn.mean() else float("nan"),
                "p": p_value(both, drawn),
            }
        )
    table = pd.DataFrame(rows)
    table["p (Holm)"] = holm(table["p"].to_numpy()).round(4)
    table["p"] = table["p"].round(4)
    return table


def holm(p: Floats) -> Floats:
    """p values adjusted for how many there are (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def coverage_table(atlas: Atlas) -> pd.DataFrame:
    """Share of heads that do at least one relation of core, and of all; by thirds those that implement it."""
    table = atlas.table()
    core = {relation.name for relation in ha.resolve_relations("core")}
    n = atlas.n_layers * atlas.n_heads
    thirds = pd.cut(table["layer"], 3, labels=["first third", "middle", "last"])
    rows = []
    for label, part in (("core", table[table["relation"].isin(core)]), ("all", table)):
        row: dict[str, object] = {"relations": f"{label} ({part['relation'].nunique()})"}
        for mark, wanted in (
            ("implements", part["implements"]),
            ("implements or suppresses", part["implements"] | part["suppresses"]),
        ):
            heads = part[wanted][["layer", "head"]].drop_duplicates()
            row[mark] = f"{len(heads)} of {n} ({len(heads) / n:.0%})"
        for third in thirds.cat.categories:
            inside = part[(thirds[part.index] == third)]
            heads = inside[["layer", "head"]].drop_duplicates()
            called = inside[inside["implements"]][["layer", "head"]].drop_duplicates()
            row[third] = f"{len(called) / len(heads):.0%}"
        rows.append(row)
    return pd.DataFrame(rows)


# Figure -----------------------------------------------------------------------------------------------


def draw(atlases: list[Atlas], path: Path) -> None:
    """Overlap of languages, and how many languages each head serves, a row for each atlas."""
    figure, axes = plt.subplots(
        len(atlases), 2, figsize=(6.7, 3.2 * len(atlases)), layout="constrained", squeeze=False
    )
    for (left, right), atlas in zip(axes, atlases, strict=True):
        names = languages(atlas)
        sets = implementing(atlas.at(tau=FLOOR), "relation", names)
        values = jaccard(sets.reshape(len(sets), -1))
        np.fill_diagonal(values, np.nan)
        image = left.imshow(values, vmin=0, vmax=1, cmap="viridis")
        labels = [name.removesuffix(INTO_ENGLISH) for name in names]
        left.set_xticks(range(len(names)), labels, rotation=90, fontsize=6)
        left.set_yticks(range(len(names)), labels, fontsize=6)
        left.set_title(f"{atlas.model_name}\nJaccard index of the heads", fontsize=8)
        figure.colorbar(image, ax=left, shrink=0.7)
        image = right.imshow(
            sets.sum(0).T, origin="lower", aspect="auto", cmap="Greens", vmin=0, vmax=len(names)
        )
        right.set_xlabel("layer", fontsize=8)
        right.set_ylabel("head", fontsize=8)
        right.yaxis.get_major_locator().set_params(integer=True)
        right.tick_params(labelsize=7)
        right.set_title(f"languages into English, score ≥ {FLOOR:g}", fontsize=8)
        figure.colorbar(image, ax=right, shrink=0.7)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
