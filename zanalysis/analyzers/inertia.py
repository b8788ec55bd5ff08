"""Rank and margin without a singular value decomposition, with a certificate or not at all.

Two ways, each of which returns None where it cannot vouch for its count; the caller then takes the
float64 SVD.

*By inertia.* `G = A Aᵀ` of the shorter side is formed in float64, where the squares of float32 numbers
are exact, and `G − τ² I = L D Lᵀ` factored with Bunch-Kaufman pivoting. By Sylvester's law of inertia D
has as many positive eigenvalues as G has above τ² (Parlett, The Symmetric Eigenvalue Problem, 1998,
section 3.3). Both steps are backward stable: the count belongs to a matrix within
`ROUNDING · n · eps · σ₁²` of G, so it is G's if no eigenvalue lies that near to τ². The nearest ones on
either side are the extreme eigenvalues of `(G − τ² I)⁻¹`, found by Lanczos on the same factors.

*By a range finder* (Halko, Martinsson & Tropp, SIAM Review 53 (2011), section 4), where the numerical
rank is small: with orthonormal Q, `B = Qᵀ A` and `ρ = ‖(I − QQᵀ) A‖_F`, `AᵀA = BᵀB + RᵀR` with
`‖R‖ ≤ ρ`, so that by Weyl's inequality `σᵢ(B)² ≤ σᵢ(A)² ≤ σᵢ(B)² + ρ²`, and `σᵢ(A) ≤ ρ` for every i
beyond the rows of B. The count is certain if ρ is below τ and no σᵢ(B)² lies in `(τ² − ρ², τ²]`. As Q is
orthonormal, `ρ² = ‖A‖_F² − ‖B‖_F²`: what the subtraction can lose is added to it.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zanalysis.analyzers.shared_products import lower_gram

__all__ = ["Count", "count_by_inertia", "count_by_range", "count_from_gram", "gram_decides"]

EPS = torch.finfo(torch.float64).eps
ROUNDING = 4
"""How many n · eps · σ₁² the Gram matrix and its factors may be off; 0.1 was the most seen."""

TAU_ERROR = 2e-6
"""How far τ² itself may be off, relative: σ₁ is certified to less."""

MARGIN_ERROR = 1e-7
"""When the search for the nearest singular value stops, relative to the margin."""

NEGLIGIBLE = 1e-2
"""A singular value below this share of τ counts as zero in the margin."""

MOST_SOLVES = 40
SMALL_SHARE = 6
"""A range finder may have at most this fraction of the shorter side as its rank."""


class Count(NamedTuple):
    """A certified count of singular values, and the distance of the nearest from τ.

    Attributes:
        rank: how many lie above τ.
        margin: `min |σᵢ − τ|`, or None where it was not asked for.
    """

    rank: int
    margin: float | None


def gram_decides(size: int, tau: float, largest: float) -> bool:
    """Say whether a float64 Gram matrix can resolve singular values about τ at all.

    Args:
        size: the longer side of the matrix.
        tau: the tolerance.
        largest: σ₁.

    Returns:
        Whether τ² is at least a hundred times what rounding may add to σ².
    """
    return tau**2 > 100 * ROUNDING * size * EPS * largest**2


def count_by_inertia(
    A: Tensor, tau: float, largest: float, margin: bool, gram: Tensor | None = None
) -> Count | None:
    """Count the singular values above τ by the inertia of A Aᵀ − τ² I.

    Args:
        A: `[m, n]`, float64, finite, without zero rows and columns; entries between 1e-100 and 1e100.
        tau: the tolerance, for which `gram_decides`.
        largest: σ₁ of A.
        margin: whether the margin is wanted to `MARGIN_ERROR`, or only as far as it certifies the rank.
        gram: the lower triangle of the Gram matrix of its shorter side, if that is there.

    Returns:
        The count; None where a singular value is within rounding of τ.

    Example:
        >>> count_by_inertia(torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)), 1.5, 3.0, True)
        Count(rank=2, margin=0.5)
    """
    if A.shape[0] > A.shape[1]:
        A = A.mT
    doubt = ROUNDING * A.shape[1] * EPS * largest**2 + TAU_ERROR * tau**2
    if A.device.type != "cpu":
        return _count_on_device(A, tau, doubt)
    found = _count_of_gram(lower_gram(A) if gram is None else gram.clone(), tau, doubt, margin)
    if found is None:
        return None
    above, nearest, solve = found
    if not margin:
        return Count(above, None)
    # The Rayleigh quotient of A itself, not of A Aᵀ: no digits are lost to the square.
    # One more inverse iteration takes out of the vector what the large singular values would add.
    images = [_stretch(solve(vector), A) for vector in nearest.vectors]
    distances = [abs(image - tau) for image in images]
    if min(distances) == distances[-1] and nearest.below and images[-1] ** 2 < 1e4 * doubt:
        # Gram matrices do not tell such singular values apart, and which of them is largest.
        unresolved = math.sqrt(images[-1] ** 2 + doubt)
        return Count(above, distances[-1]) if unresolved < NEGLIGIBLE * tau else None
    return Count(above, min(distances))


def count_from_gram(gram: Tensor, long: int, tau: float, largest: float) -> int | None:
    """Count the singular values above τ of a matrix whose Gram matrix is at hand, and not the matrix.

    Args:
        gram: `[n, n]`, float64, of the shorter side, without zero rows; at least its lower triangle.
        long: the length of the longer side, over which it was summed.
        tau: the tolerance, for which `gram_decides`.
        largest: σ₁ of the matrix.

    Returns:
        The count; None where a singular value is within rounding of τ.

    Example:
        >>> count_from_gram(torch.diag(torch.tensor([9.0, 4.0, 1.0], dtype=torch.float64)), 3, 1.5, 3.0)
        2
    """
    doubt = ROUNDING * long * EPS * largest**2 + TAU_ERROR * tau**2
    if gram.device.type != "cpu":
        values = torch.linalg.eigvalsh(gram)
        return None if float((values - tau**2).abs().amin()) <= doubt else int((values > tau**2).sum())
    found = _count_of_gram(gram.tril(), tau, doubt, False)
    return None if found is None else found[0]


def _count_of_gram(
    shifted: Tensor, tau: float, doubt: float, margin: bool
) -> tuple[int, "_Nearest", Callable[[Any], Any]] | None:
    # Takes the Gram matrix over. How many lie above, what lies nearest, and the solver.
    size = shifted.shape[0]
    shifted.diagonal().sub_(tau**2)
    factors, pivots, info = torch.linalg.ldl_factor_ex(shifted)
    if int(info) != 0:
        return None
    above, below = _inertia(factors.numpy(), pivots.numpy())

    def solve(b: Any) -> Any:
        return torch.linalg.ldl_solve(factors, pivots, torch.from_numpy(b)[:, None])[:, 0].numpy()

    nearest = _nearest(solve, size, tau, (above > 0, below > 0), margin)
    if nearest is None or nearest.distance <= doubt:
        return None
    return above, nearest, solve


def _stretch(vector: Any, A: Tensor) -> float:
    v = torch.from_numpy(vector)
    return float((v @ A).norm() / v.norm())


def _inertia(factors: Any, pivots: Any) -> tuple[int, int]:
    # The positive and the negative eigenvalues of D. LAPACK marks the 2×2 blocks in the pivots,
    # and a 2×2 block of Bunch & Kaufman has one of each sign by construction.
    single = pivots > 0
    diagonal = np.diagonal(factors)[single]
    pairs = int((~single).sum()) // 2
    return int((diagonal > 0).sum()) + pairs, int((diagonal < 0).sum()) + pairs


class _Nearest(NamedTuple):
    distance: float
    vectors: list[Any]
    below: bool


def _nearest(
    solve: Callable[[Any], Any], size: int, tau: float, sides: tuple[bool, bool], precise: bool
) -> _Nearest | None:
    """Find the eigenvalues of G nearest to τ² on either side, by Lanczos on (G − τ² I)⁻¹.

    Args:
        solve: b ↦ (G − τ² I)⁻¹ b.
        size: of G.
        tau: the tolerance.
        sides: whether there are eigenvalues above, and below.
        precise: whether the nearest is wanted to `MARGIN_ERROR`.

    Returns:
        A lower bound of the distance in λ, the eigenvectors that may be nearest (below τ² last), and
        whether there is one below; None where Lanczos did not converge.
    """
    start = torch.randn(size, generator=torch.Generator().manual_seed(8_128), dtype=torch.float64).numpy()
    most = min(MOST_SOLVES, size)
    V = np.empty((most + 1, size))
    V[0] = start / np.linalg.norm(start)
    T = np.zeros((most + 1, most + 1))
    for step in range(1, most + 1):
        w = solve(V[step - 1])
        for _ in range(2):
            overlap = V[:step] @ w
            w = w - overlap @ V[:step]
            T[:step, step - 1] += overlap
        beta = float(np.linalg.norm(w))
        T[step - 1, :step] = T[:step, step - 1]
        values, ritz = np.linalg.eigh(T[:step, :step])
        residual = beta * np.abs(ritz[-1])
        exhausted = step == size or beta <= 16 * EPS * np.abs(values).max()
        if exhausted:
            residual = 0 * residual
        if step >= 3 or exhausted:
            found = _judge(values, residual, ritz, V[:step], tau, sides, precise)
            if found is not None:
                return found
        if exhausted:
            return None
        V[step] = w / beta
    return None


def _judge(
    values: Any, residual: Any, ritz: Any, basis: Any, tau: float, sides: tuple[bool, bool], precise: bool
) -> _Nearest | None:
    ends = [(-1, 1.0), (0, -1.0)]
    known: list[tuple[float, float, int]] = []  # margin by the Ritz value, its lower bound, index
    steepest = 0.0
    for (index, sign), there in zip(ends, sides, strict=True):
        if not there:
            continue
        bound = sign * values[index] + residual[index]
        if bound <= 0:
            return None
        steepest = max(steepest, bound)
        value = sign * values[index]
        estimate = abs(_root(tau, sign / value) - tau) if value > 0 else math.inf
        known.append((estimate, abs(_root(tau, sign / bound) - tau), index))
    if not known:
        return None
    best = min(estimate for estimate, _, _ in known)
    rivals = [entry for entry in known if entry[1] <= best]
    wanted = MARGIN_ERROR if precise else 0.5
    for estimate, low, index in rivals:
        negligible = index == 0 and tau - low <= NEGLIGIBLE * tau
        if estimate - low > wanted * best and not negligible:
            return None
    vectors = [ritz[:, index] @ basis for _, _, index in rivals]
    return _Nearest(1 / steepest, vectors, rivals[-1][2] == 0)


def _root(tau: float, offset: float) -> float:
    return math.sqrt(max(tau**2 + offset, 0.0))


def _count_on_device(A: Tensor, tau: float, doubt: float) -> Count | None:
    values = torch.linalg.eigvalsh(A @ A.mT).clamp(min=0)
    if float((values - tau**2).abs().amin()) <= doubt:
        return None
    distances = (values.sqrt() - tau).abs()
    nearest = int(distances.argmin())
    if float(values[nearest]) < 1e4 * doubt and math.sqrt(float(values[nearest]) + doubt) > NEGLIGIBLE * tau:
        return None
    return Count(int((values > tau**2).sum()), float(distances[nearest]))


def count_by_range(A: Tensor, tau: float, largest: float, frobenius: float, margin: bool) -> Count | None:
    """Count the singular values above τ from a few random combinations of the columns.

    Args:
        A: `[m, n]`, float64, finite.
        tau: the tolerance.
        largest: σ₁ of A.
        frobenius: ‖A‖_F.
        margin: whether the margin is wanted.

    Returns:
        The count; None where the numerical rank is not small, or a singular value too near to τ.

    Example:
        >>> A = torch.zeros(256, 256, dtype=torch.float64)
        >>> A[0, 0], A[1, 1] = 5.0, 3.0
        >>> count_by_range(A, 1.0, 5.0, 34.0**0.5, False)
        Count(rank=2, margin=None)
    """
    if A.shape[0] > A.shape[1]:
        A = A.mT
    soft = (frobenius / largest) ** 2
    size = A.shape[0]
    width = math.ceil(2 * soft) + 8
    generator = torch.Generator().manual_seed(271_828)
    # Room for one more try: the stable rank is a lower bound of the rank, often by a factor of two.
    for columns in (width, 3 * width):
        if columns > size // SMALL_SHARE:
            return None
        noise = torch.randn(A.shape[1], columns, generator=generator, dtype=torch.float64).to(A.device)
        Q, R = torch.linalg.qr(A @ noise)
        if float(R.diagonal().abs().amin()) > tau * (math.sqrt(A.shape[1]) + math.sqrt(columns)):
            continue  # as many directions above τ as were tried
        B = Q.mT @ A
        count = _count_in_range(B, tau, largest, frobenius, margin)
        if count is not None:
            return count
    return None


def _count_in_range(B: Tensor, tau: float, largest: float, frobenius: float, margin: bool) -> Count | None:
    rounding = ROUNDING * B.shape[1] * EPS * frobenius**2
    rest = max(frobenius**2 - float(B.square().sum()), 0.0) + rounding
    values = torch.linalg.eigvalsh(B @ B.mT)
    doubt = TAU_ERROR * tau**2 + ROUNDING * B.shape[1] * EPS * largest**2
    unsure = (values > tau**2 - rest - doubt) & (values <= tau**2 + doubt)
    if rest + doubt >= tau**2 or bool(unsure.any()):
        return None
    rank = int((values > tau**2).sum())
    if not margin:
        return Count(rank, None)
    roots = values.clamp(min=0).sqrt()
    above = float(roots[values > tau**2].amin()) - tau if rank else math.inf
    under = values[values <= tau**2]
    # Beyond the rows of B every singular value is at most √rest.
    highest = math.sqrt((float(under[-1].clamp(min=0)) if len(under) else 0.0) + rest)
    if above <= tau - highest:
        return Count(rank, above) if rest + doubt <= 2e-6 * tau * above else None
    below = tau - (float(roots[len(under) - 1]) if len(under) else 0.0)
    return Count(rank, below) if highest <= NEGLIGIBLE * tau and below < above else None
