"""All that an atlas says about one head, on one card; and how many heads anything is said about.

>>> card = atlas.head(23, 4)                                           # doctest: +SKIP
>>> card.relations, card.behaviours, card.similar                      # doctest: +SKIP

A card shows what is stored and computes nothing new of the model. What has not been measured is None, and the
card says which command measures it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headatlas.atlas.display import MadeAbove, card_html
from headatlas.atlas.labels import BY_MAPPINGS, UNCLEAR
from headatlas.atlas.salience import head_rows, stored_salience
from headatlas.atlas.store import read_array
from headatlas.scoring.scores import p_value
from headatlas.showing import safe_text

if TYPE_CHECKING:
    from headatlas.atlas.atlas import Atlas

N_SIMILAR = 5
SINK = "first_position"
STATEMENTS = {"relation": "a relation", "behaviour": "a behaviour", "description": "a scored description"}
"""Kinds of tested statements that make a head a covered one, and how they are called in words."""
WORD_COLUMNS = (
    *("relation", "sign", "source", "target", "rank", "hit", "source_hit"),
    *("control_rank", "control_source_hit"),
)
COMMANDS = {"behaviour": "behaviour", "description": "label"}
"""Commands that measure a kind of statement; relations are in every atlas."""
CAVEAT = (
    "a statement is tested, not complete: a covered head may do more, and one without a statement may do "
    "something that was not asked"
)


@dataclass(frozen=True)
class Card:
    """All that an atlas says about one head.

    Attributes:
        atlas: Where it comes from.
        layer, head: Which, both from 0.
        caption: Of the atlas.
        relations: Rows of :meth:`Atlas.table`, best first.
        behaviours: Rows of :meth:`Atlas.behaviours`, the called ones first; None if never measured.
        similar: Rows of :func:`similar_heads`.
        salient: Rows of :meth:`Atlas.salience`, the largest gain first; None if never computed.
        spectrum: The head's row of :meth:`Atlas.spectrum`; None if never computed.
        explained: The head's row of :meth:`Atlas.explained`; None if never computed.
        labels: Rows of :meth:`Atlas.labels`; None if nothing was ever labelled.
        group: Heads that share this head's keys and values, without itself.
        statements: The tested statements in words, one a line; none if there is nothing to say.
    """

    atlas: Atlas = field(repr=False)
    layer: int
    head: int
    caption: str
    relations: pd.DataFrame
    behaviours: pd.DataFrame | None
    similar: pd.DataFrame
    salient: pd.DataFrame | None
    spectrum: dict[str, Any] | None
    explained: dict[str, Any] | None
    labels: pd.DataFrame | None
    group: tuple[tuple[int, int], ...]
    statements: tuple[str, ...]

    explore = MadeAbove(
        "headatlas.report:explore_head", "The page in a notebook, with this card open: ``card.explore()``."
    )

    def __repr__(self) -> str:
        """The tested statements, the weights in a sentence, and heads like it."""
        like = [
            f"{row['layer']}.{row['head']} {row['similarity']:.2f}" for row in self.similar.to_dict("records")
        ]
        lines = [
            f"head {self.layer}.{self.head}: {self.caption}",
            *(self.statements or ("no tested statement",)),
            *filter(None, [spectrum_sentence(self), f"most like it: {', '.join(like)}" if like else ""]),
        ]
        return "\n  ".join(map(safe_text, lines))

    def _repr_html_(self) -> str:
        return card_html(self)


def head_card(atlas: Atlas, layer: int, head: int) -> Card:
    """The card of one head."""
    rows = atlas.sel(layer=layer, head=head)
    looks, labels = _behaviours(atlas, layer, head), _of(atlas.labels(), layer, head)
    written = stored_salience(atlas.place)
    salient, spectrum, explained = (None,) * 3 if written is None else written.of_head(layer, head)
    return Card(
        atlas=atlas,
        layer=layer,
        head=head,
        caption=atlas.caption(),
        relations=rows,
        behaviours=looks,
        similar=similar_heads(atlas, layer, head),
        salient=salient,
        spectrum=_row(spectrum),
        explained=_row(explained),
        labels=labels,
        group=_group(atlas, layer, head),
        statements=(*_statements(rows), *_looks(looks), *_descriptions(labels)),
    )


def spectrum_sentence(card: Card) -> str:
    """The properties of a head's weights in words; empty if never computed."""
    if card.spectrum is None:
        return ""
    share = "" if card.explained is None else f"; {100 * card.explained['explained']:.0f} % explained"
    return (
        f"effective rank {card.spectrum['effective_rank']:.1f}, copying {card.spectrum['copying']:.2f}, "
        f"{100 * card.spectrum['norm_share']:.0f} % of its layer's norm{share}"
    )


