"""Recipes: from heads of an atlas to Python that silences, scales or watches them, without headatlas.

>>> import headatlas as ha
>>> print(ha.recipe(ha.open_atlas("out"), "country_to_capital"))          # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from headatlas.atlas import Atlas
from headatlas.recipes.making import Recipe, recipe

__all__ = ["Recipe", "bound", "recipe"]


def bound(atlas: Atlas) -> Callable[..., Recipe]:
    """:func:`recipe` of one atlas: what ``atlas.recipe`` is."""
    return partial(recipe, atlas)
