"""Figure 5 of the ZerO paper: the rank of kernels over training, always with what it is measured against."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes

from zanalysis.analyzers.naming import Selection
from zanalysis.errors import InputError
from zanalysis.figures.canvas import GREY, Style, caption, legend, over_steps, panels, styles, titled
from zanalysis.figures.labels import plain
from zanalysis.figures.recorded import Trajectory, layers_of, trajectories
from zanalysis.figures.sources import Labelled, Sources, against, labelled

__all__ = ["METRICS", "draw_trajectories", "figure_5"]

METRICS = {
    "stable_rank": r"Stable rank: $\Vert\cdot\Vert_F^2\,/\,\Vert\cdot\Vert_2^2$.",
    "rank": "Rank: the number of singular values above the recorded tolerance.",
    "effective_rank": "Effective rank: the exponential of the entropy of the normalized singular values.",
}
"""What a metric is, for a caption."""

Gap = tuple[str, str, str, str]
"""Where there is no number, why, and of which system and layer."""
_SHORT = {"none": "$W$", "init": "$W - W_0$", "identity": r"$W - \alpha I^*$"}
_MOST = 12

References = str | Sequence[str] | Mapping[str, str]


def figure_5(
    runs: Sources,
    layers: Selection = None,
    reference: References = "init",
    metric: str = "stable_rank",
    axes: Axes | Sequence[Axes] | None = None,
) -> tuple[Axes, ...]:
    """Draw Figure 5 of the ZerO paper: stable rank over training, a panel for each layer, with its maximum.

    What is measured decides whether rank rises or falls: the weight itself of an identity-initialized layer starts at
    full rank, its update since the start at none. So every curve names its reference, in the legend and at the axis.
    Several runs of one system are drawn as their mean with a band of one standard deviation. Steps without a number
    are gaps with a tick at the foot, and the reason stands below.

    Args:
        runs: runs, their paths, the folder of an experiment such as `figure-5`, tables as `run.table()` gives them, or
            a mapping from the systems' names to these.
        layers: names, globs, patterns or predicates; if None the first convolutions of the second, third and fourth
            groups of residual blocks, where there are such, else every layer.
        reference: ``"init"``, ``"identity"`` or ``"none"``; several for a row of panels each; or a mapping from
            systems to references, which puts different quantities on one axis, and says so.
        metric: ``"stable_rank"``, ``"rank"`` or another of the table.
        axes: to draw into, one for each layer (and reference); a new figure if None.

    Returns:
        The Axes, row by row.

    Raises:
        InputError: if nothing of this is recorded, or there are more than 12 layers to draw.
    """
    sources = labelled(runs)
    names = layers_of(sources, layers)
    rows: list[str | Mapping[str, str]]
    rows = [reference] if isinstance(reference, str | Mapping) else list(reference)
    if len(names) > _MOST:
        raise InputError(
            f"there are {len(names)} layers to draw; choose at most {_MOST} with layers=… (--layer)."
        )
    if not rows:
        raise InputError("no reference is given; expected 'init', 'identity', 'none' or several of them.")
    columns = len(names) if len(rows) > 1 else min(3, len(names))
    lines = len(rows) if len(rows) > 1 else math.ceil(len(names) / columns)
    shown = _sheet(axes, lines, columns, len(rows) * len(names))
    gaps = list[Gap]()
    for axes_of, (one, name) in zip(shown, [(r, n) for r in rows for n in names], strict=True):
        found = _of(sources, name, metric, one)
        gaps += draw_trajectories(axes_of, found, metric)
        axes_of.set_title(f"{titled(name)}\n{_of_what(found)}", fontsize=8.5)
    said = [METRICS.get(metric, ""), *explained(gaps)]
    if any(isinstance(one, Mapping) and len(set(one.values())) > 1 for one in rows):
        said.append("Curves of different references stand on one axis: they are not the same quantity.")
    legend(shown, columns=4)
    caption(shown, *said)
    return tuple(shown)


def _sheet(axes: Axes | Sequence[Axes] | None, lines: int, columns: int, count: int) -> list[Axes]:
    if axes is not None:
        return panels(axes, 1, count, (1, 1))
    made = panels(None, lines, columns, (2.5 if columns > 1 else 5.0, 2.6 if columns > 1 else 3.4))
    for empty in made[count:]:
        empty.remove()
    return made[:count]


def _of(
    sources: Sequence[Labelled], layer: str, metric: str, reference: str | Mapping[str, str]
) -> list[Trajectory]:
    if isinstance(reference, str):
        return trajectories(sources, layer, metric, reference)
    labels = list(dict.fromkeys(label for label, _ in sources))
    if unknown := [label for label in labels if label not in reference]:
        raise InputError(
            f"reference names none for {unknown[0]!r}; give one for each of: {', '.join(labels)}."
        )
    return [
        found
        for label in labels
        for found in trajectories(
            [pair for pair in sources if pair[0] == label],
            layer,
            metric,
            reference[label],
        )
    ]


def draw_trajectories(axes: Axes, found: Sequence[Trajectory], metric: str) -> list[Gap]:
    """Draw numbers over training, the maximum, and the gaps.

    Args:
        axes: to draw into.
        found: one or more, of one layer; those of one label are seeds of one system.
        metric: what they are.

    Returns:
        What is not drawn, and why; see `explained`.
    """
    look = styles(one.label for one in found)
    gaps = list[Gap]()
    for number, label in enumerate(dict.fromkeys(one.label for one in found)):
        own = [one for one in found if one.label == label]
        _curve(axes, own, look[label])
        gaps += _gaps(axes, own, look[label], number)
    if "rank" in metric:
        _maxima(axes, found)
        axes.set_ylim(bottom=0)
    over_steps(axes, [step for one in found for step in one.steps])
    axes.set_ylabel(metric.replace("_", " "))
    return gaps


def _of_what(found: Sequence[Trajectory]) -> str:
    references = list(dict.fromkeys(one.reference for one in found))
    return against(references[0]) if len(references) == 1 else "different references, see the legend"


def explained(gaps: Sequence[Gap]) -> list[str]:
    """Say where there is no number, and why.

    Args:
        gaps: as `draw_trajectories` returns them.

    Returns:
        A sentence for each place and reason.

    Example:
        >>> explained([("step 0", "zero", "ZerO", "fc"), ("step 0", "zero", "Kaiming", "fc")])
        ['Gap at step 0 (ZerO, Kaiming; fc): the matrix is zero.']
    """
    said = []
    for where, why in dict.fromkeys(gap[:2] for gap in gaps):
        own = [gap for gap in gaps if gap[:2] == (where, why)]
        labels, layers = (list(dict.fromkeys(gap[i] for gap in own)) for i in (2, 3))
        of = ", ".join(layers) if len(layers) < 4 else f"{len(layers)} layers"
        said.append(f"Gap at {where} ({', '.join(labels)}; {of}): {_REASONS.get(why, why)}.")
    return said


def _curve(axes: Axes, own: Sequence[Trajectory], style: Style) -> None:
    one = own[0]
    label = f"{plain(one.label)}, {_SHORT.get(one.reference, one.reference)}"
    if len(own) == 1:
        axes.plot(one.steps, one.values, label=label, **style.of_line, **_alone(one.values, style))
        return
    table = pd.concat([pd.Series(each.values, each.steps) for each in own], axis=1)
    mean, std = table.mean(axis=1, skipna=False), table.std(axis=1, skipna=False)
    label = f"{label} (mean of {len(own)} seeds, band: 1 std)"
    axes.plot(mean.index, mean, label=label, **style.of_line, **_alone(mean.to_numpy(), style))
    axes.fill_between(mean.index, mean - std, mean + std, color=style.color, alpha=0.18, linewidth=0)


def _alone(values: npt.NDArray[np.float64], style: Style) -> dict[str, Any]:
    """Return how numbers with none beside them are to be seen: no line leads to them."""
    known = np.pad(np.isfinite(values), 1)
    found = np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:])
    look = {"marker": style.marker, "markersize": 4, "markevery": found.tolist()}
    return look if len(found) else {}


def _gaps(axes: Axes, own: Sequence[Trajectory], style: Style, number: int) -> list[Gap]:
    """Mark the steps without a number at the foot.

    Args:
        axes: to draw into.
        own: of one system.
        style: its look.
        number: which system it is.

    Returns:
        Where, and why.
    """
    steps = sorted({int(step) for one in own for step in one.steps[np.isnan(one.values)]})
    if steps:
        foot = [0.015 + 0.03 * number] * len(steps)
        axes.plot(steps, foot, linestyle="", marker="|", markersize=5, color=style.color, label="_gaps",
                  transform=axes.get_xaxis_transform(), clip_on=False)  # fmt: skip
    gaps = []
    for word in dict.fromkeys(
        w for one in own for w, v in zip(one.statuses, one.values, strict=True) if np.isnan(v)
    ):
        at = sorted({int(s) for one in own for s, w, v in zip(one.steps, one.statuses, one.values, strict=True)
                     if w == word and np.isnan(v)})  # fmt: skip
        where = f"step {at[0]}" if len(at) == 1 else f"{len(at)} steps from {at[0]} to {at[-1]}"
        gaps.append((where, word, own[0].label, own[0].layer))
    return gaps


_REASONS = {
    "zero": "the matrix is zero",
    "nonfinite": "it holds NaN or infinity",
    "below_noise": "it is below the noise of rounding",
    "dropped": "the record was dropped",
    "missing": "the table gives no reason",
    "no_common_diagonal": "no multiple of the identity can be subtracted (no_common_diagonal)",
}


def _maxima(axes: Axes, found: Sequence[Trajectory]) -> None:
    for most in sorted({one.maximum for one in found if not math.isnan(one.maximum)}):
        axes.axhline(
            most,
            color=GREY,
            linestyle=(0, (6, 2, 1, 2)),
            linewidth=1.1,
            label="maximum, min(m, n)",
            zorder=1.5,
        )
        axes.annotate(f"{most:g}", (1, most), xycoords=axes.get_yaxis_transform(), xytext=(2, 0), fontsize=7,
                      textcoords="offset points", color=GREY, va="center", annotation_clip=False)  # fmt: skip