def coverage(atlas: Atlas) -> pd.DataFrame:
    """Which mapped heads have a tested statement: layer, head, by_relation, by_behaviour, by_description,
    covered (by any of them), beyond_sink.

    A relation or a behaviour counts that is called (a relation with q ≤ q_max also under the criterion
    ``"tau"``, which asks for none), and a description that picks out held-out mappings of the head.
    ``beyond_sink`` leaves out attention to the first position, which most heads of most models give: it says
    that a head rests, not what it does. ``attrs["share"]`` is the share of covered heads,
    ``attrs["not_measured"]`` those of :data:`STATEMENTS` that this atlas does not hold.
    """
    heads, rows, q_max = atlas.categories()[["layer", "head"]], atlas.without_evidence, atlas.thresholds.q_max
    tested = rows["implements"] & (rows["q"] <= q_max) | rows["suppresses"] & (rows["suppression_q"] <= q_max)
    looks, labels = atlas.behaviours(), atlas.labels()
    called = looks[looks["called"]]
    scored = labels[(labels["kind"] == BY_MAPPINGS) & (labels["label"] != UNCLEAR)]
    found = {"relation": rows[tested], "behaviour": called, "description": scored}
    by = {f"by_{kind}": _among(heads, found[kind]) for kind in STATEMENTS}
    elsewhere = _among(heads, called[called["behaviour"] != SINK])
    frame = heads.assign(
        **by,
        covered=np.any(list(by.values()), axis=0),
        beyond_sink=by["by_relation"] | by["by_description"] | elsewhere,
    )
    frame.attrs["share"] = float(frame["covered"].mean()) if len(frame) else 0.0
    empty = {"behaviour": looks.empty, "description": labels.empty}
    frame.attrs["not_measured"] = tuple(kind for kind, missing in empty.items() if missing)
    return frame


def caption_with_coverage(atlas: Atlas) -> str:
    """The caption of an atlas with its coverage, where more than relations was measured."""
    frame = coverage(atlas)
    if len(frame.attrs["not_measured"]) == len(COMMANDS):
        return atlas.caption()
    counts = f"{int(frame['covered'].sum())} of {len(frame)} heads have a tested statement"
    return f"{counts}, {int(frame['beyond_sink'].sum())} more than a first-position sink; {atlas.caption()}"


def coverage_sentence(atlas: Atlas) -> str:
    """Coverage in words: how many heads have any statement, and how many each kind."""
    frame = coverage(atlas)
    missing: Sequence[str] = frame.attrs["not_measured"]
    kinds = [
        f"{int(frame[f'by_{kind}'].sum())} {said}" for kind, said in STATEMENTS.items() if kind not in missing
    ]
    covered = int(frame["covered"].sum())
    text = (
        f"Coverage: {covered} of {len(frame)} heads ({100 * frame.attrs['share']:.0f} %) have at least one "
        f"tested statement: {', '.join(kinds)}; {len(frame) - covered} have none"
    )
    if "behaviour" not in missing:
        text += f"; {int(frame['beyond_sink'].sum())} have more than attention to the first position"
    if missing:
        commands = ", ".join(f"`headatlas {COMMANDS[kind]} DIR`" for kind in missing)
        text += f" (not measured: {', '.join(missing)}; {commands})"
    return text


def similar_heads(atlas: Atlas, layer: int, head: int, n: int = N_SIMILAR) -> pd.DataFrame:
    """The heads most like one: layer, head, similarity, writes, looks.

    ``writes`` is the cosine of the scores over relations, promotion and suppression side by side; ``looks``
    is 1 − the mean absolute difference of the tested behaviours, shares of attention from 0 to 1; similarity
    is the mean of those that the head has. Heads that lack one of these, or are not mapped, are not compared.
    A head that scores nowhere is like no other in what it writes.
    """
    vectors, looks = _scores(atlas), _attention(atlas)
    at = np.indices(vectors.shape[:2]).reshape(2, -1)
    frame = pd.DataFrame({"layer": at[0], "head": at[1]})
    frame["writes"] = _cosines(vectors, vectors[layer, head]).ravel()
    frame["looks"] = np.nan if looks is None else _likeness(looks, looks[layer, head]).ravel()
    terms = [name for name in ("writes", "looks") if frame[name].notna().any()]
    frame["similarity"] = frame[terms].mean(axis=1, skipna=False)
    other = ~((frame["layer"] == layer) & (frame["head"] == head)) & frame["similarity"].notna()
    other &= atlas.layers_done[at[0]]
    best: pd.DataFrame = frame[other].sort_values("similarity", ascending=False, kind="stable").head(n)
    return best.reset_index(drop=True)[["layer", "head", "similarity", "writes", "looks"]]


