"""The result of a map: its axes, its store, and the class people use."""

from headatlas.atlas.atlas import Atlas, concat, open_atlas

__all__ = ["Atlas", "concat", "open_atlas"]
