"""Reading GGUF: equal to the reference reader, bounded on anything broken."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from headatlas.errors import HeadatlasError
from headatlas.weights import open_checkpoint
from headatlas.weights.gguf_source import GgufSource, read_gguf_header
from tests.weights import builders

KINDS = [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.TQ2_0]


def values(rows: int = 6, columns: int = 256) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_reference_reader_whole_and_by_rows(tmp_path: Path, kind: Kind) -> None:
    file = builders.write_gguf(tmp_path / "x.gguf", {"w": (values(), kind), "norm": (values(1)[0], Kind.F32)})
    source = GgufSource(file)
    reference = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}["w"]
    expected = torch.from_numpy(np.array(gguf.quants.dequantize(reference.data, kind))).reshape(6, 256)
    info = source.infos()["w"]
    assert (info.shape, info.dtype, info.nbytes) == ((6, 256), kind.name, reference.n_bytes)
    assert torch.equal(source.read("w"), expected)
    assert torch.equal(source.read("w", slice(1, 5, 2)), expected[1:5:2])
    assert torch.equal(source.read("w", [5, 0, 5]), expected[[5, 0, 5]])
    assert torch.equal(source.read("norm", slice(3, 9)), torch.from_numpy(values(1)[0])[3:9])


EVERY_KIND = [Kind.F16, *gguf.quants._type_traits]


def blocks_of(kind: Kind, rows: int = 3) -> np.ndarray:
    """Rows of 512 values in random blocks, without those bytes that would make scales infinite."""
    size, nbytes = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(int(kind)).integers(0, 256, (rows, 512 // size * nbytes), dtype=np.uint8)
    random[..., 1::2] &= 0xBF  # no half-precision number with these high bytes is infinite or no number
    return random


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: kind.name)
def test_every_type_that_gguf_dequantises(tmp_path: Path, kind: Kind) -> None:
    """Random blocks of every type, whole and by rows, against gguf's own dequantisation of all of them."""
    stored = blocks_of(kind)
    source = GgufSource(builders.stored_gguf(tmp_path / "x.gguf", w=(stored, kind)))
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(gguf.quants.dequantize(stored, kind).astype(np.float32))
    assert expected.shape == (3, 512)
    assert expected.isfinite().float().mean() > 0.9 and expected.unique().numel() > 9
    assert (source.infos()["w"].shape, source.infos()["w"].dtype) == ((3, 512), kind.name)
    for rows in (None, slice(1, 3), [2, 0, 2]):
        wanted = expected if rows is None else expected[rows]
        assert torch.equal(source.read("w", rows).nan_to_num(7e37), wanted.nan_to_num(7e37))


def test_three_axes_and_float64(tmp_path: Path) -> None:
    cube = np.arange(2 * 3 * 32, dtype=np.float32).reshape(2, 3, 32)
    file = builders.stored_gguf(
        tmp_path / "x.gguf",
        exps=(gguf.quants.quantize(cube, Kind.Q8_0), Kind.Q8_0),
        double=(cube[0].astype(np.float64), None),
        ints=(np.arange(4, dtype=np.int32), None),
    )
    source = GgufSource(file)
    assert source.read("exps").shape == (2, 3, 32)
    assert source.read("exps", [1]).shape == (1, 3, 32)
    assert torch.equal(source.read("double"), torch.from_numpy(cube[0].astype(np.float64)))
    with pytest.raises(HeadatlasError, match="'ints' holds integers"):
        source.read("ints")
    with pytest.raises(HeadatlasError, match="no tensor 'nothing'"):
        source.read("nothing")


def test_a_type_that_cannot_be_dequantised_is_named(tmp_path: Path) -> None:
    stored = np.zeros((2, 40), dtype=np.uint8)
    source = GgufSource(builders.stored_gguf(tmp_path / "x.gguf", w=(stored, Kind.Q8_1)))
    with pytest.raises(HeadatlasError, match="stored as Q8_1"):
        source.read("w")


