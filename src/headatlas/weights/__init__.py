"""From a model's name to named tensors, a tokenizer and modules.

:func:`open_checkpoint` reads headers only; tensors are read by name when they are needed. Nothing here ever
unpickles a file or runs code that comes with a model.
"""

from headatlas.weights.checkpoints import open_checkpoint
from headatlas.weights.loading import (
    can_stream,
    load_modules,
    load_skeleton,
    need_on_disk,
)
from headatlas.weights.source import Checkpoint, NoModulesError
from headatlas.weights.tokenizer import Tokenizer, load_tokenizer, missing_tokenizer, tokenizer_hash

__all__ = [
    "Checkpoint",
    "NoModulesError",
    "Tokenizer",
    "can_stream",
    "load_modules",
    "load_skeleton",
    "load_tokenizer",
    "missing_tokenizer",
    "need_on_disk",
    "open_checkpoint",
    "tokenizer_hash",
]
