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
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from zanalysis.experiments.factorization import (
    Array,
    Descent,
    Factorization,
    descend,
    target_of,
)
from zanalysis.experiments.linear_modes import emergence_time, exact_modes

__all__ = ["KINDS", "Case", "Expected", "case_of"]

Expected = Literal["holds", "not", "inconclusive"]
Reference = Literal["init", "none"]
Rng = np.random.Generator


class Made(NamedTuple):
    """A spectrum over time, as a `Case` has it."""

    steps: npt.NDArray[np.int64]
    values: Array
    shape: tuple[int, int]
    reference: Reference
    clock: Array | None = None


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


def _schedule(rng: Rng, last: int) -> npt.NDArray[np.int64]:
    # Draw the recorded steps: evenly spaced, or evenly on a logarithmic axis.
    if rng.random() < 0.7:
        return np.unique(np.arange(0, last + 1, max(1, last // int(rng.integers(60, 240)))))
    return np.unique(np.r_[0, np.round(np.geomspace(1, last, int(rng.integers(120, 240))))].astype(np.int64))


def _size(rng: Rng) -> tuple[int, int]:
    rows = int(rng.integers(8, 25))
    return rows, rows if rng.random() < 0.5 else int(rng.integers(8, 25))


def _values(rng: Rng, least: float = 1.6, most: float = 2.4, few: int = 2, many: int = 4) -> Array:
    # Draw singular values that are apart: each least to most times the next, the largest about 4.
    ratios = rng.uniform(least, most, int(rng.integers(few, many + 1)) - 1)
    return np.asarray(rng.uniform(3, 5) / np.r_[1, np.cumprod(ratios)])


def _target(rng: Rng, values: Array, rows: int, columns: int) -> Array:
    return target_of(values, rows, columns, int(rng.integers(1 << 30)))


def _run(rng: Rng, layer: int | None, reference: Reference, **settings: object) -> Made:
    system = Factorization(seed=int(rng.integers(1 << 30)), **settings)  # type: ignore[arg-type]
    steps = set(_schedule(rng, system.steps).tolist())
    record: Descent = descend(system, lambda step: step in steps)
    shape = system.target.shape if layer is None else record.factors[0][layer].shape
    values = record.spectra(layer, "init" if reference == "init" else None)
    return Made(record.steps, values, (int(shape[0]), int(shape[1])), reference)


def _length(values: Array, scale: float, depth: int, rate: float) -> int:
    """Return after how many steps the smallest of these values has emerged, and half as many more."""
    return int(
        1.5 * emergence_time(float(values[-1]), min(scale, 0.1 * float(values[-1])), 0.9, depth) / rate
    )


def _small(depth: int, start: str, layered: bool = True, **more: object) -> Callable[[Rng], Made]:
    def make(rng: Rng) -> Made:
        values, (rows, columns) = _values(rng), _size(rng)
        # Deeper products wait longer by far: u_0^{-(1 - 2/N)}; their starts need not be as small.
        scale = 10.0 ** -rng.uniform(*{2: (5, 9), 3: (3, 4.5), 4: (2.5, 3.3)}[depth])
        rate = rng.uniform(0.3, 1.0) * 0.1 / (depth * values[0] ** (2 - 2 / depth))
        target = _target(rng, values, rows, columns)
        settings: dict[str, object] = {
            "target": target, "depth": depth, "start": start, "scale": scale, "rate": rate,
            "steps": min(20_000, (depth - 1) * _length(values, scale, depth, rate)),
        }  # fmt: skip
        if "batch" in more:
            settings |= {"batch": int(rng.integers(64, 200)), "noise": 10.0 ** -rng.uniform(1, 3)}
            settings["rate"] = rate / 3
            settings["steps"] = min(20_000, 3 * int(settings["steps"]))  # type: ignore[call-overload]
        if "observed" in more:
            settings["observed"] = (rng.random((rows, columns)) < rng.uniform(0.7, 0.9)).astype(float)
            settings["steps"] = min(20_000, 2 * int(settings["steps"]))  # type: ignore[call-overload]
        layer = int(rng.integers(depth)) if layered else None
        return _run(rng, layer, "init" if layered else "none", **settings)

    return make


def _exact(rng: Rng) -> Made:
    # The exact solution itself, with a little multiplicative noise.
    values, shape = _values(rng), _size(rng)
    start = 10.0 ** -rng.uniform(4, 9)
    last = _length(values, start, 2, 0.01)
    steps = _schedule(rng, last)
    modes = exact_modes(values.tolist(), start, steps * 0.01)
    padded = np.full((len(steps), min(shape)), start)
    padded[:, : len(values)] = modes
    noise = rng.standard_normal(padded.shape) * 10.0 ** -rng.uniform(2, 6)
    return Made(steps, -np.sort(-np.abs(padded * (1 + noise)), axis=1), shape, "none")


def _plain_linear(spread: bool) -> Callable[[Rng], Made]:
    # Depth 1: distinct singular values, all learned at once; with inputs of distinct variances, at distinct rates.

    def make(rng: Rng) -> Made:
        values, (rows, columns) = _values(rng, many=6), _size(rng)
        target = _target(rng, values, rows, columns)
        variances = None
        if spread:
            variances = 10.0 ** -np.sort(rng.uniform(0, rng.uniform(0.5, 2.5), columns))
            # Aligned with the inputs' axes, so that each singular value is learned at one rate.
            q = np.linalg.qr(rng.standard_normal((rows, rows)))[0]
            target = np.zeros((rows, columns))
            target[:, : len(values)] = q[:, : len(values)] * values
        slowest = 1.0 if variances is None else float(variances[: len(values)].min())
        return _run(
            rng, None, "init" if rng.random() < 0.5 else "none", target=target, depth=1, start="gaussian", scale=1e-6,
            rate=0.02, variances=variances, steps=min(20_000, int(200 / slowest)),
        )  # fmt: skip

    return make


def _warm_up(rng: Rng) -> Made:
    # Plain linear at distinct rates under a warm-up, with the learning rate logged: the clock unbends it.
    shape, records, few = _size(rng), int(rng.integers(60, 240)), int(rng.integers(2, 7))
    time, warm = np.linspace(0, 1, records), rng.uniform(0.05, 0.6)
    clock = np.where(time < warm, time**2 / (2 * warm), time - warm / 2)
    rates = 10.0 ** np.sort(rng.uniform(-rng.uniform(0.5, 2), 0, few))[::-1]
    clock = clock / clock[-1] * 4 / rates[-1]
    values = np.zeros((records, min(shape)))
    values[:, :few] = -np.sort(-rng.uniform(0.5, 4, few)) * (1 - np.exp(-rates * clock[:, None]))
    return Made(np.arange(records) * 10, -np.sort(-values, axis=1), shape, "init", clock)


def _large(reference: Reference) -> Callable[[Rng], Made]:
    # Large random starts: every direction is there from the first step on.

    def make(rng: Rng) -> Made:
        depth, (rows, columns) = int(rng.integers(2, 5)), _size(rng)
        values = _values(rng)
        return _run(
            rng, int(rng.integers(depth)), reference, target=_target(rng, values, rows, columns),
            depth=depth, start="gaussian", scale=rng.uniform(20, 100), rate=1e-4, steps=2000,
            width=int(rng.integers(24, 40)),
        )  # fmt: skip

    return make


def _identity_raw(rng: Rng) -> Made:
    values, n = _values(rng), int(rng.integers(8, 25))
    return _run(
        rng, 1, "none", target=_target(rng, values, n, n), depth=3, start="identity",
        scale=1.0, rate=0.003, steps=2000,
    )  # fmt: skip


def _singular_values(matrices: Array) -> Array:
    return np.asarray(np.linalg.svd(matrices, compute_uv=False), float)


def _noise(rng: Rng) -> Made:
    shape, records = _size(rng), int(rng.integers(25, 240))
    fresh = rng.standard_normal((records, *shape))
    memory = rng.choice([0.0, 0.5, 0.9])
    for t in range(1, records):
        fresh[t] = memory * fresh[t - 1] + np.sqrt(1 - memory**2) * fresh[t]
    base = rng.uniform(0, 3) * rng.standard_normal(shape)
    return Made(np.arange(records) * 10, _singular_values(base + fresh), shape, "none")


def _random_walk(rng: Rng) -> Made:
    shape, records = _size(rng), int(rng.integers(25, 240))
    steps = np.cumsum(rng.standard_normal((records, *shape)), axis=0)
    steps -= steps[0]
    return Made(np.arange(records) * 10, _singular_values(steps), shape, "init")


def _walking_values(rng: Rng) -> Made:
    # Singular values that wander up independently of each other.
    shape, records = _size(rng), int(rng.integers(25, 240))
    values = np.cumsum(np.abs(rng.standard_normal((records, min(shape)))), axis=0) * rng.uniform(
        0.2, 1, min(shape)
    )
    values = np.r_[np.zeros((1, min(shape))), values[:-1]]
    return Made(np.arange(records) * 10, -np.sort(-values, axis=1), shape, "init")


def _profile(rng: Rng, records: int) -> Array:
    # Draw how far a rise has come at each record, from 0 to 1.
    t = np.linspace(0, 1, records)
    shapes = [
        t, np.sqrt(t), t**2, 1 - np.exp(-5 * t),
        1 / (1 + np.exp(-rng.uniform(10, 60) * (t - rng.uniform(0.2, 0.8)))),
    ]  # fmt: skip
    rise = shapes[int(rng.integers(len(shapes)))]
    return np.asarray((rise - rise[0]) / (rise[-1] - rise[0]))


def _together(noise: bool) -> Callable[[Rng], Made]:
    def make(rng: Rng) -> Made:
        shape, records = _size(rng), int(rng.integers(25, 240))
        final = np.zeros(min(shape))
        few = int(rng.integers(2, 9))
        final[:few] = -np.sort(-rng.uniform(0.3, 4, few))
        values = _profile(rng, records)[:, None] * final
        if noise:
            values = values + 10.0 ** -rng.uniform(1, 3) * rng.standard_normal(values.shape)
        return Made(np.arange(records) * 10, -np.sort(-np.abs(values), axis=1), shape, "init")

    return make


def _falling(rng: Rng) -> Made:
    shape, records = _size(rng), int(rng.integers(25, 240))
    start = -np.sort(-rng.uniform(0.5, 3, min(shape)))
    rates = np.linspace(rng.uniform(0, 1), rng.uniform(1, 5), min(shape))
    values = start * np.exp(-rates * np.linspace(0, 1, records)[:, None])
    return Made(np.arange(records) * 10, values, shape, "none")


def _jump(rng: Rng) -> Made:
    shape, records = _size(rng), int(rng.integers(25, 240))
    final = -np.sort(-rng.uniform(0.5, 3, min(shape)))
    values = np.where(np.arange(records)[:, None] > int(rng.integers(2, records - 3)), final, 1e-6 * final)
    wobble = 1 + 1e-3 * np.cumsum(rng.standard_normal(values.shape), axis=0) / np.sqrt(records)
    return Made(
        np.arange(records) * int(rng.choice([1, 10])), -np.sort(-values * wobble, axis=1), shape, "init"
    )


def _rank_one(rng: Rng) -> Made:
    rows, columns = _size(rng)
    return _run(
        rng, int(rng.integers(2)), "init", target=_target(rng, rng.uniform(1, 4, 1), rows, columns),
        depth=2, start="balanced", scale=1e-5, rate=0.02, steps=1000,
    )  # fmt: skip


def _short(rng: Rng) -> Made:
    steps, values, shape, reference, _ = _small(2, "balanced")(rng)
    few = int(rng.integers(3, 20))
    chosen = np.unique(np.linspace(0, len(steps) - 1, few).astype(int))
    return Made(steps[chosen], values[chosen], shape, reference)


def _coarse(rng: Rng) -> Made:
    # Everything happens between two records.
    steps, values, shape, reference, _ = _small(2, "balanced")(rng)
    long = np.r_[values[:1], np.repeat(values[-1:], 40, axis=0)]
    wobble = 1 + 1e-3 * rng.standard_normal(long.shape)
    return Made(np.arange(41) * int(steps[-1]), -np.sort(-long * wobble, axis=1), shape, reference)


def _dead(rng: Rng) -> Made:
    shape, records = _size(rng), int(rng.integers(25, 240))
    spectrum = -np.sort(-rng.uniform(0, 3, min(shape))) * float(rng.random() < 0.7)
    values = np.repeat(spectrum[None], records, axis=0)
    if rng.random() < 0.5:
        values[0] = 0.0
    return Made(np.arange(records) * 10, values, shape, "init")


KINDS: dict[str, tuple[Callable[[Rng], Made], Expected]] = {
    "exact solution": (_exact, "holds"),
    "depth 2, balanced": (_small(2, "balanced"), "holds"),
    "depth 3, balanced": (_small(3, "balanced"), "holds"),
    "depth 4, balanced": (_small(4, "balanced"), "holds"),
    "depth 2, gaussian": (_small(2, "gaussian"), "holds"),
    "depth 3, gaussian": (_small(3, "gaussian"), "holds"),
    "depth 2, minibatch noise": (_small(2, "gaussian", batch=True), "holds"),
    "depth 3, completion": (_small(3, "gaussian", observed=True), "holds"),
    "depth 2, product read raw": (_small(2, "gaussian", layered=False), "holds"),
    "plain linear": (_plain_linear(spread=False), "not"),
    "plain linear, distinct rates": (_plain_linear(spread=True), "not"),
    "plain linear, warm-up, rate logged": (_warm_up, "not"),
    "large start, update": (_large("init"), "not"),
    "large start, raw": (_large("none"), "not"),
    "identity read raw": (_identity_raw, "not"),
    "noise": (_noise, "not"),
    "random walk": (_random_walk, "not"),
    "independent walks": (_walking_values, "not"),
    "together": (_together(noise=False), "not"),
    "together, noisy": (_together(noise=True), "not"),
    "falling": (_falling, "not"),
    "jump to full": (_jump, "not"),
    "rank-1 teacher": (_rank_one, "inconclusive"),
    "too short": (_short, "inconclusive"),
    "too coarse": (_coarse, "inconclusive"),
    "dead": (_dead, "inconclusive"),
}
"""How each kind is made, and what is expected of it."""
