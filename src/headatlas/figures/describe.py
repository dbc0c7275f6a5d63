"""The figure in words, from the numbers alone.

It says what the atlas shows, with the number for each statement, and then what may not be concluded from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from headatlas.arrangement.bands import Band, shortest_band
from headatlas.figures.caveats import caveats
from headatlas.figures.depth import depth
from headatlas.figures.words import amount, joined, list_layers, p_value

if TYPE_CHECKING:
    from headatlas.atlas import Atlas

ALT_LIMIT = 600
"""Longest alternative text, in characters: what a screen reader says in half a minute."""
MOST = 5
"""How many heads lists name."""


def describe(atlas: Atlas) -> str:
    """The categories figure in words: paragraphs of plain text, a blank line between them.

    Every number is computed from the atlas as it is read now (k, τ, criterion).
    """
    parts = [_opening(atlas)]
    if not atlas.layers_done.any() or len(atlas.included) == 0:
        what = "No layer has been mapped yet" if len(atlas.included) else "No relation could be scored"
        return "\n\n".join([*parts, f"{what}, so nothing can be said about any head.", *caveats(atlas)])
    heads = atlas.categories()
    parts += [_counts(atlas, heads), _bands(atlas, heads), *depth(atlas, heads), _most(heads)]
    parts += [_best(atlas), _suppression(atlas), *caveats(atlas)]
    return "\n\n".join(part for part in parts if part)


def alt_text(atlas: Atlas, kind: str = "categories") -> str:
    """The alternative text of a figure: what it shows and its main numbers, at most 600 characters.

    Args:
        kind: ``"categories"``, ``"relations"`` or ``"layers"``.
    """
    what = {
        "categories": "Heatmaps of layer by head, one for all categories and one for each",
        "relations": "Heatmaps of layer by head, one for each relation, coloured by score",
        "layers": "Share of each layer's heads in each category, with the no-head control as a line",
    }[kind]
    sentences = [f"{what}. {caption_head(atlas)}."]
    heads = atlas.categories()
    called = heads[heads["n_categories"] > 0]
    if len(heads) == 0:
        sentences.append("No layer has been mapped yet.")
    elif len(atlas.included) == 0:
        sentences.append("No relation could be scored.")
    elif len(called) == 0:
        sentences.append(
            f"None of its {amount(len(heads), 'mapped head')} implements or suppresses a relation."
        )
    else:
        sentences.append(
            f"Heads that implement or suppress a relation: {len(called)} of {len(heads)}, "
            f"{_levels(atlas, called)}."
        )
        band = shortest_band(called["layer"].to_numpy(), 0.8)
        sentences.append(f"In {list_layers(band.first, band.last)}: {band.inside}.")
        sentences.append(f"By category: {_panels(atlas, called)}.")
    missing = int((~atlas.layers_done).sum()) - len(atlas.layers_without_heads)
    if len(heads) > 0 and missing:
        sentences.append(f"Layers not mapped: {missing}.")
    text = ""
    for sentence in sentences:
        if len(text) + len(sentence) + 1 <= ALT_LIMIT:
            text = f"{text} {sentence}".strip()
    return text or sentences[0][: ALT_LIMIT - 1] + "…"


def caption_head(atlas: Atlas) -> str:
    """Model, size, lens and criterion in one phrase."""
    size = f"{amount(atlas.n_layers, 'layer')} × {amount(atlas.n_heads, 'head')}"
    return f"{atlas.model_name}, {size}, lens {atlas.lens}, {atlas.thresholds.describe()}"


def _opening(atlas: Atlas) -> str:
    included = atlas.included
    categories = amount(included["category"].nunique(), "category")
    text = (
        f"{caption_head(atlas)}. Scored: {amount(len(included), 'relation')} in {categories}. A head belongs "
        "to a category if it implements (promotes) or suppresses at least one of its relations."
    )
    headless = atlas.layers_without_heads
    if headless:
        text += (
            f" No attention heads: {amount(len(headless), 'layer')} ({_runs(headless)}); they are left out."
        )
    missing = np.setdiff1d(np.flatnonzero(~atlas.layers_done), headless)
    if len(missing):
        text += f" Not mapped: {amount(len(missing), 'layer')} ({_runs(missing)}); nothing below counts them."
    return text


def _runs(layers: Sequence[int] | np.typing.NDArray[np.intp]) -> str:
    """Sorted layers as runs: 0–3, 7."""
    groups = np.split(np.asarray(layers), np.flatnonzero(np.diff(layers) > 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in groups)


def _levels(atlas: Atlas, called: pd.DataFrame) -> str:
    """Heads per number of categories, up to the largest number that any head has."""
    highest = int(called["n_categories"].max())
    counts = [
        f"{int((called['n_categories'] == level).sum())} in {amount(level, 'category')}"
        for level in range(1, highest + 1)
    ]
    return joined([*counts, "none in more"] if highest < len(atlas.category_names) else counts)


def _panels(atlas: Atlas, called: pd.DataFrame) -> str:
    counts = [(name, sum(name in which for which in called["which"])) for name in atlas.category_names]
    return joined([f"{name} {n}" for name, n in counts])


def _counts(atlas: Atlas, heads: pd.DataFrame) -> str:
    called = heads[heads["n_categories"] > 0]
    if len(called) == 0:
        mapped = amount(len(heads), "mapped head")
        return f"None of the {mapped} implements or suppresses a relation: every panel is blank."
    share = f"{100 * len(called) / len(heads):.0f} %"
    text = (
        f"Mapped heads in a category: {len(called)} of {len(heads)} ({share}), {_levels(atlas, called)}. "
        f"Heads by panel: {_panels(atlas, called)}."
    )
    scored = set(atlas.included["category"])
    empty = [name for name in atlas.category_names if name not in scored]
    return text + (f" No relation of {joined(empty)} is scored." if empty else "")


def _bands(atlas: Atlas, heads: pd.DataFrame) -> str:
    called = heads[heads["n_categories"] > 0]
    if len(called) == 0:
        return ""
    layers, numbers = called["layer"].to_numpy(), called["head"].to_numpy()
    half, most = shortest_band(layers, 0.5), shortest_band(layers, 0.8)
    wide = shortest_band(numbers, 0.8)
    per_layer = called["layer"].value_counts().sort_index()
    at = int(per_layer.to_numpy().argmax())
    fullest, largest = int(per_layer.index[at]), int(per_layer.iloc[at])
    run = list_layers(most.first, most.last)
    return (
        f"The shortest run of layers that holds half of these heads is {list_layers(half.first, half.last)} "
        f"({amount(half.inside, 'head')}); 80 % need {run} ({amount(most.inside, 'head')}, {most.length} of "
        f"{amount(atlas.n_layers, 'layer')}). Layer {fullest} has most: {largest} of {atlas.n_heads}. "
        f"Along the head axis 80 % need {heads_run(wide)} ({wide.length} of {atlas.n_heads}); the numbering "
        "of heads has no meaning of its own."
    )


def heads_run(band: Band) -> str:
    """``head 3`` or ``heads 3–7``."""
    return list_layers(band.first, band.last).replace("layer", "head")


def _most(heads: pd.DataFrame) -> str:
    called = heads[heads["n_categories"] > 0]
    if len(called) == 0:
        return ""
    n_relations = called["relations"].map(len).to_numpy()
    order = np.lexsort((called["head"], called["layer"], -n_relations, -called["n_categories"].to_numpy()))
    rows = []
    for at in order[:MOST]:
        row = called.iloc[at]
        carried = f"{amount(row['n_categories'], 'category')}, {amount(len(row['relations']), 'relation')}"
        rows.append(f"{row['layer']}.{row['head']} ({carried})")
    return f"Heads that carry most (layer.head): {joined(rows)}."


def _best(atlas: Atlas) -> str:
    lines = []
    titles = dict(zip(atlas.included["relation"], atlas.included["title"], strict=True))
    table = atlas.table()
    counts = table.groupby("relation")[["implements", "suppresses"]].sum()
    for category in atlas.category_names:
        for name in atlas.included["relation"][atlas.included["category"] == category]:
            rows = table[table["relation"] == name].reset_index(drop=True)
            best = rows.loc[int(rows["score"].to_numpy().argmax())]
            implement, suppress = (int(counts.loc[name, column]) for column in ("implements", "suppresses"))
            lines.append(
                f"- {titles[name]} ({category}): {_score(best)}; "
                f"heads that implement it: {implement}, that suppress it: {suppress}"
            )
    return "Best head of each relation (layer.head):\n" + "\n".join(lines)


def _score(row: pd.Series) -> str:
    if row["score"] == 0:
        return "no head scores above 0"
    interval = f"95 % interval {row['low']:.2f}–{row['high']:.2f}, {p_value(row['q'], 'q')}"
    return (
        f"{row['layer']}.{row['head']} scores {row['score']:.2f} ({interval}), the state alone "
        f"{row['control']:.2f}, added {row['added']:.2f}"
    )


def _suppression(atlas: Atlas) -> str:
    table = atlas.table()
    rows = table[table["suppresses"]]
    if len(rows) == 0:
        return "No head suppresses a relation."
    titles = dict(zip(atlas.included["relation"], atlas.included["title"], strict=True))
    heads = set(zip(rows["layer"], rows["head"], strict=True))
    promoting = table[table["implements"]]
    only = heads - set(zip(promoting["layer"], promoting["head"], strict=True))
    order = np.lexsort((rows["head"], rows["layer"], -rows["suppression"].to_numpy()))
    named = [
        f"{row['layer']}.{row['head']} {titles[row['relation']]} ({row['suppression']:.2f})"
        for _, row in rows.iloc[order[:MOST]].iterrows()
    ]
    return (
        f"Heads that suppress at least one relation: {len(heads)} "
        f"({amount(len(rows), 'head–relation pair')}); heads "
        f"that only suppress: {len(only)}. Strongest: {joined(named)}."
    )
