"""The largest singular value alone, by Lanczos, from where the last record left off.

`top_singular` runs the bidiagonalization of Golub & Kahan (SIAM J. Numer. Anal. 2 (1965)) with full
reorthogonalization of the right basis, which keeps the left one orthogonal too (Simon & Zha, SIAM J.
Sci. Comput. 21 (2000)), until a residual bound says that the answer is good enough.

What the bound says, and what it cannot say. With `A v = θ u` and `‖Aᵀu − θ v‖ = r`, some singular
value lies within r of θ, and if σ₂ is below θ then `σ₁² − θ² ≤ θ² r² / (θ² − σ₂²)` (Temple, Kato).
That θ belongs to σ₁ and to no smaller one, no residual can show: it is the start that makes it so. A
random start misses the top with a probability that Kuczyński & Woźniakowski (SIAM J. Matrix Anal. 13
(1992)) bound; a start that is the old top vector alone would miss a new one that is orthogonal to it,
for ever. `WarmStart` therefore keeps several of the leading vectors and adds a fresh random one, of
which every Ritz vector keeps a trace that the residual sees.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from zanalysis.analyzers.shared_products import times, times_adjoint

__all__ = ["LOOSE", "TIGHT", "UNPROVED", "Top", "WarmStart", "mixed", "norm_of_vector", "top_singular"]

TIGHT = 2e-10
"""Bound on the relative error of σ₁² where σ₁ is a result or makes a tolerance."""

LOOSE = 5e-5
"""Bound on the relative error of σ₁² where only the stable rank is wanted, which promises 1e-4."""

UNPROVED = 2e-6
"""The same where no proof follows: the further a start has come, the smaller what it can have missed."""

MOST_STEPS = 250
LEADING = 6
MIXED = 4
FADING = 0.1
RANDOM_SHARE = 0.05
FEWEST_STEPS = 6
UNRESOLVED = 3e-5


class Top(NamedTuple):
    """What is known of the largest singular value.

    Attributes:
        value: θ ≤ σ₁ (up to rounding).
        error: the bound on `(σ₁² − θ²) / θ²`.
        vector: unit singular vector on the shorter side.
        gap: `(θ² − σ₂²) / θ²` as far as it is certain, 0 where it is not.
        leading: the leading right singular vectors of the taller orientation, `[at most KEPT, n]`.
        steps: how many products with A and with Aᵀ it took.
    """

    value: float
    error: float
    vector: Tensor
    gap: float
    leading: Tensor
    steps: int


@dataclass
class WarmStart:
    """The leading singular vectors of one parameter's last record: where the next one starts.

    One belongs to one parameter of one run, and is passed to `Plan.evaluate` at each record. The numbers keep
    their stated error whatever it holds, stale or empty, with one exception: where both sides of a matrix are
    long, that nothing has overtaken the vectors it holds is only made sure every so often (see `norms`).

    Attributes:
        vectors: by matrix, `[k, n]`.
        unchecked: by matrix, how many records ago it was last made sure that these vectors lead.
        parts: the same for each of several residuals of the parameter.
        uses: how many random directions were drawn.
        missed: what such a check found to exceed them, as a sentence.
    """

    vectors: dict[Hashable, Tensor] = field(default_factory=dict)
    unchecked: dict[Hashable, int] = field(default_factory=dict)
    parts: dict[Hashable, "WarmStart"] = field(default_factory=dict)
    uses: int = 0
    missed: list[str] = field(default_factory=list)

    def under(self, name: Hashable) -> "WarmStart":
        """Return the part that belongs to one of several residuals of the parameter.

        Args:
            name: of its reference.

        Returns:
            The same object at each call.
        """
        return self.parts.setdefault(name, WarmStart(missed=self.missed))

    def start(self, key: Hashable, like: Tensor) -> Tensor:
        """Return a start vector for a matrix.

        Args:
            key: which matrix of the parameter.
            like: an empty vector of the length, dtype and device wanted.

        Returns:
            The leading vectors of the last record and a random direction; random alone where there
            is no last record, or its shape was another.
        """
        self.uses += 1
        fresh = _random(like, self.uses)
        block = self.block(key, like)
        if block is None:
            return fresh
        last = mixed(block)
        start: Tensor = last / last.norm() + fresh * (RANDOM_SHARE / float(fresh.norm()))
        return start

    def block(self, key: Hashable, like: Tensor) -> Tensor | None:
        """Return the leading vectors of a matrix's last record.

        Args:
            key: which matrix of the parameter.
            like: a vector of the length, dtype and device wanted.

        Returns:
            `[k, n]`, or None where there are none of that length.
        """
        last = self.vectors.get(key)
        return None if last is None or last.shape[-1] != like.shape[-1] else last.to(like)

    def keep(self, key: Hashable, vectors: Tensor, checked: bool = True) -> None:
        """Remember where a matrix's leading singular vectors point.

        Args:
            key: which matrix of the parameter.
            vectors: `[k, n]`.
            checked: whether they are known to lead.
        """
        self.vectors[key] = vectors
        self.unchecked[key] = 0 if checked else self.unchecked.get(key, 0) + 1


def mixed(vectors: Tensor) -> Tensor:
    """Return one vector with a share of each leading one, the first most.

    Args:
        vectors: `[k, n]`.

    Returns:
        `[n]`.
    """
    first = vectors[:MIXED]
    return (FADING ** torch.arange(len(first)).to(first)) @ first


def _random(like: Tensor, seed: int = 0) -> Tensor:
    # An own generator, on the CPU: the same vector on every device, and nobody's random numbers spent.
    generator = torch.Generator().manual_seed(20_110_126 + seed)
    return torch.randn(like.shape[0], generator=generator).to(like)


def norm_of_vector(vector: Tensor) -> float:
    """Return the Euclidean norm.

    Args:
        vector: `[n]`.

    Returns:
        Its length.
    """
    return math.sqrt(float(vector @ vector))


def top_singular(A: Tensor, tolerance: float, start: Tensor | None = None) -> Top | None:
    """Find the largest singular value of one matrix in the precision it comes in.

    Args:
        A: `[m, n]`, float32 or float64, finite, not zero, entries near 1 enough to be squared.
        tolerance: when to stop: bound on the relative error of σ₁².
        start: a vector of length min(m, n), or the leading vectors of a matrix nearby; random where None.

    Returns:
        What was found, or None where the bound was not reached.

    Example:
        >>> round(top_singular(torch.diag(torch.tensor([1.0, 3.0, 2.0])), 1e-6).value, 4)
        3.0
    """
    if A.shape[-1] > A.shape[-2]:
        A = A.mT
    A = A if A.is_contiguous() or A.mT.is_contiguous() else A.contiguous()
    columns = A.shape[-1]
    most = min(MOST_STEPS, columns)
    V = torch.empty(most + 1, columns, dtype=A.dtype, device=A.device)
    V[0] = _random(V[0]) if start is None else mixed(start) if start.ndim == 2 else start
    V[0] /= norm_of_vector(V[0])
    alphas: list[float] = []
    betas: list[float] = []
    floor = 4 * torch.finfo(A.dtype).eps
    u = None
    next_check, confirmed = FEWEST_STEPS, False
    for step in range(1, most + 1):
        image = times(A, V[step - 1])
        u = image if u is None else image - betas[-1] * u
        alphas.append(norm_of_vector(u))
        if alphas[-1] > 0:
            u = u / alphas[-1]
        w = times_adjoint(A, u) - alphas[-1] * V[step - 1]
        # One sweep is enough unless it takes most of the vector away (Daniel, Gragg, Kaufman & Stewart,
        # Math. Comp. 30 (1976)).
        before, w = norm_of_vector(w), w - (V[:step] @ w) @ V[:step]
        betas.append(norm_of_vector(w))
        if betas[-1] < 0.7 * before:
            w = w - (V[:step] @ w) @ V[:step]
            betas[-1] = norm_of_vector(w)
        exhausted = betas[-1] <= floor * max(alphas) or step == columns
        if not exhausted:
            V[step] = w / betas[-1]
        if step < next_check and not exhausted and step < most:
            continue
        values, left = _leading(alphas, betas, 2)
        residuals = 0 * values if exhausted else betas[-1] * abs(left[-1])
        error, gap = _bound(values, residuals, floor, tolerance)
        at_floor = residuals[0] <= floor * values[0]
        good = error <= tolerance or (at_floor and tolerance < floor)
        if exhausted or (good and confirmed):
            values, left = _leading(alphas, betas, LEADING)
            right = _bidiagonal(alphas, betas).T @ left / np.maximum(values, 1e-300)
            ritz = torch.as_tensor(right.T).to(V) @ V[:step]
            return Top(float(values[0]), error, ritz[0] / ritz[0].norm(), gap, ritz, step)
        # Two singular values that are nearly one look converged before they part: look twice.
        confirmed = good
        # A look costs about half a step: as long as there is nothing to confirm, they get rarer.
        next_check = step + (2 if good else max(2, step // 10))
    return None


def _bidiagonal(alphas: list[float], betas: list[float]) -> Any:
    return np.diag(alphas) + np.diag(betas[: len(alphas) - 1], 1)


def _leading(alphas: list[float], betas: list[float], count: int) -> tuple[Any, Any]:
    # The leading singular values of the bidiagonal B, descending, and its left singular vectors as
    # columns, from the tridiagonal B Bᵀ: the top loses nothing to the square, and a whole decomposition
    # at every look would cost as much as the products.
    alpha, beta = np.array(alphas), np.array([*betas[:-1], 0.0])
    size = len(alphas)
    values, left = linalg.eigh_tridiagonal(
        alpha**2 + beta**2,
        alpha[1:] * beta[:-1],
        select="i",
        select_range=(max(0, size - count), size - 1),
        lapack_driver="stemr",
    )
    return np.sqrt(np.maximum(values[::-1], 0)), left[:, ::-1]


def _bound(values: Any, residuals: Any, floor: float, tolerance: float) -> tuple[float, float]:
    # The relative error of θ₁² and the relative gap to σ₂².
    top = float(values[0])
    residual = float(residuals[0]) / top + floor
    linear = 2 * residual + residual**2
    gap = 1 - (float(values[1] + residuals[1]) / top) ** 2 if len(values) > 1 else 0.0
    # Temple's bound takes all but the first singular value to lie beyond the gap. Where two are closer
    # than the residual that is wrong, so it is used only to refine what the linear bound has shown.
    if tolerance >= floor or linear > UNRESOLVED or gap <= 0:
        return linear, max(gap, 0.0)
    return min(linear, residual**2 / gap), gap
