"""A recorded spectrum over time, cleaned, and the rank and progress that are read off it.

Layout: `steps` `[T]`; `values` `[T, k]`, descending, without NaN; `k ≤ min(m, n)` of the matrix `[m, n]`, which
is *cut* where `k < min(m, n)`. A mode is a column, index 0 the largest; singular values are followed by their
place in the order, not by their vectors.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression

__all__ = ["Trajectory", "trajectory_of"]

Array = npt.NDArray[np.float64]

LEARNED = 0.25
"""Share of the largest σ₁ from which on a spectrum is taken for what was learned, not for how it began."""

EMERGED = 0.1
"""Share of the largest rise from which on a singular value counts as one that emerges."""

OUT_OF_NOISE = 5.0
"""How many standard deviations of its own scatter a singular value has to rise."""

NEW = 0.5
"""Largest share of its final value that an emerging singular value may begin at."""

FINISHED = 0.93
"""How far a mode has come at nine tenths of the time, or it has not finished; what rises as √t has come 0.95."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A spectrum over time.

    Attributes:
        steps: `[T]`, increasing.
        values: `[T, k]`, finite, in the unit of the weights.
        shape: of the matrix, `(m, n)`.
        recorded_rank: the recorded stable rank, `[T]`, NaN where there is none; None if it was not recorded.
        clock: the sum of the learning rates up to each record, `[T]`; None for the steps themselves.
    """

    steps: Array
    values: Array
    shape: tuple[int, int]
    recorded_rank: Array | None = None
    clock: Array | None = None

    @property
    def ticks(self) -> Array:
        """What time is counted in, `[T]`, nondecreasing."""
        return self.steps if self.clock is None else self.clock

    @property
    def full(self) -> int:
        """The rank's maximum, min(m, n)."""
        return min(self.shape)

    @property
    def is_cut(self) -> bool:
        """Whether fewer singular values are recorded than there are."""
        return bool(self.values.shape[1] < self.full)

    @property
    def top(self) -> float:
        """The largest singular value at any step."""
        return float(self.values.max(initial=0.0))

    @cached_property
    def first(self) -> int:
        """Index of the first record at which something was learned: σ₁ ≥ `LEARNED` times its largest."""
        return int(np.argmax(self.values[:, 0] >= LEARNED * self.top))

    @cached_property
    def rank_bounds(self) -> tuple[Array, Array]:
        """The stable rank `Σσ²/σ₁²` from `first` on: `[T']` twice, the least and the most it can be.

        They differ where the spectrum is cut and the stable rank itself was not recorded: each of the values
        left out is at most the last one kept.
        """
        kept = self.values[self.first :] ** 2
        # σ₁ can be zero again at a later step.
        lead = np.maximum(kept[:, 0], np.finfo(float).tiny)
        least = kept.sum(axis=1) / lead
        most = least + (self.full - kept.shape[1]) * kept[:, -1] / lead
        if self.recorded_rank is not None:
            known = self.recorded_rank[self.first :]
            least, most = np.where(np.isnan(known), least, known), np.where(np.isnan(known), most, known)
        return least, most

    @cached_property
    def fitted(self) -> Array:
        """Each singular value's nondecreasing least-squares fit, `[T, k]`.

        Times are read off the fit: the first passage of a noisy curve comes too early. It asks for
        no bandwidth and does not change with the clock.
        """
        return np.stack([isotonic_regression(column).x for column in self.values.T], axis=1)

    @cached_property
    def rises(self) -> Array:
        """By how much each singular value rose, `[k]`."""
        return np.asarray(self.fitted[-1] - self.fitted[0])

    @cached_property
    def scatter(self) -> Array:
        """Standard deviation of each singular value about its fit, `[k]`."""
        return np.asarray((self.values - self.fitted).std(axis=0))

    @cached_property
    def emerging(self) -> npt.NDArray[np.intp]:
        """The modes that emerge, `[q]`, ascending: those that rose enough, out of their noise, from low."""
        enough = np.maximum(EMERGED * self.rises.max(), OUT_OF_NOISE * self.scatter)
        low = self.fitted[0] <= NEW * self.fitted[-1]
        return np.flatnonzero((self.rises > 0) & (self.rises >= enough) & low)

    @cached_property
    def unfinished(self) -> npt.NDArray[np.bool_]:
        """Which emerging modes rise at the end about as fast as ever, so that their final values are unknown, `[q]`.

        On the first plateau of a deep network all of its modes rise so, and none has emerged yet.
        """
        ticks = self.ticks
        late = ticks[0] + 0.9 * (ticks[-1] - ticks[0])
        return np.array([np.interp(late, ticks, column) < FINISHED for column in self.progress.T], bool)

    @cached_property
    def progress(self) -> Array:
        """How far each emerging mode has come, from 0 to 1 by its fit, `[T, q]`."""
        chosen = self.emerging
        return np.asarray((self.fitted[:, chosen] - self.fitted[0, chosen]) / self.rises[chosen])

    def blocks(self, count: int, begin: int = 0) -> npt.NDArray[np.intp]:
        """Cut the record into blocks of equal common progress, so that neither the clock nor a long wait matters.

        Args:
            count: how many at most; fewer where one interval between records holds several.
            begin: index of the first record.

        Returns:
            Indices of the records at the blocks' ends, `[count + 1]` or fewer, from `begin` to the last; blocks of
            equal length where nothing emerges.
        """
        last = len(self.steps) - 1
        if not len(self.emerging):
            return np.unique(np.linspace(begin, last, min(count, last - begin) + 1).astype(np.intp))
        common = self.progress.mean(axis=1)[begin:]
        cuts = begin + np.searchsorted(common, np.linspace(common[0], 1.0, count + 1))
        return np.unique(np.concatenate([[begin], np.minimum(cuts, last), [last]]))

    def record_at(self, mode: int, fraction: float) -> int:
        """Return the index of the first record at which an emerging mode has come this far.

        Args:
            mode: place among the emerging ones.
            fraction: of its rise.

        Returns:
            The index, 1 or more: at the first record every mode has come 0 of its way.
        """
        return int(np.argmax(self.progress[:, mode] >= fraction))

    def time_of(self, mode: int, fraction: float) -> float:
        """Return the step at which an emerging mode has come this far, between records by a straight line.

        Args:
            mode: place among the emerging ones.
            fraction: of its rise, above 0.

        Returns:
            The step.
        """
        after = self.record_at(mode, fraction)
        (t0, t1), (p0, p1) = self.steps[after - 1 : after + 1], self.progress[after - 1 : after + 1, mode]
        return float(t0 + (t1 - t0) * (fraction - p0) / (p1 - p0))


