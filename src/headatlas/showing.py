"""Text of others, such as tokens and names in files, made safe to show.

A token may be an escape sequence of a terminal, a mark that turns the direction of writing, half a
character, or a formula of a spreadsheet. What cannot be seen is shown as an escape: ``\\x1b``, ``\\u202e``.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"
"""Format characters that Persian words and emoji need; they change nothing outside their word."""
_FORMULA = ("=", "+", "-", "@")


def safe_text(text: str, keep: str = "") -> str:
    """`text` with control, format and invalid characters written as escapes.

    Args:
        text: Any text.
        keep: Characters that stay, such as a line break.

    >>> safe_text("a\\x1b[31m\\u202eb")
    'a\\\\x1b[31m\\\\u202eb'
    """
    if text.isprintable():
        return text
    return "".join(
        _escape(char) if unicodedata.category(char) in _UNSEEN and char not in _JOINERS + keep else char
        for char in text
    )


def tokens_shown(texts: Sequence[str]) -> str:
    """Tokens in quotes; what cannot be printed, such as control characters and marks of direction, escaped.

    >>> tokens_shown([" May", chr(27) + "[31m"])
    "' May' '\\\\x1b[31m'"
    """
    return " ".join(map(repr, texts))


def safe_json(value: Any, indent: int | None = 2) -> str:
    """JSON in which characters stay readable and those that cannot be seen are escapes; NaN is not allowed.

    A parser gets exactly `value`: in JSON such characters occur in strings alone.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(
        char if char == "\n" or unicodedata.category(char) not in _UNSEEN else _json_escape(char)
        for char in text
    )


def safe_values(value: Any) -> Any:
    """Plain data with every text in it made safe."""
    if isinstance(value, str):
        return safe_text(value, keep="\n")
    if isinstance(value, dict):
        return {safe_values(key): safe_values(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [safe_values(each) for each in value]
    return value


def safe_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """A table for a file that a spreadsheet may open: no text in it is a formula or a control sequence.

    Text that begins with ``=``, ``+``, ``-`` or ``@`` gets an apostrophe before it; numbers stay numbers.
    """
    texts = [name for name in frame.columns if frame[name].dtype.kind not in "biufcmM"]
    safe = frame.assign(**{str(name): frame[name].map(_safe_cell) for name in texts})
    return safe.set_axis([_safe_cell(str(name)) for name in frame.columns], axis=1)


def _safe_cell(value: Any) -> Any:
    if isinstance(value, list | tuple):
        value = " | ".join(str(each) for each in value)
    if not isinstance(value, str):
        return value
    text = safe_text(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def _escape(char: str) -> str:
    code = ord(char)
    named = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(char)
    return named or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    )


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))
