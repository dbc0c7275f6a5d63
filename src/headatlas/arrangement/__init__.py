"""Arrangement of what heads do: by key/value group, by head, by depth, and across models.

>>> from headatlas.arrangement import compare, structure      # doctest: +SKIP
>>> structure(atlas).groups                                          # doctest: +SKIP

Everything is computed from stored scores; neither the model nor torch is needed.
"""

from headatlas.arrangement.comparison import Comparison, compare
from headatlas.arrangement.model_structure import Structure, structure

__all__ = ["Comparison", "Structure", "compare", "structure"]
