"""The largest singular value of a matrix that has changed a little, from its leading singular vectors.

The block Krylov space of `AᵀA` is built on p orthonormal vectors that spanned the leading singular subspace at
the last record, and q random ones: two products with a narrow block for each block of it, one block more
while the bound is not reached. The Ritz values of the space (Rayleigh & Ritz; Parlett, The Symmetric
Eigenvalue Problem, 1998, chapter 11) are θ₁² ≥ θ₂² ≥ …, their residuals `r_i = AᵀA v_i − θ_i² v_i`.

What the residuals say. In the basis of the first j Ritz vectors and their complement, `AᵀA` is
`[[Θ, Rᵀ], [R, C]]`; by the Schur complement its largest eigenvalue is at most that of the j×j matrix
`Θ + RᵀR / (θ₁² − λ)`, where λ bounds the complement's. For λ stands `θ_{j+1}² + ‖r_{j+1}‖`, the most that is
known of the complement; j is chosen for the smallest bound, so that near-twins within the block do no harm.

What they cannot say, as in `lanczos`: whether something in the complement exceeds what the block has seen
of it. A direction that grows shows in the block long before it leads; one that overtakes between two
records, orthogonal to all that lead, is left to the random vectors, and to the checks of `norms`.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zanalysis.analyzers.shared_products import block_times, block_times_adjoint

__all__ = ["FRESH", "KEPT", "Refined", "bounded", "orthonormal", "orthonormal_to", "refined"]

FloatArray = npt.NDArray[np.float64]

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


def refined(A: Tensor, vectors: Tensor, seed: int, enough: float, most: int = 1) -> Refined:
    """Refine the leading right singular vectors.

    Args:
        A: `[m, n]`, float32, m ≥ n ≥ (1 + most) · (KEPT + FRESH), entries near 1 enough to be squared.
        vectors: `[KEPT, n]`, nearly orthonormal: those of a matrix near A.
        seed: of the random ones, another at each record.
        enough: the bound on the relative error of σ₁² that is asked for.
        most: how many blocks may follow the first to get there.

    Returns:
        What is known of A.
    """
    generator = torch.Generator().manual_seed(seed)
    fresh = torch.randn(FRESH, A.shape[-1], generator=generator).to(vectors)
    basis = orthonormal(torch.cat([vectors, fresh]))
    newest = images = _through(A, basis)
    found = None
    for _ in range(most):
        block = orthonormal_to(basis, newest, _noise(len(newest), A.shape[-1]).to(vectors))
        newest = _through(A, block)
        basis, images = torch.cat([basis, block]), torch.cat([images, newest])
        found = _extracted(basis, images, len(vectors))
        if found.error <= enough:
            break
    assert found is not None
    return found


def _extracted(basis: Tensor, images: Tensor, known: int) -> Refined:
    projected = (basis @ images.mT).double()
    squares, mixing = torch.linalg.eigh((projected + projected.mT) / 2)
    squares, mixing = squares.flip(-1)[:KEPT].cpu(), mixing.mT.flip(0)[:KEPT].to(basis)
    ritz = mixing @ basis
    residuals = (mixing @ images - squares.to(basis)[:, None] * ritz).double()
    share = float(mixing[0, :known].square().sum())
    return Refined(*bounded(squares.numpy(), (residuals @ residuals.mT).cpu().numpy()), ritz, share)


@lru_cache(maxsize=64)
def _noise(rows: int, columns: int) -> Tensor:
    # Stands for what has no direction of its own: any will do, and the same each time.
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(32_452_843))


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


def bounded(squares: FloatArray, gram: FloatArray) -> tuple[float, float]:
    """Bound the error of the largest Ritz value.

    Args:
        squares: the leading Ritz values θ_i², descending, `[p]`.
        gram: the inner products of their residuals, `[p, p]`.

    Returns:
        θ₁², and the bound on `(σ₁² − θ₁²) / θ₁²`; infinite where nothing is bounded.

    Example:
        >>> bounded(np.array([4.0, 1.0]), np.diag([0.75, 0.0]))
        (4.0, 0.0625)
    """
    top, best = float(squares[0]), float("inf")
    norms = np.sqrt(np.maximum(np.diagonal(gram), 0))
    for j in range(1, len(squares)):
        gap = top - squares[j] - norms[j]
        if gap > 0:
            raised = np.diag(squares[:j]) + gram[:j, :j] / gap
            best = min(best, float(np.linalg.eigvalsh(raised)[-1]) - top)
    return top, max(best, 0.0) / top if top > 0 else float("inf")
