"""When a span may stop accumulating: once more samples provably change nothing.

Let σ₁ ≥ σ₂ ≥ … be the singular values of the samples accumulated, r of them above the tolerance τ = c · σ₁,
and let C be an orthonormal basis of the other directions. Some samples z are skipped; s is the sum of their
‖z‖² and o that of their ‖Cᵀz‖². Of all samples together, accumulated or not,

- the first r singular values are no smaller than before, and the largest is at most √(σ₁² + s) (Weyl);
- the others are at most √(‖Z C‖² + o), with Z the samples accumulated (Courant & Fischer).

More samples raise σ₁, and with it τ, so to have reached a dimension once proves nothing about later. What
proves it is σ_r² > c² · (σ₁² + s) and ‖Z C‖² + o < c² · σ₁². Samples may be skipped while both hold with a
margin of four, the samples themselves counted. Of a full span C is empty, and only the first is asked.
"""

import torch
from torch import Tensor

from zanalysis.analyzers.factors import Factor

__all__ = ["StopRule"]

_MARGIN = 4.0
_ROWS = 256


class StopRule:
    """Decides which rows may be skipped, and keeps what the proof needs of them.

    Args:
        width: columns of the rows.
        device: where the rows are.
        settled: skip rows also where the span is not full, but nothing new comes.
    """

    def __init__(self, width: int, device: torch.device, settled: bool) -> None:
        self.settled = settled
        self.skipped = 0
        # Of the rows skipped: sum of squares by column, C as it was when they were, and o.
        self.energy = torch.zeros(width, dtype=torch.float64, device=device)
        self._complement = torch.zeros(width, 0, dtype=torch.float64, device=device)
        self._outside = 0.0
        # While rows may be skipped: σ_r², σ₁² and ‖Z C‖².
        self._proof: tuple[float, float, float] | None = None
        self._look_at = 2 * width

    def skips(self, rows: Tensor, relative: float) -> bool:
        """Skip rows if that is safe.

        Args:
            rows: `[samples, width]`.
            relative: c = τ / σ₁.

        Returns:
            Whether they were skipped and are accounted for; if not, they are to be accumulated.
        """
        if self._proof is None:
            return False
        energy, outside = self.energy, self._outside
        for part in torch.split(rows, _ROWS):
            wide = part.to(torch.float64)
            energy = energy + wide.square().sum(0)
            outside += (wide @ self._complement).square().sum().item()
        if not self._holds(self._proof, energy, outside, relative):
            self._proof, self._look_at = None, 0
            return False
        self.energy, self._outside = energy, outside
        self.skipped += len(rows)
        return True

    def due(self, factor: Factor, accumulated: int, relative: float) -> bool:
        """Say whether to look at the singular values: when the samples have doubled, and if it may help.

        Args:
            factor: of the samples accumulated.
            accumulated: their number.
            relative: c = τ / σ₁.

        Returns:
            Whether it is.
        """
        if accumulated < self._look_at or not factor.sizes().isfinite().all():
            return False
        self._look_at = 2 * accumulated
        # The largest column norm is a lower bound of σ₁.
        return self.settled or factor.exceeds(_MARGIN * relative**2 * factor.energy().amax())

    def look(self, factor: Factor, values: Tensor, relative: float) -> None:
        """Look whether samples may be skipped from here on.

        Args:
            factor: of the samples accumulated.
            values: `[width]`, their singular values, descending.
            relative: c = τ / σ₁.
        """
        self._proof = None
        rank = int((values > relative * values[0]).sum())
        # A complement wider than half costs as much per sample as accumulating it.
        if not rank or 2 * rank < len(values) or (rank < len(values) and not self.settled):
            return
        smallest, largest = values[rank - 1].item() ** 2, values[0].item() ** 2
        if not self._holds((smallest, largest, 0.0), self.energy, 0.0, relative):
            return
        complement, outside = self._complement_of(factor, values, rank)
        if complement is None:
            return
        proof = (smallest, largest, factor.inside(complement).item())
        if self._holds(proof, self.energy, outside, relative):
            self._proof, self._complement, self._outside = proof, complement, outside

    def bounds(self, factor: Factor, values: Tensor, low: Tensor, high: Tensor) -> tuple[int, int]:
        """Bound the number of singular values of all samples above a tolerance.

        Args:
            factor: of the samples accumulated.
            values: `[width]`, their singular values, descending.
            low: the tolerance, if σ₁ is that of the samples accumulated.
            high: the tolerance, if σ₁ is the largest it can be.

        Returns:
            The least and the largest number there can be; equal if nothing was skipped.
        """
        least = int((values > high).sum())
        if not self.skipped:
            return least, least
        most = int(((values.square() + self.energy.sum()).sqrt() > low).sum())
        if 0 < least < most:
            complement, outside = self._complement_of(factor, values, least)
            if complement is not None and (factor.inside(complement) + outside).sqrt() <= low:
                most = least
        return least, most

    def absorb(self, other: "StopRule", factor: Factor, values: Tensor, relative: float) -> None:
        """Account for what another rule skipped.

        Args:
            other: the rule of a span with the same columns; left as it is.
            factor: of the samples that either has accumulated.
            values: `[width]`, their singular values, descending.
            relative: c = τ / σ₁.
        """
        rank = int((values > relative * values[0]).sum())
        complement = factor.complement(values, rank) if rank else None
        if complement is None:
            complement = torch.eye(len(values), dtype=torch.float64, device=values.device)
        outside = self._outside_of(complement) + other._outside_of(complement)
        self.energy = self.energy + other.energy.to(self.energy.device)
        self.skipped += other.skipped
        self._complement, self._outside = complement, outside
        self._proof, self._look_at = None, 0

    def _complement_of(self, factor: Factor, values: Tensor, rank: int) -> tuple[Tensor | None, float]:
        # The one in use is best kept: nothing leaks from it.
        if self.skipped and self._complement.shape[1] == len(values) - rank:
            return self._complement, self._outside
        complement = factor.complement(values, rank)
        return complement, 0.0 if complement is None else self._outside_of(complement)

    def _outside_of(self, complement: Tensor) -> float:
        # Of z, the old complement holds o, and the rest leaks into the new one by the sine of their largest
        # angle: ‖C'ᵀz‖ ≤ ‖C'ᵀ(1 − C Cᵀ)‖ · ‖z‖ + ‖Cᵀz‖.
        if not self.skipped or not complement.shape[1]:
            return 0.0
        old = self._complement.to(complement.device)
        leak = torch.linalg.matrix_norm(complement - old @ (old.T @ complement), 2)
        return float((leak * self.energy.sum().to(leak.device).sqrt() + self._outside**0.5) ** 2)

    def _holds(
        self, proof: tuple[float, float, float], energy: Tensor, outside: float, relative: float
    ) -> bool:
        smallest, largest, inside = proof
        square = relative**2
        reached = smallest > _MARGIN * square * (largest + energy.sum().item())
        return reached and _MARGIN * (inside + outside) < square * largest
