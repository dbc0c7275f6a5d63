"""The weights of a block in float32 on the device, each only while the module that holds it works.

A block of a 70B model takes 3.4 GB in float32. Its largest projection takes 0.9 GB, and the file that the
rest waits in is mapped, not copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def placed(block: nn.Module, stored: Mapping[str, torch.Tensor], device: torch.device) -> Iterator[None]:
    """Give a block of the meta device its weights during the block of code.

    A GPU gets them once, as they are stored. Every call of a module that has parameters of its own makes them
    float32 there, and lets them go. Parameters of a module of no common kind are there while the module
    around it works, which may read them itself (DBRX's experts).

    Args:
        block: Modules with parameters on the meta device.
        stored: Every parameter and stored buffer by its path in ``block``, in any floating dtype, on the CPU.
        device: Where the modules will work; their buffers are moved there, and back afterwards.
    """
    waiting = {name: _on(device, tensor) for name, tensor in stored.items()}
    with ExitStack() as stack:
        for path, module in block.named_modules():
            empty = dict(module.named_parameters(recurse=False))
            if not empty:
                continue
            own = {name: waiting[f"{path}.{name}".lstrip(".")] for name in empty}
            around = (
                module if _is_common(module) or not path else block.get_submodule(path.rpartition(".")[0])
            )
            stack.callback(around.register_forward_pre_hook(_puts(module, own)).remove)
            stack.callback(around.register_forward_hook(_puts(module, empty), always_call=True).remove)
        stack.enter_context(_buffers_on(block, device, waiting))
        yield


def _on(device: torch.device, tensor: torch.Tensor) -> torch.Tensor:
    """A stored tensor on the device; float64 in float32, for not every device knows it."""
    return (tensor.to(torch.float32) if tensor.dtype == torch.float64 else tensor).to(device)


def _is_common(module: nn.Module) -> bool:
    """Whether it is a projection, an embedding or a norm, whose parameters only its own call reads."""
    kind = type(module).__name__
    return isinstance(module, nn.Linear | nn.Embedding) or kind.startswith("Conv") or kind.endswith("Norm")


def _puts(module: nn.Module, parameters: Mapping[str, torch.Tensor]) -> Callable[..., None]:
    """A hook that gives a module these parameters, in float32."""

    def hook(*_: Any) -> None:
        for name, tensor in parameters.items():
            setattr(module, name, nn.Parameter(tensor.to(torch.float32), requires_grad=False))

    return hook


@contextmanager
def _buffers_on(block: nn.Module, device: torch.device, stored: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Buffers follow from the config and are real, or are stored; they are few."""
    before = [
        (module, name, buffer, stored.get(f"{path}.{name}".lstrip(".")))
        for path, module in block.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    for module, name, buffer, own in before:
        setattr(module, name, buffer.to(device) if own is None else own.to(buffer.dtype))
    try:
        yield
    finally:
        for module, name, buffer, _ in before:
            setattr(module, name, buffer)