def trajectory_of(
    steps: npt.ArrayLike,
    values: npt.ArrayLike,
    shape: tuple[int, int],
    recorded_rank: npt.ArrayLike | None = None,
    clock: npt.ArrayLike | None = None,
) -> Trajectory:
    """Clean a spectrum over time.

    Args:
        steps: `[T]`, in any order.
        values: `[T, k]`, NaN-padded.
        shape: of the matrix.
        recorded_rank: stable rank, `[T]`, if it was recorded beside.
        clock: the sum of the learning rates, `[T]`, if it is known.

    Returns:
        The trajectory, by increasing steps, of the columns that hold anything and the records in which all of those
        are finite; of a step recorded twice the later record counts. Rounding below zero is zero.
    """
    when, spectrum = np.asarray(steps, float), np.asarray(values, float).reshape(len(np.asarray(steps)), -1)
    # In reverse, so that `unique` finds the later of two records.
    when, order = np.unique(when[::-1], return_index=True)
    spectrum = spectrum[::-1][order]
    # A column that is there at one time and gone at another is a smaller matrix's padding, or damage.
    spectrum = spectrum[:, np.isfinite(spectrum).any(axis=0)]
    whole = np.isfinite(spectrum).all(axis=1) if spectrum.shape[1] else np.zeros(len(when), bool)
    beside = [
        None if one is None else np.asarray(one, float)[::-1][order][whole] for one in (recorded_rank, clock)
    ]
    # Not every source sorts: a fit to a column must be one of the same place in the order.
    kept = -np.sort(-np.maximum(spectrum[whole], 0.0), axis=1)
    return Trajectory(when[whole], kept, shape, *beside)
