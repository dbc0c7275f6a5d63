"""headatlas reads a language model and says what every attention head does.

>>> import headatlas as ha
>>> atlas = ha.map_heads("smollm2-135m")                 # doctest: +SKIP
>>> atlas.top("country_to_capital")                      # doctest: +SKIP

The names below are the public API. They are loaded when first used, so ``import headatlas`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from headatlas.errors import HeadatlasError

if TYPE_CHECKING:
    from headatlas.atlas import Atlas
    from headatlas.atlas.opening import open_atlas
    from headatlas.figures.describe import describe
    from headatlas.mapping.plan import plan
    from headatlas.mapping.run import map_heads
    from headatlas.relations import Pair, Relation, core_relations
    from headatlas.relations import load as load_relations

__version__ = "0.1.0"

__all__ = [
    "Atlas",
    "HeadatlasError",
    "Pair",
    "Relation",
    "__version__",
    "core_relations",
    "describe",
    "load_relations",
    "map_heads",
    "open_atlas",
    "plan",
]

# Where a name is defined, and what it is called there.
_HOMES = {
    "Atlas": ("headatlas.atlas", "Atlas"),
    "Pair": ("headatlas.relations", "Pair"),
    "Relation": ("headatlas.relations", "Relation"),
    "core_relations": ("headatlas.relations", "core_relations"),
    "describe": ("headatlas.figures.describe", "describe"),
    "load_relations": ("headatlas.relations", "load"),
    "map_heads": ("headatlas.mapping.run", "map_heads"),
    "open_atlas": ("headatlas.atlas.opening", "open_atlas"),
    "plan": ("headatlas.mapping.plan", "plan"),
}


def __getattr__(name: str) -> Any:
    try:
        module, attribute = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module 'headatlas' has no attribute {name!r}") from None
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__
