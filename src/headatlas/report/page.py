"""Put the page together: template, style, script and data in one file, under a strict content policy."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from headatlas.addresses import output_path
from headatlas.atlas import Atlas
from headatlas.figures.colours import DARK, LIGHT
from headatlas.files import atomic_write
from headatlas.report.data import page_data
from headatlas.showing import safe_values

MODULES = (
    *("format", "dom", "unpack", "layout", "atlas", "state", "changes", "measures", "words", "colours"),
    *("rows", "panels", "figure", "tooltip", "relationrows", "measured", "table", "changetable", "card"),
    *("controls", "finder", "heads", "relations", "sidebyside", "scatter", "profile", "exports", "notes"),
    "page",
)
"""The JavaScript modules, each after those it imports."""

LIVE = ("questions", "live")
"""Further modules of a page behind which a model answers (``headatlas serve``)."""

STYLES = ("base", "figure", "card", "tables", "narrow_and_print")
"""The style sheets, in the order in which they override each other."""

N_SCORES = 21
"""Steps of the scale of scores, 0 to 1; ``STEPS`` of ``js/colours.mjs`` is the last one."""

ATLAS_COLOURS = ("kind-0", "chosen", "kind-1", "accent", "edge", "kind-2")
"""Of the marks of compared atlases, which differ in shape as well."""

_IMPORT = re.compile(r'^import (\{[^}]*\}) from "\./(\w+)\.mjs";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async function|function|const) (\w+))", re.MULTILINE)
_HOLE = re.compile(r"\{\{(\w+)\}\}")


def write_report(
    atlas: Atlas, path: str | Path, q_at: Sequence[int] = (), *, comparison: dict[str, Any] | None = None
) -> Path:
    """Write the interactive page of an atlas; the same atlas always gives the same bytes.

    Args:
        atlas: The atlas; the page starts with its τ and criterion.
        path: The file, or an existing folder that gets a ``report.html``.
        q_at: Further k at which heads are calibrated, so that the page has q there.
        comparison: That of :mod:`headatlas.report.comparison`, of which the atlas is the last.

    Returns:
        The file written.

    Raises:
        HeadatlasError: The file cannot be written, or a k is above the ceiling.
    """
    where = output_path(path)
    if where.is_dir():
        where = where / "report.html"
    page = report_html(atlas, q_at, comparison=comparison)
    with atomic_write(where) as temporary:
        temporary.write_bytes(page.encode("utf-8"))
    return where


def report_html(
    atlas: Atlas,
    q_at: Sequence[int] = (),
    *,
    opens: str = "",
    live: bool = False,
    comparison: dict[str, Any] | None = None,
) -> str:
    """The interactive page of an atlas as one HTML document that loads nothing.

    Args:
        atlas, q_at, comparison: As for :func:`write_report`.
        opens: The fragment it opens with where its address has none: ``head=23.4``.
        live: Whether the server that the page comes from answers questions.
    """
    # Imported here: the figure in words needs SciPy's statistics, the rest of the page does not.
    from headatlas.figures.describe import alt_text, describe

    alternative = alt_text(atlas)
    data = page_data(atlas, alternative=alternative, in_words=describe(atlas), q_at=q_at)
    data = safe_values({**data, "comparison": comparison})
    data["opens"] = opens
    style = stylesheet(len(data["categories"]), (*STYLES, "live") if live else STYLES)
    script = bundle((*MODULES, *LIVE) if live else MODULES)
    return _fill(
        _read("page.html"),
        {
            "policy": _policy(style, script, "connect-src 'self'; " if live else ""),
            "title": html.escape(_title(data)),
            "alternative": html.escape(data["alternative"]),
            "style": style,
            "data": embed(data),
            "script": script,
        },
    )


def _title(data: dict[str, Any]) -> str:
    if data["comparison"]:
        return f"{' and '.join(data['comparison']['labels'])}: their attention heads compared"
    return f"{data['model']}: what its attention heads do"


def embed(data: Any) -> str:
    """JSON that is safe inside a script element: ASCII only, without ``<``, ``>`` and ``&``.

    Raises:
        ValueError: The data hold NaN or an infinity.
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    # Outside strings JSON has none of these characters, so an escape is always inside one.
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def stylesheet(n_categories: int, sheets: Sequence[str] = STYLES) -> str:
    """The page's style, with the figures' colours: one per number of categories, of scores, and for none."""
    scales = {
        "level": [palette.levels(n_categories) for palette in (LIGHT, DARK)],
        "score": [palette.scores(N_SCORES) for palette in (LIGHT, DARK)],
        "down": [palette.scores(N_SCORES, suppression=True) for palette in (LIGHT, DARK)],
    }
    names = uses = ""
    for scale, colours in scales.items():
        for n, pair in enumerate(zip(*colours, strict=True), start=1 if scale == "level" else 0):
            names += f"  --{scale}-{n}: light-dark({', '.join(pair)});\n"
            uses += f'.headatlas [data-{scale}="{n}"] {{ --level: var(--{scale}-{n}); }}\n'
    # Kinds of heads, and atlases, have colours of their own, named in base.css.
    for scale, n_kinds in (("kind", 4), ("change", 6)):
        for n in range(n_kinds):
            uses += f'.headatlas [data-{scale}="{n}"] {{ --level: var(--{scale}-{n}); }}\n'
    for n, colour in enumerate(ATLAS_COLOURS):
        uses += f'.headatlas [data-atlas="{n}"] {{ --atlas: var(--{colour}); }}\n'
    rest = "\n".join(_read(f"css/{name}.css") for name in sheets)
    names += f"  --level-none: light-dark({LIGHT.blank}, {DARK.blank});\n"
    return f".headatlas {{\n{names}}}\n{uses}\n{rest}"


def bundle(modules: Sequence[str] = MODULES) -> str:
    """All JavaScript modules as one: each a closure that returns what it exports, after those it imports."""
    return "\n".join(_closure(name, _read(f"js/{name}.mjs")) for name in modules)


def _closure(name: str, source: str) -> str:
    exports = ", ".join(found[1] for found in _EXPORT.finditer(source))
    body = _EXPORT.sub("", _IMPORT.sub(r"const \1 = from_\2;\n", source))
    return f"const from_{name} = (() => {{\n{body}\nreturn {{ {exports} }};\n}})();"


def _policy(style: str, script: str, connect: str) -> str:
    return (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        f"{connect}base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _fill(template: str, values: dict[str, str]) -> str:
    """Fill the template's ``{{name}}`` holes in one pass, so that no value can open another hole."""
    page = _HOLE.sub(lambda hole: values[hole[1]], template)
    # A file name may carry bytes that are no character; they must not keep the page from being written.
    return page.encode("utf-8", "replace").decode("utf-8")


def _read(name: str) -> str:
    return files("headatlas.report").joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")
