"""Whether singular values emerge one after another, each while those after it wait.

For each pair of successive modes i, j = i + 1 among those that emerge (`zanalysis.verify.glrl_trajectory`):

- *apart*: when mode i has come `F` of its way, mode j has come at most `S` of its own. That is the (s, f)-incremental
  learning of Gissin, Shalev-Shwartz & Daniely 2020 (arXiv 1909.12051), 0 < s ≤ 1/4, 3/4 ≤ f < 1, at its
  widest. It does not depend on the clock. Where all rise together, j has come as far as i: `F`.
- *waiting*: by then mode j has come at most `PATIENT` of what it would have come had it grown steadily from
  the first record to its own time of emergence. A mode of a plain linear model has come more, for its progress
  `1 − e^{−λt}` is concave, however far apart the rates λ are: all modes start at once, and converge one after
  another. This does depend on the clock, though not on its unit: the optimizer's steps, or where it is known the sum
  of the learning rates. A warm-up as long as the emergence bends steady growth into waiting, if only steps are known.

A pair that is both is a step of the staircase; one that is far from either (`TOGETHER`, `HASTY`) refutes it. In between
lie singular values too close to each other to tell, which form one stage: not every pair needs to be a step.
Equal singular values emerge together however greedy the learning, and read as such.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zanalysis.verify.glrl_trajectory import Trajectory

__all__ = ["PATIENT", "F", "Pair", "S", "Staircase", "order_p_value", "staircase_of"]

S, F = 0.25, 0.75
PATIENT = 0.4
TOGETHER, HASTY = 0.5, 0.8
PERMUTATIONS = 999
BLOCKS_PER_MODE, LEAST_BLOCKS = 6, 24
SHARP = 0.5


@dataclass(frozen=True)
class Pair:
    """Two modes that emerge, one behind the other.

    Attributes:
        first: index of the larger singular value.
        second: index of the smaller one.
        overlap: how far the second has come when the first has emerged, 0 to 1.
        haste: the same, relative to steady growth; 1 or more where growth slows down from the start.
        weight: by how much the second rises, in the unit of the weights.
        is_seen: whether the record is fine enough to tell the two apart.
        is_unfinished: whether one of them still rises about as fast as ever when the record ends.
    """

    first: int
    second: int
    overlap: float
    haste: float
    weight: float
    is_seen: bool
    is_unfinished: bool

    @property
    def is_step(self) -> bool:
        """Whether the second waits for the first."""
        return self.is_seen and self.overlap <= S and self.haste <= PATIENT

    @property
    def is_refuted(self) -> bool:
        """Whether the second did not wait."""
        return self.is_resolved and (self.overlap >= TOGETHER or self.haste >= HASTY)

    @property
    def is_resolved(self) -> bool:
        """Whether the record decides: a second that waited has, whatever it still does."""
        return self.is_step or (self.is_seen and not self.is_unfinished)


@dataclass(frozen=True, eq=False)
class Staircase:
    """The modes that emerge, and how they stand to each other.

    Attributes:
        modes: indices of the emerging singular values, `[q]`.
        times: steps at which each has come `S`, half and `F` of its way, `[q, 3]`.
        pairs: of successive ones.
        p_value: of their order, against the null that all rise together.
    """

    modes: npt.NDArray[np.intp]
    times: npt.NDArray[np.float64]
    pairs: tuple[Pair, ...]
    p_value: float

    @property
    def share(self) -> float:
        """Share of the pairs, by weight, that are steps, among those that the record resolves; NaN if none is."""
        return self._weighed("is_step", "is_resolved")

    @property
    def refuted_share(self) -> float:
        """Likewise of those in which the second did not wait."""
        return self._weighed("is_refuted", "is_resolved")

    @property
    def resolved_share(self) -> float:
        """Share of the pairs, by weight, that the record resolves; NaN without any pair."""
        return self._weighed("is_resolved", "weight")

    def _weighed(self, which: str, among: str) -> float:
        everything = sum(pair.weight for pair in self.pairs if getattr(pair, among))
        return (
            sum(pair.weight for pair in self.pairs if getattr(pair, which)) / everything
            if everything
            else np.nan
        )

    @property
    def stages(self) -> int:
        """How many groups of singular values emerge one after another."""
        return sum(pair.is_step for pair in self.pairs) + (len(self.modes) > 0)


def staircase_of(trajectory: Trajectory) -> Staircase:
    """Measure the emergence of singular values.

    Args:
        trajectory: of two records or more.

    Returns:
        The staircase; without modes where nothing emerges.
    """
    modes = trajectory.emerging
    times = np.array(
        [[trajectory.time_of(mode, fraction) for fraction in (S, 0.5, F)] for mode in range(len(modes))]
    ).reshape(-1, 3)
    pairs = tuple(_pair(trajectory, i, times) for i in range(len(modes) - 1))
    return Staircase(modes, times, pairs, order_p_value(trajectory))


def _pair(trajectory: Trajectory, i: int, times: npt.NDArray[np.float64]) -> Pair:
    j, progress, steps = i + 1, trajectory.progress, trajectory.steps
    emerged, other = times[i, 2], times[j, 2]
    overlap = float(np.interp(emerged, steps, progress[:, j]))
    begun, then, later = np.interp([steps[0], emerged, other], steps, trajectory.ticks)
    steady = F * (then - begun) / (later - begun)
    after = trajectory.record_at(i, F)
    # Most of both rises within one interval of more than one step: what happened in between is unknown.
    jumps = progress[after] - progress[after - 1]
    hidden = min(jumps[i], jumps[j]) > SHARP and steps[after] - steps[after - 1] > 1
    modes = trajectory.emerging
    return Pair(
        int(modes[i]),
        int(modes[j]),
        overlap,
        float(overlap / steady),
        float(trajectory.rises[modes[j]]),
        not bool(hidden),
        bool(trajectory.unfinished[i] or trajectory.unfinished[j]),
    )


def order_p_value(trajectory: Trajectory, seed: int = 0) -> float:
    """Test that all emerging modes rise together, against: the smaller ones later.

    The record is cut into blocks of equal common progress (so the clock does not matter). Under the null
    the shares of their rises that the modes make within a block are exchangeable between modes: they are permuted
    within each block, 999 times. The statistic is `Σ_b b Σ_i w_i (i − ī) Δp_i(b)` with the modes' rises as weights,
    large where modes of higher index rise in later blocks. Blocks, not records, are permuted, which keeps what a
    block's fluctuations have in common; noise that is correlated over longer than a block makes the test too sure.

    Args:
        trajectory: the record.
        seed: of the permutations.

    Returns:
        The share of permutations, the record itself included, that are ordered as much; 1 with fewer than two
        modes or blocks.
    """
    modes = trajectory.emerging
    if len(modes) < 2:
        return 1.0
    common = trajectory.progress.mean(axis=1)
    cuts = trajectory.blocks(max(LEAST_BLOCKS, BLOCKS_PER_MODE * len(modes)))
    if len(cuts) < 3:
        return 1.0
    raw = (trajectory.values[:, modes] - trajectory.fitted[0, modes]) / trajectory.rises[modes]
    increments = np.diff(raw[cuts], axis=0)
    weight, index = trajectory.rises[modes], np.arange(len(modes))
    place = weight * (index - np.average(index, weights=weight))
    block = np.arange(len(increments)) - np.average(
        np.arange(len(increments)), weights=np.maximum(np.diff(common[cuts]), 1e-12)
    )
    rng = np.random.default_rng(seed)
    order = rng.random((PERMUTATIONS, *increments.shape)).argsort(axis=2)
    permuted = np.take_along_axis(np.broadcast_to(increments, order.shape), order, axis=2)
    found = block @ increments @ place
    null = np.einsum("b,rbi,i->r", block, permuted, place)
    # Where all rise alike every permutation is the record itself, up to rounding.
    return float((1 + (null >= found - 1e-9 * weight.sum()).sum()) / (1 + PERMUTATIONS))
