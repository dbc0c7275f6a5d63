"""The reassignment null: how surely what a head promotes depends on the source.

A head may promote the same few words whatever it reads (the letters s, c, p, say) and still score on a
relation. The null hypothesis is just that: *which targets belong to which sources does not matter to this
head*. Fix the head's output for every source, reassign the accepted target sets among the sources by a
uniformly random permutation σ, and count the hits X = Σ_i h[i, σ(i)], where h[i, j] says that an accepted
target of source j is in the top k for source i.

Mean and variance of X are closed forms (Hoeffding 1951). The tail P(X ≥ observed) is bounded analytically
first: by the Hadamard-type inequality for permanents of Carlen, Lieb and Loss (2006),

    E exp(θX) = per(exp(θh)) / n! ≤ Π_i ( (1/n) Σ_j exp(2θ h[i, j]) )^(1/2),

and the same with rows and columns exchanged, so exp(-θ·observed) times either is an upper bound of the exact
tail for every θ > 0. A second bound is elementary. s given sources are all hit with probability at most
Π r_i / (n(n-1)…(n-s+1)), r_i = Σ_j h[i, j], because at most Π r_i ways lead there; summed over all sets of s
sources this bounds E C(X, s), and Markov's inequality gives, for every s ≤ observed,

    P(X ≥ observed) ≤ e_s(r_1 … r_n) / ( n(n-1)…(n-s+1) · C(observed, s) )

with the elementary symmetric polynomial e_s; again also for columns. Where the smallest of all these bounds
is small it is the (conservative) p; elsewhere the tail is estimated by sequential Monte Carlo permutation
(Besag & Clifford 1991), whose p is valid at any stopping point.

Everywhere here ``h`` is [heads, n, n] bool and ``observed`` [heads] int; what is returned is [heads] float64.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CALIBRATION = 1
"""Changes with any change of what p is, so that stored values of an older rule are computed again."""
ANALYTIC_BELOW = 1e-4
"""An analytic bound at or below this is used as p; above it, permutations decide."""
STOP_AFTER = 40
"""Sequential Monte Carlo stops once this many permutations reached the observed count."""
_BLOCKS = (64, 64, 128, 256, 512, 1_024, 2_048, 2_048, 2_048, 1_807)
"""The 9,999 permutations are looked at in blocks of these sizes, which change the speed and no number."""
_THETAS = np.geomspace(0.01, 30.0, 80)

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class NullFit:
    """The null for the heads of one relation, arrays [heads]."""

    chance: Floats  # expected score
    variance: Floats  # of the number of hits
    p: Floats  # upper-tail probability of the observed number of hits (bound or permutation estimate)


def moments(h: Bools) -> tuple[Floats, Floats]:
    """Mean and variance of Σ_i h[i, σ(i)] over uniform permutations σ (Hoeffding 1951).

    The variance, Σ (h[i, j] - row mean - column mean + mean)² / (n - 1), needs only the sums of rows and
    columns because h is 0 or 1.
    """
    n = h.shape[-1]
    rows, columns = h.sum(axis=2), h.sum(axis=1)
    hits = rows.sum(axis=1)
    mean = n * (rows / n).mean(axis=1)
    scaled = n * n * hits - n * (rows**2).sum(axis=1) - n * (columns**2).sum(axis=1) + hits**2
    return mean, scaled / (n * n * max(n - 1, 1))


def tail_bound(h: Bools, observed: Ints) -> Floats:
    """A rigorous upper bound of P(Σ_i h[i, σ(i)] ≥ observed), at most 1; see the module's docstring."""
    best = np.zeros(len(h))
    for counts in (h.sum(axis=2), h.sum(axis=1)):
        best = np.minimum(best, _log_exponential_bound(counts, observed))
        best = np.minimum(best, _log_factorial_bound(counts, observed))
    return np.exp(best)


def _log_exponential_bound(counts: Ints, observed: Ints) -> Floats:
    """Log of the bound by the moment generating function, [heads]; counts are [heads, n] sums of rows or
    columns."""
    n = counts.shape[1]
    means = np.arange(n + 1) / n
    best = np.zeros(len(counts))
    for theta in _THETAS:
        # log(1 + m(e^{2θ} - 1)) without overflow, for every mean m that a row of n can have.
        terms = 2 * theta + np.log(means + (1 - means) * np.exp(-2 * theta))
        best = np.minimum(best, 0.5 * terms[counts].sum(axis=1) - theta * observed)
    return best


