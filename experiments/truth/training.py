"""Train a tiny Llama on a task, on the CPU, the same way every time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.truth.tasks import Task


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; ``mlp`` is the width of its MLPs, 0 for none (their weights are zero and stay so)."""

    layers: int
    heads: int
    kv_heads: int
    d_model: int = 96
    d_head: int = 32
    mlp: int = 192


@dataclass(frozen=True)
class Trained:
    """A trained model, its steps, processor seconds, and accuracy on fresh sequences."""

    model: LlamaForCausalLM
    steps: int
    seconds: float
    accuracy: float


def make(task: Task, shape: Shape, seed: int) -> LlamaForCausalLM:
    """An untrained model."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=task.vocab,
        hidden_size=shape.d_model,
        intermediate_size=shape.mlp or 8,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.d_head,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    if not shape.mlp:
        for block in model.model.layers:
            for parameter in block.mlp.parameters():
                torch.nn.init.zeros_(parameter)
                parameter.requires_grad_(False)
    return model


def train(
    task: Task,
    shape: Shape,
    *,
    seed: int,
    steps: int,
    learners: Sequence[tuple[int, int]] | None = None,
    batch: int = 64,
    rate: float = 2e-3,
) -> Trained:
    """Train for a number of steps.

    Args:
        learners: The heads (layer, head) that may learn; the others keep their random weights and go on
            writing what these make of the text. Keys and values of a group learn if one of its heads does.
            None: all learn, and spread the job over heads that stand in for each other.
    """
    model = make(task, shape, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    if learners is not None:
        _freeze_others(model, shape, learners)
    parameters = [p for p in model.parameters() if p.requires_grad]
    # Without weight decay: it would move frozen heads too.
    optimiser = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    began = time.process_time()
    for step in range(1, steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, step / 50, 2 * (1 - step / steps) + 0.02)
        fresh = task.batch(batch, generator)
        logits = model(input_ids=fresh.ids, use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1), fresh.answers.flatten(), ignore_index=-100)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    seconds = time.process_time() - began
    return Trained(model.eval(), steps, seconds, accuracy(model, task, 512, seed + 2))


def _freeze_others(model: LlamaForCausalLM, shape: Shape, learners: Sequence[tuple[int, int]]) -> None:
    """Let no gradient reach the attention weights of heads that may not learn."""
    per_group = shape.heads // shape.kv_heads
    for layer, block in enumerate(model.model.layers):
        heads = {head for at, head in learners if at == layer}
        groups = {head // per_group for head in heads}
        attention = block.self_attn
        for weight, count, chosen, axis in (
            (attention.q_proj.weight, shape.heads, heads, 0),
            (attention.k_proj.weight, shape.kv_heads, groups, 0),
            (attention.v_proj.weight, shape.kv_heads, groups, 0),
            (attention.o_proj.weight, shape.heads, heads, 1),
        ):
            allowed = torch.tensor([float(at in chosen) for at in range(count)])
            mask = allowed.repeat_interleave(shape.d_head)
            mask = mask[:, None] if axis == 0 else mask[None, :]
            weight.register_hook(lambda gradient, mask=mask: gradient * mask)


@torch.inference_mode()
def accuracy(model: LlamaForCausalLM, task: Task, n: int, seed: int) -> float:
    """Share of answers that are the model's first choice, on fresh sequences."""
    fresh = task.batch(n, torch.Generator().manual_seed(seed))
    asked = fresh.asked >= 0
    found = model(input_ids=fresh.ids, use_cache=False).logits[asked].argmax(dim=-1)
    return float((found == fresh.answers[asked]).float().mean())
