"""Salient operations and spectra of the heads of one layer.

Everything goes through the factors: of a head, x·W_V and numbers of size d_head × d_head. Float32, or for
products with U whatever the engine's bounds are of, proposes tokens with a proven error, and float64 decides
between those that the error leaves open, so that lists are those of float64 arithmetic on the states and
weights as they are stored.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from headatlas.atlas.salience import N_DIRECTIONS, N_SOURCES, N_TOKENS
from headatlas.devices import strict_products
from headatlas.files import atomic_write
from headatlas.mapping.bounds import Bounded, single_logits, whole
from headatlas.mapping.full_vocabulary import kth, largest_of_groups, side_by_side, where_at_least
from headatlas.mapping.inputs import LayerInputs
from headatlas.mapping.vocabulary import UNIT_ROUNDOFF, Vocabulary, dot_error, some_of

ROWS = 8192
"""Tokens whose states are multiplied at a time."""
COLUMNS = 16_384
KEPT = 64
"""Targets at least that bounds keep of each row and sign; where their error leaves more open, float64 looks
at all."""
GROUPS = 8
"""Times as many groups of numbers as are kept of a row are told apart to find those."""
NOTHING = 1e-10
"""Of the largest singular value: smaller ones are rounding, and have no direction."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class HeadFactors:
    """W_V·W_O of a head as Q_V · core · Q_O, with core = R_V·L of size d_head × d_head.

    Attributes:
        W_V: [d_model, d_head] float64.
        bias: [d_head] float64: b_V, or zeros where the lens has none.
        L: [d_head, k] float64 with W_O = L·Q_O, k ≤ d_head: ‖v·W_O‖ = ‖v·L‖, and L·Lᵀ is the Gram matrix of
            W_O.
        Q_O: [k, d_model] float64, rows orthonormal.
        R_V: [k', d_head] float64 with W_V = Q_V·R_V.
        singular_values: [min(k', k)] of W_V·W_O, largest first.
        V: [min(k', k), k] right singular directions in the basis Q_O; their signs are arbitrary.
    """

    W_V: torch.Tensor
    bias: torch.Tensor
    L: torch.Tensor
    Q_O: torch.Tensor
    R_V: torch.Tensor
    singular_values: torch.Tensor
    V: torch.Tensor

    @classmethod
    def of(cls, inputs: LayerInputs, head: int) -> HeadFactors:
        """Factor a head's weights: two QR decompositions, one SVD of size d_head."""
        group = inputs.dims.kv_head(head)
        W_V, W_O = inputs.heads.W_V[group].double(), inputs.heads.W_O[head].double()
        stored = inputs.heads.b_V if inputs.use_bias else None
        bias = W_V.new_zeros(W_V.shape[1]) if stored is None else stored[group].double()
        Q, R = torch.linalg.qr(W_O.T)
        R_V = torch.linalg.qr(W_V, mode="r").R
        _, values, V = torch.linalg.svd(R_V @ R.T, full_matrices=False)
        return cls(W_V, bias, R.T, Q.T, R_V, values, V)

    @cached_property
    def n_directions(self) -> int:
        """The directions that are shown: of singular values that are more than rounding."""
        values = self.singular_values[:N_DIRECTIONS]
        return int((values > NOTHING * values[0]).sum()) if float(values[0]) > 0 else 0

    @cached_property
    def reading(self) -> torch.Tensor:
        """[d_head, directions] W_O·vᵢ / sᵢ: x·W_V times it is x·uᵢ, uᵢ the left singular direction."""
        n = self.n_directions
        return self.L @ self.V[:n].T / self.singular_values[:n]

    @cached_property
    def right(self) -> torch.Tensor:
        """[directions, d_model] right singular directions vᵢ."""
        return self.V[: self.n_directions] @ self.Q_O

    def gains(self, states: torch.Tensor) -> torch.Tensor:
        """[n] float64 ‖x·W_V·W_O‖ / ‖x‖ of states [n, d_model], none of them zero."""
        x = states.double()
        return _lengths((x @ self.W_V + self.bias) @ self.L) / _lengths(x)

    def roughly(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """In float32, [n] ‖x·W_V·W_O‖ and [n, directions] x·uᵢ of values x·W_V [n, d_head]."""
        output = values @ self.L.float()
        output += (self.bias @ self.L).float()
        return _lengths(output), values @ self.reading.float()

    def readings(self, states: torch.Tensor) -> torch.Tensor:
        """[n, directions] float64 x·uᵢ / ‖x‖."""
        x = states.double()
        return (x @ self.W_V) @ self.reading / _lengths(x)[:, None]

    @cached_property
    def _products(self) -> tuple[float, float]:
        """Bounds of float32 x·W_V for ‖x‖ = 1: of its error, and of its length."""
        error = dot_error(self.W_V.shape[0]) * float(self.W_V.norm())
        return error, float(torch.linalg.matrix_norm(self.R_V, 2)) + error

    def gain_error(self, shortest: float) -> float:
        """Bound of the error of a float32 gain, for states no shorter than this.

        Three products and a norm, each with the worst case of :func:`dot_error`.
        """
        own = dot_error(self.W_V.shape[1])
        error, length = self._products
        frobenius, spectral = float(self.L.norm()), float(torch.linalg.matrix_norm(self.L, 2))
        shift = float((self.bias @ self.L).norm()) / shortest
        longest = length * spectral + shift
        products = error * spectral + own * length * frobenius
        return 1.01 * (products + own * longest + 4 * UNIT_ROUNDOFF * (longest + shift))

    def reading_errors(self) -> torch.Tensor:
        """[directions] bounds of the errors of float32 readings."""
        error, length = self._products
        own = dot_error(self.W_V.shape[1]) + 8 * UNIT_ROUNDOFF
        return _lengths(self.reading.T) * (1.01 * (error + own * length))


@dataclass(frozen=True)
class LayerOperations:
    """Writing of the heads of a layer; tokens by their ids, -1 where there is none.

    Attributes:
        gain: [n_heads, 30] float64, NaN where there is none.
        source: [n_heads, 30] source tokens, by gain.
        promoted, suppressed: [n_heads, 30, 5] target tokens of each, the strongest first.
        singular_values: [n_heads, d_head], NaN beyond the number there is.
        effective_rank, copying: [n_heads] float64, NaN for a head of zeros.
        squared_norm: [n_heads] ‖W_V·W_O‖² (Frobenius).
        reads: [n_heads, 5, 2, 5] tokens whose states have the largest x·u / ‖x‖ of either sign.
        writes: [n_heads, 5, 2, 5] tokens that v promotes, and that it suppresses.
    """

    gain: Floats
    source: Ints
    promoted: Ints
    suppressed: Ints
    singular_values: Floats
    effective_rank: Floats
    copying: Floats
    squared_norm: Floats
    reads: Ints
    writes: Ints

    def save(self, file: Path) -> None:
        """Write them to an ``.npz`` file, which appears whole or not at all.

        Raises:
            HeadatlasError: It cannot be written.
        """
        with atomic_write(file) as temporary:
            np.savez(temporary, **{each.name: getattr(self, each.name) for each in fields(self)})

    @classmethod
    def load(cls, file: Path) -> LayerOperations:
        """Those of a file."""
        with np.load(file, allow_pickle=False) as stored:
            return cls(**{name: stored[name] for name in stored.files})

    @classmethod
    def empty(cls, n_heads: int, d_head: int) -> LayerOperations:
        """Of nothing."""

        def none(*shape: int) -> Ints:
            return np.full((n_heads, *shape), -1, dtype=np.int64)

        def unknown(*shape: int) -> Floats:
            return np.full((n_heads, *shape), np.nan)

        return cls(
            gain=unknown(N_SOURCES),
            source=none(N_SOURCES),
            promoted=none(N_SOURCES, N_TOKENS),
            suppressed=none(N_SOURCES, N_TOKENS),
            singular_values=unknown(d_head),
            effective_rank=unknown(),
            copying=unknown(),
            squared_norm=unknown(),
            reads=none(N_DIRECTIONS, 2, N_TOKENS),
            writes=none(N_DIRECTIONS, 2, N_TOKENS),
        )


@dataclass
class Operations:
    """Finds what heads write, layer by layer.

    Attributes:
        vocabulary: The competing rows of U.
    """

    vocabulary: Vocabulary
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _correlations: deque[tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=lambda: deque(maxlen=2), init=False
    )
    _rows_of: tuple[Ints, torch.Tensor] | None = field(default=None, init=False)

    def layer(
        self, inputs: LayerInputs, tokens: Ints, rough: tuple[torch.Tensor, Ints] | None = None
    ) -> LayerOperations:
        """The operations of a layer.

        Args:
            inputs: The layer, with the states of source tokens.
            tokens: [n] ids of these, ascending; all compete.
            rough: About x·W_V of all groups [m, n_kv_heads · d_head], and ids, ascending, of these tokens and
                of others that can be in no list, but count for copying.
        """
        heads = [HeadFactors.of(inputs, head) for head in range(inputs.dims.n_heads)]
        out = LayerOperations.empty(inputs.dims.n_heads, inputs.dims.d_head)
        rows: list[torch.Tensor] = []
        with torch.inference_mode(), strict_products():
            for head, (factors, gains, readings, shortest) in enumerate(self._screened(inputs, heads)):
                sources = self._sources(inputs, tokens, factors, gains, shortest, out, head)
                signs = self._directions(inputs, tokens, factors, readings, out, head)
                rows += [self._outputs(inputs, factors, head, sources, signs)]
            seen = self._seen(inputs, tokens, rough)
            for head in range(len(heads)):
                out.copying[head] = copying(inputs.output(head) @ seen[inputs.dims.kv_head(head)])
            self._targets(heads, rows, out)
        return out

    def _screened(
        self, inputs: LayerInputs, heads: list[HeadFactors]
    ) -> Iterator[tuple[HeadFactors, torch.Tensor, torch.Tensor, float]]:
        """Each head with float32 gains [n], readings [n, directions] and the length of the shortest state.

        Heads that share W_V share its product. The gain of a state of zeros is minus infinity.
        """
        states = inputs.states
        lengths = torch.cat([_lengths(part.double()) for part in torch.split(states, ROWS)])
        there = lengths > 0
        shortest = float(lengths[there].min()) if bool(there.any()) else 1.0
        divisor = torch.where(there, lengths, torch.inf).float()
        group, values = -1, states.new_empty(0)
        for head, factors in enumerate(heads):
            if inputs.dims.kv_head(head) != group:
                group = inputs.dims.kv_head(head)
                values = states @ factors.W_V.float()
            written, read = factors.roughly(values)
            gains = written / divisor
            gains[~there] = -torch.inf
            yield factors, gains, read / divisor[:, None], shortest

    def _sources(
        self,
        inputs: LayerInputs,
        tokens: Ints,
        factors: HeadFactors,
        gains: torch.Tensor,
        shortest: float,
        out: LayerOperations,
        head: int,
    ) -> torch.Tensor:
        """Enter the tokens of largest gain; gives their places."""

        found = open_places(gains, factors.gain_error(shortest), N_SOURCES)
        values = factors.gains(inputs.states[found])
        order = torch.argsort(values, descending=True, stable=True)[:N_SOURCES]
        order = order[values[order] > 0]
        found, values = found[order], values[order]
        out.source[head, : len(found)] = tokens[found.numpy()]
        out.gain[head, : len(found)] = values.numpy()
        return found

    def _directions(
        self,
        inputs: LayerInputs,
        tokens: Ints,
        factors: HeadFactors,
        readings: torch.Tensor,
        out: LayerOperations,
        head: int,
    ) -> torch.Tensor:
        """Enter the spectrum and the tokens that each direction reads; gives the [directions] signs taken.

        A singular direction has no sign of its own: the end that reads a token more strongly comes first.
        """
        values = factors.singular_values.numpy()
        out.singular_values[head, : len(values)] = values
        out.effective_rank[head] = effective_rank(values)
        out.squared_norm[head] = float((values**2).sum())
        signs = torch.ones(factors.n_directions, dtype=torch.float64)
        if not factors.n_directions:
            return signs
        ends = torch.cat([readings, -readings], dim=1).T
        errors = factors.reading_errors().repeat(2).tolist()
        parts = [open_places(end, error, N_TOKENS) for end, error in zip(ends, errors, strict=True)]
        # What is open for one end may be there for all: more places cannot change a list.
        found = torch.unique(torch.cat(parts))
        exact = factors.readings(inputs.states[found])
        signs[exact.max(dim=0).values < -exact.min(dim=0).values] = -1
        for side, sign in enumerate((1, -1)):
            order = torch.argsort(sign * signs * exact, dim=0, descending=True, stable=True)[:N_TOKENS]
            read = tokens[found[order.T].numpy()]
            out.reads[head, : len(signs), side, : read.shape[1]] = read
        return signs

    @staticmethod
    def _outputs(
        inputs: LayerInputs, factors: HeadFactors, head: int, sources: torch.Tensor, signs: torch.Tensor
    ) -> torch.Tensor:
        """[sources + directions, d_model] float64 on their way to U: what the head writes for its sources,
        then its right directions."""
        written = inputs.states[sources].double() @ factors.W_V + factors.bias
        right = signs[:, None] * factors.right
        directions = right if inputs.right is None else inputs.right.apply(right)
        return torch.cat([written @ inputs.output(head), directions])

    def _targets(self, heads: list[HeadFactors], rows: list[torch.Tensor], out: LayerOperations) -> None:
        """Enter the tokens that each row promotes and suppresses."""
        promoted, suppressed = top_targets(torch.cat(rows), self.vocabulary, N_TOKENS)
        width = promoted.shape[1]
        start = 0
        for head, (factors, part) in enumerate(zip(heads, rows, strict=True)):
            n_directions = factors.n_directions
            n_sources = len(part) - n_directions
            middle, end = start + n_sources, start + len(part)
            out.promoted[head, :n_sources, :width] = promoted[start:middle]
            out.suppressed[head, :n_sources, :width] = suppressed[start:middle]
            out.writes[head, :n_directions, 0, :width] = promoted[middle:end]
            out.writes[head, :n_directions, 1, :width] = suppressed[middle:end]
            start = end

    def _seen(
        self, inputs: LayerInputs, tokens: Ints, rough: tuple[torch.Tensor, Ints] | None
    ) -> Sequence[torch.Tensor]:
        """Of each key/value group, [d_model, d_head] float64 Σ u_t·x(t)·W_V over all source tokens t."""
        W_V = inputs.heads.W_V
        if rough is None:
            correlation = self._correlate(inputs.states, tokens)
            return [correlation @ each.double() for each in W_V]
        # Most of these values are rough, so float32 sums are exact enough.
        values, ids = rough[0].clone(), rough[1]
        values[np.searchsorted(ids, tokens)] = inputs.states @ all_groups(W_V).float()
        with self._lock:
            if self._rows_of is None or self._rows_of[0] is not ids:
                self._rows_of = ids, self.vocabulary.float32(self.vocabulary.columns(ids))
            U = self._rows_of[1]
        return torch.split((U.T @ values).double(), inputs.dims.d_head, dim=1)

    def _correlate(self, states: torch.Tensor, tokens: Ints) -> torch.Tensor:
        """[d_model, d_model] float64 Σ u_t·x(t) over source tokens t; layers that share states share it."""
        # With `maps` the first layer has states of its own, and may be in work beside another: two are kept.
        with self._lock:
            for seen, correlation in self._correlations:
                if seen is states:
                    return correlation
            self._correlations.append((states, self._correlation_of(states, tokens)))
            return self._correlations[-1][1]

    def _correlation_of(self, states: torch.Tensor, tokens: Ints) -> torch.Tensor:
        columns = self.vocabulary.columns(tokens)
        total = torch.zeros((states.shape[1], states.shape[1]), dtype=torch.float64)
        for start in range(0, len(columns), ROWS):
            part = slice(start, start + ROWS)
            total += self.vocabulary.rows[columns[part]].double().T @ states[part].double()
        return total


def all_groups(W_V: torch.Tensor) -> torch.Tensor:
    """[d_model, n_kv_heads · d_head] W_V of all key/value groups, side by side."""
    return W_V.transpose(0, 1).flatten(1)


def open_places(values: torch.Tensor, error: float, n: int) -> torch.Tensor:
    """Places that hold the n largest of some numbers known up to an error; minus infinity never counts.

    Args:
        values: [m] approximate numbers.
        error: Bound of what each may be off by.
        n: How many.
    """
    least = torch.topk(values, min(n, len(values))).values[-1] - 2 * error
    places = torch.nonzero(values >= least).squeeze(1)
    return places[torch.isfinite(values[places])]


def top_targets(rows: torch.Tensor, vocabulary: Vocabulary, n: int) -> tuple[Ints, Ints]:
    """The n tokens that each row promotes most, and the n that it suppresses most.

    Bounds with a proven error, those of the engine, propose tokens; float64 decides.

    Args:
        rows: [r, d_model] float64 rows ready for U.
        vocabulary: The competing rows of U.
        n: How many; at most the size of the vocabulary.

    Returns:
        Two [r, n] of token ids, the strongest first, equal logits by token id.
    """
    n = min(n, len(vocabulary))
    out = np.empty((2, len(rows), n), dtype=np.int64)
    if not len(rows):
        return out[0], out[1]
    unit = torch.nn.functional.normalize(rows, dim=1)
    bounds = Bounded(whole(vocabulary), unit)
    index = np.arange(len(unit))
    error = bounds.most_error(index, 0, len(vocabulary)).double()[:, None]
    kept = _kept(bounds, index, len(vocabulary), max(KEPT, 2 * n))
    for at, (signed, found) in enumerate(kept):
        off = signed.abs() * bounds.factor.rounding + error
        above, below = signed + off, signed - off
        row, place = torch.nonzero(above >= below[:, n - 1 : n], as_tuple=True)
        exact = torch.full_like(above, -torch.inf)
        exact[row, place] = (1 - 2 * at) * torch.from_numpy(
            single_logits(unit, row.numpy(), vocabulary, found[row, place].numpy(), torch.float64)
        )
        # Columns in ascending order, so that a stable sort leaves equal logits by token id.
        columns, ascending = found.sort(dim=1)
        exact = exact.gather(1, ascending)
        order = torch.argsort(exact, dim=1, descending=True, stable=True)[:, :n]
        out[at] = vocabulary.token_ids[columns.gather(1, order).numpy()]
        if columns.shape[1] < len(vocabulary):
            open_ = exact.gather(1, order[:, -1:]) <= above[:, -1:]
            for line in torch.nonzero(open_[:, 0])[:, 0].tolist():
                out[at, line] = _of_all(unit[line], vocabulary, n, 1 - 2 * at)
    return out[0], out[1]


def _kept(bounds: Bounded, index: Ints, n_columns: int, n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The n largest numbers near logits, [r, n], and their columns, the largest first; then those of the
    negated ones."""
    nothing = torch.empty((len(index), 0)), torch.empty((len(index), 0), dtype=torch.int64)
    kept = [nothing, nothing]
    for start in range(0, n_columns, COLUMNS):
        near = bounds.near(index, start, min(start + COLUMNS, n_columns)).cpu()
        for at, (values, columns) in enumerate(kept):
            more, found = _largest(near if at == 0 else -near, min(n, near.shape[1]))
            both = torch.cat([values, more], dim=1)
            best, order = torch.topk(both, min(n, both.shape[1]), dim=1)
            kept[at] = best, torch.cat([columns, found + start], dim=1).gather(1, order)
    return [(values.double(), columns) for values, columns in kept]


def _largest(values: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The n largest values of each row [r, m], n ≤ m, and a few more; as float32, and their columns.

    Minus infinity fills rows that have fewer than others. Partitioning as ``topk`` does takes three times as
    long.
    """
    least = kth(largest_of_groups(values, GROUPS * n), n)
    row, column = where_at_least(values, least)
    there = some_of(values.view(-1), row * values.shape[1] + column).float().numpy()
    sides = (side_by_side(row, there, len(values)), side_by_side(row, column, len(values), 0))
    return torch.from_numpy(sides[0]), torch.from_numpy(sides[1])


def _of_all(row: torch.Tensor, vocabulary: Vocabulary, n: int, sign: int) -> Ints:
    """[n] the tokens of largest signed logit of one row, from every column in float64."""
    exact = torch.cat([part.double() @ row for part in torch.split(vocabulary.rows, COLUMNS)])
    order = torch.argsort(sign * exact, descending=True, stable=True)[:n]
    tokens: Ints = vocabulary.token_ids[order.numpy()]
    return tokens


def effective_rank(singular_values: Floats) -> float:
    """exp(−Σ p ln p) with p = s / Σ s: r for r equal singular values; NaN for none.

    O. Roy and M. Vetterli, *The effective rank: A measure of effective dimensionality*, EUSIPCO 2007.
    """
    total = singular_values.sum()
    if not total > 0:
        return float("nan")
    p = singular_values[singular_values > 0] / total
    return float(np.exp(-(p * np.log(p)).sum()))


def copying(small: torch.Tensor) -> float:
    """Σ λ / Σ |λ| of the eigenvalues of a square matrix: 1 if all are positive, −1 if all are negative.

    Args:
        small: [d_head, d_head] float64 W_O·U·X·W_V, which has the eigenvalues, but for zeros, of the map
            X·W_V·W_O·U from tokens to tokens (N. Elhage and others, *A Mathematical Framework for Transformer
            Circuits*, 2021, "Detecting copying behavior"). NaN for a matrix of zeros.
    """
    eigenvalues = torch.linalg.eigvals(small)
    total = float(eigenvalues.abs().sum())
    return float(eigenvalues.real.sum()) / total if total > 0 else float("nan")


def _lengths(rows: torch.Tensor) -> torch.Tensor:
    lengths: torch.Tensor = torch.linalg.vector_norm(rows, dim=1)
    return lengths