def words_of(atlas: Atlas, layer: int, head: int, only: Sequence[str] | None = None) -> pd.DataFrame:
    """Which sources of its relations a head hits, at which rank, and which target was wanted.

    Args:
        atlas: Its stored ranks are read, no model.
        layer, head: Both from 0.
        only: Names or titles of relations, called or not. By default those called of the head.

    Returns:
        One row per source and accepted target: relation, sign (``"promotion"`` or ``"suppression"``: the
        one called, both where both are, promotion where neither is), source, target, rank (missing at the
        ceiling and beyond), hit, source_hit (any target of the source is hit), control_rank and
        control_source_hit (of the state itself, without any head; missing for suppression, where there is no
        control). Hits first, by the best rank of their source; pairs that the tokenizer cannot use are not
        there.
    """
    rows = atlas.sel(layer=layer, head=head, relation=only, called=only is None)
    parts = []
    for row in rows.to_dict("records"):
        pairs = atlas.pairs(layer, head, row["relation"])
        for sign in ("promotion", "suppression"):
            called = row["implements" if sign == "promotion" else "suppresses"]
            if called or (sign == "promotion" and not row["suppresses"]):
                parts.append(_signed(pairs, str(row["relation"]), sign))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(WORD_COLUMNS))


def _signed(pairs: pd.DataFrame, relation: str, sign: str) -> pd.DataFrame:
    """Rows of :func:`words_of` for one relation and sign, from those of :meth:`Atlas.pairs`."""
    prefix = "" if sign == "promotion" else "suppression_"
    control = pairs["control_rank"], pairs["control_hit"].groupby(pairs["source"]).transform("any")
    nothing = [pd.Series(pd.NA, index=pairs.index, dtype=kind) for kind in ("Int16", "boolean")]
    rank, of_state = pairs[f"{prefix}rank"], control if sign == "promotion" else nothing
    frame = pairs[["source", "target"]].assign(
        relation=relation,
        sign=sign,
        rank=rank,
        hit=pairs[f"{prefix}hit"],
        source_hit=pairs[f"{prefix}hit"].groupby(pairs["source"]).transform("any"),
        control_rank=of_state[0],
        control_source_hit=of_state[1].astype("boolean"),
    )
    far = rank.astype("Float64").fillna(np.inf)
    order = pd.DataFrame({"best": far.groupby(pairs["source"]).transform("min"), "own": far})
    order["source"] = pd.factorize(pairs["source"])[0]
    return frame.loc[order.sort_values(["best", "source", "own"], kind="stable").index, list(WORD_COLUMNS)]


def wanted_of(atlas: Atlas, layer: int, head: int, word: str) -> pd.DataFrame:
    """Targets that mapped relations want of a word, with the head's ranks of them.

    Returns:
        Columns relation, target, rank, suppression_rank, in the atlas's order; missing ranks are at the
        ceiling or beyond. No row where the word is no usable source of a scored relation.
    """
    data, names = atlas.dataset, list(atlas.relations["relation"])
    mine = (read_array(data, "source") == word) & (read_array(data, "pair_source") >= 0)
    parts = [pd.DataFrame(columns=["relation", "target", "rank", "suppression_rank"])]
    for at in np.unique(read_array(data, "pair_relation")[mine]):
        pairs = atlas.pairs(layer, head, names[at])
        found = pairs[pairs["source"] == word].assign(relation=names[at])
        parts.append(found[list(parts[0].columns)])
    return pd.concat(parts[1:] or parts, ignore_index=True)


def search(atlas: Atlas, text: str) -> pd.DataFrame:
    """Heads about which something with this text is said: layer, head, where, what, author (of a label).

    Looked through, without regard to case: statements of relations and behaviours that are called, labels,
    and the salient source tokens and targets. The text is to be found as whole words; if it nowhere is, as a
    part of words. One row a finding, those of a head together.
    """
    wanted = text.strip().casefold()
    whole = re.compile(rf"(?<![^\W_]){re.escape(wanted)}(?![^\W_])")
    parts, looks = [], atlas.behaviours()
    for where, frame, column in (
        ("relation", atlas.sel(called=True), "relation"),
        ("behaviour", looks[looks["called"]], "behaviour"),
        ("label", atlas.labels(), "label"),
        ("source", atlas.salience(), "source"),
        *((name, atlas.salience().explode(name), name) for name in ("promoted", "suppressed")),
    ):
        found = frame[frame[column].astype(str).str.casefold().str.contains(wanted, regex=False)]
        said = {"where": where, "what": found[column], "author": found.get("author", "")}
        parts.append(found[["layer", "head"]].assign(**said))
    rows = pd.concat(parts, ignore_index=True).drop_duplicates()
    in_whole = rows["what"].astype(str).str.casefold().str.contains(whole)
    rows = rows[in_whole] if in_whole.any() else rows
    return rows.sort_values(["layer", "head"], kind="stable").reset_index(drop=True)


