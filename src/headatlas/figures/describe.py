"""The figure in words, from the numbers alone: findings first, then what they do not say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from headatlas.arrangement.model_structure import (
    SMALLEST_GROUP,
    DepthTest,
    Ints,
    compare_depths,
    layers_by_category,
    quartiles,
    shortest_band,
    single_token_atlas,
)
from headatlas.atlas.atlas import meets_criterion, titles_of
from headatlas.atlas.cards import CAVEAT as COVERAGE_CAVEAT
from headatlas.atlas.cards import coverage_sentence
from headatlas.atlas.relation_scores import all_single
from headatlas.scoring.scores import p_value
from headatlas.showing import safe_text

if TYPE_CHECKING:
    from headatlas.atlas import Atlas
    from headatlas.options import Thresholds

ALT_LIMIT = 600
"""Longest alternative text, in characters: what a screen reader says in half a minute."""
MOST = 5
"""How many heads lists name."""
OTHER_TAUS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)

_LENSES = {
    "neutral": (
        "The states are the model's own after {prefixes}: inference without the context of a real text, not "
        "a reading of the weights alone. Behaviour in context, attention and ablation are separate evidence."
    ),
    "maps": (
        "The states come from weights alone: the embedding in layer 0, the first block's MLP on it later. "
        "Where the model's own states differ from these, heads score low without being idle."
    ),
}


def describe(atlas: Atlas) -> str:
    """The categories figure in words: paragraphs of plain text, a blank line between them.

    Every number is computed from the atlas as it is read now (k, τ, criterion).
    """
    if not atlas.layers_done.any() or len(atlas.included) == 0:
        what = "No layer has been mapped yet" if len(atlas.included) else "No relation could be scored"
        parts = [f"{what}, so nothing can be said about any head of {caption_head(atlas)}."]
    else:
        heads = atlas.categories()
        parts = [
            _finding(atlas, heads),
            f"{coverage_sentence(atlas)}. {COVERAGE_CAVEAT[0].upper()}{COVERAGE_CAVEAT[1:]}.",
        ]
        parts += [_strongest(atlas, heads), _relations(atlas), *_depth(atlas, heads)]
    parts += [_not_mapped(atlas), f"Read with: {caption_head(atlas)}.", _caveats(atlas)]
    return safe_text("\n\n".join(part for part in parts if part), keep="\n")


def alt_text(atlas: Atlas, kind: str = "categories", each: str = "") -> str:
    """The alternative text of a figure of a map: what it shows and its main numbers, at most 600 characters.

    ``each`` says which panels the categories figure has, where they are not the categories.
    """
    what = {
        "categories": f"Heatmaps of layer by head, one for all categories and one for each {each}".rstrip(),
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


# The findings -------------------------------------------------------------------------------------


def _finding(atlas: Atlas, heads: pd.DataFrame) -> str:
    """Number of heads that do something, in which categories and layers."""
    called = heads[heads["n_categories"] > 0]
    asked = amount(len(atlas.included), "relation")
    if len(called) == 0:
        mapped = amount(len(heads), "mapped head")
        return (
            f"None of the {mapped} implements or suppresses one of the {asked} asked: every panel is blank."
        )
    layers = called["layer"].to_numpy()
    half, most = shortest_band(layers, 0.5), shortest_band(layers, 0.8)
    per_layer = called["layer"].value_counts().sort_index()
    fullest = int(per_layer.to_numpy().argmax())
    text = (
        f"{len(called)} of {amount(len(heads), 'mapped head')} ({100 * len(called) / len(heads):.0f} %) "
        f"implement or suppress at least one of the {asked} asked: {_levels(atlas, called)}. "
        f"By category: {_panels(atlas, called)}. "
        f"Half of them ({half.inside}) are in {list_layers(half.first, half.last)}, 80 % ({most.inside}) in "
        f"{list_layers(most.first, most.last)} of {amount(atlas.n_layers, 'layer')}; layer "
        f"{per_layer.index[fullest]} has most, {per_layer.iloc[fullest]} of {atlas.n_heads}."
    )
    scored = set(atlas.included["category"])
    empty = [name for name in atlas.category_names if name not in scored]
    return text + (f" No relation of {join_words(empty)} is scored." if empty else "")


def _levels(atlas: Atlas, called: pd.DataFrame) -> str:
    """Heads per number of categories, up to the largest number that any head has."""
    highest = int(called["n_categories"].max())
    n_heads = np.bincount(called["n_categories"])
    counts = [f"{n_heads[level]} in {amount(level, 'category')}" for level in range(1, highest + 1)]
    return join_words([*counts, "none in more"] if highest < len(atlas.category_names) else counts)


def _panels(atlas: Atlas, called: pd.DataFrame) -> str:
    n_heads = called["which"].explode().value_counts()
    return join_words([f"{name} {n_heads.get(name, 0)}" for name in atlas.category_names])


def _strongest(atlas: Atlas, heads: pd.DataFrame) -> str:
    """The heads that score highest, promoting and suppressing, and those that carry most."""
    called = heads[heads["n_categories"] > 0]
    if len(called) == 0:
        return ""
    table, parts = atlas.table(), []
    for verb, column, word in (
        ("implements", "score", "Strongest"),
        ("suppresses", "suppression", "Suppressing"),
    ):
        rows = table[table[verb]]
        if len(rows):
            ordered = rows.sort_values(column, ascending=False, kind="stable")
            best = ordered.drop_duplicates("relation").head(MOST)
            named = [
                f"{row['layer']}.{row['head']} {titles_of(atlas)[row['relation']]} ({row[column]:.2f})"
                for row in best.to_dict("records")
            ]
            parts.append(f"{word}: {join_words(named)}.")
    suppressing, promoting = (
        set(table.loc[table[verb], ["layer", "head"]].itertuples(index=False, name=None))
        for verb in ("suppresses", "implements")
    )
    if suppressing:
        only, verb = len(suppressing - promoting), "suppresses" if len(suppressing) == 1 else "suppress"
        parts.append(
            f"{amount(len(suppressing), 'head')} {verb} a relation: {only} without implementing any, "
            f"{len(suppressing) - only} beside others implemented."
        )
    most = called.assign(n=called["relations"].map(len)).sort_values(
        ["n_categories", "n", "layer", "head"], ascending=[False, False, True, True]
    )
    carried = [
        f"{row['layer']}.{row['head']} ({amount(row['n_categories'], 'category')}, "
        f"{amount(row['n'], 'relation')})"
        for row in most.head(MOST).to_dict("records")
    ]
    return " ".join([*parts, f"Carrying most: {join_words(carried)}."])


def _relations(atlas: Atlas) -> str:
    """The best head of each relation that some head does; the others in one line."""
    titles, table = titles_of(atlas), atlas.table()
    lines, below = [], []
    for category in atlas.category_names:
        for name in atlas.included["relation"][atlas.included["category"] == category]:
            rows = table[table["relation"] == name].reset_index(drop=True)
            best = rows.loc[int(rows["score"].to_numpy().argmax())]
            at = f"{best['layer']}.{best['head']} {best['score']:.2f}"
            implement, suppress = int(rows["implements"].sum()), int(rows["suppresses"].sum())
            if implement or suppress:
                lines.append(
                    f"- {titles[name]}: {at} ({best['low']:.2f}–{best['high']:.2f}), "
                    f"added {best['added']:.2f}; {implement} + {suppress}"
                )
            else:
                why = f", {p_value(best['q'], 'q')}" if best["score"] >= atlas.thresholds.tau else ""
                below.append(f"{titles[name]} ({at}{why})" if best["score"] > 0 else f"{titles[name]} (0)")
    said = []
    if lines:
        said.append(
            "Best head of each relation (layer.head, score, 95 % interval, added over the state alone; "
            "how many heads implement + suppress it):"
        )
    rest = [f"Done by no head (best score): {join_words(below)}."] if below else []
    return "\n".join([*said, *lines, *rest])


# Depth --------------------------------------------------------------------------------------------


def _depth(atlas: Atlas, heads: pd.DataFrame) -> list[str]:
    """Layers per category and their comparison, and the same on sources of one token."""
    groups = layers_by_category(atlas, heads)
    if not groups:
        return []
    texts = []
    for name, layers in groups.items():
        low, middle, high = quartiles(layers)
        texts.append(f"{name} {short_number(middle)} ({short_number(low)}–{short_number(high)})")
    text = (
        f"Depth, median layer (quartiles): {join_words(texts)}; {_comparison(compare_depths(groups), groups)}"
    )
    return [f"{text} {_on_single_tokens(atlas)}".rstrip()]


def _comparison(found: DepthTest | None, groups: dict[str, Ints]) -> str:
    if found is None:
        if len(groups) < 2:
            return "one category alone cannot be compared."
        return f"not compared: fewer than two have {SMALLEST_GROUP} heads, or all are in one layer."
    test = f"Kruskal–Wallis H = {found.h:.1f}, {p_value(found.p)}, ε² = {found.epsilon2:.2f}"
    left = [name for name in groups if name not in found.sizes]
    aside = f"; too few heads of {join_words(left)}" if left else ""
    differ = []
    for pair in found.pairs:
        if pair.p <= 0.05:
            early, late = (pair.second, pair.first) if pair.r > 0 else (pair.first, pair.second)
            effect = f"rank-biserial r = {abs(pair.r):.2f}, Holm {p_value(pair.p)}"
            differ.append(f"{late} heads sit later than {early} heads ({effect})")
    said = join_words(differ) if differ else "no pair of categories is shown to differ"
    return f"{said} ({test}{aside}; a head of several categories counts in each)."


def _on_single_tokens(atlas: Atlas) -> str:
    if all_single(atlas.dataset):
        return "All sources are single tokens."
    single = single_token_atlas(atlas)
    n_before, n_after = int(atlas.included["n_sources"].sum()), int(single.included["n_sources"].sum())
    text = f"On sources of one token alone ({n_after} of {n_before})"
    groups = layers_by_category(single, single.categories()) if len(single.included) else {}
    if not groups:
        return f"{text} this cannot be repeated."
    medians = join_words([f"{name} {short_number(quartiles(layers)[1])}" for name, layers in groups.items()])
    found = compare_depths(groups)
    tested = "" if found is None else f", {p_value(found.p)}"
    return f"{text}: {medians}{tested}."


# What they do not say -----------------------------------------------------------------------------


def _not_mapped(atlas: Atlas) -> str:
    headless = atlas.layers_without_heads
    missing = np.setdiff1d(np.flatnonzero(~atlas.layers_done), headless)
    parts = []
    if headless:
        parts.append(f"No attention heads: {amount(len(headless), 'layer')} ({_runs(headless)}).")
    if len(missing):
        parts.append(
            f"Not mapped: {amount(len(missing), 'layer')} ({_runs(missing)}); nothing above counts them."
        )
    return " ".join(parts)


def _runs(layers: Sequence[int] | np.typing.NDArray[np.intp]) -> str:
    """Sorted layers as runs: 0–3, 7."""
    groups = np.split(np.asarray(layers), np.flatnonzero(np.diff(layers) > 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in groups)


def _caveats(atlas: Atlas) -> str:
    points = [
        "A score says what a head writes if it attends to the source, not whether it does. "
        "A blank head may do something that was not asked.",
        _lens(atlas),
        _control(atlas),
        _other_thresholds(atlas),
    ]
    if atlas.provenance.get("target_policy", "single") == "first-token":
        points.append(
            "Targets of several tokens count by their first token alone (target policy first-token), "
            "which may begin many words."
        )
    if atlas.left_out:
        reasons = "; ".join(f"{titles_of(atlas)[name]} ({why})" for name, why in atlas.left_out.items())
        points.append(f"Nothing is known about relations left out: {reasons}.")
    return "What this does not say:\n" + "\n".join(f"- {point}" for point in points)


def _lens(atlas: Atlas) -> str:
    prefixes = atlas.provenance["lens"].get("prefixes") or []
    said = amount(len(prefixes), "short fixed prefix") if prefixes else "a short prefix"
    return _LENSES.get(atlas.lens, "The source states are those of the lens named above.").format(
        prefixes=said
    )


def _control(atlas: Atlas) -> str:
    """Number of calls that the states themselves could explain."""
    text = (
        "Late states may already hold the answer; added is the share of sources that the head hits and "
        "the state alone does not. Suppression has no such control."
    )
    table = atlas.table()
    called = table[table["implements"].to_numpy(dtype=bool)]
    if len(called) == 0:
        return text
    score, control, added = (called[name].to_numpy(dtype=float) for name in ("score", "control", "added"))
    return (
        f"{text} Of {amount(len(called), 'promoting head–relation pair')}, {int((control >= score).sum())} "
        f"score no higher than the state alone, and {int((added < atlas.thresholds.tau).sum())} add less "
        f"than {atlas.thresholds.tau:g}."
    )


def _other_thresholds(atlas: Atlas) -> str:
    thresholds, table = atlas.thresholds, atlas.table()
    near = [tau for tau in OTHER_TAUS if tau < thresholds.tau - 1e-9][-1:]
    near += [tau for tau in OTHER_TAUS if tau > thresholds.tau + 1e-9][:1]
    counts = [f"{amount(_n_called(table, replace(thresholds, tau=tau)), 'head')} at {tau:g}" for tau in near]
    text = f"With another smallest score there would be {join_words(counts)} instead of "
    text += f"{_n_called(table, thresholds)}."
    if thresholds.criterion == "calibrated":
        against = "q is against heads that promote the same targets whatever the source"
        return f"{text} {against}, not against the choice of words."
    called = table[table["implements"].to_numpy(dtype=bool)]
    doubtful = int((called["q"].to_numpy(dtype=float) > thresholds.q_max).sum())
    return (
        f"{text} The criterion asks for the score alone: {doubtful} of {len(called)} promoting "
        f"head–relation pairs have q > {thresholds.q_max:g}, as a head would that promotes the same targets "
        "whatever the source."
    )


def _n_called(table: pd.DataFrame, thresholds: Thresholds) -> int:
    """Heads that implement or suppress a relation with other thresholds of the same k."""
    promoting, suppressing = (
        meets_criterion(thresholds, table[score].to_numpy(dtype=float), table[q].to_numpy(dtype=float))
        for score, q in (("score", "q"), ("suppression", "suppression_q"))
    )
    return len(table.loc[promoting | suppressing, ["layer", "head"]].drop_duplicates())


# Numbers and lists as words --------------------------------------------------------------------------

_PLURALS = {"category": "categories", "short fixed prefix": "short fixed prefixes"}


def amount(n: int, noun: str) -> str:
    """``1 head``, ``2 heads``, ``2 categories``."""
    return f"{n} {noun}" if n == 1 else f"{n} {_PLURALS.get(noun, noun + 's')}"


def join_words(items: Sequence[str]) -> str:
    """``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def list_layers(first: int, last: int) -> str:
    """``layer 3`` or ``layers 3–7``."""
    return f"layer {first}" if first == last else f"layers {first}–{last}"


def short_number(value: float) -> str:
    """At most two decimals, no trailing zeros: ``12``, ``12.5``."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def decimal(value: float) -> str:
    """Two decimals with a true minus sign: ``0.25``, ``−0.03``; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")
