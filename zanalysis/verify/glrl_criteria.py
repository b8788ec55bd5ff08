"""The criteria of greedy low-rank learning, each measured apart: its number, its null, its confidence.

What is claimed (Zhao, Schäfer & Anandkumar 2022, arXiv 2110.12661: the rank starts low, rises gradually and
never reaches its maximum; Li, Luo & Lyu 2021, arXiv 2012.09839, Razin, Maman & Cohen 2021, and Jacot et al. 2021,
arXiv 2106.15933: ranks are visited one after another; Zhao et al. 2023, arXiv 2306.11250: so does the cumulative
update). The rank is the stable rank `Σσ²/σ₁²`, from the first record on at which σ₁ has a quarter of its
largest value, so that the noise of a tiny random start is not taken for what was learned.

Confidence is a probability between 0 and 1: one minus the p-value where there is a test, else the normal
probability that the number is on its side of the threshold, given its scatter from record to record. It says
nothing of another run.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy import stats

from zanalysis.verify.glrl_staircase import F, Staircase, staircase_of
from zanalysis.verify.glrl_trajectory import Trajectory
from zanalysis.verify.verdict import Judgement

__all__ = ["NECESSARY", "Criteria", "Finding", "gaussian_stable_rank"]

Array = npt.NDArray[np.float64]

NECESSARY = ("starts low", "starts below its end", "rises", "gradual", "stays below", "staircase")
"""The criteria that decide; the others are shown beside them."""

LOW = (0.5, 0.75)
BELOW_END = (0.5, 0.9)
BELOW_FULL = (0.75, 0.9)
GRADUAL = (0.6, 0.9)
STAIRS = (0.25, 0.5)
SIGNIFICANT = 0.01
LEAST_RISE = 0.01
"""By which share of itself the stable rank has to rise; less is rounding, or a mode too small to count."""
TREND = 0.05
TIE = 0.05
"""Differences of the stable rank below this share of its range are none."""

_BLOCKS = 24
_SIMULATED = 128


@dataclass(frozen=True)
class Finding:
    """One criterion, measured.

    Attributes:
        criterion: its name.
        value: the number; NaN where it could not be taken.
        null: what it would be if there were nothing to find.
        confidence: that it is on its side, 0 to 1; NaN where that cannot be said.
        verdict: on the criterion alone.
        low: lower end of the interval that the number lies in.
        high: upper end.
        index: of the singular value it is about; -1 where it is about all.
    """

    criterion: str
    value: float
    null: float
    confidence: float
    verdict: Judgement
    low: float
    high: float
    index: int = -1


def gaussian_stable_rank(shape: tuple[int, int]) -> float:
    """Return about what stable rank a matrix of independent Gaussian entries has: `mn / (√m + √n)²`.

    Args:
        shape: `(m, n)`.

    Returns:
        The stable rank; n/4 for a square matrix.

    Example:
        >>> gaussian_stable_rank((64, 64))
        16.0
    """
    m, n = shape
    return float(m * n / (np.sqrt(m) + np.sqrt(n)) ** 2)


@lru_cache(maxsize=256)
def _gaussian_share(shape: tuple[int, int], lead: float) -> float:
    """Return which share of `Σσ²` a Gaussian matrix has in this share of its directions."""
    shrink = min(1.0, _SIMULATED / min(shape))
    m, n = (min(8 * _SIMULATED, max(2, round(size * shrink))) for size in shape)
    squares = np.linalg.svd(np.random.default_rng(0).standard_normal((m, n)), compute_uv=False) ** 2
    return float(squares[: max(1, round(lead * len(squares)))].sum() / squares.sum())


def _scatter(curve: Array) -> float:
    """Return the standard deviation of a curve from record to record, beside a median of three."""
    if len(curve) < 3:
        return 0.0
    smooth = np.median(np.stack([curve[:-2], curve[1:-1], curve[2:]]), axis=0)
    return float(np.sqrt(np.mean((curve[1:-1] - smooth) ** 2)))


def _judged(low: float, high: float, holds: float, refuted: float) -> Judgement:
    # A number known to lie in an interval; small ones hold.
    if high <= holds:
        return "holds"
    return "violated" if low > refuted else "inconclusive"


def _sure(distance: float, spread: float) -> float:
    return float(stats.norm.cdf(distance / spread)) if spread > 0 else float(distance != 0) * 0.5 + 0.5


@dataclass(frozen=True, eq=False)
class Criteria:
    """Every criterion of one trajectory.

    Attributes:
        trajectory: of three records or more.
    """

    trajectory: Trajectory

    @cached_property
    def staircase(self) -> Staircase:
        """How singular values emerge."""
        return staircase_of(self.trajectory)

    @cached_property
    def _ends(self) -> tuple[Array, Array]:
        """The stable rank's bounds at the start and at the end, each a mean of a twentieth of the records."""
        least, most = self.trajectory.rank_bounds
        width = max(1, len(least) // 20)
        return (
            np.array([least[:width].mean(), most[:width].mean()]),
            np.array([least[-width:].mean(), most[-width:].mean()]),
        )

    @property
    def start_rank(self) -> float:
        """The stable rank at the start: the least it can be."""
        return float(self._ends[0][0])

    @property
    def end_rank(self) -> float:
        """The stable rank at the end: the least it can be."""
        return float(self._ends[1][0])

    @cached_property
    def begins_late(self) -> bool:
        """Whether most of what emerges did so within one interval before the first rank that can be read."""
        t = self.trajectory
        return (
            t.first > 0
            and t.steps[t.first] - t.steps[t.first - 1] > 1
            and (len(t.emerging) == 0 or float(t.progress[t.first].mean()) > 0.5)
        )

    @cached_property
    def trend(self) -> tuple[float, float, Array]:
        """Kendall's τ of the stable rank over time, its two-sided p-value, and Theil and Sen's rise with its interval.

        Mann-Kendall, on the means of up to 24 blocks of equal progress (`Trajectory.blocks`), which leaves
        fluctuations out that are correlated over less than a block. The rise is the slope (95 %) times their number.
        """
        t = self.trajectory
        cuts = t.blocks(_BLOCKS, t.first)
        least = t.rank_bounds[0]
        means = np.array([least[a - t.first + 1 : b - t.first + 1].mean() for a, b in pairwise(cuts)])
        if len(means) < 3 or np.ptp(means) <= 1e-9 * means.max():
            return 0.0, 1.0, np.zeros(3)
        when = np.arange(len(means))
        # Ties: while the first direction grows and the others wait, the rank falls a little.
        tau = stats.kendalltau(when, np.round(means / (TIE * np.ptp(means))))
        slope = stats.theilslopes(means, when, 0.95)
        rise = np.array([slope.slope, slope.low_slope, slope.high_slope]) * (len(means) - 1)
        return float(tau.statistic), float(tau.pvalue), rise

    def findings(self) -> Iterator[Finding]:
        """Yield every criterion, then the emergence of every singular value that does.

        Yields:
            The findings, those of `NECESSARY` first.
        """
        yield self._starts_low()
        yield self._starts_below_end()
        yield self._rises()
        yield self._gradual()
        yield self._stays_below()
        yield self._stairs()
        yield from self._beside()

    def _excess(self, name: str, limits: tuple[float, float], over: float) -> Finding:
        # The stable rank at the start, less one, which every rank has, over another one, less one.
        low, high = (self._ends[0] - 1) / over
        spread = _scatter(self.trajectory.rank_bounds[0]) / over
        verdict = _judged(low, high, *limits)
        return Finding(
            name,
            float(low),
            1.0,
            _sure(abs(float(low) - limits[0]), spread),
            verdict,
            float(low),
            float(high),
        )

    def _starts_low(self) -> Finding:
        # Against noise of the same shape, whose stable rank is at least 2 for eight rows and columns.
        noise = max(gaussian_stable_rank(self.trajectory.shape) - 1, 0.5)
        finding = self._excess("starts low", LOW, noise)
        return _unless(self.begins_late, finding)

    def _starts_below_end(self) -> Finding:
        end = max(float(self._ends[1][0]) - 1, np.finfo(float).eps)
        finding = self._excess("starts below its end", BELOW_END, end)
        return _unless(self._unready(finding), finding)

    def _unready(self, finding: Finding) -> bool:
        # Nothing can be added to one direction; and what still rises has not shown where the rank will end.
        t = self.trajectory
        going_on = finding.verdict == "violated" and bool(t.unfinished.any())
        return self.begins_late or len(t.emerging) == 1 or going_on

    def _rises(self) -> Finding:
        tau, p_value, (_, low, high) = self.trend  # the interval of the rise, not of τ
        enough = LEAST_RISE * self.start_rank
        if tau > 0 and p_value < TREND and low > 0 and self.end_rank - self.start_rank >= enough:
            verdict: Judgement = "holds"
        elif high < enough or self.end_rank - self.start_rank < enough:
            verdict = "violated"
        else:
            verdict = "inconclusive"
        finding = Finding("rises", tau, 0.0, 1 - p_value, verdict, np.nan, np.nan)
        return _unless(self._unready(finding), finding)

    def _gradual(self) -> Finding:
        t = self.trajectory
        if len(t.emerging) < 2:
            return Finding("gradual", np.nan, 1.0, np.nan, "inconclusive", np.nan, np.nan)
        jumps = np.diff(t.progress.mean(axis=1))
        largest = int(jumps.argmax())
        share = float(jumps[largest])
        # Between records that are not successive steps, a jump may have been anything.
        coarse = t.steps[largest + 1] - t.steps[largest] > 1
        verdict = _judged(share, share, *GRADUAL)
        finding = Finding("gradual", share, 1.0, 1.0, verdict, share, share)
        return _unless(bool(coarse) and verdict == "violated", finding)

    def _stays_below(self) -> Finding:
        t = self.trajectory
        low, high = (float(bound.max()) / t.full for bound in t.rank_bounds)
        spread = _scatter(t.rank_bounds[0]) / t.full
        verdict = _judged(low, high, *BELOW_FULL)
        return Finding("stays below", low, 1.0, _sure(abs(low - BELOW_FULL[0]), spread), verdict, low, high)

    def _stairs(self) -> Finding:
        stairs = self.staircase
        share, p_value = stairs.share, stairs.p_value
        if len(stairs.modes) < 2 or not stairs.resolved_share >= 0.5:
            verdict: Judgement = "inconclusive"
        elif share >= STAIRS[1] and p_value < SIGNIFICANT:
            verdict = "holds"
        else:
            verdict = (
                "violated" if share <= STAIRS[0] and stairs.refuted_share >= STAIRS[1] else "inconclusive"
            )
        return Finding("staircase", share, 0.0, 1 - p_value, verdict, share, share)

    def _beside(self) -> Iterator[Finding]:
        """Yield what is measured beside the criteria that decide."""
        stairs = self.staircase
        rise, low, high = map(float, self.trend[2])
        sign: Judgement = "holds" if low > 0 else "violated" if high < 0 else "inconclusive"
        yield Finding("rise of the rank", rise, 0.0, 0.95, sign, low, high)
        yield self._leading()
        for pair in stairs.pairs:
            word: Judgement = "holds" if pair.is_step else "violated" if pair.is_refuted else "inconclusive"
            numbers = {"overlap": (pair.overlap, F), "haste": (pair.haste, 1.0)}
            for name, (value, null) in numbers.items():
                yield Finding(name, value, null, np.nan, word, value, value, pair.second)
        for mode, (low, middle, high) in zip(stairs.modes, stairs.times, strict=True):
            yield Finding("emergence", middle, np.nan, np.nan, "holds", low, high, int(mode))

    def _leading(self) -> Finding:
        t = self.trajectory
        squares = t.values[-1] ** 2
        if not squares.any():  # nothing is left at the end
            return Finding("leading share", np.nan, np.nan, np.nan, "inconclusive", np.nan, np.nan)
        lead = -(-t.full // 4)
        known = float(squares[:lead].sum())
        most = float(squares.sum() + (t.full - len(squares)) * squares[-1])
        missing = max(0, lead - len(squares)) * float(squares[-1])
        low, high = known / most, min(1.0, (known + missing) / float(squares.sum()))
        null = _gaussian_share(t.shape, lead / t.full)
        verdict: Judgement = "holds" if low > null else "violated" if high <= null else "inconclusive"
        return Finding("leading share", low, null, np.nan, verdict, low, high)


def _unless(unknown: bool, finding: Finding) -> Finding:
    if not unknown:
        return finding
    f = finding
    return Finding(f.criterion, f.value, f.null, np.nan, "inconclusive", f.low, f.high, f.index)
