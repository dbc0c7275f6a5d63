"""The comparisons of `headatlas.architectures.oracle` with the tolerance of the tests, number by number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from headatlas.architectures import Model
from headatlas.architectures.oracle import COMPARISONS, Factor, values
from headatlas.errors import HeadatlasError

# transformers computes RMS norms in float32 whatever the model's dtype.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
PARTS = tuple(COMPARISONS)


def hold(model: Model, modules: PreTrainedModel, *parts: str) -> None:
    """Hold a model against modules, in all parts or some."""
    for part in parts or PARTS:
        if part == "first MLP" and not model.mlp_modules(0):
            with pytest.raises(HeadatlasError, match="the first block has no MLP"):
                model.first_mlp(torch.ones(1, model.dims.d_model))
            continue
        more: Any = values_as_far_as_known(model) if COMPARISONS[part] is values else {}
        found = 0
        for each in COMPARISONS[part](model, modules, **more):
            tolerance = {} if each.stored else CLOSE
            torch.testing.assert_close(
                each.ours,
                each.theirs,
                check_dtype=False,
                msg=lambda why, at=each.part: f"{at}: {why}",
                **tolerance,
            )
            found += 1
        assert found or part == "norms after attention", part


def values_as_far_as_known(model: Model) -> dict[str, Any]:
    """How long the texts are and which positive factors are left open when values are compared.

    Values made from a latent are known up to a positive number per source: there a source is alone, so that
    it attends to itself, and all heads together must be off by the same number.
    """
    section = model.family.safetensors
    if any(value.layout == "latent" for value in section.value):
        return {"tokens": 1, "factor": "source"}
    # Some modules with sinks return attention before the sink took its share; LFM3 scales whole heads.
    sinks = any(other.stem.endswith(("sinks!", "g_proj")) for other in section.other)
    gated = any("gate between 0 and 1" in caveat.text for caveat in section.caveats)
    factor: Factor = "head" if sinks or gated else "none"
    return {"tokens": 6, "factor": factor}