def _log_factorial_bound(counts: Ints, observed: Ints) -> Floats:
    """Log of the bound by factorial moments, [heads]; counts as above."""
    n = counts.shape[1]
    most = int(observed.max(initial=0))
    # Log of 0!, 1! …; scipy.special, which has it, takes 0.2 s to import.
    factorial = np.append(0.0, np.cumsum(np.log(np.arange(1, max(n, most) + 1))))
    # Elementary symmetric polynomials of counts / n; below the smallest number kept, that number bounds them.
    symmetric = np.zeros((len(counts), most + 1))
    symmetric[:, 0] = 1.0
    for share in (counts / n).T:
        symmetric[:, 1:] += share[:, None] * symmetric[:, :-1]
    s = np.arange(most + 1)
    falling = factorial[n] - factorial[np.maximum(n - s, 0)]
    x = observed[:, None]
    choose = factorial[x] - factorial[s] - factorial[np.maximum(x - s, 0)]
    logs = np.log(np.maximum(symmetric, 1e-290)) + s * np.log(n) - falling - choose
    logs[(s > x) | (s > n)] = 0.0
    # A little above, so that rounding never makes a bound of what is exactly the tail too small.
    bounds: Floats = np.minimum(logs.min(axis=1) + 1e-9, 0.0)
    return bounds


def seeded(text: str) -> np.random.Generator:
    """A generator of random numbers that are the same for the same text, everywhere."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return np.random.Generator(np.random.PCG64(seed))


class Permutations:
    """The permutations of one relation: drawn once from a seed, the same for every head and every run."""

    def __init__(self, n: int, seed_text: str) -> None:
        self._rng = seeded(seed_text)
        self._base = np.arange(n, dtype=np.int32)
        self._blocks: list[NDArray[np.int32]] = []

    def block(self, number: int) -> NDArray[np.int32]:
        """[_BLOCKS[number], n] permutations."""
        while len(self._blocks) <= number:
            size = _BLOCKS[len(self._blocks)]
            self._blocks.append(self._rng.permuted(np.tile(self._base, (size, 1)), axis=1))
        return self._blocks[number]

    def tail(self, h: Bools, observed: Ints) -> Floats:
        """Sequential Monte Carlo p of at least ``observed`` hits, every head on its own."""
        p = np.empty(len(h))
        going = np.arange(len(h))
        reached = np.zeros(len(h), dtype=np.int64)
        # Heads last: one permutation then reads whole rows of memory, for all heads at once.
        by_source = np.ascontiguousarray(h.transpose(1, 2, 0)).view(np.uint8)
        drawn = 0
        for number, size in enumerate(_BLOCKS):
            at_least = _counts(by_source, self.block(number)) >= observed[going]
            so_far = reached + at_least.sum(axis=0)
            stops = so_far >= STOP_AFTER
            # The draw at which the limit was met: p = limit / draws, exactly valid.
            met = np.cumsum(at_least[:, stops], axis=0) >= STOP_AFTER - reached[stops]
            p[going[stops]] = STOP_AFTER / (drawn + met.argmax(axis=0) + 1)
            drawn += size
            going, reached = going[~stops], so_far[~stops]
            if not len(going):
                return p
            if stops.any():
                by_source = np.ascontiguousarray(by_source[:, :, ~stops])
        p[going] = (reached + 1) / (drawn + 1)
        return p


def _counts(by_source: NDArray[np.uint8], permutations: NDArray[np.int32]) -> NDArray[np.unsignedinteger]:
    """[permutations, heads] hits under each permutation; ``by_source`` is [n, n, heads], 0 or 1."""
    n, _, heads = by_source.shape
    counts = np.zeros((len(permutations), heads), dtype=np.min_scalar_type(n))
    for i in range(n):
        counts += by_source[i].take(permutations[:, i], axis=0)
    return counts


def fit_null(h: Bools, permutations: Permutations) -> NullFit:
    """Calibrate heads on one relation, with its permutations of n sources.

    ``h[:, i, j]``: an accepted target of source j is in the head's top k for source i. The diagonal is what
    was observed.
    """
    n = h.shape[-1]
    observed = np.trace(h, axis1=1, axis2=2, dtype=np.int64)
    mean, variance = moments(h)
    p = np.ones(len(h))
    # No bound of this kind is below 1 up to the mean (Jensen), so it is computed above the mean only.
    above = np.flatnonzero(observed > mean)
    p[above] = tail_bound(h[above], observed[above])
    doubtful = np.flatnonzero(p > ANALYTIC_BELOW)
    p[doubtful] = permutations.tail(h[doubtful], observed[doubtful])
    return NullFit(mean / n, variance, np.minimum(p, 1.0))
