"""Open an atlas and read it with other numbers, in one call."""

from __future__ import annotations

from pathlib import Path

from headatlas.atlas.atlas import Atlas
from headatlas.scoring.settings import Criterion


def open_atlas(
    path: str | Path,
    *,
    profile: str | None = None,
    k: int | None = None,
    k_copy: int | None = None,
    tau: float | None = None,
    q_max: float | None = None,
    criterion: Criterion | None = None,
) -> Atlas:
    """Open the atlas in an output folder or at an address; numbers given here replace the stored ones.

    Raises:
        HeadatlasError: There is no atlas, k is above its ceiling, or a number is out of range.
    """
    atlas = Atlas.open(path)
    return atlas.with_settings(profile=profile, k=k, k_copy=k_copy, tau=tau, q_max=q_max, criterion=criterion)
