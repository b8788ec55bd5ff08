"""What is kept of a stack of samples: a square factor, from which its singular values follow.

Both factors take rows `[samples, features]` and keep O(features²) float64 numbers, however many rows they
see.

- `Gram` keeps ZᵀZ. It is one matrix product per row, but it squares the condition: in float64 it decides
  nothing below about √eps · σ₁ = 1.5e-8 · σ₁, and `FLOOR` keeps a safe distance from that. While there are
  fewer rows than half the features it keeps the rows themselves, whose ZZᵀ is smaller and has the same
  eigenvalues: those of one batch of 64 with 1,024 features come more than 100 times sooner.
- `Triangle` keeps R of Z = QR, updated by R ← qr([R; rows]) (Golub & Van Loan, Matrix Computations, 4th ed.,
  6.5). It does not square, so it decides down to a few eps · σ₁, at two to three times the cost.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

__all__ = ["FLOOR", "Factor", "Gram", "Sketch", "Triangle"]

FLOOR = 1e-6
_PANEL = 64
_ROWS = 512
_TRIANGLE_ROWS = 4096
_GAP = 1e3


class Factor(ABC):
    """What the two factors share; below `floor` · σ₁ a factor decides nothing."""

    floor: float

    def __init__(self, features: int, device: torch.device) -> None:
        self.features = features
        self.device = device

    @abstractmethod
    def add(self, rows: Tensor) -> None:
        """Take rows `[samples, features]` in; they are neither kept nor changed."""

    @abstractmethod
    def absorb(self, other: "Factor") -> None:
        """Take in all the rows of another factor of the same kind and width, which is left as it is."""

    @abstractmethod
    def sizes(self) -> Tensor:
        """Measure the columns: `[features]`, zero where all is zero, not finite where something is not."""

    @abstractmethod
    def energy(self) -> Tensor:
        """Sum the squares of each column: `[features]`."""

    @abstractmethod
    def singular_values(self) -> Tensor:
        """Return the singular values of all rows stacked: `[features]`, descending, of finite rows."""

    @abstractmethod
    def exceeds(self, square: Tensor) -> bool:
        """Say whether the smallest singular value, squared, may exceed a number; False is certain."""

    @abstractmethod
    def complement(self, values: Tensor, rank: int) -> Tensor | None:
        """Find an orthonormal basis of the directions behind the first `rank` of the singular values.

        Args:
            values: what `singular_values` returns.
            rank: at least 1, at most features.

        Returns:
            `[features, features - rank]`, or None where no gap in the values sets these directions apart.
        """

    @abstractmethod
    def inside(self, basis: Tensor) -> Tensor:
        """Return the largest singular value, squared, of the rows times `[features, columns]`: 0-d."""


class Gram(Factor):
    """The upper half of ZᵀZ, for 32-bit and 16-bit samples, whose squares float64 holds without overflow."""

    def __init__(self, features: int, device: torch.device) -> None:
        super().__init__(features, device)
        self.floor = FLOOR
        self._sum: Tensor | None = None
        self._few: list[Tensor] = []
        self._zeros = torch.zeros(features, dtype=torch.float64, device=device)

    @property
    def product(self) -> Tensor:
        """ZᵀZ, its upper half."""
        if self._sum is None:
            self._sum = torch.zeros(self.features, self.features, dtype=torch.float64, device=self.device)
            for rows in self._few:
                self._add(self._sum, rows)
            self._few = []
        return self._sum

    def add(self, rows: Tensor) -> None:
        """Keep a copy of the rows while they are few; else add rowsᵀ · rows."""
        if self._sum is None and 2 * (sum(map(len, self._few)) + len(rows)) <= self.features:
            self._few.append(rows.clone())
        else:
            self._add(self.product, rows)

    def _add(self, product: Tensor, rows: Tensor) -> None:
        # By panels, as the upper half costs little more than half of the whole.
        # A GPU is kept busy by few large products, a CPU by panels that fit its cache.
        panel = _PANEL if self.device.type == "cpu" else max(1, self.features)
        for part in torch.split(rows, _ROWS):
            wide = part.to(torch.float64)
            for left in range(0, self.features, panel):
                right = left + panel
                product[left:right, left:].addmm_(wide[:, left:right].T, wide[:, left:])

    def absorb(self, other: Factor) -> None:
        """Add the other's product: exact up to one rounding of each entry."""
        assert isinstance(other, Gram)
        if other._sum is None:
            for rows in other._few:
                self.add(rows.to(self.device))
        else:
            self.product.add_(other._sum.to(self.device))

    def sizes(self) -> Tensor:
        """Return the diagonal."""
        return self.energy()

    def energy(self) -> Tensor:
        """Return the diagonal."""
        if self._sum is not None:
            return self._sum.diagonal()
        return sum((rows.double().square().sum(0) for rows in self._few), self._zeros)

    def singular_values(self) -> Tensor:
        """Return the square roots of the eigenvalues, with an absolute error of about 1e-8 · σ₁."""
        if self._sum is None and self._few:
            rows = torch.cat([part.to(torch.float64) for part in self._few])
            eigenvalues: Tensor = torch.linalg.eigvalsh(rows @ rows.T)
            eigenvalues = torch.nn.functional.pad(eigenvalues, (self.features - len(eigenvalues), 0))
        else:
            eigenvalues = torch.linalg.eigvalsh(self.product, UPLO="U")
        return eigenvalues.clamp_min(0.0).sqrt().flip(0)

    def exceeds(self, square: Tensor) -> bool:
        """Try a Cholesky factorization, which costs a fraction of the eigenvalues.

        Args:
            square: the number.

        Returns:
            Whether it succeeds.
        """
        shifted = self.product.clone()
        shifted.diagonal().sub_(square)
        return not torch.linalg.cholesky_ex(shifted, upper=True)[1]

    def complement(self, values: Tensor, rank: int) -> Tensor | None:
        """Iterate inversely (Golub & Van Loan, 8.2), which needs little memory beside the matrix.

        Args:
            values: what `singular_values` returns.
            rank: at least 1.

        Returns:
            The basis, if there is a gap.
        """
        if rank == self.features:
            return self.product.new_zeros(self.features, 0)
        # Between the two sides of the gap: each step then shrinks what lies above it by at least _GAP.
        shift = torch.maximum(4 * values[rank].square(), 1e-13 * values[0].square())
        if values[rank - 1].square() < _GAP * shift:
            return None
        shifted = self.product.clone()
        shifted.diagonal().add_(shift)
        failed = torch.zeros((), dtype=torch.int32, device=self.device)
        # Into itself: the smaller the layer's share of memory, the better.
        torch.linalg.cholesky_ex(shifted, upper=True, out=(shifted, failed))
        if failed:
            return None
        own = torch.Generator().manual_seed(rank)
        basis = torch.randn(self.features, self.features - rank, generator=own, dtype=torch.float64)
        basis = basis.to(self.device)
        for _ in range(3):
            basis = torch.linalg.solve_triangular(shifted.T, basis, upper=False)
            basis = torch.linalg.qr(torch.linalg.solve_triangular(shifted, basis, upper=True)).Q
        return basis

    def inside(self, basis: Tensor) -> Tensor:
        """Return the largest eigenvalue of basisᵀ · ZᵀZ · basis."""
        upper = self.product.triu()
        half = upper @ basis
        whole = basis.T @ half
        whole = whole + whole.T - (basis * upper.diagonal()[:, None]).T @ basis
        eigenvalues: Tensor = torch.linalg.eigvalsh(whole)
        return eigenvalues.amax().clamp_min(0.0) if len(eigenvalues) else eigenvalues.new_zeros(())


