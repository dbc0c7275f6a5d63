"""From sums over sequences to each head's value, what is expected of it, an interval and a p."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from headatlas.atlas.behaviours import BEHAVIOURS
from headatlas.looking.measuring import SHARES, SPREAD, Sums
from headatlas.looking.places import everywhere
from headatlas.looking.sequences import LEAST_TEXTS, Sequences

LEVEL = 0.95
ROUNDING = 1e-6
"""Differences of float32 attention weights below this are none."""
NO_SINK = 1e-3
"""Rows of attention that lack less than this have no sink parameter."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """One behaviour of all heads; arrays [layer, head].

    Attributes:
        name: The behaviour.
        value, expected, low, high, p: As the atlas stores them; p is NaN where nothing is tested.
        n: Sequences that have such a position.
    """

    name: str
    value: Floats
    expected: Floats
    low: Floats
    high: Floats
    p: Floats
    n: int


def findings(sums: Sums, weights: NDArray[np.float32], sequences: Sequences) -> list[Found]:
    """Every behaviour that the sequences have places for, in the order of the atlas.

    ``weights`` [text, behaviour, query, key] are those that they were measured with.
    """
    even = uniform(sums.attention)
    found = {}
    for name in SHARES:
        mine = weights[:, SHARES.index(name)]
        there = np.flatnonzero(mine.any(axis=(1, 2)))
        if len(there) < LEAST_TEXTS:
            continue
        values = sums.shares[there, SHARES.index(name)].astype(np.float64)
        if name in everywhere(3):
            expected = np.einsum("nqk,lqk->nl", mine[there].astype(np.float64), even)[:, :, None]
            expected = np.broadcast_to(expected, values.shape)
        else:
            expected = elsewhere(values, mine[there], sums.attention, len(sequences.texts))
        found[name] = compared(name, values, expected)
    if len(sequences.repeated) >= LEAST_TEXTS:
        found["induction_repeated"] = compared("induction_repeated", *other_blocks(sums, sequences))
    levels = _even_spread(even)
    for at, name in enumerate(SPREAD):
        values = sums.spread[:, at].astype(np.float64)
        if name != "sink_parameter" or values.mean(axis=0).max() > NO_SINK:
            expected = np.broadcast_to(levels[name][:, None], values.shape[1:])
            found[name] = described(name, values, expected)
    return [found[each.name] for each in BEHAVIOURS if each.name in found]


def uniform(attention: Floats) -> Floats:
    """[layer, query, key] attention of a head that spreads evenly over what its layer can see.

    Softmax gives every key that is not masked something, so what no head ever attends to cannot be seen.
    """
    visible = (attention.sum(axis=1) > 0).astype(np.float64)
    return np.asarray(visible / visible.sum(axis=-1, keepdims=True))


def elsewhere(values: Floats, weights: NDArray[np.float32], attention: Floats, n: int) -> Floats:
    """[text, layer, head] what a head gives the same query positions and distances in the other texts.

    The mean over all n texts at these positions, the text itself taken out: ``attention`` [layer, head,
    query, key] is the sum over all texts, ``values`` what is given in this text, and ``weights`` [text,
    query, key] say which positions they are.
    """
    rows = weights.reshape(len(weights), -1).astype(np.float64)
    all_texts = np.einsum("np,lhp->nlh", rows, attention.reshape(*attention.shape[:2], -1), optimize=True)
    return np.asarray((all_texts - values) / (n - 1))


def other_blocks(sums: Sums, sequences: Sequences) -> tuple[Floats, Floats]:
    """Values and expected levels [sequence, layer, head] of induction on repeated random tokens.

    Expected is the mean attention at the same positions in sequences whose block has another length, where
    they are random tokens like all others.
    """
    lengths = np.unique(sequences.blocks)
    measured = sums.repeated.astype(np.float64)
    number = np.searchsorted(lengths, sequences.blocks)
    values = measured[np.arange(len(measured)), number]
    levels = np.stack(
        [measured[sequences.blocks != block, at].mean(axis=0) for at, block in enumerate(lengths)]
    )
    return values, levels[number]


def compared(name: str, values: Floats, expected: Floats) -> Found:
    """A share of attention [sequence, layer, head] against its expected level: t interval of the mean over
    sequences, and a one-sided paired t test of value > expected.
    """
    mean, low, high = interval(values)
    excess = values - expected
    excess[np.abs(excess) < ROUNDING] = 0.0
    n = len(excess)
    centre, error = excess.mean(axis=0), excess.std(axis=0, ddof=1) / np.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(error > 0, centre / error, np.sign(centre) * np.inf)
    p = np.where(np.isnan(t), 1.0, stats.t.sf(t, n - 1))
    return Found(name, mean, expected.mean(axis=0), np.maximum(low, 0.0), np.minimum(high, 1.0), p, n)


def described(name: str, values: Floats, expected: Floats) -> Found:
    """A number that is not tested, with its interval."""
    mean, low, high = interval(values)
    return Found(name, mean, expected, np.maximum(low, 0.0), high, np.full(mean.shape, np.nan), len(values))


def interval(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean over sequences (the first axis) and its 95 % interval by Student's t."""
    n = len(values)
    mean = values.mean(axis=0)
    half = stats.t.ppf(0.5 + LEVEL / 2, n - 1) * values.std(axis=0, ddof=1) / np.sqrt(n)
    return mean, mean - half, mean + half


def _even_spread(even: Floats) -> dict[str, Floats]:
    """[layer] entropy, distance and its variance of the even head; nothing goes to a sink parameter."""
    length = even.shape[-1]
    used = even[:, 1:]
    away = np.arange(1, length)[:, None] - np.arange(length)[None, :]
    mean = (used * away).sum(axis=-1)
    variance = (used * away**2).sum(axis=-1) - mean**2
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = np.where(used > 0, -used * np.log(used), 0.0).sum(axis=-1)
    rows = {"entropy": entropy, "distance": mean, "distance_variance": variance}
    return {
        "sink_parameter": np.zeros(len(even)),
        **{name: each.mean(axis=-1) for name, each in rows.items()},
    }
