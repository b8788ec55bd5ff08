"""Figure 4 of the ZerO paper: how well networks train as they get deeper."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from zanalysis.errors import InputError
from zanalysis.figures.canvas import GREY, Style, legend, note, single, styles
from zanalysis.figures.comparison import Results, read_comparison

__all__ = ["figure_4"]

_LOGARITHMIC = 4.0


def figure_4(results: Results, axes: Axes | None = None) -> Axes:
    """Draw Figure 4 of the ZerO paper: accuracy against depth, a line for each initialization.

    Points are means over seeds, whiskers one sample standard deviation to each side. A training that diverged is a
    cross at the foot of the figure; where every seed of a depth did, the line has a gap.

    Args:
        results: the folder of an experiment that sweeps something, such as `figure-4`, its `results.json`, or a table
            with the columns system, at, seed, value and diverged; see `zanalysis.figures.comparison.read_comparison`.
        axes: to draw into; a new figure if None.

    Returns:
        The Axes.

    Raises:
        InputError: if there is nothing to draw, or nothing is swept.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"system": "ZerO", "at": [8, 20, 110], "value": [80.0, 81.0, 79.5]})
        >>> axes = figure_4(table)
        >>> [float(y) for y in axes.get_lines()[0].get_ydata()]
        [80.0, 81.0, 79.5]
    """
    found = read_comparison(results)
    rows = found.rows
    if rows["at"].isna().any():
        raise InputError("nothing is swept in this experiment; draw it with table_2 or table_3.")
    shown = single(axes, (6.0, 4.3))
    look = styles(rows["system"])
    for number, (system, part) in enumerate(rows.groupby("system", sort=False)):
        _line(shown, str(system), part, look[str(system)])
        _crosses(shown, part, look[str(system)], number)
    if not found.why_not:
        for system, part in found.paper.groupby("system", sort=False):
            shown.plot(part["at"], part["mean"], linestyle="", marker="D", markerfacecolor="white", markersize=5,
                       color=look[str(system)].color, label=f"{system}, the paper's value")  # fmt: skip
    _horizontal(shown, sorted(set(rows["at"])), found.sweep)
    if rows["diverged"].any():
        _room_below(shown, rows["system"].nunique())
    shown.set_ylabel(found.metric)
    legend([shown], columns=3)
    seeds = [int(n) for n in rows.groupby(["system", "at"])["seed"].nunique()]
    count = f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
    note(
        shown,
        f"{count} seed{'s' * (max(seeds) > 1)} each"
        + (
            "; whiskers: one standard deviation to each side."
            if max(seeds) > 1
            else ": no deviation is known."
        ),
        "× at the foot: trainings that diverged, of all seeds there; no mean counts them."
        if rows["diverged"].any()
        else "No training diverged.",
        f"Setting: {found.setting}." if found.setting else "",
    )
    return shown


def _line(axes: Axes, system: str, part: pd.DataFrame, style: Style) -> None:
    over = part.groupby("at")["value"]
    mean, std = over.mean(), over.std()
    axes.plot(mean.index, mean, label=system, **style.of_points)
    if std.notna().any():
        axes.errorbar(mean.index, mean, yerr=std.fillna(0), fmt="none", ecolor=style.color, elinewidth=1.2,
                      capsize=3, label="_deviation")  # fmt: skip


def _crosses(axes: Axes, part: pd.DataFrame, style: Style, number: int) -> None:
    foot = 0.03 + 0.05 * number
    across = axes.get_xaxis_transform()
    for at in sorted(set(part.loc[part["diverged"], "at"])):
        own = part.loc[part["at"] == at, "diverged"]
        axes.plot([at], [foot], linestyle="", marker="x", markersize=7, markeredgewidth=2, color=style.color,
                  transform=across, label="_diverged", zorder=5)  # fmt: skip
        # In grey print the colour does not tell whose cross it is.
        said = f"{part['system'].iloc[0]}{f' {own.sum()}/{len(own)}' if len(own) > 1 else ''}"
        left = at > part["at"].min()
        axes.annotate(said, (at, foot), xycoords=across, xytext=(-6 if left else 6, 0), fontsize=6.5, va="center",
                      textcoords="offset points", ha="right" if left else "left", color="0.2")  # fmt: skip


def _room_below(axes: Axes, systems: int) -> None:
    # What is at the foot is no value: no curve reaches down there.
    low, high = axes.get_ylim()
    strip = 0.02 + 0.05 * systems
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
    axes.set_ylim(low - (high - low) * strip / (1 - strip), high)
    axes.set_yticks(ticks)
    axes.annotate(
        "diverged", (0.01, strip / 2), xycoords="axes fraction", fontsize=8, va="center", color=GREY
    )
    axes.fill_between(
        [0, 1], 0, strip, facecolor="0.95", zorder=0, linewidth=0, transform=axes.transAxes, label="_foot"
    )


def _horizontal(axes: Axes, ats: list[float], sweep: str) -> None:
    if len(ats) > 2 and min(ats) > 0 and max(ats) >= _LOGARITHMIC * min(ats):
        axes.set_xscale("log")
        room = math.log(max(ats) / min(ats)) * 0.05
        axes.set_xlim(min(ats) * np.exp(-room), max(ats) * np.exp(room))
    axes.xaxis.set_major_locator(FixedLocator(ats))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    what = "depth [layers with weights]" if sweep == "depth" else f"number of {sweep}"
    axes.set_xlabel(what + (", logarithmic" if axes.get_xscale() == "log" else ""))
