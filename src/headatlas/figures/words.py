"""Numbers and lists as words."""

from __future__ import annotations

import math
from collections.abc import Sequence

_PLURALS = {"category": "categories", "short fixed prefix": "short fixed prefixes"}


def amount(n: int, noun: str) -> str:
    """``1 head``, ``2 heads``, ``2 categories``."""
    return f"{n} {noun}" if n == 1 else f"{n} {_PLURALS.get(noun, noun + 's')}"


def joined(items: Sequence[str]) -> str:
    """``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def list_layers(first: int, last: int) -> str:
    """``layer 3`` or ``layers 3–7``."""
    return f"layer {first}" if first == last else f"layers {first}–{last}"


def number(value: float) -> str:
    """At most two decimals, no trailing zeros: ``12``, ``12.5``."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def decimal(value: float) -> str:
    """Two decimals with a true minus sign: ``0.25``, ``−0.03``; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")


def with_interval(value: float, low: float, high: float) -> str:
    """``0.25 (0.19 … 0.32)``."""
    return f"{decimal(value)} ({decimal(low)} … {decimal(high)})"


def p_value(value: float, name: str = "p") -> str:
    """``p = 0.031`` or, below 0.001, ``p < 0.001``."""
    return f"{name} < 0.001" if value < 0.001 else f"{name} = {value:.2g}"
