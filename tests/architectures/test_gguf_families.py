"""Every family from GGUF files, against the Hugging Face modules the file was made from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from headatlas.architectures import Model, open_model
from headatlas.weights import open_checkpoint

from .gguf_files import quantise, write_gguf
from .oracle import PARTS, hold
from .tiny import marked, tiny_model

# Biased Llama, other activations and q/k norms of Phi have no place in a GGUF header. Where transformers
# reads a family's files, the writer in these tests is checked against it.
READ_BY_TRANSFORMERS = [
    "bloom", "falcon-multi_query", "gemma2", "gemma3", "gemma3-untied", "gpt2", "gpt2-untied", "llama",
    "minimax_m2", "mistral", "nemotron-gguf", "phi3", "qwen2", "qwen2-tied", "qwen2_moe-gguf", "qwen3-gguf",
    "qwen3_moe-gguf", "stablelm", "starcoder2",
]  # fmt: skip
OTHERS = [
    "arcee", "cohere", "cohere2", "deepseek_v2", "deepseek_v3-gguf", "deepseek_v3-gguf-split", "ernie4_5",
    "exaone4", "falcon", "gemma", "gpt_bigcode", "gpt_neox", "gpt_neox-sequential-tied-unbiased", "gptj",
    "gpt_oss", "granite", "hunyuan_v1_dense", "ministral3", "mixtral", "mpt", "olmo", "olmo2", "olmoe",
    "phi", "phi-fused", "phi-grouped", "qwen2_vl", "seed_oss", "smollm3",
]  # fmt: skip


def check_writer(model: PreTrainedModel, path: Path) -> None:
    """What transformers makes of the file must be the model: then the writer in these tests is right."""
    loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    stored = model.state_dict()
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor.double(), stored[name].double(), rtol=0, atol=1e-6, msg=name)


@pytest.fixture(scope="module", params=marked([*READ_BY_TRANSFORMERS, *OTHERS]))
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Model, PreTrainedModel]:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    form = next((form for form in ("fused", "split") if request.param.endswith(f"-{form}")), "")
    model = tiny_model(request.param.removesuffix(f"-{form}"))
    write_gguf(model, path, form)
    if request.param in READ_BY_TRANSFORMERS:
        check_writer(model, path)
    return open_model(open_checkpoint(path)), model


QUANTISATIONS = ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("quantisation", QUANTISATIONS)
@pytest.mark.parametrize("case", ["llama", "gpt2", "gpt_neox", "qwen3", "qwen2_moe", "phi3"])
def test_quantised(case: str, quantisation: str, tmp_path: Path) -> None:
    """The file holds what quantising left of the weights, and so does the model it is held against."""
    model = tiny_model(case)
    quantise(model, quantisation)
    write_gguf(model, tmp_path / "tiny.gguf", quantisation=quantisation)
    opened = open_model(open_checkpoint(tmp_path / "tiny.gguf"))
    hold(opened, model)


@pytest.mark.parametrize("part", PARTS)
def test_gguf(pair: tuple[Model, PreTrainedModel], part: str) -> None:
    hold(*pair, part)
