"""Spectra over time of which it is known whether they show greedy low-rank learning.

Each kind is a function of a random generator that gives a `Case`: sizes, depths, scales, learning rates,
schedules, noise and the number of singular values kept are drawn anew. What is expected follows from how a case
was made:

- ``"holds"``: infinitesimal starts of depth 2 to 4, of which the theory says that singular values emerge apart.
- ``"not"``: anything but ``"holds"`` is right: large starts, plain linear maps, noise, what falls or rises together.
- ``"inconclusive"``: the record cannot tell: too short, too coarse, one singular value only, a dead layer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from zanalysis.experiments.factorization import Array
from zanalysis.experiments.known_spectra import (
    Made,
    Reference,
    Rng,
    dead,
    falling,
    jump,
    noise,
    random_walk,
    together,
    walking_values,
    warm_up,
)
from zanalysis.experiments.known_systems import (
    coarse,
    exact,
    identity_raw,
    large,
    plain_linear,
    rank_one,
    short,
    small,
)

__all__ = ["KINDS", "Case", "Expected", "case_of"]

Expected = Literal["holds", "not", "inconclusive"]


@dataclass(frozen=True, eq=False)
class Case:
    """One spectrum over time, and what is known of it.

    Attributes:
        kind: how it was made, a key of `KINDS`.
        expected: the verdict.
        steps: `[T]`.
        values: `[T, k]`, NaN-padded.
        shape: of the matrix.
        reference: what was subtracted.
        clock: the sum of the learning rates, `[T]`, where it is told.
    """

    kind: str
    expected: Expected
    steps: npt.NDArray[np.int64]
    values: Array
    shape: tuple[int, int]
    reference: Reference = "init"
    clock: Array | None = None


def case_of(kind: str, seed: int) -> Case:
    """Make one case.

    Args:
        kind: a key of `KINDS`.
        seed: everything that is drawn depends on it and on the kind.

    Returns:
        The case.
    """
    make, expected = KINDS[kind]
    rng = np.random.default_rng([seed, *kind.encode()])
    made = make(rng)
    values = made.values
    if rng.random() < 0.3 and values.shape[1] > 6:  # what a tracker leaves out
        values = values[:, : rng.integers(6, values.shape[1])]
    if rng.random() < 0.3:  # a dropped record, and a layer that was not finite at one step
        values = values.copy()
        values[rng.integers(1, len(values) - 1)] = np.nan
    return Case(kind, expected, made.steps, values, made.shape, made.reference, made.clock)


KINDS: dict[str, tuple[Callable[[Rng], Made], Expected]] = {
    "exact solution": (exact, "holds"),
    "depth 2, balanced": (small(2, "balanced"), "holds"),
    "depth 3, balanced": (small(3, "balanced"), "holds"),
    "depth 4, balanced": (small(4, "balanced"), "holds"),
    "depth 2, gaussian": (small(2, "gaussian"), "holds"),
    "depth 3, gaussian": (small(3, "gaussian"), "holds"),
    "depth 2, minibatch noise": (small(2, "gaussian", batch=True), "holds"),
    "depth 3, completion": (small(3, "gaussian", observed=True), "holds"),
    "depth 2, product read raw": (small(2, "gaussian", layered=False), "holds"),
    "plain linear": (plain_linear(spread=False), "not"),
    "plain linear, distinct rates": (plain_linear(spread=True), "not"),
    "plain linear, warm-up, rate logged": (warm_up, "not"),
    "large start, update": (large("init"), "not"),
    "large start, raw": (large("none"), "not"),
    "identity read raw": (identity_raw, "not"),
    "noise": (noise, "not"),
    "random walk": (random_walk, "not"),
    "independent walks": (walking_values, "not"),
    "together": (together(noise=False), "not"),
    "together, noisy": (together(noise=True), "not"),
    "falling": (falling, "not"),
    "jump to full": (jump, "not"),
    "rank-1 teacher": (rank_one, "inconclusive"),
    "too short": (short, "inconclusive"),
    "too coarse": (coarse, "inconclusive"),
    "dead": (dead, "inconclusive"),
}
"""How each kind is made, and what is expected of it."""
