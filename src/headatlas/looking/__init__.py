"""Attention of heads to places in running texts, beside the level expected by distance.

>>> ha.behaviour(atlas, only=["induction"])                            # doctest: +SKIP

The folder is not called ``behaviour``: importing it would put a module in the place of the function
``headatlas.behaviour``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from headatlas.atlas import Atlas
    from headatlas.atlas.behaviours import Looking
    from headatlas.options import Compute
    from headatlas.progress import Report

__all__ = ["behaviour", "measured_or_stored"]

DEFINITIONS = 1
"""Goes up when a definition or the choice of sequences changes: what is stored is then measured again."""


def behaviour(
    atlas: Atlas,
    model: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    text: str | Path | None = None,
    only: Sequence[str] | None = None,
    compute: Compute | None = None,
    progress: Report | bool | None = None,
) -> pd.DataFrame:
    """Watch where every head of an atlas's model looks, and keep it in the atlas.

    Args:
        atlas, model, tokenizer, compute, progress: As for :func:`headatlas.evidence.inference`; a loaded
            model comes back as it was.
        text: A UTF-8 file of one's own in the place of the shipped texts; kept beside them.
        only: Behaviours to return; all are measured, and q is over all.

    Returns:
        One row per behaviour, layer and head: layer, head, behaviour, value, expected, low, high (95 %, over
        sequences), p, q, called. ``docs/behaviour.md`` defines them. ``attrs["caption"]`` names the texts,
        the criterion and what the numbers are not. Of the shipped texts, ``atlas.behaviours()`` gives the
        same afterwards.

    Raises:
        HeadatlasError: The model is not the atlas's, does not fit into memory or gives no attention weights;
            the text cannot be read or is too short; there is no such behaviour. A stopped run keeps what it
            has done.
    """
    from headatlas.atlas.behaviours import chosen, known
    from headatlas.progress import reporting

    known(only)
    with reporting(progress) as tell:
        found = measured_or_stored(atlas, model, tokenizer, text=text, compute=compute, progress=tell)
    atlas.forget_evidence()
    frame = chosen(found.frame(), only)
    frame.attrs["caption"] = found.caption()
    return frame


def measured_or_stored(
    atlas: Atlas,
    model: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    text: str | Path | None = None,
    compute: Compute | None = None,
    progress: Report | None = None,
) -> Looking:
    """As :func:`headatlas.looking.measuring.run_behaviour`, without torch where the atlas has it all.

    That is the case of the shipped texts: with the atlas's own tokenizer they always give these sequences.
    """
    from headatlas.atlas.behaviours import Looking

    if text is None and model is None:
        there = Looking.shipped_in(atlas.path)
        if there is not None and there.provenance.get("definitions") == DEFINITIONS:
            return there
    from headatlas.looking.measuring import run_behaviour

    return run_behaviour(atlas, model, tokenizer, text=text, compute=compute, progress=progress)
