"""What is said about families is what the tests show; what transformers builds is supported or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from headatlas.architectures import families, supported
from headatlas.architectures.family import oracles, unsupported

from .proven import FILE, proven

PAGE = Path(__file__).parents[2] / "docs" / "families.md"


def test_the_list_of_oracles_is_the_tests_own() -> None:
    assert json.loads(FILE.read_text("utf-8")) == proven(), "run python -m tests.architectures.proven"


def test_every_family_passes_an_oracle_in_each_of_its_formats() -> None:
    for family in families():
        proof = oracles(family)
        assert proof.safetensors, family.name
        assert bool(proof.gguf) == (family.gguf is not None), family.name


def test_every_causal_language_model_of_transformers_is_supported_or_refused_with_a_reason() -> None:
    known: set[Any] = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    assert not known - set(supported()) - set(unsupported())
    assert not set(unsupported()) & set(supported())


def test_the_page_of_families_is_up_to_date() -> None:
    from .families_page import page

    assert PAGE.read_text("utf-8") == page(), "run python -m tests.architectures.families_page"
