"""All singular values of one matrix, by the cheapest way that keeps every digit asked for.

The eigenvalues of the Gram matrix of the shorter side are the squares of the singular values. Formed in
float64, where the squares of float32 numbers are exact, they are right to `ROUNDING · long · eps · σ₁²`
(as in `inertia`), so that σ_i is right to half of that over `σ_i²`, relative: 4e-12 · (σ₁/σ_i)² for a
side of 4,608. Where that is at most `ERROR` for the smallest, nothing that is wanted is lost by the
square. Else, and for float64, the triangular factor of a QR decomposition has the same singular values,
without any square. Measured for 512×4608, one thread: 36 ms, and 83, against 400 of `svdvals` alone.
"""

import torch
from torch import Tensor

from zanalysis.analyzers.inertia import EPS, ROUNDING

__all__ = ["all_values", "values_from_gram"]

ASPECT = 1.5
"""How many times longer than the other a side must be: square random matrices have small σ_min."""

ERROR = 1e-9
"""Bound on the relative error of every singular value, where the house allows 1e-6."""


def all_values(A: Tensor, coarse: bool) -> Tensor:
    """Return the singular values of one matrix.

    Args:
        A: `[m, n]`, float64, finite.
        coarse: whether its entries are no finer than float32.

    Returns:
        float64 `[min(m, n)]`, descending.

    Example:
        >>> all_values(torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]], dtype=torch.float64), True)
        tensor([4., 3.], dtype=torch.float64)
    """
    short, long = sorted(A.shape)
    if not short or long < ASPECT * short:
        whole: Tensor = torch.linalg.svdvals(A)
        return whole
    tall = A if A.shape[0] >= A.shape[1] else A.mT
    values = _by_gram(tall) if coarse else None
    if values is None:
        values = torch.linalg.svdvals(torch.linalg.qr(tall, mode="r")[1])
    return values


def _by_gram(tall: Tensor) -> Tensor | None:
    # Entries that come from float32 can be squared in float64 whatever their scale.
    return values_from_gram(_gram(tall), tall.shape[0])


def values_from_gram(gram: Tensor, long: int) -> Tensor | None:
    """Return the singular values of a matrix from the Gram matrix of its shorter side.

    Args:
        gram: `[n, n]`, float64.
        long: the length of the longer side, over which it was summed.

    Returns:
        float64 `[n]`, descending; None where one of them would be off by more than `ERROR`, relative.

    Example:
        >>> values_from_gram(torch.diag(torch.tensor([9.0, 4.0], dtype=torch.float64)), 5)
        tensor([3., 2.], dtype=torch.float64)
    """
    squares: Tensor = torch.linalg.eigvalsh(gram).flip(0)
    if not len(squares):
        return squares
    largest, smallest = float(squares[0]), float(squares[-1])
    if smallest <= 0 or ROUNDING * long * EPS * largest > 2 * ERROR * smallest:
        return None
    values: Tensor = squares.sqrt()
    return values


def _gram(tall: Tensor) -> Tensor:
    if tall.device.type != "cpu":
        return tall.mT @ tall
    array = (
        tall.numpy()
    )  # numpy knows that a product with its own transpose needs half the work; torch does not
    return torch.from_numpy(array.T @ array)
