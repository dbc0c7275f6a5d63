"""Random models, mapped and read once for all tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import headatlas as ha
from headatlas.atlas import Atlas
from headatlas.mapping.run import map_heads
from tests.mapping.checkpoints import random_relations, save
from tests.mapping.planting import random_model


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def mapped(folder: Path, family: str, lens: str) -> Path:
    """The output folder of a random model that has been mapped."""
    torch.set_num_threads(1)
    model = save(random_model(family), folder / "model")
    map_heads(model, relations=random_relations(several_tokens=False), lens=lens, out=folder / "out")
    return folder / "out"


@pytest.fixture(scope="session")
def fresh_maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 (values with a bias) that nobody has asked what it writes."""
    return mapped(tmp_path_factory.mktemp("maps"), "gpt2", "maps")


@pytest.fixture(scope="session")
def written_maps(fresh_maps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with its salience."""
    out = tmp_path_factory.mktemp("written") / "out"
    shutil.copytree(fresh_maps, out)
    ha.salience(Atlas.open(out))
    return out


@pytest.fixture(scope="session")
def written_neutral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 3 (groups, norms after attention) with its salience, seen after the neutral prefixes."""
    out = mapped(tmp_path_factory.mktemp("neutral"), "gemma3", "neutral")
    ha.salience(Atlas.open(out), tokens="all")
    return out


@pytest.fixture
def fresh(fresh_maps: Path, tmp_path: Path) -> Path:
    """An output folder of its own, without salience."""
    return Path(shutil.copytree(fresh_maps, tmp_path / "out"))


@pytest.fixture
def written(written_maps: Path, tmp_path: Path) -> Path:
    """An output folder of its own, with salience."""
    return Path(shutil.copytree(written_maps, tmp_path / "written"))
