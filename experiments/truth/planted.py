"""Random models with heads written into their weights: how strong each is, and how noisy, is chosen.

The heads are written for the states that sources have in *random contexts*, which neither lens reads. So a
lens finds a head as far as its states resemble those of real use. Two dials make that easier or harder:

* ``first_mlp``: length of the first MLP's output, in lengths of the embedding. Later layers see the embedding
  plus that output. The lens ``maps`` reads the output alone, so it needs a large one.
* ``noise``: length of the random part of what a planted head writes, in lengths of the right part.

There are also *decoys*, which push a relation's targets whatever the source, and heads that share the values
of a planted head's group and are left as they were. Neither does the job.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from headatlas.mapping.run import map_heads
from headatlas.relations import Relation
from tests.mapping.checkpoints import FIRST_WORD, relation, word, word_tokenizer

LAYERS, HEADS, GROUPS, D_HEAD, D_MODEL = 6, 8, 4, 40, 256
N_SETS, N_SOURCES, VOCAB = 4, 36, 1000
STRENGTHS = (1.0, 0.6, 0.3)
"""Shares of its sources that a planted head turns into their targets; the others go to random words."""
CONTEXTS, LONGEST = 8, 12


@dataclass(frozen=True)
class Plant:
    """One relation written into one head.

    Attributes:
        kind: ``promotes``, ``suppresses`` or ``decoy``.
        strength: Share of the sources that it treats so.
    """

    layer: int
    head: int
    relation: int
    kind: str
    strength: float


@dataclass(frozen=True)
class Words:
    """Which tokens the relations are about; relations 2i and 2i + 1 share the sources of set i."""

    sources: torch.Tensor
    """[N_SETS, N_SOURCES]"""
    targets: torch.Tensor
    """[2 · N_SETS, N_SOURCES]"""

    def relations(self) -> list[Relation]:
        return [
            relation(
                f"planted{at}",
                [(word(int(s)), [word(int(t))]) for s, t in zip(sources, targets, strict=True)],
            )
            for at, (sources, targets) in enumerate(
                zip(self.sources.repeat_interleave(2, dim=0), self.targets, strict=True)
            )
        ]


def planted_cells(first_mlp: float, noise: float, seed: int) -> pd.DataFrame:
    """Plant, map with both lenses, and say what is true.

    Returns:
        A row per lens, head, relation and sign: score, called, called_tau (by the score alone),
        truth, kind, strength.
    """
    model, words, plants = planted_model(first_mlp, noise, seed)
    parts = []
    for lens in ("maps", "neutral"):
        atlas = map_heads(model, word_tokenizer(VOCAB), lens=lens, relations=words.relations())
        table = atlas.table()
        for sign, verb, kind in (
            ("score", "implements", "promotes"),
            ("suppression", "suppresses", "suppresses"),
        ):
            part = table[["layer", "head", "relation"]].assign(
                lens=lens,
                sign=kind,
                score=table[sign],
                called=table[verb].astype(bool),
                called_tau=table[sign] >= atlas.thresholds.tau,
            )
            parts.append(_with_truth(part, plants, kind))
    return pd.concat(parts, ignore_index=True).assign(first_mlp=first_mlp, noise=noise, seed=seed)


def _with_truth(cells: pd.DataFrame, plants: list[Plant], kind: str) -> pd.DataFrame:
    known = {(p.layer, p.head, f"planted{p.relation}"): p for p in plants}
    found = [known.get(key) for key in zip(cells["layer"], cells["head"], cells["relation"], strict=True)]
    return cells.assign(
        kind=["" if p is None else p.kind for p in found],
        strength=[p.strength if p is not None and p.kind == kind else 0.0 for p in found],
        truth=[p is not None and p.kind == kind for p in found],
    )


def planted_model(first_mlp: float, noise: float, seed: int) -> tuple[LlamaForCausalLM, Words, list[Plant]]:
    """A random model, the relations, and what was written where."""
    model = _random_model(first_mlp, seed)
    rng = np.random.default_rng([seed, 1])
    tokens = torch.from_numpy(rng.permutation(np.arange(FIRST_WORD, VOCAB)))
    n_sources = N_SETS * N_SOURCES
    words = Words(
        tokens[:n_sources].reshape(N_SETS, -1), tokens[n_sources : 3 * n_sources].reshape(2 * N_SETS, -1)
    )
    plants = []
    # Four groups of two heads for every set of sources. The second head of the third stays random.
    places = rng.permutation(LAYERS * GROUPS)[: 4 * N_SETS].reshape(N_SETS, 4)
    for at, groups in enumerate(places):
        one, other = 2 * at, 2 * at + 1
        jobs = (
            ((one, "promotes"), (other, "promotes")),
            ((one, "promotes"), (one, "suppresses")),
            ((other, "promotes"), None),
            ((one, "decoy"), (other, "decoy")),
        )
        for place, pair in zip(groups, jobs, strict=True):
            layer, group = divmod(int(place), GROUPS)
            for offset, job in enumerate(pair):
                if job is not None:
                    strength = 1.0 if job[1] == "decoy" else float(rng.choice(STRENGTHS))
                    plants.append(Plant(layer, 2 * group + offset, *job, strength))
    # Layer by layer, so that every head is written for the states that the heads before it leave.
    for layer in range(LAYERS):
        states = context_states(model, words.sources, layer, seed)
        for plant in (p for p in plants if p.layer == layer):
            _write(model, plant, states[plant.relation // 2], words, noise, rng)
    return model, words, plants


@torch.no_grad()
def _random_model(first_mlp: float, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=D_MODEL,
            intermediate_size=2 * D_MODEL,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=GROUPS,
            head_dim=D_HEAD,
            max_position_embeddings=64,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=None,
        )
    ).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.add_(0.3 * torch.randn(parameter.shape))
        elif "embed" in name or "lm_head" in name:
            parameter.normal_()
        else:
            parameter.normal_(0.0, 1.0 / parameter.shape[1] ** 0.5)
    # Every block adds a little to the embedding, whose rows are about √d_model long; the first MLP adds
    # as much as was asked.
    body = model.model
    states = torch.nn.functional.normalize(torch.randn(512, D_MODEL), dim=1) * D_MODEL**0.5
    for layer, block in enumerate(body.layers):
        wanted = first_mlp if layer == 0 else 0.2
        length = block.mlp(block.post_attention_layernorm(states)).norm(dim=1).mean() / D_MODEL**0.5
        block.mlp.down_proj.weight.mul_(wanted / length)
        block.self_attn.o_proj.weight.mul_(0.2)
    return model


class _EnoughError(Exception):
    """Ends a forward pass whose later layers nobody needs."""


@torch.inference_mode()
def context_states(model: LlamaForCausalLM, sources: torch.Tensor, layer: int, seed: int) -> torch.Tensor:
    """[N_SETS, N_SOURCES, d_model] mean input of the value projection at the source, in random contexts."""
    generator = torch.Generator().manual_seed(seed + 77)
    kept: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        kept.append(args[0][:, -1].clone())
        raise _EnoughError

    handle = model.model.layers[layer].self_attn.v_proj.register_forward_pre_hook(keep)
    try:
        for _ in range(CONTEXTS):
            length = int(torch.randint(2, LONGEST, (), generator=generator))
            shape = (sources.numel(), length)
            before = torch.randint(FIRST_WORD, VOCAB, shape, generator=generator)
            start = torch.full((len(before), 1), 1)
            ids = torch.cat([start, before, sources.reshape(-1, 1)], dim=1)
            with suppress(_EnoughError):
                model(input_ids=ids, use_cache=False)
    finally:
        handle.remove()
    return torch.stack(kept).mean(dim=0).reshape(*sources.shape, -1)


@torch.no_grad()
def _write(
    model: LlamaForCausalLM,
    plant: Plant,
    states: torch.Tensor,
    words: Words,
    noise: float,
    rng: np.random.Generator,
) -> None:
    """Make a head turn the states [N_SOURCES, d_model] into rows of U, plus noise."""
    U = torch.nn.functional.normalize(model.lm_head.weight.double(), dim=1)
    targets = words.targets[plant.relation]
    if plant.kind == "decoy":
        rows = U[targets].mean(dim=0, keepdim=True).expand(N_SOURCES, -1)
        rows = torch.nn.functional.normalize(rows, dim=1)
    else:
        astray = torch.from_numpy(rng.random(N_SOURCES).argsort() >= round(plant.strength * N_SOURCES))
        elsewhere = torch.from_numpy(rng.integers(FIRST_WORD, VOCAB, N_SOURCES))
        rows = U[torch.where(astray, elsewhere, targets)]
    if plant.kind == "suppresses":
        rows = -rows
    random = torch.from_numpy(rng.standard_normal(rows.shape)) / D_MODEL**0.5
    W_V = torch.zeros(D_MODEL, D_HEAD, dtype=torch.float64)
    W_V[:, :N_SOURCES] = torch.linalg.pinv(states.double())
    W_O = torch.zeros(D_HEAD, D_MODEL, dtype=torch.float64)
    W_O[:N_SOURCES] = (rows + noise * random) / model.model.norm.weight.double()
    attention = model.model.layers[plant.layer].self_attn
    group = plant.head // (HEADS // GROUPS)
    attention.v_proj.weight[group * D_HEAD : (group + 1) * D_HEAD] = W_V.T.float()
    attention.o_proj.weight[:, plant.head * D_HEAD : (plant.head + 1) * D_HEAD] = W_O.T.float()
