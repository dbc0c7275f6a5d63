"""Evidence for a map: what heads write in running texts, and what the model loses without them.

>>> ha.evidence.inference(atlas)                                       # doctest: +SKIP
>>> ha.evidence.ablation(atlas, only=["country_to_capital"])           # doctest: +SKIP

They run the model and store what they measure in the atlas's folder. Inference and ablation go on where they
were stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from headatlas.atlas import Atlas
    from headatlas.options import Compute, Sources
    from headatlas.progress import Report

__all__ = ["ablation", "attention", "inference"]


def inference(
    atlas: Atlas,
    model: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    only: Sequence[str] | None = None,
    templates: str | Path | Sequence[str] | None = None,
    own_templates: bool = False,
    sources: Sources = None,
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
        sources: Sample relations of more usable sources than this, always the same words; ``"all"``: no
            sample. None: 50.
        compute: Its device; a model in memory stays where it is.
        progress: As for :func:`headatlas.map_heads`.

    Returns:
        Correlations over heads, as :func:`headatlas.evidence.statistics.agreement` describes them.

    Raises:
        HeadatlasError: The model is not the atlas's or does not fit into memory, a template has no slot, or
            no relation can be used in it. What was measured before stays.
    """
    from headatlas.evidence.inference_run import InferenceTexts, run_inference
    from headatlas.evidence.opening import examined
    from headatlas.evidence.statistics import agreement

    asked = InferenceTexts.of(templates, own_templates=own_templates, sources=sources)
    with examined(atlas, model, tokenizer, only=only, compute=compute, progress=progress) as subject:
        found = run_inference(subject, asked)
    return agreement(atlas, found)


def ablation(
    atlas: Atlas,
    model: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    only: Sequence[str] | None = None,
    heads: Sequence[tuple[int, int]] | None = None,
    templates: str | Path | None = None,
    compute: Compute | None = None,
    progress: Report | bool | None = None,
    **choices: Any,
) -> pd.DataFrame:
    """Take the heads of relations, or heads of one's own choice, out of the model and see what it loses.

    Args:
        atlas, model, tokenizer, only, compute, progress: As for :func:`inference`.
        heads: Heads of one's own choice, (layer, head), ablated together: what is lost on running texts, and
            on the tasks of ``only`` if it is given, beside random heads of the same layers.
        templates: A file; the shipped templates by default.
        choices: ``shots``, ``method``, ``sources``, ``max_heads``, ``draws``, ``seed``: the fields of
            :class:`headatlas.options.AblationChoices`.

    Returns:
        One row a task, as :func:`headatlas.evidence.statistics.summarise_ablations` describes it, or, with
        ``heads``, as :func:`headatlas.evidence.statistics.summarise_heads` does;
        ``attrs["skipped"]`` says which relations were not ablated, and why.

    Raises:
        HeadatlasError: The model is not the atlas's or does not fit into memory, a template has no slot, or a
            number is out of range. What was measured before stays.
    """
    from headatlas.evidence.ablation_run import run_ablation, run_chosen
    from headatlas.evidence.opening import examined
    from headatlas.evidence.statistics import summarise_ablations, summarise_heads
    from headatlas.evidence.texts import read_templates
    from headatlas.options import AblationChoices

    chosen, asked = AblationChoices(**choices), read_templates(templates)
    with examined(atlas, model, tokenizer, compute=compute, progress=progress) as subject:
        if heads is None:
            found = run_ablation(subject, asked, chosen, only)
            frame, skipped = summarise_ablations(found.done), found.skipped
        else:
            without = run_chosen(subject, heads, asked, chosen, only)
            frame, skipped = summarise_heads(without), without.provenance["skipped"]
    frame.attrs["skipped"] = skipped
    return frame


def attention(
    atlas: Atlas,
    model: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    only: Sequence[str] | None = None,
    templates: str | Path | None = None,
    compute: Compute | None = None,
    progress: Report | bool | None = None,
) -> pd.DataFrame:
    """Compare, by W_Q and W_K, how much queries prefer the sources of relations to matched other words.

    Args:
        atlas, model, tokenizer, compute, progress: As for :func:`inference`.
        only: Names or titles of relations to return; all are measured, and q is over all.
        templates: A file; the shipped templates by default.

    Returns:
        One row per called head × relation and query (``task`` or ``context``), as
        :meth:`headatlas.atlas.evidence.Preferences.frame` describes it; ``attrs["left_out"]`` says which
        relations could not be compared, and why.

    Raises:
        HeadatlasError: The model is not the atlas's or does not fit into memory, how its family attends is
            not read yet, or a template has no slot.
    """
    from headatlas.evidence.attention_run import run_attention
    from headatlas.evidence.opening import examined
    from headatlas.evidence.texts import read_templates

    asked = read_templates(templates)
    with examined(atlas, model, tokenizer, compute=compute, progress=progress) as subject:
        found = run_attention(subject, asked, own=templates is not None)
    frame = found.frame(atlas, only)
    frame.attrs |= {"caption": found.caption(), "left_out": found.left_out}
    return frame
