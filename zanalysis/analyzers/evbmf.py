"""Empirical variational Bayes matrix factorization: the rank of a noisy matrix, in closed form.

The model is `V = B Aᵀ + E` with V of shape [L, M], L ≤ M (a taller matrix is transposed), Gaussian priors on
the columns of A and B, and independent noise of variance σ². With α = L/M, the singular values γ_h of V and
the scaled energies `x_h = γ_h² / (M σ²)`, everything follows from one constant τ(α):

- component h is kept where `x_h ≥ x̄ = (1 + τ)(1 + α/τ)`;
- an unknown σ² is the global minimum of the free energy, a function of one variable.

Sources: Nakajima, Sugiyama, Babacan & Tomioka, "Global analytic solution of fully-observed variational
Bayesian matrix factorization", JMLR 14 (2013) 1-37, and the same authors' "Perfect dimensionality recovery by
variational Bayesian PCA", NIPS 2012 (equations 13-15 for the estimator, theorems 3 and 4 for the noise).
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from torch import Tensor

from zanalysis.errors import InputError

__all__ = ["EVBMF", "evbmf"]

_GRID = 257
"""Points that divide the search for the noise, beside the kinks of the free energy."""


@dataclass(frozen=True)
class EVBMF:
    """What `evbmf` found.

    Attributes:
        rank: number of components that stand out of the noise; 0 is a legitimate answer.
        noise_variance: σ², estimated or as given.
        threshold: the smallest singular value that is kept.
        singular_values: the kept ones after shrinkage, shape [rank], float64, descending, on V's device.
    """

    rank: int
    noise_variance: float
    threshold: float
    singular_values: Tensor


def evbmf(V: Tensor, noise_variance: float | None = None) -> EVBMF:
    """Solve empirical variational Bayes matrix factorization in closed form.

    Scaling V by c scales the noise variance by c² and leaves the rank; transposing V changes nothing. Pure
    noise, an identity and a zero matrix have rank 0. So that an exactly low-rank matrix shows its rank, the
    estimated noise is at least the rounding of V's dtype, `σ ≥ eps · rms(V)`, and no component is kept below
    `max(L, M) · eps · γ₁` with the eps of float64, where the singular values themselves are rounding.

    Args:
        V: matrix [rows, columns] of any floating dtype, finite.
        noise_variance: σ² where it is known; estimated otherwise.

    Returns:
        Rank, noise variance, threshold and shrunk singular values.

    Raises:
        InputError: if V is not a finite floating matrix, or the noise variance is not positive.

    Example:
        >>> evbmf(torch.eye(8)).rank
        0
    """
    if V.ndim != 2 or not V.is_floating_point() or not bool(torch.isfinite(V).all()):
        raise InputError(
            f"evbmf got a {V.ndim}-dimensional {V.dtype} tensor; expected a matrix of finite floating "
            "numbers. Unfold a kernel first, and look for NaN or infinities."
        )
    if noise_variance is not None and not 0 < noise_variance < math.inf:
        raise InputError(
            f"noise_variance={noise_variance!r}; expected a positive number, or None to estimate."
        )
    rows, columns = min(V.shape), max(V.shape)
    wide = V.detach().to(torch.float64)
    scale = float(wide.abs().amax()) if V.numel() else 0.0
    if scale == 0:
        return EVBMF(0, noise_variance or 0.0, 0.0, wide.new_zeros(0))
    gamma = torch.linalg.svdvals(wide / scale)
    mean_square = float(gamma.square().sum()) / (rows * columns)
    alpha = rows / columns
    tau = _tau(alpha)
    if noise_variance is None:
        energy = gamma.square().cpu().numpy() / mean_square
        floor = torch.finfo(V.dtype).eps ** 2
        sigma2 = mean_square * math.exp(_log_noise(energy, columns, alpha, tau, math.log(floor)))
    else:
        sigma2 = noise_variance / scale**2
    rounding = columns * torch.finfo(torch.float64).eps * float(gamma[0])
    threshold = max(math.sqrt(columns * sigma2 * (1 + tau) * (1 + alpha / tau)), rounding)
    kept = gamma[gamma >= threshold]
    ratio = sigma2 / kept.square()
    centre = 1 - (rows + columns) * ratio
    shrunk = kept / 2 * (centre + (centre.square() - 4 * rows * columns * ratio.square()).clamp(min=0).sqrt())
    known = sigma2 * scale**2 if noise_variance is None else noise_variance
    return EVBMF(len(kept), known, threshold * scale, shrunk * scale)


def _tau(alpha: float) -> float:
    """Solve for τ = √α κ, κ the zero of Φ(√α κ) + Φ(κ/√α), Φ(z) = ln(1 + z)/z - 1/2 (NIPS 2012).

    The constant 2.5129 that is in use for κ is exact only for a square matrix.

    Args:
        alpha: L/M, in (0, 1].

    Returns:
        τ, to 14 digits.
    """
    root = math.sqrt(alpha)

    def phi(z: float) -> float:
        return math.log1p(z) / z - 0.5

    kappa = brentq(lambda k: phi(root * k) + phi(k / root), 1, 100, xtol=1e-14, rtol=1e-14)
    return root * float(kappa)


def _kept_root(x: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """Invert x = (1 + t)(1 + α/t).

    Args:
        x: scaled energies of kept components.
        alpha: L/M.

    Returns:
        The larger solution t, elementwise.
    """
    centre = x - (1 + alpha)
    return 0.5 * (centre + np.sqrt(np.maximum(centre**2 - 4 * alpha, 0)))


def _log_noise(energy: NDArray[np.float64], columns: int, alpha: float, tau: float, floor: float) -> float:
    """Find the global minimum of the free energy in s = ln σ² (NIPS 2012, theorems 3 and 4).

    Up to a constant the free energy is Σ ψ(x_h), with `ψ(x) = x - ln x` for a discarded component; a kept one
    adds `ln(1 + t) + α ln(1 + t/α) - t`, where x = (1 + t)(1 + α/t). In s the slopes are short: `1 - x` and
    `-α (1 + 1/t)`. Where a component changes sides the slope falls by τ, so that no minimum lies there, but
    several may lie between: every piece is searched, and the lowest minimum taken.

    Args:
        energy: γ_h², descending, shape [L], scaled so that their sum is L·M.
        columns: M.
        alpha: L/M.
        tau: the constant τ(α).
        floor: a lower bound that the caller puts on s.

    Returns:
        The minimizing s, at most 0.
    """
    rows = len(energy)
    limit = (1 + tau) * (1 + alpha / tau)
    x_at_zero = energy / columns
    tails = np.append(np.cumsum(x_at_zero[::-1])[::-1], 0.0)
    logs = np.log(np.where(x_at_zero > 0, x_at_zero, 1))
    log_tails = np.append(np.cumsum(logs[::-1])[::-1], 0.0)
    unkept = max(math.ceil(rows / (1 + alpha)) - 1, 0)
    least = max(x_at_zero[unkept] / limit, float(x_at_zero[unkept:].mean()), math.exp(floor))
    low, high = min(math.log(least), 0.0), 0.0
    kinks = logs[x_at_zero > 0] - math.log(limit)

    def slope(s: float, kept: int) -> float:
        t = _kept_root(x_at_zero[:kept] * math.exp(-s), alpha)
        return float(rows - kept - tails[kept] * math.exp(-s) - alpha * (1 + 1 / t).sum())

    def free_energy(s: float) -> float:
        kept = int(np.count_nonzero(kinks > s))
        t = _kept_root(x_at_zero[:kept] * math.exp(-s), alpha)
        above = 1 + alpha + alpha / t - np.log1p(alpha / t) + alpha * np.log1p(t / alpha)
        return float(above.sum() + tails[kept] * math.exp(-s) + (rows - kept) * s - log_tails[kept])

    inner = kinks[(kinks > low) & (kinks < high)]
    grid = np.unique(np.concatenate([np.linspace(low, high, _GRID), inner]))
    candidates = [low, high]
    for left, right in pairwise(grid.tolist()):
        kept = int(np.count_nonzero(kinks >= right))
        if slope(left, kept) < 0 < slope(right, kept):
            candidates.append(float(brentq(slope, left, right, args=(kept,), xtol=1e-13)))
    return min(candidates, key=free_energy)
