"""Salient operations of heads: the tokens that a head changes most, and what it writes for them.

>>> ha.salience(atlas)                                                 # doctest: +SKIP

The folder is not called ``salience``: importing it would put a module in the place of the function
``headatlas.salience``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from headatlas.atlas import Atlas
    from headatlas.atlas.salience import Salience
    from headatlas.options import Compute, TokenChoice
    from headatlas.progress import Report

__all__ = ["computed_or_stored", "salience", "stored_as_asked"]

DEFINITIONS = 2
"""Goes up when a definition changes: what is stored is then computed again."""


def salience(
    atlas: Atlas,
    model: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    tokens: TokenChoice | None = None,
    most: int | None = None,
    exact: bool = False,
    compute: Compute | None = None,
    progress: Report | bool | None = None,
) -> pd.DataFrame:
    """Find the tokens that every head changes most and what it writes for them, and keep it in the atlas.

    The gain of a source token s is ‖x(s)·W_V·W_O‖ / ‖x(s)‖ (arXiv:2412.11965, section 5), with the atlas's
    lens. In the same pass come the spectrum of W_V·W_O and the share that known relations explain. A run that
    was stopped goes on where it was: states and finished layers are kept beside the atlas until then.

    Args:
        atlas: An atlas from a folder.
        model: Its model; by default the one that the atlas names.
        tokenizer: Needed with a loaded model, which comes back as it was.
        tokens: ``"wordlike"``, ``"initial"`` or ``"all"`` tokens as sources. By default those that are
            stored; else all with the lens ``maps``, and word-like ones with ``neutral``.
        most: The most source tokens, the first ones by id. By default as many as are stored; else no limit,
            but for word-like ones with ``neutral``: 20,000, and fewer of a large model.
        exact: With ``neutral``, follow every token after each prefix: two thirds slower. By default a quick
            pass proposes which tokens may be in a list, where that saves time, and the others are left there.
        compute: Its device and memory, for the forward pass of ``neutral``.
        progress: As for :func:`headatlas.map_heads`.

    Returns:
        One row per head and source token, at most 30 a head, the largest gain first: layer, head, order,
        source_id, source, gain, promoted_ids, promoted, suppressed_ids, suppressed (lists of five, the
        strongest first; texts are as tokens have them, unescaped). ``attrs["caption"]`` says which tokens and
        what the lists are not. ``atlas.salience()``, ``atlas.spectrum()`` and ``atlas.explained()`` read what
        is stored.

    Raises:
        HeadatlasError: The model is not the atlas's or does not fit into memory, there is no such choice of
            tokens, or the folder of the atlas cannot be written.
    """
    from headatlas.progress import reporting

    with reporting(progress) as tell:
        found = computed_or_stored(
            atlas, model, tokenizer, tokens=tokens, most=most, exact=exact, compute=compute, progress=tell
        )
    atlas.forget_evidence()
    frame = found.frame()
    frame.attrs["caption"] = found.caption()
    return frame


def computed_or_stored(
    atlas: Atlas,
    model: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    tokens: TokenChoice | None = None,
    most: int | None = None,
    exact: bool = False,
    compute: Compute | None = None,
    progress: Report | None = None,
) -> Salience:
    """As :func:`headatlas.writing.run.run_salience`, without torch where the atlas has it all."""
    if model is None and (there := stored_as_asked(atlas, tokens, most, exact)) is not None:
        return there
    from headatlas.writing.run import run_salience

    return run_salience(
        atlas, model, tokenizer, tokens=tokens, most=most, exact=exact, compute=compute, progress=progress
    )


def stored_as_asked(
    atlas: Atlas, tokens: TokenChoice | None, most: int | None, exact: bool
) -> Salience | None:
    """The salience of an atlas, if it is of these tokens and this number (None: any), and exact if asked."""
    from headatlas.atlas.salience import stored_salience

    there = stored_salience(atlas.path)
    if there is None or there.provenance.get("definitions") != DEFINITIONS:
        return None
    said = there.provenance["tokens"]
    if exact and there.n_followed < said["n"]:
        return None
    return there if tokens in (None, said["choice"]) and most in (None, said.get("most")) else None
