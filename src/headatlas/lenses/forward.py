"""Run a model's own modules on rows of token ids: in float32 and evaluation mode, in batches, with hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from headatlas.architectures import Model
from headatlas.devices import free_memory, strict_products

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CPU = torch.device("cpu")
ACTIVATIONS = 512 << 20
"""Bytes that the activations of the rows at hand may take on the CPU; on a GPU, a quarter of what is free."""
MOST_TOKENS = {"cpu": 2048, "mps": 8192, "cuda": 16384}
"""That go through together, by kind of device: more make the CPU no faster."""


@contextmanager
def running(model: Model, device: torch.device = CPU) -> Iterator[PreTrainedModel]:
    """Load the model's modules whole, in float32 and evaluation mode, for use without gradients.

    Those of a model that was in memory already are where it is; others are put on the device.
    """
    modules = model.modules()
    if model.checkpoint.loaded is None:
        torch.nn.Module.to(modules, device)
    with torch.inference_mode(), strict_products():
        yield modules


def prefix_ids(tokenizer: PreTrainedTokenizerBase, prefix: str) -> list[int]:
    """Token ids of a prefix after whatever the tokenizer itself puts first (``<bos>`` or nothing)."""
    plain: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    dressed: list[int] = tokenizer("a")["input_ids"]
    first = next(
        (at for at in range(len(dressed)) if dressed[at : at + len(plain)] == plain),
        0,
    )
    ids: list[int] = tokenizer(prefix, add_special_tokens=False)["input_ids"]
    return dressed[:first] + ids


def by_length(sources: Sequence[tuple[int, ...]]) -> dict[int, list[int]]:
    """Length → the sources of that many tokens, by their places; short ones first."""
    found: dict[int, list[int]] = {}
    for at, source in enumerate(sources):
        found.setdefault(len(source), []).append(at)
    return dict(sorted(found.items()))


def batch_tokens(model: Model, device: torch.device) -> int:
    """Number of tokens that go through a block together, so that their activations stay within bounds.

    A token's activations are about what all projections of a block make of it, in float32.
    """
    a_token = 4 * model.n_block_parameters // model.dims.d_model
    room = ACTIVATIONS if device.type == "cpu" else free_memory(device) // 4
    return max(1, min(room // a_token, MOST_TOKENS[device.type]))


def batches(members: list[int], length: int, tokens: int) -> Iterator[list[int]]:
    """Sources of one length in parts of at most so many tokens that go through the model together."""
    size = max(1, tokens // length)
    for start in range(0, len(members), size):
        yield members[start : start + size]


@contextmanager
def pre_hooks(modules: torch.nn.Module, hooks: Iterable[tuple[str, Callable[..., Any]]]) -> Iterator[None]:
    """Have hooks see, or change, what enters submodules while the block runs.

    Args:
        modules: The model.
        hooks: Paths of submodules, each with a forward pre-hook that takes keyword arguments as well.
    """
    handles = [
        modules.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True) for path, hook in hooks
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
