"""Short descriptions of heads from their salient mappings, and whether they predict other mappings.

>>> ha.label(atlas)                                                     # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from headatlas.atlas import Atlas
    from headatlas.progress import Report
    from headatlas.relations.selection import RelationSpec

__all__ = ["label"]


def label(
    atlas: Atlas,
    *,
    salience: pd.DataFrame | None = None,
    relations: RelationSpec = "all",
    describe_with: str | None = None,
    model_name: str | None = None,
    only: Sequence[tuple[int, int]] | None = None,
    per_minute: float | None = None,
    seconds: float | None = None,
    seed: int = 0,
    progress: Report | bool | None = None,
) -> pd.DataFrame:
    """Name what every head does, test whether the name predicts, and keep both in the atlas.

    Half of a head's salient mappings are described, by rules and, if asked, by a language model. The
    description is scored on the other half: each mapping must be picked among four of other heads.

    Args:
        atlas: An atlas; of one in a folder the labels are stored.
        salience: Salient operations as ``atlas.salience()`` gives them, which is the default.
        relations: The relations that rules know, as for :func:`headatlas.map_heads`.
        describe_with: Address of an OpenAI-compatible endpoint, such as ``http://localhost:11434/v1``. A key
            is read from the environment (``HEADATLAS_API_KEY``, else ``OPENAI_API_KEY``).
        model_name: The model there.
        only: (layer, head) of the heads to label; all by default.
        per_minute: Most requests a minute to another machine; 120 by default.
        seconds: Longest time of a request; 120 by default.
        seed: Of halves and distractors.
        progress: As for :func:`headatlas.map_heads`.

    Returns:
        One row per head and author, and one more for a head whose attention says what it does: layer, head,
        label (``"unclear"`` at or below chance + 2 standard errors), support, score, chance, se, author, kind
        (``"mappings"``: scored; ``"attention"``: rests on a behaviour's q, not scored).

    Raises:
        HeadatlasError: There are no salient operations; no such head or relation; the endpoint cannot be
            used. What it has answered is kept.
    """
    from headatlas.describing.endpoint import Endpoint, limits_of
    from headatlas.describing.run import label_heads
    from headatlas.errors import HeadatlasError
    from headatlas.progress import reporting

    if (describe_with is None) != (model_name is None):
        raise HeadatlasError("`describe_with` and `model_name` belong together: give both or neither.")
    endpoint = None
    if describe_with is not None and model_name is not None:
        endpoint = Endpoint(
            describe_with, model_name, limits=limits_of(per_minute=per_minute, seconds=seconds)
        )
    with reporting(progress) as tell:
        return label_heads(
            atlas,
            salience,
            relations=relations,
            endpoint=endpoint,
            heads=only,
            seed=seed,
            progress=tell,
        )
