"""The singular values of a model's Jacobian over training."""

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from zanalysis.errors import InputError
from zanalysis.figures.canvas import GREY, caption, legend, over_steps, single
from zanalysis.figures.spectra import FLOOR, LINES, Source, opened, shades

__all__ = ["jacobian_over_training"]

Array = npt.NDArray[np.float64]


def jacobian_over_training(run: Source, axes: Axes | None = None) -> Axes:
    """Draw the singular values of the model's Jacobian over training, on a logarithmic axis.

    A line for each index, the median over the samples of the probe, and a band from the smallest to the largest sample.
    At 1, dashed, a direction of the input neither grows nor shrinks (dynamical isometry: all values are near it).

    Args:
        run: a run recorded with `metrics=(…, "jacobian_singular_values")` and a `probe`, or its path.
        axes: to draw into; a new figure if None.

    Returns:
        The Axes.

    Raises:
        InputError: if no Jacobian is recorded, or no number is in it.
    """
    record = opened(run)
    keys = [key for key in record.spectrum_keys if key.tensor == "jacobian"]
    if not keys:
        raise InputError(
            f"{record.path} has no Jacobian; record it with metrics=(…, 'jacobian_singular_values') and probe=…."
        )
    each = [record.spectra(key.layer, key.tensor, key.reference) for key in keys]
    steps = each[0].steps
    values = np.stack([one.values for one in each])
    above = [i for i in range(values.shape[2]) if (values[:, :, i] > 0).any()]
    if not above:
        raise InputError(
            f"{record.path} has no singular value of a Jacobian above zero yet; there is nothing to draw."
        )
    shown = single(axes, (6.4, 3.9))
    indices = sorted({above[round(place)] for place in np.linspace(0, len(above) - 1, min(len(above), 6))})
    for place, (i, color) in enumerate(zip(indices, shades(len(indices)), strict=True)):
        low, middle, high = _over_samples(values[:, :, i])
        shown.plot(steps, middle, color=color, linestyle=LINES[place % 4], linewidth=1.7,
                   label=f"$\\sigma_{{{i + 1}}}$")  # fmt: skip
        shown.fill_between(steps, low, high, color=color, alpha=0.13, linewidth=0)
    shown.set_yscale("log")
    shown.axhline(
        1, color=GREY, linewidth=1.1, linestyle=(0, (4, 2)), label="1: lengths are kept", zorder=1.5
    )
    shown.set_ylabel("singular value of the Jacobian, logarithmic")
    over_steps(shown, steps)
    legend([shown], columns=7)
    foot, top = shown.get_ylim()
    shown.set_ylim(max(foot, FLOOR * top), top)
    zero = int((values == 0).sum())
    missing = steps[np.isnan(values).all(axis=(0, 2))]
    caption(
        [shown],
        f"Lines: median over {len(keys)} samples; bands: from the smallest to the largest.",
        f"{len(above)} singular values were recorded; {len(indices)} are drawn."
        if len(indices) < len(above)
        else "",
        f"{zero} of all recorded values are zero, which this axis cannot show." if zero else "",
        f"Gap at {len(missing)} steps from {missing[0]} to {missing[-1]}: see the run's table."
        if len(missing)
        else "",
    )
    return shown


def _over_samples(part: Array) -> tuple[Array, Array, Array]:
    """Summarize one singular value over the samples.

    Args:
        part: `[samples, T]`.

    Returns:
        The smallest above zero, the median and the largest at each step, `[T]`; NaN for zero or none.
    """
    low, middle, high = (np.full(part.shape[1], np.nan) for _ in range(3))
    for step, column in enumerate(part.T):
        known = column[np.isfinite(column)]
        if (known > 0).any():
            low[step], high[step] = known[known > 0].min(), known.max()
            middle[step] = np.median(known) or np.nan
    return low, middle, high
