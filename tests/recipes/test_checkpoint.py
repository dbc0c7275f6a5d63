"""The file of changed output projections: loaded over the model, it is the model without these heads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import headatlas as ha
from tests.architectures.gguf_files import write_gguf
from tests.mapping.checkpoints import tiny_model
from tests.recipes.made import HEADS, atlas_of, logits, opened, run
from tests.weights.test_quantized import quantised_llama

CASES = ["llama", "gpt2", "gemma3", "gemma3-multimodal", "gpt_neox"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("factor", [None, 0.5])
def test_loaded_over_the_model_it_gives_the_same_logits(
    name: str, factor: float | None, tmp_path: Path
) -> None:
    tiny_model(name).save_pretrained(tmp_path / "model")
    atlas, modules = atlas_of(opened(tmp_path / "model"), tmp_path), tiny_model(name)
    do, function = ("silence", "silenced") if factor is None else ("scale", "scaled")
    with run(atlas.recipe(heads=HEADS, do=do, factor=factor).code)[function](modules):
        expected = logits(modules)
    file = tmp_path / "changed.safetensors"
    made = atlas.recipe(heads=HEADS, form="checkpoint", do=do, factor=factor, out=file)
    with safe_open(file, framework="pt") as stored:
        metadata = stored.metadata()
    assert metadata["usage"] == made.code and json.loads(metadata["heads"]) == ["2.1", "1.0", "1.3"]
    assert metadata["weights_hash"] == atlas.provenance["model"]["weights_hash"]
    changed = run(made.code)["load_over"](modules, file)
    assert changed is modules
    torch.testing.assert_close(logits(modules), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("bare", [False, True])
def test_names_layouts_and_types_are_the_checkpoints(name: str, bare: bool, tmp_path: Path) -> None:
    """Bfloat16; also where a file leaves out what its modules' paths begin with."""
    model = tiny_model(name).to(torch.bfloat16)
    (model.base_model if bare else model).save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["architectures"] = [type(model).__name__]
    config["tie_word_embeddings"] = bare or config.get("tie_word_embeddings", False)
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    atlas = atlas_of(opened(tmp_path / "model"), tmp_path)
    atlas.recipe(heads=HEADS, form="checkpoint", out=tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    there = load_file(tmp_path / "model" / "model.safetensors")
    stem = {"llama": "layers.{}.self_attn.o_proj.weight", "gpt2": "h.{}.attn.c_proj.weight"}[name]
    prefix = "" if bare else {"llama": "model.", "gpt2": "transformer."}[name]
    assert set(found) == {prefix + stem.format(layer) for layer in (1, 2)}
    for layer, heads in ((1, (0, 3)), (2, (1,))):
        tensor, original = (each[prefix + stem.format(layer)] for each in (found, there))
        assert tensor.dtype == torch.bfloat16 and tensor.shape == original.shape
        expected = original.clone()
        for head in heads:
            (expected if name == "gpt2" else expected.T)[8 * head : 8 * (head + 1)] = 0
        assert torch.equal(tensor, expected) and not torch.equal(tensor, original)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_of_gguf_it_has_the_names_of_the_modules(name: str, tmp_path: Path) -> None:
    modules = tiny_model(name)
    write_gguf(modules, tmp_path / "tiny.gguf")
    atlas = atlas_of(opened(tmp_path / "tiny.gguf"), tmp_path)
    with run(atlas.recipe(heads=HEADS).code)["silenced"](modules):
        expected = logits(modules)
    file = tmp_path / "x.safetensors"
    made = atlas.recipe(heads=HEADS, form="checkpoint", out=file)
    found = load_file(file)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32} and "GGUF" in made.code
    assert set(found) <= {parameter for parameter, _ in modules.named_parameters()}
    run(made.code)["load_over"](modules, file)
    torch.testing.assert_close(logits(modules), expected, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    atlas = atlas_of(opened(tmp_path / "model"), tmp_path)
    own, out = tmp_path / "model" / "model.safetensors", tmp_path / "x.safetensors"
    about = dict(atlas.provenance["model"])
    before = own.read_bytes()
    with pytest.raises(ha.HeadatlasError, match="a file of the model itself"):
        atlas.recipe(heads=HEADS, form="checkpoint", out=own)
    assert own.read_bytes() == before
    for change, said in (
        ({"weights_hash": "sha256:0"}, "are not the atlas's"),
        ({"format": "module"}, "from a model in memory"),
        ({"adapter": {"name": "x"}}, "with an adapter merged"),
        ({"spec": str(tmp_path / "gone")}, "gone"),
    ):
        atlas.provenance["model"] = about | change
        with pytest.raises(ha.HeadatlasError, match=said):
            atlas.recipe(heads=HEADS, form="checkpoint", out=out)
        assert not out.exists()
    atlas.provenance["model"] = about | {"spec": "gone"}
    atlas.recipe(heads=HEADS, form="checkpoint", out=out, model=tmp_path / "model")
    assert out.exists()


def test_quantised_weights_are_refused_and_plain_ones_beside_them_are_not(tmp_path: Path) -> None:
    folder = quantised_llama(tmp_path / "tiny")
    atlas, out = atlas_of(opened(folder), tmp_path), tmp_path / "x.safetensors"
    with pytest.raises(ha.HeadatlasError, match=r"o_proj\.weight' is stored quantised; use another form"):
        atlas.recipe(heads=[(1, 0)], form="checkpoint", out=out)
    assert not out.exists() and atlas.recipe(heads=[(1, 0)]).code
    tensors = load_file(folder / "model.safetensors")
    scale = tensors.pop("model.layers.1.self_attn.o_proj.weight_scale_inv")
    plain = tensors["model.layers.1.self_attn.o_proj.weight"].float() * scale.mean()
    tensors["model.layers.1.self_attn.o_proj.weight"] = plain
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    atlas_of(opened(folder), tmp_path / "again").recipe(heads=[(1, 0)], form="checkpoint", out=out)
    (changed,) = load_file(out).values()
    size = atlas.provenance["model"]["dims"]["d_head"]
    assert not changed[:, :size].any() and torch.equal(changed[:, size:], plain[:, size:])
