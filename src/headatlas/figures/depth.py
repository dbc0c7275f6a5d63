"""In words: how deep each category's heads sit, whether they differ, the same on single-token sources."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from headatlas.arrangement.bands import SMALLEST_GROUP, Comparison, Ints, compare, quartiles
from headatlas.arrangement.depth import layers_by_category
from headatlas.arrangement.single_tokens import all_single, single_token_atlas
from headatlas.figures.words import amount, joined, number, p_value

if TYPE_CHECKING:
    from headatlas.atlas import Atlas


def depth(atlas: Atlas, heads: pd.DataFrame) -> list[str]:
    """Paragraphs: quartiles of layer per category and their comparison; the same on single-token sources.

    Args:
        heads: What ``atlas.categories()`` gave.
    """
    groups = {name: layers for name, layers in layers_by_category(atlas, heads).items() if len(layers)}
    if not groups:
        return []
    texts = []
    for name, layers in groups.items():
        low, middle, high = quartiles(layers)
        texts.append(f"{name} {number(middle)} ({number(low)}–{number(high)}, {amount(len(layers), 'head')})")
    text = f"Median layer of each category's heads (quartiles): {'; '.join(texts)}. "
    found = compare(groups)
    return [text + _comparison(found, groups), _on_single_tokens(atlas)]


def _comparison(found: Comparison | None, groups: dict[str, Ints]) -> str:
    if found is None:
        if len(groups) < 2:
            return "There is only one category to look at, so nothing to compare."
        return f"They are not compared: fewer than two have {SMALLEST_GROUP} heads, or all are in one layer."
    text = (
        f"Kruskal–Wallis over {joined(list(found.sizes))}: H = {found.h:.1f}, {p_value(found.p)}, "
        f"ε² = {found.epsilon2:.2f} (0 no difference, 1 the largest)"
    )
    left = [name for name in groups if name not in found.sizes]
    text += f"; too few heads to compare: {joined(left)}. " if left else ". "
    differ = [pair for pair in found.pairs if pair.p <= 0.05]
    for pair in differ:
        early, late = (pair.second, pair.first) if pair.r > 0 else (pair.first, pair.second)
        effect = f"rank-biserial r = {abs(pair.r):.2f}, Holm {p_value(pair.p)}"
        text += f"{late} heads sit later than {early} heads ({effect}). "
    rest = [pair for pair in found.pairs if pair.p > 0.05]
    if rest:
        largest = max(rest, key=lambda pair: abs(pair.r))
        which = "No pair differs" if not differ else f"The other {amount(len(rest), 'pair')} do not differ"
        text += (
            f"{which} at Holm p ≤ 0.05 (Mann–Whitney; largest |r| {abs(largest.r):.2f}, "
            f"{largest.first} and {largest.second}). "
        )
    return (
        text + "A head of several categories counts in each, so these tests are a description, not a proof."
    )


def _on_single_tokens(atlas: Atlas) -> str:
    if all_single(atlas):
        return "All sources are single tokens, so nothing needs repeating without sources of several tokens."
    single = single_token_atlas(atlas)
    n_before, n_after = int(atlas.included["n_sources"].sum()), int(single.included["n_sources"].sum())
    kept = f"{n_after} of {n_before} sources, {amount(len(single.included), 'relation')}"
    text = f"On sources of one token alone ({kept})"
    if len(single.included) == 0:
        return f"{text} no relation keeps enough sources, so the layer trends cannot be repeated."
    heads = single.categories()
    called = heads[heads["n_categories"] > 0]
    groups = {name: layers for name, layers in layers_by_category(single, heads).items() if len(layers)}
    medians = joined([f"{name} {number(quartiles(layers)[1])}" for name, layers in groups.items()])
    text += f", called heads: {len(called)}"
    if not groups:
        return f"{text}, so the layer trends cannot be repeated."
    return f"{text}; median layers: {medians}. {_comparison(compare(groups), groups)}"
