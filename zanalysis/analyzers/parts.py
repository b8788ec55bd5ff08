"""One process's part of a matrix that several hold together: what it adds to small reductions.

Layout: process p holds `A[rows, columns]`, two ascending lists of global indices; every entry of A is in
exactly one part that counts (a replica counts nothing). Of a matrix that is *split by rows* every part
has all columns, of one *split by columns* all rows, of one split by *both* neither.

Each `Op` is a sum, or a maximum, over the parts: rows and columns land where they belong in a vector of
zeros, so that nobody has to know what the others hold. A Gram matrix of the unsplit side and the products
with it are such sums, and no entry of A travels.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

import torch
from torch import Tensor

from zanalysis.analyzers.shared_products import lower_gram, times, times_adjoint

__all__ = ["Of", "Op", "Part", "Split", "length", "takes_maximum", "unsplit_side"]

Split = Literal["rows", "columns", "both"]


class Of(IntEnum):
    """Of which matrix a number is: the residual, the weight itself, or what is subtracted."""

    RESIDUAL = 0
    WEIGHT = 1
    REFERENCE = 2


class Op(IntEnum):
    """What the processes can be asked for."""

    LOOK = 0
    """Whether something is not finite, the largest magnitude, which rows and which columns are not zero."""
    NORMS = 1
    """The squared norms of the rows and of the columns."""
    GRAM = 2
    """The lower triangle of the Gram matrix of the unsplit side."""
    NORMAL = 3
    """That Gram matrix times a vector, without forming it."""
    FORTH = 4
    """A times a vector."""
    BACK = 5
    """Aᵀ times a vector."""
    DIAGONAL = 6
    """The diagonal."""
    OFF_DIAGONAL = 7
    """The largest magnitude off the diagonal in each row and in each column."""
    IDENTITY = 8
    """From here on the residual is A − α·I*; adds nothing."""


def takes_maximum(op: Op) -> bool:
    """Say whether an answer is a maximum over the parts, and not a sum.

    Args:
        op: what is asked for.

    Returns:
        Whether it is.
    """
    return op in (Op.LOOK, Op.OFF_DIAGONAL)


def unsplit_side(shape: tuple[int, int], split: Split) -> int:
    """Return the length of the side that every part has whole.

    Args:
        shape: of the matrix.
        split: by rows or by columns.

    Returns:
        The number of columns or of rows.
    """
    return shape[0] if split == "columns" else shape[1]


def length(op: Op, shape: tuple[int, int], split: Split) -> int:
    """Return how many numbers an answer has.

    Args:
        op: what is asked for.
        shape: of the matrix.
        split: how it is split.

    Returns:
        The number.

    Example:
        >>> length(Op.GRAM, (7, 3), "rows")
        9
    """
    m, n = shape
    side = unsplit_side(shape, split)
    return {
        Op.LOOK: 2 + m + n,
        Op.NORMS: m + n,
        Op.GRAM: side * side,
        Op.NORMAL: side,
        Op.FORTH: m,
        Op.BACK: n,
        Op.DIAGONAL: min(m, n),
        Op.OFF_DIAGONAL: m + n,
        Op.IDENTITY: 0,
    }[op]


@dataclass
class Part:
    """What one process holds of a matrix.

    Attributes:
        weight: `A[rows, columns]`, in the dtype it is stored in.
        rows: their indices in A, ascending.
        columns: their indices in A, ascending.
        shape: of A.
        split: how A is split.
        reference: the same part of what is subtracted, or None.
        counts: whether this part is in the sums; of several replicas one is.
        identity: α, where α·I* is subtracted.
    """

    weight: Tensor
    rows: Tensor
    columns: Tensor
    shape: tuple[int, int]
    split: Split
    reference: Tensor | None = None
    counts: bool = True
    identity: float | None = None
    _work: tuple[tuple[Of, float], Tensor] | None = field(default=None, repr=False)

    def answer(self, op: Op, of: Of, scale: float, vector: Tensor | None = None) -> Tensor:
        """Return what this part adds.

        Args:
            op: what is asked for.
            of: of which matrix.
            scale: a power of two that makes its entries fit to be squared.
            vector: float64, for the products, or α.

        Returns:
            float64 `[length(op, shape, split)]`, on the part's device; zeros where it does not count.
        """
        if op == Op.IDENTITY:
            assert vector is not None
            self.identity, self._work = float(vector), None
        nothing = torch.zeros(
            length(op, self.shape, self.split), dtype=torch.float64, device=self.weight.device
        )
        if op == Op.IDENTITY or not self.counts or self.weight.numel() == 0:
            return nothing
        if op == Op.LOOK:
            return self._look(self.entries(of), nothing)
        if op == Op.DIAGONAL:
            here, there = self._on_diagonal()
            nothing[self.rows[here]] = self.weight[here, there].double()
            return nothing
        if op == Op.OFF_DIAGONAL:
            return self._off_diagonal(nothing)
        return self._product(op, self.work(of, scale), vector, nothing)

    def entries(self, of: Of) -> Tensor:
        """Return the part of one of the matrices, as fine as it needs to be.

        Args:
            of: which.

        Returns:
            `[rows, columns]`: stored entries as they are, differences in float64.
        """
        if of == Of.REFERENCE:
            assert self.reference is not None
            return self.reference
        if of == Of.WEIGHT or (self.reference is None and self.identity is None):
            return self.weight
        difference = self.weight.to(torch.float64, copy=True)
        if self.reference is not None:
            return difference.sub_(self.reference)
        assert self.identity is not None
        difference[self._on_diagonal()] -= self.identity
        return difference

    def work(self, of: Of, scale: float) -> Tensor:
        """Return the entries in float64, times a power of two, kept for the next question.

        Args:
            of: of which matrix.
            scale: the factor.

        Returns:
            `[rows, columns]`.
        """
        if self._work is None or self._work[0] != (of, scale):
            entries = self.entries(of).double()
            self._work = ((of, scale), entries if scale == 1.0 else entries * scale)
        return self._work[1]

    def forget(self) -> None:
        """Let go of what `work` keeps."""
        self._work = None

    def _look(self, entries: Tensor, out: Tensor) -> Tensor:
        m = self.shape[0]
        magnitudes = entries.abs()
        in_row, in_column = magnitudes.amax(1), magnitudes.amax(0)
        largest = in_row.amax().double()
        # What is not finite does not survive every library's maximum: it travels as a flag.
        out[0] = (~largest.isfinite()).double()
        out[1] = largest.nan_to_num(0.0, 0.0)
        out[2 + self.rows] = (in_row != 0).double()
        out[2 + m + self.columns] = (in_column != 0).double()
        return out

    def _product(self, op: Op, work: Tensor, vector: Tensor | None, out: Tensor) -> Tensor:
        m = self.shape[0]
        if op == Op.NORMS:
            squares = work.square()
            out[self.rows] = squares.sum(1)
            out[m + self.columns] = squares.sum(0)
            return out
        # As if split by rows: every part has the whole of the other side.
        tall = work.mT if self.split == "columns" else work
        if op == Op.GRAM:
            return lower_gram(tall.mT).reshape(-1)
        assert vector is not None
        if op == Op.NORMAL:
            return times_adjoint(tall, times(tall, vector))
        if op == Op.FORTH:
            out[self.rows] = times(work, vector[self.columns])
        else:
            out[self.columns] = times_adjoint(work, vector[self.rows])
        return out

    def _on_diagonal(self) -> tuple[Tensor, Tensor]:
        # Where the part has entries of the diagonal: local rows and local columns.
        there = torch.searchsorted(self.columns, self.rows).clamp_(max=len(self.columns) - 1)
        hit = self.columns[there] == self.rows
        return hit.nonzero()[:, 0], there[hit]

    def _off_diagonal(self, out: Tensor) -> Tensor:
        elsewhere = self.weight.abs()
        elsewhere[self._on_diagonal()] = 0
        elsewhere = elsewhere.nan_to_num(torch.inf, torch.inf)
        out[self.rows] = elsewhere.amax(1).double()
        out[self.shape[0] + self.columns] = elsewhere.amax(0).double()
        return out