class Triangle(Factor):
    """The triangular factor of Z, and the rows that wait to be folded into it."""

    def __init__(self, features: int, device: torch.device) -> None:
        super().__init__(features, device)
        self.floor = features * torch.finfo(torch.float64).eps
        self.triangle = torch.zeros(0, features, dtype=torch.float64, device=device)
        self.peaks = torch.zeros(features, dtype=torch.float64, device=device)
        self.waiting: list[Tensor] = []
        # Folding more rows at a time costs less; folding a few thousand at a time also rounds least.
        self.limit = max(_TRIANGLE_ROWS, 2 * features)

    def add(self, rows: Tensor) -> None:
        """Queue a copy of the rows, which the caller may overwrite, and fold when the queue is full."""
        room = self.limit - sum(len(part) for part in self.waiting)
        while len(rows):
            part = rows[:room].to(torch.float64, copy=True)
            self.peaks = torch.maximum(self.peaks, part.abs().amax(0))
            self.waiting.append(part)
            rows, room = rows[room:], room - len(part)
            if not room:
                self._fold()
                room = self.limit

    def absorb(self, other: Factor) -> None:
        """Fold the other's triangle and its waiting rows in."""
        assert isinstance(other, Triangle)
        self.peaks = torch.maximum(self.peaks, other.peaks.to(self.device))
        self.waiting += [part.to(self.device) for part in (other.triangle, *other.waiting)]
        self._fold()

    def sizes(self) -> Tensor:
        """Return the largest absolute value of each column."""
        return self.peaks

    def energy(self) -> Tensor:
        """Return the squared column norms of the triangle, which are those of the rows."""
        self._fold()
        return self.triangle.square().sum(0)

    def singular_values(self) -> Tensor:
        """Return the singular values of the triangle less its zero columns, to a few eps · σ₁."""
        self._fold()
        values = torch.linalg.svdvals(self.triangle[:, self.peaks > 0])
        return torch.nn.functional.pad(values, (0, self.features - len(values)))

    def exceeds(self, square: Tensor) -> bool:
        """Ask the smallest entry on the diagonal, which is an upper bound.

        Args:
            square: the number.

        Returns:
            Whether the entry exceeds it.
        """
        self._fold()
        return bool(self.triangle.diagonal().square().amin() > square) if len(self.triangle) else False

    def complement(self, values: Tensor, rank: int) -> Tensor | None:
        """Take the last right singular vectors.

        Args:
            values: what `singular_values` returns.
            rank: at least 1.

        Returns:
            The basis.
        """
        self._fold()
        right: Tensor = torch.linalg.svd(self.triangle)[2]
        return right[rank:].T

    def inside(self, basis: Tensor) -> Tensor:
        """Return the largest singular value of triangle · basis, squared."""
        self._fold()
        values: Tensor = torch.linalg.svdvals(self.triangle @ basis)
        return values.amax().square() if len(values) else values.new_zeros(())

    def _fold(self) -> None:
        if self.waiting:
            # Rows that are not finite have marked the peaks for good, and LAPACK must not see them.
            rows = torch.nan_to_num(torch.cat([self.triangle, *self.waiting]), 0.0, 0.0, 0.0)
            self.triangle = torch.linalg.qr(rows, mode="r").R
            self.waiting = []


class Sketch:
    """Z·S/√width for a matrix S of random signs (Achlioptas 2003), and which features were ever non-zero.

    S depends on nothing but the shape, so that the sketches of different workers can be added.
    """

    def __init__(self, features: int, width: int, device: torch.device) -> None:
        own = torch.Generator().manual_seed(features)
        bits = torch.randint(0, 2, (features, width), generator=own, dtype=torch.int8)
        self.signs = (2 * bits - 1).to(device)
        self.peaks = torch.zeros(features, dtype=torch.float64, device=device)

    def __call__(self, rows: Tensor) -> Tensor:
        """Sketch rows.

        Args:
            rows: `[samples, features]`.

        Returns:
            `[samples, width]` float64.
        """
        self.peaks = torch.maximum(self.peaks, rows.abs().amax(0).to(torch.float64))
        width = self.signs.shape[1]
        out = torch.zeros(len(rows), width, dtype=torch.float64, device=rows.device)
        # By blocks, so that no float64 copy of S is ever larger than width².
        for part, signs in zip(torch.split(rows, width, 1), torch.split(self.signs, width), strict=True):
            out.addmm_(part.to(torch.float64), signs.to(torch.float64))
        return out.div_(width**0.5)
