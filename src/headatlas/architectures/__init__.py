"""The meaning of each tensor: family files and layouts turn a checkpoint into heads, E, U, norms and MLP."""

from headatlas.architectures.model import Model, open_model
from headatlas.architectures.registry import families, supported
from headatlas.architectures.types import Dims, LayerHeads, RightMap

__all__ = ["Dims", "LayerHeads", "Model", "RightMap", "families", "open_model", "supported"]
