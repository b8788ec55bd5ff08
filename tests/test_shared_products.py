"""Products split over the cores are the plain products, whatever the layout."""

import pytest
import torch

from zanalysis.analyzers import shared_products
from zanalysis.analyzers.shared_products import (
    block_times,
    block_times_adjoint,
    lower_gram,
    times,
    times_adjoint,
)


@pytest.fixture
def shared(monkeypatch):
    """Split every product that can be split, on any machine, and count those that are."""
    calls = []
    bmm = torch.bmm
    monkeypatch.setattr(shared_products, "_FEWEST", 1)
    monkeypatch.setattr(shared_products, "_FEWEST_OF_BLOCK", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "bmm", lambda *given: calls.append(1) or bmm(*given))
    return calls


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("rows", "columns", "split"), [(8, 12, True), (4, 3, True), (7, 8, False), (6, 10, False)]
)
def test_products_are_the_plain_ones(shared, rows, columns, split, transposed):
    generator = torch.Generator().manual_seed(0)
    stored = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    A = stored.mT if transposed else stored
    v, u = (torch.randn(size, generator=generator, dtype=torch.float64) for size in (A.shape[1], A.shape[0]))
    expected = (A * v).sum(1), (A * u[:, None]).sum(0)
    torch.testing.assert_close(times(A, v), expected[0], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(times_adjoint(A, u), expected[1], rtol=1e-13, atol=1e-13)
    assert bool(shared) == split


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(8, 12), (7, 8), (6, 10)])
def test_products_with_a_block_are_the_plain_ones(shared, rows, columns, transposed):
    generator = torch.Generator().manual_seed(0)
    stored = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    A = stored.mT if transposed else stored
    X, Y = (
        torch.randn(3, size, generator=generator, dtype=torch.float64) for size in (A.shape[1], A.shape[0])
    )
    expected = (X[:, None, :] * A).sum(-1), (Y[:, :, None] * A).sum(1)
    torch.testing.assert_close(block_times(A, X), expected[0], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(block_times_adjoint(A, Y), expected[1], rtol=1e-13, atol=1e-13)
    assert bool(shared) == (rows % 4 == 0)


def test_a_matrix_in_neither_layout_is_multiplied_as_it_is(shared):
    A = torch.arange(64.0).view(8, 8)[::2, ::2]
    assert torch.equal(times(A, torch.ones(4)), A.sum(1))
    assert torch.equal(times_adjoint(A, torch.ones(4)), A.sum(0))
    assert not shared


@pytest.mark.parametrize("rows", [1, 128, 300])
def test_lower_gram_is_the_lower_triangle(rows):
    A = torch.randn(rows, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(lower_gram(A).tril(), (A @ A.mT).tril(), rtol=1e-13, atol=1e-13)