def _of(frame: pd.DataFrame, layer: int, head: int) -> pd.DataFrame | None:
    """The rows of one head; None of a frame that has none of any head."""
    return None if frame.empty else head_rows(frame, (layer, head))


def _row(frame: pd.DataFrame | None) -> dict[str, Any] | None:
    """The only row of a frame, without its head; None where there is none."""
    if frame is None or frame.empty:
        return None
    row = frame.drop(columns=["layer", "head"]).to_dict("records")[0]
    return {str(name): value for name, value in row.items()}


def _among(heads: pd.DataFrame, rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Which heads have a row."""
    all_, there = (pd.MultiIndex.from_frame(frame[["layer", "head"]]) for frame in (heads, rows))
    return np.asarray(all_.isin(there))


def _scores(atlas: Atlas) -> NDArray[np.float64]:
    """[layer, head, 2 × relation] scores, NaN in layers that are not mapped."""
    scores = atlas.scores.transpose("layer", "head", "sign", "relation").values.astype(np.float64)
    return scores.reshape(*scores.shape[:2], -1)


def _attention(atlas: Atlas) -> NDArray[np.float64] | None:
    """[layer, head, behaviour] shares of attention of the tested behaviours; None if never measured."""
    frame = atlas.behaviours()
    frame = frame[frame["q"].notna()]
    if frame.empty:
        return None
    names = {name: at for at, name in enumerate(dict.fromkeys(frame["behaviour"]))}
    found = np.full((atlas.n_layers, atlas.n_heads, len(names)), np.nan)
    found[frame["layer"], frame["head"], frame["behaviour"].map(names)] = frame["value"]
    return found


def _cosines(vectors: NDArray[np.float64], one: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(vectors, axis=-1) * np.linalg.norm(one)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines: NDArray[np.float64] = np.where(lengths == 0, 0.0, vectors @ one / lengths)
    return cosines if one.any() else np.full_like(cosines, np.nan)


def _likeness(looks: NDArray[np.float64], one: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 − the mean absolute difference over what both have; NaN where that is nothing."""
    difference = np.abs(looks - one)
    there = ~np.isnan(difference)
    n = there.sum(axis=-1)
    return np.where(n > 0, 1 - np.where(there, difference, 0).sum(axis=-1) / np.maximum(n, 1), np.nan)


def _behaviours(atlas: Atlas, layer: int, head: int) -> pd.DataFrame | None:
    mine = _of(atlas.behaviours(), layer, head)
    if mine is None:
        return None
    excess = (mine["value"] - mine["expected"]).to_numpy()
    return mine.iloc[np.lexsort((-excess, mine["q"].isna(), ~mine["called"]))].reset_index(drop=True)


def group_size(atlas: Atlas) -> int:
    """How many heads of a layer share their keys and values."""
    n_groups = atlas.provenance["model"].get("dims", {}).get("n_kv_heads", atlas.n_heads)
    return atlas.n_heads // int(n_groups)


def _group(atlas: Atlas, layer: int, head: int) -> tuple[tuple[int, int], ...]:
    size = group_size(atlas)
    first = head // size * size
    return tuple((layer, each) for each in range(first, first + size) if each != head)


def _statements(rows: pd.DataFrame) -> list[str]:
    signs = (("implements", "score", "q"), ("suppresses", "suppression", "suppression_q"))
    return [
        f"{verb} {row['relation']} (score {row[score]:.2f}, {p_value(row[q], 'q')})"
        for row in rows.to_dict("records")
        for verb, score, q in signs
        if row[verb]
    ]


def _looks(looks: pd.DataFrame | None) -> list[str]:
    called = [] if looks is None else looks[looks["called"]].to_dict("records")
    return [
        f"looks: {row['behaviour']} {row['value']:.2f}, expected {row['expected']:.2f} "
        f"({p_value(row['q'], 'q')})"
        for row in called
    ]


def _descriptions(labels: pd.DataFrame | None) -> list[str]:
    """Labels that were scored; those that rest on attention stand among the behaviours."""
    rows = [] if labels is None else labels.to_dict("records")
    return [
        f"described: {row['label']} (picks {row['score']:.2f} of its mappings, chance {row['chance']:.2f}; "
        f"by {row['author']})"
        for row in rows
        if row["kind"] == BY_MAPPINGS and row["label"] != UNCLEAR
    ]
