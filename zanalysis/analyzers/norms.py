"""σ₁ of one matrix, by Lanczos and a check that Lanczos cannot give itself.

Lanczos from one start shows that *some* singular value lies where it ends (see `lanczos`). Where σ₂ is
within a few 1e-4 of σ₁ and the start has little of the first vector, that is σ₂: seen on one in a
hundred matrices built to have such twins. So the top is checked afterwards, each way at its price:

- *A proof*: `c² I − A Aᵀ` is positive definite, and so its Cholesky factorization exists, exactly where
  σ₁ is below c. Up to `PROVED` rows or columns: in float32 for the stable rank (c² lies 5e-5 above θ²;
  rounding moves the verdict by less than 1e-5, which is tested), in float64 for σ₁ itself. What is not proved is
  left to a whole decomposition. Nothing remains to chance.
- *A second start*, random and independent, for σ₁ of larger matrices: to be wrong, both must have missed.
- *From record to record*, for the stable rank of a matrix with known leading vectors (see `subspace`): proved
  each time up to `ALWAYS_PROVED` rows or columns, beyond that at every `CHECKED_EVERY`-th record. What was
  seen late is said.
- *Going further*, for the stable rank of larger matrices: to `UNPROVED` instead of `LOOSE`. The share w
  of the first vector that a Ritz vector can have without its residual showing it is at most
  `1e-6 · σ₁² / (σ₁² − σ₂²)`, which is 1e-2 for twins that are just far enough apart to matter.
"""

import math
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from zanalysis.analyzers.lanczos import (
    LOOSE,
    TIGHT,
    UNPROVED,
    WarmStart,
    norm_of_vector,
    top_singular,
)
from zanalysis.analyzers.shared_products import lower_gram, times, times_adjoint
from zanalysis.analyzers.subspace import KEPT, refined

__all__ = ["PROVED", "SMALL", "Gram", "at_most", "loose_square", "norm_of", "working"]

Gram = Callable[[], Tensor]

SMALL = 128
"""Up to this many rows or columns LAPACK's SVD, which comes in batches, is as fast as anything."""

PROVED = 1024
"""Up to this many rows or columns a proof costs about what the search did."""

ALWAYS_PROVED = 384
"""Up to this many rows or columns the proof is as cheap as a refinement, and follows each."""

CHECKED_EVERY = 64
"""How many records of a longer matrix are refined before it is made sure again that nothing was missed."""

UNSEEN = (
    "σ₁ belongs to a direction that was not followed before: if it led already, the stable rank was too high "
    "for up to {} records"
)
FAMILIAR = 0.5
"""Less of σ₁'s vector than this in the span of those followed makes it a new direction."""

FEWEST_FOR_BLOCKS = 64

REFINED = 8e-5
"""Bound on the relative error of σ₁² after a refinement; the stable rank promises 1e-4."""

MOST_BLOCKS = 5
"""How many blocks a refinement may add before the search begins anew."""

RANDOM_SEED = 15_485_863

NOTICEABLE = 1e-9
"""By how much a second start must exceed the first to have found something else."""


def largest_entry(A: Tensor) -> float:
    """Return the largest magnitude of an entry, without a copy of the matrix.

    Args:
        A: `[m, n]`, not empty.

    Returns:
        The magnitude.

    Example:
        >>> largest_entry(torch.tensor([[1.0, -3.0]]))
        3.0
    """
    low, high = torch.aminmax(A)
    return max(-float(low), float(high))


def at_most(A: Tensor, bound: float, gram: Tensor | None = None) -> bool:
    """Prove that no singular value exceeds a bound, in the precision A comes in.

    Args:
        A: `[m, n]`, float32 or float64, finite, with entries near 1 enough to be squared.
        bound: the bound; nothing is proved where it is within rounding of σ₁.
        gram: the lower triangle of the Gram matrix of its shorter side, if that is there.

    Returns:
        Whether it is proved.

    Example:
        >>> at_most(torch.diag(torch.tensor([1.0, 3.0])), 3.001), at_most(torch.eye(2), 0.999)
        (True, False)
    """
    short = A if A.shape[-2] <= A.shape[-1] else A.mT
    shifted = lower_gram(short).neg_() if gram is None else gram.neg()
    shifted.diagonal().add_(bound**2)
    return int(torch.linalg.cholesky_ex(shifted).info) == 0


def loose_square(work: Tensor, warm: WarmStart | None, key: Hashable) -> float | None:
    """Find σ₁² to the 1e-4 that a stable rank promises.

    Args:
        work: `[m, n]`, as `working` returns it.
        warm: where to start from and what to remember.
        key: the name of the matrix in `warm`.

    Returns:
        σ₁²; None where it did not converge or was disproved.
    """
    length = torch.empty(min(work.shape), dtype=work.dtype, device=work.device)
    block = warm.block(key, length) if warm else None
    if warm and block is not None and len(block) == KEPT and len(length) >= FEWEST_FOR_BLOCKS:
        square = _refined_square(work, warm, key, block)
        if square is not None:
            return square
    provable = min(work.shape) <= PROVED
    start = warm.start(key, length) if warm else None
    top = top_singular(work, LOOSE if provable else UNPROVED, start)
    if top is None or (provable and not at_most(work, top.value * math.sqrt(1 + LOOSE))):
        return None
    if warm:
        warm.keep(key, top.leading)
    return top.value**2


