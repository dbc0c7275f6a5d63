"""The meaning of each tensor: family files and layouts turn a checkpoint into heads, E, U, norms and MLP."""

from headatlas.architectures.family import families, supported
from headatlas.architectures.layouts import Dims, LayerHeads, RightMap
from headatlas.architectures.model import Model, open_model

__all__ = ["Dims", "LayerHeads", "Model", "RightMap", "families", "open_model", "supported"]
