"""``plan`` and ``map``: from a model to an atlas."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from headatlas.cli.options import (
    Adapter,
    AsJson,
    LensOption,
    ModelArgument,
    Relations,
    Remote,
    Sources,
    TargetPolicyOption,
    computes,
    option,
    out_option,
    sets_thresholds,
)
from headatlas.cli.output import number, print_fields, print_json, progress_shown, say, say_more, stopping
from headatlas.errors import HeadatlasError
from headatlas.options import CEILING, MAX_CEILING, Compute, LensName, Preset, Thresholds
from headatlas.progress import duration, size

if TYPE_CHECKING:
    from headatlas.atlas import Atlas
    from headatlas.atlas.behaviours import Looking
    from headatlas.mapping.prepared import PreparedMap
    from headatlas.progress import Report

Layers = Annotated[str | None, option("--layers", "Map only these layers, both ends included.", "A-B")]
Ceiling = Annotated[
    int,
    option("--ceiling", "Ranks are stored exactly below N; k can be up to N.", "N", min=1, max=MAX_CEILING),
]
Force = Annotated[bool, option("--force", "Delete the atlas in DIR and start over, instead of resuming.")]
NoFigures = Annotated[bool, option("--no-figures", "Write the atlas and the tables only.")]
Behaviour = Annotated[
    bool | None,
    option(
        "--behaviour/--no-behaviour",
        "Measure where heads look as well, as the command behaviour does. Default: with the lens "
        "neutral, where the model runs in the memory of this machine.",
        show_default=False,
    ),
]

_N_BEST = 5
_FEW = 0.6
"""Relations that use a smaller share of their sources are named."""


@computes("device", "max_memory", "stream")
def plan_command(
    model: ModelArgument,
    compute: Compute,
    lens: Annotated[LensName, option("--lens", "How a head sees a token.")] = "neutral",
    relations: Relations = None,
    sources: Sources = None,
    target_policy: TargetPolicyOption = "single",
    remote: Remote = False,
    adapter: Adapter = None,
    as_json: AsJson = False,
) -> None:
    """Say what mapping a model will take; nothing is computed.

    Family, heads, bytes to read, memory and time. Only the headers of the weights and the tokenizer are read.
    Relations that the map will leave out are named; where none is left, it is refused as map refuses it.
    """
    asked = _relations(relations)
    from headatlas.mapping.plan import plan

    found = plan(
        model,
        lens=lens,
        relations=asked,
        sources=sources,
        target_policy=target_policy,
        compute=compute,
        remote=remote,
        adapter=adapter,
    )
    if as_json:
        print_json(found.to_dict())
    else:
        print_fields(found.rows())


@computes("device", "max_memory", "stream", "cluster")
@sets_thresholds
def map_command(
    model: ModelArgument,
    out: Annotated[Path, out_option("Folder for the atlas, figures and page.", "DIR")],
    preset: Preset,
    thresholds: Thresholds,
    compute: Compute,
    lens: LensOption = None,
    relations: Relations = None,
    sources: Sources = None,
    layers: Layers = None,
    target_policy: TargetPolicyOption = "single",
    ceiling: Ceiling = CEILING,
    remote: Remote = False,
    adapter: Adapter = None,
    force: Force = False,
    no_figures: NoFigures = False,
    behaviour: Behaviour = None,
) -> None:
    """Map every head of a model into a folder.

    DIR gets the atlas (atlas.zarr), the figure (categories.png, .svg, .pdf), its data (categories.csv), the
    figure in words (description.txt), the interactive page (report.html), the table (heads.parquet) and, in
    evidence, where heads look.

    Each layer is saved when it is done. After Ctrl-C or a crash, the same command goes on where it stopped.
    """
    asked = _relations(relations)
    from headatlas.addresses import shown
    from headatlas.files import check_writable
    from headatlas.progress import Progress, Stats, beside
    from headatlas.relations import check_sources

    thresholds.check(ceiling)
    check_sources(sources)
    check_writable(out)

    stats = Stats()
    opened: list[PreparedMap] = []
    with stopping(lambda: _stopped(out)):
        with progress_shown() as tell, beside(tell, partial(_import_outputs, not no_figures)) as progress:
            progress(Progress("open", 0, 0, shown(model)))  # the imports take seconds
            from headatlas.mapping.run import map_heads

            atlas = map_heads(
                model,
                out=out,
                lens=lens or preset.lens,
                mask=preset.mask,
                relations=asked,
                thresholds=thresholds,
                layers=layers,
                ceiling=ceiling,
                target_policy=target_policy,
                sources=sources,
                compute=compute,
                remote=remote,
                adapter=adapter,
                force=force,
                progress=progress,
                stats=stats,
                opened=opened.append,
            )
            # The outputs follow this command line, whatever an earlier one, now resumed, said.
            atlas = atlas.at(thresholds)
            with stats.timed("behaviour"):
                looking, failed = _watched(atlas, model, opened, behaviour, compute, progress)
        note = f"attention was not measured: {failed}" if failed else ""
        with stats.timed("outputs"):
            written = _written(atlas, looking, out, note, figures=not no_figures)
    say_more("; ".join(f"{stage} {duration(seconds)}" for stage, seconds in stats.seconds.items()))
    say(map_summary(atlas, out, written, _since_start(), note))
    if behaviour and failed:
        raise failed


def _import_outputs(figures: bool) -> None:
    from headatlas.outputs import import_writers

    import_writers(figures=figures)


def _written(atlas: Atlas, looking: Looking | None, out: Path, note: str, *, figures: bool) -> Sequence[Path]:
    """Write what a map leaves beside its atlas; the summary is said also where that fails."""
    from headatlas.outputs import UnwrittenError, write_behaviours, write_outputs

    try:
        written = write_outputs(atlas, out, figures=figures)
        if looking is not None:
            written += write_behaviours(atlas, looking, figures)
    except UnwrittenError as error:
        say(map_summary(atlas, out, error.written, _since_start(), note))
        raise
    return written


def _watched(
    atlas: Atlas,
    model: str,
    opened: Sequence[PreparedMap],
    asked: bool | None,
    compute: Compute,
    progress: Report,
) -> tuple[Looking | None, HeadatlasError | None]:
    """Attention of the heads, if it is to be measured; and what kept it from being.

    By default it is measured where the map has run the whole model here anyway: then it takes under a third
    of the time.
    """
    ran_here = atlas.lens == "neutral" and not compute.stream and compute.cluster is None
    whole = int(atlas.layers_done.sum()) + len(atlas.layers_without_heads) == atlas.n_layers
    if asked is False or (asked is None and not (ran_here and whole)):
        return None, None
    from headatlas.looking.measuring import run_behaviour

    try:
        prepared = opened[0] if opened else None
        found = run_behaviour(atlas, model, prepared=prepared, compute=compute, progress=progress)
    except HeadatlasError as error:
        return None, error
    atlas.forget_evidence()
    return found, None


def _relations(given: list[str] | None) -> Any:
    """Relations asked for, read before anything heavy is imported."""
    from headatlas.relations import resolve_relations

    return resolve_relations(given or "core")


def _since_start() -> float:
    """Seconds since the process began: what a person has waited."""
    import psutil

    return time.time() - psutil.Process().create_time()


def _stopped(out: Path) -> str:
    """Sentence on what Ctrl-C left."""
    from headatlas.atlas import Atlas

    try:
        done = Atlas.open(out).layers_done
    except HeadatlasError:
        return "stopped; nothing saved yet; the same command starts again"
    return f"stopped; {int(done.sum())} of {len(done)} layers saved; the same command resumes"


def map_summary(atlas: Atlas, out: Path, written: Sequence[Path], seconds: float, note: str = "") -> str:
    """Summary of a map: findings, omissions with reasons, files written, time."""
    from headatlas.atlas.cards import coverage_sentence

    lines = [atlas.caption(), *_counts(atlas), *_best(atlas), coverage_sentence(atlas), *_missing(atlas)]
    lines += _fetched(atlas)
    lines += [note] if note else []
    lines += [f"note: {note}" for note in atlas.provenance["model"].get("notes", ())]
    names = [atlas.path.name if atlas.path else "atlas", *(path.name for path in written)]
    lines.append(f"written to {out}: {', '.join(names)}")
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

    called = atlas.table()[atlas.table()["implements"]]
    best = called.sort_values("score", ascending=False, kind="stable")
    best = best.drop_duplicates("relation").drop_duplicates(["layer", "head"]).head(_N_BEST)
    titles = dict(zip(atlas.relations["relation"], atlas.relations["title"], strict=True))
    return [
        f"  head {record['layer']}.{record['head']}  {titles[record['relation']]}  "
        f"score {record['score']:.2f}  q {number(record['q'])}"
        for record in heads_json(best)
    ]


def _missing(atlas: Atlas) -> list[str]:
    from headatlas.relations import NOT_DRAWN

    titles = dict(zip(atlas.relations["relation"], atlas.relations["title"], strict=True))
    lines = [f"left out: {titles[name]} ({why})" for name, why in atlas.left_out.items()]
    for name, other in atlas.provenance.get("alternatives", {}).items():
        lines.append(f"in the place of {titles[name]}: {titles[other]}")
    dropped: dict[str, int] = {}
    for reasons in atlas.included["dropped"]:
        for reason, sources in reasons.items():
            dropped[reason] = dropped.get(reason, 0) + len(sources)
    counted = ", ".join(f"{reason} ({count})" for reason, count in dropped.items() if count)
    if counted:
        folder = shlex.quote(str(atlas.folder))
        lines.append(f"sources not used: {counted}; `headatlas info {folder}` has the details")
    few = [
        f"{row['title']} {row['n_sources']} of {row['n_pairs']}"
        for row in atlas.included.to_dict("records")
        if row["n_sources"] < _FEW * (row["n_pairs"] - len(row["dropped"].get(NOT_DRAWN, ())))
    ]
    if few:
        lines.append(f"under {100 * _FEW:.0f} % of the sources used: {', '.join(few)}")
    return lines


def _fetched(atlas: Atlas) -> list[str]:
    """How much of a model that is not on disk was read."""
    model = atlas.provenance["model"]
    read, stored = model.get("fetched_bytes"), model.get("stored_bytes")
    if not read or not stored:
        return []
    return [f"read {size(read)} of {size(stored)} of weights ({100 * read / stored:.3g} %)"]
