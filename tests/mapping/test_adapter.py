"""A map with an adapter is the map of the merged model, whichever way the weights are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from headatlas.atlas import Atlas
from headatlas.errors import HeadatlasError
from headatlas.evidence.opening import open_subject
from headatlas.mapping import plan
from headatlas.mapping.run import map_heads
from headatlas.options import Compute
from tests.mapping.checkpoints import random_relations, save, tiny_model
from tests.weights.test_adapter import factors, write

MODULES = ("self_attn.v_proj", "self_attn.o_proj", "self_attn.q_proj", "mlp.down_proj")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A base, an adapter of it, and the two merged by hand."""
    home = tmp_path_factory.mktemp("adapter")
    base = save(tiny_model("llama"), home / "base")
    ranks = {f"model.layers.{layer}.{module}": 2 for layer in range(3) for module in MODULES}
    pairs = factors(base, ranks)
    adapter = write(home / "mine", pairs, r=2, lora_alpha=0.5)
    merged = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for module, (A, B) in pairs.items():
            merged.get_parameter(f"{module}.weight").add_((B @ A) * 0.25)
    return base, adapter, save(merged, home / "merged")


@pytest.mark.parametrize(
    ("lens", "stream"),
    [("maps", None), ("neutral", False), ("neutral", True)],
    ids=["maps", "whole", "streamed"],
)
def test_ranks_are_those_of_the_merged_model(
    folders: tuple[Path, Path, Path], lens: str, stream: bool | None
) -> None:
    base, adapter, merged = folders
    relations = random_relations()

    def mapped(model: Path, adapter: Path | None = None) -> Atlas:
        return map_heads(
            model, relations=relations, lens=lens, compute=Compute(stream=stream), adapter=adapter
        )

    wanted, found, plain = mapped(merged), mapped(base, adapter), mapped(base)
    for name in ("promotion_rank", "suppression_rank", "control_rank"):
        np.testing.assert_array_equal(found.dataset[name].values, wanted.dataset[name].values)
    assert not np.array_equal(plain.dataset["promotion_rank"], wanted.dataset["promotion_rank"])
    about = found.provenance["model"]
    assert about["self_check"].startswith("layer 0: values of all")
    assert about["name"] == "base + mine"
    assert about["adapter"]["folder"] == str(adapter)
    assert about["adapter"]["base"] == "org/base"
    assert about["adapter"]["hash"].startswith("sha256:")
    assert about["adapter"]["n_tensors"] == 12
    assert "adapter" not in plain.provenance["model"]


def test_an_atlas_with_an_adapter_is_not_one_of_the_base(
    folders: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, adapter, _ = folders
    map_heads(base, relations=random_relations(), lens="maps", adapter=str(adapter), out=tmp_path)
    with pytest.raises(HeadatlasError, match=r"differs in weights \(base \+ mine, not base\)"):
        map_heads(base, relations=random_relations(), lens="maps", out=tmp_path)
    subject = open_subject(Atlas.open(tmp_path))
    assert subject.prepared.model.checkpoint.adapter is not None
    assert subject.prepared.model.checkpoint.adapter.folder == str(adapter)


def test_the_plan_counts_the_merged_copies(folders: tuple[Path, Path, Path]) -> None:
    base, adapter, _ = folders
    plain = plan.plan(base, relations=random_relations(), compute=Compute(stream=True))
    found = plan.plan(base, relations=random_relations(), compute=Compute(stream=True), adapter=adapter)
    assert found.bytes_to_read == plain.bytes_to_read
    assert found.memory_bytes > plain.memory_bytes
    assert any("The adapter mine (LoRA) is merged into base" in note for note in found.notes)
