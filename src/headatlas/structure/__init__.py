"""How what the heads do is arranged: by key/value group, by head, by depth, and across models.

>>> from headatlas.structure import compare_atlases, structure      # doctest: +SKIP
>>> structure(atlas).groups                                          # doctest: +SKIP

Everything is computed from stored scores; neither the model nor torch is needed.
"""

from headatlas.structure.across import Comparison, compare_atlases
from headatlas.structure.summary import Structure, structure

__all__ = ["Comparison", "Structure", "compare_atlases", "structure"]
