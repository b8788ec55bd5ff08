"""The exact trajectories of deep linear networks from a balanced, aligned start, one mode at a time."""

import numpy as np
import numpy.typing as npt
from scipy.integrate import quad

from zanalysis.errors import InputError

__all__ = ["emergence_time", "exact_modes"]


def emergence_time(value: float, start: float, fraction: float, depth: int = 2) -> float:
    """Return when a singular value of the product has risen to a fraction of its final one.

    Under gradient flow from a balanced, aligned start each mode follows `du/dt = N u^{2−2/N} (s − u)`. For
    N = 2 that is `t = 1/(2s) · ln[u_f (s − u_0) / (u_0 (s − u_f))]` (Saxe et al. 2014, section 1.1; here
    with τ = 1, as the loss is ½‖W − W*‖²); for other depths it is integrated numerically.

    Args:
        value: s, the target's singular value.
        start: u_0 > 0, the product's singular value at the start.
        fraction: of s, between start / s and 1.
        depth: N, 1 or more.

    Returns:
        The time, in steps times the learning rate.

    Raises:
        InputError: if the start is not positive and below the fraction of the value.

    Example:
        >>> round(emergence_time(1.0, 1e-4, 0.5), 2), round(emergence_time(1.0, 1e-4, 0.5, depth=3), 1)
        (4.61, 20.7)
    """
    reached = fraction * value
    if not 0 < start < reached < value:
        raise InputError(
            f"got a start of {start!r} and a fraction of {fraction!r}; a mode rises from a start above 0 to a "
            f"fraction below 1 of {value!r}; choose start < fraction · value < value."
        )
    if depth == 2:
        return float(np.log(reached * (value - start) / (start * (value - reached))) / (2 * value))

    def slowness(log: float) -> float:
        u = np.exp(log)
        return float(u ** (2 / depth - 1) / (depth * (value - u)))

    return float(quad(slowness, np.log(start), np.log(reached), limit=200)[0])


def exact_modes(values: npt.ArrayLike, start: float, times: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the exact solution of a network of two layers, from a balanced, aligned start.

    `u(t) = s e^{2st} / (e^{2st} − 1 + s/u_0)` (Saxe et al. 2014, arXiv 1312.6120).

    Args:
        values: the target's singular values, `[m]`.
        start: u_0, of every mode.
        times: `[T]`, in steps times the learning rate.

    Returns:
        The product's singular values, `[T, m]`; those of each layer are their square roots.

    Example:
        >>> float(exact_modes([2.0], 1e-3, np.array([0.0]))[0, 0])
        0.001
    """
    s = np.asarray(values, float)
    decay = np.exp(-2 * s * np.asarray(times, float)[:, None])
    return np.asarray(s / (1 - decay + s / start * decay))
