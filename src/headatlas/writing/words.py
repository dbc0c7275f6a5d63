"""Words of one's own: what a head writes for them, and which heads write the targets wanted.

Nothing here is stored, and nothing is tested: the answers are exact for the words given, and say nothing of
others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from headatlas.atlas import Atlas
from headatlas.atlas.atlas import atlas_of
from headatlas.atlas.cards import wanted_of
from headatlas.atlas.export import plain_records
from headatlas.atlas.layout import Layout
from headatlas.atlas.store import is_atlas
from headatlas.devices import strict_products
from headatlas.errors import HeadatlasError
from headatlas.evidence.opening import asked_again
from headatlas.mapping.prepared import MapOptions, PreparedMap, prepare_map
from headatlas.mapping.run import layer_inputs
from headatlas.options import MAX_CEILING, Compute
from headatlas.progress import Progress, Report, Stats, reporting
from headatlas.relations import Relation, checked_word
from headatlas.scoring.scores import source_hits
from headatlas.writing.opened import OpenModel, OwnRanks, strongest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

QUERY_COLUMNS = (*("layer", "head", "sign", "score", "suppression", "control", "ranks", "suppression_ranks"),)
MOST_TOKENS = 1000
"""More tokens of a list are not asked for."""
LITTLE = (
    "a few pairs prove little: there is no calibration and no q, and of many heads some hit by chance; map a "
    "relation of 30 sources or more to test one"
)


def ask(
    atlas: Atlas | str | Path,
    layer: int,
    head: int,
    words: str | Iterable[str],
    model: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    top: int = 10,
    compute: Compute | None = None,
    progress: Report | bool | None = None,
) -> pd.DataFrame:
    """The tokens that one head promotes and suppresses most for any words, with the lens of an atlas.

    Exact: the order is that of float64 arithmetic on the states of the words and the weights as stored. With
    the lens ``neutral`` the states come from a forward pass of their own, whose last bits may differ from
    those of the map.

    Args:
        atlas: The atlas or its folder, for its model, its lens and the ranks it holds.
        layer, head: Both from 0.
        words: Cut into tokens as sources of relations are: with the space before them where text has one.
        model: Its model; by default the one that the atlas names.
        tokenizer: Needed with a loaded model.
        top: Tokens of each list.
        compute: Device and memory for the forward pass of ``neutral``.
        progress: As for :func:`headatlas.map_heads`.

    Returns:
        One row per word: source, tokens (as the tokenizer cuts it; the last is read), promoted_ids, promoted,
        suppressed_ids, suppressed (the strongest first, equal logits by token id; empty for a head that
        writes nothing; texts are as tokens have them, unescaped), wanted (for each target of a scored
        relation of which the word is a source: relation, target, rank and suppression_rank, which are None at
        the atlas's ceiling and beyond). ``attrs["caption"]`` says what was asked.

    Raises:
        HeadatlasError: A word cannot be a source, there is no such head, or the model is not the atlas's.
    """
    if not 1 <= top <= MOST_TOKENS:
        raise HeadatlasError(f"`top` is {top}: it must lie between 1 and {MOST_TOKENS}.")
    asked = list(dict.fromkeys(checked_word(each) for each in ([words] if isinstance(words, str) else words)))
    if not asked:
        raise HeadatlasError("`words` is empty: give one or more.")
    atlas = atlas_of(atlas)
    atlas.sel(layer=layer, head=head)
    if not atlas.layers_done[layer]:
        raise HeadatlasError(f"layer {layer} is not mapped in this atlas.")
    with reporting(progress) as tell:
        tell(Progress("open", 0, 0, atlas.model_name))
        opened = OpenModel(asked_again(atlas, model, tokenizer), compute)
        frame = _answers(atlas, (layer, head), opened, lists_of(opened, layer, head, asked, top, tell))
    frame.attrs["caption"] = (
        f"{atlas.model_name}; lens {atlas.lens}; head {layer}.{head}: the {top} tokens it promotes and "
        "suppresses most by itself, whatever the rest of the model writes"
    )
    return frame


@dataclass(frozen=True)
class Lists:
    """The strongest tokens of what one head writes for a word.

    Attributes:
        ids: Token ids of the word; the last is read.
        promoted, suppressed: Token ids, the strongest first; none for a head that writes nothing.
    """

    ids: tuple[int, ...]
    promoted: list[int]
    suppressed: list[int]


def lists_of(
    opened: OpenModel, layer: int, head: int, words: Sequence[str], top: int, tell: Report
) -> dict[str, Lists]:
    """Word → the tokens that one head promotes and suppresses most for it.

    Raises:
        HeadatlasError: A word cannot be a source.
    """
    ids = opened.source_ids(words)
    distinct = list(dict.fromkeys(ids.values()))
    with opened.states(distinct, tell, last=layer) as states:
        inputs = layer_inputs(opened.prepared, states, layer)
    with torch.inference_mode(), strict_products():
        rows = inputs.values(inputs.dims.kv_head(head)) @ inputs.output(head)
        found = dict(zip(distinct, strongest(rows, opened.vocabulary, top), strict=True))
    return {word: Lists(cut, *found[cut]) for word, cut in ids.items()}


def _answers(atlas: Atlas, head: tuple[int, int], opened: OpenModel, lists: dict[str, Lists]) -> pd.DataFrame:
    """The rows of :func:`ask`."""
    texts = opened.texts(
        token for each in lists.values() for token in (*each.ids, *each.promoted, *each.suppressed)
    )
    records = []
    for word, each in lists.items():
        record: dict[str, Any] = {"source": word, "tokens": [texts[token] for token in each.ids]}
        for name in ("promoted", "suppressed"):
            listed = getattr(each, name)
            record |= {f"{name}_ids": listed, name: [texts[token] for token in listed]}
        records.append(record | {"wanted": plain_records(wanted_of(atlas, *head, word))})
    return pd.DataFrame(records)


def query(
    where: Atlas | str | Path | PreTrainedModel,
    pairs: Iterable[tuple[str, str | Sequence[str]]] | Mapping[str, str | Sequence[str]],
    *,
    model: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    compute: Compute | None = None,
    progress: Report | bool | None = None,
) -> pd.DataFrame:
    """Rank the targets of a few pairs for every head, the best head first.

    Ranks are exact below 250, as those of a map are below its ceiling. A few pairs prove little: of hundreds
    of heads some hit by chance, and there is no calibration and no q. To test a relation, map 30 sources or
    more.

    Args:
        where: An atlas or its folder, for its model and lens; or a model as :func:`headatlas.map_heads` takes
            it, seen with the lens ``neutral``.
        pairs: ``(source, target)`` or ``(source, [targets])``, or a dict of these.
        model: The model of the atlas; by default the one that it names.
        tokenizer: Needed with a loaded model.
        compute: Device and memory for the forward pass of ``neutral``; ranks are computed on the processor.
        progress: As for :func:`headatlas.map_heads`.

    Returns:
        One row per head: layer, head, sign (the better of the two), score (share of sources of which a target
        has a rank below k), suppression (the same of the negated logits), control (score of the state itself
        at that layer, without any head), ranks and suppression_ranks (of the usable pairs, in the order of
        ``attrs["pairs"]``, dicts of source and target; None from 250 on). Best first: by the larger of score
        and suppression, then by the sum of ranks. ``attrs`` further holds model, lens, thresholds, caption,
        k, ceiling and dropped (reason → sources that the tokenizer cannot use).

    Raises:
        HeadatlasError: The pairs are none, no pair can be used with this tokenizer, the model cannot be
            opened or is not the atlas's.
    """
    relation = Relation.from_pairs("query", pairs)
    atlas = _atlas_at(where)
    with reporting(progress) as tell:
        tell(Progress("open", 0, 0, str(where) if atlas is None else atlas.model_name))
        prepared = _prepared(where, atlas, model, tokenizer, relation)
        return ranked_heads(OpenModel(prepared, compute), relation, tell)


def ranked_heads(
    opened: OpenModel, relation: Relation, tell: Report, stats: Stats | None = None
) -> pd.DataFrame:
    """The rows of :func:`query`, of a model that is open.

    Args:
        opened: The model.
        relation: The pairs.
        tell: Called with each step; what it raises ends the question.
        stats: Counts what was done, if given.

    Raises:
        HeadatlasError: No pair can be used with this tokenizer.
    """
    prepared = opened.asking(relation)
    layout, thresholds = prepared.layout, prepared.options.thresholds
    k = thresholds.k_for(relation.copying)
    parts = [
        _layer_rows(layout, found, k).assign(layer=layer)
        for layer, found in opened.own_ranks(prepared, tell, stats).items()
    ]
    whole = pd.concat(parts).sort_values(["order", "layer", "head"], kind="stable", ignore_index=True)
    frame = whole[list(QUERY_COLUMNS)]
    name, lens = prepared.model.checkpoint.name, prepared.options.lens.name
    dropped: dict[str, list[str]] = json.loads(layout.relations[0].dropped)
    unused = "".join(f"; not asked: {', '.join(words)} ({reason})" for reason, words in dropped.items())
    n = layout.relations[0].n_sources
    asked = "1 source" if n == 1 else f"{n} sources"
    ranked = [layout.pair_words[at] for at in layout.own_pair]
    frame.attrs |= {
        "model": name,
        "lens": lens,
        "thresholds": asdict(thresholds),
        "caption": f"{name}; lens {lens}; k = {k}; {asked}{unused}; {LITTLE}",
        "k": k,
        "ceiling": MAX_CEILING,
        "pairs": [{"source": source, "target": target} for source, target in ranked],
        "dropped": dropped,
    }
    return frame


def _atlas_at(where: Any) -> Atlas | None:
    """The atlas given, or the one in a folder or at an address that ends with ``.zarr``; None for a model."""
    if isinstance(where, Atlas):
        return where
    if not isinstance(where, str | Path):
        return None
    return Atlas.open(where) if is_atlas(where) else None


def _prepared(
    where: Any,
    atlas: Atlas | None,
    model: str | Path | PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase | None,
    relation: Relation,
) -> PreparedMap:
    """The map of a few pairs."""
    if atlas is not None:
        return asked_again(atlas, model, tokenizer, relation)
    if model is not None:
        raise HeadatlasError("`model` is the model of an atlas, and a model was given already; leave it out.")
    return prepare_map(where, tokenizer, [relation], MapOptions(), few=True)


def _layer_rows(layout: Layout, found: OwnRanks, k: int) -> pd.DataFrame:
    """The heads of one layer with what they are ordered by: −score and, of equal ones, the sum of ranks."""
    source, n_sources = layout.pair_source[layout.own_pair], layout.relations[0].n_sources

    def score(ranks: NDArray[np.int16]) -> Any:
        return source_hits(ranks, source, n_sources, k).mean(axis=-1)

    columns: dict[str, Any] = {"head": range(len(found.promotion)), "control": score(found.control)}
    orders = []
    for name, prefix, ranks in (
        ("score", "", found.promotion),
        ("suppression", "suppression_", found.suppression),
    ):
        columns[name] = score(ranks)
        columns[f"{prefix}ranks"] = [[each if each >= 0 else None for each in row] for row in ranks.tolist()]
        totals = np.where(ranks >= 0, ranks, MAX_CEILING).sum(axis=1)
        orders.append(list(zip((-columns[name]).tolist(), totals.tolist(), strict=True)))
    both = list(zip(*orders, strict=True))
    columns["sign"] = ["promotion" if plus <= minus else "suppression" for plus, minus in both]
    return pd.DataFrame(columns | {"order": [min(each) for each in both]})
