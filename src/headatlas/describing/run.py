"""Describe the heads of an atlas, judge the descriptions, and keep them in the atlas."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from headatlas import __version__
from headatlas.atlas import Atlas
from headatlas.atlas.evidence import evidence_group
from headatlas.atlas.labels import (
    BY_ATTENTION,
    BY_MAPPINGS,
    LABEL_COLUMNS,
    LABELS_CAVEAT,
    UNCLEAR,
    Labels,
    in_order,
    labels_path,
    store_labels,
)
from headatlas.atlas.salience import stored_operations_sha256
from headatlas.describing.endpoint import Endpoint, Limits, describe_with_model
from headatlas.describing.judging import CHANCE, Description, Halves, Mappings, halves, standard_error
from headatlas.describing.rules import ATTENTION_RULES, RULES_VERSION, Describer
from headatlas.errors import HeadatlasError
from headatlas.progress import Progress, Report, reporting
from headatlas.relations.relation import Relation
from headatlas.relations.selection import RelationSpec, resolve_relations
from headatlas.scoring.scores import p_value

RULES_AUTHOR = f"headatlas rules {RULES_VERSION}"
_SAME = ("seed", "rules", "salience", "relations")
"""Entries of provenance in which labels must agree to stand in one table."""
NOT_STORED = (
    "not stored: the atlas keeps its labels of other heads, which were made with another seed, other "
    "relations or other salient operations; label all heads to store these in their place"
)
Row = tuple[Any, ...]


def label(
    atlas: Atlas,
    *,
    salience: pd.DataFrame | None = None,
    relations: RelationSpec = "all",
    describe_with: str | None = None,
    model_name: str | None = None,
    only: Sequence[tuple[int, int]] | None = None,
    per_minute: float | None = None,
    seconds: float | None = None,
    seed: int = 0,
    progress: Report | bool | None = None,
) -> pd.DataFrame:
    """Name what every head does, test whether the name predicts, and keep both in the atlas.

    Half of a head's salient mappings are described, by rules and, if asked, by a language model. The
    description is scored on the other half: each mapping must be picked among four of other heads.

    Args:
        atlas: An atlas; of one in a folder the labels are stored.
        salience: Salient operations as ``atlas.salience()`` gives them, which is the default.
        relations: The relations that rules know, as for :func:`headatlas.map_heads`.
        describe_with: Address of an OpenAI-compatible endpoint, such as ``http://localhost:11434/v1``. A key
            is read from the environment (``HEADATLAS_API_KEY``, else ``OPENAI_API_KEY``).
        model_name: The model there.
        only: (layer, head) of the heads to label; all by default. Where the atlas holds labels of other heads
            that were made otherwise (another seed, say), these are kept and the new ones are not stored;
            ``attrs["caption"]`` says so.
        per_minute: Most requests a minute to another machine; 120 by default.
        seconds: Longest time of a request; 120 by default.
        seed: Of halves and distractors.
        progress: As for :func:`headatlas.map_heads`.

    Returns:
        One row per head and author, and one more for a head whose attention says what it does: layer, head,
        label (``"unclear"`` at or below chance + 2 standard errors), support, score, chance, se, author, kind
        (``"mappings"``: scored; ``"attention"``: rests on a behaviour's q, not scored).

    Raises:
        HeadatlasError: There are no salient operations; no such head or relation; the endpoint cannot be
            used. What it has answered is kept.
    """
    if (describe_with is None) != (model_name is None):
        raise HeadatlasError("`describe_with` and `model_name` belong together: give both or neither.")
    given: dict[str, Any] = {"per_minute": per_minute, "seconds": seconds}
    given = {name: value for name, value in given.items() if value is not None}
    if given and describe_with is None:
        raise HeadatlasError(f"`{next(iter(given))}` is about an endpoint: give `describe_with` as well.")
    endpoint = None
    if describe_with is not None and model_name is not None:
        endpoint = Endpoint(describe_with, model_name, limits=Limits(**given))
    mappings = Mappings.of(stored_operations(atlas) if salience is None else salience)
    asked = _asked(mappings, only)
    library = resolve_relations(relations)
    parts = {head: halves(mappings, head, seed) for head in asked}
    about = _provenance(mappings, library, seed)
    about["operations"] = stored_operations_sha256(atlas.place) if salience is None else None
    found, whole, kept = [], only is None, []

    def keep(rows: pd.DataFrame, provenance: dict[str, Any]) -> None:
        found.append(rows)
        kept.append(_keep(atlas, rows, provenance, whole=whole))

    keep(_by_rules(atlas, mappings, library, parts), about | {"author": RULES_AUTHOR})
    if endpoint is not None:
        more = {"author": endpoint.author, "model": endpoint.model, "host": endpoint.host}
        rows: list[Row] = []
        try:
            with reporting(progress) as tell:
                for row in _by_model(mappings, parts, endpoint, tell):
                    rows.append(row)  # noqa: PERF402 - a stop keeps those before it
        finally:
            if rows:
                keep(_frame(rows), about | more)
    frame = in_order(pd.concat(found, ignore_index=True))
    frame.attrs["caption"] = LABELS_CAVEAT if all(kept) else f"{LABELS_CAVEAT}; {NOT_STORED}"
    return frame


def stored_operations(atlas: Atlas) -> pd.DataFrame:
    """The salient operations of an atlas; an error if it has none."""
    frame = atlas.salience()
    if frame.empty:
        raise HeadatlasError(
            f"{atlas.folder}: no salient operations are stored; find them first: headatlas salience "
            f"{atlas.folder}."
        )
    return frame


def _asked(mappings: Mappings, heads: Sequence[tuple[int, int]] | None) -> list[tuple[int, int]]:
    if heads is None:
        return mappings.heads
    for layer, head in heads:
        if (layer, head) not in mappings.rows:
            raise HeadatlasError(f"`only`: there are no salient operations of a head {layer}.{head}.")
    return list(dict.fromkeys(heads))


def _provenance(mappings: Mappings, library: Sequence[Relation], seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "rules": RULES_VERSION,
        "salience": mappings.sha256,
        "relations": {relation.name: relation.sha256 for relation in library},
        "versions": {"headatlas": __version__},
    }


def _keep(atlas: Atlas, rows: pd.DataFrame, provenance: dict[str, Any], *, whole: bool) -> bool:
    """Store an author's labels, beside those of other heads that this author made in the same way.

    Others are replaced if the ``whole`` atlas was to be labelled; else they stay, and nothing is stored
    (False).
    """
    if atlas.path is None:
        return True
    group = evidence_group(atlas.path)
    path = labels_path(group, str(provenance["author"]))
    stored = Labels.read(path) if path.is_dir() else None
    if stored is not None:
        there, new = stored.frame(), set(zip(rows["layer"], rows["head"], strict=True))
        other = there[[key not in new for key in zip(there["layer"], there["head"], strict=True)]]
        if all(stored.provenance.get(name) == provenance[name] for name in _SAME):
            rows = in_order(pd.concat([other, rows], ignore_index=True))
        elif len(other) and not whole:
            return False
    store_labels(group, rows, provenance)
    atlas.forget_evidence()
    return True


def _frame(rows: Sequence[Row]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(LABEL_COLUMNS))


# By rules -----------------------------------------------------------------------------------------


def _by_rules(
    atlas: Atlas, mappings: Mappings, library: Sequence[Relation], parts: dict[tuple[int, int], Halves]
) -> pd.DataFrame:
    describer = Describer(mappings, library)
    rows = [
        _row(head, describer.describe(part), "no rule fits", part, RULES_AUTHOR)
        for head, part in parts.items()
    ]
    return in_order(_frame([*rows, *(row for row in _by_attention(atlas) if (row[0], row[1]) in parts)]))


def _row(head: tuple[int, int], found: Description | None, why: str, part: Halves, author: str) -> Row:
    """The row of a head: unclear without a description, or with one not shown to predict."""
    if found is None:
        label, support, score, error = UNCLEAR, why, np.nan, np.nan
        if not part.judged:
            support = "too few mappings to judge"
    else:
        label, support, score, error = found.label, found.support, found.score, standard_error(found.trials)
        if not found.proved:
            label, support = UNCLEAR, f"not shown to be better than chance: {label}, {support}"
    return (*head, label, support, score, CHANCE, error, author, BY_MAPPINGS)


def _by_attention(atlas: Atlas) -> Iterator[Row]:
    """A row for each head with a behaviour that is called; none if attention was not measured."""
    measured = atlas.behaviours()
    called = measured[measured["called"].to_numpy(dtype=bool)]
    if called.empty:
        return
    copying = _copying_heads(atlas)
    for key, rows in called.groupby(["layer", "head"]):
        layer, head = (int(str(each)) for each in key)
        records = rows.to_dict("records")
        found = [
            (rule.last, each["expected"] - each["value"], at, rule, each)
            for at, rule in enumerate(ATTENTION_RULES)
            for each in records
            if each["behaviour"] in rule.behaviours and float(each["value"]) >= rule.least
            if not rule.copies or (layer, head) in copying
        ]
        if found:
            *_, rule, each = min(found, key=lambda item: item[:3])
            support = (
                f"{each['value']:.2f} of its attention, expected {each['expected']:.2f}, "
                f"{p_value(each['q'], 'q')}; tested by attention"
            )
            nothing = (np.nan, np.nan, np.nan)
            yield (layer, head, rule.label, support, *nothing, RULES_AUTHOR, BY_ATTENTION)


def _copying_heads(atlas: Atlas) -> set[tuple[int, int]]:
    """Heads that implement a copying relation of the atlas."""
    copying = atlas.relations["relation"][atlas.relations["is_copying"]]
    table = atlas.without_evidence
    rows = table[table["relation"].isin(copying) & table["implements"].to_numpy(dtype=bool)]
    return set(zip(rows["layer"].tolist(), rows["head"].tolist(), strict=True))


# By a language model ------------------------------------------------------------------------------


def _by_model(
    mappings: Mappings, parts: dict[tuple[int, int], Halves], endpoint: Endpoint, tell: Report
) -> Iterator[Row]:
    """A row for each head, question by question: for a large model they are thousands."""
    total = sum(part.questions for part in parts.values())
    tell(Progress("estimate", 0, 0, f"{total:,} questions to {endpoint.author}; answers that are kept count"))
    done = invalid = 0
    for head, part in parts.items():
        asked = _asking(tell, done, total, f"head {head[0]}.{head[1]}")
        found = describe_with_model(mappings, part, endpoint, head, asked) if part.judged else None
        done += part.questions
        invalid += found is None and part.judged
        yield _row(head, found, "the model gave no valid description", part, endpoint.author)
    came = f"{endpoint.sent:,} requests sent; {invalid:,} descriptions not valid"
    tell(Progress("labels", total, total, came))


def _asking(tell: Report, done: int, total: int, head: str) -> Callable[[int], None]:
    return lambda at: tell(Progress("labels", done + at, total, head))
