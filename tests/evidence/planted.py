"""A model with two heads whose jobs were written into its weights, and its atlas."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import PreTrainedModel

from headatlas.atlas import Atlas
from headatlas.mapping.run import map_heads
from tests.mapping.checkpoints import FIRST_WORD, relation, save, word
from tests.mapping.planting import D_HEAD, VOCAB, opened, plant, random_model, states_of

LAYER = 2
HEADS = {"first": 0, "second": 2}
"""Relation → head; they read values of different groups."""
N = 35
STRENGTH = 300.0
"""How long a planted head's output is: the answer is what it says."""
SHARPNESS = 20.0
TASKS = {"first": "The {}", "second": "The {}"}


def planted_model(tmp_path: Path) -> tuple[PreTrainedModel, dict[str, list[tuple[int, int]]]]:
    """The model and each relation's pairs of tokens. A text that ends with the source asks for the answer."""
    model = random_model("llama")
    _look_at_yourself(model)
    generator = torch.Generator().manual_seed(0)
    tokens = (torch.randperm(VOCAB - FIRST_WORD, generator=generator) + FIRST_WORD).tolist()
    sources = {"first": tokens[:N], "second": tokens[N : 2 * N]}
    targets = tokens[2 * N : 4 * N]
    found = {}
    for name, head in HEADS.items():
        mine = targets[:N] if name == "first" else targets[N:]
        rows = opened(model).unembed()[mine]
        rows = STRENGTH * rows / rows.norm(dim=1, keepdim=True)
        x = states_of(model, "neutral", sources[name], tmp_path / name).layer(LAYER).x
        plant(model, "llama", LAYER, head, x, rows, "neutral")
        found[name] = list(zip(sources[name], mine, strict=True))
    return model, found


@torch.no_grad()
def _look_at_yourself(model: PreTrainedModel) -> None:
    """In the planted layer, queries are long copies of the keys: each position attends to itself."""
    attention = model.get_submodule(f"model.layers.{LAYER}.self_attn")
    keys = attention.k_proj.weight.view(2, D_HEAD, -1)
    attention.q_proj.weight.copy_(SHARPNESS * keys.repeat_interleave(2, dim=0).flatten(0, 1))


def planted_atlas(tmp_path: Path) -> tuple[Atlas, Path]:
    """The atlas in ``tmp_path / "out"``, and the folder of its model."""
    model, pairs = planted_model(tmp_path)
    relations = [
        relation(name, [(word(s), [word(t)]) for s, t in of], category="Knowledge")
        for name, of in pairs.items()
    ]
    folder = save(model, tmp_path / "model", VOCAB)
    return map_heads(folder, relations=relations, out=tmp_path / "out"), folder


def template_file(tmp_path: Path, **changes: object) -> Path:
    """Templates of words that the tests' tokenizer knows."""
    path = tmp_path / "templates.json"
    body = {"context": ["a {}", "of a {}", "{} of"], "tasks": TASKS, **changes}
    path.write_text(json.dumps(body))
    return path
