"""Tables 2 to 4 of the ZerO paper as figures: each system's value with its deviation, beside the paper's own."""

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from zanalysis.errors import InputError
from zanalysis.figures.canvas import GREY, Style, legend, note, single, styles
from zanalysis.figures.comparison import Comparison, Results, read_comparison

__all__ = ["table_2", "table_3", "table_4"]

_WIDE = 5.0
"""A ratio of largest to smallest value from which the axis is logarithmic."""


def table_2(results: Results, axes: Axes | None = None) -> Axes:
    """Draw Table 2 of the ZerO paper: test error by initialization, mean and standard deviation over seeds.

    Each system is a line: its seeds (small points), their mean, and one sample standard deviation to each side. The
    paper's value stands beside it where the setting is the paper's; where it is not, the reasons stand below.

    Args:
        results: the folder of an experiment such as `table-2`, its `results.json`, or a table; see
            `zanalysis.figures.comparison.read_comparison`.
        axes: to draw into; a new figure if None.

    Returns:
        The Axes.

    Raises:
        InputError: if there is nothing to draw, or something is swept.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"system": ["ZerO", "ZerO", "Kaiming"], "value": [5.0, 5.2, 5.4]})
        >>> axes = table_2(table)
        >>> [tick.get_text() for tick in axes.get_yticklabels()]
        ['ZerO', 'Kaiming']
    """
    found = read_comparison(results)
    if found.rows["at"].notna().any():
        raise InputError(f"this experiment sweeps {found.sweep}; draw it with figure_4 or table_4.")
    return _drawn(found, axes)


def table_3(results: Results, axes: Axes | None = None) -> Axes:
    """Draw Table 3 of the ZerO paper: test error of methods that start near the identity.

    Args:
        results: as for `table_2`, of an experiment such as `table-3`.
        axes: as for `table_2`.

    Returns:
        The Axes, see `table_2`.

    Raises:
        InputError: as for `table_2`.
    """
    return table_2(results, axes)


def table_4(results: Results, axes: Axes | None = None) -> Axes:
    """Draw Table 4 of the ZerO paper: test perplexity of Transformers by number of layers.

    Args:
        results: as for `table_2`, of an experiment that sweeps something, such as `table-4`.
        axes: as for `table_2`.

    Returns:
        The Axes, see `table_2`; the systems of one number of layers stand together.

    Raises:
        InputError: if there is nothing to draw, or nothing is swept.
    """
    found = read_comparison(results)
    if found.rows["at"].isna().any():
        raise InputError("this experiment sweeps nothing; draw it with table_2 or table_3.")
    return _drawn(found, axes)


def _drawn(found: Comparison, axes: Axes | None) -> Axes:
    rows, compared = found.rows, not found.why_not
    swept = bool(rows["at"].notna().any())
    keys = _lines(rows, swept)
    places = {key: place + (0.7 * group if swept else 0) for place, (group, key) in enumerate(keys)}
    shown = single(axes, (7.2, 1.3 + 0.3 * max(places.values()) + (0.15 if compared else 0)))
    look = styles(rows["system"])
    for (system, at), place in places.items():
        part = rows[(rows["system"] == system) & (rows["at"].eq(at) | rows["at"].isna())]
        _row(shown, part, place, look[system], swept)
        reported = found.paper[
            (found.paper["system"] == system) & (found.paper["at"].eq(at) | found.paper["at"].isna())
        ]
        _paper(shown, reported if compared else reported[:0], place)
    _axis(shown, found, places, swept)
    return shown


def _lines(rows: pd.DataFrame, swept: bool) -> list[tuple[int, tuple[str, float]]]:
    """Return the lines from top to bottom, each with the number of its group."""
    systems = list(dict.fromkeys(rows["system"]))
    if not swept:
        return [(0, (system, math.nan)) for system in systems]
    there = set(zip(rows["system"], rows["at"], strict=True))
    ats = sorted(set(rows["at"]))
    return [(g, (s, at)) for g, at in enumerate(ats) for s in systems if (s, at) in there]


