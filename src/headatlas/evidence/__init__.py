"""Evidence for a map: what heads write in running texts, and what the model loses without them.

>>> ha.evidence.inference(atlas)                                       # doctest: +SKIP
>>> ha.evidence.ablation(atlas, only=["country_to_capital"])           # doctest: +SKIP

Both run the model, store what they measure in the atlas's folder, and go on where they were stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from headatlas.atlas import Atlas
    from headatlas.options import Compute
    from headatlas.progress import Report

__all__ = ["ablation", "inference"]


def inference(
    atlas: Atlas,
    model: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    only: Sequence[str] | None = None,
    templates: str | Path | Sequence[str] | None = None,
    own_templates: bool = False,
    compute: Compute | None = None,
    progress: Report | bool | None = None,
) -> pd.DataFrame:
    """Compare the scores of an atlas with what its heads write in running texts.

    Args:
        atlas: An atlas from a folder.
        model: Its model; by default the one that the atlas names.
        tokenizer: Needed with a loaded model.
        only: Names or titles of relations; all scored relations by default.
        templates: A file, or texts with one ``{}``; the shipped ones by default.
        own_templates: In their place, the texts that shipped relations have of their own.
        compute: Its device; a model in memory stays where it is.
        progress: As for :func:`headatlas.map_heads`.

    Returns:
        Correlations over heads, as :func:`headatlas.evidence.statistics.agreement` describes them.

    Raises:
        HeadatlasError: The model is not the atlas's or does not fit into memory, a template has no slot, or
            no relation can be used in it. What was measured before stays.
    """
    from headatlas.evidence.inference_run import run_inference
    from headatlas.evidence.statistics import agreement
    from headatlas.progress import reporting

    with reporting(progress) as tell:
        found = run_inference(
            atlas,
            model,
            tokenizer,
            only=only,
            templates=templates,
            own_templates=own_templates,
            compute=compute,
            progress=tell,
        )
    atlas.forget_evidence()
    return agreement(atlas, found)


def ablation(
    atlas: Atlas,
    model: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    only: Sequence[str] | None = None,
    templates: str | Path | None = None,
    compute: Compute | None = None,
    progress: Report | bool | None = None,
    **choices: Any,
) -> pd.DataFrame:
    """Take the heads of relations out of the model and see whether it can still do their tasks.

    Args:
        atlas, model, tokenizer, only, compute, progress: As for :func:`inference`.
        templates: A file; the shipped templates by default.
        choices: ``shots``, ``method``, ``sources``, ``max_heads``, ``draws``, ``seed``: the fields of
            :class:`headatlas.evidence.ablation_run.Choices`.

    Returns:
        One row a task, as :func:`headatlas.evidence.statistics.summarise_ablations` describes it;
        ``attrs["skipped"]`` says which relations were not ablated, and why.

    Raises:
        HeadatlasError: The model is not the atlas's or does not fit into memory, a template has no slot, or a
            number is out of range. What was measured before stays.
    """
    from headatlas.evidence.ablation_run import Choices, run_ablation
    from headatlas.evidence.statistics import summarise_ablations
    from headatlas.progress import reporting

    with reporting(progress) as tell:
        found = run_ablation(
            atlas,
            model,
            tokenizer,
            only=only,
            templates=templates,
            choices=Choices(**choices),
            compute=compute,
            progress=tell,
        )
    atlas.forget_evidence()
    frame = summarise_ablations(found.done)
    frame.attrs["skipped"] = found.skipped
    return frame
