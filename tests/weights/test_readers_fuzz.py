"""Damaged files, indexes, configs, packed headers, split GGUF files: one clear error, or the right tensors.

Manifests of Ollama are damaged in test_ollama.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType as Kind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from headatlas.architectures import open_model
from headatlas.errors import HeadatlasError
from headatlas.weights import Checkpoint, open_checkpoint
from headatlas.weights.gguf_source import GgufSource
from headatlas.weights.safetensors_source import INDEX_NAME, SafetensorsSource, quantized_tensors
from headatlas.weights.source import TensorInfo
from tests.weights import builders

QUIET = settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SMALL = (
    st.none()
    | st.booleans()
    | st.sampled_from([-1, 0, 1, 2, 3, 1 << 40, 1 << 70, 0.5, 1e308])
    | st.text(max_size=6)
)
JSON = st.recursive(
    SMALL,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def readable_or_refused(folder: Path) -> Checkpoint | None:
    """The checkpoint, all of it read in the shapes announced; None where one sentence refused it."""
    try:
        checkpoint = open_checkpoint(folder)
        for name, info in checkpoint.source.infos().items():
            assert tuple(checkpoint.source.read(name).shape) == info.shape
    except HeadatlasError as error:
        assert str(error).strip() and "\n" not in str(error)
        return None
    return checkpoint


@pytest.fixture(scope="module", params=["x.gguf", "x.safetensors"])
def small_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = Path(tmp_path_factory.mktemp("fuzz") / request.param)
    if file.suffix == ".safetensors":
        save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, file)
        return file
    metadata: dict[str, Any] = {"llama.block_count": 2, "tokenizer.ggml.tokens": ["a", "bc"], "x": [1.0, 2.0]}
    values = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
    return builders.write_gguf(file, {"w": (values, Kind.Q8_0), "v": (values, Kind.F16)}, metadata)


@settings(QUIET, max_examples=200)
@given(data=st.data())
def test_damage_gives_the_right_tensors_or_one_clear_error(small_file: Path, data: st.DataObject) -> None:
    damaged = bytearray(small_file.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    file = small_file.with_stem("damaged")
    file.write_bytes(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
    try:
        source = GgufSource(file) if file.suffix == ".gguf" else SafetensorsSource([file])
        for name, info in source.infos().items():
            assert tuple(source.read(name).shape) == info.shape
    except HeadatlasError as error:
        assert file.name in str(error)


@QUIET
@given(data=st.data())
def test_an_index_never_leads_outside_or_to_wrong_tensors(sharded_folder: Path, data: st.DataObject) -> None:
    file = sharded_folder / INDEX_NAME
    kept = file.with_suffix(".kept")
    if not kept.exists():
        shutil.copy(file, kept)
    index = json.loads(kept.read_text())
    names = sorted(index["weight_map"])
    shards = sorted(set(index["weight_map"].values()))
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from([*names, "new", ""]))
        index["weight_map"][name] = data.draw(
            st.sampled_from([*shards, "../model.safetensors", "/etc/passwd", "x.bin", "no.safetensors"])
            | JSON
        )
    file.write_text(json.dumps(data.draw(st.just(index) | JSON)))
    checkpoint = readable_or_refused(sharded_folder)
    if checkpoint is not None:
        for name, tensor in builders.tiny_llama().state_dict().items():
            assert torch.equal(checkpoint.source.read(name), tensor)


@QUIET
@given(data=st.data())
def test_a_config_is_believed_only_where_it_fits_the_weights(
    llama_folder: Path, tmp_path: Path, data: st.DataObject
) -> None:
    folder = tmp_path / "model"
    if not folder.exists():
        shutil.copytree(llama_folder, folder)
    config = json.loads((llama_folder / "config.json").read_text())
    keys = [*sorted(config), "quantization_config", "quantization", "text_config"]
    for key in data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=3)):
        config[key] = data.draw(JSON)
    (folder / "config.json").write_text(json.dumps(config))
    try:
        model = open_model(open_checkpoint(folder))
    except HeadatlasError as error:
        assert str(error).strip() and "\n" not in str(error)
        return
    assert (model.dims.n_layers, model.dims.d_model) == (2, 32)
    assert model.heads(1).W_O.shape[-1] == 32


@pytest.fixture(scope="module")
def split_parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("split")
    builders.qwen2_gguf(folder / "tiny.gguf", builders.tiny_qwen2(), split=10)
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.gguf"))}


PART, CHANGE = (
    st.integers(0, 2),
    st.tuples(st.integers(0, 2), st.booleans(), st.integers(0, 60), st.integers(0, 255)),
)


@QUIET
@given(changes=st.lists(CHANGE, max_size=2), exchanged=st.none() | st.tuples(PART, PART))
def test_damaged_parts_of_a_split_gguf(
    split_parts: dict[str, bytes],
    tmp_path: Path,
    changes: list[tuple[int, bool, int, int]],
    exchanged: tuple[int, int] | None,
) -> None:
    """Bytes of any header changed, those about the split above all, or two parts exchanged."""
    parts = [bytearray(content) for content in split_parts.values()]
    for which, about_split, place, value in changes:
        parts[which][(max(0, parts[which].find(b"split.")) if about_split else 0) + place] = value
    if exchanged is not None:
        one, other = exchanged
        parts[one], parts[other] = parts[other], parts[one]
    for name, content in zip(split_parts, parts, strict=True):
        (tmp_path / name).write_bytes(content)
    checkpoint = readable_or_refused(tmp_path)
    if [bytes(content) for content in parts] == list(split_parts.values()):
        assert checkpoint is not None and len(checkpoint.source.infos()) == 27


TYPES = ["F8_E4M3", "F8_E5M2", "F8_E8M0", "U8", "I8", "I32", "F32", "BF16"]
NAMES = [
    f"a{end}"
    for end in (".weight", ".weight_scale", ".weight_scale_inv", ".scale", "_blocks", "_scales", ".qweight")
]


@settings(max_examples=300)
@given(
    tensors=st.dictionaries(
        st.sampled_from(NAMES),
        st.tuples(st.sampled_from(TYPES), st.lists(st.integers(0, 70), max_size=4)),
        min_size=1,
    ),
    block=st.none() | JSON | st.lists(st.integers(-1, 200), min_size=2, max_size=2),
)
def test_packed_headers(tensors: dict[str, tuple[str, list[int]]], block: object) -> None:
    """Whatever the headers say: a refusal, or shapes that a read keeps."""
    infos = {name: TensorInfo(name, tuple(shape), dtype, 0, "x") for name, (dtype, shape) in tensors.items()}
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": block}}
    kinds: dict[str, Any] = {
        "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
        "U8": torch.uint8, "I8": torch.int8, "I32": torch.int32, "F32": torch.float32, "BF16": torch.bfloat16,
    }  # fmt: skip

    def stored(name: str, rows: object) -> torch.Tensor:
        whole = torch.ones(infos[name].shape).to(kinds[infos[name].dtype])
        return whole if rows is None else whole[rows]  # type: ignore[index]

    try:
        plain, packed = quantized_tensors(infos, config, "x")
    except HeadatlasError:
        return
    for name, each in packed.items():
        assert each.read(stored, None).shape == plain[name].shape == each.info.shape


def test_a_large_shape_allocates_nothing(tmp_path: Path) -> None:
    """Header and file size are compared before a tensor is made."""
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    changed = content.replace(b'"shape":[2,2]', b'"shape":[2,%d]' % (1 << 40))
    header = int.from_bytes(content[:8], "little") + len(changed) - len(content)
    (tmp_path / "model.safetensors").write_bytes(header.to_bytes(8, "little") + changed[8:])
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(HeadatlasError, match=r"needs 8,796,093,022,208 bytes, its header gives it 16"):
        open_checkpoint(tmp_path)