def _row(axes: Axes, part: pd.DataFrame, place: float, style: Style, swept: bool) -> None:
    values = part["value"].dropna()
    lost = int(part["diverged"].sum())
    # Where nothing is swept the system stands at its line; a legend would say it again.
    name = str(part["system"].iloc[0]) if swept else "_system"
    if len(values):
        mean, std = float(values.mean()), float(values.std()) if len(values) > 1 else math.nan
        axes.plot(values, [place] * len(values), linestyle="", marker=style.marker, markersize=3, color=style.color,
                  alpha=0.45, label="_seeds")  # fmt: skip
        axes.errorbar(
            mean, place, xerr=None if math.isnan(std) else std, fmt=style.marker, color=style.color, markersize=7,
            capsize=4, elinewidth=1.4, markeredgecolor="white", label=name,
        )  # fmt: skip
        said = f"{mean:.2f}" + ("" if math.isnan(std) else f" ± {std:.2f}")
        count = f"{len(values)} seed{'s' * (len(values) > 1)}"
        said += f"   ({count}{f', {lost} more diverged' if lost else ''})"
    else:
        said = f"diverged ({lost} of {lost} seed{'s' * (lost > 1)})"
        axes.plot([], [], marker=style.marker, color=style.color, linestyle="", label=name)
    if swept:
        said = f"{name}: {said}"
    axes.annotate(said, (1.015, place), xycoords=axes.get_yaxis_transform(), fontsize=8, va="center",
                  annotation_clip=False)  # fmt: skip


def _paper(axes: Axes, reported: pd.DataFrame, place: float) -> None:
    for mean, std in zip(reported["mean"], reported["std"], strict=True):
        below = place + 0.27
        if math.isnan(mean):
            said = "paper: diverged"
        else:
            spread = None if math.isnan(std) else std
            axes.errorbar(mean, below, xerr=spread, fmt="D", color=GREY, markerfacecolor="white", markersize=4.5,
                          capsize=2.5, elinewidth=1, label="the paper's value")  # fmt: skip
            said = f"paper: {mean:.2f}" + ("" if spread is None else f" ± {std:.2f}")
        axes.annotate(said, (1.015, below + 0.08), xycoords=axes.get_yaxis_transform(), fontsize=7, color=GREY,
                      va="center", annotation_clip=False)  # fmt: skip


def _axis(axes: Axes, found: Comparison, places: dict[tuple[str, float], float], swept: bool) -> None:
    drawn = found.rows["value"].dropna()
    if len(drawn) and drawn.min() > 0 and drawn.max() > _WIDE * drawn.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    if not len(drawn):
        axes.set_xticks([])
    logarithmic = ", logarithmic" if axes.get_xscale() == "log" else ""
    axes.set_xlabel(found.metric + logarithmic)
    if swept:
        ats = sorted({at for _, at in places})
        middles = [[place for (_, at), place in places.items() if at == one] for one in ats]
        axes.set_yticks([sum(m) / len(m) for m in middles], [f"{found.sweep} {at:g}" for at in ats])
        legend([axes])
    else:
        axes.set_yticks(list(places.values()), [system for system, _ in places])
        if not found.why_not and len(found.paper):
            legend([axes])
    axes.set_ylim(max(places.values()) + (0.6 if found.why_not else 0.8), -0.6)
    axes.grid(axis="y", visible=False)
    single_seed = not found.rows.groupby(["system", "at"], dropna=False)["value"].count().gt(1).any()
    note(
        axes,
        "One seed each: no deviation is known." if single_seed else
        "Large: mean over seeds; small: the seeds; whiskers: one standard deviation to each side.",
        f"Setting: {found.setting}." if found.setting else "",
        f"The paper's values are not drawn, because the setting is another: {found.why_not}." if found.why_not else "",
    )  # fmt: skip
