"""A GPT-2 whose heads look where its written weights say, and text in its tokenizer's words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from tests.mapping.checkpoints import FIRST_WORD, VOCAB, relation, word

LENGTH, HEADS, D_HEAD = 64, 4, 64
D_MODEL = HEADS * D_HEAD
TOKEN, POSITION, BEFORE, CONSTANT = slice(0, 64), slice(64, 160), slice(160, 224), slice(224, 256)
"""Parts of the residual stream: the token, its position, the token before it, and what is always there."""
PEAK = 40.0
"""About how much more a head scores what it looks for than anything else."""

PLANTED = {
    ("previous_token", 0, 0),
    ("first_position", 0, 2),
    ("self", 0, 3),
    ("induction", 1, 0),
    ("induction_repeated", 1, 0),
    ("duplicate_token", 1, 1),
}
"""All behaviours that heads have; 0.1 and 1.2 spread evenly, 1.3 has random weights."""


def _codes(n: int, width: int, seed: int) -> torch.Tensor:
    """[n, width] of ±1, as many of each in every row, so that a norm changes only their scale."""
    rng = np.random.default_rng(seed)
    half = np.repeat([1.0, -1.0], width // 2)
    return torch.tensor(np.stack([rng.permutation(half) for _ in range(n)]), dtype=torch.float32)


@torch.no_grad()
def planted_model() -> PreTrainedModel:
    """Two layers of four heads; no MLP does anything."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB,
        n_embd=D_MODEL,
        n_layer=2,
        n_head=HEADS,
        n_positions=LENGTH,
        tie_word_embeddings=False,
    )
    model = GPT2LMHeadModel(config).eval()
    positions, keys = _codes(LENGTH, 96, 1), _codes(LENGTH, D_HEAD, 2)
    model.transformer.wte.weight.zero_()
    model.transformer.wte.weight[:, TOKEN] = _codes(VOCAB, 64, 3)
    model.transformer.wte.weight[:, CONSTANT] = _codes(1, 32, 4)
    model.transformer.wpe.weight.zero_()
    model.transformer.wpe.weight[:, POSITION] = positions
    for block in model.transformer.h:
        for part in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            part.weight.zero_()
    solve = torch.linalg.pinv(positions)
    constant = _codes(1, 32, 4)
    before = keys.roll(1, dims=0)
    strength = 8 * PEAK / D_HEAD  # of the product of two codes, over the square root of d_head
    _write(model, 0, 0, "k", POSITION, solve @ keys)
    _write(model, 0, 0, "q", POSITION, strength * solve @ before)
    _write(model, 0, 0, "v", TOKEN, torch.eye(64))
    model.transformer.h[0].attn.c_proj.weight[:D_HEAD, BEFORE] = torch.eye(64)
    _write(model, 0, 2, "k", POSITION, solve @ keys)
    _write(model, 0, 2, "q", CONSTANT, strength * torch.linalg.pinv(constant) @ keys[:1])
    _write(model, 0, 3, "k", POSITION, solve @ keys)
    _write(model, 0, 3, "q", POSITION, strength * solve @ keys)
    _write(model, 1, 0, "k", BEFORE, torch.eye(64))
    _write(model, 1, 0, "q", TOKEN, strength * torch.eye(64))
    # Half of the head knows the token, half the position, of which it wants any but its own.
    short = _codes(LENGTH, 32, 5)
    for which, factor in (("k", 1.0), ("q", 2.0 * strength)):
        _write(model, 1, 1, which, TOKEN, factor * torch.eye(64)[:, :32], columns=slice(0, 32))
        sign = -1.0 if which == "q" else 1.0
        _write(model, 1, 1, which, POSITION, sign * factor * solve @ short, columns=slice(32, 64))
    for which in "qkv":
        _write(model, 1, 3, which, slice(0, D_MODEL), 0.05 * torch.randn(D_MODEL, D_HEAD))
    return model


def _write(
    model: GPT2LMHeadModel,
    layer: int,
    head: int,
    which: str,
    rows: slice,
    values: torch.Tensor,
    columns: slice = slice(0, D_HEAD),
) -> None:
    """Part of a head's query, key or value projection."""
    start = "qkv".index(which) * D_MODEL + head * D_HEAD
    into = model.transformer.h[layer].attn.c_attn.weight
    into[rows, start + columns.start : start + columns.stop] = values


def text_file(folder: Path, n_windows: int = 60, *, seed: int = 0) -> Path:
    """Windows of 47 words, of which each uses 24, with commas and line breaks."""
    rng = np.random.default_rng(seed)
    words: list[str] = []
    for _ in range(n_windows):
        pool = rng.choice(np.arange(FIRST_WORD, VOCAB), 24, replace=False)
        window = [word(int(token)) for token in rng.choice(pool, 47)]
        for at, mark in ((8, ","), (16, "\n"), (26, ","), (33, "\n"), (41, ",")):
            window[at + int(rng.integers(0, 5))] = mark
        words += window
    path = folder / "words.txt"
    path.write_text(" ".join(words), encoding="utf-8")
    return path


def some_relation() -> object:
    """A relation that makes an atlas possible; what is found of it does not matter."""
    return relation("pairs", [(word(20 + at), [word(100 + at)]) for at in range(35)], category="Knowledge")
