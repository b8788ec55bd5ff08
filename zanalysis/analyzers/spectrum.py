"""What the singular values of a weight, or of its distance from a reference, say.

Every function takes W as `[m, n]`, `[batch, m, n]` or `[c_out, c_in, *taps]` (see `matrices`) in
any floating dtype, and returns float64 of the batch shape on W's device, integers too, so that an
undefined number can be NaN. `status` says why one is.

Where a reference is given, everything is of the residual `W − W_ref`.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zanalysis.analyzers.matrices import Reference, View, checked_parameter, computable, identity_scale_of
from zanalysis.analyzers.residual import Residual
from zanalysis.analyzers.statuses import CODES, STATUSES
from zanalysis.analyzers.tolerances import Tolerance, checked_tolerance, threshold

__all__ = [
    "Support",
    "Tolerance",
    "checked_tolerance",
    "condition_number",
    "effective_rank",
    "frobenius_norm",
    "identity_scale",
    "nuclear_norm",
    "rank",
    "rank_margin",
    "singular_values",
    "spectral_norm",
    "stable_rank",
    "status",
    "status_codes",
    "support",
    "threshold",
]


class Support(NamedTuple):
    """How many rows and columns are not exactly zero: an upper bound of the rank without tolerance.

    Attributes:
        rows: float64, batch shape.
        columns: float64, batch shape.
    """

    rows: Tensor
    columns: Tensor


def status_codes(residual: Residual, tau: Tensor | None = None) -> Tensor:
    """Return, for each matrix, the code of the word that says how its numbers are to be read.

    Args:
        residual: the matrices.
        tau: the threshold, where one is in force.

    Returns:
        uint8 codes into `STATUSES`, of the batch shape.
    """

    def code(word: str) -> Tensor:
        return torch.tensor(CODES[word], dtype=torch.uint8, device=residual.device)

    if residual.empty:
        return code("empty").expand(residual.batch_shape)
    result = code("ok").expand(residual.batch_shape)
    # No entry exceeds σ₁, which need not be known where the largest entry is above τ already.
    if tau is not None and not bool((residual.unit > tau).all()):
        result = torch.where(residual.largest <= tau, code("below_noise"), result)
    result = torch.where(residual.zero, code("zero"), result)
    if residual.identity_scale is not None:
        result = torch.where(residual.identity_scale.isnan(), code("no_common_diagonal"), result)
    return torch.where(residual.finite, result, code("nonfinite"))


def rank_of(residual: Residual, tolerance: Tolerance) -> tuple[Tensor, Tensor, Tensor]:
    """Count the singular values above τ.

    Args:
        residual: the matrices.
        tolerance: the rule for τ.

    Returns:
        The rank, τ and the status codes. The rank is NaN where it is undefined, and where numpy's
        rule puts τ at or above σ₁ for any matrix of this shape and dtype, so that it decides nothing.
    """
    tau = threshold(residual, tolerance)
    codes = status_codes(residual, tau)
    value, _ = residual.count(str(tolerance), tau, False)
    if tolerance == "numpy" and not residual.empty and max(residual.shape) * residual.eps >= 1:
        value = torch.where(codes == CODES["below_noise"], torch.nan, value)
    return value, tau, codes


def rank_margin_of(residual: Residual, tolerance: Tolerance) -> tuple[Tensor, Tensor, Tensor]:
    """Measure the distance of the nearest singular value from τ.

    Args:
        residual: the matrices.
        tolerance: the rule for τ.

    Returns:
        `min_i |σ_i − τ|`, τ and the status codes.
    """
    tau = threshold(residual, tolerance)
    codes = status_codes(residual, tau)
    return residual.count(str(tolerance), tau, True)[1], tau, codes


def _nan_where_zero(residual: Residual, value: Tensor) -> Tensor:
    return torch.where(residual.zero, torch.nan, value)


def stable_rank_of(residual: Residual) -> Tensor:
    """Return ‖A‖_F² / σ₁², NaN for a zero matrix."""
    # Between its exact bounds, which the error of σ₁ could overstep in the last digits.
    return _nan_where_zero(residual, residual.stable_rank.clamp(1, max(1, min(residual.shape))))


def effective_rank_of(residual: Residual) -> Tensor:
    """Return exp of the entropy of σ / Σσ, NaN for a zero matrix."""
    if residual.empty:
        return residual.full(math.nan)
    values = residual.singular_values
    share = values / values.sum(-1, keepdim=True)
    entropy: Tensor = torch.special.entr(share).sum(-1)
    return entropy.exp()


def spectral_norm_of(residual: Residual) -> Tensor:
    """Return σ₁."""
    return residual.largest


def frobenius_norm_of(residual: Residual) -> Tensor:
    """Return the root of the sum of squares."""
    return residual.frobenius


def nuclear_norm_of(residual: Residual) -> Tensor:
    """Return the sum of the singular values."""
    return residual.singular_values.sum(-1) if not residual.empty else residual.full(math.nan)


def condition_number_of(residual: Residual) -> tuple[Tensor, Tensor]:
    """Return σ₁ / σ_min and the status codes; NaN and `below_noise` where σ_min is not above τ."""
    codes = status_codes(residual)
    if residual.empty:
        return residual.full(math.nan), codes
    smallest = residual.singular_values[..., -1]
    unknown = smallest <= threshold(residual)
    value = _nan_where_zero(residual, torch.where(unknown, torch.nan, residual.largest / smallest))
    noise = torch.tensor(CODES["below_noise"], dtype=torch.uint8, device=codes.device)
    return value, torch.where(unknown & (codes == CODES["ok"]), noise, codes)


def support_of(residual: Residual) -> Support:
    """Return how many rows and columns are not exactly zero."""
    rows, columns = residual.nonzero
    return Support(
        *(torch.where(residual.defined, axis.sum(-1).double(), torch.nan) for axis in (rows, columns))
    )


def singular_values(W: Any, *, reference: Reference = None, view: View = "out") -> Tensor:
    """Return the singular values of W, or of its distance from a reference.

    Computed in float64, after dropping rows and columns that are exactly zero, which only add zeros, by
    LAPACK (`torch.linalg.svdvals`): of wide and tall matrices after a QR decomposition, or, of float32
    and below and where that leaves each value right to 1e-9 relative, by the eigenvalues of their Gram matrix.

    Args:
        W: `[m, n]`, `[batch, m, n]` or `[c_out, c_in, *taps]`.
        reference: None, ``"identity"`` (α·I*, see `identity_scale`) or a tensor of W's shape.
        view: how a kernel becomes a matrix: ``"out"``, ``"in"``, ``"taps"`` or a callable.

    Returns:
        float64 `[..., min(m, n)]`, descending, in the unit of W; NaN where W is not finite.

    Raises:
        InputError: if W is not a floating tensor of two or more dimensions, or an option is unknown.

    Example:
        >>> singular_values(torch.diag(torch.tensor([3.0, 4.0])))
        tensor([4., 3.], dtype=torch.float64)
    """
    return Residual.of(W, reference, view).singular_values


def rank(
    W: Any, *, tolerance: Tolerance = "default", reference: Reference = None, view: View = "out"
) -> Tensor:
    """Count the singular values above a tolerance.

    The tolerance, not the arithmetic, decides what a rank means: see `threshold` for the rules and
    their sources. The default is numpy's with the eps of the dtype W is *stored* in, and the noise
    that rounding leaves for 16-bit dtypes. With a reference, τ grows with the larger of the two
    norms, whose rounding errors the difference carries.

    Args:
        W: `[m, n]`, `[batch, m, n]` or `[c_out, c_in, *taps]`.
        tolerance: ``"default"``, ``"numpy"``, ``"rounding"`` or an absolute number.
        reference: None, ``"identity"`` (α·I*, see `identity_scale`) or a tensor of W's shape.
        view: how a kernel becomes a matrix: ``"out"``, ``"in"``, ``"taps"`` or a callable.

    Returns:
        float64 of the batch shape, whole numbers; 0 for a zero matrix; NaN where W is empty or not
        finite, where ``"identity"`` finds no common diagonal, and where numpy's rule puts τ above
        every singular value a matrix of this shape and dtype can have.

    Raises:
        InputError: if W is not a floating tensor of two or more dimensions, or an option is unknown.

    Example:
        >>> rank(torch.ones(4, 3))
        tensor(1., dtype=torch.float64)
    """
    return rank_of(Residual.of(W, reference, view, wants=("rank",)), checked_tolerance(tolerance))[0]


def rank_margin(
    W: Any, *, tolerance: Tolerance = "default", reference: Reference = None, view: View = "out"
) -> Tensor:
    """Measure how far the nearest singular value lies from the tolerance of `rank`.

    `min_i |σ_i − τ|`: a rank whose margin is small against τ would be another with a slightly
    different tolerance. Its relative error is at most 1e-6 (and never less than the rounding of σ₁ in
    float64); where the nearest singular value is below a hundredth of τ, and so about zero, at most
    a hundredth.

    Args:
        W: `[m, n]`, `[batch, m, n]` or `[c_out, c_in, *taps]`.
        tolerance: as in `rank`.
        reference: as in `rank`.
        view: as in `rank`.

    Returns:
        float64 of the batch shape, in the unit of W; NaN where the rank is undefined.

    Raises:
        InputError: if W is not a floating tensor of two or more dimensions, or an option is unknown.

    Example:
        >>> rank_margin(torch.diag(torch.tensor([4.0, 1.0])), tolerance=1.5)
        tensor(0.5000, dtype=torch.float64)
    """
    return rank_margin_of(
        Residual.of(W, reference, view, wants=("rank_margin",)), checked_tolerance(tolerance)
    )[0]


def stable_rank(W: Any, *, reference: Reference = None, view: View = "out") -> Tensor:
    """Return the stable rank ‖W‖_F² / σ₁² (Rudelson & Vershynin, J. ACM 54 (2007)).

    A soft rank that small singular values do not move; between 1 and the rank. Its error is at
    most 1e-4 relative: proved, up to rounding, where one side is at most 1,024. Where both are longer, a
    random start of Lanczos may take σ₂ for σ₁ where the two are within 1e-3 of each other: seen on 2 of
    6,286 matrices built to have such twins, with an error of at most 3e-4 (see `norms`).

    Args:
        W: `[m, n]`, `[batch, m, n]` or `[c_out, c_in, *taps]`.
        reference: None, ``"identity"`` (α·I*, see `identity_scale`) or a tensor of W's shape.
        view: how a kernel becomes a matrix.

    Returns:
        float64 of the batch shape; NaN for a matrix that is zero, empty or not finite.

    Raises:
        InputError: if W is not a floating tensor of two or more dimensions, or an option is unknown.

    Example:
        >>> stable_rank(torch.diag(torch.tensor([4.0, 2.0, 1.0, 1.0])))
        tensor(1.3750, dtype=torch.float64)
    """
    return stable_rank_of(Residual.of(W, reference, view))


def effective_rank(W: Any, *, reference: Reference = None, view: View = "out") -> Tensor:
    """Return the effective rank exp(H(p)), p = σ / Σσ (Roy & Vetterli, EUSIPCO 2007).

    H is Shannon's entropy in nats, with 0 ln 0 = 0. Beware of the variant with p ∝ σ², which is
    another number.

    Args:
        W: `[m, n]`, `[batch, m, n]` or `[c_out, c_in, *taps]`.
        reference: None, ``"identity"`` (α·I*) or a tensor of W's shape.
        view: how a kernel becomes a matrix.

    Returns:
        float64 of the batch shape, from 1 to the rank; NaN for a matrix that is zero, empty or not
        finite.

    Raises:
        InputError: if W is not a floating tensor of two or more dimensions, or an option is unknown.

    Example:
        >>> round(float(effective_rank(torch.diag(torch.tensor([4.0, 2.0, 1.0, 1.0])))), 6)
        3.363586
    """
    return effective_rank_of(Residual.of(W, reference, view, wants=("effective_rank",)))


def spectral_norm(W: Any, *, reference: Reference = None, view: View = "out") -> Tensor:
    """Return the largest singular value.

    Args:
        W: `[m, n]`, `[batch, m, n]` or `[c_out, c_in, *taps]`.
        reference: None, ``"identity"`` (α·I*) or a tensor of W's shape.
        view: how a kernel becomes a matrix.

    Returns:
        float64 of the batch shape, in the unit of W; NaN where empty or not finite.

    Raises:
        InputError: if W is not a floating tensor of two or more dimensions, or an option is unknown.

    Example:
        >>> spectral_norm(torch.eye(3) * 2)
        tensor(2., dtype=torch.float64)
    """
    return spectral_norm_of(Residual.of(W, reference, view))


def frobenius_norm(W: Any, *, reference: Reference = None, view: View = "out") -> Tensor:
    """Return the root of the sum of the squared entries.

    Args:
        W: `[m, n]`, `[batch, m, n]` or `[c_out, c_in, *taps]`.
        reference: None, ``"identity"`` (α·I*) or a tensor of W's shape.
        view: how a kernel becomes a matrix.

    Returns:
        float64 of the batch shape, in the unit of W; NaN where empty or not finite.

    Raises:
        InputError: if W is not a floating tensor of two or more dimensions, or an option is unknown.

    Example:
        >>> frobenius_norm(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        tensor(5., dtype=torch.float64)
    """
    return frobenius_norm_of(Residual.of(W, reference, view))


def nuclear_norm(W: Any, *, reference: Reference = None, view: View = "out") -> Tensor:
    """Return the sum of the singular values.

    Args:
        W: `[m, n]`, `[batch, m, n]` or `[c_out, c_in, *taps]`.
        reference: None, ``"identity"`` (α·I*) or a tensor of W's shape.
        view: how a kernel becomes a matrix.

    Returns:
        float64 of the batch shape, in the unit of W; NaN where empty or not finite.

    Raises:
        InputError: if W is not a floating tensor of two or more dimensions, or an option is unknown.

    Example:
        >>> nuclear_norm(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        tensor(7., dtype=torch.float64)
    """
    return nuclear_norm_of(Residual.of(W, reference, view, wants=("nuclear_norm",)))


def condition_number(W: Any, *, reference: Reference = None, view: View = "out") -> Tensor:
    """Return σ₁ / σ_min over all min(m, n) singular values.

    Where σ_min is not above the default tolerance of `rank`, its digits are rounding noise, and so
    would the quotient be: the answer is then NaN.

    Args:
        W: `[m, n]`, `[batch, m, n]` or `[c_out, c_in, *taps]`.
        reference: None, ``"identity"`` (α·I*) or a tensor of W's shape.
        view: how a kernel becomes a matrix.

    Returns:
        float64 of the batch shape, 1 or more; NaN where σ_min is noise, and where W is zero, empty
        or not finite.

    Raises:
        InputError: if W is not a floating tensor of two or more dimensions, or an option is unknown.

    Example:
        >>> condition_number(torch.tensor([[3.0, 0.0], [0.0, 6.0]]))
        tensor(2., dtype=torch.float64)
    """
    return condition_number_of(Residual.of(W, reference, view, wants=("condition_number",)))[0]


def support(W: Any, *, reference: Reference = None, view: View = "out") -> Support:
    """Count the rows and the columns that are not exactly zero.

    Their smaller number bounds the rank exactly, with no tolerance at all: under partial-identity
    initialization the gradient is exactly zero outside a block, so the support of `W − α·I*` proves
    what a floating rank can only suggest (Zhao, Schäfer & Anandkumar 2022, Theorem 1 (ii)).

    Args:
        W: `[m, n]`, `[batch, m, n]` or `[c_out, c_in, *taps]`.
        reference: None, ``"identity"`` (α·I*, see `identity_scale`) or a tensor of W's shape.
        view: how a kernel becomes a matrix.

    Returns:
        `Support(rows, columns)`, each float64 of the batch shape; NaN where empty or not finite.

    Raises:
        InputError: if W is not a floating tensor of two or more dimensions, or an option is unknown.

    Example:
        >>> support(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
        Support(rows=tensor(1., dtype=torch.float64), columns=tensor(2., dtype=torch.float64))
    """
    return support_of(Residual.of(W, reference, view))


def identity_scale(W: Any) -> Tensor:
    """Return α, the multiple of the partial identity that W still carries where it learned nothing.

    The common value of W_ii over the indices whose row and column are otherwise exactly zero. Weight
    decay shrinks them all by the same factor, so `W − α·I*` has the exact support of what was learned.

    Args:
        W: `[m, n]`, `[batch, m, n]` or `[c_out, c_in, *taps]` with an odd number of taps.

    Returns:
        float64 of the batch shape: α; 1 where there is no such index; NaN where the values differ
        (status ``no_common_diagonal``).

    Raises:
        InputError: if W is not a floating tensor of two or more dimensions, or its kernel is even.

    Example:
        >>> identity_scale(torch.tensor([[5.0, 1.0, 0.0], [2.0, 7.0, 0.0], [0.0, 0.0, 0.5]]))
        tensor(0.5000, dtype=torch.float64)
    """
    return identity_scale_of(computable(checked_parameter(W)))


def status(
    W: Any, *, tolerance: Tolerance = "default", reference: Reference = None, view: View = "out"
) -> Any:
    """Say in a word how the spectral numbers of W are to be read.

    Args:
        W: `[m, n]`, `[batch, m, n]` or `[c_out, c_in, *taps]`.
        tolerance: the rule that ``below_noise`` refers to.
        reference: None, ``"identity"`` (α·I*) or a tensor of W's shape.
        view: how a kernel becomes a matrix.

    Returns:
        ``"ok"``, ``"zero"``, ``"empty"``, ``"nonfinite"``, ``"below_noise"`` (σ₁ is not above τ) or
        ``"no_common_diagonal"``; for a batch, nested lists of them.

    Raises:
        InputError: if W is not a floating tensor of two or more dimensions, or an option is unknown.

    Example:
        >>> status(torch.zeros(2, 3))
        'zero'
    """
    residual = Residual.of(W, reference, view)

    def words(codes: Any) -> Any:
        return [words(code) for code in codes] if isinstance(codes, list) else STATUSES[codes]

    return words(status_codes(residual, threshold(residual, checked_tolerance(tolerance))).tolist())
