"""The steps that make pairs from packages: each takes the store, and words of its own, and returns pairs."""

from __future__ import annotations

from collections.abc import Callable

from builder.facts import Pairs
from builder.steps import derivation, generated, languages, morphology, semantics, sound, world

STEPS: dict[str, Callable[..., Pairs]] = {
    **generated.STEPS,
    **morphology.STEPS,
    **derivation.STEPS,
    **semantics.STEPS,
    **sound.STEPS,
    **world.STEPS,
    **languages.STEPS,
}
