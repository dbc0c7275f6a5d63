"""One planted model, mapped and examined once for all tests."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from headatlas.atlas import Atlas
from headatlas.atlas.evidence import Dynamic, HeadsAblation, Preferences
from headatlas.evidence import ablation_run, attention_run, inference_run, opening
from headatlas.evidence.ablation_run import Ablations
from headatlas.evidence.texts import read_templates
from headatlas.options import AblationChoices
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


def run_inference(
    atlas: Atlas, *loaded: Any, only: Any = None, progress: Any = None, templates: Any = None, **asked: Any
) -> list[Dynamic]:
    """The dynamic scores that ``ha.evidence.inference`` compares."""
    with opening.examined(atlas, *loaded, only=only, progress=progress) as subject:
        return inference_run.run_inference(subject, inference_run.InferenceTexts.of(templates, **asked))


def run_ablation(
    atlas: Atlas,
    *loaded: Any,
    only: Any = None,
    progress: Any = None,
    templates: Any = None,
    choices: AblationChoices = AblationChoices(),  # noqa: B008 (frozen)
) -> Ablations:
    """The ablations that ``ha.evidence.ablation`` sums up."""
    with opening.examined(atlas, *loaded, progress=progress) as subject:
        return ablation_run.run_ablation(subject, read_templates(templates), choices, only)


def run_chosen(
    atlas: Atlas,
    heads: Any,
    only: Any = None,
    templates: Any = None,
    choices: AblationChoices = AblationChoices(),  # noqa: B008
) -> HeadsAblation:
    """The losses without chosen heads that ``ha.evidence.ablation`` sums up."""
    with opening.examined(atlas) as subject:
        return ablation_run.run_chosen(subject, heads, read_templates(templates), choices, only)


def run_attention(atlas: Atlas, *loaded: Any, templates: Any = None) -> Preferences:
    """The preferences of all heads, of which ``ha.evidence.attention`` shows some."""
    with opening.examined(atlas, *loaded) as subject:
        return attention_run.run_attention(subject, read_templates(templates), own=templates is not None)


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
    run_ablation(planted.atlas, templates=planted.templates, choices=AblationChoices(shots=0))
    return planted
