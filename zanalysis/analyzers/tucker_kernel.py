"""Tucker-2: a kernel as a small core between two channel factors.

Layouts, here and in `tucker`:

- a kernel W is `[c_out, c_in, *spatial]`; a matrix is a kernel without spatial axes;
- `W ≈ core ×₁ factor_out ×₂ factor_in`, that is
  `W[o, i, ...] ≈ Σ_rs factor_out[o, r] · factor_in[i, s] · core[r, s, ...]`;
- the factors are [c_out, r_out] and [c_in, r_in] with orthonormal columns, the core [r_out, r_in, *spatial];
- *the mode-out unfolding* is [c_out, c_in · taps], *the mode-in unfolding* [c_in, c_out · taps];
- a relative error is `‖W - Ŵ‖_F / ‖W‖_F`.

Sources: Kim et al., "Compression of deep convolutional neural networks for fast and low power mobile
applications", ICLR 2016, for the choice of modes; De Lathauwer, De Moor & Vandewalle, "A multilinear singular
value decomposition", SIAM J. Matrix Anal. Appl. 21 (2000), for the HOSVD, and their "On the best rank-1 and
rank-(R1, R2, ..., RN) approximation of higher-order tensors", the same volume, for its refinement by
higher-order orthogonal iteration (HOOI).
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zanalysis.errors import InputError

__all__ = [
    "Tucker2",
    "as_cube",
    "checked_ranks",
    "magnitude",
    "sums_beyond",
    "tucker2",
    "tucker2_error_surface",
    "unfoldings",
]

_HOOI_TOLERANCE = 1e-6
"""Change of the relative error between two sweeps at which HOOI ends (tensorly's default is 1e-4)."""


@dataclass(frozen=True)
class Tucker2:
    """A Tucker-2 decomposition, float64, on the kernel's device.

    Attributes:
        core: [r_out, r_in, *spatial].
        factor_out: [c_out, r_out], orthonormal columns.
        factor_in: [c_in, r_in], orthonormal columns.
        error: relative error, of no dimension; NaN for a zero kernel, where it is undefined.
    """

    core: Tensor
    factor_out: Tensor
    factor_in: Tensor
    error: Tensor

    def kernel(self) -> Tensor:
        """Multiply the parts out.

        Returns:
            The approximation, `[c_out, c_in, *spatial]`, float64.
        """
        return torch.einsum("or,is,rs...->oi...", self.factor_out, self.factor_in, self.core)


def tucker2(W: Tensor, ranks: Sequence[int], refine: bool = True) -> Tucker2:
    """Decompose a kernel over its two channel modes.

    Without refinement this is the truncated HOSVD, whose error is at most √2 times the least possible one
    (De Lathauwer et al. 2000). With it, HOOI (tensorly's `partial_tucker`) starts there, which
    lowers the error or leaves it.

    Args:
        W: kernel `[c_out, c_in, *spatial]` of any floating dtype, finite.
        ranks: (r_out, r_in), each from 1 to the number of channels.
        refine: whether to improve the HOSVD by HOOI.

    Returns:
        Core, factors and relative error.

    Raises:
        InputError: if W is not finite. Also if it is no kernel, or a rank is out of range.

    Example:
        >>> tucker2(torch.ones(4, 3, 2, 2), (1, 1)).error.item() < 1e-15
        True
    """
    cube = as_cube(W)
    if not bool(torch.isfinite(cube).all()):
        raise InputError("The kernel holds NaN or infinities; expected finite numbers. Take an earlier one.")
    r_out, r_in = checked_ranks(ranks, cube.shape[:2])
    scale = magnitude(cube)
    cube = cube / scale
    basis_out, basis_in = _bases(cube, W.dtype)
    best = _projected(cube, basis_out[:, :r_out], basis_in[:, :r_in])
    # At full rank in both modes, and for a zero kernel, there is nothing to refine.
    if refine and (r_out, r_in) != cube.shape[:2] and bool(cube.any()):
        refined = _projected(cube, *_hooi(cube, basis_out, basis_in, (r_out, r_in)))
        best = refined if bool(refined.error < best.error) else best
    core = (best.core * scale).reshape(r_out, r_in, *W.shape[2:])
    return Tucker2(core, best.factor_out, best.factor_in, best.error)


def tucker2_error_surface(W: Tensor) -> Tensor:
    """Compute the truncated HOSVD's relative error at every pair of ranks, from one HOSVD.

    In the HOSVD's bases a truncation only drops entries of the core, so that the squared error at (r_out,
    r_in) is the sum of the squared core outside its leading [r_out, r_in] block (the bases are orthonormal:
    De Lathauwer et al. 2000, section 4). That tail is summed as such, never as one minus the rest, so that
    small errors keep their digits.

    Kernels of float32 and below take the bases from Gram matrices in float64, which resolve directions down
    to about 1e-8 of the largest: below what float32 itself stores. float64 kernels take them from an SVD.

    Args:
        W: kernel `[c_out, c_in, *spatial]` of any floating dtype.

    Returns:
        `[c_out, c_in]`, float64, on W's device: entry (i, j) is the relative error at ranks (i + 1, j + 1). It
        never rises with either rank and ends at exactly 0. All NaN where W is zero or not finite: there the
        relative error is undefined.

    Raises:
        InputError: if W is no floating kernel.

    Example:
        >>> tucker2_error_surface(torch.diag(torch.tensor([4.0, 3.0])))
        tensor([[0.6000, 0.6000],
                [0.6000, 0.0000]], dtype=torch.float64)
    """
    cube = as_cube(W)
    finite = torch.isfinite(cube).all()
    cube = torch.where(finite, cube, 0)
    cube = cube / magnitude(cube)
    squared_core = _core(cube, *_bases(cube, W.dtype)).square().sum(-1)
    kept_out_dropped_in = sums_beyond(squared_core, 1).cumsum(0)
    dropped_out = sums_beyond(squared_core.sum(1, keepdim=True), 0)
    squared_error = kept_out_dropped_in + dropped_out
    # Falling in exact arithmetic; rounding alone could let it rise in the last digit.
    squared_error = squared_error.cummin(0).values.cummin(1).values if W.numel() else squared_error
    return torch.where(finite, (squared_error / squared_core.sum()).sqrt(), math.nan)


def checked_ranks(ranks: Sequence[int], channels: Sequence[int]) -> tuple[int, int]:
    """Insist on two ranks that a kernel can have.

    Args:
        ranks: what the user gave.
        channels: (c_out, c_in).

    Returns:
        (r_out, r_in).

    Raises:
        InputError: if they are not two whole numbers from 1 to the number of channels.
    """
    try:
        r_out, r_in = (operator.index(rank) for rank in ranks)
    except (TypeError, ValueError) as error:
        raise InputError(f"ranks={ranks!r}; expected two whole numbers (r_out, r_in).") from error
    if not (1 <= r_out <= channels[0] and 1 <= r_in <= channels[1]):
        raise InputError(
            f"ranks=({r_out}, {r_in}) do not fit a kernel with {channels[0]} output and {channels[1]} input "
            "channels; expected each from 1 to the number of channels, the output's first."
        )
    return r_out, r_in


def as_cube(W: Tensor) -> Tensor:
    """Bring a kernel to the layout that the computations share.

    Args:
        W: kernel `[c_out, c_in, *spatial]`.

    Returns:
        [c_out, c_in, taps], float64.

    Raises:
        InputError: if W has fewer than two dimensions or is not floating.
    """
    if W.ndim < 2 or not W.is_floating_point():
        raise InputError(
            f"The kernel is a {W.ndim}-dimensional {W.dtype} tensor; expected floating numbers as "
            "[c_out, c_in, *spatial]."
        )
    return W.detach().to(torch.float64).reshape(*W.shape[:2], math.prod(W.shape[2:]))


def magnitude(cube: Tensor) -> Tensor:
    """Return the largest magnitude, or 1 for a zero kernel: squares of scaled entries stay in range."""
    largest = cube.abs().amax() if cube.numel() else cube.new_zeros(())
    return torch.where(largest > 0, largest, torch.ones_like(largest))


def unfoldings(cube: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mode-out and the mode-in unfolding."""
    c_out, c_in, taps = cube.shape
    return cube.reshape(c_out, c_in * taps), cube.transpose(0, 1).reshape(c_in, c_out * taps)


def _bases(cube: Tensor, stored: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the HOSVD's complete orthonormal bases of both channel modes, strongest direction first."""
    out, into = unfoldings(cube)
    return _left_basis(out, stored), _left_basis(into, stored)


def _left_basis(unfolding: Tensor, stored: torch.dtype) -> Tensor:
    """Return all left singular vectors [rows, rows], ordered by descending singular value."""
    rows, columns = unfolding.shape
    if stored != torch.float64:
        ascending: Tensor = torch.linalg.eigh(unfolding @ unfolding.mT)[1]
        return ascending.flip(-1)
    if rows < columns:
        # The triangle has the same left singular vectors and is smaller.
        unfolding = torch.linalg.qr(unfolding.mT, mode="r")[1].mT
    vectors: Tensor = torch.linalg.svd(unfolding, full_matrices=True)[0]
    return vectors


def _core(cube: Tensor, factor_out: Tensor, factor_in: Tensor) -> Tensor:
    """Return the core [r_out, r_in, taps]: a cube projected on two sets of orthonormal columns."""
    half = (factor_out.mT @ cube.flatten(1)).reshape(factor_out.shape[1], *cube.shape[1:])
    return torch.einsum("is,rit->rst", factor_in, half)


def _projected(cube: Tensor, factor_out: Tensor, factor_in: Tensor) -> Tucker2:
    """Return the decomposition by given factors; the error is the product's, no difference of norms."""
    found = Tucker2(_core(cube, factor_out, factor_in), factor_out, factor_in, cube.new_zeros(()))
    left_over = torch.linalg.vector_norm(cube - found.kernel())
    return replace(found, error=left_over / torch.linalg.vector_norm(cube))


def sums_beyond(values: Tensor, axis: int) -> Tensor:
    """Return the sum of all that comes after, at each index along an axis."""
    if values.shape[axis] == 0:
        return values
    from_here_on = values.flip(axis).cumsum(axis).flip(axis)
    after = from_here_on.narrow(axis, 1, values.shape[axis] - 1)
    return torch.cat([after, torch.zeros_like(values.narrow(axis, 0, 1))], axis)


def _hooi(cube: Tensor, basis_out: Tensor, basis_in: Tensor, ranks: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the HOSVD's leading factors as tensorly's HOOI refines them."""
    import tensorly  # a third of a second that only this needs
    from tensorly.decomposition import partial_tucker

    (r_out, r_in), taps = ranks, cube.shape[2]
    # More than this a projected unfolding cannot have; the rest adds nothing to the error and is filled in.
    able = (min(r_out, r_in * taps), min(r_in, r_out * taps))
    start = [basis_out[:, : able[0]], basis_in[:, : able[1]]]
    # A local backend never becomes that of other threads, even if this one is interrupted inside.
    with tensorly.backend_context("pytorch", local_threadsafe=True), torch.no_grad():
        (_, (factor_out, factor_in)), _ = partial_tucker(
            cube,
            rank=list(able),
            modes=[0, 1],
            init=(_core(cube, *start), start),
            tol=_HOOI_TOLERANCE,
            random_state=0,
        )
    return _completed(factor_out, basis_out, r_out), _completed(factor_in, basis_in, r_in)


def _completed(factor: Tensor, basis: Tensor, rank: int) -> Tensor:
    """Return a factor with as many orthonormal directions of a complete basis as it lacks columns."""
    if factor.shape[1] == rank:
        return factor
    columns: Tensor = torch.linalg.qr(torch.cat([factor, basis], 1))[0]
    return columns[:, :rank]