def _refined_square(work: Tensor, warm: WarmStart, key: Hashable, block: Tensor) -> float | None:
    tall = work if work.shape[-2] >= work.shape[-1] else work.mT
    warm.uses += 1
    found = refined(tall, block, RANDOM_SEED + warm.uses, REFINED, MOST_BLOCKS)
    if found.error > REFINED:
        return None
    due = warm.unchecked.get(key, 0) + 1 >= CHECKED_EVERY
    checked = due or min(work.shape) <= ALWAYS_PROVED
    if checked and not _leads(work, found.square, warm):
        if min(work.shape) > ALWAYS_PROVED:
            warm.missed.append(UNSEEN.format(CHECKED_EVERY))
        return None
    if found.share < FAMILIAR and not checked:
        warm.missed.append(UNSEEN.format(warm.unchecked.get(key, 0) + 1))
    warm.keep(key, found.vectors, checked)
    return found.square


def _leads(work: Tensor, square: float, warm: WarmStart) -> bool:
    if min(work.shape) <= PROVED:
        return at_most(work, math.sqrt(square * (1 + LOOSE)))
    other = top_singular(work, UNPROVED, _second_start(work, warm))
    return other is not None and other.value**2 <= square * (1 + LOOSE)


def norm_of(
    matrix: Tensor, coarse: bool, warm: WarmStart | None, key: Hashable, gram: Gram | None = None
) -> float:
    """Return σ₁ of one matrix.

    Args:
        matrix: `[m, n]`, float64, finite.
        coarse: whether its entries are no finer than float32.
        warm: where to start from and what to remember.
        key: the name of the matrix in `warm`.
        gram: gives the lower triangle of the Gram matrix of its shorter side, which others need too.

    Returns:
        σ₁, to `TIGHT` or better.
    """
    unit = largest_entry(matrix)
    if unit == 0:
        return 0.0
    norm = None
    if min(matrix.shape) > SMALL:
        work, _ = working(matrix, unit, coarse)
        norm = _checked_norm(matrix, unit, work, warm, key, gram)
    return float(torch.linalg.svdvals(matrix)[0]) if norm is None else norm


def working(matrix: Tensor, unit: float, coarse: bool) -> tuple[Tensor, float]:
    """Return a matrix fit to be squared, in float32 where that is as fine as its entries.

    Args:
        matrix: `[m, n]`, finite.
        unit: its largest magnitude, not zero.
        coarse: whether its entries are no finer than float32.

    Returns:
        The matrix times a power of two, which rounds nothing, and that factor.
    """
    factor = 1.0 if 1e-6 < unit < 1e6 else 2.0 ** -math.frexp(unit)[1]
    if factor != 1.0:
        # In two steps: 2⁻¹⁰⁷⁴ has no reciprocal.
        half = 2.0 ** (math.frexp(factor)[1] // 2)
        matrix = matrix.double() * half * (factor / half)
    return (matrix.float() if coarse else matrix.double()), factor


def _checked_norm(
    A: Tensor, unit: float, work: Tensor, warm: WarmStart | None, key: Hashable, gram: Gram | None
) -> float | None:
    value = _by_lanczos(A, work, warm, key)
    if value is None:
        return None
    if min(A.shape) <= PROVED:
        even = A if 1e-100 < unit < 1e100 else A / unit
        by = 1.0 if even is A else unit
        shared = gram() if gram is not None and even is A else None
        return value if at_most(even, value / by * (1 + TIGHT), shared) else None
    other = top_singular(work, UNPROVED, _second_start(work, warm))
    if other is None:
        return None
    tall = A if A.shape[-2] >= A.shape[-1] else A.mT
    return value if _rayleigh(tall, other.vector.double())[0] <= value * (1 + NOTICEABLE) else None


def _second_start(work: Tensor, warm: WarmStart | None) -> Tensor:
    seed = 6_700_417 + (warm.uses if warm else 0)
    start = torch.randn(min(work.shape), generator=torch.Generator().manual_seed(seed))
    return start.to(work)


def _by_lanczos(A: Tensor, work: Tensor, warm: WarmStart | None, key: Hashable) -> float | None:
    # The iteration may run in float32, at half the cost: it only has to find the *vector*. Its Rayleigh
    # quotient in float64 is then right to the square of the vector's error, and so is the bound.
    tall = A if A.shape[-2] >= A.shape[-1] else A.mT
    empty = torch.empty(tall.shape[-1], dtype=work.dtype, device=work.device)
    top = top_singular(work, TIGHT, warm.start(key, empty) if warm else None)
    if top is None:
        return None
    if warm:
        warm.keep(key, top.leading)
    if work.dtype == torch.float64 and top.error <= TIGHT:
        return _rayleigh(tall, top.vector)[0]
    value, residual = _rayleigh(tall, top.vector.double())
    relative = residual / value
    if relative <= TIGHT / 2 or (top.gap > 0 and relative**2 / top.gap <= TIGHT):
        return value
    if work.dtype == torch.float64:
        return None
    scale = largest_entry(tall)
    exact = top_singular(tall / scale, TIGHT, top.leading.double())
    return None if exact is None or exact.error > TIGHT else exact.value * scale


def _rayleigh(A: Tensor, v: Tensor) -> tuple[float, float]:
    """Return ‖A v‖ and ‖Aᵀu − ‖A v‖ v‖ in float64."""
    unit = largest_entry(A)
    if not 1e-100 < unit < 1e100:
        value, residual = _rayleigh(A / unit, v)
        return value * unit, residual * unit
    vector = v.double() / v.double().norm()
    u = times(A, vector)
    value = norm_of_vector(u)
    return value, norm_of_vector(times_adjoint(A, u) / value - value * vector)
