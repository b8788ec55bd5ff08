"""The matrices whose spectrum is asked for, and how each quantity of them is got at least cost.

Everything is computed when it is first needed and at most once, so that the metrics of one parameter
share their work: a whole spectrum, once there, gives the rest; where nobody asks for one, σ₁ comes
from Lanczos and the rank from `counting`.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from zanalysis.analyzers.counting import counted
from zanalysis.analyzers.lanczos import WarmStart
from zanalysis.analyzers.matrices import (
    Learned,
    Reference,
    View,
    checked_parameter,
    computable,
    identity_like,
    identity_scale_of,
    learned_of,
    matricize,
    subtract_identity,
)
from zanalysis.analyzers.norms import SMALL, loose_square, norm_of, working
from zanalysis.analyzers.shared_products import lower_gram
from zanalysis.analyzers.values import all_values
from zanalysis.errors import InputError

__all__ = ["Residual"]

EVEN = (1e-4, 1e6)
"""Rows whose longest has a length between these can be squared in float32."""

NEED_SPECTRUM = frozenset({"effective_rank", "nuclear_norm", "condition_number", "singular_values"})


@dataclass(frozen=True)
class Residual:
    """The matrices of `W − W_ref` in float64, with what is needed to say how far to trust them.

    Attributes:
        kept: W in the layout of `matrices`, in the dtype it was stored in.
        differ: gives `W − W_ref`, float64, or None where there is no reference.
        initial: gives W_ref in the same layout, float64, or None.
        eps: machine epsilon of the coarsest dtype that W or W_ref was stored in.
        stored: the dtype that W was stored in.
        identity_scale: α of the batch shape where the reference is α·I*, else None.
        warm: where the search for σ₁ starts, if it has been made before.
        wants: the metrics that will be asked for, by which the cheapest way to all of them is chosen.
        counts: rank and margin by the name of the tolerance.
        grams: the lower triangles of Gram matrices that were needed.
        learned: where the reference is α·I* and W one matrix that is mostly that, the rest of it.
    """

    kept: Tensor
    differ: Callable[[], Tensor] | None
    initial: Callable[[], Tensor] | None
    eps: float
    stored: torch.dtype
    identity_scale: Tensor | None = None
    warm: WarmStart | None = None
    wants: frozenset[str] = frozenset()
    counts: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, compare=False)
    grams: dict[int, Tensor] = field(default_factory=dict, compare=False)
    learned: Learned | None = None

    @classmethod
    def of(
        cls,
        W: Any,
        reference: Reference = None,
        view: View = "out",
        warm: WarmStart | None = None,
        wants: Iterable[str] = (),
    ) -> "Residual":
        """Subtract the reference and lay the result out as matrices.

        Args:
            W: the parameter, in the dtype it was stored in.
            reference: None, ``"identity"`` (α·I*) or a tensor of W's shape.
            view: how a parameter becomes matrices.
            warm: the singular vectors of the same residual's last record.
            wants: the metrics that will be asked for, as far as that is known.

        Returns:
            The residual.

        Raises:
            InputError: if W is no floating tensor with two dimensions, or the reference does not fit.
        """
        parameter = checked_parameter(W)
        stored, parameter = parameter.dtype, computable(parameter)
        kept = matricize(parameter, view)
        eps = torch.finfo(stored).eps
        if reference is None:
            return cls(kept, None, None, eps, stored, None, warm, frozenset(wants))
        if not isinstance(reference, str):
            initial_weight = checked_parameter(reference)
            if initial_weight.shape != parameter.shape:
                raise InputError(
                    f"the reference has shape {list(initial_weight.shape)}, the weight "
                    f"{list(parameter.shape)}; pass a tensor of the weight's own shape."
                )
            eps = max(eps, torch.finfo(initial_weight.dtype).eps)
            start = matricize(computable(initial_weight).to(parameter.device), view)
            return cls(
                kept,
                lambda: kept.double() - start.double(),
                start.double,
                eps,
                stored,
                None,
                warm,
                frozenset(wants),
            )
        if reference != "identity":
            raise InputError(
                f"unknown reference {reference!r}: expected None, 'identity' or a tensor of the "
                "weight's shape ('init' is known only to a tracker or a series of checkpoints)."
            )
        learned = None
        if kept.ndim == 2 and parameter.ndim == 2 and min(kept.shape) > SMALL and not callable(view):
            scale, learned = learned_of(kept)
        else:
            scale = identity_scale_of(parameter)
        # A NaN scale has no reference to subtract; its status says so, and no NaN spreads.
        used = scale.nan_to_num(1.0)
        if scale.ndim == 0:
            scale = scale.expand(kept.shape[:-2])  # one kernel, many taps

        def initial() -> Tensor:
            return matricize(identity_like(parameter, used), view)

        def differ() -> Tensor:
            if callable(view):
                return kept.double() - initial()
            return matricize(subtract_identity(parameter, used), view)

        wanted = frozenset(wants)
        return cls(kept, differ, initial, eps, stored, scale, warm, wanted, learned=learned)

    @cached_property
    def matrices(self) -> Tensor:
        """`W − W_ref`, `[..., m, n]`, float64."""
        return self.weight if self.differ is None else self.differ()

    @cached_property
    def weight(self) -> Tensor:
        """W in the same layout, float64."""
        return self.kept.double()

    @cached_property
    def reference(self) -> Tensor | None:
        """W_ref in the same layout, float64, or None."""
        return None if self.initial is None else self.initial()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of one matrix."""
        return self.kept.shape[-2], self.kept.shape[-1]

    @property
    def batch_shape(self) -> torch.Size:
        """The shape of the results."""
        return self.kept.shape[:-2]

    @property
    def device(self) -> torch.device:
        """Where the results are."""
        return self.kept.device

    @property
    def empty(self) -> bool:
        """Whether there is not one entry to look at."""
        return 0 in self.kept.shape

    def full(self, value: float) -> Tensor:
        """Return one number for every matrix.

        Args:
            value: the number.

        Returns:
            float64, batch shape.
        """
        return torch.full(self.batch_shape, value, dtype=torch.float64, device=self.device)

    @cached_property
    def _entries(self) -> Tensor:
        # Without a reference the stored entries say as much as their float64 copies, for less.
        if self.learned is not None:
            return self.learned.residual
        return self.kept if self.differ is None else self.matrices

    @cached_property
    def _extremes(self) -> tuple[Tensor, Tensor]:
        entries = self._entries
        return entries.amin((-2, -1)).double(), entries.amax((-2, -1)).double()

    @cached_property
    def _lengths(self) -> Tensor | None:
        # ‖·‖ of each row, where they say at a glance that a matrix is finite, not zero and fit to be squared:
        # float64, `[..., m]`. Each in its own precision, which is right to 1e-6 at a quarter of the cost.
        if not self.coarse or self.small or self.device.type != "cpu" or self._entries.dtype != torch.float32:
            return None
        lengths = torch.linalg.vector_norm(self._entries, dim=-1)
        longest = lengths.amax(-1)
        plain = bool(((longest > EVEN[0]) & (longest < EVEN[1])).all())
        return lengths.double() if plain else None

    @cached_property
    def unit(self) -> Tensor:
        """The largest magnitude of an entry: float64, batch shape; not finite where one is not."""
        low, high = self._extremes
        return torch.maximum(-low, high)

    @cached_property
    def finite(self) -> Tensor:
        """Whether every entry of a matrix and of its weight is finite: bool, batch shape."""
        if self.empty:
            return torch.ones(self.batch_shape, dtype=torch.bool, device=self.device)
        if self._lengths is not None:
            return self._lengths.sum(-1).isfinite()
        return self.unit.isfinite()

    @cached_property
    def defined(self) -> Tensor:
        """Whether there is a residual at all: finite, and with a common diagonal where one is asked for."""
        if self.empty:
            return torch.zeros(self.batch_shape, dtype=torch.bool, device=self.device)
        if self.identity_scale is None:
            return self.finite
        return self.finite & ~self.identity_scale.isnan()

    @cached_property
    def nonzero(self) -> tuple[Tensor, Tensor]:
        """Which rows `[..., m]` and which columns `[..., n]` have a non-zero entry."""
        if self.empty:
            entries = self.kept != 0
            return entries.any(-1), entries.any(-2)
        if self.learned is not None:
            return self.learned.rows, self.learned.columns
        magnitudes = self._entries.abs()
        return magnitudes.amax(-1) != 0, magnitudes.amax(-2) != 0

    @cached_property
    def zero(self) -> Tensor:
        """Whether every entry is exactly zero: bool, batch shape."""
        if self.empty:
            return torch.ones(self.batch_shape, dtype=torch.bool, device=self.device)
        if self._lengths is not None:
            return torch.zeros(self.batch_shape, dtype=torch.bool, device=self.device)
        return self.unit == 0

    @property
    def small(self) -> bool:
        """Whether the spectrum costs no more than what would replace it."""
        return min(self.shape) <= SMALL

    @property
    def has_spectrum(self) -> bool:
        """Whether the whole spectrum is there, is cheap or will be asked for anyway."""
        cheap = self.small and not self.coarse
        return cheap or "singular_values" in self.__dict__ or not NEED_SPECTRUM.isdisjoint(self.wants)

    @property
    def has_squares(self) -> bool:
        """Whether the eigenvalues of the Gram matrix take the place of the spectrum."""
        return self.small and not self.has_spectrum and not self.empty

    @cached_property
    def squares(self) -> Tensor:
        """The squares of the singular values, right to rounding of the largest: float64 `[..., min(m, n)]`."""
        return self._squares(self.matrices)

    def _squares(self, matrices: Tensor) -> Tensor:
        clean = torch.where(self.defined[..., None, None], matrices, 0.0)
        short = clean if self.shape[0] <= self.shape[1] else clean.mT
        values: Tensor = torch.linalg.eigvalsh(short @ short.mT).flip(-1).clamp(min=0)
        return torch.where(self.defined[..., None], values, torch.nan)

    def compact(self, index: int) -> Tensor:
        """Return one matrix without its zero rows and columns, which add only zeros to the spectrum.

        Args:
            index: which matrix of the batch.

        Returns:
            `[rows, columns]`, float64.
        """
        if self.learned is not None:
            return self.learned.block
        rows, columns = (axis.reshape(-1, axis.shape[-1])[index] for axis in self.nonzero)
        matrix = self.matrices.reshape(-1, *self.shape)[index]
        return matrix if bool(rows.all()) and bool(columns.all()) else matrix[rows][:, columns]

    @property
    def shares_gram(self) -> bool:
        """Whether σ₁ is proved and the rank counted on the same Gram matrix."""
        return self.coarse and not {"rank", "rank_margin"}.isdisjoint(self.wants)

    def gram(self, index: int) -> Tensor:
        """Return the lower triangle of the Gram matrix of the shorter side of `compact`, float64."""
        if index not in self.grams:
            A = self.compact(index)
            self.grams[index] = lower_gram(A if A.shape[0] <= A.shape[1] else A.mT)
        return self.grams[index]

    @cached_property
    def singular_values(self) -> Tensor:
        """All singular values, descending, float64 `[..., min(m, n)]`; NaN where undefined."""
        count = min(self.shape)
        if self.empty or (self.kept.ndim > 2 and self.small):
            clean = torch.where(self.defined[..., None, None], self.matrices, 0.0)
            return torch.where(self.defined[..., None], torch.linalg.svdvals(clean), torch.nan)
        spectra = torch.full(
            (max(1, math.prod(self.batch_shape)), count), torch.nan, dtype=torch.float64, device=self.device
        )
        for index, defined in enumerate(self.defined.reshape(-1).tolist()):
            if defined:
                values = all_values(self.compact(index), self.coarse)
                spectra[index] = torch.nn.functional.pad(values, (0, count - values.shape[0]))
        return spectra.reshape(*self.batch_shape, count)

    @cached_property
    def largest(self) -> Tensor:
        """σ₁ of the residual: float64, batch shape; without the rest of the spectrum where that costs."""
        if self.empty:
            return self.full(math.nan)
        if self.has_spectrum:
            return self.singular_values[..., 0]
        if self.has_squares:
            return self.squares[..., 0].sqrt()

        def norm(index: int) -> float:
            # What is left of a partial identity is often a small block.
            gram = (lambda: self.gram(index)) if self.shares_gram else None
            return norm_of(self.compact(index), self.coarse, self.warm, ("residual", index), gram)

        return self.each(norm)

    @property
    def coarse(self) -> bool:
        """Whether the entries come from float32 or below, whose squares float64 holds exactly."""
        return self.eps >= torch.finfo(torch.float32).eps

    @cached_property
    def scale(self) -> Tensor:
        """The larger of σ₁(W) and σ₁(W_ref), whose rounding errors the residual carries."""
        if self.differ is None:
            return self.largest
        if self.learned is not None and self.identity_scale is not None:
            around = norm_of(self.learned.weight, self.coarse, self.warm, ("weight", 0))
            return self.identity_scale.abs().clamp(min=around)
        weight = self._norms(self.weight, "weight")
        if self.identity_scale is not None:
            return torch.maximum(weight, self.identity_scale.abs())
        assert self.reference is not None
        return torch.maximum(weight, self._norms(self.reference, "reference"))

    def _norms(self, matrices: Tensor, name: str) -> Tensor:
        if self.small and self.coarse:
            return self._squares(matrices)[..., 0].sqrt()
        if self.small:
            clean = torch.where(self.defined[..., None, None], matrices, 0.0)
            return torch.where(self.defined, torch.linalg.svdvals(clean)[..., 0], torch.nan)
        flat = matrices.reshape(-1, *self.shape)
        values = [
            norm_of(flat[index], self.coarse, self.warm, (name, index)) if defined else math.nan
            for index, defined in enumerate(self.defined.reshape(-1).tolist())
        ]
        return torch.tensor(values, dtype=torch.float64, device=self.device).reshape(self.batch_shape)

    @cached_property
    def stable_rank(self) -> Tensor:
        """‖A‖_F² / σ₁² of the batch shape, 0 for a zero matrix: from σ₁ to `LOOSE` where that is cheaper."""
        if self.empty:
            return self.full(math.nan)
        if self.has_spectrum or self.has_squares or "largest" in self.__dict__:
            return (self.frobenius / torch.where(self.largest > 0, self.largest, 1.0)).square()
        rows, columns = self._entries.shape[-2:]
        source = self._entries.reshape(-1, rows, columns)

        def ratio(index: int) -> float:
            unit = 1.0 if self._lengths is not None else float(self.unit.reshape(-1)[index])
            work, _ = working(source[index], unit, self.coarse)
            square = loose_square(work, self.warm, ("residual", index))
            if square is None:
                return float(self.frobenius.reshape(-1)[index] / self.largest.reshape(-1)[index]) ** 2
            if self._lengths is not None:
                squares = self._lengths.reshape(-1, rows)[index].square()
            else:
                squares = torch.linalg.vector_norm(work, dim=-1).double().square()
            return float(squares.sum()) / square

        return self.each(ratio)

    def each(self, number: Callable[[int], float]) -> Tensor:
        """Compute one number for every matrix that is defined and not zero.

        Args:
            number: the index of a matrix among them all, to a number.

        Returns:
            float64 of the batch shape; 0 for a zero matrix, NaN for an undefined one.
        """
        fates = zip(self.defined.reshape(-1).tolist(), self.zero.reshape(-1).tolist(), strict=True)
        values = [
            math.nan if not defined else 0.0 if zero else number(index)
            for index, (defined, zero) in enumerate(fates)
        ]
        return torch.tensor(values, dtype=torch.float64, device=self.device).reshape(self.batch_shape)

    @cached_property
    def frobenius(self) -> Tensor:
        """‖A‖_F, float64, batch shape, from squares that neither overflow nor vanish."""
        if self.empty:
            return self.full(math.nan)
        if self.has_squares:
            return self.squares.sum(-1).sqrt()
        ordinary = (self.unit > 1e-100) & (self.unit < 1e100)
        unit = torch.where(ordinary | self.zero | ~self.defined, 1.0, self.unit)
        matrices = self.matrices if self.learned is None else self.learned.residual
        matrices = matrices if bool((unit == 1).all()) else matrices / unit[..., None, None]
        norms = torch.linalg.vector_norm(matrices, dim=(-2, -1)) * unit
        return torch.where(self.defined, norms, torch.nan)

    def count(self, rule: str, tau: Tensor, margin: bool) -> tuple[Tensor, Tensor]:
        """Count the singular values above τ, and measure how far the nearest one is from it; once.

        Args:
            rule: the name of the tolerance.
            tau: float64, batch shape.
            margin: whether the margin is wanted.

        Returns:
            The count and the margin (NaN where it is not wanted), of the batch shape; NaN where
            undefined.
        """
        if rule not in self.counts:
            self.counts[rule] = self._count(tau, margin or "rank_margin" in self.wants)
        return self.counts[rule]

    def _count(self, tau: Tensor, margin: bool) -> tuple[Tensor, Tensor]:
        return counted(self, tau, margin)
