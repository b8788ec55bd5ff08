"""The rank and its margin of every matrix of a residual, by the cheapest way that vouches for its count."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zanalysis.analyzers.inertia import (
    EPS,
    ROUNDING,
    TAU_ERROR,
    count_by_inertia,
    count_by_range,
    gram_decides,
)

if TYPE_CHECKING:
    from zanalysis.analyzers.residual import Residual

__all__ = ["counted"]


def counted(residual: "Residual", tau: Tensor, margin: bool) -> tuple[Tensor, Tensor]:
    """Count the singular values above τ, and measure how far the nearest one is from it.

    Args:
        residual: the matrices.
        tau: float64, batch shape.
        margin: whether the margin is wanted.

    Returns:
        The count and the margin (NaN where it is not wanted), of the batch shape; NaN where undefined.
    """
    if residual.empty:
        return residual.full(math.nan), residual.full(math.nan)
    if residual.has_squares and not margin:
        counted = _by_squares(residual, tau)
        if counted is not None:
            return counted, residual.full(math.nan)
    elif not (residual.has_spectrum or residual.small) and residual.coarse:
        found = [_certified(residual, index, t, margin) for index, t in enumerate(tau.reshape(-1).tolist())]
        if None not in found:
            pairs = torch.tensor(found, dtype=torch.float64, device=residual.device)
            return pairs[:, 0].reshape(residual.batch_shape), pairs[:, 1].reshape(residual.batch_shape)
    values = residual.singular_values
    count = torch.where(residual.defined, (values > tau[..., None]).sum(-1).double(), torch.nan)
    return count, (values - tau[..., None]).abs().amin(-1)


def _by_squares(residual: "Residual", tau: Tensor) -> Tensor | None:
    # As in `inertia`: None where a singular value is within rounding of τ, or τ within that of zero.
    rounding = ROUNDING * max(residual.shape) * EPS * residual.squares[..., 0]
    doubt = rounding + TAU_ERROR * tau.square()
    clear = (residual.squares - tau.square()[..., None]).abs().amin(-1) > doubt
    decided = clear & (tau.square() > 100 * rounding)
    if not bool((decided | residual.zero | ~residual.defined).all()):
        return None
    count = (residual.squares > tau.square()[..., None]).sum(-1).double()
    return torch.where(residual.defined, count, torch.nan)


def _certified(residual: "Residual", index: int, tau: float, margin: bool) -> tuple[float, float] | None:
    if not bool(residual.defined.reshape(-1)[index]):
        return math.nan, math.nan
    if bool(residual.zero.reshape(-1)[index]):
        return 0.0, tau
    unit, frobenius = (float(t.reshape(-1)[index]) for t in (residual.unit, residual.frobenius))
    # ‖A‖_F bounds σ₁, and an entry above τ shows that it is not noise: often no more has to be known.
    loosely = residual.learned is not None and not margin and tau < unit < 1e100
    if loosely and gram_decides(max(residual.shape), tau, frobenius):
        found = count_by_inertia(residual.compact(index), tau, frobenius, margin)
        if found is not None:
            return float(found.rank), math.nan
    largest = float(residual.largest.reshape(-1)[index])
    if not (1e-100 < unit < 1e100 and gram_decides(max(residual.shape), tau, largest)):
        return None
    if largest <= tau:
        return (0.0, tau - largest) if largest < tau * (1 - 1e-6) else None
    A = residual.compact(index)
    found = None
    if not margin:
        found = count_by_range(A, tau, largest, frobenius, margin)
    found = found or count_by_inertia(A, tau, largest, margin, residual.grams.get(index))
    if found is None:
        return None
    distance = math.nan if found.margin is None else found.margin
    if margin and min(A.shape) < min(residual.shape):
        distance = min(distance, tau)  # the zeros that were dropped
    return float(found.rank), distance
