"""The largest eigenvalue of a map that is known by its products alone."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from zanalysis.analyzers.lanczos import UNPROVED

__all__ = ["largest_eigenvalue"]

MOST_STEPS = 250


def largest_eigenvalue(
    product: Callable[[Tensor], Tensor], start: Tensor, tolerance: float
) -> tuple[float, Tensor] | None:
    """Find the largest eigenvalue of a symmetric positive semidefinite map by Lanczos.

    With full reorthogonalization; of AᵀA it is what `lanczos.top_singular` does of A, and the bounds and
    their limits are those that are explained there.

    Args:
        product: the map, `[size] -> [size]`, float64.
        start: `[size]`, float64, not zero.
        tolerance: bound on the relative error.

    Returns:
        The eigenvalue, and a mix of the leading vectors to start the next search from; None where the
        bound was not reached.

    Example:
        >>> found = largest_eigenvalue(lambda v: v * torch.tensor([4.0, 1.0]).double(), torch.ones(2).double(), 1e-9)
        >>> round(found[0], 9)
        4.0
    """
    size = len(start)
    basis = [start / start.norm()]
    alphas: list[float] = []
    betas: list[float] = []
    good_before = False
    for step in range(1, min(MOST_STEPS, size) + 1):
        image = product(basis[-1])
        V = torch.stack(basis)
        alphas.append(float(image @ basis[-1]))
        rest = image - (V @ image) @ V
        rest = rest - (V @ rest) @ V
        beta = float(rest.norm())
        exhausted = step == size or beta <= 1e-14 * max(alphas)
        values, vectors = linalg.eigh_tridiagonal(np.array(alphas), np.array(betas))
        values, vectors = values[::-1], vectors[:, ::-1]
        residuals = (0.0 if exhausted else beta) * abs(vectors[-1])
        good = _relative_error(values, residuals, tolerance) <= tolerance
        if exhausted or (good and good_before):
            mix = torch.as_tensor(vectors[:, :4] @ (0.1 ** np.arange(min(4, step))), dtype=torch.float64)
            return float(values[0]), mix.to(V) @ V
        good_before = good
        betas.append(beta)
        basis.append(rest / beta)
    return None


def _relative_error(values: Any, residuals: Any, tolerance: float) -> float:
    top = float(values[0])
    if top <= 0:
        return math.inf
    linear = float(residuals[0]) / top
    gap = 1 - float(values[1] + residuals[1]) / top if len(values) > 1 else 0.0
    if tolerance >= UNPROVED or linear > 3e-5 or gap <= 0:
        return linear
    return min(linear, linear**2 / gap)
