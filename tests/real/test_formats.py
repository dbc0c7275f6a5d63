"""The demo's model as GGUF and as safetensors: the same atlas, with both lenses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.compare_formats import LENSES, different, write_safetensors
from headatlas.mapping.run import map_heads
from headatlas.relations import core

MODEL = "smollm2-135m"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_safetensors(MODEL, tmp_path_factory.mktemp("formats") / "model")


@pytest.mark.parametrize("lens", LENSES)
def test_gguf_and_safetensors_give_the_same_atlas(lens: str, folder: Path) -> None:
    relations = [each for each in core() if each.name in ("copying", "country_to_capital")]
    gguf, safetensors = (
        map_heads(model, lens=lens, layers="23", relations=relations) for model in (MODEL, str(folder))
    )
    assert different(gguf, safetensors) == []
    assert (gguf.dataset["promotion_rank"].values[23] >= 0).sum() > 100
    models = [atlas.provenance["model"] for atlas in (gguf, safetensors)]
    assert [model["format"] for model in models] == ["gguf", "safetensors"]
    assert all(model["self_check"].startswith("layer 0: values of all 9 heads") for model in models)
    assert gguf.provenance["tokenizer_hash"] == safetensors.provenance["tokenizer_hash"]
