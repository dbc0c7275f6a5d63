"""Lists of a layer are those of the definition; planted heads are found; factors give what matrices give."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from headatlas.architectures import RightMap
from headatlas.atlas.salience import N_DIRECTIONS
from headatlas.mapping import bounds
from headatlas.mapping.inputs import LayerInputs
from headatlas.writing import operations as module
from headatlas.writing.operations import HeadFactors, effective_rank, open_places, top_targets
from tests.writing.layers import (
    D_HEAD,
    D_MODEL,
    FIRST,
    VOCAB,
    brute_force,
    layer,
    operations,
    random,
    vocabulary,
    whole_matrix,
)

IDS = np.arange(FIRST, VOCAB)
UNEMBED = random(VOCAB, D_MODEL, seed=1)
STATES = random(VOCAB - FIRST, D_MODEL, seed=2)


def a_layer(*, context: bool) -> LayerInputs:
    """Four random heads in two groups; with everything that a lens of a forward pass brings, or nothing."""
    W_V, W_O = random(2, D_MODEL, D_HEAD, seed=3), random(4, D_HEAD, D_MODEL, seed=4)
    if not context:
        return layer(STATES, W_V, W_O)
    gains = (1 + 0.3 * random(D_MODEL, seed=seed) for seed in (5, 6))
    return layer(
        STATES, W_V, W_O, b_V=random(2, D_HEAD, seed=7), right=RightMap(next(gains), True, next(gains))
    )


@pytest.mark.parametrize("context", [False, True])
def test_lists_equal_brute_force(context: bool) -> None:
    inputs = a_layer(context=context)
    found = operations(inputs, UNEMBED)
    for head, rows in enumerate(brute_force(inputs, UNEMBED, IDS, IDS)):
        assert found.source[head].tolist() == [row[0] for row in rows]
        np.testing.assert_allclose(found.gain[head], [row[1] for row in rows], rtol=1e-12)
        assert found.promoted[head].tolist() == [row[2] for row in rows]
        assert found.suppressed[head].tolist() == [row[3] for row in rows]


@pytest.mark.parametrize("context", [False, True])
def test_factors_give_what_the_matrix_gives(context: bool) -> None:
    inputs = a_layer(context=context)
    found = operations(inputs, UNEMBED)
    x, U = STATES.double(), UNEMBED.double()[FIRST:]
    squares = []
    for head in range(inputs.dims.n_heads):
        W = whole_matrix(inputs, head)
        factors = HeadFactors.of(inputs, head)
        gram = inputs.heads.W_O[head].double() @ inputs.heads.W_O[head].double().T
        torch.testing.assert_close(factors.L @ factors.L.T, gram, rtol=1e-12, atol=1e-12)
        left, values, right = torch.linalg.svd(W)
        np.testing.assert_allclose(found.singular_values[head], values[:D_HEAD], rtol=1e-10)
        squares.append(float((W**2).sum()))
        # What a direction reads and writes, up to the sign of both.
        for at in range(N_DIRECTIONS):
            reading = x @ left[:, at] / x.norm(dim=1)
            written = right[at] if inputs.right is None else inputs.right.apply(right[at])
            logits = U @ written
            if float(reading.max()) < float(-reading.min()):
                reading, logits = -reading, -logits
            for side, sign in enumerate((1, -1)):
                reads = np.argsort(-sign * reading.numpy(), kind="stable")[:5]
                writes = np.argsort(-sign * logits.numpy(), kind="stable")[:5]
                assert found.reads[head, at, side].tolist() == IDS[reads].tolist()
                assert found.writes[head, at, side].tolist() == IDS[writes].tolist()
        # Eigenvalues of the map from tokens to tokens, all of them.
        output = W if inputs.right is None else inputs.right.apply(W)
        eigenvalues = torch.linalg.eigvals(x @ output @ U.T)
        share = float(eigenvalues.real.sum() / eigenvalues.abs().sum())
        assert found.copying[head] == pytest.approx(share, abs=1e-6)
    np.testing.assert_allclose(found.squared_norm, squares, rtol=1e-10)


def test_a_planted_head_is_found_first() -> None:
    """States of three tokens lie in what the head reads, and all others are orthogonal to it."""
    basis = torch.linalg.qr(random(D_MODEL, D_MODEL, seed=9)).Q
    states = STATES @ basis[:, D_HEAD:] @ basis[:, D_HEAD:].T
    targets = {20: 120, 30: 130, 40: 140}
    for at, token in enumerate(targets):
        states[token - FIRST] = 7 * basis[:, at]
    W_O = torch.zeros(1, D_HEAD, D_MODEL)
    for at, target in enumerate(targets.values()):
        W_O[0, at] = (30 - 10 * at) * UNEMBED[target] / UNEMBED[target].norm()
    found = operations(layer(states, basis[None, :, :D_HEAD].contiguous(), W_O), UNEMBED)
    assert found.source[0, :3].tolist() == [20, 30, 40]
    np.testing.assert_allclose(found.gain[0, :3], [30, 20, 10], rtol=1e-5)
    assert found.gain[0, 3] < 1e-4
    assert found.promoted[0, :3, 0].tolist() == [120, 130, 140]
    assert [found.reads[0, at, 0, 0] for at in range(3)] == [20, 30, 40]


@pytest.mark.parametrize("sign", [1, -1])
def test_copying_and_anti_copying(sign: int) -> None:
    correlation = (UNEMBED[FIRST:].double().T @ STATES.double()).float()
    W_V = random(1, D_MODEL, D_HEAD, seed=3)
    W_O = sign * (W_V[0].T @ correlation.T)[None]
    found = operations(layer(STATES, W_V, W_O), UNEMBED)
    assert found.copying[0] == pytest.approx(sign, abs=1e-6)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_effective_rank(rank: int) -> None:
    Q = torch.linalg.qr(random(D_MODEL, 2 * rank, seed=5)).Q
    W_V, W_O = torch.zeros(1, D_MODEL, D_HEAD), torch.zeros(1, D_HEAD, D_MODEL)
    W_V[0, :, :rank], W_O[0, :rank] = Q[:, :rank], 2 * Q[:, rank:].T
    found = operations(layer(STATES, W_V, W_O), UNEMBED)
    assert found.effective_rank[0] == pytest.approx(rank, rel=1e-5)
    assert found.squared_norm[0] == pytest.approx(4 * rank, rel=1e-5)
    n = min(rank, N_DIRECTIONS)
    assert (found.reads[0, :n] >= 0).all() and (found.reads[0, n:] == -1).all()
    assert effective_rank(np.array([3.0, 0.0])) == 1 and np.isnan(effective_rank(np.zeros(2)))


def test_a_head_of_zeros_writes_nothing() -> None:
    found = operations(layer(STATES, random(1, D_MODEL, D_HEAD), torch.zeros(1, D_HEAD, D_MODEL)), UNEMBED)
    assert (found.source == -1).all() and (found.reads == -1).all() and np.isnan(found.copying).all()


def test_a_state_of_zeros_has_no_gain() -> None:
    states = STATES.clone()
    states[5] = 0
    inputs = layer(states, random(1, D_MODEL, D_HEAD), random(1, D_HEAD, D_MODEL), b_V=random(1, D_HEAD))
    found = operations(inputs, UNEMBED)
    assert 5 + FIRST not in found.source and np.isfinite(found.gain).all()


def test_float32_stays_within_its_error() -> None:
    for context in (False, True):
        inputs = a_layer(context=context)
        factors = HeadFactors.of(inputs, 1)
        values = STATES @ factors.W_V.float()
        output = values @ factors.L.float() + (factors.bias @ factors.L).float()
        lengths = STATES.norm(dim=1)
        off = (output.norm(dim=1) / lengths - factors.gains(STATES)).abs().max()
        assert 0 < float(off) <= factors.gain_error(float(lengths.min()))
        reading = values @ factors.reading.float() / lengths[:, None]
        assert (
            (reading - factors.readings(STATES)).abs().max(dim=0).values <= factors.reading_errors()
        ).all()


def test_an_error_leaves_places_open() -> None:
    values = torch.tensor([5.0, 4.0, 3.9, 1.0, -torch.inf])
    assert open_places(values, 0.0, 2).tolist() == [0, 1]
    assert open_places(values, 0.06, 2).tolist() == [0, 1, 2]
    assert open_places(values, 0.0, 9).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("rounded", [False, True])
def test_targets_are_those_of_float64_whatever_proposes(
    rounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few are kept, and rows of U lie close together: bounds leave much open, and all are computed."""
    monkeypatch.setattr(bounds, "bfloat16_pays", lambda _: rounded)
    rows, close = random(9, D_MODEL, seed=12).double(), UNEMBED.clone()
    close[50:110] = close[50] + 1e-4 * random(60, D_MODEL, seed=13)
    looked: list[int] = []

    def of_all(*arguments: Any) -> Any:
        looked.append(1)
        return every(*arguments)

    every = module._of_all
    monkeypatch.setattr(module, "KEPT", 10)
    monkeypatch.setattr(module, "_of_all", of_all)
    for unembed in (UNEMBED, close):
        found = top_targets(torch.cat([rows, unembed[50:51].double()]), vocabulary(unembed), 5)
        logits = torch.cat([rows, unembed[50:51].double()]) @ unembed[FIRST:].double().T
        for sign, mine in zip((1, -1), found, strict=True):
            expected = torch.argsort(sign * logits, dim=1, descending=True, stable=True)[:, :5] + FIRST
            assert mine.tolist() == expected.tolist()
    assert bool(looked) == rounded and len(looked) < 40


