"""What the user types, and the sentence that answers what cannot be opened."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from headatlas.errors import HeadatlasError
from headatlas.weights import open_checkpoint
from tests.weights import builders


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("", "No model was named"),
        ("gpt2", r"no short name \(smollm2-135m\).* written org/name"),
        ("./not-there", "looks like a file or folder, and there is none"),
        ("~/not-there-at-all", "looks like a file or folder"),
        ("models/not/there", "looks like a file or folder"),
        ("not-there.gguf", "looks like a file or folder"),
        ("a\\b", "looks like a file or folder"),
        ("hub:llama3", r"hub: is no source of models that headatlas knows \(there are pypi: and ollama:\)"),
        ("pypi:", "is not understood"),
        ("org/name@@x", "written org/name"),
        ("x" * 5000, "no usable name"),
        ("~nobody-of-this-name/x", "no usable name"),
    ],
)
def test_specs_that_cannot_be_opened(spec: str, problem: str) -> None:
    with pytest.raises(HeadatlasError, match=problem):
        open_checkpoint(spec)


def test_a_path_is_never_looked_up_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(HeadatlasError, match="there is none"):
        open_checkpoint(Path("org/name"))
    (tmp_path / "x.txt").write_bytes(b"")
    with pytest.raises(HeadatlasError, match=r"give a \.safetensors or \.gguf file"):
        open_checkpoint(tmp_path / "x.txt")


@pytest.mark.parametrize("kind", ["bin", "pt", "pth", "ckpt"])
def test_no_pickle_is_ever_loaded(tmp_path: Path, kind: str) -> None:
    """Opening this one would leave a file behind."""
    trace = tmp_path / "trace"
    bomb = b"cpathlib\nPath\n(V" + str(trace).encode() + b"\ntR."
    harmful = b"cbuiltins\nexec\n(Vopen(" + repr(str(trace)).encode() + b", 'w')\ntR."
    for content in (bomb, harmful):
        (tmp_path / f"model.{kind}").write_bytes(content)
        for spec in (tmp_path, tmp_path / f"model.{kind}"):
            with pytest.raises(
                HeadatlasError, match=rf"model\.{kind}.*never opens.*save_pretrained\(FOLDER\)"
            ):
                open_checkpoint(spec)
    assert not trace.exists()


def test_a_gguf_by_any_name(tmp_path: Path) -> None:
    file = builders.qwen2_gguf(tmp_path / "blob", builders.tiny_qwen2())
    assert open_checkpoint(file).format == "gguf"
    builders.qwen2_gguf(tmp_path / "tiny.gguf", builders.tiny_qwen2())
    (tmp_path / "mmproj-tiny.gguf").write_bytes(b"a vision encoder")
    assert open_checkpoint(tmp_path).path == tmp_path / "tiny.gguf"


def test_an_existing_folder_comes_before_the_hub(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(llama_folder.parent.parent)
    spec = f"{llama_folder.parent.name}/{llama_folder.name}"
    assert open_checkpoint(spec).format == "safetensors"


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ([], r"holds no model\.safetensors"),
        (
            ["pytorch_model.bin"],
            r"as a pickle \(pytorch_model\.bin\), which headatlas never opens, .* convert",
        ),
        (["adapter_config.json", "adapter_model.safetensors"], "does not name its base"),
        (["a.safetensors", "b.safetensors"], r"2 \.safetensors files and no"),
    ],
)
def test_folders_without_one_clear_model(tmp_path: Path, files: list[str], problem: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"{}" if name.endswith(".json") else b"")
    with pytest.raises(HeadatlasError, match=problem):
        open_checkpoint(tmp_path)


def test_importing_the_folder_loads_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "gguf", "numpy", "huggingface_hub")
    script = f"import sys, headatlas.weights; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
