"""A map in a few lines, and a plan in a few rows."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headatlas.cli.output import number
from headatlas.cli.progress import duration

if TYPE_CHECKING:
    from headatlas.atlas import Atlas

_N_BEST = 5


def summary(atlas: Atlas, out: Path, written: Sequence[Path], seconds: float) -> str:
    """What was found, what was left out and why, what was written, how long it took."""
    lines = [atlas.caption(), *_counts(atlas), *_best(atlas), *_missing(atlas)]
    lines += _fetched(atlas)
    names = ", ".join(path.name for path in written)
    lines.append(f"written to {out}: {atlas.path.name if atlas.path else 'atlas'}, {names}")
    lines.append(f"time: {duration(seconds)}")
    return "\n".join(lines)


def _counts(atlas: Atlas) -> list[str]:
    heads = atlas.categories()
    called = int((heads["n_categories"] > 0).sum())
    per_category = heads["which"].explode().value_counts()
    parts = [f"{name} {int(per_category.get(name, 0))}" for name in atlas.category_names]
    return [f"{called} of {len(heads)} heads belong to a category: {', '.join(parts)}"]


def _best(atlas: Atlas) -> list[str]:
    """The best head of the relations that have the strongest ones; each head once."""
    from headatlas.atlas.export import heads_json

    called = atlas.table[atlas.table["implements"]]
    best = called.sort_values("score", ascending=False, kind="stable")
    best = best.drop_duplicates("relation").drop_duplicates(["layer", "head"]).head(_N_BEST)
    titles = dict(zip(atlas.relations["relation"], atlas.relations["title"], strict=True))
    return [
        f"  head {record['layer']}.{record['head']}  {titles[record['relation']]}  "
        f"score {record['score']:.2f}  q {number(record['q'])}"
        for record in heads_json(best)
    ]


def _missing(atlas: Atlas) -> list[str]:
    titles = dict(zip(atlas.relations["relation"], atlas.relations["title"], strict=True))
    lines = [f"left out: {titles[name]} ({why})" for name, why in atlas.left_out.items()]
    dropped: dict[str, int] = {}
    for reasons in atlas.included["dropped"]:
        for reason, sources in reasons.items():
            dropped[reason] = dropped.get(reason, 0) + len(sources)
    counted = ", ".join(f"{reason} ({count})" for reason, count in dropped.items() if count)
    if counted:
        folder = shlex.quote(str(atlas_folder(atlas)))
        lines.append(f"sources not used: {counted}; `headatlas info {folder}` has the details")
    return lines


def _fetched(atlas: Atlas) -> list[str]:
    """How much of a model that is not on disk was read."""
    model = atlas.provenance["model"]
    read, stored = model.get("fetched_bytes"), model.get("stored_bytes")
    if not read or not stored:
        return []
    return [f"read {size(read)} of {size(stored)} of weights ({100 * read / stored:.3g} %)"]


def atlas_folder(atlas: Atlas) -> Path:
    """The folder to give to later commands."""
    if atlas.path is None:
        return Path("DIR")
    return atlas.path.parent if atlas.path.name == "atlas.zarr" else atlas.path


def plan_rows(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """The fields of a plan for people: sizes in units, time in words, each note on a row."""
    rows = []
    for name, value in plan.items():
        if name == "notes":
            continue
        label = name.replace("bytes_to_read", "to read").replace("memory_bytes", "memory")
        label = label.replace("seconds_estimate", "time").replace("_", " ")
        if value is None:
            text = "–"
        elif name in ("bytes_to_read", "memory_bytes"):
            text = size(value)
        elif name == "seconds_estimate":
            text = f"about {duration(value)}"
        else:
            text = f"{value:,}" if isinstance(value, int) else str(value)
        rows.append((label, text))
    return rows + [("note", str(note)) for note in plan.get("notes", ())]


def size(n_bytes: float) -> str:
    """``512 kB``, ``1.4 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"
