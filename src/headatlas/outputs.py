"""The files that a map leaves beside its atlas: figures, their data, the description, the page, the table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from headatlas.atlas import Atlas
from headatlas.atlas.export import export
from headatlas.files import check_writable, replacing
from headatlas.storage import Place, place

if TYPE_CHECKING:
    import pandas as pd

    from headatlas.atlas.ablations import Ablation
    from headatlas.atlas.behaviours import Looking
    from headatlas.atlas.evidence import Dynamic
    from headatlas.figures.page import AtlasFigure

FIGURE_SUFFIXES = (".png", ".svg", ".pdf")
WIDTH_MM = 170.0


def write_outputs(atlas: Atlas, folder: str | Place, figures: bool = True) -> list[Place]:
    """Write everything a reader wants to see first; each file replaces its predecessor whole.

    ``heads.parquet`` (one row per head × relation), ``categories.csv`` (the plotted data), and, unless
    ``figures`` is False, ``categories.png``, ``.svg`` and ``.pdf``, ``description.txt``, ``report.html``.

    Returns:
        The files written.

    Raises:
        HeadatlasError: A file cannot be written.
    """
    from headatlas.figures.plots import write_data

    folder = place(folder)
    check_writable(folder)
    written: list[Place] = [
        export(atlas, folder / "heads.parquet"),
        write_data(atlas, "categories", folder / "categories.csv"),
    ]
    if figures:
        from headatlas.report import write_report

        written += _write_figures(atlas, folder)
        written.append(_write_text(atlas, folder / "description.txt"))
        written.append(write_report(atlas, folder / "report.html"))
    return written


def _write_figures(atlas: Atlas, folder: Place) -> list[Place]:
    from headatlas.figures import save

    figure = atlas.plot.categories(width_mm=WIDTH_MM)
    paths = [folder / f"categories{suffix}" for suffix in FIGURE_SUFFIXES]
    return [save(figure, path) for path in paths]


def _write_text(atlas: Atlas, path: Place) -> Place:
    from headatlas.figures.describe import describe

    with replacing(path) as temporary:
        temporary.write_text(describe(atlas).rstrip("\n") + "\n", encoding="utf-8")
    return path


DYNAMIC_TITLES = {"context": "Score with context", "without-context": "Score without context"}


def write_inference(
    atlas: Atlas, agreement: pd.DataFrame, dynamics: Sequence[Dynamic], folder: Place, *, figures: bool = True
) -> list[Place]:
    """Write ``agreement.csv`` and, unless ``figures`` is False, the scatter plots with and without context.

    Args:
        atlas: The atlas.
        agreement: What :func:`headatlas.evidence.agreement.agreement` found.
        dynamics: The dynamic scores it was found with.
        folder: Where to.

    Raises:
        HeadatlasError: A file cannot be written.
    """
    from headatlas.atlas.evidence import Evidence

    written: list[Place] = [_table(agreement, folder / "agreement.csv")]
    if not figures:
        return written
    from headatlas.figures.evidence import Scatter, draw_agreement

    evidence = Evidence(atlas, dynamics, ())
    titles = dict(zip(atlas.relations["relation"], atlas.relations["title"], strict=True))
    for kind, name in DYNAMIC_TITLES.items():
        panels = []
        for relation in atlas.relation_scores:
            found = {sign: evidence.scores(relation, kind, sign) for sign in ("promotion", "suppression")}
            scores = {sign: both for sign, both in found.items() if both is not None}
            if len(scores) == 2:
                rows = agreement[(agreement["relation"] == relation) & (agreement["kind"] == kind)]
                r = {
                    str(sign): float(value) for sign, value in zip(rows["sign"], rows["pearson"], strict=True)
                }
                panels.append(
                    Scatter(
                        titles[relation],
                        {sign: both[0] for sign, both in scores.items()},
                        {sign: both[1] for sign, both in scores.items()},
                        r,
                    )
                )
        if panels:
            templates = f"mean over {len(dynamics)} templates" if len(dynamics) > 1 else "1 template"
            caption = (
                f"{atlas.caption()}; {templates}; axes: square root of the score; "
                "r: Pearson's, of the scores, over heads"
            )
            title = f"{name} against score of the map, {atlas.model_name}"
            tau = atlas.thresholds.tau
            figure = draw_agreement(panels, title=title, dynamic=name, tau=tau, caption=caption)
            written += _save(figure, folder / kind)
    return written


def write_behaviours(atlas: Atlas, found: Looking, folder: Place, *, figures: bool = True) -> list[Place]:
    """Write ``behaviour.csv`` (a row per behaviour and head) and, unless ``figures`` is False, the figure.

    What was measured on a user's own text is named after the file.

    Raises:
        HeadatlasError: A file cannot be written.
    """
    frame = found.frame()
    own = PurePath(found.source).stem
    stem = folder / (f"behaviour-{own}" if own else "behaviour")
    written: list[Place] = [_table(frame, stem.parent / f"{stem.name}.csv")]
    if not figures:
        return written
    from headatlas.figures.behaviours import draw_behaviours

    figure = draw_behaviours(
        frame,
        (atlas.n_layers, atlas.n_heads),
        WIDTH_MM,
        title=f"Where the heads of {atlas.model_name} look",
        caption=f"{atlas.model_name}; {found.caption()}",
    )
    return written + _save(figure, stem)


def write_ablations(
    atlas: Atlas, ablations: Sequence[Ablation], folder: Place, *, figures: bool = True
) -> list[Place]:
    """Write ``ablation.csv`` (a row a task stored in the atlas) and, unless ``figures`` is False, a figure a
    task.

    Raises:
        HeadatlasError: A file cannot be written.
    """
    if not ablations:
        return []
    from headatlas.evidence.curves import curves, summary

    stored = Atlas.open(atlas.path).evidence.ablations if atlas.path is not None else ablations
    written: list[Place] = [_table(summary(list(stored)), folder / "ablation.csv")]
    if not figures:
        return written
    from headatlas.figures.evidence import draw_ablation

    titles = dict(zip(atlas.relations["relation"], atlas.relations["title"], strict=True))
    for each in ablations:
        how = "its output is 0" if each.method == "zero" else "its output is its mean"
        examples = f"after {each.shots} examples" if each.shots else "without examples"
        asked = f"“{each.provenance['template']}” {examples}, {len(each.base)} sources asked"
        control = "" if each.controls else "; control task: none has a similar base and few heads in common"
        caption = f"{asked}; ablated: {how}; {_area_words(each)}{control}; heads: {atlas.caption()}"
        figure = draw_ablation(curves(each), titles, title=titles[each.relation], caption=caption)
        written += _save(figure, folder / f"ablation-{each.relation}-shots{each.shots}-{each.method}")
    return written


def _area_words(each: Ablation) -> str:
    """The areas of a task, and what bars and axis of its figure are."""
    from headatlas.evidence.curves import SAME_HEADS, areas, hurts_more
    from headatlas.figures.words import with_interval

    between, orders = areas(each)
    if hurts_more(each, orders) == SAME_HEADS:
        second = "both orders take the same heads at every step"
    else:
        second = f"order by score minus order by added {with_interval(orders.value, orders.low, orders.high)}"
    first = f"area: random minus order by score {with_interval(between.value, between.low, between.high)}"
    return f"{first}; {second}; bars: 95 % (Wilson) over sources; axis: log₂(1 + heads)"


def _table(frame: pd.DataFrame, path: Place) -> Place:
    with replacing(path) as temporary:
        frame.to_csv(temporary, index=False)
    return path


def _save(figure: AtlasFigure, stem: Place) -> list[Place]:
    from headatlas.figures import save

    return [save(figure, stem.parent / f"{stem.name}{suffix}") for suffix in FIGURE_SUFFIXES]
