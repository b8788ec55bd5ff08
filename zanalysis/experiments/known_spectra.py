"""Spectra over time that are drawn, not trained, and show no greedy low-rank learning."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "Made",
    "Reference",
    "Rng",
    "dead",
    "falling",
    "jump",
    "noise",
    "random_walk",
    "size",
    "together",
    "walking_values",
    "warm_up",
]

Array = npt.NDArray[np.float64]
Reference = Literal["init", "none"]
Rng = np.random.Generator


class Made(NamedTuple):
    """A spectrum over time, as a `Case` has it."""

    steps: npt.NDArray[np.int64]
    values: Array
    shape: tuple[int, int]
    reference: Reference
    clock: Array | None = None


def size(rng: Rng) -> tuple[int, int]:
    """Draw the shape of a matrix.

    Args:
        rng: what everything is drawn from.

    Returns:
        `(m, n)`, 8 to 24 each, square in half of the cases.
    """
    rows = int(rng.integers(8, 25))
    return rows, rows if rng.random() < 0.5 else int(rng.integers(8, 25))


def _singular_values(matrices: Array) -> Array:
    return np.asarray(np.linalg.svd(matrices, compute_uv=False), float)


def noise(rng: Rng) -> Made:
    """Make noise that goes nowhere, with or without memory, about a fixed matrix.

    Args:
        rng: what everything is drawn from.

    Returns:
        The case.
    """
    shape, records = size(rng), int(rng.integers(25, 240))
    fresh = rng.standard_normal((records, *shape))
    memory = rng.choice([0.0, 0.5, 0.9])
    for t in range(1, records):
        fresh[t] = memory * fresh[t - 1] + np.sqrt(1 - memory**2) * fresh[t]
    base = rng.uniform(0, 3) * rng.standard_normal(shape)
    return Made(np.arange(records) * 10, _singular_values(base + fresh), shape, "none")


def random_walk(rng: Rng) -> Made:
    """Make the spectrum of a matrix that walks at random from zero: it grows as √t, all together.

    Args:
        rng: what everything is drawn from.

    Returns:
        The case.
    """
    shape, records = size(rng), int(rng.integers(25, 240))
    steps = np.cumsum(rng.standard_normal((records, *shape)), axis=0)
    steps -= steps[0]
    return Made(np.arange(records) * 10, _singular_values(steps), shape, "init")


def walking_values(rng: Rng) -> Made:
    """Make singular values that wander up independently of each other.

    Args:
        rng: what everything is drawn from.

    Returns:
        The case.
    """
    shape, records = size(rng), int(rng.integers(25, 240))
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


def together(noise: bool) -> Callable[[Rng], Made]:
    """Make singular values that rise together, along one of several curves.

    Args:
        noise: whether there is any.

    Returns:
        How one is made.
    """

    def make(rng: Rng) -> Made:
        shape, records = size(rng), int(rng.integers(25, 240))
        final = np.zeros(min(shape))
        few = int(rng.integers(2, 9))
        final[:few] = -np.sort(-rng.uniform(0.3, 4, few))
        values = _profile(rng, records)[:, None] * final
        if noise:
            values = values + 10.0 ** -rng.uniform(1, 3) * rng.standard_normal(values.shape)
        return Made(np.arange(records) * 10, -np.sort(-np.abs(values), axis=1), shape, "init")

    return make


def falling(rng: Rng) -> Made:
    """Make a spectrum that falls from a high start, at distinct rates.

    Args:
        rng: what everything is drawn from.

    Returns:
        The case.
    """
    shape, records = size(rng), int(rng.integers(25, 240))
    start = -np.sort(-rng.uniform(0.5, 3, min(shape)))
    rates = np.linspace(rng.uniform(0, 1), rng.uniform(1, 5), min(shape))
    values = start * np.exp(-rates * np.linspace(0, 1, records)[:, None])
    return Made(np.arange(records) * 10, values, shape, "none")


def jump(rng: Rng) -> Made:
    """Make a spectrum that is full from one record to the next.

    Args:
        rng: what everything is drawn from.

    Returns:
        The case.
    """
    shape, records = size(rng), int(rng.integers(25, 240))
    final = -np.sort(-rng.uniform(0.5, 3, min(shape)))
    values = np.where(np.arange(records)[:, None] > int(rng.integers(2, records - 3)), final, 1e-6 * final)
    wobble = 1 + 1e-3 * np.cumsum(rng.standard_normal(values.shape), axis=0) / np.sqrt(records)
    return Made(
        np.arange(records) * int(rng.choice([1, 10])), -np.sort(-values * wobble, axis=1), shape, "init"
    )


def dead(rng: Rng) -> Made:
    """Make a spectrum that does not move, or moved once.

    Args:
        rng: what everything is drawn from.

    Returns:
        The case.
    """
    shape, records = size(rng), int(rng.integers(25, 240))
    spectrum = -np.sort(-rng.uniform(0, 3, min(shape))) * float(rng.random() < 0.7)
    values = np.repeat(spectrum[None], records, axis=0)
    if rng.random() < 0.5:
        values[0] = 0.0
    return Made(np.arange(records) * 10, values, shape, "init")


def warm_up(rng: Rng) -> Made:
    """Make a plain linear map at distinct rates under a warm-up, with the learning rate known.

    Args:
        rng: what everything is drawn from.

    Returns:
        The case.
    """
    shape, records, few = size(rng), int(rng.integers(60, 240)), int(rng.integers(2, 7))
    time, warm = np.linspace(0, 1, records), rng.uniform(0.05, 0.6)
    clock = np.where(time < warm, time**2 / (2 * warm), time - warm / 2)
    rates = 10.0 ** np.sort(rng.uniform(-rng.uniform(0.5, 2), 0, few))[::-1]
    clock = clock / clock[-1] * 4 / rates[-1]
    values = np.zeros((records, min(shape)))
    values[:, :few] = -np.sort(-rng.uniform(0.5, 4, few)) * (1 - np.exp(-rates * clock[:, None]))
    return Made(np.arange(records) * 10, -np.sort(-values, axis=1), shape, "init", clock)
