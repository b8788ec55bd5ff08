"""The largest singular value of a matrix that has changed a little, from its leading singular vectors.

A block of p orthonormal vectors that spanned the leading singular subspace at the last record, and q random
ones, is multiplied by `AᵀA` twice: `X`, and `P`, the part of `AᵀA X` that is orthogonal to X. The Ritz values
of their span (Rayleigh & Ritz; Parlett, The Symmetric Eigenvalue Problem, 1998, chapter 11) are θ₁² ≥ θ₂² ≥ …,
their residuals `r_i = AᵀA v_i − θ_i² v_i`. Four products with a narrow block, always as many.

What the residuals say. In the basis of the first j Ritz vectors and their complement, `AᵀA` is
`[[Θ, Rᵀ], [R, C]]`; by the Schur complement its largest eigenvalue exceeds θ₁² by at most
`‖R_j‖² / (θ₁² − λ)`, where λ bounds the complement's. For λ stands `θ_{j+1}² + ‖r_{j+1}‖`, the most that is
known of the complement; j is chosen for the smallest bound, so that near-twins within the block do no harm.

What they cannot say, as in `lanczos`: whether something in the complement exceeds what the block has seen
of it. A direction that grows shows in the block long before it leads; one that overtakes between two
records, orthogonal to all that lead, is left to the random vectors, and to the checks of `norms`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from zanalysis.analyzers.shared_products import block_times, block_times_adjoint

__all__ = ["FRESH", "KEPT", "Refined", "bounded", "orthonormal", "orthonormal_to", "refined"]

KEPT = 6
"""How many leading vectors are kept from record to record."""

ROUNDING = 1e-6

FRESH = 2
"""How many random ones join them."""


class Refined(NamedTuple):
    """What is known after the refinement.

    Attributes:
        square: θ₁² ≤ σ₁² (up to rounding), float64.
        error: the bound on `(σ₁² − θ₁²) / θ₁²`; infinite where nothing is bounded.
        vectors: the leading Ritz vectors, `[KEPT, n]`.
        share: how much of the first lies in the span of those it started from, squared.
    """

    square: float
    error: float
    vectors: Tensor
    share: float


def refined(A: Tensor, vectors: Tensor, seed: int) -> Refined:
    """Refine the leading right singular vectors.

    Args:
        A: `[m, n]`, float32, m ≥ n ≥ 4 · (KEPT + FRESH), entries near 1 enough to be squared.
        vectors: `[KEPT, n]`, nearly orthonormal: those of a matrix near A.
        seed: of the random ones, another at each record.

    Returns:
        What is known of A.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2 * FRESH + len(vectors), A.shape[-1], generator=generator).to(vectors)
    X = orthonormal(torch.cat([vectors, noise[:FRESH]]))
    image = _through(A, X)
    P = orthonormal_to(X, image, noise[FRESH:])
    basis, images = torch.cat([X, P]), torch.cat([image, _through(A, P)])
    projected = (basis @ images.mT).double()
    squares, mixing = torch.linalg.eigh((projected + projected.mT) / 2)
    squares, mixing = squares.flip(-1)[:KEPT], mixing.mT.flip(0)[:KEPT].to(basis)
    ritz = mixing @ basis
    residuals = torch.linalg.vector_norm(mixing @ images - squares.to(basis)[:, None] * ritz, dim=-1)
    share = float(mixing[0, : len(vectors)].square().sum())
    return Refined(*bounded(squares.tolist(), residuals.tolist()), ritz, share)


def _through(A: Tensor, X: Tensor) -> Tensor:
    return block_times_adjoint(A, block_times(A, X))


def orthonormal(rows: Tensor) -> Tensor:
    """Return orthonormal rows that span the same space.

    Args:
        rows: `[..., k, n]`, k ≤ n.

    Returns:
        `[..., k, n]`.
    """
    basis: Tensor = torch.linalg.qr(rows.mT).Q.mT
    return basis


def orthonormal_to(Q: Tensor, rows: Tensor, noise: Tensor) -> Tensor:
    """Return orthonormal rows, orthogonal to others, that with them span the same space.

    Args:
        Q: `[..., j, n]`, orthonormal.
        rows: `[..., k, n]`, j + k ≤ n.
        noise: standard normal, `[..., k, n]`: takes the place of what has no direction of its own.

    Returns:
        `[..., k, n]`.
    """
    # Where the space is exhausted, what is left of the rows is rounding within the span of Q: random rows of
    # that size take its place, and all is made a basis before it is projected once more.
    size = torch.linalg.vector_norm(rows, dim=-1).amax(-1)[..., None, None] * ROUNDING
    rows = rows - (rows @ Q.mT) @ Q + noise * (size / noise.shape[-1] ** 0.5)
    rest = orthonormal(rows - (rows @ Q.mT) @ Q)
    return orthonormal(rest - (rest @ Q.mT) @ Q)


def bounded(squares: list[float], residuals: list[float]) -> tuple[float, float]:
    """Bound the error of the largest Ritz value.

    Args:
        squares: the leading Ritz values θ_i², descending.
        residuals: the norms of their residuals.

    Returns:
        θ₁², and the bound on `(σ₁² − θ₁²) / θ₁²`.

    Example:
        >>> bounded([4.0, 1.0], [0.3, 0.0])
        (4.0, 0.0075)
    """
    top, best, sum_of_squares = squares[0], float("inf"), 0.0
    for j in range(1, len(squares)):
        sum_of_squares += residuals[j - 1] ** 2
        gap = top - squares[j] - residuals[j]
        if gap > 0:
            best = min(best, sum_of_squares / gap)
    return top, best / top if top > 0 else float("inf")
