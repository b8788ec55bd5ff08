"""Which ranks a kernel's Tucker-2 decomposition should have, and what it then costs."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from zanalysis.analyzers._weights import fraction
from zanalysis.analyzers.evbmf import evbmf
from zanalysis.analyzers.tucker_kernel import (
    as_cube,
    magnitude,
    sums_beyond,
    tucker2_error_surface,
    unfoldings,
)
from zanalysis.errors import InputError, did_you_mean

__all__ = ["RULES", "tucker_parameters", "tucker_ranks"]

RULES = ("evb", "error", "energy")


def tucker_ranks(
    W: Tensor, rule: str = "evb", threshold: float | None = None, floor: int = 1
) -> tuple[int, int]:
    """Choose the two ranks of a kernel.

    - `"evb"`: the rank of each unfolding by empirical variational Bayes (Kim et al. 2016; see `evbmf`), which
      estimates the noise and takes no threshold.
    - `"error"`: of all rank pairs whose HOSVD error is at most `threshold`, the one with the fewest
      parameters (`tucker_parameters`), and of those the one with the least error.
    - `"energy"`: in each mode the smallest rank that keeps the fraction `threshold` of the unfolding's
      squared singular values.

    Variational Bayes finds rank 0 where a kernel is all noise, an identity or zero, but a convolution needs
    at least one channel: `floor` says so explicitly. A zero kernel has the floor for its ranks under every
    rule.

    Args:
        W: kernel `[c_out, c_in, *spatial]` of any floating dtype, finite.
        rule: `"evb"`, `"error"` or `"energy"`.
        threshold: from 0 to 1; a relative error, or a fraction of energy. None for `"evb"`.
        floor: the least rank returned; the number of channels where that is smaller.

    Returns:
        (r_out, r_in).

    Raises:
        InputError: if W is not a finite kernel, or rule, threshold and floor do not go together.

    Example:
        >>> tucker_ranks(torch.diag(torch.tensor([4.0, 3.0, 0.1])), "error", 0.1)
        (2, 2)
    """
    if rule not in RULES:
        raise InputError(f"rule={rule!r} is not a rule for ranks; {did_you_mean(str(rule), RULES)}")
    if (threshold is None) != (rule == "evb"):
        raise InputError(
            f"rule={rule!r} came with threshold={threshold!r}; expected a number from 0 to 1 for 'error' "
            "(the relative error allowed) and 'energy' (the fraction kept), and None for 'evb'."
        )
    limit = 0.0 if threshold is None else fraction(threshold, "threshold")
    if isinstance(floor, bool) or not isinstance(floor, int) or floor < 0:
        raise InputError(
            f"floor={floor!r}; expected a whole number, 1 for ranks that a convolution can have."
        )
    cube = as_cube(W)
    if not bool(torch.isfinite(cube).all()):
        raise InputError("The kernel holds NaN or infinities; expected finite numbers. Take an earlier one.")
    both = unfoldings(cube)
    if not bool(cube.any()):
        found = [0, 0]
    elif rule == "evb":
        # The dtype carries the size of the rounding, which bounds the noise from below.
        found = [evbmf(unfolding.to(W.dtype)).rank for unfolding in both]
    elif rule == "energy":
        found = [_energy_rank(unfolding / magnitude(cube), limit) for unfolding in both]
    else:
        found = _cheapest(W, limit)
    r_out, r_in = (max(rank, min(floor, size)) for rank, size in zip(found, cube.shape[:2], strict=True))
    return r_out, r_in


def tucker_parameters(shape: Sequence[int], ranks: Sequence[int]) -> int:
    """Count the numbers in a Tucker-2 decomposition.

    Args:
        shape: the kernel's, `[c_out, c_in, *spatial]`.
        ranks: (r_out, r_in).

    Returns:
        `c_out r_out + r_out r_in taps + r_in c_in`.

    Example:
        >>> tucker_parameters((64, 32, 3, 3), (8, 4))
        928
    """
    r_out, r_in = ranks
    return shape[0] * r_out + r_out * r_in * math.prod(shape[2:]) + r_in * shape[1]


def _energy_rank(unfolding: Tensor, kept: float) -> int:
    energy = torch.linalg.svdvals(unfolding).square()
    dropped = torch.cat([energy.sum()[None], sums_beyond(energy, 0)])
    return int((dropped > (1 - kept) * energy.sum()).sum())


def _cheapest(W: Tensor, allowed: float) -> list[int]:
    surface = tucker2_error_surface(W).cpu()
    c_out, c_in = surface.shape
    r_out, r_in = torch.arange(1, c_out + 1)[:, None], torch.arange(1, c_in + 1)
    counts = c_out * r_out + r_out * r_in * math.prod(W.shape[2:]) + r_in * c_in
    fewest = counts[surface <= allowed].min()
    candidates = torch.where((surface <= allowed) & (counts == fewest), surface, math.inf)
    index = int(candidates.argmin())
    return [index // c_in + 1, index % c_in + 1]
