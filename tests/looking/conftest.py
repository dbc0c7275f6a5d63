"""One planted model, mapped and watched once for all tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import headatlas as ha
from headatlas.atlas import Atlas
from headatlas.mapping.run import map_heads
from tests.looking.planted import planted_model, some_relation, text_file
from tests.mapping.checkpoints import save


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text in the words of the tests' tokenizer."""
    return text_file(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of the planted model, whose heads nobody has watched."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("looking")
    map_heads(
        save(planted_model(), folder / "model"), relations=[some_relation()], lens="maps", out=folder / "out"
    )
    return folder / "out"


@pytest.fixture(scope="session")
def watched(mapped: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, watched on the text."""
    out = tmp_path_factory.mktemp("watched") / "out"
    shutil.copytree(mapped, out)
    ha.behaviour(Atlas.open(out), text=text)
    return out


@pytest.fixture
def fresh(mapped: Path, tmp_path: Path) -> Path:
    """An output folder of its own, not watched."""
    return Path(shutil.copytree(mapped, tmp_path / "out"))
