"""Above what a singular value counts: the rules for τ."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from zanalysis.analyzers.residual import Residual
from zanalysis.analyzers.sharded_residual import ShardedResidual
from zanalysis.errors import InputError, did_you_mean

__all__ = ["Tolerance", "checked_tolerance", "threshold"]

Tolerance = Literal["default", "numpy", "rounding"] | float

RULES = ("default", "numpy", "rounding")


def checked_tolerance(tolerance: Any) -> Tolerance:
    """Return the tolerance if it is a rule's name or an absolute number.

    Args:
        tolerance: ``"default"``, ``"numpy"``, ``"rounding"`` or a finite number, zero or more.

    Returns:
        The rule, or the number as a float.

    Raises:
        InputError: if it is neither.
    """
    if isinstance(tolerance, str):
        if tolerance not in RULES:
            raise InputError(
                f"unknown tolerance {tolerance!r}; {did_you_mean(tolerance, RULES)} "
                "Or pass a number, which is absolute."
            )
        return tolerance  # type: ignore[return-value]
    try:
        value = float(tolerance)
    except (TypeError, ValueError):
        value = math.nan
    if isinstance(tolerance, bool) or not math.isfinite(value) or value < 0:
        raise InputError(f"got tolerance {tolerance!r}, expected {', '.join(RULES)} or a finite number ≥ 0.")
    return value


def _numpy_threshold(residual: Residual) -> Tensor:
    scale: Tensor = residual.scale
    return scale * (max(residual.shape) * residual.eps)


def _reach(matrices: Tensor) -> Tensor:
    # The longest row and the longest column, from squares that neither overflow nor vanish.
    norms = _longest(matrices)
    if bool(((norms > 1e-140) & (norms < 1e140)).all()):
        return norms
    unit = matrices.abs().amax((-2, -1))
    unit = torch.where(unit > 0, unit, 1.0)
    return _longest(matrices / unit[..., None, None]) * unit


def _longest(matrices: Tensor) -> Tensor:
    rows: Tensor = torch.linalg.vector_norm(matrices, dim=-1).amax(-1)
    columns: Tensor = torch.linalg.vector_norm(matrices, dim=-2).amax(-1)
    return rows + columns


def _rounding_threshold(residual: Residual) -> Tensor:
    unit: float = residual.eps / 2 / math.sqrt(3)
    if isinstance(residual, ShardedResidual):
        return residual.reach * (2 * unit)
    norms: Tensor = _reach(residual.weight)
    if residual.reference is not None:
        norms = torch.maximum(norms, _reach(residual.reference))
    return norms * (2 * unit)


def threshold(residual: Residual, tolerance: Tolerance = "default") -> Tensor:
    """Return τ, above which a singular value counts.

    - ``"numpy"``: `max(m, n) · eps · σ₁`, numpy's `matrix_rank`, with the eps of the dtype the weights
      were stored in, and σ₁ the larger of the weight's and the reference's.
    - ``"rounding"``: `2 · (u/√3) · (max row norm + max column norm)`, `u = eps/2`: twice the norm that
      independent rounding errors, uniform within ±u|w|, are expected to have (Bandeira & van Handel,
      Ann. Probab. 44 (2016), on random matrices with a variance profile).
    - ``"default"``: numpy's for float32 and float64, rounding for the 16-bit types, where numpy's
      exceeds σ₁ itself from 128 rows (bfloat16) or 1,024 (float16) on.
    - a number: absolute.

    Args:
        residual: the matrices.
        tolerance: one of the rules above.

    Returns:
        τ, float64 of the batch shape, NaN where the residual is undefined.
    """
    if not isinstance(tolerance, str):
        value = residual.full(tolerance)
    elif residual.empty:
        value = residual.full(math.nan)
    elif tolerance == "rounding" or (tolerance == "default" and residual.stored.itemsize < 4):
        value = _rounding_threshold(residual)
    else:
        value = _numpy_threshold(residual)
    return torch.where(residual.defined, value, torch.nan)