def test_checkpoint_of_a_gguf(tmp_path: Path) -> None:
    file = builders.qwen2_gguf(tmp_path / "tiny.gguf", builders.tiny_qwen2(), Kind.Q8_0)
    for spec in (str(file), file, tmp_path):
        checkpoint = open_checkpoint(spec)
        assert (checkpoint.format, checkpoint.architecture, checkpoint.path) == ("gguf", "qwen2", file)
    assert checkpoint.name == "Tiny Qwen2"
    assert checkpoint.config["qwen2.attention.head_count_kv"] == 2
    assert "tokenizer.ggml.tokens" not in checkpoint.config
    assert any("apache-2.0" in note for note in checkpoint.notes)


def test_metadata_equals_the_reference_reader(tmp_path: Path) -> None:
    metadata = {"a": 3, "b": 0.5, "c": True, "d": "text", "e": [1, 2, 3], "f": ["x", "yz"]}
    file = builders.write_gguf(tmp_path / "x.gguf", {"w": (values(), Kind.F32)}, metadata)
    header = read_gguf_header(file)
    reference = gguf.GGUFReader(file)
    for key in ("a", "b", "c", "d", "e", "general.architecture"):
        field = reference.get_field(key)
        assert field is not None
        assert header.metadata[key] == field.contents()
    assert header.arrays == {"e": 3, "f": 2}
    assert header.data_start == reference.data_offset


def test_split_files_are_read_as_one(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    builders.write_gguf(parts[0], {"a": (values(2), Kind.F32)})
    with pytest.raises(HeadatlasError, match=r"m-00002-of-00002\.gguf is not beside it"):
        open_checkpoint(parts[0])
    builders.write_gguf(parts[1], {"b": (values(3), Kind.Q8_0)})
    for spec in (*parts, tmp_path):
        assert set(open_checkpoint(spec).source.infos()) == {"a", "b"}
    builders.write_gguf(parts[1], {"a": (values(3), Kind.F32)})
    with pytest.raises(HeadatlasError, match="and again in"):
        open_checkpoint(parts[0])
    odd = builders.write_gguf(tmp_path / "m-00003-of-00000.gguf", {"a": (values(2), Kind.F32)})
    with pytest.raises(HeadatlasError, match="proper name"):
        open_checkpoint(odd)


def split_file(path: Path, tensors: dict[str, int], **about: int) -> Path:
    metadata = {f"split.{key.replace('_', '.')}": value for key, value in about.items()}
    return builders.write_gguf(
        path, {name: (values(rows), Kind.F32) for name, rows in tensors.items()}, metadata
    )


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    first, second = (tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2))
    split_file(first, {"a": 2}, no=0, count=2, tensors_count=2)
    split_file(second, {"b": 2}, no=1, count=2, tensors_count=2)
    assert set(open_checkpoint(second).source.infos()) == {"a", "b"}
    split_file(second, {"b": 2, "c": 2}, no=1, count=2, tensors_count=2)
    with pytest.raises(HeadatlasError, match="has 2 tensors by its header, its 2 files hold 3"):
        open_checkpoint(first)
    split_file(second, {"b": 2}, no=0, count=2)
    with pytest.raises(
        HeadatlasError, match=r"m-00002.*it is part 0 of 2, counted from 0, by its name 1 of 2"
    ):
        open_checkpoint(first)
    split_file(second, {"b": 2}, no=1, count=3)
    with pytest.raises(HeadatlasError, match="part 1 of 3"):
        open_checkpoint(first)
    renamed = split_file(tmp_path / "renamed.gguf", {"a": 2}, no=0, count=2)
    with pytest.raises(HeadatlasError, match=r"by its name 0 of 1; give the parts their names back"):
        open_checkpoint(renamed)


