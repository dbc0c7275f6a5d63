"""Write a figure as PNG, SVG or PDF: the same bytes for the same figure, title and description inside."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from headatlas.addresses import output_path
from headatlas.errors import HeadatlasError
from headatlas.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")


def figure_format(path: str | Path) -> str:
    """The format a file name asks for.

    Raises:
        HeadatlasError: Its suffix is none of .png, .svg and .pdf.
    """
    suffix = output_path(path).suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        found = f"the suffix is .{suffix}" if suffix else "there is no suffix"
        raise HeadatlasError(f"{path}: {found}; a figure can be .png, .svg or .pdf.")
    return suffix


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure; the format follows the suffix. PNG has 300 dots per inch.

    The file holds the figure's title and description: ``<title>`` and ``<desc>`` in SVG, Title and Subject in
    PDF, Title and Description in PNG. It holds no date, so the same figure gives the same bytes.

    Raises:
        HeadatlasError: The suffix is not known, or the file cannot be written.
    """
    target = output_path(path)
    data = figure_bytes(figure, figure_format(target))
    with atomic_write(target) as temporary:
        temporary.write_bytes(data)
    return target


def figure_bytes(figure: Figure, file_format: str) -> bytes:
    """What :func:`save` writes, for pages and notebooks."""
    from headatlas.figures.page import DPI, style

    title, description = getattr(figure, "title", ""), getattr(figure, "description", "")
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Title": title, "Description": description},
        "svg": {"Title": title, "Date": None},
        "pdf": {"Title": title, "Subject": description, "CreationDate": None},
    }
    chosen = {name: value for name, value in metadata[file_format].items() if value != ""}
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format=file_format, dpi=DPI, metadata=chosen)
    data = buffer.getvalue()
    return _describe_svg(data, title, description) if file_format == "svg" else data


def _describe_svg(data: bytes, title: str, description: str) -> bytes:
    """Add what a screen reader reads: role, label and ``<desc>``."""
    if not (title and description):
        return data
    text = data.decode("utf-8")
    text = text.replace("<svg ", '<svg role="img" aria-labelledby="title desc" ', 1)
    text = text.replace("<title>", '<title id="title">', 1)
    wanted = f'</title>\n <desc id="desc">{escape(description)}</desc>'
    return re.sub("</title>", lambda _: wanted, text, count=1).encode("utf-8")
