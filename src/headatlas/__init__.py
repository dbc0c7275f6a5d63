"""headatlas reads a language model and says what every attention head does.

>>> import headatlas as ha
>>> atlas = ha.map_heads("smollm2-135m")                 # doctest: +SKIP
>>> atlas.top("country_to_capital")                      # doctest: +SKIP
>>> atlas.save("mine")                                   # doctest: +SKIP

The names below are the public API. They are loaded when first used, so ``import headatlas`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module

# Ctrl-C is answered by ``__main__``, which is imported after this file: so little is imported here, not even
# the module that has this constant.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from headatlas import evidence
    from headatlas.arrangement import compare, structure
    from headatlas.atlas import Atlas, concat, open_atlas
    from headatlas.describing.run import label
    from headatlas.errors import HeadatlasError
    from headatlas.figures import describe, plot_categories
    from headatlas.looking import behaviour
    from headatlas.mapping.plan import plan
    from headatlas.mapping.run import map_heads
    from headatlas.options import Compute, Thresholds
    from headatlas.recipes import recipe
    from headatlas.relations import Pair, Relation, resolve_relations
    from headatlas.writing import salience
    from headatlas.writing.words import ask, query

__version__ = "0.1.0"

__all__ = [
    "Atlas",
    "Compute",
    "HeadatlasError",
    "Pair",
    "Relation",
    "Thresholds",
    "__version__",
    "ask",
    "behaviour",
    "compare",
    "concat",
    "describe",
    "evidence",
    "label",
    "map_heads",
    "open_atlas",
    "plan",
    "plot_categories",
    "query",
    "recipe",
    "resolve_relations",
    "salience",
    "structure",
]

_HOMES = {
    "headatlas.arrangement": ("compare", "structure"),
    "headatlas.atlas": ("Atlas", "concat", "open_atlas"),
    "headatlas.describing.run": ("label",),
    "headatlas.errors": ("HeadatlasError",),
    "headatlas.figures": ("describe", "plot_categories"),
    "headatlas.looking": ("behaviour",),
    "headatlas.mapping.plan": ("plan",),
    "headatlas.mapping.run": ("map_heads",),
    "headatlas.options": ("Compute", "Thresholds"),
    "headatlas.recipes": ("recipe",),
    "headatlas.relations": ("Pair", "Relation", "resolve_relations"),
    "headatlas.writing": ("salience",),
    "headatlas.writing.words": ("ask", "query"),
}
"""Modules that define the names."""


def __getattr__(name: str) -> Any:
    if name == "evidence":
        return import_module("headatlas.evidence")
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'headatlas' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
