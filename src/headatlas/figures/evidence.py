"""Figures of evidence: dynamic scores, preferences of queries, and what is left of a task without heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from headatlas.atlas.atlas import titles_of
from headatlas.atlas.evidence import (
    CONTEXT,
    CONTEXT_TEXT,
    PREFERS_AUROC,
    TASK,
    WITHOUT,
    Ablation,
    Dynamic,
    Evidence,
    Preferences,
)
from headatlas.errors import HeadatlasError
from headatlas.figures.colours import Palette
from headatlas.figures.describe import decimal
from headatlas.figures.grids import Which, choose_by, needed
from headatlas.figures.page import (
    BELOW,
    GAP,
    LINE,
    MARGIN,
    AtlasFigure,
    Key,
    Page,
    PanelColumns,
    left_of_panel,
    panel_columns,
    style,
    text_width,
)
from headatlas.options import Look

if TYPE_CHECKING:
    from headatlas.atlas import Atlas

Looks = dict[str, dict[str, Any]]


def _colours(palette: Palette) -> tuple[str, str]:
    """Of promotion, and of suppression or what else is beside it."""
    return palette.levels(4)[1], palette.scores(5, suppression=True)[2]


def _guide(palette: Palette) -> dict[str, Any]:
    """A dashed line at a number that decides."""
    return {"color": palette.soft, "linewidth": 0.5, "linestyle": (0, (3.0, 2.0))}


# Dynamic scores -----------------------------------------------------------------------------------------

PANEL, LARGEST_PANEL = 28.0, 42.0
SPAN = (-0.035, 1.035)
BIN = 0.025
"""Heads whose points are about so near to each other are one point."""
MOST_NAMED = 4
"""Heads named in a panel."""
TICKS = (0.0, 0.1, 0.5, 1.0)
DYNAMIC = {CONTEXT: "Score with context", WITHOUT: "Score without context"}


@dataclass(frozen=True)
class Scatter:
    """One panel: a relation."""

    relation: str
    title: str
    static: Mapping[str, NDArray[np.float64]]  # sign → [n_layers, n_heads] scores of the map
    dynamic: Mapping[str, NDArray[np.float64]]  # the same of the running model

    def points(self, sign: str) -> NDArray[np.float64]:
        """[heads, 2] square roots of the two scores."""
        return np.sqrt(np.stack([self.static[sign].ravel(), self.dynamic[sign].ravel()], axis=1))

    def notes(self) -> dict[str, str]:
        """Sign → Pearson's r over heads, in words."""
        from headatlas.evidence.statistics import pearson_or_nan

        return {
            sign: f"r = {decimal(pearson_or_nan(x, self.dynamic[sign]))}" for sign, x in self.static.items()
        }


def scatters(atlas: Atlas, kind: str, dynamics: Sequence[Dynamic]) -> list[Scatter]:
    """A panel for each relation that has dynamic scores of a kind, ``context`` or ``without-context``."""
    evidence, titles, panels = Evidence(atlas, dynamics, ()), titles_of(atlas), []
    for relation in atlas.relation_scores:
        both = {sign: evidence.scores(relation, kind, sign) for sign in ("promotion", "suppression")}
        found = {sign: scores for sign, scores in both.items() if scores is not None}
        if found:
            static, dynamic = ({sign: each[at] for sign, each in found.items()} for at in (0, 1))
            panels.append(Scatter(relation, titles[relation], static, dynamic))
    return panels


def draw_dynamic(
    kind: str,
    atlas: Atlas,
    width_mm: float,
    which: Which,
    look: Look,
    *,
    found: Sequence[Dynamic] | None = None,
) -> AtlasFigure:
    """A panel a relation, a point a head and sign: static score along x, dynamic score along y.

    Most heads score nearly 0 and few score high, so both axes show the square root. A grey line on both
    axes is τ, the score from which a head is called. ``found`` are those stored in the atlas by default.
    """
    dynamics = needed(found or atlas.evidence.dynamics, "evidence inference")
    every = scatters(atlas, kind, dynamics)
    panels = choose_by(which, every, lambda each: (each.relation, each.title), "relation with such scores")
    templates = f"Mean over {len(dynamics)} templates" if len(dynamics) > 1 else "1 template"
    title = f"{DYNAMIC[kind]} against score of the map, {atlas.model_name}"
    caption = (
        "A point a head, larger where heads coincide; the highest are named, layer.head. Axes: square root "
        f"of the score. r: Pearson's, of the scores, over heads. {templates}; {atlas.caption()}"
    )
    return draw_scatters(
        panels, width_mm, look, kind=kind, tau=atlas.thresholds.tau, title=title, caption=caption
    )


