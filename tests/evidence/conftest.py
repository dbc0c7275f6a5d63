"""One planted model, mapped and examined once for all tests."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from headatlas.atlas import Atlas
from headatlas.evidence.ablation_run import Choices, run_ablation
from headatlas.evidence.inference_run import run_inference
from tests.evidence.planted import planted_atlas, template_file


@dataclass(frozen=True)
class Planted:
    """Where the atlas is, and what it is of.

    Attributes:
        folder: An output folder.
        templates: A file of templates in the tokenizer's words.
    """

    folder: Path
    templates: Path
    model: Path

    @property
    def atlas(self) -> Atlas:
        return Atlas.open(self.folder)

    def copied(self, where: Path) -> Planted:
        """The same in a folder of its own."""
        shutil.copytree(self.folder, where)
        return Planted(where, self.templates, self.model)


@pytest.fixture(scope="session")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """The planted model's atlas without evidence."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("planted")
    _, model = planted_atlas(folder)
    return Planted(folder / "out", template_file(folder), model)


@pytest.fixture(scope="session")
def examined(mapped: Planted, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """The same with evidence of both kinds."""
    planted = mapped.copied(tmp_path_factory.mktemp("examined") / "out")
    run_inference(planted.atlas, templates=planted.templates)
    run_ablation(planted.atlas, templates=planted.templates, choices=Choices(shots=0))
    return planted
