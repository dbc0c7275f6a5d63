"""Errors are no larger than claimed, also where all roundings go the same way, and small in wide models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headatlas.mapping import bounds
from headatlas.mapping.bounds import Bounded, RightFactor, head_error, in_head, projected, whole
from headatlas.mapping.vocabulary import Vocabulary, dot_error

SMALL_PART = 16


@pytest.fixture(params=["float32", "bfloat16"])
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(bounds, "bfloat16_pays", lambda _: request.param == "bfloat16")
    return str(request.param)


def vocabulary_of(rows: torch.Tensor) -> Vocabulary:
    return Vocabulary.competing(rows, np.ones(len(rows), dtype=bool))


def random_basis(d_head: int, d_model: int, generator: torch.Generator) -> torch.Tensor:
    drawn = torch.randn(d_model, d_head, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.T


def assert_near(bounded: Bounded, exact: torch.Tensor) -> None:
    """No exact logit [L, V] is farther off than is said of it, nor than is said of all of a row."""
    lines, tokens = exact.shape
    near = bounded.near(np.arange(lines), 0, tokens).to(torch.float32)
    row, token = (each.ravel() for each in np.indices(exact.shape))
    error = bounded.error(row, token).reshape(exact.shape)
    assert (error <= bounded.most_error(np.arange(lines), 0, tokens)[:, None]).all()
    assert ((near - exact).abs() <= error + bounded.factor.rounding * near.abs()).all()


@pytest.mark.parametrize("exact_in_bfloat16", [True, False])
@pytest.mark.parametrize("part", [SMALL_PART, 1024])
def test_logits_are_as_near_as_claimed(
    arithmetic: str, part: int, exact_in_bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through U and through a head's output space, however the sums are cut; sums that grow, too."""
    monkeypatch.setattr(bounds, "SUMMED", part)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 1500, generator=generator)
    rows[100:200].abs_()
    vocabulary = vocabulary_of(rows.to(torch.bfloat16).to(torch.float32) if exact_in_bfloat16 else rows)
    basis = random_basis(12, 1500, generator)
    mine = torch.nn.functional.normalize(torch.randn(40, 12, generator=generator, dtype=torch.float64))
    mine[0] = 0
    outputs = mine @ basis
    exact = outputs @ vocabulary.rows.to(torch.float64).T
    assert_near(Bounded(whole(vocabulary), outputs), exact)
    assert_near(Bounded(in_head(basis, vocabulary), mine), exact)


def one_dimension(parts: list[float]) -> tuple[RightFactor, float, float]:
    """A head that writes one direction, and a token whose product with it has these parts, exactly.

    Returns:
        Its columns, the stored product, and the exact one.
    """
    basis = torch.full((1, SMALL_PART * len(parts)), (SMALL_PART * len(parts)) ** -0.5, dtype=torch.float64)
    row = torch.zeros(1, basis.shape[1])
    for at, value in enumerate(parts):
        # Two bfloat16 numbers hold it where one does not.
        high = torch.tensor(value).to(torch.bfloat16).to(torch.float32)
        row[0, SMALL_PART * at] = high / basis[0, 0]
        row[0, SMALL_PART * at + 1] = (value - high) / basis[0, 0]
    vocabulary = vocabulary_of(row)
    assert torch.equal(vocabulary.rows.to(torch.float32), row), "a case of bfloat16"
    columns = in_head(basis, vocabulary)
    stored = float(columns.chunk(0, 1)[0, 0])
    return columns, stored, float(basis @ row[0].to(torch.float64))


HALF = 127 / 128 * 2.0**-8
"""Nearly half the distance of 1 to the next bfloat16 number: rounding takes it all."""


@pytest.mark.parametrize(
    ("parts", "lost"),
    [([1 + HALF] * 4, 4 * HALF), ([1 + HALF, HALF, 0, 0], 2 * HALF), ([1, 2**-9, 2**-9, -(2**-16)], HALF)],
    ids=["every part is rounded", "a part and the sum are rounded", "the sum is rounded"],
)
def test_roundings_that_add_up_are_allowed_for(
    parts: list[float], lost: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "bfloat16_pays", lambda _: True)
    monkeypatch.setattr(bounds, "SUMMED", SMALL_PART)
    columns, stored, exact = one_dimension(parts)
    assert 0.98 * lost <= exact - stored, "the case is as bad as it is meant to be"
    assert exact - stored <= float(columns.first[0]) <= 1.1 * lost + 2.0**-8 * 1.1 * sum(parts)


def test_a_row_along_what_rounding_took_from_the_basis_is_allowed_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounds, "bfloat16_pays", lambda _: True)
    basis = random_basis(4, 1024, torch.Generator().manual_seed(0))
    taken = basis - basis.to(torch.bfloat16).to(torch.float64)
    vocabulary = vocabulary_of(taken.to(torch.bfloat16).to(torch.float32))
    columns = in_head(basis, vocabulary)
    stored = columns.chunk(0, 4)[:, :4].to(torch.float64)
    rows = vocabulary.rows.to(torch.float64)
    error = torch.linalg.vector_norm(rows @ basis.T - stored, dim=1)
    worst = torch.linalg.vector_norm(rows, dim=1) * torch.linalg.matrix_norm(taken, ord=2)
    assert (error >= 0.8 * worst).all(), "the case is as bad as it is meant to be"
    assert (error <= columns.first).all()


def test_projections_in_parts_are_as_exact_as_they_say() -> None:
    """Sums of many positive numbers, whose roundings do not cancel as those of random signs do."""
    generator = torch.Generator().manual_seed(0)
    basis = random_basis(16, 5000, generator)
    basis = torch.nn.functional.normalize(basis.abs())
    rows = torch.rand(50, 5000, generator=generator)
    narrow = basis.to(torch.float32).T
    found = projected(rows, narrow).to(torch.float64)
    error = torch.linalg.vector_norm(found - rows.to(torch.float64) @ basis.T, dim=1)
    claimed = head_error(basis) * torch.linalg.vector_norm(rows.to(torch.float64), dim=1)
    assert (error > 0).all() and (error <= claimed).all()


def test_bounds_stay_narrow_in_wide_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 70B's width; logits are 0.011 lengths of a row of U there, of which one long sum takes half."""
    generator = torch.Generator().manual_seed(0)
    basis = random_basis(128, 8192, generator)
    vocabulary = vocabulary_of(torch.randn(64, 8192, generator=generator).to(torch.bfloat16))
    in_one_go = 128**0.5 * dot_error(8192)
    assert head_error(basis) < 0.2 * in_one_go
    monkeypatch.setattr(bounds, "bfloat16_pays", lambda _: True)
    columns = in_head(basis, vocabulary)
    columns.chunk(0, 64)
    assert (columns.first / vocabulary.norms).max() < 0.005 < in_one_go