draw_context, draw_without = partial(draw_dynamic, CONTEXT), partial(draw_dynamic, WITHOUT)


def draw_scatters(
    panels: Sequence[Scatter], width_mm: float, look: Look, *, kind: str, tau: float, title: str, caption: str
) -> AtlasFigure:
    """The panels of one kind of dynamic scores."""
    described = "; ".join(
        f"{panel.title}: " + ", ".join(f"{sign} {note}" for sign, note in panel.notes().items())
        for panel in panels
    )
    description = f"{DYNAMIC[kind]} against score of the map. {described}."
    page = Page(width_mm, look, title=title, description=description)
    columns = panel_columns(page, len(panels), 1, "0.5", smallest=PANEL, largest=LARGEST_PANEL)
    promotion, suppression = _colours(page.palette)
    points = {
        "promotion": {"color": promotion, "marker": "o"},
        "suppression": {"color": suppression, "marker": "v"},
    }
    line = {**_guide(page.palette), "alpha": 0.65}

    def draw(ax: Axes, panel: Scatter, first: bool) -> None:
        ax.plot([0, 1], [0, 1], color=page.palette.soft, linewidth=0.4, zorder=1)
        ax.axvline(np.sqrt(tau), zorder=1, **line)
        ax.axhline(np.sqrt(tau), zorder=1, **line)
        _scatter(ax, panel, points)
        _name_heads(ax, panel, points, tau, columns.width)
        page.name_axes(ax, "Score of the map", DYNAMIC[kind] if first else "", "0.5")
        if not first:
            ax.set_yticklabels([])

    keys = [Key.point(sign, markerfacecolor="none", **each) for sign, each in points.items()]
    keys.append(Key(f"τ = {tau:g}", line, line=True))
    with style(page.palette):
        y = page.panels(columns, panels, columns.width, title=lambda panel: (panel.title, ""), draw=draw)
        return page.finish(page.legend(MARGIN, y, page.inner, keys) + 0.4 * LINE, caption)


def _scatter(ax: Axes, panel: Scatter, looks: Looks) -> None:
    for set_limits, set_ticks in ((ax.set_xlim, ax.set_xticks), (ax.set_ylim, ax.set_yticks)):
        set_limits(*SPAN)
        set_ticks(np.sqrt(TICKS), [f"{tick:g}" for tick in TICKS])
    for sign, look in looks.items():
        points = panel.points(sign)
        at, n = np.unique(np.rint(points[~np.isnan(points).any(axis=1)] / BIN), axis=0, return_counts=True)
        size = 4.0 + 5.0 * np.log10(n)
        colours: dict[str, Any] = {"facecolors": "none", "edgecolors": look["color"], "linewidths": 0.6}
        x, y = BIN * at.T
        ax.scatter(x, y, s=size, marker=look["marker"], zorder=2, label=sign, **colours)
    for line, (sign, note) in enumerate(panel.notes().items()):
        at_corner: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
        look = {"color": looks[sign]["color"], "va": "top", "ha": "left"}
        ax.annotate(note, (0.0, 1.0), (2.0, -2.0 - 8.5 * line), **at_corner, **look)


