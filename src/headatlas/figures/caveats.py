"""What may and may not be concluded from an atlas, as far as its lens, thresholds and numbers say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headatlas.figures.words import amount, joined

if TYPE_CHECKING:
    from headatlas.atlas import Atlas

_LENSES = {
    "neutral": (
        "The source states are the model's own, after {prefixes}: this is inference without the context of "
        "a real text, not a reading of the weights alone. Agreement with behaviour in context, attention and "
        "ablation are separate evidence."
    ),
    "maps": (
        "The source states come from weights alone: the embedding in layer 0, the first block's MLP on it in "
        "later layers. Where the model's own states differ from these, heads score low without being idle."
    ),
}


def caveats(atlas: Atlas) -> list[str]:
    """The last paragraphs of a description."""
    points = [
        _lens(atlas),
        "A score says what a head writes if it attends to the source. It does not say whether, or when, "
        "it attends.",
        _control(atlas),
        _thresholds(atlas),
        "A blank cell means that none of the relations asked was found there. The head may do something "
        "else.",
        *_targets(atlas),
        *_left_out(atlas),
    ]
    return ["What may and may not be concluded:\n" + "\n".join(f"- {point}" for point in points if point)]


def _lens(atlas: Atlas) -> str:
    prefixes = atlas.provenance["lens"].get("prefixes") or []
    said = amount(len(prefixes), "short fixed prefix") if prefixes else "a short prefix"
    text = _LENSES.get(atlas.lens, "The source states are those of the lens named above.")
    return text.format(prefixes=said)


def _control(atlas: Atlas) -> str:
    """How many calls the states themselves could explain."""
    text = (
        "Late states may already hold the answer; a head that only moves it looks like one that computes it. "
        "The control is the score of the state itself without any head, and added the share of sources that "
        "the head hits and the state does not. Suppression has no such control."
    )
    table = atlas.table()
    called = table[table["implements"].to_numpy(dtype=bool)]
    if len(called) == 0:
        return text
    score, control, added = (called[name].to_numpy(dtype=float) for name in ("score", "control", "added"))
    held = int((control >= score).sum())
    little = int((added < atlas.thresholds.tau).sum())
    return (
        f"{text} Of {amount(len(called), 'promoting head–relation pair')}, {held} score no higher than "
        f"the state alone, and {little} add less than {atlas.thresholds.tau:g}."
    )


def _thresholds(atlas: Atlas) -> str:
    thresholds = atlas.thresholds
    text = f"What is called depends on the settings ({thresholds.describe()})."
    table = atlas.table()
    if len(table) == 0:
        return text
    others = [tau for tau in (0.05, 0.1, 0.15, 0.2, 0.3, 0.5) if abs(tau - thresholds.tau) > 1e-9]
    near = [tau for tau in others if tau < thresholds.tau][-1:] + [
        tau for tau in others if tau > thresholds.tau
    ][:1]
    counts = [f"{amount(_called_heads(atlas, tau), 'head')} at {tau:g}" for tau in near]
    now = _called_heads(atlas, thresholds.tau)
    text += f" With another smallest score this would be {joined(counts)} instead of {now}."
    if thresholds.criterion == "calibrated":
        return (
            f"{text} q compares a head with one that promotes the same targets whatever the source; of the "
            f"head–relation pairs with q ≤ {thresholds.q_max:g} about that share or less is "
            "expected to be such chance. It does not speak of the choice of words."
        )
    called = table[table["implements"].to_numpy(dtype=bool)]
    doubtful = int((called["q"].to_numpy(dtype=float) > thresholds.q_max).sum())
    return (
        f"{text} The criterion asks for the score alone: {doubtful} of "
        f"{len(called)} promoting head–relation pairs have q > {thresholds.q_max:g}, as a head would "
        "that promotes the same targets whatever the source."
    )


def _called_heads(atlas: Atlas, tau: float) -> int:
    """Heads that would be called at another τ."""
    table = atlas.table()
    called = np.zeros(len(table), dtype=bool)
    for score, q in (("score", "q"), ("suppression", "suppression_q")):
        hit = table[score].to_numpy(dtype=float) >= tau
        if atlas.thresholds.criterion == "calibrated":
            hit &= table[q].to_numpy(dtype=float) <= atlas.thresholds.q_max
        called |= hit
    return len(set(zip(table["layer"][called], table["head"][called], strict=True)))


def _targets(atlas: Atlas) -> list[str]:
    if atlas.provenance.get("target_policy", "single") != "first-token":
        return []
    return [
        "Targets of several tokens count by their first token alone (target policy first-token). A first "
        "token may begin many words, so such a hit says less than one of a whole word."
    ]


def _left_out(atlas: Atlas) -> list[str]:
    if not atlas.left_out:
        return []
    titles = dict(zip(atlas.relations["relation"], atlas.relations["title"], strict=True))
    reasons = "; ".join(f"{titles[name]} ({why})" for name, why in atlas.left_out.items())
    return [f"Nothing is known about relations left out: {reasons}."]
