"""The metrics of a matrix that several processes hold in parts, without bringing it together.

One process asks, and all add up what they have (see `parts`). What follows from small sums is computed
so: support, zero, finite, the Frobenius norm, τ by sums of squares; σ₁ and with it the stable rank by
Lanczos, whose products with AᵀA are sums over the parts; and, where the shorter side is whole in every
part and the entries no finer than float32, rank and spectrum from the Gram matrix of that side.

For the rest the whole matrix is asked for, once, and measured as on a single process: where a float64
Gram matrix decides nothing or not surely enough (float64 weights, singular values far below σ₁ or within
rounding of τ), for margins, for a shorter side that is itself split, for functions of the user's own.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from zanalysis.analyzers.eigenvalue import largest_eigenvalue
from zanalysis.analyzers.inertia import count_from_gram, gram_decides
from zanalysis.analyzers.lanczos import TIGHT, UNPROVED, WarmStart
from zanalysis.analyzers.matrices import common_diagonal
from zanalysis.analyzers.norms import PROVED, norm_of
from zanalysis.analyzers.parts import Of, Op, Split, unsplit_side
from zanalysis.analyzers.residual import NEED_SPECTRUM, Residual
from zanalysis.analyzers.values import values_from_gram

__all__ = ["Ask", "ShardedResidual", "Shards"]

GRAM_METRICS = NEED_SPECTRUM | {"rank"}
"""What comes from the Gram matrix, or from the whole."""

WHOLE_METRICS = frozenset({"rank_margin", "distinct_rows"})
"""What comes from nothing less than the whole."""

SECOND_SEED = 6_700_417
NOTICEABLE = 1e-9


class Ask(Protocol):
    """How the asking process gets an answer: the sum, or the maximum, over all parts."""

    def __call__(self, op: Op, of: Of, scale: float = 1.0, vector: Tensor | None = None) -> Tensor:
        """Return float64 `[length(op, shape, split)]`."""


@dataclass(frozen=True)
class Shards:
    """A matrix in parts, as the process sees it that asks.

    Attributes:
        shape: of the matrix.
        split: how it is split.
        dtype: it is stored in.
        device: where answers are.
        ask: asks all processes.
        gather: brings the whole residual together, on the asking process.
    """

    shape: tuple[int, int]
    split: Split
    dtype: torch.dtype
    device: torch.device
    ask: Ask
    gather: Callable[[], Residual]

    @property
    def side(self) -> int:
        """The length of the side that every part has whole."""
        return unsplit_side(self.shape, self.split)

    @property
    def squarable(self) -> bool:
        """Whether the Gram matrix of the shorter side is a sum over the parts."""
        return self.split != "both" and self.side == min(self.shape)

    def needs_whole(self, metrics: Iterable[Any]) -> bool:
        """Say whether one of several metrics takes the whole matrix in any case.

        Args:
            metrics: names and functions.

        Returns:
            Whether it is best brought together at once.
        """
        fine = self.dtype.itemsize > 4
        return any(
            callable(metric)
            or metric in WHOLE_METRICS
            or (metric in GRAM_METRICS and (fine or not self.squarable))
            for metric in metrics
        )

    def identity_scale(self) -> Tensor:
        """Return α of the scaled partial identity that the matrix carries, as `identity_scale_of` does."""
        m = self.shape[0]
        diagonal = self.ask(Op.DIAGONAL, Of.WEIGHT)
        elsewhere = self.ask(Op.OFF_DIAGONAL, Of.WEIGHT)
        return common_diagonal(diagonal, elsewhere[:m], elsewhere[m:])


class ShardedResidual(Residual):
    """`W − W_ref` in parts. Whatever is not said here is read off the whole matrix, brought together once."""

    def __init__(
        self,
        shards: Shards,
        reference: str,
        eps: float,
        warm: WarmStart | None = None,
        wants: frozenset[str] = frozenset(),
    ) -> None:
        """Describe it; nothing is asked yet but α.

        Args:
            shards: the matrix.
            reference: ``"none"``, ``"identity"``, or anything else for a tensor.
            eps: machine epsilon of the coarsest dtype that W or W_ref is stored in.
            warm: the state of the last record.
            wants: the metrics that will be asked for.
        """
        scale = None
        if reference == "identity":
            scale = shards.identity_scale()
            shards.ask(Op.IDENTITY, Of.RESIDUAL, 1.0, scale.nan_to_num(1.0).reshape(1))
        # The class is frozen, and its fields that are whole matrices are read from `whole` when needed.
        self.__dict__.update(
            shards=shards, refers=reference != "none", eps=eps, stored=shards.dtype, identity_scale=scale
        )
        self.__dict__.update(warm=warm, wants=wants, counts={}, learned=None)

    shards: Shards
    refers: bool

    @cached_property
    def whole(self) -> Residual:
        """The same residual on this process alone: the matrix is brought together."""
        return self.shards.gather()

    @property
    def gathered(self) -> bool:
        """Whether the matrix is here already."""
        return "whole" in self.__dict__

    @property
    def kept(self) -> Tensor:
        """W, brought together."""
        return self.whole.kept

    @property
    def differ(self) -> Any:
        """Give `W − W_ref`, brought together; None where there is no reference."""
        return self.whole.differ if self.refers else None

    @property
    def initial(self) -> Any:
        """Give W_ref, brought together; None where there is no reference."""
        return self.whole.initial if self.refers else None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.shards.shape

    @property
    def batch_shape(self) -> torch.Size:
        """The shape of the results: none."""
        return torch.Size()

    @property
    def device(self) -> torch.device:
        """Where the results are."""
        return self.shards.device

    @property
    def empty(self) -> bool:
        """Whether there is not one entry to look at."""
        return 0 in self.shards.shape

    @property
    def small(self) -> bool:
        """Say no: however small, it is elsewhere."""
        return False

    @property
    def _lengths(self) -> None:
        """The lengths of rows say nothing here that a look at all parts would not."""

    @cached_property
    def _looks(self) -> dict[Of, Tensor]:
        return {}

    def _look(self, of: Of) -> Tensor:
        if of not in self._looks:
            self._looks[of] = self.shards.ask(Op.LOOK, of)
        return self._looks[of]

    @cached_property
    def unit(self) -> Tensor:
        """The largest magnitude of an entry; not finite where one is not."""
        flag, unit = self._look(Of.RESIDUAL)[:2]
        return torch.where(flag > 0, torch.inf, unit)

    @cached_property
    def nonzero(self) -> tuple[Tensor, Tensor]:
        """Which rows and which columns have a non-zero entry."""
        flags = self._look(Of.RESIDUAL)[2:] > 0
        return flags[: self.shape[0]], flags[self.shape[0] :]

    def _factor(self, of: Of) -> float:
        # Makes the largest entry about 1; a power of two rounds nothing.
        largest = float(self._look(of)[1])
        return 1.0 if largest == 0 or 1e-6 < largest < 1e6 else 2.0 ** -max(-1000, math.frexp(largest)[1])

    @cached_property
    def frobenius(self) -> Tensor:
        """‖A‖_F."""
        if self.empty:
            return self.full(math.nan)
        if not bool(self.defined):
            return self.full(math.nan)
        factor = self._factor(Of.RESIDUAL)
        squares = self.shards.ask(Op.NORMS, Of.RESIDUAL, factor)[: self.shape[0]]
        return squares.sum().sqrt() / factor

    def _norms_of(self, of: Of) -> Tensor:
        # Of the rows, then of the columns.
        if not bool(self.defined):
            return torch.full((sum(self.shape),), torch.nan, dtype=torch.float64, device=self.device)
        factor = self._factor(of)
        return self.shards.ask(Op.NORMS, of, factor).sqrt() / factor

    @cached_property
    def reach(self) -> Tensor:
        """The longest row's norm plus the longest column's, the larger of W's and W_ref's."""
        sides = [Of.WEIGHT]
        if self.refers and self.identity_scale is None:
            sides.append(Of.REFERENCE)
        norms = [self._norms_of(of) for of in sides]
        reaches = [part[: self.shape[0]].amax() + part[self.shape[0] :].amax() for part in norms]
        if self.identity_scale is not None:
            reaches.append(2 * self.identity_scale.abs())
        return torch.stack(reaches).amax()

    @cached_property
    def _gram(self) -> tuple[Tensor, float]:
        # Whole, and the factor its matrix was multiplied by.
        factor = self._factor(Of.RESIDUAL)
        return self._gram_of(Of.RESIDUAL, factor), factor

    def _gram_of(self, of: Of, factor: float) -> Tensor:
        lower = self.shards.ask(Op.GRAM, of, factor).reshape(self.shards.side, self.shards.side).tril()
        return lower + lower.tril(-1).mT

    @cached_property
    def largest(self) -> Tensor:
        """σ₁."""
        if self.empty or not bool(self.defined):
            return self.full(math.nan)
        if bool(self.zero):
            return self.full(0.0)
        if self.has_spectrum:
            return self.singular_values[..., 0]
        if self.gathered:
            return self.whole.largest
        return self.full(self._norm(Of.RESIDUAL))

    def _norm(self, of: Of) -> float:
        if float(self._look(of)[1]) == 0:
            return 0.0
        wanted = of == Of.RESIDUAL and "rank" in self.wants
        if self.shards.squarable and (self.shards.side <= PROVED or (wanted and self.coarse)):
            gram, factor = (
                self._gram if of == Of.RESIDUAL else (self._gram_of(of, self._factor(of)), self._factor(of))
            )
            warm = None if self.warm is None else self.warm.under("gram")
            return math.sqrt(norm_of(gram, False, warm, of)) / factor
        top = self._top(of, TIGHT)
        if top is not None:
            # Independent of the first: to be wrong, both must have missed.
            second = self._top(of, UNPROVED, SECOND_SEED)
            if second is not None and second <= top * (1 + NOTICEABLE):
                return math.sqrt(top) / self._factor(of)
        whole = self.whole
        if of == Of.RESIDUAL:
            return float(whole.largest)
        matrix = whole.weight if of == Of.WEIGHT else whole.reference
        assert matrix is not None
        return norm_of(matrix, self.coarse, None, of)

    def _top(self, of: Of, tolerance: float, seed: int | None = None) -> float | None:
        factor = self._factor(of)
        both = self.shards.split == "both"
        side = min(self.shape) if both else self.shards.side
        first, then = (Op.FORTH, Op.BACK) if side == self.shape[1] else (Op.BACK, Op.FORTH)

        def product(vector: Tensor) -> Tensor:
            if both:
                return self.shards.ask(then, of, factor, self.shards.ask(first, of, factor, vector))
            return self.shards.ask(Op.NORMAL, of, factor, vector)

        start = torch.empty(side, dtype=torch.float64, device=self.device)
        warm = self.warm if seed is None else None
        if warm is not None:
            start = warm.start(("parts", of), start)
        else:
            generator = torch.Generator().manual_seed(SECOND_SEED if seed is None else seed)
            start = torch.randn(side, generator=generator).to(start)
        found = largest_eigenvalue(product, start, tolerance)
        if found is None:
            return None
        if warm is not None:
            warm.vectors["parts", of] = found[1][None]
        return found[0]

    @cached_property
    def scale(self) -> Tensor:
        """The larger of σ₁(W) and σ₁(W_ref), whose rounding errors the residual carries."""
        if not self.refers or self.empty or not bool(self.defined):
            return self.largest
        norms = [self._norm(Of.WEIGHT)]
        if self.identity_scale is None:
            norms.append(self._norm(Of.REFERENCE))
            return self.full(max(norms))
        return self.identity_scale.abs().clamp(min=norms[0])

    @cached_property
    def stable_rank(self) -> Tensor:
        """‖A‖_F² / σ₁²; 0 for a zero matrix."""
        if self.empty or not bool(self.defined):
            return self.full(math.nan)
        if bool(self.zero):
            return self.full(0.0)
        cheap = self.shards.squarable and self.shards.side <= PROVED
        if not (self.has_spectrum or "largest" in self.__dict__ or "rank" in self.wants or cheap):
            top = self._top(Of.RESIDUAL, UNPROVED)
            if top is not None:
                return (self.frobenius * self._factor(Of.RESIDUAL)).square() / top
        return (self.frobenius / self.largest).square()

    @property
    def has_spectrum(self) -> bool:
        """Whether the whole spectrum is there or will be asked for anyway."""
        return "singular_values" in self.__dict__ or not NEED_SPECTRUM.isdisjoint(self.wants)

    @cached_property
    def singular_values(self) -> Tensor:
        """All singular values, descending, `[min(m, n)]`; NaN where undefined."""
        count = min(self.shape)
        if self.empty or not bool(self.defined):
            return torch.full((count,), torch.nan, dtype=torch.float64, device=self.device)
        if bool(self.zero):
            return torch.zeros(count, dtype=torch.float64, device=self.device)
        if self.shards.squarable and self.coarse and not self.gathered:
            gram, factor = self._gram
            values = values_from_gram(self._compact_gram(gram), max(self.shape))
            if values is not None:
                return torch.nn.functional.pad(values / factor, (0, count - len(values)))
        return self.whole.singular_values

    def _compact_gram(self, gram: Tensor) -> Tensor:
        # Without the zero rows and columns, which only add zeros to a spectrum.
        kept = self.nonzero[0 if self.shards.split == "columns" else 1]
        return gram if bool(kept.all()) else gram[kept][:, kept]

    def _count(self, tau: Tensor, margin: bool) -> tuple[Tensor, Tensor]:
        nan = self.full(math.nan)
        if self.empty or not bool(self.defined):
            return nan, nan
        if bool(self.zero):
            return self.full(0.0), tau
        found = None if margin or self.gathered else self._certain_count(float(tau))
        if found is None:
            return self.whole._count(tau, margin)
        return self.full(float(found)), nan

    def _certain_count(self, tau: float) -> int | None:
        largest = float(self.largest)
        if not self.coarse or not self.shards.squarable or not gram_decides(max(self.shape), tau, largest):
            return None
        if largest <= tau:
            return 0 if largest < tau * (1 - 1e-6) else None
        gram, factor = self._gram
        return count_from_gram(self._compact_gram(gram), max(self.shape), tau * factor, largest * factor)