def _name_heads(ax: Axes, panel: Scatter, looks: Looks, tau: float, width: float) -> None:
    """Name the heads that score highest, layer.head, where there is room beside their points."""
    unit = (SPAN[1] - SPAN[0]) / width
    dot, high, line = 0.35 * unit, 0.75 * LINE * unit, float(np.sqrt(tau))
    taken = [(0.0, 1.0 - 8.0 * unit, 14.0 * unit, 1.1)]  # where r is written
    best: list[tuple[float, str, float, float, str]] = []
    for sign in looks:
        static, dynamic = panel.static[sign], panel.dynamic[sign]
        centres = np.unique(np.rint(panel.points(sign) / BIN) * BIN, axis=0).tolist()
        taken += [(x - dot, y - dot, x + dot, y + dot) for x, y in centres]
        for layer, head in np.argwhere(np.fmax(static, dynamic) >= tau).tolist():
            x, y = float(static[layer, head]), float(dynamic[layer, head])
            best.append((max(x, y), sign, x**0.5, y**0.5, f"{layer}.{head}"))
    named = 0
    for _, sign, x, y, name in sorted(best, reverse=True):
        wide = text_width(name) * unit
        sides = (unit, -high / 2), (-wide - unit, -high / 2), (-wide / 2, unit), (-wide / 2, -high - unit)
        boxes = [(x + dx, y + dy, x + dx + wide, y + dy + high) for dx, dy in sides]
        inside = [box for box in boxes if min(box) > SPAN[0] and max(box) < SPAN[1]]
        free = [box for box in inside if not any(_overlap(box, each) for each in taken)]
        if free and named < MOST_NAMED:
            box = min(free, key=lambda each: _crossed(each, line))
            ax.text(box[0], box[1], name, color=looks[sign]["color"], zorder=3)
            taken.append(box)
            named += 1