def test_several_models_in_a_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        builders.write_gguf(tmp_path / f"{name}.gguf", {"a": (values(2), Kind.F32)})
    with pytest.raises(HeadatlasError, match="2 GGUF models"):
        open_checkpoint(tmp_path)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(n_tensors: int = 0, n_keys: int = 0, body: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + body


def tensor(name: str = "w", dims: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


BROKEN: list[tuple[bytes, str]] = [
    (b"", "not a GGUF file"),
    (b"GGUF\x03\x00", "is truncated"),
    (b"PK\x03\x04" + bytes(40), "not a GGUF file"),
    (header(version=1), "version 1 is not supported"),
    (header(version=99), "version 99 is not supported"),
    (header(version=3 << 24), "big-endian"),
    (header(n_tensors=1 << 60), "which no model has"),
    (header(n_keys=1 << 60), "which no model has"),
    (header(n_keys=1, body=struct.pack("<Q", 1 << 60) + bytes(8)), "bytes long"),
    (header(n_keys=1, body=struct.pack("<Q", 1000) + bytes(8)), "truncated or broken"),
    (header(n_keys=1, body=struct.pack("<Q", 2) + b"\xff\xff" + bytes(8)), "not UTF-8"),
    (header(n_keys=1, body=key("k", 77, bytes(8))), "unknown type 77"),
    (header(n_keys=1, body=key("k", 9, struct.pack("<IQ", 4, 1 << 50))), "truncated or broken"),
    (header(n_keys=1, body=key("k", 9, struct.pack("<IQ", 8, 1 << 50))), "which no tokenizer has"),
    (header(n_keys=1, body=key("k", 9, struct.pack("<IQ", 9, 2)) + bytes(40)), "unsupported type 9"),
    (header(n_keys=2, body=key("k", 4, bytes(4)) * 2), "'k' is there twice"),
    (header(n_keys=1, body=key("general.alignment", 4, struct.pack("<I", 3))), "power of two"),
    (header(n_keys=1, body=key("general.alignment", 4, struct.pack("<I", 0))), "power of two"),
    (header(n_keys=1, body=key("general.alignment", 10, struct.pack("<Q", 32))), "32-bit count"),
    (header(n_tensors=1, body=tensor(dims=(1,) * 9)), "has 9 dimensions"),
    (header(n_tensors=1, body=tensor(dims=())), "has 0 dimensions"),
    (header(n_tensors=1, body=tensor(dims=(0, 4)) + bytes(64)), "impossible shape"),
    (header(n_tensors=1, body=tensor(dims=(1 << 40, 1 << 40)) + bytes(64)), "impossible shape"),
    (header(n_tensors=1, body=tensor(dims=(33,), kind=8) + bytes(64)), "impossible shape"),
    (header(n_tensors=1, body=tensor(kind=999) + bytes(256)), "ggml type 999"),
    (header(n_tensors=1, body=tensor(offset=7) + bytes(256)), "not a multiple"),
    (header(n_tensors=1, body=tensor(offset=1 << 40) + bytes(256)), "is truncated: its header describes"),
    (header(n_tensors=1, body=tensor(dims=(1 << 40,)) + bytes(256)), "is truncated: its header describes"),
    (header(n_tensors=2, body=tensor() * 2 + bytes(256)), "'w' is there twice"),
    (header(n_tensors=2, body=tensor("a") + tensor("b") + bytes(256)), "'a' and 'b' overlap"),
    (header(), "holds no tensors"),
    (header(n_tensors=1, body=tensor() + bytes(256)), "names no general.architecture"),
]


@pytest.mark.parametrize(("content", "problem"), BROKEN)
def test_a_broken_header_is_refused_in_little_memory(tmp_path: Path, content: bytes, problem: str) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(HeadatlasError, match=problem) as caught:
        open_checkpoint(file)
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()
    assert "broken.gguf" in str(caught.value)


def test_a_truncated_file_says_what_was_expected_and_found(tmp_path: Path) -> None:
    file = builders.write_gguf(tmp_path / "x.gguf", {"w": (values(), Kind.F32)})
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(HeadatlasError, match=f"describes {len(whole):,} bytes, found {len(whole) - 100:,}"):
        GgufSource(file)


def test_a_file_cut_after_opening_is_noticed(tmp_path: Path) -> None:
    file = builders.write_gguf(tmp_path / "x.gguf", {"w": (values(), Kind.F32)})
    source = GgufSource(file)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(HeadatlasError, match="become shorter"):
        source.read("w")
