"""Counts without a singular value decomposition, against the decomposition; and when they must refuse."""

import numpy as np
import pytest
import torch

from zanalysis.analyzers import inertia, residual
from zanalysis.analyzers.inertia import count_by_inertia, count_by_range, gram_decides
from zanalysis.analyzers.spectrum import rank, rank_margin


def with_spectrum(values, m, n, seed=0):
    rng = np.random.default_rng(seed)
    values = np.asarray(values, dtype=np.float64)
    left = np.linalg.qr(rng.standard_normal((m, len(values))))[0]
    right = np.linalg.qr(rng.standard_normal((n, len(values))))[0]
    return torch.from_numpy(left * values @ right.T)


@pytest.mark.parametrize("shape", [(60, 60), (40, 90), (90, 40)])
@pytest.mark.parametrize("tau", [0.2503, 0.5, 0.003, 0.9999, 1.5e-5])
def test_count_and_margin_are_the_decompositions(shape, tau):
    values = np.r_[np.linspace(1, 0.01, 30), 10 ** np.linspace(-3, -5, 10)]
    A = with_spectrum(values, *shape)
    exact = np.linalg.svd(A.numpy(), compute_uv=False)
    count = count_by_inertia(A, tau, float(exact[0]), True)
    assert count.rank == (exact > tau).sum()
    assert count.margin == pytest.approx(abs(exact - tau).min(), rel=1e-6)


@pytest.mark.parametrize("relative", [1e-3, -1e-3, 1e-5, -1e-5])
def test_a_near_value_on_either_side_is_the_nearest(relative):
    tau = 0.01
    A = with_spectrum([1, 0.5, 0.3, tau * (1 + relative), 1e-3], 30, 40)
    count = count_by_inertia(A, tau, 1.0, True)
    assert count.rank == 3 + (relative > 0)
    assert count.margin == pytest.approx(tau * abs(relative), rel=1e-4)


@pytest.mark.parametrize("relative", [0, 1e-9, -1e-9, 1e-7, -1e-7])
def test_a_value_within_rounding_of_the_tolerance_is_refused(relative):
    tau = 0.01
    A = with_spectrum([1, 0.5, 0.3, tau * (1 + relative), 1e-3], 30, 40)
    assert count_by_inertia(A, tau, 1.0, False) is None


def test_the_nearest_in_sigma_is_not_the_nearest_in_its_square():
    A = torch.diag(torch.tensor([5.0, 1.95, 0.02], dtype=torch.float64))
    # |σ² − τ²| is 2.80 above and 1.00 below; |σ − τ| is 0.95 above and 0.98 below.
    count = count_by_inertia(A, 1.0, 5.0, True)
    assert count.margin == pytest.approx(0.95)


def test_a_small_tolerance_goes_to_the_decomposition():
    assert gram_decides(2048, 2048 * 2.0**-23, 1.0)
    assert not gram_decides(2048, 2048 * 2.0**-52, 1.0)
    # FACTS of the method: in float64 the squares lose what this spectrum has below 1e-8.
    values = 10 ** np.linspace(0, -12, 150)
    A = with_spectrum(values, 150, 150)
    exact = np.linalg.svd(A.numpy(), compute_uv=False)
    tau = 150 * np.finfo(np.float64).eps * exact[0]
    assert float(rank(A)) == (exact > tau).sum() == 150


def test_range_finder_counts_and_refuses():
    A = with_spectrum([8, 7, 6, 5, 1e-9, 1e-9], 200, 300)
    exact = np.linalg.svd(A.numpy(), compute_uv=False)
    frobenius = float(A.norm())
    assert count_by_range(A, 1e-2, 8.0, frobenius, False).rank == 4
    # a value between √(τ² − ρ²) and τ, a rank that is not small, and a remainder above τ
    assert count_by_range(A, float(exact[3]) * (1 + 1e-9), 8.0, frobenius, False) is None
    full = torch.randn(200, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert count_by_range(full, 1e-3, 28.0, float(full.norm()), False) is None
    tail = with_spectrum(np.r_[8.0, 7.0, np.full(198, 0.9e-2)], 200, 200)
    assert count_by_range(tail, 1e-2, 8.0, float(tail.norm()), False) is None


@pytest.mark.parametrize("kind", ["full", "half", "few", "repeated rows", "block"])
def test_the_public_rank_takes_the_fast_way_and_agrees(kind, monkeypatch):
    generator = torch.Generator().manual_seed(5)
    W = torch.randn(200, 180, generator=generator)
    if kind == "half":
        W = W[:, :90] @ torch.randn(90, 180, generator=generator)
    elif kind == "few":
        W = W[:, :5] @ torch.randn(5, 180, generator=generator)
    elif kind == "repeated rows":
        W = W[torch.arange(200) % 50]
    elif kind == "block":
        W[:, 150:] = 0
        W[170:] = 0
    exact = np.linalg.svd(W.double().numpy(), compute_uv=False)
    tau = 200 * np.finfo(np.float32).eps * exact[0]

    def refuse(*_):
        raise AssertionError("a decomposition was computed")

    monkeypatch.setattr(torch.linalg, "svdvals", refuse)
    assert float(rank(W)) == (exact > tau).sum()


@pytest.mark.parametrize("seed", range(3))
def test_the_public_margin_is_right(seed):
    W = torch.randn(220, 180, generator=torch.Generator().manual_seed(seed))
    exact = np.linalg.svd(W.double().numpy(), compute_uv=False)
    tau = 220 * np.finfo(np.float32).eps * exact[0]
    assert float(rank_margin(W)) == pytest.approx(abs(exact - tau).min(), rel=1e-6)


def test_the_doubt_is_larger_than_any_error_seen():
    """The Gram matrix of a float32 matrix is off by far less than the certificate allows."""
    for n in (64, 256):
        A = torch.randn(n, 2 * n, generator=torch.Generator().manual_seed(n)).double()
        exact = np.linalg.svd(A.numpy(), compute_uv=False)
        square = np.sort(np.linalg.eigvalsh(A.numpy() @ A.numpy().T))[::-1]
        error = abs(square - exact**2).max()
        assert error < 0.1 * inertia.ROUNDING * 2 * n * inertia.EPS * exact[0] ** 2


def test_small_matrices_take_the_batched_decomposition():
    assert residual.Residual.of(torch.zeros(64, residual.SMALL, 4096)).small