def _crossed(box: tuple[float, ...], tau: float) -> int:
    """How many of the diagonal and the two lines at tau cross a box (left, bottom, right, top)."""
    left, bottom, right, top = box
    return (left < top and bottom < right) + (left < tau < right) + (bottom < tau < top)


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether two boxes (left, bottom, right, top) share a point."""
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def dynamic_table(kind: str, atlas: Atlas) -> pd.DataFrame:
    """One row per head, relation and sign: relation, sign, layer, head, score (of the map, on the sources
    that the texts could use), dynamic (the mean over templates)."""
    parts = []
    for each in scatters(atlas, kind, needed(atlas.evidence.dynamics, "evidence inference")):
        for sign, static in each.static.items():
            layer, head = np.nonzero(~np.isnan(static + each.dynamic[sign]))
            columns = {"score": static[layer, head], "dynamic": each.dynamic[sign][layer, head]}
            named = {"relation": each.relation, "sign": sign, "layer": layer, "head": head}
            parts.append(pd.DataFrame({**named, **columns}))
    return pd.concat(parts, ignore_index=True)


context_table, without_table = partial(dynamic_table, CONTEXT), partial(dynamic_table, WITHOUT)


# Preferences of queries ---------------------------------------------------------------------------------

QUERIES = {"After the relation's task": TASK, "After running texts": CONTEXT_TEXT}


def _preferences(atlas: Atlas) -> Preferences:
    """Those of the shipped templates; without them, the first of those that are stored."""
    every = Preferences.all_in(atlas.place)
    return needed(Preferences.shipped_in(atlas.place) or next(iter(every), None), "evidence attention")


def attention_table(atlas: Atlas) -> pd.DataFrame:
    """One row per called head × relation and query, as :meth:`Preferences.frame` describes it."""
    return _preferences(atlas).frame(atlas)


def draw_attention(
    atlas: Atlas, width_mm: float, which: Which, look: Look, *, found: Preferences | None = None
) -> AtlasFigure:
    """A row a relation, a point a called head: the AUROC with which its query prefers the sources."""
    found = found or _preferences(atlas)
    frame, titles = found.frame(atlas), titles_of(atlas)
    if frame.empty:
        raise HeadatlasError(
            "no head is called for a relation that was compared, so there is no point to draw."
        )
    known = [(name, titles[name]) for name in dict.fromkeys(frame["relation"])]
    rows = choose_by(which, known, lambda each: each, "relation that was compared")
    shown = frame[frame["relation"].isin([name for name, _ in rows])]
    counts = [
        f"{title}: {int(part['prefers'].sum())} of {len(part)}"
        for name, title in rows
        for part in [shown[shown["relation"] == name]]
    ]
    title = f"Would the heads of {atlas.model_name} look at the words of their relations?"
    description = f"AUROC of called heads by relation. Rows that prefer the sources: {'; '.join(counts)}."
    page = Page(width_mm, look, title=title, description=description)
    colour, _ = _colours(page.palette)

    def draw(ax: Axes, name: str) -> None:
        ax.set_xlim(-0.03, 1.03)
        ax.set_xticks([0.0, 0.5, 1.0], ["0", "0.5", "1"])
        ax.axvline(0.5, color=page.palette.soft, linewidth=0.5, zorder=0)
        ax.axvline(PREFERS_AUROC, zorder=0, **_guide(page.palette))
        part = shown[shown["query_at"] == QUERIES[name]]
        heights = part["relation"].map([relation for relation, _ in rows].index)
        filled = np.where(part["prefers"], colour, page.palette.paper)
        ax.scatter(part["auroc"], heights, s=8.0, facecolors=filled, edgecolors=colour, linewidths=0.6)

    with style(page.palette):
        titled = [title for _, title in rows]
        y = page.relation_rows(MARGIN, titled, list(QUERIES), draw, x_name="AUROC")
        keys = [
            Key.point("prefers the sources", color=colour, marker="o"),
            Key.point("does not", color=colour, marker="o", markerfacecolor=page.palette.paper),
            Key(f"AUROC {PREFERS_AUROC:g}", _guide(page.palette), line=True),
        ]
        y = page.legend(MARGIN, y, page.inner, keys) + 0.4 * LINE
        return page.finish(y, f"A point a called head. {found.caption()}; {atlas.caption()}")


# Ablated tasks ------------------------------------------------------------------------------------------

CURVE_HEIGHT = 42.0
CURVE_WIDTH = 85.0
"""Of the figure of a task, on a page that is no wider."""
_MARK: dict[str, Any] = {"markersize": 2.4, "markeredgewidth": 0.0}
_CONTROL_DASHES = ((1.0, 1.5), (5.0, 1.5, 1.0, 1.5))


def ablation_table(atlas: Atlas) -> pd.DataFrame:
    """The curves of every ablated task: task, curve, heads (ablated), accuracy, low, high."""
    from headatlas.evidence.statistics import curves

    tasks = needed(atlas.evidence.ablations, "evidence ablation")
    return pd.concat([curves(each).assign(task=each.label) for each in tasks], ignore_index=True)


def draw_ablation(
    atlas: Atlas, width_mm: float, which: Which, look: Look, *, found: Ablation | None = None
) -> AtlasFigure:
    """Accuracy on a task as heads are ablated; ``which`` names it where the atlas holds several."""
    from headatlas.evidence.statistics import curves

    titles = titles_of(atlas)
    if found is None:
        tasks = needed(atlas.evidence.ablations, "evidence ablation")
        asked = choose_by(
            which, tasks, lambda each: (each.label, each.relation, titles[each.relation]), "ablated task"
        )
        if len(asked) != 1:
            names = ", ".join(each.label for each in asked)
            raise HeadatlasError(f"a figure shows one ablated task; choose it with `which`: {names}.")
        [found] = asked
    how = "its output is 0" if found.method == "zero" else "its output is its mean"
    examples = f"after {found.shots} examples" if found.shots else "without examples"
    asked_for = f"“{found.provenance['template']}” {examples}, {len(found.base)} sources asked"
    order = ", ".join(f"{layer}.{head}" for layer, head in found.heads())
    control = "" if found.controls else "; control task: none has a similar base and few heads in common"
    reading = "bars: 95 % (Wilson) over sources; axis: log₂(1 + heads)"
    caption = f"{asked_for}; heads by score: {order}; ablated: {how}; {reading}{control}; {atlas.caption()}"
    return draw_curves(curves(found), titles, width_mm, look, title=titles[found.relation], caption=caption)


def draw_curves(
    curves: pd.DataFrame, titles: Mapping[str, str], width_mm: float, look: Look, *, title: str, caption: str
) -> AtlasFigure:
    """Curves as :func:`headatlas.evidence.statistics.curves` makes them; ``titles`` of control relations."""
    relation = curves[curves["curve"] == "relation"]
    said = ", ".join(
        f"{a:.2f} after {n}" for n, a in zip(relation["heads"], relation["accuracy"], strict=True)
    )
    description = f"Accuracy with the relation's heads ablated: {said}."
    page = Page(width_mm, look, title=title, description=description)
    with style(page.palette):
        left = left_of_panel("0.5")
        width = min(page.width - left - MARGIN - 1.0, CURVE_WIDTH)
        y = page.lines(left, MARGIN, [title]) + 0.6
        ax = page.axes(left, y, width, CURVE_HEIGHT)
        keys = _curves(ax, curves, titles, page.palette)
        page.name_axes(ax, "Heads ablated", "Accuracy", "0.5")
        beside = (left + width + 2 * GAP,) if page.width > 1.5 * CURVE_WIDTH else ()
        columns = PanelColumns((left, *beside), width, width)
        legend = partial(page.legend, keys=keys)
        y += CURVE_HEIGHT + BELOW + 1.5
        return page.finish(page.beside_or_below(columns, y, CURVE_HEIGHT, 1, legend), caption)


def _curve_looks(palette: Palette) -> dict[str, tuple[str, dict[str, Any]]]:
    """Curve → its label and how it is drawn."""
    relation, added = _colours(palette)
    dashes = (0, (4.0, 1.5))
    return {
        "relation": ("heads in order of score", {"color": relation, "linewidth": 1.4, "marker": "o"}),
        "added": (
            "in order of added over the no-head control",
            {"color": added, "linewidth": 1.0, "linestyle": dashes, "marker": "D"},
        ),
        "random": (
            "random heads: mean; band: lowest to highest draw",
            {"color": palette.soft, "linewidth": 1.0, "marker": "s"},
        ),
    }


def _curves(ax: Axes, curves: pd.DataFrame, titles: Mapping[str, str], palette: Palette) -> list[Key]:
    """Draw every curve, those that coincide as one; returns the legend."""
    ax.set_ylim(0.0, 1.0)
    ax.set_yticks([0.0, 0.5, 1.0], ["0", "0.5", "1"])
    dashes, looks = cycle(_CONTROL_DASHES), _curve_looks(palette)
    drawn: dict[tuple[float, ...], Key] = {}
    for name, rows in curves.groupby("curve", sort=False):
        at = np.log2(1.0 + rows["heads"].to_numpy(dtype=np.float64))
        low, high = (rows[end].to_numpy(dtype=np.float64) for end in ("low", "high"))
        if str(name) in looks:
            label, look = looks[str(name)]
        else:
            control = str(name).removeprefix("control: ")
            label = f"control task: {titles.get(control, control)}"
            look = {"color": palette.ink, "linewidth": 0.7, "linestyle": (0, next(dashes))}
        if str(name) == "random":
            ax.fill_between(at, low, high, color=palette.soft, alpha=0.25, linewidth=0.0)
        if str(name) == "relation":
            ax.vlines(at, low, high, color=look["color"], linewidth=0.6, zorder=3, clip_on=False)
        course = tuple(rows["accuracy"].tolist())
        if course in drawn:
            drawn[course] = replace(drawn[course], label=f"{drawn[course].label}; the same: {label}")
            continue
        # Dashes over the solid line: both are seen where they agree.
        above = {"added": 4, "relation": 3}.get(str(name), 2)
        ax.plot(at, course, label=label, zorder=above, clip_on=False, **_MARK, **look)
        drawn[course] = Key(label, {**_MARK, **look}, line=True)
    steps = curves["heads"].unique()
    ax.set_xticks(np.log2(1.0 + steps.astype(np.float64)), [str(n) for n in steps])
    ends = float(np.log2(1.0 + steps.max()))
    ax.set_xlim(-0.02 * ends, 1.02 * ends)
    return list(drawn.values())