def test_equal_logits_go_by_token() -> None:
    """More copies of a row of U than are kept: all columns are computed, and ids decide."""
    unembed = UNEMBED.clone()
    unembed[60:120] = unembed[60]
    promoted, suppressed = top_targets(unembed[60][None].double(), vocabulary(unembed), 5)
    assert promoted[0].tolist() == [60, 61, 62, 63, 64]
    assert suppressed[0].tolist() == torch.argsort(unembed @ unembed[60])[:5].tolist()


def test_parts_of_the_vocabulary_do_not_matter() -> None:
    rows = random(6, D_MODEL, seed=11).double()
    whole = top_targets(rows, vocabulary(UNEMBED), 5)
    with patch.object(module, "COLUMNS", 17), patch.object(module, "KEPT", 6):
        parts = top_targets(rows, vocabulary(UNEMBED), 5)
    np.testing.assert_array_equal(whole[0], parts[0])
    np.testing.assert_array_equal(whole[1], parts[1])


class Products(TorchFunctionMode):
    """Counts products that begin with some tensor."""

    def __init__(self, first: torch.Tensor) -> None:
        super().__init__()
        self.first, self.n = first, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += func is torch.Tensor.matmul and args[0] is self.first
        return func(*args, **(kwargs or {}))


def test_heads_of_a_group_share_its_product() -> None:
    inputs = a_layer(context=False)
    factors = [HeadFactors.of(inputs, head) for head in range(4)]
    made = module.Operations(vocabulary(UNEMBED))
    with Products(inputs.states) as counted:
        assert len(list(made._screened(inputs, factors))) == 4
    assert counted.n == 2
