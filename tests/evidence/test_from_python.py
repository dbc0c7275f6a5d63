"""Evidence asked for in Python, and an atlas that is saved with its evidence."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

import headatlas as ha
from headatlas.atlas import Atlas
from headatlas.atlas.evidence import COLUMNS, CONTEXT, WITHOUT
from headatlas.atlas.store import read_array
from headatlas.errors import HeadatlasError
from headatlas.evidence import inference_run
from headatlas.evidence.statistics import agreement, summarise_ablations
from tests.evidence.conftest import Planted
from tests.evidence.planted import HEADS, LAYER, template_file


def test_inference_and_ablation(mapped: Planted, examined: Planted, tmp_path: Path) -> None:
    planted = mapped.copied(tmp_path / "out")
    atlas = planted.atlas
    assert not atlas.evidence and not set(COLUMNS) & set(atlas.table())
    found = ha.evidence.inference(atlas, templates=planted.templates)
    assert found.equals(agreement(examined.atlas))
    assert atlas.evidence and atlas.table()["context"].notna().any(), "the atlas at hand knows of it"
    task = ha.evidence.ablation(atlas, only=["second"], templates=planted.templates, shots=0)
    expected = summarise_ablations(examined.atlas.evidence.ablations)
    expected = expected[expected["relation"] == "second"].reset_index(drop=True)
    names = ["relation", "shots", "n_sources", "n_heads", "base", "without_relation", "without_added"]
    assert task[names].equals(expected[names]) and task.attrs["skipped"] == {}
    row = atlas.sel(relation="second", called=True).iloc[0]
    assert (row["layer"], row["head"], row["confirmed_by_ablation"]) == (LAYER, HEADS["second"], True)
    none = ha.evidence.ablation(
        atlas, only=["first"], templates=template_file(tmp_path, tasks={"first": "of {} ,"}), shots=0
    )
    assert none.empty and none.attrs["skipped"]["first"].startswith("base accuracy is 0.")
    with pytest.raises(TypeError, match="shot"):
        ha.evidence.ablation(atlas, shot=0)


def test_relations_in_texts_of_their_own(mapped: Planted, tmp_path: Path) -> None:
    atlas = mapped.copied(tmp_path / "out").atlas
    own = {"first": ("a {}",), "second": ("a {}", "{} of"), "elsewhere": ("of {}",)}
    with patch.object(inference_run, "contexts", return_value=own):
        found = ha.evidence.inference(atlas, own_templates=True)
    seen = {
        name: {each.template for each in atlas.evidence.templates_of(name)} for name in atlas.relation_scores
    }
    assert seen == {name: set(own.get(name, ())) for name in seen}
    assert set(found["relation"]) == {"first", "second", "mean"}
    with pytest.raises(HeadatlasError, match="none of these relations has context templates"):
        ha.evidence.inference(atlas, own_templates=True)
    with pytest.raises(HeadatlasError, match="exclude each other"):
        ha.evidence.inference(atlas, own_templates=True, templates=["a {}"])


def test_progress_is_told(mapped: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    atlas = mapped.copied(tmp_path / "out").atlas
    ha.evidence.inference(atlas, templates=["a {}"], progress=True)
    assert capsys.readouterr().err
    ha.evidence.inference(atlas, templates=["{} of"])
    assert capsys.readouterr().err == ""


def test_a_saved_atlas_keeps_its_evidence(examined: Planted, tmp_path: Path) -> None:
    first = examined.atlas
    first.at(tau=0.2).save(tmp_path / "mine")
    saved = Atlas.open(tmp_path / "mine")
    assert saved.at(tau=0.15).table().equals(first.table())
    assert [each.template for each in saved.evidence.dynamics] == [
        each.template for each in first.evidence.dynamics
    ]
    for ours, theirs in zip(saved.evidence.dynamics, first.evidence.dynamics, strict=True):
        for kind in (CONTEXT, WITHOUT):
            for name in ("promotion_rank", "suppression_rank"):
                ranks = [read_array(each.of(kind).dataset, name) for each in (ours, theirs)]
                np.testing.assert_array_equal(*ranks, strict=True)
    for one, other in zip(saved.evidence.ablations, first.evidence.ablations, strict=True):
        assert one.data.identical(other.data) and one.provenance == other.provenance
    again = ha.evidence.ablation(saved, templates=examined.templates, shots=0)
    assert len(again) == 2, "what was measured is there"
    assert not first.load().evidence
