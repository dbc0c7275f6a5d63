"""Modules have their weights while they work, and not otherwise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from headatlas.lenses.streaming import with_weights

CPU, META = torch.device("cpu"), torch.device("meta")


class Block(nn.Module):
    """A projection, parameters and a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2, device=META)
        self.gain = nn.Parameter(torch.ones(2, device=META))
        self.register_buffer("offset", torch.tensor([1.0, 2.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] != 3:
            raise ValueError("three")
        out: torch.Tensor = self.inner(x) * self.gain + self.offset
        return out


def stored(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = {"inner.weight": (2, 3), "inner.bias": (2,), "gain": (2,)}
    return {name: torch.randn(size, generator=generator).to(dtype) for name, size in sizes.items()}


def nothing_left(block: Block) -> bool:
    return all(parameter.is_meta and parameter.dtype == torch.float32 for parameter in block.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_it_computes_in_float32_what_is_stored(dtype: torch.dtype) -> None:
    block, weights = Block(), stored(dtype)
    x = torch.tensor([[1.0, 2.0, 3.0]])
    as_float = {name: tensor.to(torch.float32) for name, tensor in weights.items()}
    expected = nn.functional.linear(x, as_float["inner.weight"], as_float["inner.bias"])
    with torch.inference_mode(), with_weights(block, weights, CPU):
        assert nothing_left(block)
        for _ in range(2):
            found = block(x)
            assert nothing_left(block)
    assert torch.equal(found, expected * as_float["gain"] + torch.tensor([1.0, 2.0]))
    assert found.dtype == torch.float32 and all(tensor.dtype == dtype for tensor in weights.values())
    with pytest.raises(RuntimeError, match="meta"):
        block(x)


def test_what_fails_leaves_nothing() -> None:
    block = Block()
    with torch.inference_mode(), with_weights(block, stored(torch.float32), CPU):
        with pytest.raises(ValueError, match="three"):
            block(torch.ones(1, 2))
        assert nothing_left(block)
        assert block(torch.ones(1, 3)).shape == (1, 2)


def test_buffers_go_there_and_come_back() -> None:
    block = Block()
    before = block.get_buffer("offset")
    with torch.inference_mode(), with_weights(block, stored(torch.float32), META):
        assert block.get_buffer("offset").is_meta
        assert block(torch.ones(1, 3, device=META)).is_meta
    assert block.get_buffer("offset") is before and not before.is_meta
