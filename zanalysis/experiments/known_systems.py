"""Systems that are trained for a spectrum over time of which it is known what it shows."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from zanalysis.experiments.factorization import Array, Descent, Factorization, descend, target_of
from zanalysis.experiments.known_spectra import Made, Reference, Rng, size
from zanalysis.experiments.linear_modes import emergence_time, exact_modes

__all__ = [
    "coarse",
    "exact",
    "identity_raw",
    "large",
    "plain_linear",
    "rank_one",
    "short",
    "small",
]


def _target(rng: Rng, values: Array, rows: int, columns: int) -> Array:
    return target_of(values, rows, columns, int(rng.integers(1 << 30)))


def _run(rng: Rng, layer: int | None, reference: Reference, **settings: object) -> Made:
    system = Factorization(seed=int(rng.integers(1 << 30)), **settings)  # type: ignore[arg-type]
    steps = set(_schedule(rng, system.steps).tolist())
    record: Descent = descend(system, lambda step: step in steps)
    shape = system.target.shape if layer is None else record.factors[0][layer].shape
    values = record.spectra(layer, "init" if reference == "init" else None)
    return Made(record.steps, values, (int(shape[0]), int(shape[1])), reference)


def _schedule(rng: Rng, last: int) -> npt.NDArray[np.int64]:
    # Draw the recorded steps: evenly spaced, or evenly on a logarithmic axis.
    if rng.random() < 0.7:
        return np.unique(np.arange(0, last + 1, max(1, last // int(rng.integers(60, 240)))))
    return np.unique(np.r_[0, np.round(np.geomspace(1, last, int(rng.integers(120, 240))))].astype(np.int64))


def _values(rng: Rng, least: float = 1.6, most: float = 2.4, few: int = 2, many: int = 4) -> Array:
    # Draw singular values that are apart: each least to most times the next, the largest about 4.
    ratios = rng.uniform(least, most, int(rng.integers(few, many + 1)) - 1)
    return np.asarray(rng.uniform(3, 5) / np.r_[1, np.cumprod(ratios)])


def _length(values: Array, scale: float, depth: int, rate: float) -> int:
    """Return after how many steps the smallest of these values has emerged, and half as many more."""
    return int(
        1.5 * emergence_time(float(values[-1]), min(scale, 0.1 * float(values[-1])), 0.9, depth) / rate
    )


def small(depth: int, start: str, layered: bool = True, **more: object) -> Callable[[Rng], Made]:
    """Train from an infinitesimal start: singular values emerge one after another.

    Args:
        depth: how many factors.
        start: how they start.
        layered: whether a layer's update is read; else the product as it is.
        **more: `batch` for minibatch noise, `observed` for matrix completion.

    Returns:
        How one is made.
    """

    def make(rng: Rng) -> Made:
        values, (rows, columns) = _values(rng), size(rng)
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


def exact(rng: Rng) -> Made:
    """Make the exact solution itself, with a little multiplicative noise.

    Args:
        rng: what everything is drawn from.

    Returns:
        The case.
    """
    values, shape = _values(rng), size(rng)
    start = 10.0 ** -rng.uniform(4, 9)
    last = _length(values, start, 2, 0.01)
    steps = _schedule(rng, last)
    modes = exact_modes(values.tolist(), start, steps * 0.01)
    padded = np.full((len(steps), min(shape)), start)
    padded[:, : len(values)] = modes
    noise = rng.standard_normal(padded.shape) * 10.0 ** -rng.uniform(2, 6)
    return Made(steps, -np.sort(-np.abs(padded * (1 + noise)), axis=1), shape, "none")


def plain_linear(spread: bool) -> Callable[[Rng], Made]:
    """Train a plain linear map: distinct singular values, all learned from the first step on.

    Args:
        spread: whether the inputs' variances are distinct, so that the rates are.

    Returns:
        How one is made.
    """

    def make(rng: Rng) -> Made:
        values, (rows, columns) = _values(rng, many=6), size(rng)
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


def large(reference: Reference) -> Callable[[Rng], Made]:
    """Train from a large random start: every direction is there from the first step on.

    Args:
        reference: what is subtracted.

    Returns:
        How one is made.
    """

    def make(rng: Rng) -> Made:
        depth, (rows, columns) = int(rng.integers(2, 5)), size(rng)
        values = _values(rng)
        return _run(
            rng, int(rng.integers(depth)), reference, target=_target(rng, values, rows, columns),
            depth=depth, start="gaussian", scale=rng.uniform(20, 100), rate=1e-4, steps=2000,
            width=int(rng.integers(24, 40)),
        )  # fmt: skip

    return make


def identity_raw(rng: Rng) -> Made:
    """Train a network that starts as the identity, and read its weight as it is.

    Args:
        rng: what everything is drawn from.

    Returns:
        The case.
    """
    values, n = _values(rng), int(rng.integers(8, 25))
    return _run(
        rng, 1, "none", target=_target(rng, values, n, n), depth=3, start="identity",
        scale=1.0, rate=0.003, steps=2000,
    )  # fmt: skip


def rank_one(rng: Rng) -> Made:
    """Train on a target of rank one.

    Args:
        rng: what everything is drawn from.

    Returns:
        The case.
    """
    rows, columns = size(rng)
    return _run(
        rng, int(rng.integers(2)), "init", target=_target(rng, rng.uniform(1, 4, 1), rows, columns),
        depth=2, start="balanced", scale=1e-5, rate=0.02, steps=1000,
    )  # fmt: skip


def short(rng: Rng) -> Made:
    """Take too few records of a case that holds.

    Args:
        rng: what everything is drawn from.

    Returns:
        The case.
    """
    steps, values, shape, reference, _ = small(2, "balanced")(rng)
    few = int(rng.integers(3, 20))
    chosen = np.unique(np.linspace(0, len(steps) - 1, few).astype(int))
    return Made(steps[chosen], values[chosen], shape, reference)


def coarse(rng: Rng) -> Made:
    """Take a record within which everything happens between two steps.

    Args:
        rng: what everything is drawn from.

    Returns:
        The case.
    """
    steps, values, shape, reference, _ = small(2, "balanced")(rng)
    long = np.r_[values[:1], np.repeat(values[-1:], 40, axis=0)]
    wobble = 1 + 1e-3 * rng.standard_normal(long.shape)
    return Made(np.arange(41) * int(steps[-1]), -np.sort(-long * wobble, axis=1), shape, reference)
