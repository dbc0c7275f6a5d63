"""Tiny models in files, with made-up atlases that name them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from headatlas.architectures import Model, open_model
from headatlas.atlas import Atlas
from headatlas.weights import open_checkpoint
from tests.synthetic import make_atlas

IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 4, 4, 5, 11]])
HEADS = [(2, 1), (1, 0), (1, 3)]


def opened(where: Path) -> Model:
    return open_model(open_checkpoint(where))


def atlas_of(model: Model, folder: Path) -> Atlas:
    """Made-up ranks, with a provenance that names this model."""
    atlas = make_atlas(folder / "made.zarr", model.dims.n_layers, model.dims.n_heads)
    checkpoint = model.checkpoint
    atlas.provenance["model"] = {
        "name": checkpoint.name,
        "spec": checkpoint.spec,
        "format": checkpoint.format,
        "family": model.family.name,
        "dims": asdict(model.dims),
        "weights_hash": checkpoint.source.fingerprint(),
    }
    return atlas


def run(code: str) -> dict[str, Any]:
    """The names that the code defines, run where there is no headatlas to import."""
    assert "headatlas" not in code.replace("Written by headatlas", "")
    names: dict[str, Any] = {}
    exec(compile(code, "recipe.py", "exec"), names)  # noqa: S102 - what a user does with it
    return names


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found
