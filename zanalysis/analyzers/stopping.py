"""When a span may stop accumulating: once more samples provably change nothing.

More samples never lower a singular value of the stacked samples Z, but they raise σ₁, and with it the
tolerance τ = c · σ₁. So being full once proves nothing about later. What does: with σ_min and σ₁ of the
samples accumulated and s the sum of squares of all samples skipped since, σ₁ of all samples is at most
√(σ₁² + s) and σ_min at least what it was (Weyl's inequality for the eigenvalues of the sum of two positive
semi-definite matrices), so σ_min² > c² · (σ₁² + s) keeps the span full. A batch may be skipped only where
this holds by a margin of four with the batch itself counted in s.
"""

import torch
from torch import Tensor

__all__ = ["StopRule"]

_MARGIN = 4.0


class StopRule:
    """Decides which rows may be skipped, and keeps their sum of squares by column.

    Args:
        width: columns of the rows.
        device: where the rows are.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.energy = torch.zeros(width, dtype=torch.float64, device=device)
        self.skipped = 0
        # σ_min² and σ₁² of the samples accumulated, while they are proved full.
        self._full: tuple[float, float] | None = None
        self._look_at = 2 * width

    def skips(self, rows: Tensor, relative: float) -> bool:
        """Skip rows if that is safe.

        Args:
            rows: `[samples, width]`.
            relative: c = τ / σ₁.

        Returns:
            Whether they were skipped and are accounted for; if not, they are to be accumulated.
        """
        if self._full is None:
            return False
        energy = self.energy + rows.to(torch.float64).square().sum(0)
        if not self._proved(*self._full, energy, relative):
            self._full, self._look_at = None, 0
            return False
        self.energy = energy
        self.skipped += len(rows)
        return True

    def due(self, accumulated: int) -> bool:
        """Say whether it is time to look at the singular values: whenever the samples have doubled.

        Args:
            accumulated: the number of samples accumulated.

        Returns:
            Whether it is.
        """
        return accumulated >= self._look_at

    def look(self, values: Tensor, accumulated: int, relative: float) -> None:
        """Look whether the samples accumulated are full by the margin.

        Args:
            values: `[width]`, their singular values, descending.
            accumulated: their number.
            relative: c = τ / σ₁.
        """
        self._look_at = 2 * accumulated
        smallest, largest = values[-1].item() ** 2, values[0].item() ** 2
        self._full = (smallest, largest) if self._proved(smallest, largest, self.energy, relative) else None

    def absorb(self, other: "StopRule") -> None:
        """Account for what another rule skipped.

        Args:
            other: the rule of a span with the same columns; left as it is.
        """
        self.energy = self.energy + other.energy.to(self.energy.device)
        self.skipped += other.skipped
        self._full, self._look_at = None, 0

    @staticmethod
    def _proved(smallest: float, largest: float, skipped: Tensor, relative: float) -> bool:
        return smallest > _MARGIN * relative**2 * (largest + skipped.sum().item())
