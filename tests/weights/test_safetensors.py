"""Reading safetensors: what is read is what was saved, and nothing broken gets past the header."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from headatlas.errors import HeadatlasError
from headatlas.weights import open_checkpoint
from headatlas.weights.safetensors_source import INDEX_NAME, SafetensorsSource
from tests.weights import builders


def write_raw(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file with any header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_every_tensor_equals_the_saved_one(llama_folder: Path) -> None:
    checkpoint = open_checkpoint(str(llama_folder))
    saved = builders.tiny_llama().state_dict()
    assert checkpoint.format == "safetensors"
    assert checkpoint.name == "tiny-llama"
    assert checkpoint.architecture == "LlamaForCausalLM"
    assert checkpoint.config["num_key_value_heads"] == 2
    assert set(checkpoint.source.infos()) == set(saved)
    for name, tensor in saved.items():
        info = checkpoint.source.infos()[name]
        assert (info.shape, info.dtype, info.nbytes) == (tuple(tensor.shape), "F32", tensor.numel() * 4)
        assert torch.equal(checkpoint.source.read(name), tensor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_float_type_becomes_float32_and_float64_stays(tmp_path: Path, dtype: torch.dtype) -> None:
    stored = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    save_file({"w": stored, "scalar": torch.tensor(2.0, dtype=dtype)}, tmp_path / "x.safetensors")
    source = SafetensorsSource([tmp_path / "x.safetensors"])
    read = source.read("w")
    assert read.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(read, stored.to(read.dtype))
    assert torch.equal(source.read("w", slice(2, 4)), read[2:4])
    assert torch.equal(source.read("w", [6, 0, 0]), read[[6, 0, 0]])
    assert source.read("scalar").shape == ()


def test_what_was_read_belongs_to_the_caller(llama_folder: Path) -> None:
    source = open_checkpoint(llama_folder).source
    source.read("model.norm.weight").zero_()
    assert torch.equal(source.read("model.norm.weight"), torch.ones(32))


def test_sharded_equals_single(sharded_folder: Path, llama_folder: Path) -> None:
    sharded, single = open_checkpoint(sharded_folder), open_checkpoint(llama_folder)
    assert len(list(sharded_folder.glob("*.safetensors"))) > 1
    assert set(sharded.source.infos()) == set(single.source.infos())
    for name in single.source.infos():
        assert torch.equal(sharded.source.read(name), single.source.read(name))


@pytest.fixture
def twice(sharded_folder: Path, llama_folder: Path, tmp_path: Path) -> Path:
    """The same weights in one file and in shards with an index."""
    shutil.copytree(sharded_folder, tmp_path / "twice")
    shutil.copy(llama_folder / "model.safetensors", tmp_path / "twice")
    return tmp_path / "twice"


def test_one_file_beside_an_index(twice: Path, sharded_folder: Path) -> None:
    shards = sorted(twice.glob("*-of-*.safetensors"))
    checkpoint = open_checkpoint(twice)
    (note,) = checkpoint.notes
    assert {info.file for info in checkpoint.source.infos().values()} == {str(twice / "model.safetensors")}
    assert note == (
        f"model.safetensors is read, as transformers does, and not the {len(shards)} shards of {INDEX_NAME}."
    )
    assert open_checkpoint(sharded_folder).notes == ()
    names = open_checkpoint(twice).source.infos()
    (twice / INDEX_NAME).write_text(json.dumps({"weight_map": dict.fromkeys(names, "model.safetensors")}))
    assert open_checkpoint(twice).notes == ()


def test_one_file_beside_an_index_of_another_model(twice: Path) -> None:
    file = twice / "model.safetensors"
    tensors = load_file(file)
    save_file({name: tensors[name] for name in tensors if name != "lm_head.weight"}, file)
    with pytest.raises(
        HeadatlasError, match=r"of different models: 'lm_head\.weight' is in one of them only"
    ):
        open_checkpoint(twice)


def test_a_single_file_by_any_name(llama_folder: Path, tmp_path: Path) -> None:
    shutil.copy(llama_folder / "model.safetensors", tmp_path / "mine.safetensors")
    with pytest.raises(HeadatlasError, match=r"config\.json is missing"):
        open_checkpoint(tmp_path / "mine.safetensors")
    shutil.copy(llama_folder / "config.json", tmp_path)
    for path in (tmp_path / "mine.safetensors", tmp_path):
        assert torch.equal(open_checkpoint(path).source.read("model.norm.weight"), torch.ones(32))


def test_unknown_name_and_unreadable_types_are_named(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"ints": torch.arange(4), "f8": torch.zeros(4).to(torch.float8_e4m3fn)}, file)
    source = SafetensorsSource([file])
    assert source.infos()["f8"].dtype == "F8_E4M3"
    with pytest.raises(HeadatlasError, match="'f8' is stored as F8_E4M3"):
        source.read("f8")
    with pytest.raises(HeadatlasError, match="'ints' is stored as I64"):
        source.read("ints")
    with pytest.raises(HeadatlasError, match="no tensor 'nothing'"):
        source.read("nothing")


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_a_truncated_file_says_what_was_expected_and_found(
    llama_folder: Path, tmp_path: Path, kept: int
) -> None:
    whole = (llama_folder / "model.safetensors").read_bytes()
    file = tmp_path / "cut.safetensors"
    file.write_bytes(whole[:kept])
    with pytest.raises(HeadatlasError, match=r"cut\.safetensors is truncated.*found") as caught:
        SafetensorsSource([file])
    if kept == -1:
        assert f"{len(whole):,}" in str(caught.value)
        assert f"{len(whole) - 1:,}" in str(caught.value)


BROKEN_HEADERS: list[tuple[Any, bytes, str]] = [
    ([1, 2], b"", "is a JSON list"),
    (b"{nonsense", b"", "not JSON"),
    (b"\xff\xfe", b"", "not JSON"),
    (b"[" * 100_000, b"", "not JSON"),
    (b'{"a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}, "a": 1}', bytes(4), "entry of 'a' lacks"),
    ({"a": 3}, b"", "entry of 'a' lacks a valid"),
    ({"a": {"dtype": "F32", "shape": [1]}}, b"", "lacks a valid"),
    ({"a": entry("F32", [-1], 0, 4)}, bytes(4), "lacks a valid"),
    ({"a": entry("F32", [True], 0, 4)}, bytes(4), "lacks a valid"),
    ({"a": entry("F32", [1 << 62, 1 << 62], 0, 4)}, bytes(4), "needs"),
    ({"a": entry("F32", [1], 4, 0)}, bytes(4), "ends before it starts"),
    ({"a": entry("F32", [2], 0, 4)}, bytes(4), r"needs 8 bytes, its header gives it 4"),
    ({"a": entry("F32", [1], 4, 8)}, bytes(8), "starts at byte 4"),
    ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 0, 4)}, bytes(4), "starts at byte 0"),
    ({"a": entry("F32", [1], 0, 4)}, bytes(9), "bytes after its last tensor"),
    ({}, b"", "holds no tensors"),
]


@pytest.mark.parametrize(("header", "data", "problem"), BROKEN_HEADERS)
def test_a_header_that_contradicts_itself_is_refused(
    tmp_path: Path, header: Any, data: bytes, problem: str
) -> None:
    with pytest.raises(HeadatlasError, match=problem):
        SafetensorsSource([write_raw(tmp_path / "x.safetensors", header, data)])


def test_an_absurd_header_length_is_refused(tmp_path: Path) -> None:
    file = write_raw(tmp_path / "x.safetensors", {}, length=1 << 63)
    with pytest.raises(HeadatlasError, match="not a safetensors file"):
        SafetensorsSource([file])


def edit_index(folder: Path, **changes: Any) -> None:
    index = json.loads((folder / INDEX_NAME).read_text())
    index["weight_map"] |= changes.pop("add", {})
    (folder / INDEX_NAME).write_text(json.dumps(index | changes))


@pytest.mark.parametrize(
    "shard", ["../evil.safetensors", "/etc/x.safetensors", "a\\b.safetensors", "..", "x.bin"]
)
def test_an_index_that_leaves_its_folder_is_refused(sharded_folder: Path, shard: str) -> None:
    edit_index(sharded_folder, add={"w": shard})
    with pytest.raises(HeadatlasError, match=r"is not the name of a \.safetensors file"):
        open_checkpoint(sharded_folder)


def test_missing_shard_missing_tensor_and_duplicates(sharded_folder: Path) -> None:
    first = min(sharded_folder.glob("*.safetensors"))
    edit_index(sharded_folder, add={"ghost": first.name})
    with pytest.raises(HeadatlasError, match="holds 'ghost', which it does not"):
        open_checkpoint(sharded_folder)
    shutil.copy(first, sharded_folder / "copy.safetensors")
    edit_index(sharded_folder, add={"ghost": "copy.safetensors"})
    with pytest.raises(HeadatlasError, match=r"and again in .*may hold it once"):
        open_checkpoint(sharded_folder)
    first.unlink()
    with pytest.raises(HeadatlasError, match=f"names the shard {first.name}, which is not there"):
        open_checkpoint(sharded_folder)


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{}", "no weight_map"), ('{"weight_map": {"a": 3}}', "not a file name"), ("{\n,", "line 2")],
)
def test_a_malformed_index_is_refused(sharded_folder: Path, text: str, problem: str) -> None:
    (sharded_folder / INDEX_NAME).write_text(text)
    with pytest.raises(HeadatlasError, match=problem):
        open_checkpoint(sharded_folder)


def test_a_shard_alone_is_refused(sharded_folder: Path) -> None:
    with pytest.raises(HeadatlasError, match="is one shard of a model"):
        open_checkpoint(min(sharded_folder.glob("*.safetensors")))


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ('{\n "a": 1,\n}', r"config\.json, line 3"),
        ("[]", "JSON list"),
        ("{}", "names no architecture"),
        ('{"model_type": "unheard"}', "names no architecture"),
    ],
)
def test_a_malformed_config_is_refused(llama_folder: Path, tmp_path: Path, config: str, problem: str) -> None:
    shutil.copy(llama_folder / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(HeadatlasError, match=problem):
        open_checkpoint(tmp_path)


def test_a_config_without_architectures_is_understood_by_its_model_type(
    llama_folder: Path, tmp_path: Path
) -> None:
    shutil.copy(llama_folder / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert open_checkpoint(tmp_path).architecture == "LlamaForCausalLM"
