"""Atlases for the browser: one with all that a page can show, one whose every name and token is hostile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from headatlas.atlas import Atlas
from headatlas.atlas.evidence import evidence_group
from headatlas.atlas.labels import BY_ATTENTION, BY_MAPPINGS, LABEL_COLUMNS, store_labels
from headatlas.atlas.salience import N_DIRECTIONS, N_SOURCES, N_TOKENS, salience_path
from headatlas.atlas.stored import store_dataset
from tests.report.made_up import atlas_of, relation
from tests.synthetic import make_atlas, make_behaviours

N_LAYERS, N_HEADS, D_HEAD = 6, 4, 4
LABELLED, LOOKS = (2, 1), (3, 2)
"""A head whose label was scored, and one that is named by where it looks."""

HOSTILE = (
    "</script><img src=x onerror=\"document.title='hit'\">",
    "<svg onload=document.title='hit'>",
    "{{script}}&amp;'\"",
    "\u202egpj.exe\u2066",
    "\x1b[31mred\x1b]0;title\x07",
    "a\x00b\x9b2J\x7f",
    '=HYPERLINK("file:///etc/passwd")',
    "@SUM(1)",
    "javascript:document.title='hit'",
    "__proto__",
    "]]><!--",
    "%23head=0.0&tau=2",
    "\ud800",
    "x" * 300,
)
WORDS = (" Paris", " France", " cat", " dog", " größer", " 猫", " été", " not")


def full_atlas(path: Path) -> Atlas:
    """Six layers × four heads with all that a page shows; the last layer is not mapped."""
    make_atlas(path, N_LAYERS, N_HEADS, layers=range(N_LAYERS - 1))
    _add_evidence(path, WORDS, "capitals → countries")
    return Atlas.open(path)


def hostile_atlas(path: Path, seed: int = 0) -> Atlas:
    """The same number of heads; names of relations, categories, labels, tokens and the model are hostile."""
    relations = [relation("plain", "a → b", "Knowledge")]
    for at, text in enumerate(HOSTILE[:-2]):
        odd = relation(f"odd_{at}", f"odd {at}", f"Zoo {at}" if at < 3 else "Knowledge")
        # A relation refuses such names; an atlas that somebody else wrote may hold them.
        object.__setattr__(odd.relation, "title", f"{text} {at}")
        if at < 3:
            object.__setattr__(odd.relation, "category", f"Zoo {text}")
        relations.append(odd)
    model = "org/" + "".join(HOSTILE[:6])
    atlas_of(path, relations, model, range(N_LAYERS), seed, notes=list(HOSTILE[:-2]))
    _add_evidence(path, HOSTILE, HOSTILE[0] + HOSTILE[3] + HOSTILE[4])
    return Atlas.open(path)


def _add_evidence(path: Path, tokens: tuple[str, ...], label: str) -> None:
    group = evidence_group(path)
    names = ["previous_token", "first_position", "distance"]
    make_behaviours(group, N_LAYERS, N_HEADS, names, LOOKS)
    _add_salience(group, tokens)
    mappings = (*LABELLED, label, "9 of 15", 0.8, 0.2, 0.1, "rules 1", BY_MAPPINGS)
    attention = (*LOOKS, "looks at the previous token", "q 0", *[np.nan] * 3, "rules 1", BY_ATTENTION)
    frame = pd.DataFrame([mappings, attention], columns=list(LABEL_COLUMNS))
    store_labels(group, frame, {"author": "rules 1"})


def _add_salience(group: Path, tokens: tuple[str, ...]) -> None:
    rng = np.random.default_rng(1)
    heads = (N_LAYERS, N_HEADS)

    def ids(*shape: int) -> tuple[tuple[str, ...], np.ndarray]:
        names = {1: ("order",), 2: ("order", "place"), 3: ("direction", "end", "place")}[len(shape)]
        return ("layer", "head", *names), rng.integers(0, len(tokens), (*heads, *shape))

    def per_head(values: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
        return ("layer", "head"), values

    gain = -np.sort(-rng.gamma(2, 1, (*heads, N_SOURCES)), axis=-1)
    singular = -np.sort(-rng.gamma(2, 1, (*heads, D_HEAD)), axis=-1)
    directions = min(N_DIRECTIONS, D_HEAD)
    data = xr.Dataset(
        {
            "gain": (("layer", "head", "order"), gain),
            "source": ids(N_SOURCES),
            "promoted": ids(N_SOURCES, N_TOKENS),
            "suppressed": ids(N_SOURCES, N_TOKENS),
            "reads": ids(directions, 2, N_TOKENS),
            "writes": ids(directions, 2, N_TOKENS),
            "singular_values": (("layer", "head", "rank"), singular),
            "effective_rank": per_head(rng.uniform(1, D_HEAD, heads)),
            "copying": per_head(rng.uniform(-1, 1, heads)),
            "norm_share": per_head(np.full(heads, 1 / N_HEADS)),
            "explained": per_head(rng.random(heads)),
            "relations": per_head(np.full(heads, "[]", dtype=np.dtypes.StringDType())),
            "rest": per_head(np.full(heads, "[]", dtype=np.dtypes.StringDType())),
            "text": ("token", _texts([each.replace("\ud800", "\ufffd") for each in tokens])),
        },
        coords={"token": np.arange(len(tokens))},
    )
    said = {"n": 1000, "choice": "wordlike", "undertrained": 3, "reference": True}
    store_dataset(salience_path(group), data, {"lens": "neutral", "tokens": said})


def _texts(texts: list[str]) -> np.ndarray:
    return np.array(texts, dtype=np.dtypes.StringDType())
